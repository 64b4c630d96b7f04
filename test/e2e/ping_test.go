// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// pinger sends an echo request every 10 ms from one pod to another, and afterwards says what was lost.
type pinger struct {
	name string
	run  *background
}

// ping begins to ping. It ends by itself after the given time: loops are bounded.
func ping(t *testing.T, from pod, to netip.Addr, lasting time.Duration) *pinger {
	t.Helper()
	count := strconv.Itoa(int(lasting / (10 * time.Millisecond)))
	return &pinger{
		name: fmt.Sprintf("%s → %s", from.name, to),
		run:  start(t, from.in("ping", "-n", "-D", "-i", "0.01", "-W", "1", "-c", count, to.String())...),
	}
}

// pingBothWays pings each way in both families, and returns when all are answered.
func pingBothWays(t *testing.T, a, b pod, lasting time.Duration) []*pinger {
	t.Helper()
	pingers := []*pinger{
		ping(t, a, b.ip4, lasting), ping(t, b, a.ip4, lasting),
		ping(t, a, b.ip6, lasting), ping(t, b, a.ip6, lasting),
	}
	for _, p := range pingers {
		eventually(t, 10*time.Second, func() error {
			if n := p.parse(t, p.run.out.String()).received; n < 50 {
				return fmt.Errorf("ping %s: %d answers", p.name, n)
			}
			return nil
		})
	}
	return pingers
}

var sequence = regexp.MustCompile(`bytes from .* icmp_seq=(\d+) `)

// result is what a pinger saw. What was sent is known by the last answer's number: the test stops
// ping while a request may be under way, and that one counts for nothing.
type result struct {
	sent, received int
	gap            time.Duration // the longest time without an answer, beyond the 10 ms between two
}

func (r result) lost() int { return r.sent - r.received }

func (p *pinger) stop(t *testing.T) result {
	t.Helper()
	return p.parse(t, p.run.stop())
}

func (p *pinger) parse(t *testing.T, out string) result {
	t.Helper()
	var r result
	last := 0
	for _, s := range sequence.FindAllStringSubmatch(out, -1) {
		n, err := strconv.Atoi(s[1])
		if err != nil {
			t.Fatal(err)
		}
		r.received++
		if n > last+1 {
			r.gap = max(r.gap, time.Duration(n-last-1)*10*time.Millisecond)
		}
		last = max(last, n)
	}
	r.sent = last
	return r
}

// wantNoneLost stops the pingers and fails if one lost an answer.
func wantNoneLost(t *testing.T, pingers []*pinger) {
	t.Helper()
	for _, p := range pingers {
		r := p.stop(t)
		t.Logf("ping %s: %d sent, %d received, longest gap %s", p.name, r.sent, r.received, r.gap)
		if r.lost() > 0 || r.gap > 0 {
			t.Errorf("ping %s: %d of %d lost, longest gap %s; want none", p.name, r.lost(), r.sent, r.gap)
		}
		if r.received < 100 {
			t.Errorf("ping %s: only %d answers: the test saw nothing", p.name, r.received)
		}
	}
}
