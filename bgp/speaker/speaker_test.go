// SPDX-License-Identifier: Apache-2.0

//go:build linux

package speaker_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/bgp/speaker"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// mesh returns applied speakers 1..n, all connected, with one AS.
func mesh(t *testing.T, n int) []*node {
	t.Helper()
	var nodes []*node
	for i := range n {
		nodes = append(nodes, newNode(t, i+1, 64512))
	}
	for i, a := range nodes {
		for _, b := range nodes[i+1:] {
			connect(a, b)
		}
	}
	for _, a := range nodes {
		a.apply()
	}
	return nodes
}

func TestMeshConvergesInBothFamilies(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		n := mesh(t, 3)
		// Next hops are those of the originating node in the prefix's family, though the sessions
		// are IPv4; nothing comes from a node that did not originate it.
		n[0].waitRoutes("10.2.0.0/24>192.0.2.2<127.0.0.2 10.3.0.0/24>192.0.2.3<127.0.0.3 " +
			"fd00:2::/64>2001:db8::2<127.0.0.2 fd00:3::/64>2001:db8::3<127.0.0.3")
		n[1].waitRoutes("10.1.0.0/24>192.0.2.1<127.0.0.1 10.3.0.0/24>192.0.2.3<127.0.0.3 " +
			"fd00:1::/64>2001:db8::1<127.0.0.1 fd00:3::/64>2001:db8::3<127.0.0.3")
		n[2].waitRoutes("10.1.0.0/24>192.0.2.1<127.0.0.1 10.2.0.0/24>192.0.2.2<127.0.0.2 " +
			"fd00:1::/64>2001:db8::1<127.0.0.1 fd00:2::/64>2001:db8::2<127.0.0.2")
		n[0].wait("end of rib", func() bool { return len(n[0].session(n[1]).EndOfRIB) == 2 })
		s := n[0].session(n[1])
		if s.PrefixesIn != 2 || s.PrefixesOut != 2 || s.Rejected != 0 || s.State != bgp.StateEstablished {
			t.Errorf("session = %+v", s)
		}
	})
}

func TestApplyTwiceChangesNothing(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		a, b := newNode(t, 1, 64512), newNode(t, 2, 64512)
		connect(a, b)
		held := a.peerWith(newNode(t, 3, 64512))
		held.Held = "Secret kube-system/bgp is missing"
		a.apply()
		b.apply()
		a.waitRoutes("10.2.0.0/24>192.0.2.2<127.0.0.2 fd00:2::/64>2001:db8::2<127.0.0.2")
		a.wait("end of rib", func() bool { return len(a.session(b).EndOfRIB) == 2 })
		before := a.Snapshot()
		a.apply()
		after := a.Snapshot()
		if &before.Sessions[0] != &after.Sessions[0] {
			t.Errorf("the snapshot changed:\n%+v\n%+v", before, after)
		}
	})
}

func TestChangeOfOnePeerTouchesNoOther(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		n := mesh(t, 3)
		for _, a := range n {
			for _, b := range n {
				if a != b {
					a.waitState(b, bgp.StateEstablished)
				}
			}
		}
		since := func(a, b *node) time.Time { return a.session(b).Since }
		ab, ac, bc := since(n[0], n[1]), since(n[0], n[2]), since(n[1], n[2])

		// What is not negotiated: no session notices.
		p := n[0].peer(n[1])
		p.Name = "node/renamed"
		p.Kind = bgp.PeerFabric
		p.AllowOwnASN = 3
		p.Timers.ConnectRetry = 5 * time.Second
		p.Accept = []netip.Prefix{pfx("fd00::/16")}
		n[0].apply()
		n[0].waitRoutes("10.3.0.0/24>192.0.2.3<127.0.0.3 fd00:2::/64>2001:db8::2<127.0.0.2 fd00:3::/64>2001:db8::3<127.0.0.3")
		if got := n[0].Snapshot().Paths[1]; got.Kind != bgp.PeerFabric {
			t.Errorf("kind of %+v did not change", got)
		}
		if s := n[0].session(n[1]); s.Since != ab || s.Peer != "node/renamed" || s.Rejected != 1 || s.PrefixesIn != 1 {
			t.Errorf("session = %+v", s)
		}

		// What is negotiated: this session alone is new.
		p.Timers.Hold, p.Timers.Keepalive = 30*time.Second, 10*time.Second
		n[0].apply()
		if s := n[0].session(n[1]); s.LastError != "configuration changed: hold time" || s.Flaps != 1 {
			t.Errorf("session = %+v", s)
		}
		n[1].wait("session reset", func() bool { return n[1].session(n[0]).Flaps == 1 })
		n[0].waitState(n[1], bgp.StateEstablished)
		if since(n[0], n[2]) != ac || since(n[1], n[2]) != bc {
			t.Error("another session was reset as well")
		}
	})
}

