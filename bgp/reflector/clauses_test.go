// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
)

// Clauses of the RFCs that no other test needs.

// RFC 4271 §6.1 to §6.3, RFC 5492 §3, RFC 6608 §3: what a NOTIFICATION says beside its codes.
func TestNotificationData(t *testing.T) {
	unknown := []byte{0x40, 200, 1, 7}
	for _, tc := range []struct {
		name string
		say  func(c *client) [][]byte
		want []byte
	}{
		{"length: the length", func(*client) [][]byte { return [][]byte{finish(append(appendHeader(nil, msgKeepalive), 0), 0)} }, []byte{0, 20}},
		{"type: the type", func(*client) [][]byte { return [][]byte{finish(appendHeader(nil, 9), 0)} }, []byte{9}},
		{"version: ours", func(c *client) [][]byte { return [][]byte{wrong(c, 19, 3)} }, []byte{0, 4}},
		{"no common family: what we want", func(c *client) [][]byte {
			return [][]byte{wrong(c, 31, capMultiprotocol, 4, 0, 25, 0, 70, capMultiprotocol, 4, 0, 25, 0, 71)}
		}, []byte{capMultiprotocol, 4, 0, afiIPv4, 0, safiUnicast}},
		{"state: the type", func(*client) [][]byte { return [][]byte{keepaliveMessage()} }, []byte{msgKeepalive}},
		{"well-known attribute: all of it", func(c *client) [][]byte {
			return [][]byte{c.open.message(), keepaliveMessage(), badUpdate([]byte{24, 10, 9, 8}, originAttr, pathAttr, hopAttr, prefAttr, unknown)}
		}, unknown},
		{"MP_REACH_NLRI: all of it", func(c *client) [][]byte {
			return [][]byte{c.open.message(), keepaliveMessage(), badUpdate(nil, []byte{0x80, 14, 3, 0, 2, 1}, originAttr, pathAttr, prefAttr)}
		}, []byte{0x80, 14, 3, 0, 2, 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBed(t, Options{}, func(t *testing.T, b *bed) {
				c := b.connect("10.0.0.1")
				c.say(tc.say(c)...)
				c.mu.Lock()
				defer c.mu.Unlock()
				if !slices.Equal(c.data, tc.want) {
					t.Errorf("%x, want %x", c.data, tc.want)
				}
			})
		})
	}
}

// RFC 5492 §3 and §4: many parameters, capabilities that are unknown, malformed or repeated; RFC 4724 §3: of
// several graceful restarts the last counts; RFC 7911 §4: directions that are none are ignored.
func TestCapabilities(t *testing.T) {
	body := func(params ...[]byte) []byte {
		p := slices.Concat(params...)
		return append([]byte{4, 0xfc, 0, 0, 90, 10, 0, 0, 1, byte(len(p))}, p...)
	}
	param := func(caps ...byte) []byte { return append([]byte{optCapabilities, byte(len(caps))}, caps...) }
	v4, v6 := []byte{capMultiprotocol, 4, 0, 1, 0, 1}, []byte{capMultiprotocol, 4, 0, 2, 0, 1}
	for _, tc := range []struct {
		name string
		in   []byte
		want open
	}{
		{"none: IPv4", body(), open{families: 1}},
		{"a parameter for each", body(param(v4...), param(v6...), param(capRefresh, 0)), open{families: 3, refresh: true}},
		{"unknown ones", body(param(slices.Concat([]byte{200, 3, 1, 2, 3}, v4, []byte{201, 0})...)), open{families: 1}},
		{"repeated", body(param(slices.Concat(v4, v4, []byte{capRefresh, 0, capRefresh, 0})...)), open{families: 1, refresh: true}},
		{"of a wrong length: ignored", body(param(slices.Concat(v4, []byte{capAS4, 2, 0, 1, capMultiprotocol, 3, 0, 2, 0})...)), open{families: 1}},
		{"not the first family", body(param(slices.Concat([]byte{capMultiprotocol, 4, 0, 25, 0, 70}, v6)...)), open{families: 2}},
		{"add-paths: to receive, to send, both, neither", body(param(slices.Concat(v4, v6, []byte{capAddPath, 8, 0, 1, 1, 3, 0, 2, 1, 2},
			[]byte{capAddPath, 4, 0, 2, 1, 5})...)), open{families: 3, addPaths: 1}},
		{"the last graceful restart", body(param(slices.Concat(v4, []byte{capGracefulRestart, 2, 0x80, 1}, []byte{capGracefulRestart, 6, 0, 120, 0, 1, 1, 0x80})...)),
			open{families: 1, restart: &restart{time: 2 * time.Minute, families: 1, forwarding: 1}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, bad := parseOpen(tc.in)
			if bad != nil {
				t.Fatal(bad)
			}
			tc.want.asn, tc.want.hold, tc.want.id = 64512, 90, [4]byte{10, 0, 0, 1}
			if fmt.Sprint(got.restart) != fmt.Sprint(tc.want.restart) {
				t.Errorf("restart %+v, want %+v", got.restart, tc.want.restart)
			}
			got.restart, tc.want.restart = nil, nil
			if got != tc.want {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
		})
	}
}

// RFC 4271 §4.4: no more than a KEEPALIVE a second, and none but the first without a hold time.
func TestKeepaliveRate(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		quick, calm := b.connect("10.0.0.1", func(o *open) { o.hold = 3 }), b.dial("10.0.0.2", withoutHold)
		quick.say(quick.open.message(), keepaliveMessage())
		quick.keepAliveEach(time.Second, time.Minute)
		if n := quick.kept(); n < 55 || n > 62 {
			t.Errorf("%d KEEPALIVEs in a minute", n)
		}
		if n := calm.kept(); n != 1 {
			t.Errorf("%d KEEPALIVEs without a hold time", n)
		}
	})
}

