// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
)

func TestDamping(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	for _, tc := range []struct {
		name string
		ends []time.Duration // how long each session lasted; the next begins at once, or when it may
		want []time.Duration // IdleHoldTime after each
	}{
		{"restarted now and then", []time.Duration{time.Hour, time.Second, time.Second, time.Hour, time.Second}, []time.Duration{0, 0, 0, 0, 0}},
		{"resets", []time.Duration{1, 1, 1, 1, 1, 1, 1, 1, 1}, []time.Duration{0, 0, 0, 0, 0, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}},
		{"steady again", []time.Duration{1, 1, 1, 1, 1, 1, time.Minute, 1}, []time.Duration{0, 0, 0, 0, 0, time.Second, 0, 0}},
		{"never established", []time.Duration{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, []time.Duration{0, 0, 0, 0, 0, time.Second, 2 * time.Second, 4 * time.Second,
			8 * time.Second, shortIdle, shortIdle}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var d damping
			now := start
			for i, lasted := range tc.ends {
				now = now.Add(lasted)
				d.ended(now, lasted)
				if got := max(0, d.until.Sub(now)); got != tc.want[i] {
					t.Errorf("after session %d: %s, want %s", i+1, got, tc.want[i])
				}
				if d.active(now) {
					now = d.until
				}
			}
		})
	}
	d := damping{}
	for range 100 {
		d.ended(start, 1)
	}
	if got := d.until.Sub(start); got != longestIdle {
		t.Errorf("bounded by %s, not %s", got, longestIdle)
	}
	if d.ended(start.Add(2*forgiven), 1); d.short != 1 || d.active(start.Add(2*forgiven)) {
		t.Errorf("not forgiven: %+v", d)
	}
}

// RFC 4271 §8.1.1: a client that resets ten times a second gets few sessions, and the others hear little
// of it; one that holds out has a clean slate again.
func TestResettingClient(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		watcher := b.dial("10.0.0.9", func(o *open) { o.hold = 0 })
		watcher.events()
		for range 600 { // a minute
			c := b.dial("10.0.0.1")
			c.write(announce4("192.0.2.1", "10.1.0.0/26"))
			time.Sleep(90 * time.Millisecond)
			c.close()
			time.Sleep(10 * time.Millisecond)
		}
		s := b.session("10.0.0.1")
		// Five for nothing, then after 1, 2, 4, 8, 16 and 32 s.
		if s.Flaps < freeResets || s.Flaps > freeResets+6 || s.Refused < 500 || s.State != bgp.StateIdle || s.Damped.Before(time.Now()) {
			t.Errorf("%+v", s)
		}
		if want := "damped until "; !strings.HasPrefix(s.LastError, want) || !strings.HasSuffix(s.LastError, "the last: connection closed by peer") {
			t.Errorf("last error %q", s.LastError)
		}
		if n := int64(strings.Count(watcher.events(), "+ 10.1.0.0/26")); n > s.Flaps {
			t.Errorf("the watcher saw %d announcements", n)
		}
		diff(t, "a damped client is told", b.connect("10.0.0.1").events(), "got Cease/Connection Rejected, closed")
		time.Sleep(time.Until(s.Damped) + time.Second)
		c := b.dial("10.0.0.1", func(o *open) { o.hold = 0 })
		diff(t, "let in again", c.events(), initial)
		time.Sleep(steady)
		c.close()
		c = b.dial("10.0.0.1")
		diff(t, "a clean slate", c.events(), initial)
		if s := b.session("10.0.0.1"); s.Short != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// What is nobody's fault damps nobody: collisions, changes of the configuration, a few restarts.
func TestNotDamped(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		b.dial("10.0.0.1")
		for range 2 * freeResets {
			diff(t, "a second connection", b.dial("10.0.0.1").events(), "OPEN, got Cease/Connection Collision Resolution, closed")
		}
		for i := range 2 * freeResets {
			b.cfg.Peers[0].Timers.Hold = time.Duration(30+i) * time.Second
			b.apply()
			synctest.Wait()
			diff(t, "after a change", b.dial("10.0.0.1").events(), initial)
		}
		for range 3 { // kill -9 and a start, each within a second
			c := b.dial("10.0.0.2", withRestart(true))
			diff(t, "at once", c.events(), initial)
			time.Sleep(time.Second)
			c.close()
		}
		for _, address := range []string{"10.0.0.1", "10.0.0.2"} {
			if s := b.session(address); s.Refused != 0 || !s.Damped.IsZero() {
				t.Errorf("%+v", s)
			}
		}
	})
}

