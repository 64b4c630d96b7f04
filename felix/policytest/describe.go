// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/eval"
)

// Describe prints a state, a line for each thing in it.
func Describe(s *policy.State) string {
	var b strings.Builder
	for _, id := range slices.SortedFunc(maps.Keys(s.Endpoints), policy.EndpointID.Compare) {
		e := s.Endpoints[id]
		fmt.Fprintf(&b, "endpoint %s %s %s unknown=%v\n", id, e.Device, e.IPs, e.Unknown)
		for _, d := range []policy.Direction{policy.Egress, policy.Ingress} {
			fmt.Fprintf(&b, "  %s: %+v\n", d, e.Chain(d))
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.Policies), policy.PolicyID.Compare) {
		p := s.Policies[id]
		fmt.Fprintf(&b, "%s audit=%v\n", id, p.Audit)
		for _, r := range slices.Concat(p.Egress, p.Ingress) {
			fmt.Fprintf(&b, "  %s[%d] %s %+v\n", r.ID.Direction, r.ID.Index, r.Action, r.Match)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(s.Sets)) {
		members := slices.SortedFunc(maps.Keys(s.Sets[id].Members), policy.Member.Compare)
		fmt.Fprintf(&b, "%s %s: %s\n", s.Sets[id].Kind, id, members)
	}
	return b.String()
}

func describeReport(r eval.Report) string {
	text := "policy/eval: " + r.Verdict.String()
	for _, t := range []*eval.Trace{r.Egress, r.Ingress} {
		if t == nil {
			continue
		}
		text += fmt.Sprintf("\n %s %s: %s: %s", t.Endpoint, t.Direction, t.Verdict, t.Reason)
		for _, tier := range t.Tiers {
			for _, p := range tier.Policies {
				text += fmt.Sprintf("\n  %s: %s audit=%v missing=%v: %s", tier.Tier, p.ID, p.Audit, p.Missing, p.Verdict)
				for _, rule := range p.Rules {
					text += fmt.Sprintf("\n   %s[%d] %s matched=%v %s", rule.ID.Direction, rule.ID.Index, rule.Action, rule.Matched, difference(rule))
				}
			}
		}
	}
	return text
}

func difference(r eval.RuleTrace) string {
	if r.Matched {
		return ""
	}
	return r.Differs.String()
}
