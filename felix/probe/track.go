// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"time"

	"github.com/heliograph-dev/heliograph/felix/path"
)

// A question that is not answered in its time is lost. The bounds keep a path with a steady RTT from being
// called broken by one late packet, and a slow one from making detection slow.
const (
	minTimeout = 200 * time.Millisecond
	maxTimeout = 500 * time.Millisecond
)

// outcome is what became of a question.
type outcome struct {
	sent     time.Time
	answered bool
}

// track remembers what became of the last questions to one target by one method. Outcomes are recorded in
// the order in which the questions were sent.
type track struct {
	ring     [path.Window]outcome
	count    int // outcomes ever, since forget
	run      int // how many of the last ones are like the last
	since    time.Time
	answered bool // the last one was

	lastAnswer, lastSent time.Time
	srtt, rttvar         time.Duration // RFC 6298

	open int // questions that wait for an answer
}

func (t *track) record(o outcome) {
	if t.count > 0 && t.answered == o.answered {
		t.run++
	} else {
		t.run, t.since, t.answered = 1, o.sent, o.answered
	}
	t.ring[t.count%path.Window] = o
	t.count++
	t.lastSent = o.sent
	if o.answered {
		t.lastAnswer = o.sent
	}
}

// forget forgets the outcomes: what was is no word about what will be. The round-trip time stays.
func (t *track) forget() {
	*t = track{srtt: t.srtt, rttvar: t.rttvar, open: t.open, lastAnswer: t.lastAnswer}
}

// measured takes a round-trip time, as RFC 6298 section 2 has it.
func (t *track) measured(rtt time.Duration) {
	if t.srtt == 0 {
		t.srtt, t.rttvar = rtt, rtt/2
		return
	}
	t.rttvar += ((t.srtt - rtt).Abs() - t.rttvar) / 4
	t.srtt += (rtt - t.srtt) / 8
}

func (t *track) timeout() time.Duration {
	if t.srtt == 0 {
		return maxTimeout
	}
	return min(max(t.srtt+4*t.rttvar, minTimeout), maxTimeout)
}

// losing says whether the last n questions or more were lost.
func (t *track) losing(n int) bool { return t.count > 0 && !t.answered && t.run >= n }

// answering says whether the last n questions or more were answered.
func (t *track) answering(n int) bool { return t.count > 0 && t.answered && t.run >= n }

// answeredSince counts the remembered questions sent then or later that were answered.
func (t *track) answeredSince(at time.Time) int {
	n := 0
	for _, o := range t.ring[:min(t.count, path.Window)] {
		if o.answered && !o.sent.Before(at) {
			n++
		}
	}
	return n
}

// evidence is what the track says by itself, without a verdict.
func (t *track) evidence() path.Evidence {
	e := path.Evidence{Run: t.run, RunSince: t.since, LastAnswer: t.lastAnswer, RTT: t.srtt}
	for _, o := range t.ring[:min(t.count, path.Window)] {
		e.Sent++
		if !o.answered {
			e.Lost++
		}
	}
	return e
}
