// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const initial = "OPEN, end of ipv4-unicast, end of ipv6-unicast"

// RFC 4724 §4.2, the helper: routes stay when the connection breaks, until End-of-RIB comes without
// them, or the peer does not come back in time.
func TestHelpsRestart(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		watcher, c := b.dial("10.0.0.9", func(o *open) { o.hold = 0 }), b.dial("10.0.0.1", withRestart(false))
		c.say(announce4("192.0.2.1", "10.1.0.0/26"), announce4("192.0.2.1", "10.2.0.0/26"), announce6("2001:db8::1", "fd00:1::/64"))
		diff(t, "at first", watcher.events(), initial+", + 10.1.0.0/26, + 10.2.0.0/26, + fd00:1::/64")
		c.close()
		time.Sleep(50 * time.Second)
		synctest.Wait()
		diff(t, "while it is away", watcher.events(), "")
		if s := b.session("10.0.0.1"); len(s.Stale) != 2 || s.PrefixesIn != 3 {
			t.Errorf("status: %+v", s)
		}
		c = b.dial("10.0.0.1", withRestart(true))
		c.say(announce4("192.0.2.1", "10.1.0.0/26"), announce6("2001:db8::1", "fd00:1::/64"))
		diff(t, "back", watcher.events(), "")
		c.say(endOfRIB(ipv6), endOfRIB(ipv4))
		diff(t, "one did not come back", watcher.events(), "- 10.2.0.0/26")

		c.close()
		time.Sleep(62 * time.Second)
		synctest.Wait()
		diff(t, "not back in time", watcher.events(), "- 10.1.0.0/26, - fd00:1::/64")
		if s := b.Snapshot(); s.Routes != [2]int{} {
			t.Errorf("left: %+v", s)
		}
	})
}

// What ends stale routes at once: a NOTIFICATION, a hold timer, a restart that kept nothing, a second
// break before the End-of-RIB.
func TestDropsStale(t *testing.T) {
	lost := func(o *open) { o.restart = &restart{restarting: true, time: time.Minute, families: 3} }
	alive := func(o *open) { o.restart = &restart{time: time.Minute, families: 3} }
	one := func(o *open) { o.restart = &restart{restarting: true, time: time.Minute, families: 1, forwarding: 1} }
	for _, tc := range []struct {
		name  string
		end   func(b *bed, c *client)
		again func(*open)
		want  string
	}{
		{"notification", func(_ *bed, c *client) { c.say(notify(errCease, 0, nil, "").message()) }, nil, "- 10.1.0.0/26, - fd00:1::/64"},
		{"silence", func(_ *bed, c *client) { time.Sleep(91 * time.Second) }, nil, "- 10.1.0.0/26, - fd00:1::/64"},
		{"garbage", func(_ *bed, c *client) { c.say(make([]byte, 19)) }, nil, "- 10.1.0.0/26, - fd00:1::/64"},
		{"nothing kept", func(_ *bed, c *client) { c.close() }, lost, "- 10.1.0.0/26, - fd00:1::/64"},
		{"the connection broke, the process lives", func(_ *bed, c *client) { c.close() }, alive, ""},
		{"one family kept", func(_ *bed, c *client) { c.close() }, one, "- fd00:1::/64"},
		{"no graceful restart any more", func(_ *bed, c *client) { c.close() }, func(*open) {}, "- 10.1.0.0/26, - fd00:1::/64"},
		{"twice", func(b *bed, c *client) { c.close(); b.dial("10.0.0.1", withRestart(true)).close() }, nil, "- 10.1.0.0/26, - fd00:1::/64"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBed(t, Options{}, func(t *testing.T, b *bed) {
				watcher, c := b.dial("10.0.0.9", func(o *open) { o.hold = 0 }), b.dial("10.0.0.1", withRestart(false))
				c.say(announce4("192.0.2.1", "10.1.0.0/26"), announce6("2001:db8::1", "fd00:1::/64"))
				watcher.events()
				tc.end(b, c)
				if tc.again != nil {
					b.dial("10.0.0.1", tc.again)
				}
				watcher.say()
				diff(t, "watcher", watcher.events(), tc.want)
			})
		})
	}
}

