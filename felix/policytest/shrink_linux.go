// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/heliograph-dev/heliograph/policy"
)

// shrink looks for a smaller state that treats a packet wrongly. It returns false, and the state as it
// is, if a renderer that starts with the state is right.
func (c *check) shrink(p Packet) (*policy.State, bool) {
	if !c.fails(c.have, p) {
		return c.have, false
	}
	if c.options.NoShrink {
		return c.have, true
	}
	const longest = 10 * time.Second
	small, deadline := c.have, time.Now().Add(longest)
	for smaller := true; smaller; {
		smaller = false
		for _, candidate := range candidates(small) {
			if time.Now().After(deadline) {
				return small, true
			}
			if c.fails(candidate, p) {
				small, smaller = candidate, true
				break
			}
		}
	}
	return small, true
}

// fails tells whether a packet meets a wrong fate with a renderer that is told only this state.
func (c *check) fails(s *policy.State, p Packet) bool {
	r := c.open(c.t)
	r.Update(s.Delta())
	if err := r.Apply(context.Background()); err != nil {
		return false
	}
	j := newJudge(s, c.dice.pods)
	if _, _, doubtful := j.verdict(p); doubtful {
		return false
	}
	return len(c.exchange(j, []Packet{p}, false)) > 0
}

func clone(s *policy.State) *policy.State {
	return &policy.State{Sets: maps.Clone(s.Sets), Policies: maps.Clone(s.Policies), Endpoints: maps.Clone(s.Endpoints)}
}

// candidates are states with one thing less.
func candidates(s *policy.State) []*policy.State {
	var out []*policy.State
	try := func(change func(*policy.State)) {
		n := clone(s)
		change(n)
		out = append(out, n)
	}
	for id, e := range s.Endpoints {
		for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
			for i := range e.Chain(d).Tiers {
				try(func(n *policy.State) { n.Endpoints[id] = withoutTier(e, d, i) })
			}
		}
	}
	for id, p := range s.Policies {
		for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
			for i := range p.Rules(d) {
				try(func(n *policy.State) {
					n.Policies[id] = withRules(p, d, slices.Delete(slices.Clone(p.Rules(d)), i, i+1))
				})
				for _, m := range simpler(p.Rules(d)[i].Match) {
					rules := slices.Clone(p.Rules(d))
					rules[i].Match = m
					try(func(n *policy.State) { n.Policies[id] = withRules(p, d, rules) })
				}
			}
		}
	}
	for id, set := range s.Sets {
		for m := range set.Members {
			try(func(n *policy.State) {
				fewer := &policy.Set{Kind: set.Kind, Members: maps.Clone(set.Members)}
				delete(fewer.Members, m)
				n.Sets[id] = fewer
			})
		}
	}
	return out
}

func withoutTier(e *policy.Endpoint, d policy.Direction, i int) *policy.Endpoint {
	n := *e
	chain := &n.Ingress
	if d == policy.Egress {
		chain = &n.Egress
	}
	chain.Tiers = slices.Delete(slices.Clone(chain.Tiers), i, i+1)
	return &n
}

func withRules(p *policy.Policy, d policy.Direction, rules []policy.Rule) *policy.Policy {
	n := *p
	if d == policy.Egress {
		n.Egress = rules
	} else {
		n.Ingress = rules
	}
	return &n
}

// simpler returns matches with one condition less.
func simpler(m policy.Match) []policy.Match {
	var out []policy.Match
	for _, change := range []func(*policy.Match){
		func(m *policy.Match) { m.Family = policy.AnyFamily },
		func(m *policy.Match) { m.Source.Within = nil },
		func(m *policy.Match) { m.Source.Outside = policy.Addresses{} },
		func(m *policy.Match) { m.Destination.Within = nil },
		func(m *policy.Match) { m.Destination.Outside = policy.Addresses{} },
		func(m *policy.Match) { m.Transport = nil },
		func(m *policy.Match) { m.NotTransport = nil },
		func(m *policy.Match) { m.Transport = m.Transport[min(1, len(m.Transport)):] },
		func(m *policy.Match) { m.NotTransport = m.NotTransport[min(1, len(m.NotTransport)):] },
	} {
		n := m
		change(&n)
		if !n.Equal(m) {
			out = append(out, n)
		}
	}
	return out
}
