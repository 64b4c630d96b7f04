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
	index   map[K]*slot[K, V] // every key that is desired or actual
	pages   [][]slot[K, V]    // all slots, in use or not, in the order of their first use
	used    int               // of the last page
	free    []*slot[K, V]     // slots that were given up
	queue   []*slot[K, V]     // slots that may be pending, each once; swept when a walk begins
	walking int               // walks under way: no sweep under their feet

	desired, actual  int
	updates, deletes int
	round            uint32 // of the last replacement of a set; see slot.seen
}

// slot is one key. Both values lie beside it, not in maps of their own, so that a change is one map
// access; slots lie in pages, so that 100k of them are few allocations and never move.
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

	slot *slot[K, V]
}

// New returns an empty tracker.
func New[K, V comparable]() *Tracker[K, V] {
	return &Tracker[K, V]{index: map[K]*slot[K, V]{}}
}

// SetDesired makes k desired as v.
func (t *Tracker[K, V]) SetDesired(k K, v V) { t.setDesired(k, v, t.round) }

// DeleteDesired makes k undesired.
func (t *Tracker[K, V]) DeleteDesired(k K) {
	if s := t.index[k]; s != nil && s.wanted {
		t.unwant(s)
	}
}

// ReplaceDesired replaces the whole desired set. Entries that stay as they are cost one map access
// each. Of a key that occurs twice the last value counts.
func (t *Tracker[K, V]) ReplaceDesired(all iter.Seq2[K, V]) {
	t.round++
	for k, v := range all {
		t.setDesired(k, v, t.round)
	}
	for s := range t.all() {
		if s.wanted && s.seen != t.round {
			t.unwant(s)
		}
	}
}

// SetActual notes that the kernel holds v for k: after a read or a successful write.
func (t *Tracker[K, V]) SetActual(k K, v V) { t.setActual(k, v, t.round) }

// Written notes that the update was carried out. It is SetActual without the search for the key.
func (t *Tracker[K, V]) Written(u Update[K, V]) {
	s := u.slot
	if s == nil || !s.wanted && !s.held || s.key != u.Key { // given up meanwhile, perhaps in use for another
		t.SetActual(u.Key, u.Desired)
		return
	}
	t.hold(s, u.Desired)
}

// DeleteActual notes that the kernel does not hold k.
func (t *Tracker[K, V]) DeleteActual(k K) {
	if s := t.index[k]; s != nil && s.held {
		t.unhold(s)
	}
}

// ReplaceActual replaces the whole actual set, after a full read of the kernel.
func (t *Tracker[K, V]) ReplaceActual(all iter.Seq2[K, V]) {
	t.round++
	for k, v := range all {
		t.setActual(k, v, t.round)
	}
	for s := range t.all() {
		if s.held && s.seen != t.round {
			t.unhold(s)
		}
	}
}

// Desired returns the desired value of k.
func (t *Tracker[K, V]) Desired(k K) (v V, ok bool) {
	if s := t.index[k]; s != nil {
		return s.want, s.wanted
	}
	return v, false
}

// Actual returns the actual value of k.
func (t *Tracker[K, V]) Actual(k K) (v V, ok bool) {
	if s := t.index[k]; s != nil {
		return s.have, s.held
	}
	return v, false
}

// AllDesired walks over the desired set.
func (t *Tracker[K, V]) AllDesired() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for s := range t.all() {
			if s.wanted && !yield(s.key, s.want) {
				return
			}
		}
	}
}

// AllActual walks over the actual set.
func (t *Tracker[K, V]) AllActual() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for s := range t.all() {
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
		t.walk(func(s *slot[K, V]) bool {
			if !s.needsUpdate() {
				return true
			}
			return yield(Update[K, V]{Key: s.key, Desired: s.want, Actual: s.have, Create: !s.held, slot: s})
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
	s := t.slot(k)
	s.seen = round
	if s.wanted && s.want == v {
		return
	}
	t.uncount(s)
	if !s.wanted {
		t.desired++
	}
	s.want, s.wanted = v, true
	t.count(s)
}

func (t *Tracker[K, V]) setActual(k K, v V, round uint32) {
	s := t.slot(k)
	s.seen = round
	t.hold(s, v)
}

func (t *Tracker[K, V]) hold(s *slot[K, V], v V) {
	if s.held && s.have == v {
		return
	}
	t.uncount(s)
	if !s.held {
		t.actual++
	}
	s.have, s.held = v, true
	t.count(s)
}

func (t *Tracker[K, V]) unwant(s *slot[K, V]) {
	var zero V
	t.uncount(s)
	t.desired--
	s.want, s.wanted = zero, false
	t.count(s)
}

func (t *Tracker[K, V]) unhold(s *slot[K, V]) {
	var zero V
	t.uncount(s)
	t.actual--
	s.have, s.held = zero, false
	t.count(s)
}

// slot finds or makes the slot of k.
func (t *Tracker[K, V]) slot(k K) *slot[K, V] {
	s := t.index[k]
	if s != nil {
		return s
	}
	if n := len(t.free); n > 0 {
		s, t.free = t.free[n-1], t.free[:n-1]
	} else {
		if len(t.pages) == 0 || t.used == pageSize {
			t.pages, t.used = append(t.pages, make([]slot[K, V], pageSize)), 0
		}
		s = &t.pages[len(t.pages)-1][t.used]
		t.used++
	}
	s.key = k
	t.index[k] = s
	return s
}

// reserve makes room for n keys in an empty tracker.
func (t *Tracker[K, V]) reserve(n int) {
	if len(t.index) == 0 {
		t.index = make(map[K]*slot[K, V], n)
	}
}

// all walks over all slots, those that were given up included: they are neither wanted nor held.
func (t *Tracker[K, V]) all() iter.Seq[*slot[K, V]] {
	return func(yield func(*slot[K, V]) bool) {
		for _, page := range t.pages {
			for i := range page {
				if !yield(&page[i]) {
					return
				}
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

func (t *Tracker[K, V]) count(s *slot[K, V]) {
	switch {
	case s.needsUpdate():
		t.updates++
	case s.needsDelete():
		t.deletes++
	case !s.wanted && !s.held:
		delete(t.index, s.key)
		*s = slot[K, V]{queued: s.queued} // if queued, its place in the queue goes with it to the next key
		t.free = append(t.free, s)
		return
	default:
		return
	}
	if !s.queued {
		s.queued = true
		t.queue = append(t.queue, s)
	}
}

func (t *Tracker[K, V]) walk(visit func(*slot[K, V]) bool) {
	t.sweep()
	t.walking++
	defer func() { t.walking-- }()
	for n := 0; n < len(t.queue); n++ { // grows when the visitor makes something pending
		if !visit(t.queue[n]) {
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
	for _, s := range t.queue {
		if s.needsUpdate() || s.needsDelete() {
			kept = append(kept, s)
		} else {
			s.queued = false
		}
	}
	clear(t.queue[len(kept):])
	t.queue = kept
}

func (s *slot[K, V]) needsUpdate() bool { return s.wanted && (!s.held || s.want != s.have) }
func (s *slot[K, V]) needsDelete() bool { return s.held && !s.wanted }
