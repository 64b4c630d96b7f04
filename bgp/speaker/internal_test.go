// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/heliograph-dev/heliograph/bgp"
)

var compareAddrs = []cmp.Option{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}

// Whatever happens to the sessions and routes, the incremental snapshot equals one made from scratch.
func TestSnapshotEqualsFromScratch(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	v := newView(slog.New(slog.DiscardHandler))
	g := v.reset(true)
	prefixes := make([]netip.Prefix, 12)
	for i := range prefixes {
		prefixes[i] = netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", i/4, i))
	}
	prefixes = append(prefixes, netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("fd00::/48"))
	addrs := make([]netip.Addr, 4)
	for i := range addrs {
		addrs[i] = netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
	}
	up := func(a netip.Addr) {
		v.onState(g, stateChange{peer: a, state: bgp.StateEstablished, capabilities: capabilities{families: 3, graceful: familySet(rnd.IntN(4)), restartTime: time.Hour}})
	}
	for range 20_000 {
		a := addrs[rnd.IntN(len(addrs))]
		switch rnd.IntN(20) {
		case 0:
			p := bgp.Peer{Address: a, Kind: bgp.PeerKind(1 + rnd.IntN(2)), Accept: []netip.Prefix{netip.MustParsePrefix("fd00::/16")}}
			if rnd.IntN(4) > 0 {
				p.Accept = append(p.Accept, netip.MustParsePrefix("10.0.0.0/8"))
			}
			v.setPeer(p)
			up(a)
		case 1:
			v.onState(g, stateChange{peer: a, state: bgp.StateIdle, graceful: rnd.IntN(2) == 0})
		case 2:
			up(a)
		case 3:
			v.onEndOfRIB(g, a, []bgp.Family{bgp.IPv4, bgp.IPv6}[rnd.IntN(2)])
		case 4:
			if rnd.IntN(20) == 0 {
				v.retainPeers(map[netip.Addr]bool{addrs[0]: true})
			}
		case 5, 6:
			checkSnapshot(t, v)
		default:
			v.onPaths(g, []update{{
				peer:     a,
				prefix:   prefixes[rnd.IntN(len(prefixes))],
				withdraw: rnd.IntN(3) == 0,
				nextHop:  addrs[rnd.IntN(len(addrs))],
				ownASN:   uint8(rnd.IntN(8) / 7),
			}})
		}
		if t.Failed() {
			return
		}
	}
}

func checkSnapshot(t *testing.T, v *view) {
	t.Helper()
	got := v.snapshot()
	var want []bgp.Path
	for addr, s := range v.sessions {
		var accepted, refused int64
		for prefix, r := range s.routes {
			if p, ok := v.path(routeKey{prefix, addr}); ok {
				want = append(want, p)
			}
			if r.refused == "" {
				accepted++
			} else {
				refused++
			}
		}
		if s.accepted != accepted || s.refused != refused {
			t.Errorf("%s: counted %d accepted and %d refused routes, there are %d and %d", addr, s.accepted, s.refused, accepted, refused)
		}
	}
	slices.SortFunc(want, comparePaths)
	if diff := cmp.Diff(want, got.Paths, append(compareAddrs, cmpopts.EquateEmpty())...); diff != "" {
		t.Errorf("paths (-scratch +incremental):\n%s", diff)
	}
}

// A snapshot that was handed out does not change any more.
func TestSnapshotIsImmutable(t *testing.T) {
	v, g, peers := crowd(1, 10)
	before := v.snapshot()
	saved := slices.Clone(before.Paths)
	v.onPaths(g, []update{
		{peer: peers[0], prefix: block(3), withdraw: true},
		{peer: peers[0], prefix: block(5), nextHop: netip.MustParseAddr("192.0.2.99")},
		{peer: peers[0], prefix: netip.MustParsePrefix("10.0.0.0/26"), nextHop: peers[0]},
	})
	after := v.snapshot()
	if diff := cmp.Diff(saved, before.Paths, compareAddrs...); diff != "" {
		t.Errorf("it changed (-was +is):\n%s", diff)
	}
	if len(after.Paths) != 9 {
		t.Errorf("%d paths", len(after.Paths))
	}
}

// Routes that arrive in a burst poke about once in a millisecond, not once each.
func TestPokesAreGathered(t *testing.T) {
	v, g, peers := crowd(1, 0)
	<-v.changed
	start := time.Now()
	const n = 1000
	for i := range n {
		v.onPaths(g, []update{{peer: peers[0], prefix: block(i), nextHop: peers[0]}})
	}
	burst := time.Since(start)
	pokes := 0
	for deadline := time.After(10 * time.Second); len(v.snapshot().Paths) < n || v.pending(); pokes++ {
		select {
		case <-v.changed:
		case <-deadline:
			t.Fatal("no poke")
		}
	}
	if limit := int(burst/pokeDelay) + 2; pokes > limit {
		t.Errorf("%d pokes for %d routes within %s", pokes, n, burst)
	}
	// What changes nothing does not poke.
	v.onPaths(g, []update{{peer: peers[0], prefix: block(1), nextHop: peers[0]}, {peer: peers[0], prefix: netip.MustParsePrefix("10.255.0.0/16"), withdraw: true}})
	v.onPaths(g-1, []update{{peer: peers[0], prefix: block(1), withdraw: true}})
	if v.pending() {
		t.Error("poked for nothing")
	}
}

func (v *view) pending() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.armed
}

// crowd is a view of peers that are up and sent routes blocks each.
func crowd(peers, routes int) (*view, int, []netip.Addr) {
	v := newView(slog.New(slog.DiscardHandler))
	g := v.reset(true)
	var addrs []netip.Addr
	for i := range peers {
		a := netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})
		addrs = append(addrs, a)
		v.setPeer(bgp.Peer{Address: a, Kind: bgp.PeerNode, Accept: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
		v.onState(g, stateChange{peer: a, state: bgp.StateEstablished, capabilities: capabilities{families: 3}})
		for r := range routes {
			v.onPaths(g, []update{{peer: a, prefix: block(r), nextHop: a}})
		}
	}
	v.snapshot()
	return v, g, addrs
}

func block(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 10), byte(i >> 2), byte(i << 6)}), 26)
}

// One route changes among 4,000 of each of 4 peers, and the snapshot is taken each time.
func BenchmarkSnapshotPerRoute(b *testing.B) {
	v, g, peers := crowd(4, 4000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		v.onPaths(g, []update{{peer: peers[i%4], prefix: block(i % 4000), nextHop: peers[0], pathLen: i}})
		v.snapshot()
	}
}

// The same without anyone looking.
func BenchmarkRoute(b *testing.B) {
	v, g, peers := crowd(4, 4000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		v.onPaths(g, []update{{peer: peers[i%4], prefix: block(i % 4000), nextHop: peers[0], pathLen: i}})
	}
}

// 1,000 sessions of 4 routes each, one of which changes.
func BenchmarkSnapshotManySessions(b *testing.B) {
	v, g, peers := crowd(1000, 4)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		v.onPaths(g, []update{{peer: peers[i%1000], prefix: block(0), nextHop: peers[0], pathLen: i}})
		v.snapshot()
	}
}
