// SPDX-License-Identifier: Apache-2.0

package eval

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/policy"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func set(kind policy.SetKind, members ...policy.Member) *policy.Set {
	s := &policy.Set{Kind: kind, Members: map[policy.Member]struct{}{}}
	for _, m := range members {
		s.Members[m] = struct{}{}
	}
	return s
}

func net(s string) policy.Member { return policy.Member{Prefix: prefix(s)} }

func sets() map[policy.SetID]*policy.Set {
	return map[policy.SetID]*policy.Set{
		"clients": set(policy.AddressSet, net("10.0.0.1/32"), net("fd00::1/128")),
		"office":  set(policy.AddressSet, net("192.0.2.0/24"), net("2001:db8::/32")),
		"nobody":  set(policy.AddressSet),
		"http":    set(policy.AddressPortSet, policy.Member{Prefix: prefix("10.0.0.2/32"), Protocol: policy.TCP, Port: 8080}),
	}
}

var tcp = Packet{Src: addr("10.0.0.1"), Dst: addr("10.0.0.2"), Protocol: policy.TCP, SrcPort: 40000, DstPort: 80}

// with changes a copy of the packet.
func with(p Packet, change func(*Packet)) Packet {
	change(&p)
	return p
}

func to(ports ...policy.PortRange) []policy.Transport {
	return []policy.Transport{{Protocol: policy.TCP, DestinationPorts: policy.Ports{Ranges: ports}}}
}

func in(ids ...policy.SetID) policy.Peer {
	return policy.Peer{Within: []policy.Addresses{{Sets: ids}}}
}

