// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// full has every field set, so that a change of any can be seen.
func full() *Policy {
	id := PolicyID{Kind: GlobalNetworkPolicy, Name: "p"}
	transport := func(set SetID) []Transport {
		return []Transport{{
			Protocol:         TCP,
			SourcePorts:      Ports{Ranges: []PortRange{{1, 2}}, Named: []SetID{set + "-source"}},
			DestinationPorts: Ports{Ranges: []PortRange{{80, 80}}, Named: []SetID{set}},
			ICMP:             ICMPMatch{HasType: true, Type: 8},
		}}
	}
	peer := func(set SetID) Peer {
		return Peer{
			Within:  []Addresses{{Sets: []SetID{set}, Nets: []Net{{CIDR: prefix("10.0.0.0/8"), Except: []netip.Prefix{prefix("10.1.0.0/16")}}}}},
			Outside: Addresses{Sets: []SetID{set + "-not"}},
		}
	}
	m := Match{Family: IPv4, Source: peer("source"), Destination: peer("destination"), Transport: transport("port"), NotTransport: transport("not-port")}
	return &Policy{
		ID:      id,
		Ingress: []Rule{{ID: RuleID{Policy: id}, Action: Allow, Match: m}},
		Egress:  []Rule{{ID: RuleID{Policy: id, Direction: Egress}, Action: Deny, Match: Match{Source: peer("egress")}}},
	}
}

func TestPolicyEqual(t *testing.T) {
	if !full().Equal(full()) {
		t.Fatal("a policy is not equal to itself")
	}
	for name, change := range map[string]func(p *Policy, m *Match){
		"id":                func(p *Policy, _ *Match) { p.ID.Name = "q" },
		"audit":             func(p *Policy, _ *Match) { p.Audit = true },
		"a rule less":       func(p *Policy, _ *Match) { p.Egress = nil },
		"rule id":           func(p *Policy, _ *Match) { p.Ingress[0].ID.Index++ },
		"action":            func(p *Policy, _ *Match) { p.Egress[0].Action = Pass },
		"family":            func(_ *Policy, m *Match) { m.Family = IPv6 },
		"set":               func(_ *Policy, m *Match) { m.Source.Within[0].Sets[0] = "x" },
		"net":               func(_ *Policy, m *Match) { m.Source.Within[0].Nets[0].CIDR = prefix("::/0") },
		"exception":         func(_ *Policy, m *Match) { m.Destination.Within[0].Nets[0].Except = nil },
		"one condition":     func(_ *Policy, m *Match) { m.Destination.Within = nil },
		"not":               func(_ *Policy, m *Match) { m.Destination.Outside.Sets = nil },
		"protocol":          func(_ *Policy, m *Match) { m.Transport[0].Protocol = UDP },
		"source ports":      func(_ *Policy, m *Match) { m.Transport[0].SourcePorts.Ranges[0].Last++ },
		"destination ports": func(_ *Policy, m *Match) { m.Transport[0].DestinationPorts.Named[0] = "x" },
		"icmp":              func(_ *Policy, m *Match) { m.Transport[0].ICMP.HasCode = true },
		"not transport":     func(_ *Policy, m *Match) { m.NotTransport = nil },
	} {
		p := full()
		change(p, &p.Ingress[0].Match)
		if p.Equal(full()) || full().Equal(p) {
			t.Errorf("%s: a change is not seen", name)
		}
	}
	if full().Equal(nil) || (*Policy)(nil).Equal(full()) || !(*Policy)(nil).Equal(nil) {
		t.Error("a policy is as good as none")
	}
}

func TestPolicySets(t *testing.T) {
	want := []SetID{
		"destination", "destination-not", "egress", "egress-not", "not-port", "not-port-source", "port", "port-source", "source", "source-not",
	}
	if got := slices.Sorted(full().Sets); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for range full().Sets {
		break // a caller may stop early
	}
}

func TestEndpointEqual(t *testing.T) {
	endpoint := func() *Endpoint {
		return &Endpoint{
			ID: EndpointID{Namespace: "prod", Name: "web"}, Device: "hel1", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
			Ingress: Chain{Default: Allow, Tiers: []Tier{{Name: DefaultTier, Default: Deny, Policies: []PolicyID{{Name: "p"}}}}},
			Egress:  Chain{Default: Allow},
		}
	}
	if !endpoint().Equal(endpoint()) {
		t.Fatal("an endpoint is not equal to itself")
	}
	for name, change := range map[string]func(e *Endpoint){
		"id":       func(e *Endpoint) { e.ID.Name = "x" },
		"device":   func(e *Endpoint) { e.Device = "hel2" },
		"address":  func(e *Endpoint) { e.IPs = nil },
		"unknown":  func(e *Endpoint) { e.Unknown = true },
		"default":  func(e *Endpoint) { e.Egress.Default = Deny },
		"tier":     func(e *Endpoint) { e.Ingress.Tiers[0].Name = AdminTier },
		"policies": func(e *Endpoint) { e.Ingress.Tiers[0].Policies = nil },
		"no tier":  func(e *Endpoint) { e.Ingress.Tiers = nil },
		"its end":  func(e *Endpoint) { e.Ingress.Tiers[0].Default = Pass },
	} {
		e := endpoint()
		change(e)
		if e.Equal(endpoint()) {
			t.Errorf("%s: a change is not seen", name)
		}
	}
}

