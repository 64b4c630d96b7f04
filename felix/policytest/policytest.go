// SPDX-License-Identifier: Apache-2.0

// Package policytest tests renderers of network policy with real packets: it makes a node with pods, draws
// random states, has the renderer make them true, sends packets from everywhere to everywhere, and
// compares what arrives with what policy/eval says. Nothing outside of the test's namespaces is touched.
//
//	pod 0 ── hel00000000001 ┐                    ┌ 192.0.2.2, 2001:db8::2
//	  …                     ┤ node ──────── out0 ┤  …
//	rogue ── hel0000000000f ┘ 192.0.2.1          └ 198.51.100.2, 2001:db8:1::2
//	                          2001:db8::1
//
// Pods and the world outside are wires without a network stack: packets are made by hand and go in by
// packet sockets, and what comes out is seen by one. So nothing answers, and nothing is waited for but
// the packets.
package policytest

import (
	"context"

	"github.com/heliograph-dev/heliograph/policy"
)

// Renderer is what the drivers that render a policy.State are: see docs/design/0004-policy.md.
type Renderer interface {
	Update(d policy.Delta)
	QueueResync()
	Apply(ctx context.Context) error
	Refused() map[policy.PolicyID]error
	Counters(ctx context.Context) (map[policy.RuleID]policy.Count, error)
	Delete(ctx context.Context) error
}

// Options of Run. The zero value is a run of the normal kind.
type Options struct {
	// Seed of what is drawn. 0: a new one, which is printed. A failed run is repeated with its seed in
	// HELIOGRAPH_SEED.
	Seed uint64
	// Packets is how many are sent at least; 0: 1,000.
	Packets int
	// PerState is how many are sent to one state; 0: 60.
	PerState int
	// NoCounters leaves out the comparison of the rules' counters.
	NoCounters bool
	// NoShrink does not look for a smaller state with the same mismatch, which takes up to 10 seconds.
	NoShrink bool
}

func (o Options) defaults() Options {
	if o.Packets == 0 {
		o.Packets = 1000
	}
	if o.PerState == 0 {
		o.PerState = 60
	}
	return o
}
