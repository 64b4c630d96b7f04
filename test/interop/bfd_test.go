// SPDX-License-Identifier: Apache-2.0

//go:build linux

package interop

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/bgp/speaker"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// interval and detect are the BFD of both sides: a failure is noticed within 3 times 100 ms.
const (
	interval = 100 * time.Millisecond
	detect   = 3 * interval
)

const stale = "10.250.0.0/24>192.168.11.254!stale fd00:250::/64>fd00:11::fe!stale"

// bfdFRR and bfdBIRD are routers with BFD as docs/bgp.md shows it.
func bfdFRR(o options) *frr {
	o.bfd = "neighbor " + o.node() + " bfd 3 100 100\n neighbor " + o.node() + " update-source " + o.tor()
	return &frr{options: o}
}

func bfdBIRD(o options) *bird {
	o.bfd = "bfd on;"
	return &bird{options: o}
}

var overIPv6 = options{six: true}

func TestBFDFRR(t *testing.T) {
	isolate(t, func(t *testing.T) { linkDies(t, bfdFRR(options{}), false) })
}
func TestBFDBIRD(t *testing.T) {
	isolate(t, func(t *testing.T) { linkDies(t, bfdBIRD(options{}), false) })
}
func TestBFDFRROverIPv6(t *testing.T) {
	isolate(t, func(t *testing.T) { linkDies(t, bfdFRR(overIPv6), true) })
}
func TestBFDBIRDOverIPv6(t *testing.T) {
	isolate(t, func(t *testing.T) { linkDies(t, bfdBIRD(overIPv6), true) })
}

func TestBFDFRRSeesUsStop(t *testing.T) {
	isolate(t, func(t *testing.T) { nodeStopsWithBFD(t, bfdFRR(options{}), false) })
}
func TestBFDFRRSeesUsStopOverIPv6(t *testing.T) {
	isolate(t, func(t *testing.T) { nodeStopsWithBFD(t, bfdFRR(overIPv6), true) })
}
func TestBFDGracefulBIRDSeesUsStop(t *testing.T) {
	isolate(t, func(t *testing.T) {
		nodeStopsWithBFD(t, &bird{options: options{bfd: "bfd graceful;"}}, false)
	})
}
func TestBFDGracefulBIRDSeesUsStopOverIPv6(t *testing.T) {
	isolate(t, func(t *testing.T) {
		nodeStopsWithBFD(t, &bird{options: options{six: true, bfd: "bfd graceful;"}}, true)
	})
}

func TestBFDFRRKeepsRoutes(t *testing.T) {
	isolate(t, func(t *testing.T) { nodeKilled(t, bfdFRR(options{}), bfdNode(false)) })
}
func TestBFDGracefulBIRDKeepsRoutes(t *testing.T) {
	isolate(t, func(t *testing.T) { nodeKilled(t, &bird{options: options{bfd: "bfd graceful;"}}, bfdNode(false)) })
}
func TestBFDFRRRestartsItsBGP(t *testing.T)  { isolate(t, bgpRestarts) }
func TestBFDFRRDiesAfterItsBGP(t *testing.T) { isolate(t, bgpThenBFDDies) }
func TestBFDFRRStops(t *testing.T) {
	isolate(t, func(t *testing.T) { r := bfdFRR(options{}); routerStops(t, r, func() *exec.Cmd { return r.bfdd }) })
}
func TestBFDBIRDStops(t *testing.T) {
	isolate(t, func(t *testing.T) { r := bfdBIRD(options{}); routerStops(t, r, func() *exec.Cmd { return r.cmd }) })
}
func TestBFDOnlyHere(t *testing.T)         { isolate(t, func(t *testing.T) { withoutBFD(t, &frr{}) }) }
func TestBFDOnlyHereWithBIRD(t *testing.T) { isolate(t, func(t *testing.T) { withoutBFD(t, &bird{}) }) }
func TestBFDTimersChangeFRR(t *testing.T) {
	isolate(t, func(t *testing.T) { timersChange(t, bfdFRR(options{})) })
}
func TestBFDTimersChangeBIRD(t *testing.T) {
	isolate(t, func(t *testing.T) { timersChange(t, bfdBIRD(options{})) })
}

func TestBFDBetweenNodes(t *testing.T) { isolate(t, func(t *testing.T) { betweenNodes(t, false) }) }
func TestBFDBetweenNodesOverIPv6(t *testing.T) {
	isolate(t, func(t *testing.T) { betweenNodes(t, true) })
}

func bfdNode(six bool) bgp.Desired {
	d := node("")
	p := &d.Peers[0]
	p.BFD = bgp.BFD{Enabled: true, TransmitInterval: interval, ReceiveInterval: interval, DetectMultiplier: 3}
	p.Timers.Hold, p.Timers.Keepalive = 90*time.Second, 30*time.Second // so that it is not what ends the session
	if six {
		p.Address, p.LocalAddress = netip.MustParseAddr("fd00:11::fe"), netip.MustParseAddr("fd00:11::1")
	}
	return d
}

