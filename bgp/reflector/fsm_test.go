// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
)

// wrong is an OPEN with something changed after it was encoded.
func wrong(c *client, at int, value ...byte) []byte {
	m := c.open.message()
	copy(m[at:], value)
	return m
}

// RFC 4271 §6.1, §6.2, §6.6 and §8.2.2, RFC 6608, RFC 6286: what is answered to what must not be.
func TestRefusesMessages(t *testing.T) {
	for _, tc := range []struct {
		name string
		say  func(c *client) [][]byte
		want string
	}{
		{"marker", func(c *client) [][]byte { return [][]byte{make([]byte, 19)} }, "Message Header Error/Connection Not Synchronized"},
		{"type", func(c *client) [][]byte { return [][]byte{finish(appendHeader(nil, 9), 0)} }, "Message Header Error/Bad Message Type"},
		{"length", func(c *client) [][]byte { return [][]byte{finish(append(appendHeader(nil, msgKeepalive), 0), 0)} },
			"Message Header Error/Bad Message Length"},
		{"version", func(c *client) [][]byte { return [][]byte{wrong(c, 19, 3)} }, "OPEN Message Error/Unsupported Version Number"},
		{"hold time 2", func(c *client) [][]byte { return [][]byte{wrong(c, 22, 0, 2)} }, "OPEN Message Error/Unacceptable Hold Time"},
		{"AS", func(c *client) [][]byte { c.open.asn = 1; return [][]byte{c.open.message()} }, "OPEN Message Error/Bad Peer AS"},
		{"identifier 0", func(c *client) [][]byte { return [][]byte{wrong(c, 24, 0, 0, 0, 0)} }, "OPEN Message Error/Bad BGP Identifier"},
		{"our identifier", func(c *client) [][]byte { return [][]byte{wrong(c, 24, 10, 255, 0, 1)} }, "OPEN Message Error/Bad BGP Identifier"},
		{"optional parameter", func(c *client) [][]byte { return [][]byte{wrong(c, 29, 77)} }, "OPEN Message Error/Unsupported Optional Parameter"},
		{"parameters cut off", func(c *client) [][]byte { return [][]byte{wrong(c, 28, 255)} }, "OPEN Message Error"},
		{"capability cut off", func(c *client) [][]byte { return [][]byte{wrong(c, 32, 200)} }, "OPEN Message Error"},
		{"no common family", func(c *client) [][]byte {
			return [][]byte{wrong(c, 31, capMultiprotocol, 4, 0, 25, 0, 70, capMultiprotocol, 4, 0, 25, 0, 71)}
		},
			"OPEN Message Error/Unsupported Capability"},
		{"no OPEN", func(c *client) [][]byte { return [][]byte{keepaliveMessage()} }, "Finite State Machine Error/Unexpected Message in OpenSent"},
		{"two OPENs", func(c *client) [][]byte { return [][]byte{c.open.message(), c.open.message()} },
			"Finite State Machine Error/Unexpected Message in OpenConfirm"},
		{"OPEN when established", func(c *client) [][]byte { return [][]byte{c.open.message(), keepaliveMessage(), c.open.message()} },
			"Finite State Machine Error/Unexpected Message in Established"},
		{"a message longer than was agreed", func(c *client) [][]byte {
			m := appendHeader(nil, msgOpen) // to which RFC 8654 does not apply
			return [][]byte{c.open.message(), keepaliveMessage(), finish(append(m, make([]byte, 4100)...), 0)[:headerLen]}
		}, "Message Header Error/Bad Message Length"},
		{"refresh of a wrong length", func(c *client) [][]byte {
			return [][]byte{c.open.message(), keepaliveMessage(), finish(append(appendHeader(nil, msgRefresh), 0, 1), 0)}
		}, "ROUTE-REFRESH Message Error/Invalid Message Length"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBed(t, Options{}, func(t *testing.T, b *bed) {
				good := b.dial("10.0.0.1")
				c := b.connect("10.0.0.9")
				c.say(tc.say(c)...)
				if got := c.events(); !strings.Contains(got, "got "+tc.want) || !strings.HasSuffix(got, "closed") {
					t.Errorf("got %q, want %q and the end", got, tc.want)
				}
				if got := b.session("10.0.0.9"); !strings.HasPrefix(got.LastError, "sent "+tc.want) {
					t.Errorf("last error %q", got.LastError)
				}
				if s := b.session("10.0.0.1"); s.State != bgp.StateEstablished {
					t.Errorf("the other session is %s: %s", s.State, good.events())
				}
			})
		})
	}
}

// RFC 4271 §4.2, §4.4, §6.5: the smaller hold time counts; silence ends the session.
func TestHoldTimer(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		c := b.dial("10.0.0.1", func(o *open) { o.hold = 9 })
		c.events()
		time.Sleep(8 * time.Second)
		synctest.Wait()
		if s := b.session("10.0.0.1"); s.State != bgp.StateEstablished {
			t.Fatalf("too early: %+v", s.Session)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		diff(t, "end", c.events(), "got Hold Timer Expired, closed")
		diff(t, "last error", b.session("10.0.0.1").LastError, "hold timer expired")
	})
}

