// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/bgp/reflector"
)

func TestMergedPaths(t *testing.T) {
	path := func(p, peer string, kind bgp.PeerKind) bgp.Path {
		return bgp.Path{Prefix: prefix(p), Peer: addr(peer), Kind: kind}
	}
	node := []bgp.Path{path("10.244.0.0/26", "192.168.0.1", bgp.PeerNode), path("fd00:244::/122", "192.168.0.1", bgp.PeerNode)}
	client := []bgp.Path{path("10.244.0.0/26", "192.168.0.1", bgp.PeerReflector), path("10.244.0.64/26", "192.168.0.1", bgp.PeerReflector)}
	var m mergedPaths
	both := m.of(node, client)
	if diff := cmp.Diff([]bgp.Path{node[0], client[0], client[1], node[1]}, both, equalAddrs); diff != "" {
		t.Errorf("merged (-want +got):\n%s", diff)
	}
	if again := m.of(node, client); &again[0] != &both[0] {
		t.Error("what did not change was merged again")
	}
	if diff := cmp.Diff(node, m.of(node, nil), equalAddrs); diff != "" {
		t.Errorf("without reflectors (-want +got):\n%s", diff)
	}
	if got := m.of(slices.Clone(node), client); len(got) != 4 {
		t.Errorf("reflectors come back: %v", got)
	}
}

var equalAddrs = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

// What the topology asks for is what the engine accepts: a node's speaker and its reflector share an address.
func TestReflectorConfig(t *testing.T) {
	r := bgp.Reflector{
		ASN: 64512, RouterID: addr("240.0.0.2"), ClusterID: addr("1.0.0.1"), Listen: []netip.AddrPort{netip.MustParseAddrPort("[fd00::1]:1179")},
		Peers: []bgp.ReflectorPeer{
			{Name: "client/a", Kind: bgp.PeerNode, Client: true, Address: addr("192.168.0.1"), RouterID: addr("192.168.0.1"), Accept: []netip.Prefix{prefix("10.244.0.0/26")}},
			{Name: "client/b", Kind: bgp.PeerNode, Client: true, Address: addr("fd00::2"), RouterID: addr("192.168.0.2")},
			{Name: "reflector/a", Kind: bgp.PeerReflector, Address: addr("192.168.0.1"), RouterID: addr("240.0.0.4"), Port: 1179, LocalAddress: addr("192.168.0.3"), Accept: []netip.Prefix{prefix("fd00:244::/56")}},
		},
	}
	c := reflectorConfig(r)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	own := reflector.Policy{Rules: []reflector.Rule{{Prefix: prefix("10.244.0.0/26")}}}
	if p := c.Peers[0]; p.NonClient || p.Connect || !p.Advertise.Any || cmp.Diff(own, p.Accept, equalAddrs) != "" || p.Prefix != prefix("192.168.0.1/32") {
		t.Errorf("a client: %+v", p)
	}
	if p := c.Peers[1]; p.Accept.Any || len(p.Accept.Rules) != 0 || p.Prefix != prefix("fd00::2/128") {
		t.Errorf("a client without blocks: %+v", p)
	}
	if p := c.Peers[2]; !p.NonClient || !p.Connect || p.Port != 1179 {
		t.Errorf("another reflector: %+v", p)
	}
}

// Without reflection there is one speaker, and nothing else runs.
func TestSpeakersWithoutReflection(t *testing.T) {
	s := newSpeakers(t.TempDir(), slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = s.Stop(t.Context(), false) })
	if err := s.Apply(t.Context(), bgp.Desired{}); err != nil {
		t.Fatal(err)
	}
	if s.status() != nil || s.engine.Snapshot().Running || s.client.Snapshot().Running {
		t.Error("a reflector or its client runs")
	}
}
