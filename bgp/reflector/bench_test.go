// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

// BenchmarkFeed takes a full feed in and encodes it for a group: 5 prefixes in an UPDATE, attributes of
// its own for each.
func BenchmarkFeed(b *testing.B) {
	const n = 20000
	var bodies [][]byte
	for i := range n {
		var nlri []byte
		for k := range 5 {
			nlri = append(nlri, 24, 10+byte((5*i+k)>>16), byte((5*i+k)>>8), byte(5*i+k))
		}
		community := binary.BigEndian.AppendUint32([]byte{0xc0, attrCommunities, 4}, uint32(i))
		bodies = append(bodies, rawUpdate(nil, plainAttrs("192.0.2.1", community), nlri)[headerLen:])
	}
	b.ReportAllocs()
	for b.Loop() {
		c := newCore(Config{ASN: 64512, RouterID: addr("10.255.0.1")}, Options{}.withDefaults(), nil)
		src := &source{}
		p := &peer{source: src, accept: compiled{any: true}}
		s := &session{peer: p, done: make(chan struct{})}
		p.up = s
		parser := parser{neg: negotiated{families: 3, as4: true, id: [4]byte{10, 0, 0, 1}}, asn: 64512}
		g := newGroup(groupKey{families: 3, as4: true, policy: "any"}, 1, compiled{any: true})
		c.groups[g.groupKey] = g
		batch := c.batch(s)
		for i, body := range bodies {
			if parser.update(body, batch) != nil {
				b.Fatal("malformed")
			}
			if batch.size() >= batchSize {
				batch.on(c)
				batch = c.batch(s)
			}
			if i%2000 == 0 {
				c.flush()
			}
		}
		batch.on(c)
		c.flush()
	}
}

// BenchmarkSnapshot is what the core is held up for, with as many neighbours as are remembered.
func BenchmarkSnapshot(b *testing.B) {
	c := newCore(Config{ASN: 64512, RouterID: addr("10.255.0.1"), Peers: []Peer{{Name: "clients", Prefix: pfx("10.0.0.0/8")}}}, Options{}.withDefaults(), nil)
	for i := range 10_000 {
		if _, err := c.peerOf(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), netip.Addr{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		c.snapshot()
	}
}
