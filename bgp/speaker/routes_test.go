// SPDX-License-Identifier: Apache-2.0

//go:build linux

package speaker_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	packet "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/bgp/speaker"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

func TestAcceptAndReplace(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		n := newNode(t, 1, 64512)
		p := rawPeer(n, "127.0.0.9", 65101)
		p.Accept = []netip.Prefix{pfx("10.8.0.0/16"), pfx("fd00:8::/32")}
		n.apply()
		r := dialRaw(t, n, "127.0.0.9", 65101)
		counts := func(in, rejected int64) {
			t.Helper()
			n.wait("counters", func() bool {
				s := n.Snapshot().Sessions[0]
				return s.PrefixesIn == in && s.Rejected == rejected
			})
		}

		r.announce("10.8.0.0/16", "192.0.2.1")          // the prefix itself
		r.announce("10.8.1.0/24", "192.0.2.1")          // more specific
		r.announce("10.0.0.0/8", "192.0.2.1")           // less specific
		r.announce("0.0.0.0/0", "192.0.2.1")            // least specific
		r.announce("10.9.0.0/24", "192.0.2.1")          // beside it
		r.announce("fd00:8:1::/64", "2001:db8::1")      // the other family
		r.announce("fd00:9::/64", "2001:db8::1")        // beside it
		r.announce("fd00:8:2::/64", "fe80::1")          // no global next hop
		r.announce("fd00:8:3::/64", "::ffff:192.0.2.1") // as FRR does without an IPv6 address
		r.announce("10.8.2.0/24", "192.0.2.1", 64512)   // our own AS
		r.announce("10.8.3.0/24", "2001:db8::1")        // RFC 8950
		n.waitRoutes("10.8.0.0/16>192.0.2.1<127.0.0.9 10.8.1.0/24>192.0.2.1<127.0.0.9 10.8.3.0/24>2001:db8::1<127.0.0.9 " +
			"fd00:8:1::/64>2001:db8::1<127.0.0.9")
		counts(4, 7)

		// Replaced by what is accepted, and by what is not: then the old one must go, too.
		r.announce("10.8.0.0/16", "192.0.2.2", 65200, 65201)
		r.announce("10.8.1.0/24", "192.0.2.2", 64512)
		r.announce("fd00:8:1::/64", "fe80::1")
		n.waitRoutes("10.8.0.0/16>192.0.2.2<127.0.0.9 10.8.3.0/24>2001:db8::1<127.0.0.9")
		if got := n.Snapshot().Paths[0].ASPathLen; got != 3 {
			t.Errorf("AS_PATH length %d", got)
		}
		counts(2, 9)
		r.withdraw("10.8.0.0/16")
		r.withdraw("10.9.0.0/24")
		r.withdraw("10.77.0.0/24") // never announced
		n.waitRoutes("10.8.3.0/24>2001:db8::1<127.0.0.9")
		counts(1, 8)

		// The filters change under what was received long ago.
		n.desired.Peers[0].AllowOwnASN = 1
		n.desired.Peers[0].Accept = []netip.Prefix{pfx("10.0.0.0/8")}
		n.apply()
		n.waitRoutes("10.0.0.0/8>192.0.2.1<127.0.0.9 10.8.1.0/24>192.0.2.2<127.0.0.9 10.8.2.0/24>192.0.2.1<127.0.0.9 10.8.3.0/24>2001:db8::1<127.0.0.9")
		counts(4, 5)
		n.desired.Peers[0].Accept = nil
		n.apply()
		n.waitRoutes("")
		counts(0, 9)
		if s := n.Snapshot().Sessions[0]; s.Flaps != 0 {
			t.Errorf("session was reset: %+v", s)
		}
	})
}