// RFC 4724 §4.1, the restarting side: nothing is sent until all have told, or the timer is over.
func TestRestarts(t *testing.T) {
	opts := Options{Restarted: []netip.Addr{addr("10.0.0.1"), addr("10.0.0.2")}, Deferral: 30 * time.Second}
	inBed(t, opts, func(t *testing.T, b *bed) {
		a := b.dial("10.0.0.1", withRestart(false))
		a.say(announce4("192.0.2.1", "10.1.0.0/26"), endOfRIB(ipv4), endOfRIB(ipv6))
		stranger := b.dial("10.0.0.3")
		diff(t, "held back", a.events()+stranger.events(), "OPENOPEN")
		c := b.dial("10.0.0.2", withRestart(false))
		c.say(announce4("192.0.2.2", "10.2.0.0/26"), endOfRIB(ipv4))
		diff(t, "one family is not enough", c.events(), "OPEN")
		c.say(endOfRIB(ipv6))
		diff(t, "a", a.events(), "+ 10.2.0.0/26, end of ipv4-unicast, end of ipv6-unicast")
		diff(t, "c", c.events(), "+ 10.1.0.0/26, end of ipv4-unicast, end of ipv6-unicast")
		if got := stranger.prefixes(); got != "10.1.0.0/26 10.2.0.0/26" {
			t.Errorf("stranger has %s", got)
		}
	})
	inBed(t, opts, func(t *testing.T, b *bed) {
		a := b.dial("10.0.0.1", withRestart(false))
		a.say(announce4("192.0.2.1", "10.1.0.0/26"), endOfRIB(ipv4), endOfRIB(ipv6))
		time.Sleep(31 * time.Second)
		synctest.Wait()
		diff(t, "in time", a.events(), initial)
	})
	inBed(t, opts, func(t *testing.T, b *bed) { // who restarts too, or cannot, is not waited for
		b.dial("10.0.0.1", withRestart(true))
		c := b.dial("10.0.0.2")
		diff(t, "c", c.events(), initial)
	})
}

// RFC 2918 and 7313: a client asks again; we ask when more is accepted; what an enhanced refresh leaves
// out is gone.
func TestRefresh(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		a, c := b.dial("10.0.0.1"), b.dial("10.0.0.2")
		a.say(announce4("192.0.2.1", "10.1.0.0/26"), announce4("192.0.2.1", "10.2.0.0/26"), announce6("2001:db8::1", "fd00:1::/64"))
		c.events()
		c.say(refreshMessage(ipv6, refreshRequest))
		diff(t, "asked for IPv6", c.events(), "refresh 2 1, + fd00:1::/64, refresh 2 2")

		b.cfg.Peers[0].Accept = Policy{Rules: []Rule{{Prefix: pfx("10.1.0.0/16")}, {Prefix: pfx("fd00::/16")}}}
		b.apply()
		c.say()
		diff(t, "not accepted any more", c.prefixes(), "10.1.0.0/26 fd00:1::/64")
		b.cfg.Peers[0].Accept = Policy{Any: true}
		b.apply()
		a.say()
		if got := a.events(); !strings.HasSuffix(got, "refresh 1 0, refresh 2 0") {
			t.Errorf("a was asked %q", got)
		}
		a.say(refreshMessage(ipv4, refreshBegin), announce4("192.0.2.1", "10.2.0.0/26"), refreshMessage(ipv4, refreshEnd))
		diff(t, "what the refresh left out is gone", c.prefixes(), "10.2.0.0/26 fd00:1::/64")
	})
}