// A peer that sends a message octet by octet is as good as silent; one without hold time may be silent.
func TestTrickle(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		slow := b.dial("10.0.0.1", func(o *open) { o.hold = 9 })
		calm := b.dial("10.0.0.2", func(o *open) { o.hold = 0 })
		for _, x := range keepaliveMessage() {
			slow.write([]byte{x})
			time.Sleep(time.Second)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := slow.events(); !strings.HasSuffix(got, "got Hold Timer Expired, closed") {
			t.Errorf("slow: %s", got)
		}
		diff(t, "calm", calm.events(), "OPEN, end of ipv4-unicast, end of ipv6-unicast")
		if s := b.session("10.0.0.2"); s.State != bgp.StateEstablished {
			t.Errorf("calm: %+v", s.Session)
		}
	})
}

// RFC 4271 §4.4: a KEEPALIVE at least each third of the hold time.
func TestKeepalives(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		c := b.connect("10.0.0.1", func(o *open) { o.hold = 9 })
		c.say(c.open.message(), keepaliveMessage())
		c.keepAliveEach(3*time.Second, time.Minute)
		if s := b.session("10.0.0.1"); s.State != bgp.StateEstablished {
			t.Fatalf("%+v", s.Session)
		}
		if n := c.kept(); n < 20 || n > 28 {
			t.Errorf("%d KEEPALIVEs in a minute", n)
		}
	})
}

func (c *client) keepAliveEach(every, d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(every)
		c.write(keepaliveMessage())
	}
	synctest.Wait()
}

// RFC 4271 §6.8: of two connections that cross, the one of the higher identifier stays.
func TestCollision(t *testing.T) {
	for _, tc := range []struct {
		name       string
		id         [4]byte
		activeWins bool
	}{
		{"ours is higher", [4]byte{10, 0, 0, 1}, true},
		{"theirs is higher", [4]byte{200, 0, 0, 1}, false},
	} {
		for _, activeFirst := range []bool{true, false} {
			t.Run(tc.name, func(t *testing.T) {
				inBed(t, Options{}, func(t *testing.T, b *bed) {
					id := func(o *open) { o.id = tc.id }
					conns := []*client{b.crossed("10.0.0.1", activeFirst, id), b.crossed("10.0.0.1", !activeFirst, id)}
					conns[0].say(conns[0].open.message())
					conns[1].say(conns[1].open.message())
					win, lose := conns[0], conns[1]
					if activeFirst != tc.activeWins {
						win, lose = lose, win
					}
					win.say(keepaliveMessage())
					if got := lose.events(); !strings.Contains(got, "Cease/Connection Collision Resolution") {
						t.Errorf("the loser got %q", got)
					}
					diff(t, "winner", win.events(), "OPEN, end of ipv4-unicast, end of ipv6-unicast")
				})
			})
		}
	}
}

// An established session wins over a new connection, unless its peer can restart: then it has.
func TestSecondConnection(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		watcher := b.dial("10.0.0.9")
		first := b.dial("10.0.0.1")
		second := b.dial("10.0.0.1")
		diff(t, "second", second.events(), "OPEN, got Cease/Connection Collision Resolution, closed")
		first.say(announce4("192.0.2.1", "10.1.0.0/26"))

		old := b.dial("10.0.0.2", withRestart(false))
		old.say(announce4("192.0.2.2", "10.2.0.0/26"))
		again := b.dial("10.0.0.2", withRestart(true))
		again.say(announce4("192.0.2.2", "10.2.0.0/26"), endOfRIB(ipv4), endOfRIB(ipv6))
		if got := old.events(); !strings.HasSuffix(got, "closed") || strings.Contains(got, "got") {
			t.Errorf("the old connection: %q", got)
		}
		diff(t, "nobody sees it", watcher.events(), "OPEN, end of ipv4-unicast, end of ipv6-unicast, + 10.1.0.0/26, + 10.2.0.0/26")
	})
}

