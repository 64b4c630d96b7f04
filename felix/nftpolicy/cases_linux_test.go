// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/policytest"
	"github.com/heliograph-dev/heliograph/internal/nettest"
	"github.com/heliograph-dev/heliograph/policy"
)

// often is how many rounds a flood goes through: few where the machine is emulated.
func often(n int) int {
	if testing.Short() {
		return 30
	}
	return n
}

// TestRestartsHaveNoGap: while drivers that know nothing take over again and again, nothing that is denied
// gets through, and nothing that is allowed is lost.
func TestRestartsHaveNoGap(t *testing.T) {
	restarts := often(300)
	nettest.Run(t, func(t *testing.T) {
		l, k := policytest.NewLab(t), open(t)
		webOnly := func(more ...policy.Rule) builder {
			b := newBuilder()
			web := b.ingress("web", append(more, policy.Rule{Action: policy.Allow, Match: policy.Match{Transport: []policy.Transport{to(policy.TCP, 80), to(policy.UDP, 80)}}})...)
			for i := range l.Pods {
				e := l.Endpoint(i)
				if i == 1 {
					e.Ingress = chain(tier(web))
				}
				b.Endpoints[e.ID] = e
			}
			return b
		}
		plain, more := webOnly(), webOnly(policy.Rule{Action: policy.Deny, Match: policy.Match{Source: in("set")}})
		more.Sets["set"] = addressSet("10.0.0.7")
		apply(t, New(k, quiet()), plain.State)
		var allowed, denied []policytest.Packet
		for _, f := range []policy.Family{policy.IPv4, policy.IPv6} {
			allowed = append(allowed, l.Packet(0, 1, f, policy.UDP, 80), l.Packet(policytest.Outside, 1, f, policy.TCP, 80))
			denied = append(denied, l.Packet(0, 1, f, policy.UDP, 81), l.Packet(policytest.Outside, 1, f, policy.TCP, 81))
		}
		flood := l.Flood(allowed, denied)
		for i := range restarts {
			apply(t, New(k, quiet()), [2]*policy.State{more.State, plain.State}[i%2])
		}
		flood.Stop()
	})
}

// TestDeletionHasNoGap: while the table comes and goes, as with a change of the dataplane, what it lets through is
// not lost. A packet that is on its way must not find rules whose maps are empty already.
func TestDeletionHasNoGap(t *testing.T) {
	rounds := often(300)
	nettest.Run(t, func(t *testing.T) {
		l, k := policytest.NewLab(t), open(t)
		b := newBuilder()
		for i := range l.Pods {
			e := l.Endpoint(i)
			b.Endpoints[e.ID] = e
		}
		var allowed []policytest.Packet
		for _, f := range []policy.Family{policy.IPv4, policy.IPv6} {
			for i := range 3 {
				allowed = append(allowed, l.Packet(policytest.End(i), policytest.End(i+1), f, policy.UDP, 80), l.Packet(policytest.End(i+1), policytest.End(i), f, policy.TCP, 80))
			}
		}
		flood := l.Flood(allowed, nil)
		for range rounds {
			table := New(k, quiet())
			apply(t, table, b.State)
			if err := table.Delete(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		flood.Stop()
	})
}

// TestLogs: what a rule denies is told to the group, with its prefix.
func TestLogs(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		b := newBuilder()
		deny := b.ingress("deny", policy.Rule{Action: policy.Deny})
		b.pod("pod", deviceNo(0), chain(tier(deny)), chain())
		apply(t, New(open(t), quiet()), b.State)
		out := list(t)
		prefix := policy.LogPrefix(policy.Deny, policy.RuleID{Policy: deny}.String())
		if want := fmt.Sprintf("log prefix %q group %d", prefix, policy.LogGroup); !strings.Contains(out, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	})
}