func TestHeldPeer(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		a, b := newNode(t, 1, 64512), newNode(t, 2, 64512)
		connect(a, b)
		a.peer(b).Held = "Secret kube-system/bgp is missing"
		a.apply()
		b.apply()
		if s := a.session(b); s.State != bgp.StateHeld || s.LastError != "Secret kube-system/bgp is missing" {
			t.Errorf("session = %+v", s)
		}
		b.waitError(a, "connection closed by peer") // it listens, but not for this one
		a.peer(b).Held = ""
		a.apply()
		b.waitRoutes("10.1.0.0/24>192.0.2.1<127.0.0.1 fd00:1::/64>2001:db8::1<127.0.0.1")
		a.waitState(b, bgp.StateEstablished)
		a.peer(b).Held = "again"
		a.apply()
		if s := a.session(b); s.State != bgp.StateHeld || s.LastError != "again" || s.Flaps != 1 {
			t.Errorf("session = %+v", s)
		}
		a.waitRoutes("")
		b.waitRoutes("")
		b.waitError(a, "received Cease/Peer De-configured")
	})
}

func TestWrongASN(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		a, b := newNode(t, 1, 64512), newNode(t, 2, 65101)
		connect(a, b)
		a.peer(b).ASN = 65001
		a.apply()
		b.apply()
		a.waitError(b, "peer AS is not 65001 (sent OPEN Message Error/Bad Peer AS)")
		b.waitError(a, "peer refused our OPEN")
		a.peer(b).ASN = 65101
		a.apply()
		a.waitRoutes("10.2.0.0/24>192.0.2.2<127.0.0.2 fd00:2::/64>2001:db8::2<127.0.0.2")
	})
}

func TestPassword(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		a, b := newNode(t, 1, 64512), newNode(t, 2, 64512)
		connect(a, b)
		a.peer(b).Password = "sesame"
		a.apply()
		b.apply()
		a.waitError(b, "connection timed out (do the MD5 passwords agree?)")
		b.waitError(a, "connection timed out")
		b.peer(a).Password = "sesame"
		b.apply()
		a.waitState(b, bgp.StateEstablished)
		b.waitState(a, bgp.StateEstablished)
		// The key must leave the listening sockets as well, whoever connects.
		a.peer(b).Password, b.peer(a).Password = "", ""
		a.apply()
		b.apply()
		if got := a.session(b).LastError; got != "configuration changed: password" {
			t.Errorf("last error %q", got)
		}
		a.waitState(b, bgp.StateEstablished)
		b.waitState(a, bgp.StateEstablished)
	})
}

func TestPeerThatIsNotThere(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		a, b := newNode(t, 1, 64512), newNode(t, 2, 64512)
		connect(a, b)
		a.apply()
		a.waitError(b, "connection refused")
		b.apply()
		a.waitState(b, bgp.StateEstablished)
	})
}

func TestStop(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		n := mesh(t, 2)
		want := "10.2.0.0/24>192.0.2.2<127.0.0.2 fd00:2::/64>2001:db8::2<127.0.0.2"
		n[0].waitRoutes(want)
		if err := n[1].Stop(context.Background(), true); err != nil {
			t.Fatal(err)
		}
		if s := n[1].Snapshot(); s.Running || len(s.Sessions) != 0 || len(s.Paths) != 0 {
			t.Errorf("stopped, but %+v", s)
		}
		n[0].waitRoutes(strings.ReplaceAll(want, "2<127.0.0.2", "2<127.0.0.2!stale"))
		n[1].apply()
		n[0].waitRoutes(want)
		// By the empty Global: not graceful.
		if err := n[1].Apply(context.Background(), bgp.Desired{}); err != nil {
			t.Fatal(err)
		}
		n[0].waitRoutes("")
		n[0].waitError(n[1], "received Cease/Administrative Shutdown")
	})
}

func TestChangedGlobalRestartsTheServer(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		n := mesh(t, 2)
		n[0].waitState(n[1], bgp.StateEstablished)
		n[0].desired.Global.ASN = 64513
		n[1].peer(n[0]).ASN = 64513
		n[0].apply()
		n[1].apply()
		n[0].waitRoutes("10.2.0.0/24>192.0.2.2<127.0.0.2 fd00:2::/64>2001:db8::2<127.0.0.2")
		n[1].waitRoutes("10.1.0.0/24>192.0.2.1<127.0.0.1 fd00:1::/64>2001:db8::1<127.0.0.1") // eBGP keeps the next hop
	})
}