// A policy changed while sessions are up: nobody is reset, and everybody has what he may.
func TestPolicyChanges(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		a, c := b.dial("10.0.0.1"), b.dial("10.0.0.2")
		a.say(announce4("192.0.2.1", "10.1.0.0/26"), announce4("192.0.2.1", "10.2.0.0/24"), announce6("2001:db8::1", "fd00:1::/64"))
		c.events()
		set := func(p Policy) { b.cfg.Peers[0].Advertise = p; b.apply(); c.say() }
		set(Policy{Rules: []Rule{{Prefix: pfx("10.0.0.0/8"), GE: 25}}})
		diff(t, "less", c.prefixes(), "10.1.0.0/26")
		a.say(announce4("192.0.2.1", "10.3.0.0/26"), announce4("192.0.2.1", "10.4.0.0/24"), withdraw6("fd00:1::/64"))
		diff(t, "the new group goes on", c.prefixes(), "10.1.0.0/26 10.3.0.0/26")
		set(Policy{Any: true})
		diff(t, "more", c.prefixes(), "10.1.0.0/26 10.2.0.0/24 10.3.0.0/26 10.4.0.0/24")
		a.say(withdraw4("10.3.0.0/26"))
		diff(t, "and on", c.prefixes(), "10.1.0.0/26 10.2.0.0/24 10.4.0.0/24")
		if s := b.session("10.0.0.2"); s.Flaps != 0 {
			t.Errorf("%+v", s)
		}
		if g := b.Snapshot().Groups; len(g) != 1 || g[0].Members != 2 {
			t.Errorf("groups %+v", g)
		}
		b.cfg.Peers[0].Timers.Hold = 30 * time.Second
		b.apply()
		synctest.Wait()
		if got := c.events(); !strings.HasSuffix(got, "got Cease/Other Configuration Change, closed") {
			t.Errorf("a new hold time: %q", got)
		}
	})
}

// RFC 7911: all paths for whom wants them, each with its own identifier.
func TestAddPaths(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		a, c := b.dial("10.0.0.1"), b.dial("10.0.0.2")
		near, far := b.connect("10.0.0.3"), b.dial("10.0.0.4")
		near.open.addPaths = 3
		m := near.open.message()
		m[len(m)-1], m[len(m)-5] = addPathReceive, addPathReceive
		near.say(m, keepaliveMessage())
		a.say(announce4("192.0.2.1", "10.1.0.0/26"), announce6("2001:db8::1", "fd00:1::/64"))
		c.say(announce4("192.0.2.2", "10.1.0.0/26"))
		diff(t, "all", near.prefixes(), "10.1.0.0/26#1 10.1.0.0/26#2 fd00:1::/64#1")
		diff(t, "the best", far.prefixes(), "10.1.0.0/26 fd00:1::/64")
		near.events()
		c.say(announce4("192.0.2.22", "10.1.0.0/26"))
		diff(t, "only what changed", near.events(), "+ 10.1.0.0/26#2")
		a.say(withdraw4("10.1.0.0/26"), withdraw6("fd00:1::/64"))
		diff(t, "one less", near.events(), "- 10.1.0.0/26#1, - fd00:1::/64#1")
		diff(t, "the best changes", far.prefixes(), "10.1.0.0/26")
		if got := b.Routes(netip.Prefix{}); len(got) != 1 || len(got[0].Paths) != 1 || got[0].Why != ReasonOnly {
			t.Errorf("routes %+v", got)
		}
	})
}

