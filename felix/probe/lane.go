// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/path"
)

// climbInterval is how often an active way is asked at least until it has proved itself.
const climbInterval = 2 * time.Second

// quorum is at how many members a group's way must be lost to be lost for all.
const quorum = 3

// groupKey names the targets that share their ways.
type groupKey struct {
	name   string
	single bool // name is that of a node that shares with nobody
	family bgp.Family
}

type laneKey struct {
	group  groupKey
	method path.Method
}

// lane is the steady probing of a group by one method: one member after the other.
type lane struct {
	need    path.Need // the most that any member needs
	members []*way
	cursor  int
	entry   entry[*lane]
	period  time.Duration // in which it asks sample members
	sample  int
	// track is of all members together, but for those that are an exception: lost while the group is not.
	track  track
	lost   bool
	mtu    int
	sized  time.Time // when a member's MTU is to be measured next
	pulled time.Time // when one member's losses last put all in doubt
	told   saying
}

// sampled says that members speak for each other.
func (l *lane) sampled() bool { return l.sample < len(l.members) }

// note takes what became of a question to a member.
func (c *core) note(w *way, o outcome, rtt time.Duration, now time.Time) {
	l := w.lane
	if w.verdict() == path.Lost && !l.lost && !o.answered {
		return
	}
	if rtt > 0 {
		l.track.measured(rtt)
	}
	l.track.record(o)
	if o.answered {
		l.lost = false
	}
	c.tell(l, now)
}

// tell sees to the members after the group's evidence changed in a way that matters to them: those that were
// lost with the group are now looked after by themselves, or the other way round.
func (c *core) tell(l *lane, now time.Time) {
	if !l.sampled() {
		return
	}
	saying := saying{l.verdict(now), l.track.answering(path.Window), l.mtu}
	if saying == l.told {
		return
	}
	l.told = saying
	for _, w := range l.members {
		c.touch(w.target)
		if w.verdict() == path.Lost {
			c.attend(w.target, now)
		}
	}
}

// saying is what of a group's evidence must be told at once.
type saying struct {
	verdict path.Verdict
	proven  bool
	mtu     int
}

// recount decides whether the way is lost for the whole group: at a quorum of members, whose losses all
// began after anybody's last answer.
func (l *lane) recount() {
	n := 0
	for _, w := range l.members {
		since := w.udp.since
		if w.verdict() == path.Lost && since.After(l.track.lastAnswer) {
			n++
		}
	}
	l.lost = n > 0 && n >= min(quorum, len(l.members))
}

// verdict is the group's, for members that have none of their own.
func (l *lane) verdict(now time.Time) path.Verdict {
	switch {
	case l.lost:
		return path.Lost
	case !l.track.lastAnswer.IsZero() && now.Sub(l.track.lastAnswer) <= l.horizon():
		return path.Answers
	}
	return path.Unknown
}

// horizon is for how long evidence is fresh.
func (l *lane) horizon() time.Duration { return 3*l.period + 2*maxTimeout }

func (w *way) verdict() path.Verdict { return w.target.rulings[w.method].verdict }

// interval is the time between two questions.
func (l *lane) interval() time.Duration {
	d := l.period
	if l.sampled() && l.need == path.Active && !l.lost && l.track.count > 0 && !l.track.answering(path.Window) {
		d = min(d, climbInterval)
	}
	return d / time.Duration(max(1, l.sample))
}

// runLanes asks where it is due.
func (c *core) runLanes(now time.Time) {
	for range len(c.lanes) {
		e := c.laneAgenda.first()
		if e == nil || e.due.After(now) {
			return
		}
		l := e.of
		c.laneAgenda.set(e, now.Add(c.jitter(l.interval())))
		if w := c.pick(l); w != nil {
			c.ask(w, small, 0, now)
		}
	}
}

// pick returns the next member that nobody else looks after.
func (c *core) pick(l *lane) *way {
	for range len(l.members) {
		l.cursor = (l.cursor + 1) % len(l.members)
		w := l.members[l.cursor]
		if !w.target.doubt.active && !w.wantsAttention() && w.target.local.IsValid() {
			return w
		}
	}
	return nil
}

// arrange builds groups and lanes from the targets. Lanes that were there keep what they know.
func (c *core) arrange(nodes int, now time.Time) {
	old := c.lanes
	c.groups, c.lanes = map[groupKey][]*target{}, map[laneKey]*lane{}
	var lanes []*lane
	for _, t := range c.list {
		g := groupOf(t.Target)
		c.groups[g] = append(c.groups[g], t)
		for i := range t.ways {
			w := &t.ways[i]
			w.lane = nil
			if w.need == path.Off {
				continue
			}
			k := laneKey{group: g, method: w.method}
			l := c.lanes[k]
			if l == nil {
				if l = old[k]; l == nil {
					l = &lane{}
					l.entry.of = l
				}
				l.members, l.need = nil, path.Off
				c.lanes[k] = l
				lanes = append(lanes, l)
			}
			l.members, l.need, w.lane = append(l.members, w), max(l.need, w.need), l
		}
	}
	for k, l := range old {
		if c.lanes[k] != l {
			c.laneAgenda.remove(&l.entry)
		}
	}
	c.plan = makePlan(nodes, lanes)
	for _, l := range lanes {
		c.start(l, now)
	}
}

// start puts a lane on the agenda, and has its new members, or one of them if they are sampled, looked after
// at once.
func (c *core) start(l *lane, now time.Time) {
	l.cursor %= len(l.members)
	l.recount()
	// A period that became shorter must not wait for the end of the old one.
	if at := now.Add(c.jitter(l.interval())); l.entry.index == 0 || l.entry.due.After(at) {
		c.laneAgenda.set(&l.entry, at)
	}
	for i, w := range l.members {
		first := l.sampled() && l.track.count == 0 && i < l.sample
		if first || w.rising && !l.sampled() && !w.proven() {
			w.climb = true
		}
		w.rising = false
	}
}

func groupOf(t path.Target) groupKey {
	if t.Group == "" {
		return groupKey{name: t.Key.Node, single: true, family: t.Key.Family}
	}
	return groupKey{name: t.Group, family: t.Key.Family}
}
