// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"maps"
	"strings"

	"github.com/heliograph-dev/heliograph/policy"
)

// line is a rule of iptables without its chain.
type line struct {
	match   string
	comment string // what it counts for
	target  string
}

// chains by name.
type chains map[string][]line

func (c chains) add(name string, l ...line) { c[name] = append(c[name], l...) }

// rendered is what a policy becomes in one family.
type rendered struct {
	chains chains
	sets   map[string]content
}

// What lines do with the mark: see MarkMask.
const (
	setAllow  = "-j MARK --set-xmark 0x100000/0x100000"
	setPass   = "-j MARK --set-xmark 0x200000/0x200000"
	clearMark = "-j MARK --set-xmark 0x0/0x300000"
	undecided = "-m mark --mark 0x0/0x300000"
	decided   = "-m mark ! --mark 0x0/0x300000"
	allowed   = "-m mark --mark 0x100000/0x100000"
	notPassed = "-m mark --mark 0x0/0x200000"
	byNode    = "-m mark --mark 0x200000/0x200000"
)

// logs sends packets to NFLOG, as often as a log can bear.
func logs(a policy.Action, cause string) line {
	const limit = "-m limit --limit 10/sec --limit-burst 20"
	return line{match: limit, target: fmt.Sprintf("-j NFLOG --nflog-prefix %s --nflog-group %d", policy.LogPrefix(a, cause), policy.LogGroup)}
}

// renderPolicy translates a policy. Its chains end undecided, or with a bit of the mark. A direction without
// rules has none: it would say nothing.
func renderPolicy(p *policy.Policy, f policy.Family, refs map[policy.SetID]setRef) rendered {
	out := rendered{chains{}, map[string]content{}}
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		name := policyChain(p.ID, d)
		if len(p.Rules(d)) == 0 {
			continue
		}
		if p.Audit {
			out.chains.add(name, line{target: "-j " + auditChain(p.ID, d)}, line{target: clearMark})
			name = auditChain(p.ID, d)
		}
		out.chains.add(name) // it is there, even if no rule can match
		for _, r := range p.Rules(d) {
			m := matcher{refs, f, r}.translate()
			if m.never {
				continue
			}
			maps.Copy(out.sets, m.sets)
			out.chains.rule(name, r, m, p.Audit)
		}
	}
	return out
}

// stub is what a policy becomes that the kernel refuses: it drops.
func stub(id policy.PolicyID) rendered {
	out := rendered{chains: chains{}}
	if id == policy.FailsafeID() { // closed, nobody could come and see
		for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
			out.chains.add(policyChain(id, d), line{target: "-g " + chainAllow})
		}
		return out
	}
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		out.chains.add(policyChain(id, d), logs(policy.Deny, id.String()), line{target: "-j DROP"})
	}
	return out
}

// rule adds a rule to a policy's chain: as lines of it that go on to what the action does, or, if the
// conditions are too many for that, as a jump to chains of its own. A packet meets at most one line
// that has the rule's comment.
func (c chains) rule(chain string, r policy.Rule, m match, audit bool) {
	all := strings.Join(m.all, " ")
	final := c.action(r, audit)
	switch {
	case len(m.not) > 0 || len(m.any) > 1 || len(m.any) == 1 && r.Action == policy.Log:
		c.steps(chain, all, r, m, final)
		if r.Action != policy.Log && (audit || r.Action != policy.Deny) { // what comes back, and is decided
			c.add(chain, line{match: decided, target: "-j RETURN"})
		}
	case len(m.any) == 1:
		for _, one := range m.any[0] {
			c.add(chain, line{strings.TrimSpace(all + " " + one), comment(r.ID), "-g " + final})
		}
	case r.Action == policy.Log:
		c.add(chain, line{all, comment(r.ID), "-j " + final})
	default:
		c.add(chain, line{all, comment(r.ID), "-g " + final})
	}
}

// action returns the chain that does what a rule says. A rule that only audits ends its policy like one
// that passes; the policy's chain forgets it.
func (c chains) action(r policy.Rule, audit bool) string {
	switch {
	case r.Action == policy.Log:
		c.add(logChain(r.ID), logs(policy.Log, r.ID.String()))
		return logChain(r.ID)
	case audit || r.Action == policy.Pass:
		return chainPass
	case r.Action == policy.Allow:
		return chainAllow
	}
	c.add(denyChain(r.ID), logs(policy.Deny, r.ID.String()), line{target: "-j DROP"})
	return denyChain(r.ID)
}

// steps adds chains that a packet walks while it fulfils the conditions. Leaving any of them leads back
// to where the first was jumped to from.
func (c chains) steps(chain, all string, r policy.Rule, m match, final string) {
	c.add(chain, line{match: all, target: "-j " + ruleChain(r.ID, 0)})
	for _, n := range m.not {
		c.add(ruleChain(r.ID, 0), line{match: n, target: "-j RETURN"})
	}
	for step, list := range m.any {
		for _, one := range list {
			l := line{match: one, target: "-g " + ruleChain(r.ID, step+1)}
			if step == len(m.any)-1 {
				l = line{one, comment(r.ID), "-g " + final}
			}
			c.add(ruleChain(r.ID, step), l)
		}
	}
	if len(m.any) == 0 {
		c.add(ruleChain(r.ID, 0), line{"", comment(r.ID), "-g " + final})
	}
}
