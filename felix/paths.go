// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"net/netip"
	"slices"
	"time"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/probe"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

// prober is felix/probe as the loop uses it.
type prober interface {
	SetConfig(c probe.Config)
	SetTargets(targets []path.Target)
	Reports() map[path.Key]path.Report
	Changed() <-chan struct{}
}

// paths is what the loop keeps of the ways to the other nodes: what was decided, and who finds out more.
type paths struct {
	prober  prober
	machine *path.Machine
	clock   pathClock
	next    time.Time // when time alone may change a decision; zero: never
	lost    bool      // that too few of the other nodes answer was told
	alone   time.Time // since when too few of the other nodes answer; zero: enough do
}

// quorumPatience is how long too few may answer before that is said: a new process has asked nobody yet,
// and a moment is no outage.
const quorumPatience = 15 * time.Second

func newPaths(node string, p prober) paths {
	return paths{prober: p, machine: path.NewMachine(node), clock: pathClock{}}
}

// decide takes the decisions of a draft.
func (p *paths) decide(now time.Time, d *calc.Draft) calc.RemoteState {
	decisions := p.machine.Decide(now, d.Inputs())
	p.next = time.Time{}
	for _, d := range decisions {
		p.wake(d.Next)
	}
	return d.Finish(decisions)
}

// wake asks for a run at a time, unless there is an earlier one; zero asks for none.
func (p *paths) wake(at time.Time) {
	if !at.IsZero() && (p.next.IsZero() || at.Before(p.next)) {
		p.next = at
	}
}

// quorum counts who answers, and for how long too few do.
func (p *paths) quorum(now time.Time, v snapshot.View, all []PathReport) Quorum {
	q := countAnswers(v, all)
	switch {
	case q.Proven():
		p.alone = time.Time{}
		return q
	case p.alone.IsZero():
		p.alone = now
	}
	if until := p.alone.Add(quorumPatience); now.Before(until) {
		q.Waiting = true
		p.wake(until)
	}
	return q
}

// due says whether a decision may be another by now.
func (p *paths) due(now time.Time) bool { return !p.next.IsZero() && !now.Before(p.next) }

// probe tells the prober what there is to find out. It comes after the kernel has the routes for it.
func (p *paths) probe(v snapshot.View, s calc.RemoteState) {
	c := probe.Config{
		Key:  v.Secrets[v1alpha1.ProbeSecret][v1alpha1.ProbeSecretKey],
		Port: v.Felix.ProbePort, Capabilities: v.Capabilities.Can,
	}
	var locals, peers []netip.Addr
	for _, t := range s.Targets {
		locals, peers = append(locals, t.Local), append(peers, t.Remote)
	}
	slices.SortFunc(locals, netip.Addr.Compare)
	slices.SortFunc(peers, netip.Addr.Compare)
	c.Locals, c.Peers = slices.Compact(locals), slices.Compact(peers)
	p.prober.SetConfig(c)
	p.prober.SetTargets(s.Targets)
}

// countAnswers counts the other nodes that should answer, and those that do. Nodes that the API itself calls
// dead do not count.
func countAnswers(v snapshot.View, all []PathReport) Quorum {
	answering, there := map[string]bool{}, map[string]bool{}
	for _, p := range all {
		there[p.Node] = true
		for _, e := range p.Decision.Report.Methods {
			answering[p.Node] = answering[p.Node] || e.Verdict == path.Answers || e.Verdict == path.Doubtful
		}
	}
	var q Quorum
	for _, n := range v.Nodes {
		if !n.Ready || !there[n.Name] {
			continue
		}
		q.Others++
		if answering[n.Name] {
			q.Answering++
		}
	}
	return q
}
