// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"cmp"
	"slices"
	"time"

	"github.com/heliograph-dev/heliograph/felix/path"
)

const (
	burstInterval = 200 * time.Millisecond
	// burstSlots is how many questions all bursts together ask in an interval: 100 per second.
	burstSlots = 20
	// minRounds is how often a member of a group in doubt is asked if it answers; maxRounds ends a burst
	// that comes to no end, since some questions are answered and some are not. The next loss begins another.
	minRounds, maxRounds = 2, 25
	// pullInterval is the least time between two occasions on which one member puts its group in doubt.
	pullInterval = 10 * time.Second
)

// doubt is the state of a target that is, or waits to be, asked quickly.
type doubt struct {
	queued, active bool
	began          time.Time // losses before then are old
	rounds         int
	due            time.Time
	echo           bool // the kernel is asked too
}

// bursts are the targets in doubt. Those with a loss of their own, and as many of their group as it takes to
// know about all of it, come before the rest of groups in doubt.
type bursts struct {
	active       []*target
	urgent, rest []*target
}

func (b *bursts) next(earlier func(time.Time)) {
	for _, t := range b.active {
		earlier(t.doubt.due)
	}
}

// suspect puts a target in doubt, for a question sent at that time.
func (c *core) suspect(t *target, at time.Time) {
	if t.doubt.active {
		return
	}
	t.doubt = doubt{queued: true, began: at}
	c.bursts.urgent = append(c.bursts.urgent, t)
}

// suspectGroup puts in doubt all that share the way. Those that others rely on, since they were asked last,
// come first. It takes two losses in a row: on a path that loses some packets, one would cost a question to
// each member again and again.
func (c *core) suspectGroup(w *way, now time.Time) {
	g := groupOf(w.target.Target)
	if g.single || !w.lane.pulled.IsZero() && now.Sub(w.lane.pulled) < pullInterval {
		return
	}
	w.lane.pulled = now
	var pulled []*way
	for _, t := range c.groups[g] {
		m := &t.ways[w.method]
		if t == w.target || m.need == path.Off || t.doubt.active || t.doubt.queued || m.verdict() == path.Lost || t.silent {
			continue
		}
		t.doubt = doubt{queued: true, began: now}
		pulled = append(pulled, m)
	}
	slices.SortStableFunc(pulled, func(a, b *way) int { return cmp.Compare(b.udp.lastSent.Sub(now), a.udp.lastSent.Sub(now)) })
	for i, m := range pulled {
		if i < quorum+1 {
			c.bursts.urgent = append(c.bursts.urgent, m.target)
		} else {
			c.bursts.rest = append(c.bursts.rest, m.target)
		}
	}
}

// runBursts ends what is settled, begins what there is room for, and asks what is due.
func (c *core) runBursts(now time.Time) {
	slots := 0
	for _, t := range slices.Clone(c.bursts.active) {
		if c.burstDone(t) {
			c.endBurst(t, now)
			continue
		}
		slots += t.cost()
	}
	c.admit(slots, now)
	for _, t := range c.bursts.active {
		if t.doubt.due.After(now) {
			continue
		}
		t.doubt.due = now.Add(c.jitter(burstInterval))
		if t.wantsMore() {
			c.round(t, now)
		}
	}
}

// admit begins bursts while there are slots. One always may.
func (c *core) admit(slots int, now time.Time) {
	for _, queue := range []*[]*target{&c.bursts.urgent, &c.bursts.rest} {
		for len(*queue) > 0 {
			t := (*queue)[0]
			if t.doubt.queued && len(c.bursts.active) > 0 && slots+t.cost() > burstSlots {
				return
			}
			*queue = (*queue)[1:]
			if !t.doubt.queued {
				continue // it is gone, or came up from the other queue
			}
			slots += t.cost()
			t.doubt.queued, t.doubt.active, t.doubt.due = false, true, now
			c.bursts.active = append(c.bursts.active, t)
			c.abortSizings(t, now)
		}
	}
}

// round asks by all methods at the same instant.
func (c *core) round(t *target, now time.Time) {
	t.doubt.rounds++
	t.doubt.echo = t.deaf() && c.able(t.Key.Family)
	for i := range t.ways {
		if w := &t.ways[i]; w.need != path.Off {
			c.ask(w, small, 0, now)
			if t.doubt.echo {
				c.ask(w, echo, 0, now)
			}
		}
	}
}

// deaf says that the agent answers by no method any more.
func (t *target) deaf() bool {
	for i := range t.ways {
		if w := &t.ways[i]; w.need != path.Off && !w.udp.losing(2) {
			return false
		}
	}
	return true
}

// cost is how many questions a round has.
func (t *target) cost() int {
	n := 0
	for i := range t.ways {
		if t.ways[i].need != path.Off {
			n++
		}
	}
	if t.doubt.echo {
		n *= 2
	}
	return n
}

// settled says that a track has said what it has to say.
func (t *track) settled(since time.Time) bool {
	return t.count > 0 && (t.run >= path.Window || t.answered && t.lastLoss().Before(since))
}

// lastLoss is when the last question that was lost, of those remembered, was sent.
func (t *track) lastLoss() time.Time {
	var last time.Time
	for _, o := range t.ring[:min(t.count, path.Window)] {
		if !o.answered && o.sent.After(last) {
			last = o.sent
		}
	}
	return last
}

// unsettled calls f for the tracks that must still settle.
func (t *target) unsettled(f func(*track)) {
	for i := range t.ways {
		w := &t.ways[i]
		if w.need == path.Off {
			continue
		}
		if !w.udp.settled(t.doubt.began) {
			f(&w.udp)
		}
		if t.doubt.echo && !w.icmp.settled(t.doubt.began) {
			f(&w.icmp)
		}
	}
}

// wantsMore says that the open questions, if they end as the last one did, will not settle it.
func (t *target) wantsMore() bool {
	if t.doubt.rounds >= maxRounds {
		return false
	}
	more := t.doubt.rounds < minRounds
	t.unsettled(func(tr *track) { more = more || tr.count == 0 || tr.run+tr.open < path.Window })
	return more
}

// burstDone says that a burst has settled its doubt, or will not.
func (c *core) burstDone(t *target) bool {
	open, unsettled := false, false
	for i := range t.ways {
		open = open || t.ways[i].udp.open > 0 || t.ways[i].icmp.open > 0
	}
	t.unsettled(func(*track) { unsettled = true })
	if open {
		return false
	}
	return t.doubt.rounds >= maxRounds || !unsettled && t.doubt.rounds >= minRounds
}

func (c *core) endBurst(t *target, now time.Time) {
	t.doubt = doubt{}
	if i := slices.Index(c.bursts.active, t); i >= 0 {
		c.bursts.active = slices.Delete(c.bursts.active, i, i+1)
	}
	c.attend(t, now)
	c.touch(t)
}
