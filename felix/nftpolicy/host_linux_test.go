// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"fmt"
	"maps"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/policytest"
	"github.com/heliograph-dev/heliograph/internal/nettest"
	"github.com/heliograph-dev/heliograph/policy"
)

// faulty is a kernel that does not take everything.
type faulty struct {
	Handle
	fail func(Transaction) error
}

func (f *faulty) Commit(tx Transaction) error {
	if f.fail != nil {
		if err := f.fail(tx); err != nil {
			return err
		}
	}
	return f.Handle.Commit(tx)
}

// closedNode is a node that may be reached, and reach others, by failsafes alone: port 22 and the given ones.
func closedNode(failsafes ...uint16) builder {
	b := newBuilder()
	var list []policy.Rule
	for _, port := range append(failsafes, 22) {
		list = append(list, policy.Rule{Action: policy.Allow, Match: policy.Match{Transport: []policy.Transport{to(policy.TCP, port), to(policy.UDP, port)}}})
	}
	b.failsafes(list...)
	deny := b.ingress("deny")
	b.host("out0", hostChain(tier(deny)), hostChain(tier(deny)))
	b.host(policy.AnyDevice, hostChain(tier(deny)), hostChain(tier(deny)))
	return b
}

// TestRefusedFailsafes: a kernel that does not take the failsafes leaves the node open, both ways, whatever
// becomes of policies; closed, nobody could come and see. It is closed once it takes them.
func TestRefusedFailsafes(t *testing.T) {
	for _, told := range []bool{true, false} {
		for _, first := range []bool{true, false} {
			t.Run(fmt.Sprintf("told_%t_at_once_%t", told, first), func(t *testing.T) {
				nettest.Run(t, func(t *testing.T) { refuseFailsafes(t, told, first) })
			})
		}
	}
}

func refuseFailsafes(t *testing.T, told, first bool) {
	l, k := policytest.NewLab(t), &faulty{Handle: open(t)}
	failsafe, other := l.AtNode(22, 81)
	d := New(k, quiet())
	if !first {
		apply(t, d, closedNode().State)
		l.Expect("before", true, failsafe...)
		l.Expect("before", false, other...)
	}
	k.fail = refusing(policy.FailsafeID(), told)
	b := closedNode(23)
	apply(t, d, b.State)
	l.Expect("refused", true, append(failsafe, other...)...)
	b = builder{&policy.State{Sets: b.Sets, Policies: maps.Clone(b.Policies), Endpoints: b.Endpoints}}
	b.ingress("deny", policy.Rule{Action: policy.Deny})
	apply(t, d, b.State)
	l.Expect("refused, and a policy changes", true, append(failsafe, other...)...)
	if r := d.Refused(); len(r) != 1 || r[policy.FailsafeID()] == nil {
		t.Errorf("refused %v; want the failsafes", r)
	}
	k.fail = nil
	apply(t, d, closedNode(24).State)
	l.Expect("taken", true, failsafe...)
	l.Expect("taken", false, other...)
	if r := d.Refused(); len(r) > 0 {
		t.Errorf("refused %v", r)
	}
}

// TestHostsHaveNoGap: while a host's endpoint comes and goes, and while its policy changes, no packet to or from a
// failsafe port is lost, and as long as it is closed nothing that is denied gets through.
func TestHostsHaveNoGap(t *testing.T) {
	rounds := often(600)
	nettest.Run(t, func(t *testing.T) {
		l, k := policytest.NewLab(t), open(t)
		failsafe, other := l.AtNode(22, 81)
		d := New(k, quiet())
		apply(t, d, newBuilder().State)
		flood := l.Flood(failsafe, nil)
		for range rounds {
			apply(t, d, closedNode().State)
			apply(t, d, newBuilder().State)
		}
		flood.Stop()
		states := closedStates()
		apply(t, d, states[0])
		flood = l.Flood(failsafe, other)
		for i := range rounds {
			if i%7 == 0 {
				d = New(k, quiet())
			}
			apply(t, d, states[i%len(states)])
		}
		flood.Stop()
	})
}

// closedStates are states in which the node is closed but for failsafes, each in another way.
func closedStates() []*policy.State {
	more, passes, any, device := closedNode(4789), closedNode(), closedNode(), closedNode()
	more.Sets["admins"] = addressSet("192.0.2.99", "203.0.113.0/24")
	more.ingress("deny", policy.Rule{Action: policy.Allow, Match: policy.Match{Source: in("admins")}})
	pass := passes.ingress("pass", policy.Rule{Action: policy.Pass})
	passes.host("out0", hostChain(policy.Tier{Name: "first", Policies: []policy.PolicyID{pass}, Default: policy.Deny}, tier(name("deny"))), hostChain(tier(name("deny"))))
	delete(any.Endpoints, policy.EndpointID{Name: "host out0", Host: true})
	delete(device.Endpoints, policy.EndpointID{Name: "host " + policy.AnyDevice, Host: true})
	return []*policy.State{closedNode().State, more.State, passes.State, any.State, device.State}
}
