// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/policy"
)

// many is a node with 100 pods and n policies, of which each pod is subject to as many as there are, and
// which accept a port of a set of 20 pods.
func many(n int) *policy.State {
	const pods = 100
	s := policy.NewState()
	open := policy.Chain{Default: policy.Allow}
	tiers := make([]policy.Tier, pods)
	for i := range n {
		id := policy.PolicyID{Namespace: "prod", Name: fmt.Sprint("policy-", i)}
		set := policy.SetID(fmt.Sprint("set-", i))
		members := map[policy.Member]struct{}{}
		for j := range byte(20) {
			for _, ip := range []netip.Addr{
				netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), j}), netip.AddrFrom16([16]byte{0: 0xfd, 13: byte(i >> 8), 14: byte(i), 15: j}),
			} {
				members[policy.Member{Prefix: netip.PrefixFrom(ip, ip.BitLen())}] = struct{}{}
			}
		}
		s.Sets[set] = &policy.Set{Members: members}
		s.Policies[id] = &policy.Policy{ID: id, Ingress: []policy.Rule{{
			ID: policy.RuleID{Policy: id}, Action: policy.Allow,
			Match: policy.Match{
				Source:    policy.Peer{Within: []policy.Addresses{{Sets: []policy.SetID{set}}}},
				Transport: []policy.Transport{{Protocol: policy.TCP, DestinationPorts: policy.Ports{Ranges: []policy.PortRange{{First: 80, Last: 80}}}}},
			},
		}}}
		tiers[i%pods].Policies = append(tiers[i%pods].Policies, id)
	}
	for i, tier := range tiers {
		tier.Name, tier.Default = policy.DefaultTier, policy.Deny
		e := &policy.Endpoint{ID: policy.EndpointID{Namespace: "prod", Name: fmt.Sprint("pod-", i)}, Device: fmt.Sprintf("hel%x000000", i*7919+0x10000), Egress: open, Ingress: open}
		if len(tier.Policies) > 0 {
			e.Ingress.Tiers = []policy.Tier{tier}
		}
		s.Endpoints[e.ID] = e
	}
	return s
}

// TestLoad applies many policies, and then changes one thing: 10,000 policies in the long run. It
// prints what each takes.
func TestLoad(t *testing.T) {
	n := 100
	if os.Getenv(longEnv) == "1" {
		n = 10000
	}
	variants(t, func(t *testing.T, v Variant) {
		d := open(t, v)
		timed := func(what string, delta policy.Delta) {
			start := time.Now()
			d.Update(delta)
			apply(t, d)
			t.Logf("%s, %d policies: %s: %s", v, n, what, time.Since(start).Round(10*time.Microsecond))
		}
		s := many(n)
		timed("load", s.Delta())
		timed("nothing", policy.Delta{})
		m := member("192.0.2.1/32")
		timed("a member joins", policy.Delta{Sets: []policy.SetChange{{ID: "set-1", Op: policy.Changed, Add: []policy.Member{m}}}})
		timed("a member leaves", policy.Delta{Sets: []policy.SetChange{{ID: "set-1", Op: policy.Changed, Remove: []policy.Member{m}}}})
		id := policy.PolicyID{Namespace: "prod", Name: "policy-1"}
		p := *s.Policies[id]
		p.Egress = p.Ingress
		timed("a policy changes", policy.Delta{Policies: []policy.PolicyChange{{ID: id, Op: policy.Changed, Policy: &p}}})
		d.QueueResync()
		timed("a resync", policy.Delta{})
		d = open(t, v)
		timed("a restart", s.Delta())
		if len(d.Refused()) > 0 {
			t.Errorf("refused %d policies", len(d.Refused()))
		}
	})
}