// Both sides' connections cross, and one is established before the OPEN of the other comes: it stays, also if
// both sides can restart. Later, a connection means that the peer has restarted.
func TestCrossedConnections(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		first, second := b.crossed("10.0.0.1", true, withRestart(false)), b.crossed("10.0.0.1", false, withRestart(false))
		first.say(first.open.message(), keepaliveMessage())
		second.say(second.open.message())
		diff(t, "the later one", second.events(), "OPEN, got Cease/Connection Collision Resolution, closed")
		diff(t, "the first", first.events(), initial)
		time.Sleep(crossing)
		diff(t, "a restart", b.dial("10.0.0.1", withRestart(true)).events(), initial)
		if s := b.session("10.0.0.1"); s.Flaps != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// What a peer says when it ends a session, and whatever it writes (RFC 9003), is told.
func TestReceivedNotification(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		c := b.dial("10.0.0.1", withRestart(false))
		c.say(announce4("192.0.2.1", "10.1.0.0/26"))
		c.say(shutdown(subShutdown, "main\x1btenance").message())
		s := b.session("10.0.0.1")
		diff(t, "last error", s.LastError, "received Cease/Administrative Shutdown: main tenance")
		if s.Flaps != 1 || b.Snapshot().Routes != [2]int{} {
			t.Errorf("%+v: a NOTIFICATION ends the routes too (RFC 4724 §4.2)", s)
		}
	})
}

// What we say when we stop, and when a peer is taken out of the configuration.
func TestSaysWhy(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		c := b.dial("10.0.0.1")
		b.cfg.Peers = nil
		b.apply()
		synctest.Wait()
		diff(t, "removed", c.events(), "OPEN, end of ipv4-unicast, end of ipv6-unicast, got Cease/Peer De-configured, closed")
	})
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		c := b.dial("10.0.0.1")
		b.stop(false)
		synctest.Wait()
		diff(t, "stopped", c.events(), "OPEN, end of ipv4-unicast, end of ipv6-unicast, got Cease/Administrative Shutdown: reflector stops, closed")
	})
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		c := b.dial("10.0.0.1")
		b.stop(true)
		synctest.Wait()
		diff(t, "stopped to restart", c.events(), "OPEN, end of ipv4-unicast, end of ipv6-unicast, closed")
	})
}

// A connection that says nothing does not stay, and more than a few of one neighbour are refused.
func TestSilentConnections(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		var conns []*client
		for range 6 {
			conns = append(conns, b.connect("10.0.0.1"))
		}
		for i, c := range conns {
			want := "OPEN"
			if i >= maxConnections {
				want = "got Cease/Connection Rejected, closed"
			}
			diff(t, "at first", c.events(), want)
		}
		time.Sleep(openHold + time.Second)
		synctest.Wait()
		diff(t, "later", conns[0].events(), "got Hold Timer Expired, closed")
		b.connect("11.0.0.1").mustBeClosed()
	})
}

func (c *client) mustBeClosed() {
	c.t.Helper()
	diff(c.t, "a stranger", c.events(), "closed")
}

// Whatever was agreed: families, size of AS numbers (RFC 5492, 4760, 6793), RFC 9072's long OPEN.
func TestNegotiates(t *testing.T) {
	long := func(o open) []byte {
		m := o.message()
		params := m[headerLen+10:]
		b := append(slices.Clone(m[:headerLen+9]), 255, 255, byte((len(params)+1)>>8), byte(len(params)+1), params[0], 0, params[1])
		return finish(append(b, params[2:]...), 0)
	}
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		c := b.connect("10.0.0.1", func(o *open) { o.families = 1 << ipv6 })
		c.say(long(c.open), keepaliveMessage())
		diff(t, "IPv6 alone", c.events(), "OPEN, end of ipv6-unicast")
		old := b.connect("10.0.0.2")
		m := appendHeader(nil, msgOpen)
		m = append(m, 4, 0xfc, 0, 0, 90, 10, 0, 0, 2, 0) // AS 64512 and no capability at all
		old.say(finish(m, 0), keepaliveMessage())
		diff(t, "IPv4 alone", old.events(), "OPEN, end of ipv4-unicast")
		old.say(announce4("192.0.2.1", "10.1.0.0/26"))
		c.say(announce4("192.0.2.1", "10.2.0.0/26"), announce6("2001:db8::1", "fd00:1::/64"))
		diff(t, "nothing of a family that was not agreed", old.prefixes()+c.prefixes(), "")
		if s := b.Snapshot(); s.Routes != [2]int{1, 1} {
			t.Errorf("routes: %v", s.Routes)
		}
	})
}

func TestOpenMessage(t *testing.T) {
	o := open{
		asn: 4200000000, hold: 90, id: [4]byte{10, 0, 0, 1}, families: 3, as4: true, refresh: true, enhanced: true, extended: true,
		restart: &restart{restarting: true, time: 120 * time.Second, families: 3, forwarding: 1},
	}
	got, bad := parseOpen(o.message()[headerLen:])
	if bad != nil {
		t.Fatal(bad)
	}
	if *got.restart != *o.restart {
		t.Errorf("restart %+v, want %+v", got.restart, o.restart)
	}
	got.restart, o.restart = nil, nil
	if got != o {
		t.Errorf("got %+v, want %+v", got, o)
	}
	if as := o.message()[headerLen+1 : headerLen+3]; !bytes.Equal(as, []byte{0x5b, 0xa0}) {
		t.Errorf("My AS is %x, not AS_TRANS", as)
	}
}