func waitUp(t *testing.T, s *speaker.Speaker) {
	t.Helper()
	wait(t, "routes at the node", func() string { return routes(s) }, atNode)
	wait(t, "routes in the router's kernel", func() string { return kernel(t) }, atTor)
	wait(t, "BFD", func() string { return string(s.Snapshot().Sessions[0].BFD) }, "Up")
}

// cut lets nothing through the cable, though both ends stay up; mend undoes it.
func cut(t *testing.T) {
	t.Helper()
	nettest.Cmd(t, "nft", "add table netdev cut; add chain netdev cut in { type filter hook ingress device tor0 priority 0; policy drop; };"+
		" add chain netdev cut out { type filter hook egress device tor0 priority 0; policy drop; }")
}

func mend(t *testing.T) {
	t.Helper()
	nettest.Cmd(t, "nft", "delete table netdev cut")
}

// linkDies: both sides drop the other's routes within the detection time, and have them again once
// the cable is mended.
func linkDies(t *testing.T, r router, six bool) {
	r.start(t, "")
	explain(t, r)
	s := started(t, bfdNode(six))
	waitUp(t, s)
	cut(t)
	began := time.Now()
	gone := dropped(t, s, began)
	wait(t, "no route at the router", func() string { return kernel(t) }, "")
	t.Logf("routes dropped after %s here, %s at the router", gone, time.Since(began).Round(time.Millisecond))
	if got := s.Snapshot().Sessions[0]; got.BFD != bgp.BFDDown || got.Flaps != 1 {
		t.Errorf("session = %+v", got)
	}
	mend(t)
	waitUp(t, s)
	if got := s.Snapshot().Sessions[0]; got.Flaps != 1 {
		t.Errorf("the session came back and went down again: %+v", got)
	}
}

// dropped waits until all routes are gone and fails if that took longer than BFD may take.
func dropped(t *testing.T, s *speaker.Speaker, began time.Time) time.Duration {
	t.Helper()
	wait(t, "no route at the node", func() string { return routes(s) }, "")
	took := time.Since(began).Round(time.Millisecond)
	if took > detect+time.Second { // the machine may be busy; the hold time is 90 s
		t.Errorf("routes were kept for %s", took)
	}
	return took
}

