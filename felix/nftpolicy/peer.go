// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/heliograph-dev/heliograph/policy"
)

const (
	// inlineNets is how many networks a rule compares with by itself. More become a set, in which one more or
	// less is one element and no rule changes.
	inlineNets = 2
	// inlineExcepts is how many parts may be cut out of each of them: four are private, link-local, ...
	inlineExcepts = 4
)

// peer are the conditions on the address of one end: each list of addresses is one factor, and so is
// what the address must not be.
func (m *matcher) peer(p policy.Peer, e end) [][]alternative {
	var factors [][]alternative
	for i, a := range p.Within {
		factors = append(factors, m.within(a, e, i))
	}
	if !p.Outside.Empty() {
		factors = append(factors, m.outside(p.Outside, e))
	}
	return factors
}

func address(conditions ...Condition) alternative {
	return alternative{protocols: everyProtocol(), addresses: conditions}
}

func (m *matcher) within(a policy.Addresses, e end, i int) []alternative {
	var out []alternative
	for _, id := range a.Sets {
		if c, ok := m.in(id, policy.AddressSet, e.address(m.family), In); ok {
			out = append(out, address(c))
		}
	}
	nets := ofFamily(a.Nets, m.family)
	long := slices.ContainsFunc(nets, func(n policy.Net) bool { return len(n.Except) > inlineExcepts })
	if len(nets) > inlineNets || long {
		set := m.out.netSet(m.rule, fmt.Sprintf("%s %d", e, i), m.family, a.Nets)
		return append(out, address(Condition{Field: e.address(m.family), Op: In, Set: set}))
	}
	for _, n := range nets {
		if conditions, ok := inNet(n, e.address(m.family)); ok {
			out = append(out, address(conditions...))
		}
	}
	return out
}

func (m *matcher) outside(a policy.Addresses, e end) []alternative {
	var conditions []Condition
	for _, id := range a.Sets {
		c, ok := m.in(id, policy.AddressSet, e.address(m.family), NotIn)
		if !ok {
			return nil
		}
		conditions = append(conditions, c)
	}
	nets := ofFamily(a.Nets, m.family)
	cut := slices.ContainsFunc(nets, func(n policy.Net) bool { return len(n.Except) > 0 })
	if len(nets) > inlineNets || cut {
		set := m.out.netSet(m.rule, e.String()+" outside", m.family, a.Nets)
		return []alternative{address(append(conditions, Condition{Field: e.address(m.family), Op: NotIn, Set: set})...)}
	}
	for _, n := range nets {
		c, ok := inPrefix(n.CIDR, e.address(m.family), NotEqual)
		if !ok {
			return nil // nothing is outside of everything
		}
		conditions = append(conditions, c)
	}
	return []alternative{address(conditions...)}
}

func ofFamily(nets []policy.Net, f policy.Family) []policy.Net {
	var out []policy.Net
	for _, n := range nets {
		if policy.FamilyOf(n.CIDR.Addr()) == f {
			if out = append(out, n); len(out) > inlineNets {
				return out // enough to know that they become a set
			}
		}
	}
	return out
}

// inNet are the conditions that an address is in a network and in none of its exceptions; false if there
// is no such address.
func inNet(n policy.Net, f Field) ([]Condition, bool) {
	var out []Condition
	if c, ok := inPrefix(n.CIDR, f, Equal); ok {
		out = append(out, c)
	}
	for _, except := range n.Except {
		switch {
		case !except.Overlaps(n.CIDR):
		case except.Bits() <= n.CIDR.Bits():
			return nil, false
		default:
			c, _ := inPrefix(except, f, NotEqual)
			out = append(out, c)
		}
	}
	return out, true
}

// inPrefix is a comparison with a prefix; false if it holds every address.
func inPrefix(p netip.Prefix, f Field, op Operator) (Condition, bool) {
	p = p.Masked()
	c := Condition{Field: f, Op: op, Value: string(p.Addr().AsSlice())}
	if !p.IsSingleIP() {
		c.Mask = string(net.CIDRMask(p.Bits(), 8*len(c.Value)))
	}
	return c, p.Bits() > 0
}
