// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// rounds is how often each failover is measured; `make bench-failover` takes the median of 5.
var rounds = flag.Int("rounds", 1, "how often to measure each failover")

// enough rounds make a measurement. One alone, on a machine that is shared, shows that the path changes and
// comes back, and that nobody waits for a timer.
const enough = 5

// failover is a way in which the native path between the racks dies, and how it comes back.
type failover struct {
	name      string
	limit     time.Duration // of the longest time without an answer
	ready     func(t *testing.T)
	fail, fix func(t *testing.T)
	// falls are the paths that change, "node1 node3".
	falls []string
}

// blackhole makes the spine drop what is native between the racks, while BGP stays up: no router tells.
const blackhole = `table inet blackhole {
	chain forward { type filter hook forward priority 0
		ip saddr 10.244.0.0/16 drop
		ip6 saddr fd00:244::/56 drop
	}
}`

func failovers() []failover {
	both := []string{"node1 node3", "node3 node1"}
	return []failover{
		{
			// FRR's bfdd takes leave for it (AdminDown, no failure: RFC 5882 §4.2), and graceful restart
			// keeps the routes on both sides: nothing has to change.
			name: "bgpd of the leaf is killed, BFD on", limit: 350 * time.Millisecond,
			ready: func(t *testing.T) { setBFD(t, true) },
			fail: func(t *testing.T) {
				lab(t, "exec", "leaf2", "pkill", "-9", "-x", "bgpd")
				eventually(t, 10*time.Second, func() error {
					out, err := nodeStatus("node3", `{.status.sessions[?(@.name=="peer/rack2-leaf2")].state}`)
					if err == nil && out == "Established" {
						err = errors.New("the session of node3 with leaf2 is still up")
					}
					return err
				})
			},
			fix: func(t *testing.T) { lab(t, "start", "leaf2", "bgpd") },
		},
		{
			// Nobody takes leave: BFD's time runs out, and no graceful restart may hold the routes.
			name: "bgpd and bfdd of the leaf are killed, BFD on", limit: 350 * time.Millisecond, falls: []string{"node3 node1"},
			ready: func(t *testing.T) { setBFD(t, true) },
			fail:  func(t *testing.T) { lab(t, "exec", "leaf2", "pkill", "-9", "-x", "bfdd|bgpd") },
			fix: func(t *testing.T) {
				lab(t, "start", "leaf2", "bfdd")
				lab(t, "start", "leaf2", "bgpd")
			},
		},
		{
			name: "neighbor shut on the leaf", limit: 100 * time.Millisecond, falls: both,
			ready: func(*testing.T) {},
			fail:  func(t *testing.T) { neighbor(t, "") },
			fix:   func(t *testing.T) { neighbor(t, "no ") },
		},
		{
			name: "blackhole in the spine, BGP up", limit: 4 * time.Second, falls: both,
			ready: func(*testing.T) {},
			fail:  func(t *testing.T) { spineDrops(t, blackhole) },
			fix:   func(t *testing.T) { lab(t, "exec", "spine", "nft", "delete", "table", "inet", "blackhole") },
		},
	}
}

// spineDrops gives the spine an nftables ruleset.
func spineDrops(t *testing.T, ruleset string) {
	t.Helper()
	lab(t, "exec", "spine", "nft", ruleset)
}

// blur is by how much two pings may differ on how long one and the same outage was.
const blur = 50 * time.Millisecond

// setBFD turns BFD between node3 and its leaf on or off, on both sides, live.
func setBFD(t *testing.T, on bool) {
	t.Helper()
	no, patch := "no ", `{"spec":{"bfd":null}}`
	if on {
		no, patch = "", `{"spec":{"bfd":{"enabled":true,"transmitInterval":"80ms","receiveInterval":"80ms"}}}`
	}
	configure := []string{"exec", "leaf2", "vtysh", "-c", "configure terminal", "-c", "router bgp 65102", "-c", no + "neighbor 192.168.12.13 bfd"}
	if on {
		configure = append(configure, "-c", "neighbor 192.168.12.13 bfd 3 80 80")
	}
	lab(t, configure...)
	kubectl(t, "patch", "bgppeer", "rack2-leaf2", "--type=merge", "-p", patch)
	want := map[bool]string{true: "Up", false: ""}[on]
	eventually(t, 30*time.Second, func() error {
		out, err := nodeStatus("node3", `{.status.sessions[?(@.name=="peer/rack2-leaf2")].bfd}`)
		if err == nil && out != want {
			err = fmt.Errorf("BFD of node3 with leaf2 is %q, want %q", out, want)
		}
		return err
	})
}

