// SPDX-License-Identifier: Apache-2.0

//go:build linux

package speaker_test

import (
	"testing"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// mesh returns applied speakers 1..n, all connected, with one AS.
func mesh(t *testing.T, n int) []*node {
	t.Helper()
	var nodes []*node
	for i := range n {
		nodes = append(nodes, newNode(t, i+1, 64512))
	}
	for i, a := range nodes {
		for _, b := range nodes[i+1:] {
			connect(a, b)
		}
	}
	for _, a := range nodes {
		a.apply()
	}
	return nodes
}

func TestMeshConvergesInBothFamilies(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		n := mesh(t, 3)
		// Next hops are those of the originating node in the prefix's family, though the sessions
		// are IPv4; nothing comes from a node that did not originate it.
		n[0].waitRoutes("10.2.0.0/24>192.0.2.2<127.0.0.2 10.3.0.0/24>192.0.2.3<127.0.0.3 " +
			"fd00:2::/64>2001:db8::2<127.0.0.2 fd00:3::/64>2001:db8::3<127.0.0.3")
		n[1].waitRoutes("10.1.0.0/24>192.0.2.1<127.0.0.1 10.3.0.0/24>192.0.2.3<127.0.0.3 " +
			"fd00:1::/64>2001:db8::1<127.0.0.1 fd00:3::/64>2001:db8::3<127.0.0.3")
		n[2].waitRoutes("10.1.0.0/24>192.0.2.1<127.0.0.1 10.2.0.0/24>192.0.2.2<127.0.0.2 " +
			"fd00:1::/64>2001:db8::1<127.0.0.1 fd00:2::/64>2001:db8::2<127.0.0.2")
		n[0].wait("end of rib", func() bool { return len(n[0].session(n[1]).EndOfRIB) == 2 })
		s := n[0].session(n[1])
		if s.PrefixesIn != 2 || s.PrefixesOut != 2 || s.Rejected != 0 || s.State != bgp.StateEstablished {
			t.Errorf("session = %+v", s)
		}
	})
}
