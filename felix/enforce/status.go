// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"maps"
	"slices"

	"github.com/heliograph-dev/heliograph/felix/inforce"
	"github.com/heliograph-dev/heliograph/policy"
)

// Status is what a node's policy has come to.
type Status struct {
	Dataplane string
	// Endpoints are the pods of this node that policy knows, Closed those of them that may not talk to
	// anybody, since the API has not shown them.
	Endpoints, Closed int
	// Policies that select pods of this node, and the sets that they refer to.
	Policies, Sets int
	// FromDisk says that the API server has not answered since the agent started.
	FromDisk bool
	// InForce says that the kernel obeys all that is known.
	InForce bool
	// Problems, for people: what is not in force, and what is refused or not obeyed.
	Problems []string
}

// maxProblems that a status lists of one sort.
const maxProblems = 16

// Status returns the present status.
func (e *Enforcer) Status() Status {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.status
}

// refreshStatus says whether the status changed. The lock is held.
func (e *Enforcer) refreshStatus() bool {
	s := Status{
		Endpoints: len(e.state.Endpoints), Policies: len(e.state.Policies), Sets: len(e.state.Sets),
		InForce: e.begun && e.lastErr == nil, FromDisk: e.fromDisk && !e.opts.Feed.Synced(), Closed: e.force.closed, Problems: e.problems(),
	}
	if e.use != nil {
		s.Dataplane = e.use.name
	}
	changed := s.Dataplane != e.status.Dataplane || s.Endpoints != e.status.Endpoints || s.Closed != e.status.Closed ||
		s.Policies != e.status.Policies || s.Sets != e.status.Sets || s.FromDisk != e.status.FromDisk || s.InForce != e.status.InForce ||
		!slices.Equal(s.Problems, e.status.Problems)
	e.status = s
	return changed
}

func (e *Enforcer) problems() []string {
	var out []string
	if e.lastErr != nil {
		out = append(out, e.lastErr.Error())
	}
	refused := e.refused()
	for _, id := range slices.SortedFunc(maps.Keys(refused), policy.PolicyID.Compare) {
		if len(out) > maxProblems {
			break
		}
		what := "its pods are closed"
		if id == policy.FailsafeID() {
			what = "the node is open"
		}
		out = append(out, id.String()+": the kernel refuses it, so "+what+": "+refused[id].Error())
	}
	for _, p := range e.mistakes {
		if e.state.Policies[p.Policy] != nil && len(out) <= 2*maxProblems {
			out = append(out, p.String())
		}
	}
	return out
}

// Policies lists the policies that the agent knows, with the counters of their rules.
func (e *Enforcer) Policies(ctx context.Context) (out []inforce.Policy, err error) {
	asked := e.ask(ctx, func() {
		var counts map[policy.RuleID]policy.Count
		if counts, err = e.use.Counters(ctx); err == nil {
			out = e.list(counts)
		}
	})
	if asked != nil {
		return nil, asked
	}
	return out, err
}

func (e *Enforcer) list(counts map[policy.RuleID]policy.Count) []inforce.Policy {
	rules := map[policy.PolicyID][]inforce.RuleCount{}
	for id, c := range counts {
		rules[id.Policy] = append(rules[id.Policy], inforce.RuleCount{Rule: id, Count: c})
	}
	refused := e.refused()
	var out []inforce.Policy
	for _, id := range slices.SortedFunc(maps.Keys(e.book.pages), policy.PolicyID.Compare) {
		p := e.book.pages[id]
		line := inforce.Policy{
			Policy: id, Generation: p.generation, Here: e.state.Policies[id] != nil, Heard: p.heard, InForce: p.inForce, Rules: rules[id],
		}
		if err := refused[id]; err != nil {
			line.Refused = err.Error()
		}
		slices.SortFunc(line.Rules, func(a, b inforce.RuleCount) int { return compareRules(a.Rule, b.Rule) })
		out = append(out, line)
	}
	return out
}

func compareRules(a, b policy.RuleID) int {
	if a.Direction != b.Direction {
		return int(a.Direction) - int(b.Direction)
	}
	return a.Index - b.Index
}

// ask has the loop do something between two runs.
func (e *Enforcer) ask(ctx context.Context, what func()) error {
	done := make(chan struct{})
	select {
	case e.asks <- func() { what(); close(done) }:
	case <-ctx.Done():
		return ctx.Err()
	}
	<-done
	return nil
}
