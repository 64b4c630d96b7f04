// SPDX-License-Identifier: Apache-2.0

// Package trigger decides when work that was asked for is due: at once if there was none lately,
// and otherwise a spacing after the last, so that a burst of pokes costs one run; and when what failed
// is tried again. It has no goroutine and no clock of its own.
package trigger

import "time"

// Trigger coalesces pokes. The zero value runs at every poke.
type Trigger struct {
	// Spacing is the least time between two runs.
	Spacing time.Duration

	last    time.Time
	pending bool
}

// Poke asks for a run.
func (t *Trigger) Poke() { t.pending = true }

// Wait returns how long until the run is due, and false if none was asked for.
func (t *Trigger) Wait(now time.Time) (time.Duration, bool) {
	if !t.pending {
		return 0, false
	}
	return max(0, t.last.Add(t.Spacing).Sub(now)), true
}

// Take says whether a run is due now, and if so notes that it happens.
func (t *Trigger) Take(now time.Time) bool {
	if wait, ok := t.Wait(now); !ok || wait > 0 {
		return false
	}
	t.pending, t.last = false, now
	return true
}
