// SPDX-License-Identifier: Apache-2.0

// Package feed carries objects from watches to whoever computes with each change of them, and keeps
// a copy of them on disk.
//
//	watch ─ Put, Delete ─▶ Feed ─ Take ─▶ felix/enforce ─ Note ─▶ Journal (disk)
//	                        ▲                                        │ after a start without
//	                        └──────────────── Seed ◀─────────────────┘ an API server
//
// A Feed keeps the last word about each object only: who takes slowly takes less often, and never
// more than there is.
package feed

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Kind names a kind of objects by its resource, such as "pods".
type Kind string

// Key names an object.
type Key struct {
	Kind            Kind
	Namespace, Name string
}

// Compare orders by kind, namespace and name.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Kind, o.Kind), cmp.Compare(k.Namespace, o.Namespace), cmp.Compare(k.Name, o.Name))
}

// KeyOf is the key of an object of a kind.
func KeyOf(kind Kind, obj client.Object) Key {
	return Key{Kind: kind, Namespace: obj.GetNamespace(), Name: obj.GetName()}
}

// Change is an object as it is now. Objects are shared: they must not be changed.
type Change struct {
	Key    Key
	Object client.Object // nil: it is gone
}

// Feed collects changes. It is safe for concurrent use.
type Feed struct {
	changed chan struct{}

	mu      sync.Mutex
	pending map[Key]client.Object
	synced  bool
	// Until the API server has said all it had to say: what it has said so far, and what is known from
	// the copy on disk alone.
	live   map[Key]struct{}
	seeded map[Key]struct{}
}

// New returns a feed of nothing.
func New() *Feed {
	return &Feed{
		changed: make(chan struct{}, 1), pending: map[Key]client.Object{},
		live: map[Key]struct{}{}, seeded: map[Key]struct{}{},
	}
}

// Changed receives a poke when there is something to take.
func (f *Feed) Changed() <-chan struct{} { return f.changed }

func (f *Feed) poke() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// Put notes that an object is there, or changed.
func (f *Feed) Put(k Key, obj client.Object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending[k] = obj
	if !f.synced {
		f.live[k] = struct{}{}
		delete(f.seeded, k)
	}
	f.poke()
}

// Delete notes that an object is gone.
func (f *Feed) Delete(k Key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending[k] = nil
	if !f.synced {
		delete(f.live, k)
		delete(f.seeded, k)
	}
	f.poke()
}

// Seed adds what the copy on disk says, as far as the API server has not said anything better.
func (f *Feed) Seed(changes []Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.synced {
		return
	}
	for _, c := range changes {
		if _, heard := f.pending[c.Key]; heard {
			continue
		}
		if _, live := f.live[c.Key]; !live {
			f.pending[c.Key], f.seeded[c.Key] = c.Object, struct{}{}
		}
	}
	f.poke()
}

// MarkSynced notes that the API server has said all it had to say: what it has not mentioned is gone.
func (f *Feed) MarkSynced() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k := range f.seeded {
		f.pending[k] = nil
	}
	f.synced, f.live, f.seeded = true, nil, nil
	f.poke()
}

// Synced says whether what is taken is what the API server says.
func (f *Feed) Synced() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.synced
}

// Take returns what changed since the last Take, sorted by key.
func (f *Feed) Take() []Change {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.pending) == 0 {
		return nil
	}
	changes := make([]Change, 0, len(f.pending))
	for _, k := range slices.SortedFunc(maps.Keys(f.pending), Key.Compare) {
		changes = append(changes, Change{Key: k, Object: f.pending[k]})
	}
	f.pending = map[Key]client.Object{}
	return changes
}