// RFC 4486 §4: a client with too many prefixes goes, stays away for a while, and says why.
func TestMaxPrefixes(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		b.cfg.Peers[0].MaxPrefixes = 2
		b.apply()
		watcher, c := b.dial("10.0.0.9", func(o *open) { o.hold = 0 }), b.dial("10.0.0.1", withRestart(false))
		c.say(announce4("192.0.2.1", "10.1.0.0/26"), announce4("192.0.2.1", "10.2.0.0/26"), announce6("2001:db8::1", "fd00:1::/64"))
		diff(t, "each family by itself", watcher.prefixes(), "10.1.0.0/26 10.2.0.0/26 fd00:1::/64")
		c.say(announce4("192.0.2.1", "10.3.0.0/26"))
		diff(t, "gone", watcher.prefixes(), "")
		if got := c.events(); !strings.HasSuffix(got, "got Cease/Maximum Number of Prefixes Reached, closed") {
			t.Errorf("it got %q", got)
		}
		diff(t, "held down", b.dial("10.0.0.1").events(), "got Cease/Connection Rejected, closed")
		time.Sleep(time.Minute)
		diff(t, "later", b.dial("10.0.0.1").events(), initial)
	})
}

// A client that stops reading is dropped when it has not read for the hold time, or lags too much;
// the others notice nothing.
func TestSlowClients(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		a, c := b.dial("10.0.0.1", func(o *open) { o.hold = 0 }), b.connect("10.0.0.2", func(o *open) { o.hold = 9 })
		c.say(c.open.message(), keepaliveMessage())
		c.stalled.Store(true) // its reader stops behind the next message
		start := time.Now()
		a.write(announce4("192.0.2.1", "10.1.0.0/26"))
		for b.session("10.0.0.2").State == "Established" && time.Since(start) < time.Minute {
			time.Sleep(time.Second)
			c.write(keepaliveMessage())
		}
		took := time.Since(start)
		close(c.resume)
		if took > 18*time.Second {
			t.Errorf("dropped after %s", took)
		}
		diff(t, "last error", b.session("10.0.0.2").LastError, "peer did not read for the hold time")
		if s := b.session("10.0.0.1"); s.Flaps != 0 {
			t.Errorf("the other: %+v", s)
		}
	})
	inBed(t, Options{MaxLag: 1000}, func(t *testing.T, b *bed) {
		a, c := b.dial("10.0.0.1", func(o *open) { o.hold = 0 }), b.dial("10.0.0.2")
		c.stalled.Store(true)
		for range 30 {
			a.write(announce4("192.0.2.1", "10.1.0.0/26"))
			time.Sleep(20 * time.Millisecond)
			a.write(withdraw4("10.1.0.0/26"))
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(3 * time.Second)
		s := b.session("10.0.0.2")
		close(c.resume)
		if !strings.HasPrefix(s.LastError, "sent Cease/Out of Resources: client is ") {
			t.Errorf("last error %q", s.LastError)
		}
	})
}

// A panic of one session is that session's.
func TestPanic(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		a, c := b.dial("10.0.0.1"), b.dial("10.0.0.2")
		var s *session
		b.run.core.do(func(k *core) {
			s = k.peers[peerKey{addr: addr("10.0.0.1")}].up
			s.parser.attrs = make([]attr, 1)
			s.peer.source = nil
		})
		a.say(announce4("192.0.2.1", "10.1.0.0/26")) // the core stumbles over the source that is gone
		if got := a.events(); !strings.HasSuffix(got, "got Cease/Administrative Reset, closed") {
			t.Errorf("a got %q", got)
		}
		b.run.core.do(func(k *core) { k.peers[peerKey{addr: addr("10.0.0.1")}].source = &source{} })
		c.say(announce4("192.0.2.2", "10.2.0.0/26"))
		diff(t, "goes on", b.dial("10.0.0.3").prefixes(), "10.2.0.0/26")
	})
}

// Another identity is another speaker.
func TestIdentityChanges(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		c := b.dial("10.0.0.1")
		b.cfg.ClusterID = addr("10.255.0.99")
		b.apply()
		diff(t, "told", c.events(), initial+", got Cease/Other Configuration Change, closed")
		diff(t, "back", b.dial("10.0.0.1").events(), initial)
	})
	if err := New(Options{}, nil).Stop(context.Background(), true); err != nil {
		t.Error(err)
	}
}
