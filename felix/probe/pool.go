// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"time"

	"github.com/heliograph-dev/heliograph/felix/path"
)

// How long until a lost or silent target is asked again: from the first to the last, doubling.
const (
	firstRetry = time.Second
	lastRetry  = 10 * time.Second
)

// wantsAttention says that the way is looked after by the pool rather than by its lane: it is new or comes
// back, or it is lost and its group is not.
func (w *way) wantsAttention() bool {
	t := w.target
	if w.need == path.Off {
		return false
	}
	if t.silent || t.rulings[w.method].kernel {
		return true
	}
	return w.climb || w.verdict() == path.Lost && (!w.lane.sampled() || !w.lane.lost)
}

// attend puts a target into the pool, or takes it out.
func (c *core) attend(t *target, now time.Time) {
	wants, climbs := false, false
	for i := range t.ways {
		w := &t.ways[i]
		wants = wants || w.wantsAttention()
		climbs = climbs || w.climb && w.need != path.Off
	}
	switch {
	case !wants || !t.local.IsValid():
		c.pool.remove(&t.retry)
		t.patience = 0
	case t.retry.index > 0:
	case climbs:
		c.pool.set(&t.retry, now.Add(c.firstLook(t)))
	default:
		t.patience = c.plan.times(firstRetry)
		c.pool.set(&t.retry, now.Add(c.jitter(t.patience)))
	}
}

// firstLook is how long a climbing way waits: not at all if nothing is known of the target yet.
func (c *core) firstLook(t *target) time.Duration {
	for i := range t.ways {
		if w := &t.ways[i]; w.climb && w.udp.count == 0 && w.udp.open == 0 {
			return 0
		}
	}
	return c.jitter(c.climbing())
}

func (c *core) climbing() time.Duration { return min(c.plan.times(activeInterval), climbInterval) }

// runPool asks targets that want attention, as many as the pool's share of the budget allows.
func (c *core) runPool(now time.Time) {
	for range len(c.pool.h) {
		e := c.pool.first()
		if e == nil || e.due.After(now) || c.poolTokens.ready(now).After(now) {
			return
		}
		c.look(e.of, now)
	}
}

// look asks a target by the ways that want attention, all of them at the same instant: if its agent comes
// back meanwhile, it comes back for all.
func (c *core) look(t *target, now time.Time) {
	climbs, kernel, asked := false, false, 0
	for i := range t.ways {
		w := &t.ways[i]
		if !w.wantsAttention() {
			continue
		}
		climbs = climbs || w.climb && !t.silent && w.verdict() != path.Lost
		kernel = kernel || t.rulings[i].kernel
		if t.doubt.active {
			continue
		}
		c.ask(w, small, 0, now)
		asked++
		if (t.silent || t.rulings[i].kernel) && c.able(t.Key.Family) {
			c.ask(w, echo, 0, now)
			asked++
		}
	}
	c.poolTokens.take(now, max(1, asked))
	switch {
	case climbs:
		t.patience = c.climbing()
	case kernel: // its paths carry traffic: they are watched as before
		t.patience = c.plan.times(firstRetry)
	default:
		t.patience = min(max(2*t.patience, c.plan.times(firstRetry)), c.plan.times(lastRetry))
	}
	c.pool.set(&t.retry, now.Add(c.jitter(t.patience)))
}
