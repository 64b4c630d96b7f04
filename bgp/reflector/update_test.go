// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"slices"
	"strings"
	"testing"

	"github.com/heliograph-dev/heliograph/bgp"
)

var (
	originAttr = []byte{0x40, 1, 1, 0}
	pathAttr   = []byte{0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9}
	hopAttr    = []byte{0x40, 3, 4, 172, 31, 0, 1}
	prefAttr   = []byte{0x40, 5, 4, 0, 0, 0, 100}
)

func badUpdate(nlri []byte, attrs ...[]byte) []byte {
	return rawUpdate(nil, slices.Concat(attrs...), nlri)
}

// RFC 7606, and RFC 4271 §6.3 where it stands: what each error costs.
func TestMalformedUpdates(t *testing.T) {
	const (
		fine     = "+ 10.9.8.0/24"
		withdraw = "- 10.9.8.0/24"
	)
	nlri := []byte{24, 10, 9, 8}
	base := [][]byte{originAttr, pathAttr, hopAttr, prefAttr}
	with := func(more ...byte) []byte { return badUpdate(nlri, append(slices.Clone(base), more)...) }
	without := func(i int, instead ...byte) []byte {
		attrs := slices.Clone(base)
		attrs[i] = instead
		return badUpdate(nlri, attrs...)
	}
	mp := func(v ...byte) []byte {
		return badUpdate(nil, append([]byte{0x80, 14, byte(len(v))}, v...), originAttr, pathAttr, prefAttr)
	}
	v6 := append([]byte{0, 2, 1, 16}, addr("2001:db8::1").AsSlice()...)
	for _, tc := range []struct {
		name string
		in   []byte
		want string
	}{
		{"nothing wrong", with(), fine},
		{"withdrawn and announced in one", rawUpdate(nlri, slices.Concat(base...), nlri), fine}, // RFC 4271 §4.3
		// §7 of RFC 7606, attribute by attribute.
		{"ORIGIN length", without(0, 0x40, 1, 2, 0, 0), withdraw},
		{"ORIGIN value", without(0, 0x40, 1, 1, 3), withdraw},
		{"ORIGIN missing", without(0), withdraw},
		{"AS_PATH missing", without(1), withdraw},
		{"AS_PATH segment type", without(1, 0x40, 2, 6, 9, 1, 0, 0, 0xfd, 0xe9), withdraw},
		{"AS_PATH confederation", without(1, 0x40, 2, 6, 3, 1, 0, 0, 0xfd, 0xe9), withdraw},
		{"AS_PATH overrun", without(1, 0x40, 2, 6, 2, 2, 0, 0, 0xfd, 0xe9), withdraw},
		{"AS_PATH underrun", without(1, 0x40, 2, 1, 2), withdraw},
		{"AS_PATH empty segment", without(1, 0x40, 2, 2, 2, 0), withdraw},
		{"NEXT_HOP length 3 (CVE-2026-30405)", without(2, 0x40, 3, 3, 172, 31, 0), withdraw},
		{"NEXT_HOP length 0", without(2, 0x40, 3, 0), withdraw},
		{"NEXT_HOP missing", without(2), withdraw},
		{"NEXT_HOP multicast", without(2, 0x40, 3, 4, 224, 0, 0, 1), withdraw},
		{"MED length", with(0x80, 4, 2, 0, 0), withdraw},
		{"LOCAL_PREF length", without(3, 0x40, 5, 5, 0, 0, 0, 0, 0), withdraw},
		{"LOCAL_PREF missing", without(3), fine},
		{"ATOMIC_AGGREGATE length", with(0x40, 6, 1, 0), fine},
		{"AGGREGATOR length", with(0xc0, 7, 6, 0, 1, 1, 2, 3, 4), fine},
		{"COMMUNITIES length", with(0xc0, 8, 3, 0, 0, 0), withdraw},
		{"COMMUNITIES empty", with(0xc0, 8, 0), withdraw},
		{"ORIGINATOR_ID length", with(0x80, 9, 3, 0, 0, 0), withdraw},
		{"CLUSTER_LIST length", with(0x80, 10, 5, 0, 0, 0, 0, 0), withdraw},
		{"extended communities length", with(0xc0, 16, 4, 0, 0, 0, 0), withdraw},
		{"IPv6 extended communities length (CVE-2026-37461)", with(0xc0, 25, 3, 0, 2, 0), withdraw},
		{"large communities length", with(0xc0, 32, 4, 0, 0, 0, 0), withdraw},
		{"AS4_PATH before AS_PATH (CVE-2026-41643)", badUpdate(nlri, originAttr, hopAttr, prefAttr,
			[]byte{0xc0, 17, 6, 2, 1, 0, 0, 0xfd, 0xe9}, pathAttr), fine},
		{"AIGP TLV length 0 (CVE-2026-7735)", with(0x80, 26, 3, 1, 0, 0), fine},
		{"Prefix-SID with an unknown sub-TLV (CVE-2026-7734)", with(0xc0, 40, 9, 5, 0, 6, 0, 9, 0, 0, 0, 0), fine},
		// §3 c, g; §4.
		{"flags", with(0xc0, 4, 4, 0, 0, 0, 1), withdraw},
		{"twice: the first counts", with(0x40, 1, 1, 9), fine},
		{"attribute longer than its section (CVE-2026-42285)", without(3, 0x40, 5, 40, 0), withdraw},
		{"attribute header cut off", with(0xc0, 8), withdraw},
		// Loops and unusable next hops: valid, not used.
		{"our cluster", with(0x80, 10, 4, 10, 255, 0, 1), withdraw},
		{"our router ID", with(0x80, 9, 4, 10, 255, 0, 1), withdraw},
		{"our AS", without(1, 0x40, 2, 6, 2, 1, 0, 0, 0xfc, 0), withdraw},
		// What ends the session: the prefixes cannot be found, or it is not BGP.
		{"unrecognised well-known attribute (CVE-2026-41642)", with(0x40, 200, 1, 0), "UPDATE Message Error/Unrecognized Well-known Attribute"},
		{"section shorter than its attribute (CVE-2026-37462)",
			finish(append(appendHeader(nil, msgUpdate), slices.Concat([]byte{0, 0, 0, 3}, originAttr, pathAttr, hopAttr, nlri)...), 0), "UPDATE Message Error/Invalid Network Field"},
		{"withdrawn length shorter than prefix (CVE-2026-37462)",
			finish(append(appendHeader(nil, msgUpdate), 0, 1, 24, 10, 9, 8, 0, 0), 0), "UPDATE Message Error"},
		{"attributes longer than the message", finish(append(appendHeader(nil, msgUpdate), 0, 0, 0, 200), 0), "UPDATE Message Error/Malformed Attribute List"},
		{"withdrawn longer than the message", finish(append(appendHeader(nil, msgUpdate), 0, 200, 0, 0), 0), "UPDATE Message Error/Malformed Attribute List"},
		{"prefix length 33", badUpdate([]byte{33, 10, 9, 8, 7, 6}, base...), "UPDATE Message Error/Invalid Network Field"},
		{"prefix cut off", badUpdate([]byte{24, 10}, base...), "UPDATE Message Error/Invalid Network Field"},
		{"MP_REACH_NLRI next hop length", mp(0, 2, 1, 5, 1, 2, 3, 4, 5, 0), "UPDATE Message Error/Optional Attribute Error"},
		{"MP_REACH_NLRI cut off", mp(0, 2, 1), "UPDATE Message Error/Optional Attribute Error"},
		{"MP_REACH_NLRI prefix length", mp(append(slices.Clone(v6), 0, 129, 1)...), "UPDATE Message Error/Optional Attribute Error"},
		{"MP_UNREACH_NLRI cut off", badUpdate(nil, []byte{0x80, 15, 2, 0, 2}), "UPDATE Message Error/Optional Attribute Error"},
		{"MP_UNREACH_NLRI twice", badUpdate(nil, []byte{0x80, 15, 3, 0, 2, 1}, []byte{0x80, 15, 3, 0, 2, 1}), "UPDATE Message Error/Malformed Attribute List"},
		{"another family", mp(0, 25, 70, 4, 1, 2, 3, 4, 0), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBed(t, Options{}, func(t *testing.T, b *bed) {
				watcher, c := b.dial("10.0.0.1"), b.dial("10.0.0.2")
				c.say(announce4("172.31.0.9", "10.9.8.0/24"))
				watcher.events()
				c.say(tc.in)
				s := b.session("10.0.0.2")
				if strings.HasPrefix(tc.want, "UPDATE") {
					if s.State == bgp.StateEstablished || !strings.HasPrefix(s.LastError, "sent "+tc.want) {
						t.Errorf("session %+v, want %s", s.Session, tc.want)
					}
					return
				}
				diff(t, "watcher", watcher.events(), tc.want)
				if s.State != bgp.StateEstablished {
					t.Errorf("session %s: %s", s.State, s.LastError)
				}
			})
		})
	}
}