// A client without MaxPrefixes that sends without end is shut out when the routes of all take what they may;
// the others keep theirs.
func TestFlood(t *testing.T) {
	inBed(t, Options{MaxOctets: 1 << 20}, func(t *testing.T, b *bed) {
		good, watcher := b.dial("10.0.0.1", func(o *open) { o.hold = 0 }), b.dial("10.0.0.9", func(o *open) { o.hold = 0 })
		good.say(announce4("192.0.2.1", "10.1.0.0/26"), announce6("2001:db8::1", "fd00:1::/64"))
		flood := b.dial("10.0.0.2")
		sent := 0
		for ; b.session("10.0.0.2").State == bgp.StateEstablished && sent < 100_000; sent += 100 {
			var many []string
			for i := range 100 {
				n := uint64(sent + i)
				many = append(many, prefix{hi: (11<<24 + n<<8) << 32, bits: 24}.netip(ipv4).String())
			}
			flood.write(rawUpdate(nil, plainAttrs("192.0.2.2", med(byte(sent/100))), nlriBytes(many...)))
			synctest.Wait()
		}
		if sent > 1<<20/pathOctets {
			t.Errorf("%d routes were taken", sent)
		}
		if s := b.session("10.0.0.2"); !strings.HasPrefix(s.LastError, "sent Cease/Out of Resources: its routes take ") || s.State != bgp.StateIdle {
			t.Errorf("%+v", s)
		}
		watcher.say()
		diff(t, "the others keep theirs", watcher.prefixes(), "10.1.0.0/26 fd00:1::/64")
		if s := b.Snapshot(); s.Routes != [2]int{1, 1} {
			t.Errorf("routes %v", s.Routes)
		}
		time.Sleep(time.Minute)
		diff(t, "later", b.dial("10.0.0.2").prefixes(), "10.1.0.0/26 fd00:1::/64")
	})
}

// A route that flaps without end costs a flush each ten milliseconds, a few changes cost one each at once.
func TestFlapping(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		flapper, watcher := b.dial("10.0.0.1", func(o *open) { o.hold = 0 }), b.dial("10.0.0.9", func(o *open) { o.hold = 0 })
		watcher.events()
		for i := range 20_000 { // ten seconds
			flapper.write(announce4("192.0.2.1", "10.1.0.0/26", med(byte(i))))
			time.Sleep(500 * time.Microsecond)
		}
		synctest.Wait()
		if n := strings.Count(watcher.events(), "+ 10.1.0.0/26"); n > flushBurst+11*flushRate || n < flushBurst {
			t.Errorf("%d announcements in ten seconds", n)
		}
		time.Sleep(5 * time.Second)
		start := time.Now()
		flapper.write(withdraw4("10.1.0.0/26"))
		synctest.Wait()
		if d := time.Since(start); d > 2*flushDelay || watcher.prefixes() != "" {
			t.Errorf("a lone change took %s", d)
		}
	})
}

// More neighbours than may be remembered: those who have gone make room for those who come, those who are
// connected and those who are damped do not.
func TestManyNeighbours(t *testing.T) {
	inBed(t, Options{MaxPeers: 4}, func(t *testing.T, b *bed) {
		b.dial("10.0.0.1", func(o *open) { o.hold = 0 })
		for range freeResets + 4 { // 8 s
			c := b.dial("10.0.0.2")
			c.close()
			if s := b.session("10.0.0.2"); s.Short < freeResets+4 {
				time.Sleep(max(0, time.Until(s.Damped)))
			}
		}
		for i := range 20 {
			c := b.dial(netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}).String())
			if got := c.events(); got != initial {
				t.Errorf("neighbour %d: %s", i, got)
			}
			c.close()
		}
		diff(t, "still damped", b.dial("10.0.0.2").events(), "got Cease/Connection Rejected, closed")
		if s := b.session("10.0.0.1"); s.State != bgp.StateEstablished || s.Flaps != 0 {
			t.Errorf("%+v", s)
		}
		b.dial("10.0.2.1")
		b.dial("10.0.2.2")
		b.dial("10.0.2.3").mustBeClosed()
	})
}

// Of two speakers at one address, one that resets is damped, and the other is not.
func TestDampsOneOfTwo(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		at := Peer{Prefix: pfx("10.0.0.1/32"), Accept: Policy{Any: true}, Advertise: Policy{Any: true}}
		for _, id := range []string{"1.1.1.1", "2.2.2.2"} {
			p := at
			p.Name, p.RouterID = id, addr(id)
			b.cfg.Peers = append(b.cfg.Peers, p)
		}
		b.apply()
		as := func(id string) func(*open) {
			return func(o *open) { o.id, o.hold = addr(id).As4(), 0 }
		}
		for range freeResets + 1 {
			b.dial("10.0.0.1", as("1.1.1.1")).close()
		}
		for range 2 * freeResets {
			diff(t, "the one", b.dial("10.0.0.1", as("1.1.1.1")).events(), "OPEN, got Cease/Connection Rejected, closed")
			diff(t, "a third", b.dial("10.0.0.1", as("3.3.3.3")).events(), "OPEN, got OPEN Message Error/Bad BGP Identifier, closed")
		}
		diff(t, "the other", b.dial("10.0.0.1", as("2.2.2.2")).events(), initial)
		time.Sleep(firstIdle)
		diff(t, "the one, later", b.dial("10.0.0.1", as("1.1.1.1")).events(), initial)
	})
}

// However many clients come and go, whoever watches is told a few times a second, and of the last change too.
func TestChangedRate(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		told := 0
		drain := func() {
			select {
			case <-b.Changed():
				told++
			default:
			}
		}
		drain()
		for i := range 200 { // two seconds
			c := b.dial(netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}).String())
			time.Sleep(10 * time.Millisecond)
			c.close()
			drain()
		}
		if told < 5 || told > 12 {
			t.Errorf("told %d times in two seconds", told)
		}
		told = 0
		time.Sleep(pokeEvery + 201*pokePerPeer)
		synctest.Wait()
		if drain(); told != 1 {
			t.Error("not told of the last")
		}
		time.Sleep(time.Second)
		b.dial("10.0.2.1")
		if drain(); told != 2 {
			t.Error("a lone change is not told at once")
		}
	})
}
