// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"context"
	"io"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	packet "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

func seeds() [][]byte {
	return [][]byte{
		announce4("192.0.2.1", "10.1.0.0/26", med(1), originator("10.7.7.7"), clusters("10.8.8.8")),
		announce6("2001:db8::1", "fd00:1::/64"), withdraw4("10.1.0.0/26"), withdraw6("fd00:1::/64"), endOfRIB(ipv4), endOfRIB(ipv6),
		announce4("192.0.2.1", "10.1.0.0/26", []byte{0xc0, attrAggregator, 8, 0, 1, 0, 0, 1, 2, 3, 4}, []byte{0xc0, attrAS4Path, 6, 2, 1, 0, 1, 0, 0}),
		badUpdate([]byte{24, 10, 9, 8}, originAttr, pathAttr, hopAttr, prefAttr, []byte{0xd0, 99, 1, 4}, make([]byte, 260)),
	}
}

// FuzzUpdate parses whatever comes; what is announced must be read by GoBGP's codec and by ourselves,
// for old speakers as for new ones.
func FuzzUpdate(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s[headerLen:], true)
		f.Add(s[headerLen:], false)
	}
	f.Fuzz(func(t *testing.T, body []byte, as4 bool) {
		if len(body) < 4 || len(body) > maxMessage-headerLen {
			return
		}
		p := parser{neg: negotiated{families: 3, as4: as4, id: [4]byte{10, 0, 0, 1}}, asn: 64512, self: [4]byte{10, 255, 0, 1}, cluster: [4]byte{10, 255, 0, 1}}
		var b batch
		if p.update(body, &b) != nil {
			return
		}
		for _, o := range b.ops {
			if o.kind != opAnnounce {
				continue
			}
			for _, wide := range []bool{true, false} {
				a := newAttrs(string(b.arena[o.attrs:o.end]))
				e := newEncoder(groupKey{families: 3, as4: wide, extended: true})
				for _, x := range b.prefixes[o.from:o.to] {
					e.addAnnounce(&source{}, a, nlri{prefix: x})
				}
				readable(t, e.finish().buf, wide)
			}
		}
	})
}

// readable checks what we send: with our own parser, which must find nothing to complain of.
func readable(t *testing.T, buf []byte, as4 bool) {
	t.Helper()
	p := parser{neg: negotiated{families: 3, as4: as4, extended: true}}
	for len(buf) > 0 {
		typ, n, bad := checkHeader(buf, true)
		if bad != nil || typ != msgUpdate || n > len(buf) {
			t.Fatalf("message %x: %v", buf, bad)
		}
		var b batch
		if bad := p.update(buf[headerLen:n], &b); bad != nil || b.problems > 0 {
			t.Fatalf("our own UPDATE %x: %v %s", buf[:n], bad, b.problem)
		}
		if _, err := packet.ParseBGPMessage(slices.Clone(buf[:n]), &packet.MarshallingOption{Use2ByteAS: !as4}); err != nil && len(b.ops) == 0 {
			t.Fatalf("GoBGP on %x: %v", buf[:n], err)
		}
		buf = buf[n:]
	}
}

// FuzzSession feeds whole sessions; others must not notice, and nothing must be left of it.
func FuzzSession(f *testing.F) {
	o := open{asn: 64512, hold: 90, families: 3, as4: true, id: [4]byte{10, 0, 0, 1}}
	hello := append(o.message(), keepaliveMessage()...)
	f.Add(hello)
	for _, s := range seeds() {
		f.Add(append(slices.Clone(hello), s...))
	}
	f.Add(append(slices.Clone(hello), refreshMessage(ipv4, refreshRequest)...))
	r := New(Options{}, slog.New(slog.DiscardHandler))
	err := r.Apply(context.Background(), Config{ASN: 64512, RouterID: addr("10.255.0.1"),
		Peers: []Peer{{Prefix: pfx("10.0.0.0/8"), AddPaths: true, Accept: Policy{Any: true}, Advertise: Policy{Any: true}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = r.Stop(context.Background(), false) })
	join := func() net.Conn {
		near, far := net.Pipe()
		r.run.serve(far, addr("10.0.0.2"), false)
		go func() { _, _ = io.Copy(io.Discard, near) }()
		w := o
		w.id, w.hold = [4]byte{10, 0, 0, 2}, 0
		_, _ = near.Write(append(w.message(), keepaliveMessage()...))
		return near
	}
	watcher := join()
	f.Cleanup(func() { _ = watcher.Close() })
	f.Fuzz(func(t *testing.T, stream []byte) {
		near, far := net.Pipe()
		s := r.run.serve(far, addr("10.0.0.1"), false)
		if s == nil {
			t.Fatal("refused")
		}
		go func() { _, _ = io.Copy(io.Discard, near) }()
		_ = near.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = near.Write(stream)
		_ = near.Close()
		select {
		case <-s.done:
		case <-time.After(10 * time.Second):
			t.Fatal("the session does not end")
		}
		if s.reason == "internal error" {
			t.Fatal("it panicked")
		}
		r.run.core.do(func(c *core) {
			if p := c.peers[peerKey{addr: addr("10.0.0.2")}]; p == nil || p.up == nil && p.flaps > 0 {
				t.Error("the watcher's session ended")
			}
			if p := c.peers[peerKey{addr: addr("10.0.0.1")}]; p != nil {
				c.end(p, shutdown(subReset, "")) // no stale routes, no hold-down for the next
				p.heldUntil, p.damping = time.Time{}, damping{}
			}
		})
	})
}
