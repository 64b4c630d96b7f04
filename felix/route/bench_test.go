// SPDX-License-Identifier: Apache-2.0

package route_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/route"
)

func BenchmarkSetDesiredFirst(b *testing.B) {
	routes := make([]desired.Route, 100_000)
	for i := range routes {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 10<<24|uint32(i)<<6)
		routes[i] = desired.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4(a), 26), Type: desired.RouteNexthop, Nexthop: nhA}
	}
	b.ReportAllocs()
	for b.Loop() {
		route.New(newFake(), quiet).SetDesired(routes)
	}
}
