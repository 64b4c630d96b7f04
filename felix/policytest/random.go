// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/policy"
)

// dice draws states and packets.
type dice struct {
	*rand.Rand
	pods      []Pod // with the rogue
	endpoints []*policy.Endpoint
	outside   []netip.Addr
	node      []netip.Addr
}

func (d *dice) chance(percent int) bool { return d.IntN(100) < percent }

func pick[T any](d *dice, list ...T) T { return list[d.IntN(len(list))] }

// ports that packets have, and around which ranges begin and end.
var ports = []uint16{1, 53, 80, 443, 1023, 1024, 8080, 8081, 40000, 65535}

// some is up to n values, often none.
func some[T any](d *dice, percent, n int, f func() T) []T {
	var out []T
	for range n {
		if d.chance(percent) {
			out = append(out, f())
		}
	}
	return out
}

// next draws a state that has much in common with the last one.
func (d *dice) next(old *policy.State) *policy.State {
	s := policy.NewState()
	for i := range 8 {
		id := policyID(i)
		p := old.Policies[id]
		switch {
		case d.chance(8):
			continue
		case p == nil || d.chance(30):
			p = d.policy(id)
		}
		s.Policies[id] = p
	}
	d.sets(s, old)
	for _, e := range d.endpoints {
		was := old.Endpoints[e.ID]
		switch {
		case d.chance(5):
			continue
		case was == nil || d.chance(40):
			was = d.endpoint(*e)
		}
		s.Endpoints[e.ID] = was
	}
	d.hosts(s, old)
	return s
}

// hosts gives the node endpoints now and then: for the device to the outside, for all that have none, for
// one that it has not.
func (d *dice) hosts(s, old *policy.State) {
	failsafes := old.Policies[policy.FailsafeID()]
	if failsafes == nil || d.chance(30) {
		failsafes = d.failsafes()
	}
	s.Policies[policy.FailsafeID()] = failsafes
	for _, device := range []string{policy.AnyDevice, "out0", "none0"} {
		id := policy.EndpointID{Name: "host " + device, Host: true}
		e := old.Endpoints[id]
		switch {
		case d.chance(40):
			continue
		case e == nil || d.chance(40):
			e = &policy.Endpoint{ID: id, Device: device, Ingress: d.hostChain(), Egress: d.hostChain()}
		}
		s.Endpoints[id] = e
	}
}

func (d *dice) hostChain() policy.Chain {
	c := policy.Chain{Default: policy.Allow}
	if d.chance(15) {
		return c
	}
	c.Tiers = append(c.Tiers, policy.Tier{Name: policy.FailsafeTier, Policies: []policy.PolicyID{policy.FailsafeID()}, Default: policy.Pass})
	c.Tiers = append(c.Tiers, d.chain().Tiers...)
	return c
}

func (d *dice) failsafes() *policy.Policy {
	p := &policy.Policy{ID: policy.FailsafeID()}
	rules := func(dir policy.Direction) []policy.Rule {
		var matches []policy.Match
		for range d.IntN(3) {
			t := policy.Transport{Protocol: pick(d, policy.TCP, policy.UDP)}
			port := pick(d, ports...)
			t.DestinationPorts.Ranges = []policy.PortRange{{First: port, Last: port}}
			matches = append(matches, policy.Match{Transport: []policy.Transport{t}})
		}
		var out []policy.Rule
		for i, m := range matches {
			out = append(out, policy.Rule{ID: policy.RuleID{Policy: p.ID, Direction: dir, Index: i}, Action: policy.Allow, Match: m})
		}
		return out
	}
	p.Ingress, p.Egress = rules(policy.Ingress), rules(policy.Egress)
	return p
}

// policyID is of all kinds, one with a name that is as long as names can be.
func policyID(i int) policy.PolicyID {
	id := policy.PolicyID{Kind: policy.Kind(i % 4), Name: fmt.Sprintf("p%d", i)}
	if id.Kind == policy.NetworkPolicy || id.Kind == policy.HeliographNetworkPolicy {
		id.Namespace = "prod"
	}
	if i == 6 {
		id.Namespace, id.Name = strings.Repeat("n", 63), strings.Repeat("long.", 50)+"p6"
	}
	return id
}

func (d *dice) policy(id policy.PolicyID) *policy.Policy {
	p := &policy.Policy{ID: id, Audit: d.chance(10)}
	for _, dir := range []policy.Direction{policy.Ingress, policy.Egress} {
		var rules []policy.Rule
		for i := range d.IntN(5) {
			a := pick(d, policy.Allow, policy.Allow, policy.Allow, policy.Deny, policy.Deny, policy.Pass, policy.Log)
			rules = append(rules, policy.Rule{ID: policy.RuleID{Policy: id, Direction: dir, Index: i}, Action: a, Match: d.match()})
		}
		if dir == policy.Ingress {
			p.Ingress = rules
		} else {
			p.Egress = rules
		}
	}
	return p
}

// match has a condition of each kind now and then: with all of them it would match nothing.
func (d *dice) match() policy.Match {
	var m policy.Match
	if d.chance(10) {
		m.Family = pick(d, policy.IPv4, policy.IPv6)
	}
	for _, p := range []*policy.Peer{&m.Source, &m.Destination} {
		if d.chance(40) {
			p.Within = append(p.Within, d.addresses())
		}
		if d.chance(10) {
			p.Within = append(p.Within, d.addresses())
		}
		if d.chance(12) {
			p.Outside = d.addresses()
		}
	}
	if d.chance(50) {
		m.Transport = append(some(d, 30, 2, d.transport), d.transport())
	}
	if d.chance(15) {
		m.NotTransport = append(some(d, 30, 1, d.transport), d.transport())
	}
	return m
}