func TestOrigins(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		n := mesh(t, 2)
		n[0].waitRoutes("10.2.0.0/24>192.0.2.2<127.0.0.2 fd00:2::/64>2001:db8::2<127.0.0.2")
		n[1].desired.Origins = []bgp.Origin{
			{Prefix: pfx("10.2.0.0/24"), NextHop: ip("192.0.2.22")}, // moved
			{Prefix: pfx("10.22.0.0/24"), NextHop: ip("192.0.2.2")}, // new
			{Prefix: pfx("fd00:3::/64")},                            // no address of this family
		}
		n[1].apply()
		n[0].waitRoutes("10.2.0.0/24>192.0.2.22<127.0.0.2 10.22.0.0/24>192.0.2.2<127.0.0.2")
		if out := n[1].session(n[0]).PrefixesOut; out != 2 {
			t.Errorf("prefixes out = %d", out)
		}
		n[1].desired.Origins = []bgp.Origin{{Prefix: pfx("10.2.0.0/24"), NextHop: ip("2001:db8::1")}}
		if err := n[1].Apply(context.Background(), n[1].desired); err == nil {
			t.Error("an IPv4 prefix with an IPv6 next hop was taken")
		}
	})
}

// Three routers in a row: what the middle one learns stays there, over iBGP and eBGP.
func TestNothingLearnedIsAdvertised(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		a, b, c, d := newNode(t, 1, 64512), newNode(t, 2, 64512), newNode(t, 3, 65101), newNode(t, 4, 65102)
		connect(a, b)
		connect(b, c)
		connect(b, d)
		for _, n := range []*node{a, b, c, d} {
			n.apply()
		}
		b.waitRoutes("10.1.0.0/24>192.0.2.1<127.0.0.1 10.3.0.0/24>192.0.2.3<127.0.0.3 10.4.0.0/24>192.0.2.4<127.0.0.4 " +
			"fd00:1::/64>2001:db8::1<127.0.0.1 fd00:3::/64>2001:db8::3<127.0.0.3 fd00:4::/64>2001:db8::4<127.0.0.4")
		// A route that b originates after all of them is a fence: what came before it has arrived.
		b.desired.Origins = append(b.desired.Origins, bgp.Origin{Prefix: pfx("10.99.0.0/24"), NextHop: ip("192.0.2.2")})
		b.apply()
		for _, n := range []*node{a, c, d} {
			n.waitRoutes("10.2.0.0/24>192.0.2.2<127.0.0.2 10.99.0.0/24>192.0.2.2<127.0.0.2 fd00:2::/64>2001:db8::2<127.0.0.2")
		}
	})
}

func TestSessionOverIPv6(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		nettest.Cmd(t, "ip", "address", "add", "fd99::1/128", "dev", "lo", "nodad")
		nettest.Cmd(t, "ip", "address", "add", "fd99::2/128", "dev", "lo", "nodad")
		a, b := newNode(t, 1, 64512), newNode(t, 2, 64513)
		for i, n := range []*node{a, b} {
			n.addr = ip("fd99::%d", i+1)
			n.Speaker = speaker.New(speaker.Options{ListenAddresses: []netip.Addr{n.addr}}, testLog(t, n.name))
		}
		connect(a, b)
		a.apply()
		b.apply()
		a.waitRoutes("10.2.0.0/24>192.0.2.2<fd99::2 fd00:2::/64>2001:db8::2<fd99::2")
		b.waitRoutes("10.1.0.0/24>192.0.2.1<fd99::1 fd00:1::/64>2001:db8::1<fd99::1")
	})
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		a, b := newNode(t, 1, 64512), newNode(t, 2, 64512)
		connect(a, b)
		b.apply()
		l, err := net.Listen("tcp4", netip.AddrPortFrom(a.addr, testPort).String())
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Apply(t.Context(), a.desired); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("apply: %v", err)
		}
		if a.Snapshot().Running {
			t.Error("it runs")
		}
		_ = l.Close()
		a.apply()
		a.waitState(b, bgp.StateEstablished)
	})
}

func TestWrongPeers(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		a, b := newNode(t, 1, 64512), newNode(t, 2, 64512)
		connect(a, b)
		a.peerWith(b)         // twice
		a.peerWith(a).ASN = 0 // would mean any AS to GoBGP
		b.apply()
		err := a.Apply(t.Context(), a.desired)
		if err == nil || !strings.Contains(err.Error(), "named twice") || !strings.Contains(err.Error(), "without an address and an AS number") {
			t.Errorf("apply: %v", err)
		}
		a.waitState(b, bgp.StateEstablished) // the good one is not held up
		a.waitError(a, "without an address and an AS number")
	})
}
