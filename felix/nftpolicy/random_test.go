// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"

	"github.com/heliograph-dev/heliograph/policy"
)

// world makes random states of a few objects, so that they meet often, with references to what is not there.
type world struct {
	*rand.Rand
	*policy.State
}

func newWorld(seed uint64) world {
	return world{rand.New(rand.NewPCG(seed, 1)), policy.NewState()} //nolint:gosec // a test's
}

// next is another state, which differs in a few objects. The old one stays as it is.
func (w *world) next() *policy.State {
	w.State = &policy.State{Sets: maps.Clone(w.Sets), Policies: maps.Clone(w.Policies), Endpoints: maps.Clone(w.Endpoints)}
	for range 1 + w.IntN(4) {
		gone := w.IntN(4) == 0
		switch w.IntN(3) {
		case 0:
			if id := w.setID(); gone {
				delete(w.Sets, id)
			} else {
				w.Sets[id] = w.set(id)
			}
		case 1:
			if id := w.policyID(); gone {
				delete(w.Policies, id)
			} else {
				w.Policies[id] = w.policy(id)
			}
		default:
			if id := (policy.EndpointID{Namespace: "ns", Name: fmt.Sprint(w.IntN(5))}); gone {
				delete(w.Endpoints, id)
			} else {
				w.Endpoints[id] = w.endpoint(id)
			}
		}
	}
	return w.State
}

func (w *world) setID() policy.SetID {
	if w.IntN(3) == 0 {
		return w.serviceID()
	}
	return w.addressID()
}

func (w *world) addressID() policy.SetID { return policy.SetID(fmt.Sprint("addresses ", w.IntN(4))) }
func (w *world) serviceID() policy.SetID { return policy.SetID(fmt.Sprint("services ", w.IntN(2))) }

// set is a random one, or the old one with some members in or out.
func (w *world) set(id policy.SetID) *policy.Set {
	kind := policy.AddressSet
	if id[0] == 's' {
		kind = policy.AddressPortSet
	}
	s := &policy.Set{Kind: kind, Members: map[policy.Member]struct{}{}}
	if old := w.Sets[id]; old != nil {
		maps.Copy(s.Members, old.Members)
	}
	networks := w.IntN(3) == 0
	for range w.IntN(6) {
		m := policy.Member{Prefix: w.prefix(networks)}
		if kind == policy.AddressPortSet {
			m.Protocol, m.Port = policy.TCP, uint16(80+w.IntN(2))
		}
		if _, ok := s.Members[m]; ok || w.IntN(3) == 0 {
			delete(s.Members, m)
		} else {
			s.Members[m] = struct{}{}
		}
	}
	if w.IntN(3) == 0 { // often enough all that are networks leave
		maps.DeleteFunc(s.Members, func(m policy.Member, _ struct{}) bool { return !m.Prefix.IsSingleIP() })
	}
	return s
}

// prefix is one of few addresses, or a network around them.
func (w *world) prefix(network bool) netip.Prefix {
	ip, bits := netip.AddrFrom4([4]byte{10, byte(w.IntN(2)), 0, byte(w.IntN(8))}), []int{0, 8, 16, 24, 29, 30, 31, 32}
	if w.IntN(2) == 0 {
		ip, bits = netip.AddrFrom16([16]byte{0xfd, 7: byte(w.IntN(2)), 15: byte(w.IntN(8))}), []int{0, 8, 48, 64, 112, 125, 126, 128}
	}
	n := len(bits) - 1
	if network {
		n = w.IntN(len(bits))
	}
	return netip.PrefixFrom(ip, bits[n]).Masked()
}

func (w *world) policyID() policy.PolicyID { return name(fmt.Sprint(w.IntN(6))) }

func (w *world) policy(id policy.PolicyID) *policy.Policy {
	p := &policy.Policy{ID: id, Audit: w.IntN(5) == 0}
	p.Ingress = numbered(id, policy.Ingress, w.rules()...)
	p.Egress = numbered(id, policy.Egress, w.rules()...)
	return p
}

