// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"net/netip"

	"github.com/heliograph-dev/heliograph/policy"
)

func prefixOf(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// one is a state of one pod and one policy with these ingress rules.
func one(audit bool, rules ...policy.Rule) *policy.State {
	s := small()
	for id, p := range s.Policies {
		n := &policy.Policy{ID: id, Audit: audit}
		for i, r := range rules {
			r.ID = policy.RuleID{Policy: p.ID, Index: i}
			n.Ingress = append(n.Ingress, r)
		}
		s.Policies[id] = n
	}
	return s
}

// hosts is a state of a node with endpoints for a device, and for all that have none.
func hosts() *policy.State {
	s, web := small(), policy.PolicyID{Namespace: "prod", Name: "web"}
	clear(s.Endpoints)
	port := func(p policy.Protocol, port uint16) policy.Match {
		return policy.Match{Transport: []policy.Transport{{Protocol: p, DestinationPorts: policy.Ports{Ranges: []policy.PortRange{{First: port, Last: port}}}}}}
	}
	ssh := port(policy.TCP, 22)
	ssh.Source.Within = []policy.Addresses{{Nets: []policy.Net{{CIDR: prefixOf("10.0.0.0/8")}}}}
	s.Policies[policy.FailsafeID()] = failsafePolicy(port(policy.UDP, 4789), ssh)
	out := policy.PolicyID{Kind: policy.GlobalNetworkPolicy, Name: "out"}
	clients := policy.Addresses{Sets: []policy.SetID{"clients"}}
	s.Policies[out] = &policy.Policy{ID: out, Egress: []policy.Rule{
		{ID: policy.RuleID{Policy: out, Direction: policy.Egress}, Action: policy.Deny, Match: policy.Match{Destination: policy.Peer{Within: []policy.Addresses{clients}}}},
		{ID: policy.RuleID{Policy: out, Direction: policy.Egress, Index: 1}, Action: policy.Pass},
	}}
	for device, chains := range map[string][2]policy.Chain{
		"eth0":           {hostChain(web), hostChain(out)},
		policy.AnyDevice: {hostChain(web), {Default: policy.Allow}},
	} {
		id := policy.EndpointID{Name: "host " + device, Host: true}
		s.Endpoints[id] = &policy.Endpoint{ID: id, Device: device, Ingress: chains[0], Egress: chains[1]}
	}
	return s
}

// failsafePolicy allows the same in both directions.
func failsafePolicy(matches ...policy.Match) *policy.Policy {
	p := &policy.Policy{ID: policy.FailsafeID()}
	for i, m := range matches {
		p.Ingress = append(p.Ingress, policy.Rule{ID: policy.RuleID{Policy: p.ID, Direction: policy.Ingress, Index: i}, Action: policy.Allow, Match: m})
		p.Egress = append(p.Egress, policy.Rule{ID: policy.RuleID{Policy: p.ID, Direction: policy.Egress, Index: i}, Action: policy.Allow, Match: m})
	}
	return p
}

// hostChain is one of a host: failsafes, then policies.
func hostChain(ids ...policy.PolicyID) policy.Chain {
	return policy.Chain{Default: policy.Allow, Tiers: []policy.Tier{
		{Name: policy.FailsafeTier, Policies: []policy.PolicyID{policy.FailsafeID()}, Default: policy.Pass},
		{Name: policy.DefaultTier, Policies: ids, Default: policy.Deny},
	}}
}

// golden are the states of testdata.
func golden() map[string]*policy.State {
	ranges := func(list ...uint16) policy.Ports {
		var p policy.Ports
		for i := 0; i < len(list); i += 2 {
			p.Ranges = append(p.Ranges, policy.PortRange{First: list[i], Last: list[i+1]})
		}
		return p
	}
	nets := policy.Addresses{Nets: []policy.Net{
		{CIDR: prefixOf("10.0.0.0/8"), Except: []netip.Prefix{prefixOf("10.128.0.0/9")}}, {CIDR: prefixOf("192.0.2.0/24")}, {CIDR: prefixOf("2001:db8::/32")},
	}}
	http := []policy.Transport{{Protocol: policy.TCP, DestinationPorts: policy.Ports{Named: []policy.SetID{"http"}, Ranges: ranges(80, 80, 8080, 8090).Ranges}}}
	complexRule := policy.Rule{Action: policy.Allow, Match: policy.Match{
		Source:       policy.Peer{Within: []policy.Addresses{{Sets: []policy.SetID{"clients"}, Nets: nets.Nets}}, Outside: policy.Addresses{Sets: []policy.SetID{"clients"}}},
		Transport:    http,
		NotTransport: []policy.Transport{{Protocol: policy.TCP, DestinationPorts: ranges(8085, 8085)}},
	}}
	withPort := one(false, complexRule)
	withPort.Sets["http"] = &policy.Set{Kind: policy.AddressPortSet, Members: map[policy.Member]struct{}{
		{Prefix: prefixOf("10.244.0.1/32"), Protocol: policy.TCP, Port: 8080}: {},
	}}
	tree := small()
	for i := range 20 {
		id := policy.EndpointID{Namespace: "prod", Name: fmt.Sprint("pod-", i)}
		open := policy.Chain{Default: policy.Allow}
		tree.Endpoints[id] = &policy.Endpoint{ID: id, Device: fmt.Sprintf("hel%02x000000000", i*7), Ingress: open, Egress: open, Unknown: i == 19}
	}
	return map[string]*policy.State{
		"small":   small(),
		"complex": withPort,
		"tree":    tree,
		"actions": one(false,
			policy.Rule{Action: policy.Log},
			policy.Rule{Action: policy.Deny, Match: policy.Match{Family: policy.IPv4, Transport: []policy.Transport{{Protocol: policy.ICMP, ICMP: policy.ICMPMatch{HasType: true, Type: 8}}}}},
			policy.Rule{Action: policy.Pass, Match: policy.Match{Transport: []policy.Transport{{Protocol: policy.UDP}, {Protocol: 47}}}},
			policy.Rule{Action: policy.Log, Match: policy.Match{Transport: []policy.Transport{{DestinationPorts: ranges(53, 53)}}}},
			policy.Rule{Action: policy.Allow, Match: policy.Match{Source: policy.Peer{Within: []policy.Addresses{nets}}}}),
		"hosts":   hosts(),
		"audit":   one(true, policy.Rule{Action: policy.Deny}),
		"missing": one(false, policy.Rule{Action: policy.Allow, Match: policy.Match{Source: policy.Peer{Outside: policy.Addresses{Sets: []policy.SetID{"gone"}}}}}),
	}
}