func (d *dice) addresses() policy.Addresses {
	a := policy.Addresses{Sets: some(d, 40, 2, d.set), Nets: some(d, 30, 4, d.net)}
	if a.Empty() && d.chance(90) {
		a.Sets = []policy.SetID{d.set()}
	}
	return a
}

func (d *dice) set() policy.SetID {
	return policy.SetID(fmt.Sprintf("pods(app == 's%d') namespaces(team in ('a', \"b\"))", d.IntN(8)))
}

func (d *dice) namedPort() policy.SetID { return policy.SetID(fmt.Sprintf("port(http%d)", d.IntN(4))) }

// prefix holds an address of the lab.
func (d *dice) prefix() netip.Prefix {
	ip := d.anyAddress()
	bits := pick(d, 0, 1, 8, 16, 24, 25, 28, 30, 31, 32, 32, 32)
	if ip.Is6() {
		bits = pick(d, 0, 1, 3, 16, 32, 48, 64, 112, 125, 127, 128, 128, 128)
	}
	p, _ := ip.Prefix(bits)
	return p
}

func (d *dice) net() policy.Net {
	n := policy.Net{CIDR: d.prefix()}
	for range d.IntN(8) - 4 {
		if e := d.prefix(); e.Addr().Is4() == n.CIDR.Addr().Is4() {
			n.Except = append(n.Except, e)
		}
	}
	return n
}

func (d *dice) anyAddress() netip.Addr {
	if d.chance(70) {
		return pick(d, pick(d, d.pods...).IPs...)
	}
	return pick(d, d.outside...)
}

func (d *dice) transport() policy.Transport {
	t := policy.Transport{Protocol: pick(d, policy.TCP, policy.TCP, policy.UDP, policy.AnyProtocol, policy.ICMP, policy.ICMPv6, policy.SCTP, policy.UDPLite, unassigned)}
	withPorts := t.Protocol.HasPorts() || t.Protocol == policy.AnyProtocol || d.chance(5)
	if withPorts && d.chance(60) {
		t.DestinationPorts = d.ports()
	}
	if withPorts && d.chance(15) {
		t.SourcePorts = d.ports()
	}
	if !t.Protocol.HasPorts() && t.DestinationPorts.Any() && d.chance(70) || d.chance(2) {
		types := []uint8{8, 8, 13, 0, 255}
		if t.Protocol == policy.ICMPv6 {
			types = []uint8{128, 128, 129, 255}
		}
		t.ICMP = policy.ICMPMatch{HasType: d.chance(90), Type: pick(d, types...), HasCode: d.chance(50), Code: uint8(d.IntN(2))}
	}
	return t
}

func (d *dice) ports() policy.Ports {
	p := policy.Ports{Ranges: some(d, 45, 3, d.portRange), Named: some(d, 25, 2, d.namedPort)}
	if d.chance(3) { // more than a multiport match can hold
		for i := range uint16(20) {
			p.Ranges = append(p.Ranges, policy.PortRange{First: 70 + 2*i, Last: 70 + 2*i})
		}
	}
	return p
}

func (d *dice) portRange() policy.PortRange {
	first, last := pick(d, ports...), pick(d, ports...)
	if first > last || d.chance(50) {
		last = first
	}
	return policy.PortRange{First: first, Last: last}
}

// sets gives the state the sets that its policies refer to, but for some.
func (d *dice) sets(s, old *policy.State) {
	used := map[policy.SetID]bool{}
	for _, p := range s.Policies {
		for id := range p.Sets {
			used[id] = true
		}
	}
	for _, id := range slices.Sorted(maps.Keys(used)) {
		if d.chance(6) {
			continue
		}
		set := &policy.Set{Members: map[policy.Member]struct{}{}}
		member := d.member
		if strings.HasPrefix(string(id), "port(") {
			set.Kind, member = policy.AddressPortSet, d.portMember
		}
		if was := old.Sets[id]; was != nil {
			for _, m := range slices.SortedFunc(maps.Keys(was.Members), policy.Member.Compare) {
				if d.chance(75) {
					set.Members[m] = struct{}{}
				}
			}
		}
		for range d.IntN(7) {
			set.Members[member()] = struct{}{}
		}
		s.Sets[id] = set
	}
}

func (d *dice) member() policy.Member {
	if d.chance(70) {
		ip := d.anyAddress()
		return policy.Member{Prefix: netip.PrefixFrom(ip, ip.BitLen())}
	}
	return policy.Member{Prefix: d.prefix()}
}

func (d *dice) portMember() policy.Member {
	ip := d.anyAddress()
	p := pick(d, policy.TCP, policy.TCP, policy.UDP, policy.SCTP, policy.UDPLite)
	return policy.Member{Prefix: netip.PrefixFrom(ip, ip.BitLen()), Protocol: p, Port: pick(d, ports...)}
}

func (d *dice) endpoint(e policy.Endpoint) *policy.Endpoint {
	e.Unknown = d.chance(12)
	e.Ingress, e.Egress = d.chain(), d.chain()
	return &e
}

func (d *dice) chain() policy.Chain {
	c := policy.Chain{Default: pick(d, policy.Allow, policy.Allow, policy.Allow, policy.Deny)}
	for i := range d.IntN(4) {
		t := policy.Tier{Name: fmt.Sprintf("tier%d", i), Default: pick(d, policy.Deny, policy.Pass, policy.Pass, policy.Allow)}
		for range 1 + d.IntN(3) {
			id := policyID(d.IntN(8))
			if !slices.Contains(t.Policies, id) {
				t.Policies = append(t.Policies, id)
			}
		}
		c.Tiers = append(c.Tiers, t)
	}
	return c
}
