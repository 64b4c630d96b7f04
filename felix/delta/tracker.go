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

import (
	"iter"
	"slices"
)

// Tracker holds the desired and the actual set and the pending changes between them. Setting or
// asking one key costs one map access, a walk over the pending changes costs what is pending.
// Walks visit keys in the order in which they became pending. It is for one goroutine.
type Tracker[K, V comparable] struct {
	index   map[K]int32    // number of the slot of every key that is desired or actual
	pages   [][]slot[K, V] // all slots, in use or not
	slots   int32          // how many were ever in use
	free    []int32        // those that were given up
	queue   []int32        // those that may be pending, each once; swept when a walk begins
	walking int            // walks under way: no sweep under their feet

	desired, actual  int
	updates, deletes int
	round            uint32 // of the last replacement of a set; see slot.seen
}

// slot is one key. Both values lie beside it, not in maps of their own, so that a change is one map
// access. Slots lie in pages, so that 100k of them are few allocations and never move; they are
// referred to by number, so that the garbage collector need not look into the map of a K without
// pointers.
type slot[K, V comparable] struct {
	key        K
	want, have V
	seen       uint32 // the round that set it last
	wanted     bool   // key is desired, as want
	held       bool   // key is actual, as have
	queued     bool   // it is in the queue
}

const pageSize = 256 // slots

// Update is a pending change of the kernel: Desired has to be created, or has to replace Actual.
type Update[K, V comparable] struct {
	Key     K
	Desired V
	Actual  V    // zero if Create
	Create  bool // there is none yet

	slot int32
}

// New returns an empty tracker.
func New[K, V comparable]() *Tracker[K, V] {
	return &Tracker[K, V]{index: map[K]int32{}}
}

// SetDesired makes k desired as v.
func (t *Tracker[K, V]) SetDesired(k K, v V) { t.setDesired(k, v, t.round) }

// DeleteDesired makes k undesired.
func (t *Tracker[K, V]) DeleteDesired(k K) {
	if i, ok := t.index[k]; ok && t.at(i).wanted {
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
	for i, s := range t.all() {
		if s.wanted && s.seen != t.round {
			t.unwant(i)
		}
	}
}

// SetActual notes that the kernel holds v for k: after a read or a successful write.
func (t *Tracker[K, V]) SetActual(k K, v V) { t.setActual(k, v, t.round) }

// Written notes that the update was carried out. It is SetActual without the search for the key.
func (t *Tracker[K, V]) Written(u Update[K, V]) {
	s := t.at(u.slot)
	if !s.wanted && !s.held || s.key != u.Key { // given up meanwhile, perhaps in use for another
		t.SetActual(u.Key, u.Desired)
		return
	}
	t.hold(u.slot, u.Desired)
}

// DeleteActual notes that the kernel does not hold k.
func (t *Tracker[K, V]) DeleteActual(k K) {
	if i, ok := t.index[k]; ok && t.at(i).held {
		t.unhold(i)
	}
}

// ReplaceActual replaces the whole actual set, after a full read of the kernel.
func (t *Tracker[K, V]) ReplaceActual(all iter.Seq2[K, V]) {
	t.round++
	for k, v := range all {
		t.setActual(k, v, t.round)
	}
	for i, s := range t.all() {
		if s.held && s.seen != t.round {
			t.unhold(i)
		}
	}
}

// Desired returns the desired value of k.
func (t *Tracker[K, V]) Desired(k K) (v V, ok bool) {
	if i, found := t.index[k]; found {
		return t.at(i).want, t.at(i).wanted
	}
	return v, false
}

// Actual returns the actual value of k.
func (t *Tracker[K, V]) Actual(k K) (v V, ok bool) {
	if i, found := t.index[k]; found {
		return t.at(i).have, t.at(i).held
	}
	return v, false
}

// AllDesired walks over the desired set.
func (t *Tracker[K, V]) AllDesired() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for _, s := range t.all() {
			if s.wanted && !yield(s.key, s.want) {
				return
			}
		}
	}
}

