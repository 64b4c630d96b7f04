// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/heliograph-dev/heliograph/policy"
)

// setSpec is what a policy wants a set of: addresses of pods, or their ports of a name.
type setSpec struct {
	selector
	port     string // empty: addresses
	protocol policy.Protocol
}

func (s setSpec) id() policy.SetID {
	if s.port == "" {
		return policy.SetID(s.selector.String())
	}
	return policy.SetID("port " + s.port + "/" + s.protocol.String() + " of " + s.selector.String())
}

func (s setSpec) kind() policy.SetKind {
	if s.port == "" {
		return policy.AddressSet
	}
	return policy.AddressPortSet
}

// set is a set that a policy in force refers to. Its members are not stored: they follow from the pods
// of the selection.
type set struct {
	setSpec
	id        policy.SetID
	selection *selection
	refs      int // policies in force
	announced bool
	// pending are members that joined (1) or left (-1) since the last Flush, of an announced set.
	pending map[policy.Member]int
}

func (c *Compiler) acquire(spec setSpec) *set {
	id := spec.id()
	t := c.sets[id]
	if t == nil {
		t = &set{setSpec: spec, id: id, selection: c.selection(spec.selector), pending: map[policy.Member]int{}}
		t.selection.sets = append(t.selection.sets, t)
		c.sets[id] = t
		c.dirtySets[t] = struct{}{}
	}
	t.refs++
	return t
}

func (c *Compiler) release(t *set) {
	t.refs--
	c.dirtySets[t] = struct{}{}
}

// drop forgets a set that nobody refers to.
func (c *Compiler) drop(t *set) {
	s := t.selection
	if i := slices.Index(s.sets, t); i >= 0 {
		s.sets = slices.Delete(s.sets, i, i+1)
	}
	delete(c.sets, t.id)
	c.dropIfIdle(s)
}

// change notes what a pod brings to a set, or takes from it. What another pod brings as well stays:
// the next user of an address may be known before the last one is gone.
func (c *Compiler) change(t *set, p *pod, by int) {
	if !t.announced {
		return
	}
	t.each(p, func(m policy.Member) {
		if c.held(t, m, p) {
			return
		}
		if t.pending[m] += by; t.pending[m] == 0 {
			delete(t.pending, m)
		}
		c.dirtySets[t] = struct{}{}
	})
}

// each visits what a pod brings to the set.
func (t *set) each(p *pod, visit func(policy.Member)) {
	for _, ip := range p.addresses() {
		m := policy.Member{Prefix: netip.PrefixFrom(ip, ip.BitLen())}
		if t.port == "" {
			visit(m)
			continue
		}
		for _, n := range p.ports {
			if n.name == t.port && n.protocol == t.protocol {
				m.Protocol, m.Port = n.protocol, n.port
				visit(m)
			}
		}
	}
}

// held says whether a pod other than p brings the member.
func (c *Compiler) held(t *set, m policy.Member, p *pod) bool {
	for _, q := range c.byIP[m.Prefix.Addr()] {
		if _, in := t.selection.members[q]; !in || q == p {
			continue
		}
		if t.port == "" || slices.Contains(q.ports, namedPort{t.port, m.Protocol, m.Port}) {
			return true
		}
	}
	return false
}

// flushSet returns what became of the set since the last Flush.
func (c *Compiler) flushSet(t *set) (policy.SetChange, bool) {
	change := policy.SetChange{ID: t.id, Kind: t.kind()}
	switch {
	case t.refs == 0:
		c.drop(t)
		change.Op = policy.Removed
		return change, t.announced
	case !t.announced:
		t.announced = true
		change.Op, change.Add = policy.Added, t.members()
		return change, true
	}
	change.Op = policy.Changed
	for m, by := range t.pending {
		if by > 0 {
			change.Add = append(change.Add, m)
		} else {
			change.Remove = append(change.Remove, m)
		}
	}
	slices.SortFunc(change.Add, policy.Member.Compare)
	slices.SortFunc(change.Remove, policy.Member.Compare)
	// A map that was large once would stay so.
	t.pending = map[policy.Member]int{}
	return change, len(change.Add)+len(change.Remove) > 0
}

func (t *set) members() []policy.Member {
	list := make([]policy.Member, 0, len(t.selection.members))
	for p := range t.selection.members {
		t.each(p, func(m policy.Member) { list = append(list, m) })
	}
	slices.SortFunc(list, policy.Member.Compare)
	return slices.Compact(list)
}

// flushSets returns the changes of all sets.
func (c *Compiler) flushSets() []policy.SetChange {
	var changes []policy.SetChange
	for _, t := range slices.Collect(maps.Keys(c.dirtySets)) {
		if change, ok := c.flushSet(t); ok {
			changes = append(changes, change)
		}
	}
	reset(&c.dirtySets)
	return changes
}
