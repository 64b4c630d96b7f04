// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/policytest"
	"github.com/heliograph-dev/heliograph/policy"
)

// faulty is a kernel that does not take some things.
type faulty struct {
	Handle
	restore string // what it does not take in rules; empty: it takes all
	noSets  bool   // it makes no ipset
}

func (f *faulty) Restore(ctx context.Context, family policy.Family, input []byte) error {
	if f.restore != "" && strings.Contains(string(input), f.restore) {
		return &RestoreError{Command: "faulty", Code: 2, Output: "Couldn't load match"}
	}
	return f.Handle.Restore(ctx, family, input)
}

func (f *faulty) ChangeSets(ctx context.Context, steps []SetStep) []error {
	if !f.noSets {
		return f.Handle.ChangeSets(ctx, steps)
	}
	errs := make([]error, len(steps))
	for i, s := range steps {
		if s.Do == CreateSet || s.Do == AddMembers {
			errs[i] = errors.New("ipset error 4098")
		} else if e := f.Handle.ChangeSets(ctx, []SetStep{s}); e != nil {
			errs[i] = e[0]
		}
	}
	return errs
}

// portOf matches a port of a protocol.
func portOf(p policy.Protocol, port uint16) policy.Match {
	return policy.Match{Transport: []policy.Transport{{Protocol: p, DestinationPorts: policy.Ports{Ranges: []policy.PortRange{{First: port, Last: port}}}}}}
}

// closedNode is a node that may be reached, and reach others, by failsafes alone: port 22 and the given ones. Its
// endpoints are for these devices.
func closedNode(more []policy.Match, devices ...string) *policy.State {
	s, deny := policy.NewState(), policy.PolicyID{Kind: policy.GlobalNetworkPolicy, Name: "deny"}
	s.Policies[deny] = &policy.Policy{ID: deny}
	s.Policies[policy.FailsafeID()] = failsafePolicy(append(more, portOf(policy.TCP, 22), portOf(policy.UDP, 22))...)
	for _, device := range devices {
		id := policy.EndpointID{Name: "host " + device, Host: true}
		s.Endpoints[id] = &policy.Endpoint{ID: id, Device: device, Ingress: hostChain(deny), Egress: hostChain(deny)}
	}
	return s
}

// following returns what brings a new driver from state to state.
func following(t *testing.T, d *Table) (become func(*policy.State)) {
	last := policy.NewState()
	return func(s *policy.State) {
		t.Helper()
		d.Update(policytest.Diff(last, s))
		apply(t, d)
		last = s
	}
}

// TestRefusedFailsafes: a kernel that does not take the failsafes leaves the node open, both ways, whatever
// becomes of policies; closed, nobody could come and see. It is closed once it takes them.
func TestRefusedFailsafes(t *testing.T) {
	sctp := []policy.Match{portOf(policy.SCTP, 132)}
	nets := portOf(policy.UDP, 4789)
	nets.Source.Within = []policy.Addresses{{Nets: []policy.Net{{CIDR: prefixOf("10.0.0.0/8")}, {CIDR: prefixOf("192.168.0.0/16")}, {CIDR: prefixOf("fd00::/8")}}}}
	for _, tt := range []struct {
		name  string
		more  []policy.Match
		first bool
		fault faulty
	}{
		{"no_SCTP", sctp, false, faulty{restore: "-p sctp"}},
		{"no_SCTP_at_once", sctp, true, faulty{restore: "-p sctp"}},
		{"no_sets", []policy.Match{nets}, false, faulty{noSets: true}},
		{"no_sets_at_once", []policy.Match{nets}, true, faulty{noSets: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			variants(t, func(t *testing.T, v Variant) { refuseFailsafes(t, v, tt.more, tt.first, tt.fault) })
		})
	}
}

