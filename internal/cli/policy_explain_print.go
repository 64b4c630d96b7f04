// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"

	"github.com/heliograph-dev/heliograph/policy/eval"
	"github.com/heliograph-dev/heliograph/policy/explain"
)

const (
	// someRules and somePolicies are how many that do not match are shown, but for the wide form.
	someRules    = 5
	somePolicies = 20
)

// answerPrinter prints an answer for people.
type answerPrinter struct {
	wide bool
	out  bytes.Buffer
}

func (p *answerPrinter) line(depth int, format string, args ...any) {
	_, _ = fmt.Fprintf(&p.out, strings.Repeat("  ", depth)+format+"\n", args...)
}

func (p *answerPrinter) print(a policyAnswer) {
	p.line(0, "%s → %s%s", endText(a.From), a.To, portText(a.Protocol, a.Port))
	p.dryRun(a.DryRun)
	p.service(a.Service)
	for _, f := range a.Flows {
		p.line(0, "")
		p.flow(a.From, f)
	}
	if a.BackendsLeftOut > 0 {
		p.line(0, "\n… and %d more endpoints of the service: see --max-backends", a.BackendsLeftOut)
	}
	p.line(0, "\nverdict: %s", verdictText(a.Verdict))
	for _, n := range a.Notes {
		p.line(0, "note: %s", n)
	}
}

func (p *answerPrinter) dryRun(d *dryRun) {
	if d == nil {
		return
	}
	if len(d.Put) > 0 {
		p.line(0, "dry run with %s", strings.Join(d.Put, ", "))
	}
	if len(d.Deleted) > 0 {
		p.line(0, "dry run without %s", strings.Join(d.Deleted, ", "))
	}
}

func (p *answerPrinter) service(t *explain.Translation) {
	if t == nil {
		return
	}
	port := fmt.Sprint(t.Port)
	if t.PortName != "" {
		port += " (" + t.PortName + ")"
	}
	at := joinAddrs(t.IPs)
	if t.Headless {
		at = "headless"
	}
	p.line(0, "service %s (%s), port %s: %d ready endpoints, %d not ready", t.Service, at, port, t.Ready, t.NotReady)
}

func (p *answerPrinter) flow(from explain.End, f explain.Flow) {
	port := ""
	if f.Port > 0 {
		port = fmt.Sprint(f.Port)
	}
	families := ""
	if len(f.Families) > 0 {
		families = ", " + strings.Join(f.Families, " and ")
	}
	p.line(0, "to %s%s%s: %s", endText(f.To), portText(f.Protocol, port), families, verdictText(f.Verdict))
	p.side("egress", from, f.Egress)
	p.side("ingress", f.To, f.Ingress)
}

func (p *answerPrinter) side(direction string, e explain.End, s *explain.Side) {
	if s == nil {
		p.line(1, "%s: nobody is asked, since %s is no pod with an address of its own", direction, e)
		return
	}
	p.line(1, "%s of %s%s: %s, %s", direction, s.Endpoint, onNode(s.Node), s.Verdict, why(s))
	for _, t := range s.Tiers {
		p.tier(t)
	}
	for _, problem := range s.Problems {
		p.line(2, "problem: %s", problem)
	}
}

// why is the reason for a verdict. That a rule matches the rule says itself.
func why(s *explain.Side) string {
	switch {
	case s.Reason == eval.ByRule:
		return "by " + s.Rule.String()
	case s.Reason == eval.ByTier:
		return "by tier " + s.Tier + ": its policies apply, and no rule of them matches"
	case s.Reason == eval.ByChain && len(s.Tiers) == 0:
		return "since no policy applies to it in this direction"
	}
	return "since " + s.Reason.String()
}

func (p *answerPrinter) tier(t eval.TierTrace) {
	p.line(2, "tier %s: %s", t.Tier, t.Verdict)
	shown, left := 0, 0
	for _, pol := range t.Policies {
		silent := pol.Verdict == 0 && !pol.Missing
		if silent && !p.wide && shown >= somePolicies {
			left++
			continue
		}
		shown++
		p.policy(pol)
	}
	if left > 0 {
		p.line(3, "… and %d more policies of which no rule matches: see -o wide", left)
	}
}

func (p *answerPrinter) policy(t eval.PolicyTrace) {
	text := t.ID.String()
	switch {
	case t.Missing:
		text += ": it is not there, which closes the pod"
	case len(t.Rules) == 0:
		text += ": it has no rule in this direction"
	}
	if t.Audit {
		text += " (audit: nothing follows from what it says)"
	}
	p.line(3, "%s", text)
	shown, left := 0, 0
	for _, r := range t.Rules {
		if !r.Matched && !p.wide && shown >= someRules {
			left++
			continue
		}
		shown++
		p.rule(r)
	}
	if left > 0 {
		p.line(4, "… and %d more rules that do not match: see -o wide", left)
	}
}

func (p *answerPrinter) rule(r eval.RuleTrace) {
	what := "matches"
	if !r.Matched {
		what = r.Differs.String()
	}
	p.line(4, "%s[%d] %s: %s", r.ID.Direction, r.ID.Index, r.Action, what)
}

func endText(e explain.End) string {
	text := e.String()
	if len(e.IPs) > 0 && (e.Pod != nil || e.Node != "") {
		text += " (" + joinAddrs(e.IPs) + ")"
	}
	if e.Pod != nil {
		text += onNode(e.Node)
	}
	return text
}

func onNode(node string) string {
	if node == "" {
		return ""
	}
	return " on " + node
}

func joinAddrs(ips []netip.Addr) string {
	texts := make([]string, 0, len(ips))
	for _, ip := range ips {
		texts = append(texts, ip.String())
	}
	return strings.Join(texts, ", ")
}

func portText(protocol, port string) string {
	if port == "" {
		return ", " + protocol
	}
	return ", " + protocol + " port " + port
}

func verdictText(v explain.Verdict) string {
	switch v {
	case explain.Mixed:
		return "mixed: some is allowed, some denied"
	case explain.Unknown:
		return "unknown: there is no packet to ask for"
	}
	return string(v)
}