// forget lets new agents take over, which remember no failure: otherwise each round would have to wait
// twice as long for the return as the one before.
func forget(t *testing.T) {
	t.Helper()
	kubectl(t, "-n", "heliograph-system", "rollout", "restart", "daemonset/heliograph-agent")
	wantAgentsReady(t)
	for _, node := range []string{"node1", "node3"} {
		eventually(t, time.Minute, func() error {
			out, err := nodeStatus(node, `{range .status.paths[*]}{.methods[?(@.method=="Native")].state}{.methods[?(@.method=="VXLAN")].probes} {end}`)
			if want := strings.Repeat("UpAnswers ", 4); err == nil && out != want {
				err = fmt.Errorf("the paths of %s are %q", node, out)
			}
			return err
		})
	}
}

// TestFailover breaks the native path between two racks in each way, while pods ping each other every
// 10 ms in both families and both ways and a TCP connection runs; and mends it again.
func TestFailover(t *testing.T) {
	a, b := twoPods(t)
	t.Cleanup(func() { setBFD(t, false) })
	var table strings.Builder
	fmt.Fprintf(&table, "| what happens | limit | longest gap, each round | median | return: lost |\n|---|--:|---|--:|--:|\n")
	for _, f := range failovers() {
		t.Run(f.name, func(t *testing.T) {
			var gaps []time.Duration
			lost := 0
			for range *rounds {
				gap, n := measure(t, f, a, b)
				gaps, lost = append(gaps, gap), lost+n
			}
			sorted := slices.Sorted(slices.Values(gaps))
			median := sorted[len(sorted)/2]
			fmt.Fprintf(&table, "| %s | %s | %v | %s | %d |\n", f.name, f.limit, gaps, median, lost)
			limit, mayLose := f.limit, 0
			if *rounds < enough {
				limit, mayLose = 4*limit, 3
			}
			if median > limit {
				t.Errorf("the median of the longest gaps is %s of %v; want at most %s", median, gaps, limit)
			}
			if lost > mayLose {
				t.Errorf("%d packets were lost on the return; want at most %d", lost, mayLose)
			}
		})
	}
	t.Logf("failover between two racks, pings every 10 ms, 4 at once:\n%s", table.String())
}

// measure breaks and mends once. It returns the longest gap of any ping, and what the return cost.
func measure(t *testing.T, f failover, a, b pod) (gap time.Duration, lost int) {
	t.Helper()
	forget(t)
	f.ready(t)
	connection := iperf(t, a, b, 40)
	pings := pingBothWays(t, a, b, time.Minute)
	fixed := false
	defer func() {
		if !fixed {
			f.fix(t)
		}
	}()
	f.fail(t)
	for _, pair := range f.falls {
		from, to, _ := strings.Cut(pair, " ")
		wantPaths(t, from, to, "VXLAN", 30*time.Second)
	}
	for _, p := range pings {
		r := p.stop(t)
		t.Logf("ping %s over the failure: %d sent, %d lost, longest gap %s", p.name, r.sent, r.lost(), r.gap)
		gap = max(gap, r.gap)
	}
	// What the fabric itself loses between the nodes' own addresses while its routers find together again
	// is nobody's choice of path.
	fabric := &pinger{name: "node1 → node3, the fabric itself", run: start(t, "exec", "node1",
		"ping", "-n", "-D", "-i", "0.01", "-W", "1", "-c", "6000", "192.168.12.13")}
	pings = pingBothWays(t, a, b, time.Minute)
	f.fix(t)
	fixed = true
	for _, pair := range []string{"node1 node3", "node3 node1"} {
		from, to, _ := strings.Cut(pair, " ")
		wantPaths(t, from, to, "Native", time.Minute)
	}
	own := fabric.stop(t)
	if own.lost() > 0 {
		t.Logf("the fabric itself lost %d of %d over the return, longest gap %s", own.lost(), own.sent, own.gap)
	}
	for _, p := range pings {
		r := p.stop(t)
		t.Logf("ping %s over the return: %d sent, %d lost, longest gap %s", p.name, r.sent, r.lost(), r.gap)
		if own.lost() == 0 || r.gap > own.gap+blur {
			lost += r.lost()
		}
	}
	connection.wantAlive(t)
	return gap, lost
}
