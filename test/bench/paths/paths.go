// SPDX-License-Identifier: Apache-2.0

// Package paths measures what it costs one agent of a large cluster that the paths to a whole rack
// change: the decision, which computes everything anew, and the batch of messages to the kernel.
package paths

import (
	"context"
	"fmt"
	"time"

	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
	"github.com/heliograph-dev/heliograph/test/bench/cluster"
	"github.com/heliograph-dev/heliograph/test/bench/table"
)

const (
	rounds = 5
	pokes  = 10 // in a row, of which the mean is taken: the garbage collector's part does not come with each
	// nodes is the size of the cluster of which most is measured.
	nodes = 1000
	// affected is how many paths change: a rack's nodes, both families.
	affected = 2 * cluster.RackSize
	// budget is what a run may cost, since the agent computes everything at each poke.
	budget = 20 * time.Millisecond
)

// allMethods is a kernel that can do everything.
const allMethods = path.CanIPIP | path.CanVXLAN

// Measure runs all of it, in about a minute. It must run in a network namespace of its own.
func Measure(ctx context.Context) ([]table.Table, error) {
	decisions, err := decide()
	if err != nil {
		return nil, err
	}
	batch, err := program(ctx)
	return append(decisions, batch), err
}

// story is what was measured in one cluster, each a median.
type story struct {
	poke, death, back cost // nothing changed; routes withdrawn; all runs of the return
	runs              int  // of the return
	fall, rise        change
}

// decide compares the runs of clusters of several sizes.
func decide() ([]table.Table, error) {
	sizes := []int{100, nodes, 5000}
	stories := map[int]story{}
	for _, n := range sizes {
		s, err := tell(n)
		if err != nil {
			return nil, fmt.Errorf("%d nodes: %w", n, err)
		}
		stories[n] = s
	}
	fall := table.Table{
		Title: fmt.Sprintf("A rack of %d nodes loses its native routes: the decision", cluster.RackSize),
		Note: fmt.Sprintf("One agent's snapshot.Build, Prepare, Decide and Finish, from scratch as at each poke: CPU, garbage collection included (and time). %d blocks a node and family, two leaves a rack, kernels with IPIP and VXLAN. Medians of %d.",
			cluster.BlocksPerFamily, rounds),
	}
	for _, n := range sizes {
		s := stories[n]
		fall.Rows = append(fall.Rows, table.Row{
			What: fmt.Sprintf("%d nodes: routes withdrawn", n), Ours: show(s.death), Beside: "nothing changed", Theirs: show(s.poke),
			Ratio: s.death.cpu.Seconds() / s.poke.cpu.Seconds(),
		})
	}
	s := stories[nodes]
	fall.Rows = append(fall.Rows,
		table.Row{
			What: fmt.Sprintf("%d nodes: a run that changes nothing", nodes), Ours: show(s.poke), Beside: "budget", Theirs: table.Millis(budget),
			Ratio: s.poke.cpu.Seconds() / budget.Seconds(), Target: table.AtMost(1),
		},
		growth("5000 nodes: CPU per node", stories[5000], 5000, stories[nodes], nodes),
		growth(fmt.Sprintf("%d nodes: CPU per node", nodes), stories[nodes], nodes, stories[100], 100),
	)
	fall.Rows = append(fall.Rows, counts(s.fall)...)
	rise := table.Table{
		Title: fmt.Sprintf("The rack's native routes return (%d nodes)", nodes),
		Note:  fmt.Sprintf("After the proof each path returns in its own moment of %s, so that a thousand nodes do not at once. All runs that this takes together, spaced as the agent's loop does.", path.Jitter),
		Rows: append([]table.Row{{
			What: fmt.Sprintf("CPU of all %d runs", s.runs), Ours: show(s.back), Beside: "that time of one core", Theirs: table.Millis(path.Jitter),
			Ratio: s.back.cpu.Seconds() / path.Jitter.Seconds(), Target: table.AtMost(0.5),
		}}, counts(s.rise)...),
	}
	return []table.Table{fall, rise}, nil
}

// growth compares runs that are means of several: a single one of a small cluster makes too little garbage for
// the collector to begin.
func growth(what string, large story, n int, small story, m int) table.Row {
	a, b := large.poke.cpu/time.Duration(n), small.poke.cpu/time.Duration(m)
	return table.Row{
		What: what, Ours: a.String(), Beside: fmt.Sprintf("%d nodes", m), Theirs: b.String(),
		Ratio: a.Seconds() / b.Seconds(), Target: table.AtMost(1.5),
	}
}

// counts are the rows of what is written.
func counts(c change) []table.Row {
	routes := affected * cluster.BlocksPerFamily
	return []table.Row{
		{
			What: "nexthop objects replaced", Ours: fmt.Sprint(c.replaced), Beside: "paths that change", Theirs: fmt.Sprint(affected),
			Ratio: float64(c.replaced) / affected, Target: table.AtMost(1),
		},
		{
			What: "messages for traffic, routes among them: " + fmt.Sprint(c.routes), Ours: fmt.Sprint(c.replaced + c.made + c.routes),
			Beside: "routes to their blocks", Theirs: fmt.Sprint(routes),
			Ratio: float64(c.replaced+c.made+c.routes) / float64(routes), Target: table.AtMost(1. / cluster.BlocksPerFamily),
		},
		{
			What: "routes of probes", Ours: fmt.Sprint(c.probeRoutes), Beside: "paths that change", Theirs: fmt.Sprint(affected),
			Ratio: float64(c.probeRoutes) / affected, Target: table.AtMost(1),
		},
	}
}

// tell lets the rack's routes go, and, in the cluster of which most is measured, return, rounds times.
func tell(n int) (story, error) {
	var s story
	var poke, death, back []cost
	for range rounds {
		a := newAgent(n, allMethods)
		well, ill := a.facts(a.now), a.facts(a.now, lostRack)
		poke = append(poke, a.idle(well))
		a.now = a.now.Add(time.Second)
		c, fall := a.timed(ill)
		if err := fall.check(); err != nil {
			return s, fmt.Errorf("fall: %w", err)
		}
		death, s.fall = append(death, c), fall
		if n != nodes {
			continue
		}
		before := a.state
		a.now = a.now.Add(time.Minute)
		well = a.facts(a.now)
		a.run(well)
		c, s.runs = a.recover(well)
		back, s.rise = append(back, c), compare(before, a.state)
		if err := s.rise.check(); err != nil {
			return s, fmt.Errorf("return: %w", err)
		}
	}
	s.poke, s.death, s.back = median(poke), median(death), median(back)
	return s, nil
}

// check says whether the change is what it must be: a nexthop object for each path, and no route of traffic.
func (c change) check() error {
	if c.replaced != affected || c.made != 0 || c.routes != 0 {
		return fmt.Errorf("changes are %+v, want %d replaced nexthop objects alone", c, affected)
	}
	return nil
}

// idle is the mean of some runs that change nothing.
func (a *agent) idle(local snapshot.Local) cost {
	c := measure(func() {
		for range pokes {
			a.run(local)
		}
	})
	return cost{c.wall / pokes, c.cpu / pokes}
}

func median(all []cost) cost {
	var wall, cpu []time.Duration
	for _, c := range all {
		wall, cpu = append(wall, c.wall), append(cpu, c.cpu)
	}
	return cost{table.Median(wall), table.Median(cpu)}
}

func show(c cost) string { return fmt.Sprintf("%s (%s)", table.Millis(c.cpu), table.Millis(c.wall)) }