// RFC 2918 §4, RFC 7313 §3 and §4: families that were not agreed and subtypes that are none are ignored, who
// knows nothing of beginnings and ends gets none, and beginnings count after End-of-RIB alone.
func TestRefreshClauses(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		a := b.dial("10.0.0.1", withRestart(false))
		old := b.dial("10.0.0.2", func(o *open) { o.enhanced, o.families = false, 1 })
		a.say(announce4("192.0.2.1", "10.1.0.0/26"))
		old.events()
		old.say(refreshMessage(ipv6, refreshRequest), finish(append(appendHeader(nil, msgRefresh), 0, 25, 0, 70), 0))
		diff(t, "a family that was not agreed", old.events(), "")
		old.say(refreshMessage(ipv4, refreshRequest))
		diff(t, "neither beginning nor end", old.events(), "+ 10.1.0.0/26")
		a.events()
		a.say(refreshMessage(ipv4, 7))
		diff(t, "no such subtype", a.events(), "")

		a.say(refreshMessage(ipv4, refreshBegin), refreshMessage(ipv4, refreshEnd))
		diff(t, "before End-of-RIB", old.events(), "")
		a.say(endOfRIB(ipv4), refreshMessage(ipv4, refreshEnd))
		diff(t, "an end without a beginning", old.events(), "")
		a.say(refreshMessage(ipv4, refreshBegin), refreshMessage(ipv4, refreshEnd))
		diff(t, "a refresh without routes", old.events(), "- 10.1.0.0/26")
	})
	inBed(t, Options{}, func(t *testing.T, b *bed) { // RFC 2918 §4: who cannot refresh is not asked
		c := b.dial("10.0.0.1", func(o *open) { o.refresh, o.enhanced = false, false })
		c.events()
		b.cfg.Peers[0].Accept = Policy{Rules: []Rule{{Prefix: pfx("10.0.0.0/8")}}}
		b.apply()
		synctest.Wait()
		diff(t, "reset instead", c.events(), "got Cease/Other Configuration Change, closed")
	})
}

// RFC 9003 §2 and §4: words are at most 255 octets, cut between characters, and what is not UTF-8 or longer
// than the message is not shown.
func TestWords(t *testing.T) {
	long := shutdown(subShutdown, strings.Repeat("ä", 200))
	if n := int(long.data[0]); n != 254 || n != len(long.data)-1 || long.why != strings.Repeat("ä", 127) {
		t.Errorf("%d octets of words: %q", n, long.why)
	}
	for _, tc := range []struct {
		name string
		in   []byte
		want string
	}{
		{"words", append([]byte{6, 2, 3}, "abc"...), "abc"},
		{"none", []byte{6, 2}, ""},
		{"of no length", []byte{6, 2, 0}, ""},
		{"more than there are", append([]byte{6, 2, 4}, "abc"...), ""},
		{"not UTF-8", []byte{6, 2, 2, 0xff, 0xfe}, ""},
		{"a reset", append([]byte{6, 4, 3}, "abc"...), "abc"},
		{"another subcode", append([]byte{6, 7, 3}, "abc"...), ""},
		{"control characters", append([]byte{6, 2, 5}, "a\x1b[0m"...), "a [0m"},
	} {
		if got := parseNotification(tc.in).why; got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// RFC 4760 §3 and RFC 7606 §7.3: a NEXT_HOP beside MP_REACH_NLRI alone means nothing; neither do reserved octets.
func TestMPReach(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		a, c := b.dial("10.0.0.1"), b.dial("10.0.0.2")
		v := append([]byte{0, afiIPv6, safiUnicast, 16}, addr("2001:db8::1").AsSlice()...)
		v = append(append(v, 0x77), nlriBytes("fd00:1::/64")...)
		a.say(rawUpdate(nil, append(appendAttr(nil, flagOptional, attrMPReach, v), plainAttrs("192.0.2.1")...), nil))
		diff(t, "its next hop", c.table(), "fd00:1::/64 2001:db8::1 {Origin: i} {AsPath: } {LocalPref: 100} {Originator: 10.0.0.1} {ClusterList: [10.255.0.1]}")
		if s := b.session("10.0.0.1"); s.State != bgp.StateEstablished || s.Malformed != 0 {
			t.Errorf("%+v", s)
		}
	})
}