func TestApply(t *testing.T) {
	a, b := Member{Prefix: prefix("10.0.0.1/32")}, Member{Prefix: prefix("fd00::1/128"), Protocol: TCP, Port: 80}
	id := PolicyID{Namespace: "prod", Name: "p"}
	for _, tt := range []struct {
		name string
		in   Delta
		want string // part of the error
	}{
		{"nothing", Delta{}, ""},
		{"members", Delta{Sets: []SetChange{{ID: "s", Op: Changed, Add: []Member{b}, Remove: []Member{a}}}}, ""},
		{"a set anew", Delta{Sets: []SetChange{{ID: "s", Op: Added}}}, "set s: added, but is there"},
		{"a set of before", Delta{Sets: []SetChange{{ID: "t", Op: Removed}}}, "set t: removed, but is not there"},
		{"no members", Delta{Sets: []SetChange{{ID: "s", Op: Changed}}}, "set s: changed to what it was"},
		{"a member anew", Delta{Sets: []SetChange{{ID: "s", Op: Changed, Add: []Member{a}}}}, "set s: 10.0.0.1/32 joins, but is in it"},
		{"a member of before", Delta{Sets: []SetChange{{ID: "s", Op: Changed, Remove: []Member{b}}}}, "set s: fd00::1/128 TCP 80 leaves, but is not in it"},
		{"a policy", Delta{Policies: []PolicyChange{{ID: id, Op: Removed}}}, ""},
		{"a policy as before", Delta{Policies: []PolicyChange{{ID: id, Op: Changed, Policy: &Policy{ID: id}}}}, "policy NetworkPolicy prod/p: changed to what it was"},
		{"an endpoint of before", Delta{Endpoints: []EndpointChange{{ID: EndpointID{Namespace: "prod", Name: "web"}, Op: Removed}}}, "endpoint prod/web: removed, but is not there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := NewState()
			start := Delta{
				Sets:     []SetChange{{ID: "s", Op: Added, Add: []Member{a}}},
				Policies: []PolicyChange{{ID: id, Op: Added, Policy: &Policy{ID: id}}},
			}
			if err := s.Apply(start); err != nil {
				t.Fatal(err)
			}
			err := s.Apply(tt.in)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	s := NewState()
	p := full()
	s.Policies[p.ID] = p
	s.Sets["unused"] = &Set{}
	s.Endpoints[EndpointID{Namespace: "prod", Name: "web"}] = &Endpoint{Ingress: Chain{Tiers: []Tier{{Policies: []PolicyID{{Name: "gone"}}}}}}
	err := s.Check()
	for _, want := range []string{"refers to set source, which", "set unused is used by no policy", "refers to policy NetworkPolicy gone, which"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestStrings(t *testing.T) {
	id := RuleID{Policy: PolicyID{Kind: HeliographNetworkPolicy, Namespace: "prod", Name: "web"}, Direction: Egress, Index: 3}
	for got, want := range map[string]string{
		id.String(): "NetworkPolicy.heliograph.dev prod/web egress[3]",
		PolicyID{Kind: ClusterNetworkPolicy, Name: "x"}.String(): "ClusterNetworkPolicy x",
		Pass.String(): "Pass", Action(9).String(): "9", SCTP.String(): "SCTP", Protocol(47).String(): "47",
		IPv6.String(): "IPv6", AnyFamily.String(): "any", AddressPortSet.String(): "address-ports", Removed.String(): "removed",
		PortRange{80, 80}.String(): "80", PortRange{80, 90}.String(): "80-90",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestDelta(t *testing.T) {
	s := NewState()
	p := full()
	s.Policies[p.ID] = p
	for id := range p.Sets {
		s.Sets[id] = &Set{Members: map[Member]struct{}{{Prefix: prefix("10.0.0.1/32")}: {}, {Prefix: prefix("fd00::1/128")}: {}}}
	}
	for _, name := range []string{"b", "a"} {
		id := EndpointID{Namespace: "n", Name: name}
		s.Endpoints[id] = &Endpoint{ID: id}
	}
	d := s.Delta()
	got := NewState()
	if err := got.Apply(d); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, s) {
		t.Errorf("applied to nothing, the delta of\n%v\ngives\n%v", s, got)
	}
	if d.Endpoints[0].ID.Name != "a" {
		t.Error("the delta is not sorted")
	}
}

func TestLogPrefix(t *testing.T) {
	id := RuleID{Policy: full().ID, Index: 3}
	got := LogPrefix(Deny, id.String())
	if want := "hel/Deny/" + Hash(id.String()); got != want || len(got) > 63 {
		t.Errorf("LogPrefix = %q, want %q", got, want)
	}
}

func TestText(t *testing.T) {
	type all struct {
		ID     RuleID
		Action Action
		Kinds  []Kind
		Count  Count
	}
	in := all{
		ID: RuleID{Policy: PolicyID{Kind: GlobalNetworkPolicy, Name: "p"}, Direction: Egress, Index: 2}, Action: Log,
		Kinds: []Kind{NetworkPolicy, ClusterNetworkPolicy, HeliographNetworkPolicy}, Count: Count{Packets: 1, Bytes: 2},
	}
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"ID":{"policy":{"kind":"GlobalNetworkPolicy","name":"p"},"direction":"egress","index":2},"Action":"Log",` +
		`"Kinds":["NetworkPolicy","ClusterNetworkPolicy","NetworkPolicy.heliograph.dev"],"Count":{"packets":1,"bytes":2}}`
	if string(text) != want {
		t.Errorf("got %s, want %s", text, want)
	}
	var out all
	if err := json.Unmarshal(text, &out); err != nil || !reflect.DeepEqual(in, out) {
		t.Errorf("got %v, %v back, want %v", out, err, in)
	}
	if err := json.Unmarshal([]byte(`{"Action":"Drop"}`), &out); err == nil || !strings.Contains(err.Error(), `"Drop" is unknown`) {
		t.Errorf("error = %v", err)
	}
}