// What was not understood goes on with the partial bit, or not at all (RFC 4271 §5); what was left
// out by an old speaker comes back (RFC 6793 §4.2.3), and it gets what it can read (§4.2.2).
func TestAttributesGoOn(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		young, old := b.dial("10.0.0.1"), b.connect("10.0.0.2", func(o *open) { o.as4 = false })
		m := finish(append(appendHeader(nil, msgOpen), 4, 0xfc, 0, 0, 90, 10, 0, 0, 2, 0), 0)
		old.say(m, keepaliveMessage())
		unknown, local := []byte{0xc0, 99, 2, 1, 2}, []byte{0x80, 98, 1, 1}
		young.say(badUpdate([]byte{24, 10, 1, 1}, originAttr, []byte{0x40, 2, 14, 2, 3, 0, 1, 0, 0, 0, 0, 0xfd, 0xe9, 0, 2, 0, 0}, hopAttr, prefAttr, unknown, local))
		old.say(badUpdate([]byte{24, 10, 1, 2}, originAttr, []byte{0x40, 2, 8, 2, 3, 0xfd, 0xe9, 0x5b, 0xa0, 0x5b, 0xa0}, hopAttr, prefAttr,
			[]byte{0xc0, 17, 10, 2, 2, 0, 1, 0, 0, 0, 2, 0, 0}))
		diff(t, "old", old.table(), "10.1.1.0/24 172.31.0.1 {Origin: i} {AsPath: 23456 65001 23456} {LocalPref: 100} {Originator: 10.0.0.1} "+
			"{ClusterList: [10.255.0.1]} 65536 65001 131072 {Flags: PARTIAL|TRANSITIVE|OPTIONAL, Type: BGPAttrType(99), Value: [1 2]}")
		old.say(badUpdate([]byte{24, 10, 1, 3}, originAttr, []byte{0x40, 2, 4, 2, 1, 0xfd, 0xe9}, hopAttr, prefAttr,
			[]byte{0xc0, 17, 3, 2, 9, 0})) // RFC 6793 §6: a malformed AS4_PATH is discarded
		if got := young.prefixes(); got != "10.1.2.0/24 10.1.3.0/24" {
			t.Errorf("with a malformed AS4_PATH: %s", got)
		}
		old.say(withdraw4("10.1.3.0/24"))
		diff(t, "young", young.table(), "10.1.2.0/24 172.31.0.1 {Origin: i} {AsPath: 65001 65536 131072} {LocalPref: 100} {Originator: 10.0.0.2} {ClusterList: [10.255.0.1]}")
	})
}

