// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/path"
)

const (
	// sizingGrain is how near the search comes to the true MTU.
	sizingGrain = 8
	maxSizings  = 8 // at a time
	// The MTU of an active way is measured again, sooner if it was less than expected.
	sizingInterval, sizingRetry = time.Minute, 30 * time.Second
)

// errTooBig is the local kernel's word that a packet does not fit the device.
var errTooBig = errors.New("larger than the device's MTU")

// sizing is the search for the path MTU of a way. It asks for all first, and searches by halves only if that
// is lost twice while small questions, sent along, are answered.
type sizing struct {
	mtu  int // the last result; 0: none
	due  time.Time
	busy bool

	full, floor int // the largest size to ask for, and the smallest
	size        int // asked for now
	lo, hi      int // came through, and did not; 0: unknown
	tries       int
}

// next returns the size to ask for, and false if the result is known.
func (s *sizing) next() (int, bool) {
	switch {
	case s.lo == s.full:
		return 0, false
	case s.hi == 0:
		return s.full, true
	case s.lo == 0 && s.mtu > s.floor && s.mtu < s.hi:
		return s.mtu, true // most likely it is as it was
	case s.lo == 0 && s.hi > s.floor:
		return s.floor, true
	case s.lo == 0 || s.hi-s.lo <= sizingGrain:
		return 0, false
	case s.lo == s.mtu:
		return s.lo + sizingGrain, true
	}
	return (s.lo + s.hi) / 2, true
}

// floorOf is the MTU that every path must have.
func floorOf(f bgp.Family) int {
	if f == bgp.IPv6 {
		return 1280
	}
	return 576
}

// considerSizing begins a search by a way that was just answered, if one is due.
func (c *core) considerSizing(w *way, now time.Time) {
	t, s := w.target, &w.sizing
	full := t.MTU[w.method]
	if full <= 0 || s.busy || c.sizings >= maxSizings || t.doubt.queued || t.doubt.active || t.rulings[w.method].verdict != path.Answers {
		return
	}
	due, known := s.due, s.mtu
	if w.lane.sampled() {
		due, known = w.lane.sized, w.lane.mtu
	}
	if now.Before(due) || known > 0 && w.need != path.Active {
		return
	}
	*s = sizing{mtu: known, busy: true, full: full, floor: min(full, floorOf(t.Key.Family))}
	w.lane.sized = now.Add(c.plan.times(sizingRetry)) // one member at a time
	c.sizings++
	c.size(w, now)
}

// size asks for the next size, or ends the search.
func (c *core) size(w *way, now time.Time) {
	s := &w.sizing
	size, more := s.next()
	if !more {
		c.endSizing(w, now)
		return
	}
	if size != s.size {
		s.size, s.tries = size, 0
	}
	c.ask(w, padded, size, now)
	if s.tries > 0 {
		// A small one along: if it is lost as well, it is not the size.
		c.ask(w, small, 0, now)
	}
}

// sized takes what became of a padded question.
func (c *core) sized(p *probe, answered bool, now time.Time) {
	w, s := p.way, &p.way.sizing
	if !s.busy || p.size != s.size {
		return
	}
	s.tries++
	switch {
	case answered:
		s.lo = p.size
	case errors.Is(p.refused, errTooBig):
		s.hi = p.size
	case s.tries < 2:
	case w.udp.lastAnswer.Before(p.sent):
		c.abortSizing(w, now)
		return
	default:
		s.hi = p.size
	}
	c.size(w, now)
}

func (c *core) endSizing(w *way, now time.Time) {
	s := &w.sizing
	mtu, again := s.lo, sizingInterval
	if mtu == 0 { // only small ones come through
		mtu = packetSize + overhead(w.target.Key.Family)
	}
	if mtu < s.full {
		again = sizingRetry
	}
	c.sizings--
	*s = sizing{mtu: mtu, due: now.Add(c.jitter(c.plan.times(again)))}
	if w.lane.sampled() {
		w.lane.mtu, w.lane.sized = mtu, s.due
		c.tell(w.lane, now)
	}
	c.touch(w.target)
}

// abortSizing gives up a search: what it would find is not about sizes.
func (c *core) abortSizing(w *way, now time.Time) {
	if !w.sizing.busy {
		return
	}
	c.sizings--
	w.sizing = sizing{mtu: w.sizing.mtu, due: now.Add(c.plan.times(sizingRetry))}
}

func (c *core) abortSizings(t *target, now time.Time) {
	for i := range t.ways {
		c.abortSizing(&t.ways[i], now)
	}
}
