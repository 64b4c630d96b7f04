// SPDX-License-Identifier: Apache-2.0

package routes

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// rawRoute appends a message about the i-th route: through a nexthop object, a gateway, or neither.
func (b *bench) rawRoute(typ, flags uint16, i int, link, nexthop uint32) int {
	at := b.raw.Begin(typ, flags, unix.AF_INET, bits, 0, 0, unix.RT_TABLE_MAIN, protocol, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0)
	d := address(i).As4()
	b.raw.Attr(unix.RTA_DST, d[:])
	switch {
	case nexthop != 0:
		b.raw.Attr32(rtaNexthopID, nexthop)
	case link != 0:
		g := gateway(i / 4 % gateways).As4()
		b.raw.Attr(unix.RTA_GATEWAY, g[:])
		b.raw.Attr32(unix.RTA_OIF, link)
	}
	b.raw.End(at)
	return at
}

// dump reads the main table and counts the destinations of our protocol.
func (b *bench) dump() (count int, err error) {
	b.raw.End(b.raw.Begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP, unix.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
	err = b.raw.Dump(func(typ uint16, body []byte) {
		if typ == unix.RTM_NEWROUTE && body[5] == protocol {
			count += destinations(body[12:])
		}
	})
	return count, err
}

func destinations(a []byte) (n int) {
	for len(a) >= 4 {
		if binary.NativeEndian.Uint16(a[2:]) == unix.RTA_DST {
			n++
		}
		a = a[min((int(binary.NativeEndian.Uint16(a))+3)&^3, len(a)):]
	}
	return n
}