func TestWidenNarrow(t *testing.T) {
	seq := func(as ...uint32) []byte {
		b := []byte{segmentSequence, byte(len(as))}
		for _, a := range as {
			b = append(b, byte(a>>24), byte(a>>16), byte(a>>8), byte(a))
		}
		return b
	}
	short := func(as ...uint32) []byte { b, _ := narrow(seq(as...)); return b }
	for _, tc := range []struct {
		name            string
		path, as4, want []byte
	}{
		{"no AS4_PATH", short(1, asTrans), nil, seq(1, asTrans)},
		{"of one length", short(asTrans, asTrans), seq(70000, 80000), seq(70000, 80000)},
		{"an old speaker in front", short(1, asTrans), seq(70000), append(seq(1), seq(70000)...)},
		{"longer than the path: of no use", short(asTrans), seq(70000, 80000), seq(asTrans)},
	} {
		if got := widen(tc.path, tc.as4); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %x, want %x", tc.name, got, tc.want)
		}
	}
}

func TestPrefixes(t *testing.T) {
	for _, s := range []string{"0.0.0.0/0", "10.0.0.0/8", "10.1.2.3/32", "10.128.0.0/9", "::/0", "fc00::/7", "2001:db8::/64", "2001:db8:0:0:8000::/65",
		"2001:db8::1/128", "2001:db8::1:0/112"} {
		f, p := fromNetip(pfx(s))
		if got := p.netip(f); got != pfx(s) {
			t.Errorf("%s comes back as %s", s, got)
		}
		b := p.appendTo(nil)
		if len(b) != p.wireLen() {
			t.Errorf("%s: %d octets, not %d", s, len(b), p.wireLen())
		}
		if got, ok := parsePrefixes(nil, f, b); !ok || len(got) != 1 || got[0] != p {
			t.Errorf("%s is parsed as %v", s, got)
		}
	}
	got, ok := parsePrefixes(nil, ipv4, []byte{9, 10, 0xff})
	if !ok || got[0].netip(ipv4) != pfx("10.128.0.0/9") {
		t.Errorf("irrelevant bits: %v", got)
	}
}

