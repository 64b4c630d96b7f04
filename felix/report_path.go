// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"fmt"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

// status translates a path for the API; all of it, or what an operator would look at.
func (p PathReport) status(whole bool) v1alpha1.PathStatus {
	s := v1alpha1.PathStatus{
		Node: p.Node, Family: p.Family.String(), Method: p.Method, NextHops: texts(p.NextHops),
		Reason: p.Reason, Since: timeOf(p.Since), Changes: p.Changes, Unanswered: p.unanswered(),
	}
	if !whole && !s.Unanswered && p.blocked() == path.NotBlocked {
		return s
	}
	for m := range path.Methods {
		if p.Allowed.Has(m) {
			s.Methods = append(s.Methods, p.methodStatus(m))
		}
	}
	return s
}

// best is the best method that the pool allows; Methods if there is none.
func (p PathReport) best() path.Method {
	for m := range path.Methods {
		if p.Allowed.Has(m) {
			return m
		}
	}
	return path.Methods
}

// blocked is what keeps the path from the best method that the pool allows.
func (p PathReport) blocked() path.Block {
	best := p.best()
	if best == path.Methods || p.Method == v1alpha1.PathMethod(best.String()) {
		return path.NotBlocked
	}
	return p.Decision.Block(best)
}

// unanswered says that probes are sent and nobody answers any of them.
func (p PathReport) unanswered() bool {
	return p.Decision.Report.Silent && p.Method != v1alpha1.PathNone
}

func (p PathReport) methodStatus(m path.Method) v1alpha1.PathMethodStatus {
	state, e := p.Decision.Methods[m], p.Decision.Report.Methods[m]
	s := v1alpha1.PathMethodStatus{
		Method: v1alpha1.PathMethod(m.String()),
		State:  map[path.Phase]string{path.Down: "Down", path.Proving: "Proving", path.Up: "Up"}[state.Phase],
		Since:  timeOf(state.Since), Reason: p.Decision.Why(m),
		Probes: map[path.Verdict]string{
			path.Unknown: "Unknown", path.Answers: "Answers", path.Doubtful: "Doubtful", path.Lost: "Lost",
		}[e.Verdict],
		KernelOnly: e.Kernel, RTTMicroseconds: e.RTT.Microseconds(),
		MTU:      int32(e.MTU),          //nolint:gosec // at most 65535
		Failures: int32(state.Failures), //nolint:gosec // few
	}
	if e.Sent > 0 {
		s.Loss = fmt.Sprintf("%d/%d", e.Lost, e.Sent)
	}
	return s
}

// steady keeps of the round-trip times those that were written before, as long as the new ones do not
// differ much: they move all the time, and nobody wants a write for each.
func steady(now, before []v1alpha1.PathStatus) {
	type key struct {
		node, family string
		method       v1alpha1.PathMethod
	}
	written := map[key]int64{}
	for _, p := range before {
		for _, m := range p.Methods {
			written[key{p.Node, p.Family, m.Method}] = m.RTTMicroseconds
		}
	}
	for _, p := range now {
		for i := range p.Methods {
			rtt := &p.Methods[i].RTTMicroseconds
			if old := written[key{p.Node, p.Family, p.Methods[i].Method}]; *rtt < 2*old && old < 2**rtt {
				*rtt = old
			}
		}
	}
}

// capabilities lists what the kernel can do and what not, always in the same order.
func capabilities(c snapshot.Capabilities) []v1alpha1.Capability {
	var out []v1alpha1.Capability
	for _, known := range []struct {
		bit  path.Capabilities
		name string
	}{{path.CanIPIP, "IPIP"}, {path.CanVXLAN, "VXLAN"}} {
		out = append(out, v1alpha1.Capability{Name: known.name, Supported: c.Can&known.bit != 0, Reason: c.Why[known.bit]})
	}
	return out
}
