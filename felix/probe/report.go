// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"time"

	"github.com/heliograph-dev/heliograph/felix/path"
)

// touch notes that a target's report may have changed.
func (c *core) touch(t *target) {
	if !t.touched {
		t.touched = true
		c.touched = append(c.touched, t)
	}
}

// review makes the reports of the touched targets anew.
func (c *core) review(now time.Time) {
	for _, t := range c.touched {
		t.touched = false
		c.makeReport(t, now)
	}
	c.touched = c.touched[:0]
}

// snapshot returns all reports. They are made anew, since evidence gets old without an event.
func (c *core) snapshot(now time.Time) map[path.Key]path.Report {
	reports := make(map[path.Key]path.Report, len(c.list))
	for _, t := range c.list {
		c.makeReport(t, now)
		reports[t.Key] = t.report
	}
	c.dirty = false
	return reports
}

func (c *core) makeReport(t *target, now time.Time) {
	if c.targets[t.Key] != t {
		return // it is gone
	}
	r := path.Report{Silent: t.silent, Remote: t.remote, RemoteKnown: t.remoteKnown}
	for i := range t.ways {
		if w := &t.ways[i]; w.need != path.Off {
			r.Methods[i] = w.evidence(now)
		}
	}
	c.dirty = c.dirty || r != t.report
	c.significant = c.significant || essence(&r) != essence(&t.report)
	t.report = r
}

// news is the part of a report whose change somebody waits for.
type news struct {
	verdicts    [path.Methods]path.Verdict
	proven      [path.Methods]bool
	mtu         [path.Methods]int
	silent      bool
	remote      path.Capabilities
	remoteKnown bool
}

func essence(r *path.Report) news {
	n := news{silent: r.Silent, remote: r.Remote, remoteKnown: r.RemoteKnown}
	for i, e := range r.Methods {
		n.verdicts[i], n.mtu[i] = e.Verdict, e.MTU
		n.proven[i] = e.Verdict == path.Answers && e.Run >= path.Window
	}
	return n
}

// evidence is the way's own, or its group's if it has no fresh one.
func (w *way) evidence(now time.Time) path.Evidence {
	l, r := w.lane, w.target.rulings[w.method]
	if l.sampled() && (!w.fresh(now) || w.agrees(now)) {
		e := l.track.evidence()
		e.Verdict, e.MTU, e.Sampled = l.verdict(now), l.mtu, true
		if e.Verdict == path.Lost && l.track.answered || e.Verdict == path.Answers && !l.track.answered {
			e.Run, e.RunSince = 0, time.Time{} // the last outcome was of a member that is an exception
		}
		return e
	}
	tr := &w.udp
	if r.kernel {
		tr = &w.icmp
	}
	e := tr.evidence()
	e.Verdict, e.Kernel, e.MTU = r.verdict, r.kernel, w.sizing.mtu
	if l.sampled() {
		e.MTU = l.mtu
	}
	return e
}

// agrees says that the way's own evidence is no other than its group's, which knows more: it was asked more
// often, or has come to an end while the own one is still being gathered.
func (w *way) agrees(now time.Time) bool {
	switch w.lane.verdict(now) {
	case path.Answers:
		return w.verdict() == path.Answers && !w.wantsAttention()
	case path.Lost:
		return w.verdict() == path.Doubtful
	}
	return false
}

// fresh says that the way's own evidence is worth more than its group's.
func (w *way) fresh(now time.Time) bool {
	if w.udp.count == 0 {
		return false
	}
	return w.target.doubt.active || w.wantsAttention() || now.Sub(w.udp.lastSent) <= w.lane.horizon()
}
