// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"

	"github.com/heliograph-dev/heliograph/policy"
)

// rendering is what a unit needs in the kernel.
type rendering struct {
	chains    []Chain // the unit's own first
	nets      []netList
	constants []Content
	sets      []policy.SetID // that it refers to, whether they exist or not
	uses      []unitKey      // the chains that it jumps to
	isolates  bool           // of an endpoint's: something else than "accept" can come out
}

// netList is the networks of one peer of a rule, of one family.
type netList struct {
	Set
	family policy.Family
	nets   []policy.Net
	owner  policy.PolicyID
}

func (r *rendering) note(m *policy.Match) {
	p := policy.Policy{Ingress: []policy.Rule{{Match: *m}}}
	p.Sets(func(id policy.SetID) bool {
		r.sets = append(r.sets, id)
		return true
	})
}

// netSet names a set after its place, not after what is in it, so that it can change by elements.
func (r *rendering) netSet(rule policy.RuleID, place string, f policy.Family, nets []policy.Net) string {
	s := Set{Name: setName("r", rule.String()+" "+place, f), Key: addressKey(f), Interval: true}
	r.nets = append(r.nets, netList{s, f, nets, rule.Policy})
	return s.Name
}

// constant names a set after what is in it: all who want the same share it.
func (r *rendering) constant(k Key, interval bool, elements []Element) string {
	var text []byte
	for _, e := range elements {
		text = append(append(text, e.Key...), e.Last...)
	}
	name := map[Key]string{Port: "ports-", ProtocolNumber: "protocols-"}[k] + digest(string(text)+strconv.FormatBool(interval))
	r.constants = append(r.constants, Content{Set{Name: name, Key: k, Interval: interval}, values(elements)})
	return name
}

// digest stands for a name where that would be too long. It is longer than policy.Hash, for who could make
// a policy of his own have the digest of another's would have its chain.
func digest(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:10])
}

func setName(kind, what string, f policy.Family) string {
	return fmt.Sprintf("%s-%s-%d", kind, digest(what), f)
}

func addressKey(f policy.Family) Key {
	if f == policy.IPv4 {
		return Address4
	}
	return Address6
}

// book is what rendering asks of the state.
type book interface {
	resolver
	// lookup returns a policy, nil if there is none, and why the kernel refuses it.
	lookup(policy.PolicyID) (*policy.Policy, error)
}

// The names of chains say what they are: e- and i- are endpoints' chains, t- tiers in which a rule passes,
// p- policies, d- the end of a rule that denies, l- and m- rules that log by several alternatives.

// renderEndpoint renders a chain of endpoints: tiers in order, then the default.
func renderEndpoint(b book, name string, c policy.Chain, d policy.Direction) *rendering {
	r := &rendering{chains: []Chain{{Name: name}}, isolates: c.Default != policy.Allow}
	for _, tier := range c.Tiers {
		if tier.Name == policy.FailsafeTier {
			r.failsafes(b, tier, d)
			continue
		}
		s := survey(b, tier, d)
		if s.enforced || s.missing {
			r.isolates = true
		}
		if s.passes {
			r.jump(unitKey{kind: tierUnit, direction: d, text: tierText(tier)})
			continue
		}
		for _, id := range tier.Policies {
			if p, _ := b.lookup(id); p == nil {
				r.deny(policy.TierCause(tier.Name, d))
				return r
			}
			r.jump(policyKey(id, d))
		}
		if s.enforced && r.tierDefault(tier, d) {
			return r
		}
	}
	if c.Default == policy.Allow {
		r.add(Rule{Verdict: Verdict{Kind: Accept}})
	} else {
		r.deny(policy.ChainCause(d))
	}
	return r
}

// failsafes renders what comes first in the chain of a host. A kernel that does not take them leaves the host
// open: closed, nobody could come and see. Behind them stands what keeps a cut connection cut.
func (r *rendering) failsafes(b book, tier policy.Tier, d policy.Direction) {
	for _, id := range tier.Policies {
		if p, refused := b.lookup(id); p == nil || refused != nil {
			r.add(accept())
		}
		r.jump(policyKey(id, d))
	}
	r.add(drop("mid-stream", segment()...))
}

// renderTier renders the policies of a tier, of which one passes. It says so by returning, so the rules
// must be in the very chain that the endpoint's jumps to.
func renderTier(b book, name string, tier policy.Tier, d policy.Direction) (*rendering, error) {
	r := &rendering{chains: []Chain{{Name: name}}}
	for _, id := range tier.Policies {
		p, refused := b.lookup(id)
		switch {
		case p == nil:
			r.deny(policy.TierCause(tier.Name, d))
			return r, nil
		case p.Audit:
			r.jump(policyKey(id, d))
		case refused != nil:
			r.deny(refusedCause(id, d))
			return r, nil
		default:
			if err := r.policy(b, p, d); err != nil {
				return nil, err
			}
		}
	}
	r.tierDefault(tier, d)
	return r, nil
}

// renderPolicy renders the rules of a policy, one direction.
func renderPolicy(b book, name string, id policy.PolicyID, d policy.Direction) (*rendering, error) {
	r := &rendering{chains: []Chain{{Name: name}}}
	p, refused := b.lookup(id)
	switch {
	case p == nil: // its users deny by themselves
		return r, nil
	case refused == nil:
		return r, r.policy(b, p, d)
	case !p.Audit && id != policy.FailsafeID():
		r.deny(refusedCause(id, d))
	}
	return r, nil
}

