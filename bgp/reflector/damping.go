// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"fmt"
	"time"
)

// What damping costs whom. A client that is restarted, even a few times in a row, must come back at
// once; one that resets ten times a second must cost the others no more than a flap each few minutes.
const (
	// freeResets is how many short sessions in a row are forgiven.
	freeResets = 5
	// steady is how long a session must last to clear all that was before it.
	steady = time.Minute
	// firstIdle is the first IdleHoldTime; each further short session doubles it.
	firstIdle = time.Second
	// longestIdle bounds it after sessions that were established: those cost all clients something.
	longestIdle = 2 * time.Minute
	// shortIdle bounds it after attempts that never were: mostly one side is misconfigured, and should
	// not have to wait for long once somebody has seen to it.
	shortIdle = 10 * time.Second
	// forgiven is after how much quiet the past is forgotten. It is more than longestIdle and what a
	// client may wait before it tries again.
	forgiven = 10 * time.Minute
)

// damping is RFC 4271's DampPeerOscillations (§8.1.1): a neighbour whose sessions are short, one after
// the other, is kept in Idle for a time that grows.
type damping struct {
	short   int       // short sessions in a row
	last    time.Time // when the last of them ended
	until   time.Time // no connection before
	refused int64     // connections that came in the meantime, and all others that must not be
}

// ended notes the end of a session that lasted so long once it was established; 0: it never was.
func (d *damping) ended(now time.Time, lasted time.Duration) {
	if lasted >= steady || now.Sub(d.last) > forgiven {
		d.short, d.until = 0, time.Time{}
	}
	if lasted >= steady {
		return
	}
	d.short++
	d.last = now
	most := longestIdle
	if lasted == 0 {
		most = shortIdle
	}
	if n := d.short - freeResets; n > 0 {
		d.until = now.Add(min(most, firstIdle<<min(n-1, 16)))
	}
}

// active tells whether connections are to be refused.
func (d *damping) active(now time.Time) bool { return now.Before(d.until) }

// why says it for log and status. It says the same for as long as it lasts.
func (d *damping) why() string {
	return fmt.Sprintf("damped until %s after %d short sessions", d.until.UTC().Format(time.RFC3339), d.short)
}

// oscillate notes the end of a session, and says so once when the client is damped for it.
func (c *core) oscillate(p *peer, lasted time.Duration, e ended) {
	if e.innocent {
		return
	}
	p.damping.ended(time.Now(), lasted)
	if p.damping.short == freeResets+1 {
		c.log.Warn("client is damped: its sessions end again and again", "peer", p.name(), "address", p.addr, "why", e.text)
	}
}
