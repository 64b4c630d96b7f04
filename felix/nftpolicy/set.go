// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"crypto/sha256"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/heliograph-dev/heliograph/felix/kernel"
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
	tags     map[string]bool  // of a pool: those that the kernel has seen
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

// committed learns that the kernel has all.
func (s *setObject) committed() {
	if s.tags != nil && !s.inKernel {
		for e := range s.all {
			s.tags[e.Key[:tagLength]] = true
		}
	}
	for e := range s.pending {
		if s.tags != nil {
			s.tags[e.Key[:tagLength]] = true
		}
	}
	s.inKernel, s.pending = true, nil
}

// inert says of an element to be added that no rule in the kernel asks for it.
func (s *setObject) inert(e Element) bool {
	return s.tags != nil && !s.tags[e.Key[:tagLength]]
}

// values yields the elements of a list.
func values(list []Element) iter.Seq[Element] { return slices.Values(list) }

// rangeOf is a network as an element; suffix is what a tuple has behind the address.
func rangeOf(p netip.Prefix, suffix string) Element {
	return Element{Key: string(p.Addr().AsSlice()) + suffix, Last: string(kernel.LastAddr(p).AsSlice()) + suffix}
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
		if policy.FamilyOf(n.CIDR.Addr()) == l.family {
			n.Parts(s.nets.remove)
		}
	}
	for _, n := range list {
		if policy.FamilyOf(n.CIDR.Addr()) == l.family {
			n.Parts(s.nets.add)
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

// selected is a set of the state. Members that are single addresses lie in a pool, a hash table of the
// kernel that all sets of their kind and family share, behind the tag of their set: the kernel finds a set
// by walking a list of all, so with 10,000 policies each of 20,000 sets would cost a millisecond and
// more to touch. With a network among the members they are ranges, in a set of its own.
type selected struct {
	id   policy.SetID
	tag  string
	from *policy.Set
	half [2]half // IPv4, IPv6
}

type half struct {
	set  *setObject         // with networks; nil: in the pool
	nets int                // members that are networks
	tree map[string]*nested // with networks: by what a tuple has behind the address
}

// tagLength is that of a tag, of which two are the same as good as never.
const tagLength = 8

func tagOf(id policy.SetID) string {
	sum := sha256.Sum256([]byte(id))
	return string(sum[:tagLength])
}

// poolOf is the set that members share.
func poolOf(k policy.SetKind, f policy.Family) Set {
	s := Set{Name: map[policy.SetKind]string{policy.AddressSet: "addresses", policy.AddressPortSet: "services"}[k], Key: TaggedAddress4}
	if k == policy.AddressPortSet {
		s.Key = TaggedService4
	}
	if f == policy.IPv6 {
		s.Key++
	}
	s.Name = fmt.Sprintf("%s-%d", s.Name, f)
	return s
}

func families() [2]policy.Family { return [2]policy.Family{policy.IPv4, policy.IPv6} }

// usable says whether the kernel has a use for a member. One that names a port of what has no ports fulfils
// no condition, and one without is no member of a set of tuples.
func usable(m policy.Member, k policy.SetKind, f policy.Family) bool {
	if policy.FamilyOf(m.Prefix.Addr()) != f {
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

// members calls visit with the members of a family.
func (s *selected) members(f policy.Family, visit func(policy.Member)) {
	for m := range s.from.Members {
		if usable(m, s.from.Kind, f) {
			visit(m)
		}
	}
}

// pooled is a member as an element of the pool.
func (s *selected) pooled(m policy.Member) Element {
	return Element{Key: s.tag + string(m.Prefix.Addr().AsSlice()) + suffix(m, s.from.Kind)}
}

// build makes the set of ranges of one family from the members that there are.
func (s *selected) build(i int) *setObject {
	f, h := families()[i], &s.half[i]
	h.set = &setObject{Set: Set{Name: setName("a", string(s.id), f), Key: addressKey(f), Interval: true}}
	if s.from.Kind == policy.AddressPortSet {
		h.set.Name, h.set.Key = setName("s", string(s.id), f), [2]Key{Service4, Service6}[i]
	}
	h.tree = map[string]*nested{}
	s.members(f, func(m policy.Member) { h.in(suffix(m, s.from.Kind)).add(m.Prefix) })
	tree := h.tree
	h.set.all = func(yield func(Element) bool) {
		for suffix, n := range tree {
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

// change lets a member join or leave a set of ranges.
func (h *half) change(m policy.Member, k policy.SetKind, add bool) {
	if n := h.in(suffix(m, k)); add {
		n.add(m.Prefix)
	} else {
		n.remove(m.Prefix)
	}
}

// has says whether it has ranges of that name.
func (s *selected) has(name string) bool {
	for i := range s.half {
		if set := s.half[i].set; set != nil && set.Name == name {
			return true
		}
	}
	return false
}
