// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/heliograph-dev/heliograph/policy"
)

// sink is a kernel that takes everything and costs nothing.
type sink struct{}

func (sink) Read(Ruleset) (Actual, error)               { return Actual{}, nil }
func (sink) Commit(Transaction) error                   { return nil }
func (sink) Counters() (map[string]policy.Count, error) { return nil, nil }

func addressNo(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

// cluster is n policies that each allow what is in one of n sets, and 100 pods, each with n/100 of them.
func cluster(n int) builder {
	b := newBuilder()
	var chains [100][]policy.PolicyID
	for i := range n {
		set := policy.SetID(fmt.Sprint("pods ", i))
		b.Sets[set] = addressSet(addressNo(i).String(), addressNo(i+1).String())
		id := b.ingress(fmt.Sprint("policy-", i), policy.Rule{Action: policy.Allow, Match: policy.Match{Source: in(set), Transport: []policy.Transport{to(policy.TCP, 80, 443)}}})
		chains[i%100] = append(chains[i%100], id)
	}
	for i, ids := range chains {
		b.pod(fmt.Sprint("pod-", i), deviceNo(i), chain(tier(ids...)), chain(), addressNo(i).String())
	}
	return b
}

func ready(b *testing.B, d *Table, delta policy.Delta) {
	b.Helper()
	d.Update(delta)
	if err := d.Apply(context.Background()); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkJoin is a pod that joins and leaves a set of 10,000, with 1,000 policies in force.
func BenchmarkJoin(b *testing.B) {
	c := cluster(1000)
	members := policy.Set{Kind: policy.AddressSet, Members: map[policy.Member]struct{}{}}
	for i := range 10000 {
		members.Members[member(addressNo(i).String())] = struct{}{}
	}
	c.Sets["pods 0"] = &members
	d := New(sink{}, quiet())
	ready(b, d, c.Delta())
	one := []policy.Member{member("172.16.0.1")}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		change := policy.SetChange{ID: "pods 0", Op: policy.Changed, Add: one}
		if i%2 == 1 {
			change.Add, change.Remove = nil, one
		}
		ready(b, d, policy.Delta{Sets: []policy.SetChange{change}})
	}
}

// BenchmarkBlock is a network in and out of the 10,000 of a rule.
func BenchmarkBlock(b *testing.B) {
	list := make([]policy.Net, 10000)
	for i := range list {
		list[i].CIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(i >> 8), byte(i), 0, 0}), 24)
	}
	with := append(append([]policy.Net{}, list[:5000]...), policy.Net{CIDR: prefix("172.16.0.0/24")})
	with = append(with, list[5000:]...)
	versions := [2]*policy.Policy{}
	c := newBuilder()
	for i, nets := range [][]policy.Net{list, with} {
		id := c.ingress("blocks", policy.Rule{Action: policy.Allow, Match: policy.Match{Source: policy.Peer{Within: []policy.Addresses{{Nets: nets}}}}})
		versions[i] = c.Policies[id]
		c.pod("pod", "hel00000000001", chain(tier(id)), chain())
	}
	d := New(sink{}, quiet())
	ready(b, d, c.Delta())
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		p := versions[i%2]
		ready(b, d, policy.Delta{Policies: []policy.PolicyChange{{ID: p.ID, Op: policy.Changed, Policy: p}}})
	}
}

// BenchmarkLoad renders 10,000 policies and what belongs to them.
func BenchmarkLoad(b *testing.B) {
	delta := cluster(10000).Delta()
	b.ReportAllocs()
	for b.Loop() {
		ready(b, New(sink{}, quiet()), delta)
	}
}
