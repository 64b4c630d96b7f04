// SPDX-License-Identifier: Apache-2.0

package trigger

import (
	"testing"
	"time"
)

func TestBurstCostsTwoRuns(t *testing.T) {
	tr := Trigger{Spacing: 10 * time.Millisecond}
	now := time.Unix(1000, 0)
	var runs []time.Duration
	for i := range 30 { // one poke per millisecond
		at := now.Add(time.Duration(i) * time.Millisecond)
		if i < 10 {
			tr.Poke()
		}
		if tr.Take(at) {
			runs = append(runs, at.Sub(now))
		}
	}
	if len(runs) != 2 || runs[0] != 0 || runs[1] != 10*time.Millisecond {
		t.Errorf("runs at %v, want at 0 and at 10ms", runs)
	}
	if _, ok := tr.Wait(now); ok {
		t.Error("a run is pending, but all pokes have been served")
	}
}

func TestLonePokeRunsAtOnce(t *testing.T) {
	tr := Trigger{Spacing: time.Second}
	tr.Poke()
	if !tr.Take(time.Unix(1000, 0)) {
		t.Error("the first poke has to wait")
	}
	tr.Poke()
	if wait, ok := tr.Wait(time.Unix(1000, 0)); !ok || wait != time.Second {
		t.Errorf("Wait = %v, %t; want 1s", wait, ok)
	}
}
