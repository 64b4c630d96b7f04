// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"testing"
	"time"
)

// What moves the paths to a rack is a nexthop object for each, and no route.
func TestRackChangesNoRoute(t *testing.T) {
	a := newAgent(100, allMethods)
	a.now = a.now.Add(time.Second)
	_, fall := a.timed(a.facts(a.now, lostRack))
	if err := fall.check(); err != nil {
		t.Errorf("fall: %v", err)
	}
	sick := a.state
	a.now = a.now.Add(time.Minute)
	well := a.facts(a.now)
	a.run(well)
	if held := compare(sick, a.state); held.replaced != 0 || held.routes != 0 {
		t.Errorf("before the proof: %+v", held)
	}
	if _, runs := a.recover(well); runs < 2 {
		t.Errorf("all return at once, in %d runs", runs)
	}
	rise := compare(sick, a.state)
	if err := rise.check(); err != nil {
		t.Errorf("return: %v", err)
	}
}

// BenchmarkRun is a run that changes nothing, in a cluster of 1,000 nodes.
func BenchmarkRun(b *testing.B) {
	a := newAgent(nodes, allMethods)
	facts := a.facts(a.now)
	b.ReportAllocs()
	for b.Loop() {
		a.run(facts)
	}
}
