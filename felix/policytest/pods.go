// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/heliograph-dev/heliograph/policy"
)

// Pod is a pod of the lab.
type Pod struct {
	Device string
	IPs    []netip.Addr // one of each family
}

const (
	podCount = 7
	// rogue is the number of the last one, which is no endpoint of any state.
	rogue End = podCount - 1
)

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// pods are all pods, with the rogue.
func pods() []Pod {
	var out []Pod
	for i := range podCount {
		out = append(out, Pod{fmt.Sprintf("hel%011x", i+1), addrs(fmt.Sprintf("10.244.0.%d", i+1), fmt.Sprintf("fd00:244::%x", i+1))})
	}
	out[rogue].Device = "hel0000000000f"
	return out
}

// outside are addresses that are no pods'.
func outside() []netip.Addr {
	return addrs("192.0.2.2", "192.0.2.130", "198.51.100.2", "2001:db8::2", "2001:db8::8000:1", "2001:db8:1::2")
}

func endpoint(i int, p Pod) *policy.Endpoint {
	open := policy.Chain{Default: policy.Allow}
	id := policy.EndpointID{Namespace: "prod", Name: fmt.Sprintf("pod-%d", i)}
	return &policy.Endpoint{ID: id, Device: p.Device, IPs: p.IPs, Ingress: open, Egress: open}
}

func newDice(seed uint64) *dice {
	d := &dice{
		Rand: rand.New(rand.NewPCG(seed, 0)), //nolint:gosec // repeatable on purpose
		pods: pods(), outside: outside(), node: addrs("192.0.2.1", "2001:db8::1"),
	}
	for i, p := range d.pods[:rogue] {
		d.endpoints = append(d.endpoints, endpoint(i, p))
	}
	return d
}

// States draws states, each of which has much in common with the one before: for tests of renderers that
// need no packets. Diff leads from one to the next.
func States(seed uint64, n int) []*policy.State {
	d, last := newDice(seed), policy.NewState()
	var out []*policy.State
	for range n {
		last = d.next(last)
		out = append(out, last)
	}
	return out
}