func (w *world) rules() (out []policy.Rule) {
	actions := []policy.Action{policy.Allow, policy.Allow, policy.Allow, policy.Deny, policy.Log, policy.Pass}
	for range w.IntN(4) {
		out = append(out, policy.Rule{Action: actions[w.IntN(len(actions))], Match: w.match()})
	}
	return out
}

func (w *world) match() policy.Match {
	var m policy.Match
	if w.IntN(3) > 0 {
		m = policy.Match{Source: w.peer(), Destination: w.peer()}
	}
	if w.IntN(6) == 0 {
		m.Family = []policy.Family{policy.IPv4, policy.IPv6}[w.IntN(2)]
	}
	for range w.IntN(4) {
		m.Transport = append(m.Transport, w.transport())
	}
	if w.IntN(4) == 0 {
		m.NotTransport = append(m.NotTransport, w.transport())
	}
	return m
}

func (w *world) peer() (p policy.Peer) {
	switch w.IntN(4) {
	case 0:
		for range 1 + w.IntN(2) {
			p.Within = append(p.Within, w.addresses())
		}
	case 1:
		p.Within = append(p.Within, w.addresses())
		p.Outside = w.addresses()
	}
	return p
}

func (w *world) addresses() (a policy.Addresses) {
	for range w.IntN(3) {
		a.Sets = append(a.Sets, w.addressID())
	}
	for range w.IntN(6) {
		n := policy.Net{CIDR: w.prefix(true)}
		for range w.IntN(3) {
			if e := w.prefix(true); e.Addr().Is4() == n.CIDR.Addr().Is4() {
				n.Except = append(n.Except, e)
			}
		}
		a.Nets = append(a.Nets, n)
	}
	return a
}

func (w *world) transport() policy.Transport {
	t := policy.Transport{Protocol: []policy.Protocol{policy.AnyProtocol, policy.TCP, policy.UDP, policy.SCTP, policy.ICMP, policy.ICMPv6}[w.IntN(6)]}
	if w.IntN(2) == 0 {
		t.DestinationPorts = w.ports()
	}
	if w.IntN(4) == 0 {
		t.SourcePorts = w.ports()
	}
	if !t.Protocol.HasPorts() && w.IntN(2) == 0 {
		t.ICMP = policy.ICMPMatch{HasType: true, Type: uint8(8 + w.IntN(2)*120), HasCode: w.IntN(2) == 0}
	}
	return t
}

func (w *world) ports() (p policy.Ports) {
	for range w.IntN(3) {
		first := uint16(79 + w.IntN(4))
		p.Ranges = append(p.Ranges, policy.PortRange{First: first, Last: first + uint16(w.IntN(3))})
	}
	if w.IntN(3) == 0 {
		p.Named = append(p.Named, w.serviceID())
	}
	return p
}

func (w *world) endpoint(id policy.EndpointID) *policy.Endpoint {
	e := &policy.Endpoint{ID: id, Device: fmt.Sprintf("hel%011x", w.IntN(5)), Unknown: w.IntN(12) == 0}
	e.Ingress, e.Egress = w.chain(), w.chain()
	return e
}

func (w *world) chain() policy.Chain {
	c := policy.Chain{Default: policy.Allow}
	if w.IntN(8) == 0 {
		c.Default = policy.Deny
	}
	for _, tier := range []string{policy.AdminTier, policy.DefaultTier} {
		t := policy.Tier{Name: tier, Default: []policy.Action{policy.Deny, policy.Allow, policy.Pass}[w.IntN(3)]}
		for range w.IntN(4) * w.IntN(2) {
			t.Policies = append(t.Policies, w.policyID())
		}
		if len(t.Policies) > 0 {
			c.Tiers = append(c.Tiers, t)
		}
	}
	return c
}
