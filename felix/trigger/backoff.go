// SPDX-License-Identifier: Apache-2.0

package trigger

import "time"

// Backoff is when what failed is tried again: after First, and each time after twice as long, up to Most.
type Backoff struct {
	First, Most time.Duration

	wait time.Duration
	at   time.Time
}

// At is when it is tried again; zero: nothing failed.
func (b *Backoff) At() time.Time { return b.at }

// Due says whether it is to be tried again now.
func (b *Backoff) Due(now time.Time) bool { return !b.at.IsZero() && !now.Before(b.at) }

// Failed doubles the wait, but only if this was the retry: runs that others asked for meanwhile are no
// reason to wait longer.
func (b *Backoff) Failed(now time.Time) {
	if b.at.IsZero() || b.Due(now) {
		b.wait = min(b.Most, max(b.First, 2*b.wait))
		b.at = now.Add(b.wait)
	}
}

// Succeeded forgets the failures.
func (b *Backoff) Succeeded() { b.wait, b.at = 0, time.Time{} }