// RFC 8654: what does not fit into 4,096 octets goes only to those who take more, and is withdrawn from
// those who had it in a shorter form.
func TestExtendedMessages(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		a, wide := b.dial("10.0.0.1"), b.dial("10.0.0.2")
		short := b.dial("10.0.0.3", func(o *open) { o.extended = false })
		a.say(announce4("192.0.2.1", "10.1.0.0/26"), announce6("2001:db8::1", "fd00:1::/64"))
		diff(t, "short has it", short.prefixes(), "10.1.0.0/26 fd00:1::/64")
		long := appendAttr(nil, flagOptional|flagTransitive, attrCommunities, make([]byte, 4400))
		a.say(announce4("192.0.2.1", "10.1.0.0/26", long), announce6("2001:db8::1", "fd00:1::/64", long))
		diff(t, "short", short.prefixes(), "")
		if got := len(wide.table()); got < 4400 || wide.prefixes() != "10.1.0.0/26 fd00:1::/64" {
			t.Errorf("wide has %s, %d octets", wide.prefixes(), got)
		}
		// Whoever was told that we take long messages may send them (§4), though it takes none.
		short.say(announce4("192.0.2.3", "10.3.0.0/26", long))
		diff(t, "from short", wide.prefixes(), "10.1.0.0/26 10.3.0.0/26 fd00:1::/64")
		short.say(appendHeader(nil, msgUpdate)[:18], []byte{msgUpdate})
		if s := b.session("10.0.0.3"); !strings.HasPrefix(s.LastError, "sent Message Header Error/Bad Message Length") {
			t.Errorf("last error %q", s.LastError)
		}
	})
}

// As many prefixes as there are go into each message, and none into one too many.
func TestPacking(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		a, c := b.dial("10.0.0.1"), b.dial("10.0.0.2", func(o *open) { o.extended = false })
		var many []string
		for i := range 1000 {
			many = append(many, prefix{hi: (10<<24 + uint64(i)<<8) << 32, bits: 24}.netip(ipv4).String())
		}
		a.say(rawUpdate(nil, plainAttrs("192.0.2.1"), nlriBytes(many...)))
		if n := len(strings.Fields(c.prefixes())); n != 1000 {
			t.Errorf("%d prefixes", n)
		}
		if g := b.Snapshot().Groups; g[len(g)-1].Messages != 1 && g[0].Messages != 1 {
			t.Errorf("groups %+v", g)
		}
		a.say(withdraw4(many...))
		diff(t, "all gone", c.prefixes(), "")
	})
}
