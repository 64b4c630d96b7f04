// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/heliograph-dev/heliograph/felix/conntrack"
	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/eval"
)

const (
	// cutShare bounds what looking through the connections may cost, as a part of the time: a table of
	// a million flows is read for some seconds.
	cutShare = 10
	cutRetry = time.Second
)

// cutter has connections that became denied ended. It looks at all of the table, so it works beside the
// loop, and seldom enough.
type cutter struct {
	poke chan struct{}
}

// after asks for a look if a change may deny what was allowed. A pod that is new has no connections; an
// address that joins a set may, since a set can be what a rule denies. Names of domains are only ever
// allowed, and an address leaves them when it has no connections.
func (c *cutter) after(d policy.Delta, first bool) {
	mayDeny := first || len(d.Policies) > 0 || slices.ContainsFunc(d.Sets, func(c policy.SetChange) bool { _, named := c.ID.Domain(); return !named })
	for _, change := range d.Endpoints {
		mayDeny = mayDeny || change.Op == policy.Changed || change.ID.Host
	}
	if mayDeny {
		c.again()
	}
}

func (c *cutter) again() {
	select {
	case c.poke <- struct{}{}:
	default:
	}
}

func (e *Enforcer) runCutter(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.cut.poke:
		}
		start := time.Now()
		n, err := e.cutDenied(ctx)
		if n > 0 {
			e.metrics.cut.Add(float64(n))
			e.log.Info("connections ended that policy denies now", "connections", n)
		}
		rest := cutShare * time.Since(start)
		if err != nil && ctx.Err() == nil {
			e.log.Warn("not all connections that policy denies now are ended; trying again", "error", err)
			e.cut.again()
			rest = max(rest, cutRetry)
		}
		select {
		case <-ctx.Done():
		case <-time.After(rest):
		}
	}
}

// cutDenied deletes the connections that would not be let in now.
func (e *Enforcer) cutDenied(ctx context.Context) (int, error) {
	own, err := e.opts.NodeAddresses()
	if err != nil {
		return 0, fmt.Errorf("list the node's addresses: %w", err)
	}
	slices.SortFunc(own, netip.Addr.Compare)
	judge := judge{e: e}
	return e.opts.Flows.DeleteIf(ctx, func(f conntrack.Flow) bool {
		_, fromNode := slices.BinarySearchFunc(own, f.Src, netip.Addr.Compare)
		_, toNode := slices.BinarySearchFunc(own, f.Dst, netip.Addr.Compare)
		return judge.denied(f, fromNode, toNode)
	})
}

// judge evaluates flows against the present state, which may change between two of them.
type judge struct {
	e         *Enforcer
	version   uint64
	evaluator *eval.Evaluator
}

// Echo requests, the only ones of ICMP and ICMPv6 that pods' flows are made of.
const (
	echoRequest4 = 8
	echoRequest6 = 128
)

func (j *judge) denied(f conntrack.Flow, fromNode, toNode bool) bool {
	j.e.mu.RLock()
	defer j.e.mu.RUnlock()
	if j.evaluator == nil || j.version != j.e.version {
		j.version, j.evaluator = j.e.version, eval.New(j.e.state)
	}
	p := eval.Packet{
		Src: f.Src, Dst: f.Dst, Protocol: policy.Protocol(f.Protocol), SrcPort: f.SrcPort, DstPort: f.DstPort, FromNode: fromNode, ToNode: toNode,
	}
	switch p.Protocol {
	case policy.ICMP:
		p.ICMPType = echoRequest4
	case policy.ICMPv6:
		p.ICMPType = echoRequest6
	}
	if fromNode && toNode {
		return false // on loopback
	}
	if !fromNode && !toNode {
		return j.evaluator.Evaluate(p).Verdict == policy.Deny
	}
	return j.deniedBehindAll(p)
}

// deniedBehindAll judges a flow of the node's own. By what device it goes conntrack does not know: one that any
// of them lets through stays.
func (j *judge) deniedBehindAll(p eval.Packet) bool {
	for _, device := range append(j.evaluator.Devices(), policy.AnyDevice) {
		p.Device = device
		if j.evaluator.Evaluate(p).Verdict != policy.Deny {
			return false
		}
	}
	return true
}
