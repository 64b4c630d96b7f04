// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
)

// Several reflectors in one bubble: clients are in 10.0.0.0/16, reflectors in 10.9.0.0/16.

// cluster is a reflector whose identity and relations to the other reflectors are given.
func cluster(t *testing.T, id, clusterID string, others Peer) *bed {
	b := newBed(t, Options{})
	b.stop(false)
	b.cfg.RouterID, b.cfg.ClusterID = addr(id), addr(clusterID)
	others.Prefix, others.Name, others.Accept, others.Advertise = pfx("10.9.0.0/16"), "reflectors", Policy{Any: true}, Policy{Any: true}
	b.cfg.Peers = append(b.cfg.Peers, others)
	b.apply()
	return b
}

// link makes two reflectors neighbours. Both speak first, so what one writes must not wait for the other to
// read: there are two pipes, and what is in between holds a message each way.
func link(a, b *bed) {
	ofA, towardsA := net.Pipe()
	ofB, towardsB := net.Pipe()
	relay := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		_ = to.Close()
	}
	go relay(towardsA, towardsB)
	go relay(towardsB, towardsA)
	a.run.serve(ofA, b.cfg.RouterID, true)
	b.run.serve(ofB, a.cfg.RouterID, false)
	synctest.Wait()
}

func settle() {
	time.Sleep(time.Second)
	synctest.Wait()
}

// RFC 4456 §8: three reflectors that take each other for clients, in a ring. A route goes round once and
// stops; it goes for good when its source withdraws it.
func TestLoopOfReflectors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ring []*bed
		for _, id := range []string{"10.9.0.1", "10.9.0.2", "10.9.0.3"} {
			ring = append(ring, cluster(t, id, id, Peer{}))
		}
		for i, b := range ring {
			defer b.stop(false)
			link(b, ring[(i+1)%3])
		}
		source, at := ring[0].dial("10.0.0.1", withoutHold), []*client{}
		for i, b := range ring {
			at = append(at, b.dial([]string{"10.0.0.11", "10.0.0.12", "10.0.0.13"}[i], withoutHold))
		}
		source.say(announce4("192.0.2.1", "10.1.0.0/26"), announce6("2001:db8::1", "fd00:1::/64"))
		settle()
		for i, c := range at {
			diff(t, "routes", c.prefixes(), "10.1.0.0/26 fd00:1::/64")
			if n := strings.Count(c.events(), "+ 10.1.0.0/26"); n > 2 {
				t.Errorf("client %d heard of it %d times", i, n)
			}
		}
		source.say(withdraw4("10.1.0.0/26"), withdraw6("fd00:1::/64"))
		settle()
		for i, b := range ring {
			diff(t, "routes at the end", at[i].prefixes(), "")
			if s := b.Snapshot(); s.Routes != [2]int{} {
				t.Errorf("reflector %d keeps %v", i+1, s.Routes)
			}
		}
	})
}

func withoutHold(o *open) { o.hold = 0 }

// A client of two clusters, whose reflectors are neighbours: everybody has its routes, once and for all, and
// it has theirs; when one reflector loses it, the other's path takes over.
func TestClientInTwoClusters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := cluster(t, "10.9.0.1", "10.9.0.1", Peer{NonClient: true}), cluster(t, "10.9.0.2", "10.9.0.2", Peer{NonClient: true})
		defer one.stop(false)
		defer two.stop(false)
		link(one, two)
		a, b := one.dial("10.0.0.1", withoutHold), two.dial("10.0.0.1", withoutHold)
		of1, of2 := one.dial("10.0.0.11", withoutHold), two.dial("10.0.0.12", withoutHold)
		for _, c := range []*client{a, b} {
			c.say(announce4("192.0.2.1", "10.1.0.0/26"), announce6("2001:db8::1", "fd00:1::/64"))
		}
		of2.say(announce4("192.0.2.12", "10.12.0.0/26"))
		settle()
		diff(t, "a client of the first", of1.prefixes(), "10.1.0.0/26 10.12.0.0/26 fd00:1::/64")
		diff(t, "a client of the second", of2.prefixes(), "10.1.0.0/26 fd00:1::/64")
		diff(t, "the client of both, from the first", a.prefixes(), "10.12.0.0/26")
		diff(t, "the client of both, from the second", b.prefixes(), "10.12.0.0/26")
		of1.events()
		a.say(notify(errCease, subShutdown, nil, "").message())
		settle()
		diff(t, "by the second alone", of1.prefixes(), "10.1.0.0/26 10.12.0.0/26 fd00:1::/64")
		if got := of1.events(); strings.Contains(got, "-") {
			t.Errorf("it was away for a moment: %s", got)
		}
		if !strings.Contains(of1.table(), "ClusterList: [10.9.0.1 10.9.0.2]") {
			t.Errorf("it has\n%s", of1.table())
		}
		b.say(withdraw4("10.1.0.0/26"), withdraw6("fd00:1::/64"))
		settle()
		diff(t, "gone", of1.prefixes(), "10.12.0.0/26")
	})
}

// Two reflectors with one cluster ID do not take routes from each other (RFC 4456 §8): clients of both have
// all, a client of one alone lacks what only the other has. It is counted as rejected.
func TestClusterIDClash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := cluster(t, "10.9.0.1", "10.9.9.9", Peer{NonClient: true}), cluster(t, "10.9.0.2", "10.9.9.9", Peer{NonClient: true})
		defer one.stop(false)
		defer two.stop(false)
		link(one, two)
		both := []*client{one.dial("10.0.0.1", withoutHold), two.dial("10.0.0.1", withoutHold)}
		of1, of2 := one.dial("10.0.0.11", withoutHold), two.dial("10.0.0.12", withoutHold)
		of2.say(announce4("192.0.2.12", "10.12.0.0/26"))
		settle()
		diff(t, "a client of both", both[0].prefixes()+both[1].prefixes(), "10.12.0.0/26")
		diff(t, "a client of the other", of1.prefixes(), "")
		if s := one.session("10.9.0.2"); s.State != bgp.StateEstablished || s.Rejected != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// Equal router IDs of two clients: both have sessions and all other routes, and everybody has theirs; each
// would take the other's for its own, which is why it is warned of.
func TestEqualRouterIDs(t *testing.T) {
	inBed(t, Options{}, func(t *testing.T, b *bed) {
		same := func(o *open) { o.id, o.hold = [4]byte{192, 0, 2, 99}, 0 }
		a, c, d := b.dial("10.0.0.1", same), b.dial("10.0.0.2", same), b.dial("10.0.0.3", withoutHold)
		a.say(announce4("192.0.2.1", "10.1.0.0/26"))
		c.say(announce4("192.0.2.2", "10.2.0.0/26"), announce4("192.0.2.2", "10.1.0.0/26"))
		d.say(announce4("192.0.2.3", "10.3.0.0/26"))
		diff(t, "a third", d.prefixes(), "10.1.0.0/26 10.2.0.0/26")
		diff(t, "one of them", a.prefixes(), "10.2.0.0/26 10.3.0.0/26")
		diff(t, "the other", c.prefixes(), "10.1.0.0/26 10.3.0.0/26")
		// The last resort of the decision is the neighbour's address (RFC 4271 §9.1.2.2 g).
		if r := b.Routes(pfx("10.1.0.0/26")); len(r) != 1 || r[0].Paths[0].Address != addr("10.0.0.1") {
			t.Errorf("best of %+v", r)
		}
		a.close()
		d.say()
		diff(t, "one of them left", d.prefixes(), "10.1.0.0/26 10.2.0.0/26")
	})
}
