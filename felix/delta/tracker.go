// SPDX-License-Identifier: Apache-2.0

// Package delta compares what should be with what is. A Tracker holds both and knows the
// difference at any time; it does no I/O.
//
//	      desired                    actual
//	┌────────────────┬────────────────────┬───────────────┐
//	│ pending update │ in both:           │ pending delete│
//	│ (create)       │  equal → in sync   │               │
//	│                │  differ → pending  │               │
//	│                │  update (replace)  │               │
//	└────────────────┴────────────────────┴───────────────┘
//
// A driver tells it the desired set (memory only), what it read from the kernel (actual), and after
// each write what really happened: SetActual after a success, nothing after a failure. So whatever
// failed is still pending, and nothing that succeeded is written twice.
package delta

import "iter"

// Tracker holds the desired and the actual set and the pending changes between them. Setting or
// asking one key costs one map access, a walk over the pending changes costs what is pending.
// Walks visit keys in the order in which they became pending. It is for one goroutine.
type Tracker[K, V comparable] struct {
	index   map[K]int32 // place in slots of every key that is desired or actual
	slots   []slot[K, V]
	free    []int32 // places in slots that are empty
	queue   []int32 // places that may be pending, each once; swept when a walk begins
	walking int     // walks under way: no sweep under their feet

	desired, actual  int
	updates, deletes int
	round            uint32 // of the last replacement of a set; see slot.seen
}

// slot is one key. Values lie in one array, not in maps: a set of 100k routes is then one
// allocation, and a change is one map access.
type slot[K, V comparable] struct {
	key        K
	want, have V
	wanted     bool // key is desired, as want
	held       bool // key is actual, as have
	queued     bool // its place is in queue
	seen       uint32
}

// Update is a pending change of the kernel: Desired has to be created, or has to replace Actual.
type Update[K, V comparable] struct {
	Key     K
	Desired V
	Actual  V    // zero if Create
	Create  bool // there is none yet
}

// New returns an empty tracker.
func New[K, V comparable]() *Tracker[K, V] {
	return &Tracker[K, V]{index: map[K]int32{}}
}

// SetDesired makes k desired as v.
func (t *Tracker[K, V]) SetDesired(k K, v V) { t.setDesired(k, v, t.round) }

// DeleteDesired makes k undesired.
func (t *Tracker[K, V]) DeleteDesired(k K) {
	if i, ok := t.index[k]; ok && t.slots[i].wanted {
		t.unwant(i)
	}
}

// ReplaceDesired replaces the whole desired set. Entries that stay as they are cost one map access
// each. Of a key that occurs twice the last value counts.
func (t *Tracker[K, V]) ReplaceDesired(all iter.Seq2[K, V]) {
	t.round++
	for k, v := range all {
		t.setDesired(k, v, t.round)
	}
	for i := range t.slots {
		if s := &t.slots[i]; s.wanted && s.seen != t.round {
			t.unwant(int32(i))
		}
	}
}

// SetActual notes that the kernel holds v for k: after a read or a successful write.
func (t *Tracker[K, V]) SetActual(k K, v V) { t.setActual(k, v, t.round) }

// DeleteActual notes that the kernel does not hold k.
func (t *Tracker[K, V]) DeleteActual(k K) {
	if i, ok := t.index[k]; ok && t.slots[i].held {
		t.unhold(i)
	}
}

// ReplaceActual replaces the whole actual set, after a full read of the kernel.
func (t *Tracker[K, V]) ReplaceActual(all iter.Seq2[K, V]) {
	t.round++
	for k, v := range all {
		t.setActual(k, v, t.round)
	}
	for i := range t.slots {
		if s := &t.slots[i]; s.held && s.seen != t.round {
			t.unhold(int32(i))
		}
	}
}

// Desired returns the desired value of k.
func (t *Tracker[K, V]) Desired(k K) (v V, ok bool) {
	if i, found := t.index[k]; found {
		return t.slots[i].want, t.slots[i].wanted
	}
	return v, false
}

// Actual returns the actual value of k.
func (t *Tracker[K, V]) Actual(k K) (v V, ok bool) {
	if i, found := t.index[k]; found {
		return t.slots[i].have, t.slots[i].held
	}
	return v, false
}

// AllDesired walks over the desired set.
func (t *Tracker[K, V]) AllDesired() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for i := range t.slots {
			if s := &t.slots[i]; s.wanted && !yield(s.key, s.want) {
				return
			}
		}
	}
}

// AllActual walks over the actual set.
func (t *Tracker[K, V]) AllActual() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for i := range t.slots {
			if s := &t.slots[i]; s.held && !yield(s.key, s.have) {
				return
			}
		}
	}
}

