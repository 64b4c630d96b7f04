// SPDX-License-Identifier: Apache-2.0

package eval

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/heliograph-dev/heliograph/policy"
)

// BenchmarkEvaluate asks 20 rules, none of which matches, each about a set of 1,000 pods of both families.
func BenchmarkEvaluate(b *testing.B) {
	id := policy.PolicyID{Namespace: "ns", Name: "p"}
	p := &policy.Policy{ID: id}
	s := policy.NewState()
	s.Policies[id] = p
	for i := range 20 {
		name := policy.SetID(fmt.Sprint("set", i))
		pods := set(policy.AddressSet)
		for j := range 1000 {
			a4, a6 := netip.AddrFrom4([4]byte{10, byte(i), byte(j >> 8), byte(j)}), netip.AddrFrom16([16]byte{0xfd, 13: byte(i), 14: byte(j >> 8), 15: byte(j)})
			pods.Members[policy.Member{Prefix: netip.PrefixFrom(a4, 32)}] = struct{}{}
			pods.Members[policy.Member{Prefix: netip.PrefixFrom(a6, 128)}] = struct{}{}
		}
		s.Sets[name] = pods
		p.Ingress = append(p.Ingress, policy.Rule{ID: policy.RuleID{Policy: id, Index: i}, Action: policy.Allow, Match: policy.Match{Source: in(name)}})
	}
	ep := policy.EndpointID{Namespace: "ns", Name: "pod"}
	open := policy.Chain{Default: policy.Allow}
	closed := policy.Chain{Default: policy.Allow, Tiers: []policy.Tier{{Name: policy.DefaultTier, Default: policy.Deny, Policies: []policy.PolicyID{id}}}}
	s.Endpoints[ep] = &policy.Endpoint{ID: ep, IPs: []netip.Addr{addr("10.0.0.2"), addr("fd00::2")}, Egress: open, Ingress: closed}
	e := New(s)
	for _, tt := range []struct{ name, src, dst string }{{"IPv4", "192.0.2.1", "10.0.0.2"}, {"IPv6", "2001:db8::1", "fd00::2"}} {
		b.Run(tt.name, func(b *testing.B) {
			for b.Loop() {
				if e.Evaluate(Packet{Src: addr(tt.src), Dst: addr(tt.dst), Protocol: policy.TCP, SrcPort: 40000, DstPort: 80}).Verdict != policy.Deny {
					b.Fatal("allowed")
				}
			}
		})
	}
}
