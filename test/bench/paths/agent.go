// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
	"github.com/heliograph-dev/heliograph/test/bench/cluster"
)

const (
	device = "up0"
	// lostRack is the one whose native routes are withdrawn; the agent is in rack 0.
	lostRack = 1
	// spacing is the least time between two runs of the agent; it is twice what a run takes if that is more.
	spacing = 20 * time.Millisecond
)

// agent is the deciding part of one node's agent, with a clock of its own.
type agent struct {
	cluster *cluster.Cluster
	machine *path.Machine
	now     time.Time
	state   calc.RemoteState
	next    time.Time // when time alone may change a decision; zero: never
}

// newAgent returns an agent to which all paths have proved themselves.
func newAgent(n int, can path.Capabilities) *agent {
	c := cluster.Racks(n, can)
	a := &agent{cluster: c, machine: path.NewMachine(c.Self), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	facts := a.facts(a.now)
	a.run(facts)
	a.now = a.now.Add(2 * (path.MinProof + path.Jitter))
	a.run(facts)
	return a
}

// facts are what the agent finds: all is well since a time, but in the dead racks.
func (a *agent) facts(since time.Time, dead ...int) snapshot.Local {
	l := a.cluster.Local(device, dead...)
	l.Probes = a.cluster.Reports(since, dead...)
	return l
}

// run is what the agent's loop computes at each poke.
func (a *agent) run(facts snapshot.Local) {
	draft := calc.Prepare(snapshot.Build(a.cluster.Objects, facts))
	decisions := a.machine.Decide(a.now, draft.Inputs())
	a.next = time.Time{}
	for _, d := range decisions {
		if !d.Next.IsZero() && (a.next.IsZero() || d.Next.Before(a.next)) {
			a.next = d.Next
		}
	}
	a.state = draft.Finish(decisions)
}

// timed runs once and returns the cost, and what changes in the kernel.
func (a *agent) timed(facts snapshot.Local) (cost, change) {
	before := a.state
	c := measure(func() { a.run(facts) })
	return c, compare(before, a.state)
}

// recover lets time pass until nothing is left to prove, and returns what all runs cost together.
func (a *agent) recover(facts snapshot.Local) (total cost, runs int) {
	for !a.next.IsZero() {
		at, start := a.next, time.Now()
		cpu := used()
		a.now = at
		a.run(facts)
		took := time.Since(start)
		total.wall, total.cpu, runs = total.wall+took, total.cpu+used()-cpu, runs+1
		if earliest := at.Add(max(spacing, 2*took)); !a.next.IsZero() && a.next.Before(earliest) {
			a.next = earliest
		}
	}
	return total, runs
}

// cost is what a computation took: time, and time of all CPUs, with the garbage collector's.
type cost struct{ wall, cpu time.Duration }

// measure runs f after a garbage collection, so that no one pays for what went before.
func measure(f func()) cost {
	runtime.GC()
	start, cpu := time.Now(), used()
	f()
	return cost{time.Since(start), used() - cpu}
}

// used is the CPU time of this process.
func used() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// change is how many objects of each kind have to be written.
type change struct {
	replaced    int // nexthop objects
	made        int // nexthop objects that were not there, or are there no more
	routes      int // of traffic
	probeRoutes int
}

func compare(a, b calc.RemoteState) change {
	var c change
	before := map[desired.NexthopID]desired.Nexthop{}
	for _, n := range a.Nexthops {
		before[n.ID] = n
	}
	for _, n := range b.Nexthops {
		switch old, ok := before[n.ID]; {
		case !ok:
			c.made++
		case old != n:
			c.replaced++
		}
		delete(before, n.ID)
	}
	c.made += len(before)
	c.routes = different(a.Routes, b.Routes)
	for m := range a.ProbeRoutes {
		c.probeRoutes += different(a.ProbeRoutes[m], b.ProbeRoutes[m])
	}
	return c
}

// different counts the routes that differ, or are in one of the lists alone.
func different(a, b []desired.Route) int {
	before := map[string]desired.Route{}
	for _, r := range a {
		before[r.Prefix.String()] = r
	}
	n := 0
	for _, r := range b {
		if old, ok := before[r.Prefix.String()]; !ok || old != r {
			n++
		}
		delete(before, r.Prefix.String())
	}
	return n + len(before)
}
