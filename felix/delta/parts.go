// SPDX-License-Identifier: Apache-2.0

package delta

import (
	"iter"
	"maps"
	"slices"
)

// Parts fills a tracker's desired set from lists, each of which replaces its predecessor of the same
// name and leaves the other parts alone. What stands in the same order as before is only compared,
// without a map access, so a list of 100k that grew by one costs half a millisecond.
//
// The result follows from the present lists alone: of a key that occurs twice, in one part or in two,
// the last occurrence counts, parts being taken in the order of their names.
type Parts[K, V, E comparable] struct {
	tracker *Tracker[K, V]
	split   func(E) (K, V)
	lists   map[string][]E
	mixed   bool // some key occurs twice
}

// NewParts returns the empty set of parts that fills t. split makes key and value of an element.
func NewParts[K, V, E comparable](t *Tracker[K, V], split func(E) (K, V)) *Parts[K, V, E] {
	return &Parts[K, V, E]{tracker: t, split: split, lists: map[string][]E{}}
}

// Set replaces a part. The list is kept, so the caller must not change it afterwards.
func (p *Parts[K, V, E]) Set(name string, list []E) {
	old := p.lists[name]
	if len(list) == 0 {
		delete(p.lists, name)
	} else {
		p.lists[name] = list
	}
	if !p.mixed {
		p.replace(trim(old, list))
	}
	if p.mixed || p.total() != p.tracker.desired {
		p.replaceAll()
	}
}

// Names returns the names of the parts that are not empty.
func (p *Parts[K, V, E]) Names() []string { return slices.Sorted(maps.Keys(p.lists)) }

// replace makes the elements of list desired instead of those of old. It is right as long as no key
// occurs twice.
func (p *Parts[K, V, E]) replace(old, list []E) {
	t := p.tracker
	t.reserve(len(list))
	t.round++
	for _, e := range list {
		k, v := p.split(e)
		t.setDesired(k, v, t.round)
	}
	for _, e := range old {
		k, _ := p.split(e)
		if i, ok := t.index[k]; ok && t.at(i).wanted && t.at(i).seen != t.round {
			t.unwant(i)
		}
	}
}

func (p *Parts[K, V, E]) replaceAll() {
	p.tracker.ReplaceDesired(p.all())
	p.mixed = p.total() != p.tracker.desired
}

func (p *Parts[K, V, E]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for _, name := range p.Names() {
			for _, e := range p.lists[name] {
				if !yield(p.split(e)) {
					return
				}
			}
		}
	}
}

// total is the number of elements; equal to the number of desired keys if none occurs twice.
func (p *Parts[K, V, E]) total() int {
	n := 0
	for _, l := range p.lists {
		n += len(l)
	}
	return n
}

// trim cuts off what a and b have in common at both ends.
func trim[E comparable](a, b []E) ([]E, []E) {
	if len(a) > 0 && len(a) == len(b) && &a[0] == &b[0] {
		return nil, nil
	}
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return a, b
}
