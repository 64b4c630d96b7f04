// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"iter"
	"slices"

	"github.com/heliograph-dev/heliograph/policy"
)

// pooled yields what a pool should hold.
func (t *Table) pooled(k policy.SetKind, i int) iter.Seq[Element] {
	return func(yield func(Element) bool) {
		for _, s := range t.sets {
			if s.from.Kind != k || s.half[i].set != nil {
				continue
			}
			for m := range s.from.Members {
				if usable(m, k, families()[i]) && !yield(s.pooled(m)) {
					return
				}
			}
		}
	}
}

// updateSet follows a set of the state.
func (t *Table) updateSet(c policy.SetChange) {
	s, from := t.sets[c.ID], t.state.Sets[c.ID]
	if from == nil {
		t.removeSet(c.ID)
		return
	}
	fresh := s == nil
	if fresh {
		s = &selected{id: c.ID, tag: tagOf(c.ID), from: from}
		t.sets[c.ID] = s
		t.units.setChanged(c.ID)
	}
	for i, f := range families() {
		no := func(m policy.Member) bool { return !usable(m, from.Kind, f) }
		add, remove := slices.DeleteFunc(slices.Clone(c.Add), no), slices.DeleteFunc(slices.Clone(c.Remove), no)
		t.updateHalf(s, i, add, remove, fresh)
	}
}

func (t *Table) removeSet(id policy.SetID) {
	s := t.sets[id]
	if s == nil {
		return
	}
	for i := range s.half {
		if set := s.half[i].set; set != nil {
			t.objects.releaseSet(set.Name)
		} else {
			t.pool(s, i, func(p *setObject) {
				s.members(families()[i], func(m policy.Member) { p.change(s.pooled(m), false) })
			})
		}
	}
	delete(t.sets, id)
	t.units.setChanged(id)
}

// pool lets f change the pool of a family.
func (t *Table) pool(s *selected, i int, f func(*setObject)) {
	p := t.pools[poolOf(s.from.Kind, families()[i])]
	f(p)
	t.objects.touch(p)
}

// updateHalf follows the members of one family, into and out of the pool if need be.
func (t *Table) updateHalf(s *selected, i int, add, remove []policy.Member, fresh bool) {
	h := &s.half[i]
	h.nets += networks(add) - networks(remove)
	pooled := func(list []policy.Member, add bool) {
		t.pool(s, i, func(p *setObject) {
			for _, m := range list {
				p.change(s.pooled(m), add)
			}
		})
	}
	switch inPool := h.set == nil; {
	case inPool && h.nets == 0:
		pooled(remove, false)
		pooled(add, true)
	case inPool:
		if !fresh {
			pooled(append(s.without(i, add), remove...), false)
		}
		t.objects.put(s.build(i))
		t.units.setChanged(s.id)
	case h.nets == 0:
		t.objects.releaseSet(h.set.Name)
		h.set, h.tree = nil, nil
		pooled(s.without(i, nil), true)
		t.units.setChanged(s.id)
	default:
		for _, m := range remove {
			h.change(m, s.from.Kind, false)
		}
		for _, m := range add {
			h.change(m, s.from.Kind, true)
		}
		t.objects.touch(h.set)
	}
}

// without are the members of a family, but for those that have just joined.
func (s *selected) without(i int, joined []policy.Member) (out []policy.Member) {
	skip := map[policy.Member]bool{}
	for _, m := range joined {
		skip[m] = true
	}
	s.members(families()[i], func(m policy.Member) {
		if !skip[m] {
			out = append(out, m)
		}
	})
	return out
}

// resolve returns the name of the set in the kernel that has a set's members, and their tag there.
func (t *Table) resolve(id policy.SetID, k policy.SetKind, f policy.Family) (name, tag string, ok bool) {
	s := t.sets[id]
	if s == nil || s.from.Kind != k {
		return "", "", false
	}
	i := 0
	if f == policy.IPv6 {
		i = 1
	}
	if set := s.half[i].set; set != nil {
		return set.Name, "", true
	}
	return poolOf(k, f).Name, s.tag, true
}