func TestMatch(t *testing.T) {
	v6 := with(tcp, func(p *Packet) { p.Src, p.Dst = addr("fd00::1"), addr("fd00::2") })
	ping := with(tcp, func(p *Packet) { p.Protocol, p.ICMPType, p.ICMPCode = policy.ICMP, 8, 0 })
	gre := with(tcp, func(p *Packet) { p.Protocol = 47 })
	for _, tt := range []struct {
		name   string
		match  policy.Match
		packet Packet
		want   string // the difference; empty: it matches
	}{
		{"everything", policy.Match{}, tcp, ""},
		{"family", policy.Match{Family: policy.IPv4}, tcp, ""},
		{"the other family", policy.Match{Family: policy.IPv4}, v6, "family: got IPv6, want IPv4"},
		{"a set", policy.Match{Source: in("clients")}, tcp, ""},
		{"a set, IPv6", policy.Match{Source: in("clients")}, v6, ""},
		{"one of two sets", policy.Match{Source: in("office", "clients")}, tcp, ""},
		{"a set of networks", policy.Match{Source: in("office")}, with(v6, func(p *Packet) { p.Src = addr("2001:db8::5") }), ""},
		{"none of the sets", policy.Match{Source: in("office", "nobody")}, tcp, "source: got 10.0.0.1, want office or nobody (which is empty)"},
		{"no alternative at all", policy.Match{Source: policy.Peer{Within: []policy.Addresses{{}}}}, tcp, "source: got 10.0.0.1, want nothing"},
		{"a set and a network", policy.Match{Source: policy.Peer{Within: []policy.Addresses{{Sets: []policy.SetID{"clients"}}, {Nets: []policy.Net{{CIDR: prefix("10.9.0.0/16")}}}}}}, tcp, "source: got 10.0.0.1, want 10.9.0.0/16"},
		{"a set that is missing", policy.Match{Destination: in("gone")}, tcp, "destination: got 10.0.0.2, want gone (which does not exist)"},
		{"not in a set", policy.Match{Source: policy.Peer{Outside: policy.Addresses{Sets: []policy.SetID{"office"}}}}, tcp, ""},
		{"not in a set, but it is", policy.Match{Source: policy.Peer{Outside: policy.Addresses{Sets: []policy.SetID{"clients"}}}}, tcp, "source: got 10.0.0.1, want not clients"},
		{"not in a set that is missing: unknown, so no match", policy.Match{Source: policy.Peer{Outside: policy.Addresses{Sets: []policy.SetID{"gone"}}}}, tcp, "source: got 10.0.0.1, want not gone (which does not exist)"},
		{"network", policy.Match{Destination: policy.Peer{Within: []policy.Addresses{{Nets: []policy.Net{{CIDR: prefix("10.0.0.0/8")}}}}}}, tcp, ""},
		{"network of the other family", policy.Match{Destination: policy.Peer{Within: []policy.Addresses{{Nets: []policy.Net{{CIDR: prefix("::/0")}}}}}}, tcp, "destination: got 10.0.0.2, want ::/0"},
		{"exception", policy.Match{Destination: policy.Peer{Within: []policy.Addresses{{Nets: []policy.Net{{CIDR: prefix("10.0.0.0/8"), Except: []netip.Prefix{prefix("10.0.0.2/31")}}}}}}}, tcp, "destination: got 10.0.0.2, want 10.0.0.0/8 except [10.0.0.2/31]"},
		{"all protocols of which none has ports", policy.Match{}, gre, ""},
		{"protocol", policy.Match{Transport: []policy.Transport{{Protocol: policy.SCTP}, {Protocol: policy.UDP}}}, tcp, "protocol: got TCP, want SCTP or UDP"},
		{"port", policy.Match{Transport: to(policy.PortRange{First: 80, Last: 80})}, tcp, ""},
		{"ports: both ends", policy.Match{Transport: to(policy.PortRange{First: 70, Last: 79}, policy.PortRange{First: 81, Last: 90})}, tcp, "destination port: got 80, want 70-79 or 81-90"},
		{"the alternative that is closest", policy.Match{Transport: append(to(policy.PortRange{First: 1, Last: 1}), policy.Transport{Protocol: policy.UDP})}, tcp, "destination port: got 80, want 1"},
		{"source port", policy.Match{Transport: []policy.Transport{{Protocol: policy.TCP, SourcePorts: policy.Ports{Ranges: []policy.PortRange{{First: 1, Last: 1023}}}}}}, tcp, "source port: got 40000, want 1-1023"},
		{"ports on what has none", policy.Match{Transport: []policy.Transport{{DestinationPorts: policy.Ports{Ranges: []policy.PortRange{{First: 0, Last: 65535}}}}}}, gre, "destination port: got 80, want 0-65535"},
		{"named port", policy.Match{Transport: named("http")}, with(tcp, func(p *Packet) { p.DstPort = 8080 }), ""},
		{"named port of another protocol", policy.Match{Transport: []policy.Transport{{DestinationPorts: policy.Ports{Named: []policy.SetID{"http"}}}}}, with(tcp, func(p *Packet) { p.DstPort, p.Protocol = 8080, policy.UDP }), "destination port: got 8080, want http"},
		{"named port of another pod", policy.Match{Transport: named("http")}, with(tcp, func(p *Packet) { p.DstPort, p.Dst = 8080, addr("10.0.0.3") }), "destination port: got 8080, want http"},
		{"ICMP", policy.Match{Transport: []policy.Transport{{Protocol: policy.ICMP, ICMP: policy.ICMPMatch{HasType: true, Type: 8}}}}, ping, ""},
		{"another ICMP type", policy.Match{Transport: []policy.Transport{{Protocol: policy.ICMP, ICMP: policy.ICMPMatch{HasType: true}}}}, ping, "ICMP: got ICMP type 8 code 0, want type 0"},
		{"another ICMP code", policy.Match{Transport: []policy.Transport{{Protocol: policy.ICMP, ICMP: policy.ICMPMatch{HasType: true, Type: 8, HasCode: true, Code: 1}}}}, ping, "ICMP: got ICMP type 8 code 0, want type 8 code 1"},
		{"not a port", policy.Match{NotTransport: to(policy.PortRange{First: 80, Last: 80})}, tcp, "excluded protocol or port: got TCP 40000 to 80, want not TCP to port 80"},
		{"not another port", policy.Match{NotTransport: to(policy.PortRange{First: 81, Last: 81})}, tcp, ""},
		{"not a named port that is missing", policy.Match{NotTransport: named("gone")}, tcp, "excluded protocol or port: got TCP 40000 to 80, want not TCP to port gone"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := New(&policy.State{Sets: sets()})
			got := ""
			if d := e.match(&tt.match, tt.packet); d.Condition != NoCondition {
				got = d.String()
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func named(id policy.SetID) []policy.Transport {
	return []policy.Transport{{Protocol: policy.TCP, DestinationPorts: policy.Ports{Named: []policy.SetID{id}}}}
}

// chains of these tests are written as "tier:policy,policy=default …", policies as their actions on TCP.
func world(ingress string, policies map[string][]policy.Action) *policy.State {
	s := policy.NewState()
	s.Sets = sets()
	server := &policy.Endpoint{ID: policy.EndpointID{Namespace: "prod", Name: "server"}, IPs: []netip.Addr{tcp.Dst}}
	server.Egress.Default, server.Ingress = policy.Allow, chainOf(ingress)
	s.Endpoints[server.ID] = server
	for name, actions := range policies {
		id := policy.PolicyID{Kind: policy.GlobalNetworkPolicy, Name: strings.TrimSuffix(name, "~")}
		p := &policy.Policy{ID: id, Audit: strings.HasSuffix(name, "~")}
		for i, a := range actions {
			m := policy.Match{}
			if a == policy.NoAction { // a rule that does not match
				a, m.Source = policy.Deny, in("nobody")
			}
			p.Ingress = append(p.Ingress, policy.Rule{ID: policy.RuleID{Policy: id, Index: i}, Action: a, Match: m})
		}
		s.Policies[id] = p
	}
	return s
}

func chainOf(text string) policy.Chain {
	actions := map[string]policy.Action{"allow": policy.Allow, "deny": policy.Deny, "pass": policy.Pass}
	var c policy.Chain
	for _, f := range strings.Fields(text) {
		if a, ok := actions[f]; ok {
			c.Default = a
			continue
		}
		name, rest, _ := strings.Cut(f, ":")
		list, end, _ := strings.Cut(rest, "=")
		t := policy.Tier{Name: name, Default: actions[end]}
		for _, p := range strings.Split(list, ",") {
			t.Policies = append(t.Policies, policy.PolicyID{Kind: policy.GlobalNetworkPolicy, Name: p})
		}
		c.Tiers = append(c.Tiers, t)
	}
	return c
}

func TestTiers(t *testing.T) {
	const none, allow, deny, pass, log = policy.NoAction, policy.Allow, policy.Deny, policy.Pass, policy.Log
	type actions = map[string][]policy.Action
	for _, tt := range []struct {
		name     string
		chain    string
		policies actions
		want     string
	}{
		{"no policy", "allow", nil, "Allow: no tier decides"},
		{"a chain that is closed", "deny", nil, "Deny: no tier decides"},
		{"the tier's default", "default:a=deny allow", actions{"a": {none}}, "Deny: policies of the tier apply, and no rule matches: default: a[x]"},
		{"a policy without rules", "default:a=deny allow", actions{"a": {}}, "Deny: policies of the tier apply, and no rule matches: default: a[]"},
		{"policies add up", "default:a,b=deny allow", actions{"a": {none}, "b": {none, allow}}, "Allow: a rule matches: b[1]: a[x] b[x+]"},
		{"the first match decides", "default:a,b=deny allow", actions{"a": {deny, allow}, "b": {allow}}, "Deny: a rule matches: a[0]: a[+]"},
		{"a log decides nothing", "default:a=deny allow", actions{"a": {log, allow}}, "Allow: a rule matches: a[1]: a[++]"},
		{"a pass ends the tier", "admin:a,b=deny default:c=deny allow", actions{"a": {pass, deny}, "b": {deny}, "c": {allow}}, "Allow: a rule matches: c[0]: a[+] c[+]"},
		{"a tier that passes by default", "admin:a=pass default:b=deny baseline:c=pass allow", actions{"a": {none}, "b": {none}, "c": {allow}}, "Deny: policies of the tier apply, and no rule matches: default: a[x] b[x]"},
		{"admin, then baseline", "admin:a=pass baseline:c=pass allow", actions{"a": {pass}, "c": {deny}}, "Deny: a rule matches: c[0]: a[+] c[+]"},
		{"all pass", "admin:a=pass baseline:c=pass allow", actions{"a": {pass}, "c": {none}}, "Allow: no tier decides: a[+] c[x]"},
		{"an audit decides nothing, nor closes its tier", "default:a=deny allow", actions{"a~": {deny}}, "Allow: no tier decides: a~[+]"},
		{"an audit beside a policy", "default:a,b=deny allow", actions{"a~": {allow}, "b": {none}}, "Deny: policies of the tier apply, and no rule matches: default: a~[+] b[x]"},
		{"a policy that is missing closes", "default:a,b=deny allow", actions{"b": {allow}}, "Deny: policies of the tier apply, and no rule matches: default: a?[]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := New(world(tt.chain, tt.policies)).Evaluate(tcp)
			if got.Egress != nil {
				t.Errorf("the source is no endpoint: %+v", got.Egress)
			}
			if got.Verdict != got.Ingress.Verdict {
				t.Errorf("the verdict is %s, the trace's %s", got.Verdict, got.Ingress.Verdict)
			}
			if diff := cmp.Diff(tt.want, summary(got.Ingress)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// summary is the verdict, why, and the rules that were asked: + for those that matched.
func summary(t *Trace) string {
	text := fmt.Sprintf("%s: %s", t.Verdict, t.Reason)
	switch t.Reason {
	case ByRule:
		text += fmt.Sprintf(": %s[%d]", t.Rule.Policy.Name, t.Rule.Index)
	case ByTier:
		text += ": " + t.Tier
	}
	var asked []string
	for _, tier := range t.Tiers {
		for _, p := range tier.Policies {
			one := p.ID.Name + map[bool]string{true: "~"}[p.Audit] + map[bool]string{true: "?"}[p.Missing] + "["
			for _, r := range p.Rules {
				one += map[bool]string{true: "+", false: "x"}[r.Matched]
			}
			asked = append(asked, one+"]")
		}
	}
	if len(asked) > 0 {
		text += ": " + strings.Join(asked, " ")
	}
	return text
}

func TestBothEnds(t *testing.T) {
	open, closed := policy.Chain{Default: policy.Allow}, policy.Chain{Default: policy.Deny}
	self := with(tcp, func(p *Packet) { p.Src = p.Dst })
	probe := with(tcp, func(p *Packet) { p.FromNode = true })
	for _, tt := range []struct {
		name            string
		egress, ingress policy.Chain
		unknown         bool
		packet          Packet
		want            policy.Action
		reasons         string
	}{
		{"both allow", open, open, false, tcp, policy.Allow, "no tier decides, no tier decides"},
		{"the source's end denies: the other is not asked", closed, open, false, tcp, policy.Deny, "no tier decides, -"},
		{"the destination's end denies", open, closed, false, tcp, policy.Deny, "no tier decides, no tier decides"},
		{"from outside", open, open, false, with(tcp, func(p *Packet) { p.Src = addr("192.0.2.1") }), policy.Allow, "-, no tier decides"},
		{"to outside", open, closed, false, with(tcp, func(p *Packet) { p.Dst = addr("192.0.2.1") }), policy.Allow, "no tier decides, -"},
		{"past us", closed, closed, false, with(tcp, func(p *Packet) { p.Src, p.Dst = addr("192.0.2.1"), addr("192.0.2.2") }), policy.Allow, "-, -"},
		{"a pod to itself", closed, closed, false, self, policy.Allow, "a pod may talk to itself, a pod may talk to itself"},
		{"the node to its pod", closed, closed, false, probe, policy.Allow, "-, the pod's own node may talk to it"},
		{"IPv4 in IPv6 is IPv4", open, closed, false, with(tcp, func(p *Packet) { p.Dst = addr("::ffff:10.0.0.2") }), policy.Deny, "no tier decides, no tier decides"},
		{"the API does not know the destination", open, open, true, tcp, policy.Deny, "no tier decides, the API does not know the pod"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := policy.NewState()
			client := &policy.Endpoint{ID: policy.EndpointID{Namespace: "prod", Name: "client"}, IPs: []netip.Addr{tcp.Src}, Egress: tt.egress, Ingress: open}
			server := &policy.Endpoint{ID: policy.EndpointID{Namespace: "prod", Name: "server"}, IPs: []netip.Addr{tcp.Dst}, Ingress: tt.ingress, Egress: open, Unknown: tt.unknown}
			s.Endpoints[client.ID], s.Endpoints[server.ID] = client, server
			got := New(s).Evaluate(tt.packet)
			if got.Verdict != tt.want {
				t.Errorf("got %s, want %s", got.Verdict, tt.want)
			}
			reasons := [2]string{"-", "-"}
			for i, trace := range []*Trace{got.Egress, got.Ingress} {
				if trace != nil {
					reasons[i] = trace.Reason.String()
				}
			}
			if diff := cmp.Diff(tt.reasons, strings.Join(reasons[:], ", ")); diff != "" {
				t.Errorf("reasons (-want +got):\n%s", diff)
			}
		})
	}
}