// nodeStopsWithBFD: a graceful stop leaves the routes in the router's kernel for longer than the
// detection time, and until the next process is there.
func nodeStopsWithBFD(t *testing.T, r router, six bool) {
	r.start(t, "")
	explain(t, r)
	desired := bfdNode(six)
	s := started(t, desired)
	waitUp(t, s)
	m := watchKernel(t)
	began := time.Now()
	if err := s.Stop(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped in %s", time.Since(began).Round(time.Millisecond))
	wait(t, "BFD to be down at the router", func() string {
		return fmt.Sprint(strings.Contains(r.debug(t), "dministratively down") || time.Since(began) > 2*detect)
	}, "true")
	desired.Global.Restarting = true
	next := started(t, desired) // as the next process would
	waitUp(t, next)
	wait(t, "end of rib", func() string { return ends(next) }, "IPv4 IPv6")
	if lost := m.deleted(); len(lost) > 0 {
		t.Errorf("the router lost routes:\n%s", strings.Join(lost, ""))
	}
	if got := next.Snapshot().Sessions[0]; got.Flaps != 0 {
		t.Errorf("session = %+v", got)
	}
}

// bgpThenBFDDies: the router's BGP is gone and its routes are stale; then BFD says that the router is
// gone as well, and they go at once. The next session is not disturbed by that.
func bgpThenBFDDies(t *testing.T) {
	r := bfdFRR(options{})
	r.start(t, "")
	explain(t, r)
	s := started(t, bfdNode(false))
	waitUp(t, s)
	stop(t, r.bfdd) // first, lest it says goodbye for bgpd
	began := time.Now()
	r.kill(t)
	wait(t, "stale routes", func() string { return routes(s) }, stale)
	t.Logf("stale routes dropped after %s", dropped(t, s, began))
	resume(t, r.bfdd)
	r.resume(t)
	waitUp(t, s)
	if got := s.Snapshot().Sessions[0]; got.Flaps != 1 {
		t.Errorf("the session came back and went down again: %+v", got)
	}
}

// bgpRestarts: the router's BGP dies and comes back while the router lives; its BFD says AdminDown
// meanwhile. The node has its routes all the while.
func bgpRestarts(t *testing.T) {
	r := bfdFRR(options{})
	r.start(t, "")
	explain(t, r)
	s := started(t, bfdNode(false))
	waitUp(t, s)
	r.kill(t)
	wait(t, "stale routes", func() string { return routes(s) }, stale)
	wait(t, "BFD to end", func() string { return string(s.Snapshot().Sessions[0].BFD) }, "Down")
	if got := routes(s); got != stale {
		t.Errorf("routes at the node: %q", got)
	}
	r.resume(t)
	waitUp(t, s)
	if got := s.Snapshot().Sessions[0]; got.Flaps != 1 {
		t.Errorf("the session came back and went down again: %+v", got)
	}
}

// routerStops: the process that speaks BFD at the router hangs.
func routerStops(t *testing.T, r router, process func() *exec.Cmd) {
	r.start(t, "")
	explain(t, r)
	s := started(t, bfdNode(false))
	waitUp(t, s)
	stop(t, process())
	t.Logf("routes dropped after %s", dropped(t, s, time.Now()))
	resume(t, process())
	waitUp(t, s)
}

// withoutBFD: a router that has no BFD is a router like any other.
func withoutBFD(t *testing.T, r router) {
	r.start(t, "")
	explain(t, r)
	s := started(t, bfdNode(false))
	wait(t, "routes at the node", func() string { return routes(s) }, atNode)
	wait(t, "BFD to be tried", func() string { return string(s.Snapshot().Sessions[0].BFD) }, "Down")
	began := time.Now()
	wait(t, "time to pass", func() string {
		if got := s.Snapshot().Sessions[0]; got.Flaps != 0 || got.BFD != bgp.BFDDown {
			t.Fatalf("session = %+v", got)
		}
		return fmt.Sprint(time.Since(began) > 10*detect)
	}, "true")
}

// timersChange: other timers and no BFD at all are had without a reset by us; what the router makes of
// it is logged.
func timersChange(t *testing.T, r router) {
	r.start(t, "")
	explain(t, r)
	desired := bfdNode(false)
	s := started(t, desired)
	waitUp(t, s)
	for _, b := range []bgp.BFD{
		{Enabled: true, TransmitInterval: 2 * interval, ReceiveInterval: 2 * interval, DetectMultiplier: 4},
		{},
		desired.Peers[0].BFD,
	} {
		before := s.Snapshot().Sessions[0].Flaps
		desired.Peers = slices.Clone(desired.Peers)
		desired.Peers[0].BFD = b
		if err := s.Apply(t.Context(), desired); err != nil {
			t.Fatal(err)
		}
		want := ""
		if b.Enabled {
			want = "Up"
		}
		began := time.Now()
		wait(t, "BFD, changed", func() string {
			up := string(s.Snapshot().Sessions[0].BFD)
			return fmt.Sprint(up == want && time.Since(began) > 6*detect)
		}, "true")
		waitRoutes := func() string { return routes(s) }
		wait(t, "routes at the node", waitRoutes, atNode)
		got := s.Snapshot().Sessions[0]
		t.Logf("%+v: %d flaps, %q", b, got.Flaps-before, got.LastError)
	}
}

// betweenNodes: two speakers of the cluster change their timers live and crash without losing a route;
// one that hangs loses them at once.
func betweenNodes(t *testing.T, six bool) {
	here, there := bfdNode(six), bfdNode(six)
	for d, name := range map[*bgp.Desired]string{&here: "node/there", &there: "node/here"} {
		d.Peers[0].Name, d.Peers[0].Kind, d.Peers[0].ASN = name, bgp.PeerNode, 64512
	}
	p := &there.Peers[0]
	p.Address, p.LocalAddress = p.LocalAddress, p.Address
	p.Accept = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/32")}
	there.Global.RouterID = netip.MustParseAddr("192.168.11.254")
	there.Origins = []bgp.Origin{
		{Prefix: netip.MustParsePrefix("10.250.0.0/24"), NextHop: netip.MustParseAddr("192.168.11.254")},
		{Prefix: netip.MustParsePrefix("fd00:250::/64"), NextHop: netip.MustParseAddr("fd00:11::fe")},
	}
	s := started(t, here)
	start := func() *process {
		return startSpeaker(t, there, exec.Command("nsenter", "--net=/run/netns/tor", os.Args[0]))
	}
	other := start()
	up := func(flaps int64) {
		t.Helper()
		wait(t, "routes at the node", func() string { return routes(s) }, atNode)
		wait(t, "routes at the other node", other.routes, atTor)
		wait(t, "BFD", func() string { return string(s.Snapshot().Sessions[0].BFD) }, "Up")
		if got := s.Snapshot().Sessions[0]; got.Flaps != flaps {
			t.Errorf("session = %+v", got)
		}
	}
	up(0)

	changed := here
	changed.Peers = slices.Clone(here.Peers)
	changed.Peers[0].BFD = bgp.BFD{Enabled: true, TransmitInterval: 2 * interval, ReceiveInterval: 2 * interval, DetectMultiplier: 4}
	for _, d := range []bgp.Desired{changed, here} {
		if err := s.Apply(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		wait(t, "BFD to begin anew", func() string { return string(s.Snapshot().Sessions[0].BFD) }, "Down")
		up(0)
	}

	other.kill()
	wait(t, "stale routes", func() string { return routes(s) }, stale)
	wait(t, "BFD to fail", func() string { return string(s.Snapshot().Sessions[0].BFD) }, "Down")
	if got := routes(s); got != stale {
		t.Errorf("routes after a crash: %q", got)
	}
	there.Global.Restarting = true
	other = start()
	up(1)

	stop(t, other.cmd)
	t.Logf("routes dropped after %s", dropped(t, s, time.Now()))
}

func stop(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
}

func resume(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}