func refuseFailsafes(t *testing.T, v Variant, more []policy.Match, first bool, fault faulty) {
	l := policytest.NewLab(t)
	k, err := Open(v, NewRestores())
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close() //nolint:errcheck // a test's
	failsafe, other := l.AtNode(22, 81)
	h := &faulty{Handle: k}
	d := New(h, slog.New(slog.DiscardHandler))
	become := following(t, d)
	if !first {
		become(closedNode(nil, "out0", policy.AnyDevice))
		l.Expect("before", true, failsafe...)
		l.Expect("before", false, other...)
	}
	h.restore, h.noSets = fault.restore, fault.noSets
	become(closedNode(more, "out0", policy.AnyDevice))
	l.Expect("refused", true, append(failsafe, other...)...)
	next := closedNode(more, "out0", policy.AnyDevice)
	deny := policy.PolicyID{Kind: policy.GlobalNetworkPolicy, Name: "deny"}
	next.Policies[deny].Ingress = []policy.Rule{{ID: policy.RuleID{Policy: deny}, Action: policy.Deny}}
	become(next)
	l.Expect("refused, and a policy changes", true, append(failsafe, other...)...)
	if r := d.Refused(); len(r) != 1 || r[policy.FailsafeID()] == nil {
		t.Errorf("refused %v; want the failsafes", r)
	}
	h.restore, h.noSets = "", false
	d.QueueResync()
	apply(t, d)
	l.Expect("taken", true, failsafe...)
	l.Expect("taken", false, other...)
	if r := d.Refused(); len(r) > 0 {
		t.Errorf("refused %v", r)
	}
}

// TestHostsHaveNoGap: while a host's endpoint comes and goes, and while its policy changes, no packet to or from a
// failsafe port is lost, and as long as it is closed nothing that is denied gets through.
func TestHostsHaveNoGap(t *testing.T) {
	const rounds = 10
	variants(t, func(t *testing.T, v Variant) {
		l := policytest.NewLab(t)
		failsafe, other := l.AtNode(22, 81)
		become := following(t, open(t, v))
		become(policy.NewState())
		states := closedStates()
		flood := l.Flood(failsafe, nil)
		for range rounds {
			become(states[0])
			become(policy.NewState())
		}
		flood.Stop()
		become(states[0])
		flood = l.Flood(failsafe, other)
		for i := range 2 * rounds {
			if i%7 == 3 {
				become = following(t, open(t, v))
			}
			become(states[i%len(states)])
		}
		flood.Stop()
	})
}

// closedStates are states in which the node is closed but for failsafes, each in another way.
func closedStates() []*policy.State {
	deny := policy.PolicyID{Kind: policy.GlobalNetworkPolicy, Name: "deny"}
	pass := policy.PolicyID{Kind: policy.GlobalNetworkPolicy, Name: "pass"}
	admins := closedNode([]policy.Match{portOf(policy.UDP, 4789)}, "out0", policy.AnyDevice)
	admins.Sets["admins"] = &policy.Set{Members: map[policy.Member]struct{}{member("203.0.113.0/24"): {}, member("192.0.2.99/32"): {}}}
	admins.Policies[deny].Ingress = []policy.Rule{{
		ID: policy.RuleID{Policy: deny}, Action: policy.Allow,
		Match: policy.Match{Source: policy.Peer{Within: []policy.Addresses{{Sets: []policy.SetID{"admins"}}}}},
	}}
	passes := closedNode(nil, "out0", policy.AnyDevice)
	passes.Policies[pass] = &policy.Policy{ID: pass, Ingress: []policy.Rule{{ID: policy.RuleID{Policy: pass}, Action: policy.Pass}}}
	for _, e := range passes.Endpoints {
		first := policy.Tier{Name: "first", Policies: []policy.PolicyID{pass}, Default: policy.Deny}
		e.Ingress.Tiers = append(e.Ingress.Tiers[:1:1], first, e.Ingress.Tiers[1])
	}
	return []*policy.State{closedNode(nil, "out0", policy.AnyDevice), admins, passes, closedNode(nil, policy.AnyDevice), closedNode(nil, "out0")}
}
