// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"maps"
	"slices"

	"github.com/heliograph-dev/heliograph/policy"
)

// setSpec is what a policy wants a set of: addresses, or these with ports.
type setSpec struct {
	selector
	withPorts bool
	port      string          // of that name; empty: every port
	protocol  policy.Protocol // of that protocol; AnyProtocol: any
}

func (s setSpec) id() policy.SetID {
	switch {
	case !s.withPorts:
		return policy.SetID(s.selector.String())
	case s.port == "":
		return policy.SetID("ports of " + s.selector.String())
	}
	return policy.SetID("port " + s.port + "/" + s.protocol.String() + " of " + s.selector.String())
}

func (s setSpec) kind() policy.SetKind {
	if s.withPorts {
		return policy.AddressPortSet
	}
	return policy.AddressSet
}

// wants says whether the port of an entity belongs to the set.
func (s setSpec) wants(p namedPort) bool {
	return (s.port == "" || s.port == p.name) && (s.protocol == policy.AnyProtocol || s.protocol == p.protocol)
}

// set is a set that a policy in force refers to. Its members are not stored: they follow from the entities
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

// change notes what an entity brings to a set, or takes from it. What another brings as well stays:
// the next user of an address may be known before the last one is gone.
func (c *Compiler) change(t *set, e *entity, by int) {
	if !t.announced {
		return
	}
	t.each(e, func(m policy.Member) {
		if c.held(t, m, e) {
			return
		}
		if t.pending[m] += by; t.pending[m] == 0 {
			delete(t.pending, m)
		}
		c.dirtySets[t] = struct{}{}
	})
}

// each visits what an entity brings to the set, each once.
func (t *set) each(e *entity, visit func(policy.Member)) {
	for _, p := range e.addresses() {
		m := policy.Member{Prefix: p}
		if !t.withPorts {
			visit(m)
			continue
		}
		for _, n := range e.ports {
			if t.wants(n) {
				m.Protocol, m.Port = n.protocol, n.port
				visit(m)
			}
		}
	}
}

// held says whether an entity other than e brings the member.
func (c *Compiler) held(t *set, m policy.Member, e *entity) bool {
	for _, other := range c.byPrefix[m.Prefix] {
		if _, in := t.selection.members[other]; !in || other == e {
			continue
		}
		if !t.withPorts || slices.ContainsFunc(other.ports, func(n namedPort) bool {
			return t.wants(n) && n.protocol == m.Protocol && n.port == m.Port
		}) {
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
	for e := range t.selection.members {
		t.each(e, func(m policy.Member) { list = append(list, m) })
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
