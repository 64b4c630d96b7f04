// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/heliograph-dev/heliograph/policy"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, prefix(p))
	}
	return out
}

// member is an address, or a network.
func member(s string) policy.Member {
	if ip, err := netip.ParseAddr(s); err == nil {
		return policy.Member{Prefix: netip.PrefixFrom(ip, ip.BitLen())}
	}
	return policy.Member{Prefix: prefix(s)}
}

func service(s string, p policy.Protocol, port uint16) policy.Member {
	m := member(s)
	m.Protocol, m.Port = p, port
	return m
}

func addressSet(members ...string) *policy.Set {
	s := &policy.Set{Kind: policy.AddressSet, Members: map[policy.Member]struct{}{}}
	for _, m := range members {
		s.Members[member(m)] = struct{}{}
	}
	return s
}

func serviceSet(members ...policy.Member) *policy.Set {
	s := &policy.Set{Kind: policy.AddressPortSet, Members: map[policy.Member]struct{}{}}
	for _, m := range members {
		s.Members[m] = struct{}{}
	}
	return s
}

func in(ids ...policy.SetID) policy.Peer {
	return policy.Peer{Within: []policy.Addresses{{Sets: ids}}}
}

func nets(cidrs ...string) policy.Peer {
	var a policy.Addresses
	for _, c := range cidrs {
		a.Nets = append(a.Nets, policy.Net{CIDR: prefix(c)})
	}
	return policy.Peer{Within: []policy.Addresses{a}}
}

func to(p policy.Protocol, ports ...uint16) policy.Transport {
	t := policy.Transport{Protocol: p}
	for _, port := range ports {
		t.DestinationPorts.Ranges = append(t.DestinationPorts.Ranges, policy.PortRange{First: port, Last: port})
	}
	return t
}

func name(s string) policy.PolicyID {
	return policy.PolicyID{Kind: policy.NetworkPolicy, Namespace: "prod", Name: s}
}

// rules gives them ids.
func numbered(id policy.PolicyID, d policy.Direction, rules ...policy.Rule) []policy.Rule {
	for i := range rules {
		rules[i].ID = policy.RuleID{Policy: id, Direction: d, Index: i}
	}
	return rules
}

// tier is the default tier with some policies.
func tier(ids ...policy.PolicyID) policy.Tier {
	return policy.Tier{Name: policy.DefaultTier, Policies: ids, Default: policy.Deny}
}

func chain(tiers ...policy.Tier) policy.Chain {
	return policy.Chain{Tiers: tiers, Default: policy.Allow}
}

// builder makes states.
type builder struct{ *policy.State }

func newBuilder() builder { return builder{policy.NewState()} }

func (b builder) ingress(s string, rules ...policy.Rule) policy.PolicyID {
	id := name(s)
	b.Policies[id] = &policy.Policy{ID: id, Ingress: numbered(id, policy.Ingress, rules...)}
	return id
}

func (b builder) egress(s string, rules ...policy.Rule) policy.PolicyID {
	id := name(s)
	b.Policies[id] = &policy.Policy{ID: id, Egress: numbered(id, policy.Egress, rules...)}
	return id
}

func (b builder) pod(s, device string, ingress, egress policy.Chain, ips ...string) {
	id := policy.EndpointID{Namespace: "prod", Name: s}
	e := &policy.Endpoint{ID: id, Device: device, Ingress: ingress, Egress: egress}
	for _, ip := range ips {
		e.IPs = append(e.IPs, netip.MustParseAddr(ip))
	}
	b.Endpoints[id] = e
}

// failsafes are the same in both directions.
func (b builder) failsafes(rules ...policy.Rule) {
	id := policy.FailsafeID()
	b.Policies[id] = &policy.Policy{
		ID: id, Ingress: numbered(id, policy.Ingress, slices.Clone(rules)...), Egress: numbered(id, policy.Egress, slices.Clone(rules)...),
	}
}

func (b builder) host(device string, ingress, egress policy.Chain) {
	id := policy.EndpointID{Name: "host " + device, Host: true}
	b.Endpoints[id] = &policy.Endpoint{ID: id, Device: device, Ingress: ingress, Egress: egress}
}

// hostChain is one of a host, with the failsafes first.
func hostChain(tiers ...policy.Tier) policy.Chain {
	first := policy.Tier{Name: policy.FailsafeTier, Policies: []policy.PolicyID{policy.FailsafeID()}, Default: policy.Pass}
	return chain(append([]policy.Tier{first}, tiers...)...)
}

// between is the delta that leads from one state to another.
func between(a, b *policy.State) policy.Delta {
	var d policy.Delta
	op := func(before, after bool) policy.Op {
		switch {
		case !before:
			return policy.Added
		case !after:
			return policy.Removed
		}
		return policy.Changed
	}
	for id := range both(a.Sets, b.Sets) {
		c := policy.SetChange{ID: id, Op: op(a.Sets[id] != nil, b.Sets[id] != nil)}
		if c.Op != policy.Removed {
			c.Kind = b.Sets[id].Kind
			var old map[policy.Member]struct{}
			if c.Op == policy.Changed {
				old = a.Sets[id].Members
			}
			c.Add = missingIn(old, b.Sets[id].Members)
			c.Remove = missingIn(b.Sets[id].Members, old)
		}
		if c.Op != policy.Changed || len(c.Add)+len(c.Remove) > 0 {
			d.Sets = append(d.Sets, c)
		}
	}
	for id := range both(a.Policies, b.Policies) {
		if p, q := a.Policies[id], b.Policies[id]; !p.Equal(q) {
			d.Policies = append(d.Policies, policy.PolicyChange{ID: id, Op: op(p != nil, q != nil), Policy: q})
		}
	}
	for id := range both(a.Endpoints, b.Endpoints) {
		if p, q := a.Endpoints[id], b.Endpoints[id]; !p.Equal(q) {
			d.Endpoints = append(d.Endpoints, policy.EndpointChange{ID: id, Op: op(p != nil, q != nil), Endpoint: q})
		}
	}
	slices.SortFunc(d.Sets, func(a, b policy.SetChange) int { return cmp.Compare(a.ID, b.ID) })
	return d
}

func both[K comparable, V any](a, b map[K]V) map[K]struct{} {
	out := map[K]struct{}{}
	for _, m := range []map[K]V{a, b} {
		for k := range maps.Keys(m) {
			out[k] = struct{}{}
		}
	}
	return out
}

// missingIn are the members of b that a lacks.
func missingIn(a, b map[policy.Member]struct{}) (out []policy.Member) {
	for m := range b {
		if _, ok := a[m]; !ok {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, policy.Member.Compare)
	return out
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// apply makes a state true that the driver does not know yet.
func apply(t *testing.T, d *Table, s *policy.State) {
	t.Helper()
	d.Update(between(d.state, s))
	if err := d.Apply(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// deviceNo is the name of a pod's device.
func deviceNo(i int) string { return fmt.Sprintf("hel%011x", i) }
