// SPDX-License-Identifier: Apache-2.0

//go:build linux

package speaker_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/heliograph-dev/heliograph/internal/nettest"
)

func message(typ byte, body []byte) []byte {
	m := append(bytes.Repeat([]byte{0xff}, 16), 0, 0, typ)
	m = append(m, body...)
	binary.BigEndian.PutUint16(m[16:], uint16(len(m)))
	return m
}

func updateMessage(nlri []byte, attrs ...[]byte) []byte {
	a := slices.Concat(attrs...)
	return message(2, slices.Concat([]byte{0, 0, byte(len(a) >> 8), byte(len(a))}, a, nlri))
}

// One malformed message from an established peer must not end the process, and must not cost another
// session anything. The messages are the public regression cases of GoBGP; three of them kill v3.
func TestMalformedMessages(t *testing.T) {
	t.Parallel()
	var (
		origin = []byte{0x40, 1, 1, 0}
		aspath = []byte{0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9}
		nh     = []byte{0x40, 3, 4, 172, 31, 0, 1}
		lp     = []byte{0x40, 5, 4, 0, 0, 0, 100}
		nlri   = []byte{24, 10, 9, 8}
		as4    = []byte{0xc0, 17, 6, 2, 1, 0, 0, 0xfd, 0xe9}
	)
	vectors := []struct {
		name string
		m    []byte
	}{
		{"unknown message type 255 (#3325)", message(255, nil)},
		{"AS4_PATH before AS_PATH, last attribute (CVE-2026-41643)", updateMessage(nlri, origin, nh, lp, as4, aspath)},
		{"unrecognised well-known attribute (CVE-2026-41642)", updateMessage(nlri, origin, aspath, nh, lp, []byte{0x40, 200, 1, 0})},
		{"NEXT_HOP length 3 (CVE-2026-30405)", updateMessage(nlri, origin, aspath, []byte{0x40, 3, 3, 172, 31, 0}, lp)},
		{"NEXT_HOP length 0", updateMessage(nlri, origin, aspath, []byte{0x40, 3, 0}, lp)},
		{"attribute longer than its section (CVE-2026-42285)", updateMessage(nlri, origin, aspath, nh, []byte{0x40, 5, 40, 0})},
		{"section shorter than its attribute (CVE-2026-37462)", message(2, slices.Concat([]byte{0, 0, 0, 3}, origin, aspath, nh, nlri))},
		{"withdrawn length shorter than prefix (CVE-2026-37462)", message(2, slices.Concat([]byte{0, 1}, nlri, []byte{0, 0}))},
		{"IPv6 extended community length 3 (CVE-2026-37461)", updateMessage(nlri, origin, aspath, nh, lp, []byte{0xc0, 25, 3, 0, 2, 0})},
		{"Prefix-SID with unknown SRv6 sub-TLV (CVE-2026-7734)", updateMessage(nlri, origin, aspath, nh, lp, []byte{0xc0, 40, 9, 5, 0, 6, 0, 9, 0, 0, 0, 0})},
		{"AIGP TLV length 0 (CVE-2026-7735)", updateMessage(nlri, origin, aspath, nh, lp, []byte{0x80, 26, 3, 1, 0, 0})},
		{"IPv4 prefix length 33", updateMessage([]byte{33, 10, 9, 8, 7, 6}, origin, aspath, nh, lp)},
		{"header length 18", append(bytes.Repeat([]byte{0xff}, 16), 0, 18, 2)},
		{"header length 65535", append(bytes.Repeat([]byte{0xff}, 16), 0xff, 0xff, 2)},
		{"no marker", make([]byte, 23)},
	}
	nettest.Run(t, func(t *testing.T) {
		n := newNode(t, 1, 65000)
		rawPeer(n, "127.0.0.8", 65000)
		addrs := make([]string, len(vectors))
		for i := range vectors { // a peer each: after a reset GoBGP refuses one for 5 s
			addrs[i] = ip("127.0.1.%d", i+1).String()
			rawPeer(n, addrs[i], 65000)
		}
		n.apply()
		good := dialRaw(t, n, "127.0.0.8", 65000)
		good.announce("10.8.0.0/24", "192.0.2.8")
		const want = "10.8.0.0/24>192.0.2.8<127.0.0.8"
		n.waitRoutes(want)
		for i, v := range vectors {
			t.Run(v.name, func(t *testing.T) {
				bad := dialRaw(t, n, addrs[i], 65000)
				bad.write(v.m)
				_ = bad.conn.Close()
				// What a survivor still does: take a route of another peer.
				good.announce("10.8.1.0/24", "192.0.2.8")
				n.waitRoutes(want + " 10.8.1.0/24>192.0.2.8<127.0.0.8")
				good.withdraw("10.8.1.0/24")
				n.waitRoutes(want)
			})
		}
	})
}