// refusedCause is why a packet drops whose policy the kernel does not take.
func refusedCause(id policy.PolicyID, d policy.Direction) string {
	return "refused " + id.String() + " " + d.String()
}

// tierSurvey is what a tier's policies have in common.
type tierSurvey struct {
	enforced bool // one of them can decide, so the tier's default counts
	missing  bool // one of them is not there: the tier denies
	passes   bool // a rule of one leaves the tier
}

func survey(b book, tier policy.Tier, d policy.Direction) tierSurvey {
	var s tierSurvey
	for _, id := range tier.Policies {
		p, _ := b.lookup(id)
		switch {
		case p == nil:
			s.missing = true
		case !p.Audit:
			s.enforced = true
			s.passes = s.passes || passes(p, d)
		}
	}
	return s
}

// passes says whether a rule leaves the tier. Of a refused policy that stays true: which chain its tier is
// rendered to does not depend on the kernel.
func passes(p *policy.Policy, d policy.Direction) bool {
	rules := p.Rules(d)
	for i := range rules {
		if rules[i].Action == policy.Pass {
			return true
		}
	}
	return false
}

func (r *rendering) add(rule Rule) { r.chains[0].Rules = append(r.chains[0].Rules, rule) }

func (r *rendering) jump(k unitKey) {
	r.uses = append(r.uses, k)
	r.add(Rule{Verdict: Verdict{Jump, k.name()}})
}

// tierDefault says what a tier does whose policies stay silent, and whether that is the end.
func (r *rendering) tierDefault(tier policy.Tier, d policy.Direction) bool {
	cause := policy.TierCause(tier.Name, d)
	switch tier.Default {
	case policy.Pass:
		return false
	case policy.Allow:
		r.add(Rule{Comment: comment(cause), Count: true, Verdict: Verdict{Kind: Accept}})
	default:
		r.deny(cause)
	}
	return true
}

// deny ends the chain.
func (r *rendering) deny(cause string) {
	r.chains[0].Rules = append(r.chains[0].Rules, denial(cause, true)...)
}

// denial logs and drops. The log has a rule of its own: beyond its limit the kernel leaves the rule.
func denial(cause string, count bool) []Rule {
	return []Rule{
		{Log: policy.LogPrefix(policy.Deny, cause)},
		{Comment: comment(cause), Count: count, Verdict: Verdict{Kind: Drop}},
	}
}

// policy adds the rules of a policy to the unit's own chain.
func (r *rendering) policy(b book, p *policy.Policy, d policy.Direction) error {
	rules := p.Rules(d)
	for i := range rules {
		if err := r.rule(b, &rules[i], p.Audit); err != nil {
			return err
		}
	}
	return nil
}

func (r *rendering) rule(b book, rule *policy.Rule, audit bool) error {
	alternatives, err := r.conditions(rule, b)
	if err != nil {
		return err
	}
	if len(alternatives) == 0 {
		return nil // no packet can match
	}
	out := Rule{Comment: comment(rule.ID.String()), Count: true, Owner: rule.ID.Policy}
	switch {
	case rule.Action == policy.Log:
		r.log(out, rule.ID.String(), alternatives)
		return nil
	case audit, rule.Action == policy.Pass: // leaves the policy, leaves the tier
		out.Verdict = Verdict{Kind: Return}
	case rule.Action == policy.Allow:
		out.Verdict = Verdict{Kind: Accept}
	default:
		out.Verdict = Verdict{Goto, r.denyChain(rule)}
	}
	for _, when := range alternatives {
		out.When = when
		r.add(out)
	}
	return nil
}

// denyChain is where a rule that denies goes to: what it matches is asked once, for log and verdict.
func (r *rendering) denyChain(rule *policy.Rule) string {
	c := Chain{Name: "d-" + digest(rule.ID.String()), Rules: denial(rule.ID.String(), false)}
	for i := range c.Rules {
		c.Rules[i].Owner = rule.ID.Policy
	}
	r.chains = append(r.chains, c)
	return c.Name
}

// log adds a rule that goes on. Its alternatives may overlap, but it logs and counts once: so they stand
// in a chain which the first that holds leaves.
func (r *rendering) log(out Rule, cause string, alternatives [][]Condition) {
	out.Log = policy.LogPrefix(policy.Log, cause)
	if len(alternatives) == 1 {
		out.When = alternatives[0]
		r.add(out)
		return
	}
	hash := digest(cause)
	log, match := Chain{Name: "m-" + hash, Rules: []Rule{out}}, Chain{Name: "l-" + hash}
	for _, when := range alternatives {
		match.Rules = append(match.Rules, Rule{When: when, Verdict: Verdict{Goto, log.Name}, Owner: out.Owner})
	}
	r.chains = append(r.chains, log, match)
	r.add(Rule{Verdict: Verdict{Jump, match.Name}, Owner: out.Owner})
}

// longestComment is what nft can show.
const longestComment = 128

// comment shortens what would be too long, and stays unique.
func comment(s string) string {
	if len(s) <= longestComment {
		return s
	}
	hash := policy.Hash(s)
	return s[:longestComment-len(hash)-1] + "#" + hash
}