// Two peers offer the same prefix: both paths are there, whichever GoBGP would call best.
func TestAllPathsAreKept(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		n := newNode(t, 1, 64512)
		rawPeer(n, "127.0.0.8", 65101).Kind = bgp.PeerFabric
		rawPeer(n, "127.0.0.9", 64512)
		n.apply()
		a, b := dialRaw(t, n, "127.0.0.8", 65101), dialRaw(t, n, "127.0.0.9", 64512)
		a.announce("10.8.0.0/24", "192.0.2.1")
		n.waitRoutes("10.8.0.0/24>192.0.2.1<127.0.0.8")
		b.announce("10.8.0.0/24", "192.0.2.9")
		a.announce("10.1.0.0/24", "192.0.2.1") // what we originate ourselves
		n.waitRoutes("10.1.0.0/24>192.0.2.1<127.0.0.8 10.8.0.0/24>192.0.2.9<127.0.0.9 10.8.0.0/24>192.0.2.1<127.0.0.8")
		a.withdraw("10.8.0.0/24")
		n.waitRoutes("10.1.0.0/24>192.0.2.1<127.0.0.8 10.8.0.0/24>192.0.2.9<127.0.0.9")
		_ = b.conn.Close() // without graceful restart: gone at once
		n.waitRoutes("10.1.0.0/24>192.0.2.1<127.0.0.8")
	})
}

func TestTooManyPrefixes(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		n := newNode(t, 1, 64512)
		n.Speaker = speaker.New(speaker.Options{ListenAddresses: []netip.Addr{n.addr}, MaxPrefixes: 3, OverLimitRetry: time.Second}, testLog(t, n.name))
		rawPeer(n, "127.0.0.9", 65101)
		n.apply()
		gr := packet.NewCapGracefulRestart(false, false, 120, []*packet.CapGracefulRestartTuple{packet.NewCapGracefulRestartTuple(packet.RF_IPv4_UC, false)})
		r := dialRaw(t, n, "127.0.0.9", 65101, gr)
		for _, p := range []string{"10.8.1.0/24", "10.8.2.0/24", "10.8.3.0/24"} {
			r.announce(p, "192.0.2.1")
		}
		n.wait("3 routes", func() bool { return len(n.routes()) == 3 })
		r.announce("172.16.0.0/24", "192.0.2.1") // refused, but it counts
		n.waitRoutes("")
		n.wait("why", func() bool {
			return n.Snapshot().Sessions[0].LastError == "peer sent more than 3 prefixes"
		})
		<-r.gone
		n.apply() // does not shorten the penalty, nor forget that it ends
		if len(r.notifications) != 1 || r.notifications[0] != [2]byte{6, 2} {
			t.Errorf("notifications %v", r.notifications)
		}
		again := dialRaw(t, n, "127.0.0.9", 65101)
		again.announce("10.8.1.0/24", "192.0.2.1")
		n.waitRoutes("10.8.1.0/24>192.0.2.1<127.0.0.9")
	})
}

// 4,000 routes in a message each, as from a cluster of a thousand nodes: few pokes, and all there.
func TestManyRoutesOneByOne(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		n := newNode(t, 1, 64512)
		rawPeer(n, "127.0.0.9", 65101)
		n.apply()
		r := dialRaw(t, n, "127.0.0.9", 65101)
		const routes = 4000
		start := time.Now()
		go func() {
			for i := range routes {
				r.announce(fmt.Sprintf("10.%d.%d.%d/26", 1+i>>10, i>>2&255, i<<6&255), "192.0.2.1")
			}
		}()
		pokes := 0
		for timeout := time.After(time.Minute); len(n.Snapshot().Paths) < routes; pokes++ {
			select {
			case <-n.Changed():
			case <-timeout:
				t.Fatalf("%d routes after a minute", len(n.Snapshot().Paths))
			}
		}
		t.Logf("%d routes in %s: %d pokes and snapshots", routes, time.Since(start), pokes)
		if pokes > routes/4 {
			t.Errorf("%d pokes for %d routes", pokes, routes)
		}
	})
}
