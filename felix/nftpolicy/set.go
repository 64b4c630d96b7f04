// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/heliograph-dev/heliograph/policy"
)

// setObject is a set as it should be, and how the kernel's differs.
type setObject struct {
	Set
	refs     int
	owner    policy.PolicyID   // of a rule's networks
	all      iter.Seq[Element] // what should be in it
	inKernel bool
	pending  map[Element]bool // what must go into the kernel's, or out
	nets     *nested          // of a rule's networks
	list     []policy.Net     // they
}

// change notes that an element comes or goes. What the kernel has never seen goes with the set.
func (s *setObject) change(e Element, add bool) {
	if !s.inKernel {
		return
	}
	if was, ok := s.pending[e]; ok && was != add {
		delete(s.pending, e)
		return
	}
	if s.pending == nil {
		s.pending = map[Element]bool{}
	}
	s.pending[e] = add
}

// values yields the elements of a list.
func values(list []Element) iter.Seq[Element] { return slices.Values(list) }

// rangeOf is a network as an element; suffix is what a tuple has behind the address.
func rangeOf(p netip.Prefix, suffix string) Element {
	return Element{Key: string(p.Addr().AsSlice()) + suffix, Last: string(lastOf(p).AsSlice()) + suffix}
}

// newNetSet makes the set of a rule's networks.
func newNetSet(l netList) *setObject {
	s := &setObject{Set: l.Set, owner: l.owner}
	s.nets = &nested{change: func(p netip.Prefix, add bool) { s.change(rangeOf(p, ""), add) }}
	s.all = ranges(s.nets, "")
	return s
}

func ranges(n *nested, suffix string) iter.Seq[Element] {
	return func(yield func(Element) bool) {
		n.outermost(func(p netip.Prefix) bool { return yield(rangeOf(p, suffix)) })
	}
}

// update makes the set hold other networks. Lists are as users write them, so what has changed lies
// between a beginning and an end that have not: no more is looked at.
func (s *setObject) update(l netList) {
	old, list := trim(s.list, l.nets)
	s.list = l.nets
	for _, n := range old {
		if familyOf(n.CIDR.Addr()) == l.family {
			subtract(n.CIDR, n.Except, s.nets.remove)
		}
	}
	for _, n := range list {
		if familyOf(n.CIDR.Addr()) == l.family {
			subtract(n.CIDR, n.Except, s.nets.add)
		}
	}
}

// trim cuts off what two lists have in common at both ends.
func trim(a, b []policy.Net) ([]policy.Net, []policy.Net) {
	for len(a) > 0 && len(b) > 0 && a[0].Equal(b[0]) {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1].Equal(b[len(b)-1]) {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return a, b
}

// selected is a set of the state: one in the kernel for each family. As long as its members are single
// addresses it is a hash table; with a network among them, ranges.
type selected struct {
	id   policy.SetID
	from *policy.Set
	half [2]half // IPv4, IPv6
}

type half struct {
	set  *setObject
	nets int                // members that are networks
	tree map[string]*nested // with networks: by what a tuple has behind the address
}

func families() [2]policy.Family { return [2]policy.Family{policy.IPv4, policy.IPv6} }

// usable says whether the kernel has a use for a member. One that names a port of what has no ports fulfils
// no condition, and one without is no member of a set of tuples.
func usable(m policy.Member, k policy.SetKind, f policy.Family) bool {
	if familyOf(m.Prefix.Addr()) != f {
		return false
	}
	if k == policy.AddressPortSet {
		return m.Protocol.HasPorts()
	}
	return m.Protocol == policy.AnyProtocol && m.Port == 0
}

// suffix is what a tuple has behind the address.
func suffix(m policy.Member, k policy.SetKind) string {
	if k != policy.AddressPortSet {
		return ""
	}
	return string([]byte{byte(m.Protocol), 0, 0, 0, byte(m.Port >> 8), byte(m.Port), 0, 0})
}

func single(m policy.Member, k policy.SetKind) Element {
	return Element{Key: string(m.Prefix.Addr().AsSlice()) + suffix(m, k)}
}

// build makes the object of one family from the members that there are.
func (s *selected) build(i int) *setObject {
	f, h := families()[i], &s.half[i]
	kind := map[policy.SetKind]string{policy.AddressSet: "a", policy.AddressPortSet: "s"}[s.from.Kind]
	h.set = &setObject{Set: Set{Key: addressKey(f)}}
	if s.from.Kind == policy.AddressPortSet {
		h.set.Key = [2]Key{Service4, Service6}[i]
	}
	h.tree = nil
	if h.nets == 0 {
		h.set.Name = setName(kind, string(s.id), f)
		h.set.all = func(yield func(Element) bool) {
			for m := range s.from.Members {
				if usable(m, s.from.Kind, f) && !yield(single(m, s.from.Kind)) {
					return
				}
			}
		}
		return h.set
	}
	h.set.Name, h.set.Interval = setName(kind+"n", string(s.id), f), true
	h.tree = map[string]*nested{}
	for m := range s.from.Members {
		if usable(m, s.from.Kind, f) {
			h.in(suffix(m, s.from.Kind)).add(m.Prefix)
		}
	}
	h.set.all = func(yield func(Element) bool) {
		for suffix, n := range h.tree {
			for e := range ranges(n, suffix) {
				if !yield(e) {
					return
				}
			}
		}
	}
	return h.set
}

func (h *half) in(suffix string) *nested {
	n, ok := h.tree[suffix]
	if !ok {
		set := h.set
		n = &nested{change: func(p netip.Prefix, add bool) { set.change(rangeOf(p, suffix), add) }}
		h.tree[suffix] = n
	}
	return n
}

// networks counts the members that are no single addresses.
func networks(members []policy.Member) (n int) {
	for _, m := range members {
		if !m.Prefix.IsSingleIP() {
			n++
		}
	}
	return n
}

// change lets a member join or leave.
func (h *half) change(m policy.Member, k policy.SetKind, add bool) {
	switch {
	case h.tree == nil:
		h.set.change(single(m, k), add)
	case add:
		h.in(suffix(m, k)).add(m.Prefix)
	default:
		h.in(suffix(m, k)).remove(m.Prefix)
	}
}
