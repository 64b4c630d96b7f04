// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

func diff(t *testing.T, what, got, want string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// RFC 4456 §8: what is added, and that next hop and the rest are left alone; §6: to whom.
func TestReflects(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		b.cfg.Peers = append(b.cfg.Peers, Peer{Name: "reflectors", Prefix: pfx("10.9.0.0/16"), NonClient: true,
			Accept: Policy{Any: true}, Advertise: Policy{Any: true}})
		b.apply()
		a, c := b.dial("10.0.0.1"), b.dial("10.0.0.2")
		r, q := b.dial("10.9.0.1"), b.dial("10.9.0.2")
		a.say(announce4("192.0.2.1", "10.1.0.0/26", []byte{0xc0, attrCommunities, 4, 1, 2, 3, 4}), announce6("2001:db8::1", "fd00:1::/64"))
		r.say(announce4("192.0.2.9", "10.9.0.0/24", originator("10.7.7.7"), clusters("10.8.8.8")))

		const (
			v4    = "10.1.0.0/26 192.0.2.1 {Origin: i} {AsPath: } {LocalPref: 100} {Communities: 258:772} {Originator: 10.0.0.1} {ClusterList: [10.255.0.1]}"
			v6    = "fd00:1::/64 2001:db8::1 {Origin: i} {AsPath: } {LocalPref: 100} {Originator: 10.0.0.1} {ClusterList: [10.255.0.1]}"
			other = "10.9.0.0/24 192.0.2.9 {Origin: i} {AsPath: } {LocalPref: 100} {Originator: 10.7.7.7} {ClusterList: [10.255.0.1 10.8.8.8]}"
		)
		diff(t, "the other client", c.table(), v4+"\n"+other+"\n"+v6)
		diff(t, "another reflector gets the client's routes alone", q.table(), v4+"\n"+v6)
		diff(t, "the reflector that sent one", r.table(), v4+"\n"+v6)
		diff(t, "the client that sent two", a.table(), other)
		for _, x := range []*client{a, c, r, q} {
			t.Log(x.events())
		}
	})
}

// A new client gets the table, then End-of-RIB; a source never sees its own, and loses what it must
// when it becomes the best itself.
func TestSplitHorizon(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		a, c, d := b.dial("10.0.0.1"), b.dial("10.0.0.2"), b.dial("10.0.0.3")
		a.say(announce4("192.0.2.1", "10.1.0.0/26", localPref(100)))
		for _, x := range []*client{a, c, d} {
			x.events()
		}
		c.say(announce4("192.0.2.2", "10.1.0.0/26", localPref(0)))
		diff(t, "d learns nothing of a worse path", d.events(), "")

		// LOCAL_PREF is there twice: the first counts (RFC 7606 §3 g), so c's is 100 too. Make it better.
		c.say(rawUpdate(nil, []byte{0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 3, 4, 192, 0, 2, 2, 0x40, 5, 4, 0, 0, 0, 200}, nlriBytes("10.1.0.0/26")))
		diff(t, "d", d.events(), "+ 10.1.0.0/26")
		diff(t, "a, whose path is not the best any more", a.events(), "+ 10.1.0.0/26")
		diff(t, "c, which had a's", c.events(), "- 10.1.0.0/26")

		// The shared table is a little older; its end comes after what has changed since.
		late := b.dial("10.0.0.4")
		diff(t, "late", late.events(), "OPEN, + 10.1.0.0/26, + 10.1.0.0/26, end of ipv4-unicast, end of ipv6-unicast")

		c.say(withdraw4("10.1.0.0/26"))
		diff(t, "d, then", d.events(), "+ 10.1.0.0/26")
		diff(t, "c, then", c.events(), "+ 10.1.0.0/26")
		diff(t, "a, then", a.events(), "- 10.1.0.0/26")

		a.close()
		diff(t, "before the flush", d.prefixes(), "10.1.0.0/26")
		d.say()
		diff(t, "d, at the end", d.prefixes(), "")
		if got := b.Snapshot(); got.Attrs != 0 || got.Routes != [2]int{} {
			t.Errorf("something is left: %+v", got)
		}
		synctest.Wait()
	})
}

// RFC 2545 §3: a link-local next hop does not go beyond its link; alone it is of no use.
func TestLinkLocal(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		a, c := b.dial("10.0.0.1"), b.dial("10.0.0.2")
		hops := func(hops ...string) []byte {
			v := []byte{0, afiIPv6, safiUnicast, byte(16 * len(hops))}
			for _, h := range hops {
				v = append(v, addr(h).AsSlice()...)
			}
			v = append(append(v, 0), nlriBytes("fd00:1::/64")...)
			return rawUpdate(nil, append(appendAttr(nil, flagOptional, attrMPReach, v), plainAttrs("")...), nil)
		}
		a.say(hops("2001:db8::1", "fe80::1"))
		diff(t, "both", c.table(), "fd00:1::/64 2001:db8::1 {Origin: i} {AsPath: } {LocalPref: 100} {Originator: 10.0.0.1} {ClusterList: [10.255.0.1]}")
		a.say(hops("fe80::1"))
		diff(t, "link-local alone", c.table(), "")
	})
}