// AllActual walks over the actual set.
func (t *Tracker[K, V]) AllActual() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for _, s := range t.all() {
			if s.held && !yield(s.key, s.have) {
				return
			}
		}
	}
}

// PendingUpdates walks over what has to be created or replaced. The tracker may be changed
// meanwhile: what is in sync when its turn comes is left out.
func (t *Tracker[K, V]) PendingUpdates() iter.Seq[Update[K, V]] {
	return func(yield func(Update[K, V]) bool) {
		t.walk(func(i int32, s *slot[K, V]) bool {
			if !s.needsUpdate() {
				return true
			}
			return yield(Update[K, V]{Key: s.key, Desired: s.want, Actual: s.have, Create: !s.held, slot: i})
		})
	}
}

// PendingDeletes walks over what has to be deleted, with its actual value. The tracker may be
// changed meanwhile.
func (t *Tracker[K, V]) PendingDeletes() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		t.walk(func(_ int32, s *slot[K, V]) bool {
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
	s := t.at(i)
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
	t.at(i).seen = round
	t.hold(i, v)
}

func (t *Tracker[K, V]) hold(i int32, v V) {
	s := t.at(i)
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
	s := t.at(i)
	t.uncount(s)
	t.desired--
	s.want, s.wanted = zero, false
	t.count(i)
}

func (t *Tracker[K, V]) unhold(i int32) {
	var zero V
	s := t.at(i)
	t.uncount(s)
	t.actual--
	s.have, s.held = zero, false
	t.count(i)
}

func (t *Tracker[K, V]) at(i int32) *slot[K, V] { return &t.pages[i/pageSize][i%pageSize] }

// place finds or makes the slot of k.
func (t *Tracker[K, V]) place(k K) int32 {
	i, ok := t.index[k]
	if ok {
		return i
	}
	if n := len(t.free); n > 0 {
		i, t.free = t.free[n-1], t.free[:n-1]
	} else {
		i = t.slots
		t.slots++
		if i%pageSize == 0 {
			t.pages = append(t.pages, make([]slot[K, V], pageSize))
		}
	}
	t.at(i).key = k
	t.index[k] = i
	return i
}

// reserve makes room for n keys in an empty tracker.
func (t *Tracker[K, V]) reserve(n int) {
	if len(t.index) == 0 {
		t.index = make(map[K]int32, n)
		t.queue = slices.Grow(t.queue, n)
	}
}

// all walks over all slots, those that were given up included: they are neither wanted nor held.
func (t *Tracker[K, V]) all() iter.Seq2[int32, *slot[K, V]] {
	return func(yield func(int32, *slot[K, V]) bool) {
		for i := range t.slots {
			if !yield(i, t.at(i)) {
				return
			}
		}
	}
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
	s := t.at(i)
	switch {
	case s.needsUpdate():
		t.updates++
	case s.needsDelete():
		t.deletes++
	case !s.wanted && !s.held:
		delete(t.index, s.key)
		*s = slot[K, V]{queued: s.queued} // if queued, its place in the queue goes with it to the next key
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

func (t *Tracker[K, V]) walk(visit func(int32, *slot[K, V]) bool) {
	t.sweep()
	t.walking++
	defer func() { t.walking-- }()
	for n := 0; n < len(t.queue); n++ { // grows when the visitor makes something pending
		if !visit(t.queue[n], t.at(t.queue[n])) {
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
		if s := t.at(i); s.needsUpdate() || s.needsDelete() {
			kept = append(kept, i)
		} else {
			s.queued = false
		}
	}
	t.queue = kept
}

func (s *slot[K, V]) needsUpdate() bool { return s.wanted && (!s.held || s.want != s.have) }
func (s *slot[K, V]) needsDelete() bool { return s.held && !s.wanted }