// PendingUpdates walks over what has to be created or replaced. The tracker may be changed
// meanwhile: what is in sync when its turn comes is left out.
func (t *Tracker[K, V]) PendingUpdates() iter.Seq[Update[K, V]] {
	return func(yield func(Update[K, V]) bool) {
		t.walk(func(s *slot[K, V]) bool {
			if !s.needsUpdate() {
				return true
			}
			return yield(Update[K, V]{Key: s.key, Desired: s.want, Actual: s.have, Create: !s.held})
		})
	}
}

// PendingDeletes walks over what has to be deleted, with its actual value. The tracker may be
// changed meanwhile.
func (t *Tracker[K, V]) PendingDeletes() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		t.walk(func(s *slot[K, V]) bool {
			if !s.needsDelete() {
				return true
			}
			return yield(s.key, s.have)
		})
	}
}

// InSync tells whether actual equals desired.
func (t *Tracker[K, V]) InSync() bool { return t.updates == 0 && t.deletes == 0 }

// Len returns the number of desired and of actual keys.
func (t *Tracker[K, V]) Len() (desired, actual int) { return t.desired, t.actual }

// Pending returns the number of updates and of deletes that are pending.
func (t *Tracker[K, V]) Pending() (updates, deletes int) { return t.updates, t.deletes }

func (t *Tracker[K, V]) setDesired(k K, v V, round uint32) {
	i := t.place(k)
	s := &t.slots[i]
	s.seen = round
	if s.wanted && s.want == v {
		return
	}
	t.uncount(s)
	if !s.wanted {
		t.desired++
	}
	s.want, s.wanted = v, true
	t.count(i)
}

func (t *Tracker[K, V]) setActual(k K, v V, round uint32) {
	i := t.place(k)
	s := &t.slots[i]
	s.seen = round
	if s.held && s.have == v {
		return
	}
	t.uncount(s)
	if !s.held {
		t.actual++
	}
	s.have, s.held = v, true
	t.count(i)
}

func (t *Tracker[K, V]) unwant(i int32) {
	var zero V
	s := &t.slots[i]
	t.uncount(s)
	t.desired--
	s.want, s.wanted = zero, false
	t.count(i)
}

func (t *Tracker[K, V]) unhold(i int32) {
	var zero V
	s := &t.slots[i]
	t.uncount(s)
	t.actual--
	s.have, s.held = zero, false
	t.count(i)
}

// place finds or makes the slot of k.
func (t *Tracker[K, V]) place(k K) int32 {
	if i, ok := t.index[k]; ok {
		return i
	}
	var i int32
	if n := len(t.free); n > 0 {
		i, t.free = t.free[n-1], t.free[:n-1]
	} else {
		i = int32(len(t.slots))
		t.slots = append(t.slots, slot[K, V]{})
	}
	t.slots[i].key = k
	t.index[k] = i
	return i
}

// uncount takes a slot out of the counters before it changes, count puts it back afterwards, queues
// it if it is pending now, and gives it up if nothing is left in it.
func (t *Tracker[K, V]) uncount(s *slot[K, V]) {
	if s.needsUpdate() {
		t.updates--
	} else if s.needsDelete() {
		t.deletes--
	}
}

func (t *Tracker[K, V]) count(i int32) {
	s := &t.slots[i]
	switch {
	case s.needsUpdate():
		t.updates++
	case s.needsDelete():
		t.deletes++
	case !s.wanted && !s.held:
		delete(t.index, s.key)
		// It may still be queued; then its place in the queue goes with it to the next key.
		t.slots[i] = slot[K, V]{queued: s.queued}
		t.free = append(t.free, i)
		return
	default:
		return
	}
	if !s.queued {
		s.queued = true
		t.queue = append(t.queue, i)
	}
}

func (t *Tracker[K, V]) walk(visit func(*slot[K, V]) bool) {
	t.sweep()
	t.walking++
	defer func() { t.walking-- }()
	for n := 0; n < len(t.queue); n++ { // grows when the visitor makes something pending
		s := t.slots[t.queue[n]] // a copy: the visitor may make slots move
		if !visit(&s) {
			return
		}
	}
}

// sweep drops from the queue what is not pending any more.
func (t *Tracker[K, V]) sweep() {
	if t.walking > 0 {
		return
	}
	kept := t.queue[:0]
	for _, i := range t.queue {
		if s := &t.slots[i]; s.needsUpdate() || s.needsDelete() {
			kept = append(kept, i)
		} else {
			s.queued = false
		}
	}
	t.queue = kept
}

func (s *slot[K, V]) needsUpdate() bool { return s.wanted && (!s.held || s.want != s.have) }
func (s *slot[K, V]) needsDelete() bool { return s.held && !s.wanted }
