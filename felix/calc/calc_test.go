// SPDX-License-Identifier: Apache-2.0

package calc

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

var comparers = cmp.Options{
	cmpopts.EquateEmpty(),
	cmp.AllowUnexported(path.Decision{}, path.State{}),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

// now is when all decisions of these tests are taken.
var now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// Remote computes a state by a process that has just started.
func Remote(v snapshot.View) RemoteState {
	d := Prepare(v)
	return d.Finish(path.NewMachine(v.NodeName).Decide(now, d.Inputs()))
}

// The cluster of these tests is the lab: node1 (us) and node2 in rack 1, node3 in rack 2.

func node(name string, ips ...string) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, ip := range ips {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	return n
}

func pool(name, cidr string, enc v1alpha1.Encapsulation) v1alpha1.IPPool {
	return v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.IPPoolSpec{CIDR: cidr, Encapsulation: enc, NATOutgoing: true}}
}

func block(cidr, pool, node string, primary bool) v1alpha1.IPBlock {
	return v1alpha1.IPBlock{ObjectMeta: metav1.ObjectMeta{Name: cidr}, Spec: v1alpha1.IPBlockSpec{CIDR: cidr, Pool: pool, Node: node, Primary: primary}}
}

func objects(enc v1alpha1.Encapsulation) snapshot.Objects {
	return snapshot.Objects{
		Nodes: []corev1.Node{
			node("node1", "192.168.11.11", "fd00:11::11"),
			node("node2", "192.168.11.12", "fd00:11::12"),
			node("node3", "192.168.12.13", "fd00:12::13"),
		},
		Pools: []v1alpha1.IPPool{pool("v4", "10.244.0.0/16", enc), pool("v6", "fd00:244::/56", enc)},
		Blocks: []v1alpha1.IPBlock{
			block("10.244.0.0/26", "v4", "node1", true), block("fd00:244::/122", "v6", "node1", true),
			block("10.244.0.64/26", "v4", "node2", true), block("fd00:244::40/122", "v6", "node2", true),
			block("10.244.0.128/26", "v4", "node3", true), block("fd00:244::80/122", "v6", "node3", true),
		},
	}
}

func local(paths ...bgp.Path) snapshot.Local {
	return snapshot.Local{
		NodeName: "node1", Settled: true, Capabilities: snapshot.Capabilities{Can: path.CanIPIP | path.CanVXLAN},
		Links: []snapshot.OnLink{
			{Device: "eth0", MTU: 1500, Addr: netip.MustParseAddr("192.168.11.11"), Subnet: netip.MustParsePrefix("192.168.11.0/24")},
			{Device: "eth0", MTU: 1500, Addr: netip.MustParseAddr("fd00:11::11"), Subnet: netip.MustParsePrefix("fd00:11::/64")},
		},
		BGP: bgp.Snapshot{Running: true, Paths: paths},
	}
}

func fromNode(prefix, nextHop, peer string) bgp.Path {
	return bgp.Path{Prefix: netip.MustParsePrefix(prefix), NextHop: netip.MustParseAddr(nextHop), Peer: netip.MustParseAddr(peer), Kind: bgp.PeerNode}
}

// reflected is a path that the reflector on node2 passed on.
func reflected(prefix, nextHop string) bgp.Path {
	p := fromNode(prefix, nextHop, "192.168.11.12")
	p.Kind = bgp.PeerReflector
	return p
}

func fromFabric(prefix, nextHop string, asPathLen int) bgp.Path {
	return bgp.Path{Prefix: netip.MustParsePrefix(prefix), NextHop: netip.MustParseAddr(nextHop), Peer: netip.MustParseAddr("192.168.11.1"), Kind: bgp.PeerFabric, ASPathLen: asPathLen}
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func mac(node string) netip.Addr { return linkLocal(MACOf(node)) }

// TestDecide is the path rule, row by row: how node1 reaches a block of node2 (same subnet) or of
// node3 (another).
func TestDecide(t *testing.T) {
	const (
		to2, to3    = "10.244.0.64/26", "10.244.0.128/26"
		to3v6       = "fd00:244::80/122"
		leaf, leaf2 = "192.168.11.1", "192.168.11.2"
	)
	direct2 := fromNode(to2, "192.168.11.12", "192.168.11.12")
	mesh3 := fromNode(to3, "192.168.12.13", "192.168.12.13")
	tests := []struct {
		name     string
		enc      v1alpha1.Encapsulation
		paths    []bgp.Path
		adopted  map[netip.Prefix][]snapshot.Hop
		to       string
		method   v1alpha1.PathMethod
		nextHops []netip.Addr
	}{
		{name: "no BGP at all", enc: "Auto", to: to3, method: "VXLAN", nextHops: addrs("192.168.12.13")},
		{name: "no BGP at all, IPv6", enc: "Auto", to: to3v6, method: "VXLAN", nextHops: []netip.Addr{mac("node3")}},
		{name: "same subnet, its own route", enc: "Auto", paths: []bgp.Path{direct2}, to: to2, method: "Native", nextHops: addrs("192.168.11.12")},
		{name: "same subnet, its own route by way of a reflector elsewhere", enc: "Auto", paths: []bgp.Path{reflected(to2, "192.168.11.12")}, to: to2, method: "Native", nextHops: addrs("192.168.11.12")},
		{name: "same subnet without a route is no proof", enc: "Auto", to: to2, method: "VXLAN", nextHops: addrs("192.168.11.12")},
		{name: "other subnet, mesh route alone: next hop is not on-link", enc: "Auto", paths: []bgp.Path{mesh3}, to: to3, method: "VXLAN", nextHops: addrs("192.168.12.13")},
		{name: "other subnet, route from the fabric", enc: "Auto", paths: []bgp.Path{mesh3, fromFabric(to3, leaf, 3)}, to: to3, method: "Native", nextHops: addrs(leaf)},
		{name: "IPv6 from the fabric", enc: "Auto", paths: []bgp.Path{fromFabric(to3v6, "fd00:11::1", 3)}, to: to3v6, method: "Native", nextHops: addrs("fd00:11::1")},
		{name: "two routers at equal distance: both", enc: "Auto", paths: []bgp.Path{fromFabric(to3, leaf, 3), fromFabric(to3, leaf2, 3)}, to: to3, method: "Native", nextHops: addrs(leaf, leaf2)},
		{name: "two routers, one nearer: that one", enc: "Auto", paths: []bgp.Path{fromFabric(to3, leaf, 4), fromFabric(to3, leaf2, 3)}, to: to3, method: "Native", nextHops: addrs(leaf2)},
		{name: "the node itself before the fabric", enc: "Auto", paths: []bgp.Path{fromFabric(to2, leaf, 3), direct2}, to: to2, method: "Native", nextHops: addrs("192.168.11.12")},
		{name: "an aggregate of the fabric", enc: "Auto", paths: []bgp.Path{fromFabric("10.244.0.0/24", leaf, 1)}, to: to3, method: "Native", nextHops: addrs(leaf)},
		{name: "a fabric next hop off-link", enc: "Auto", paths: []bgp.Path{fromFabric(to3, "192.168.99.1", 1)}, to: to3, method: "VXLAN", nextHops: addrs("192.168.12.13")},
		{name: "node2 claims what is node3's", enc: "Auto", paths: []bgp.Path{fromNode(to3, "192.168.11.12", "192.168.11.12")}, to: to3, method: "VXLAN", nextHops: addrs("192.168.12.13")},
		{name: "Never, with a route", enc: "Never", paths: []bgp.Path{fromFabric(to3, leaf, 3)}, to: to3, method: "Native", nextHops: addrs(leaf)},
		{name: "Never, without", enc: "Never", paths: []bgp.Path{mesh3}, to: to3, method: "None"},
		{name: "VXLAN, whatever BGP says", enc: "VXLAN", paths: []bgp.Path{fromFabric(to3, leaf, 3)}, to: to3, method: "VXLAN", nextHops: addrs("192.168.12.13")},
		{name: "VXLANCrossSubnet, same subnet", enc: "VXLANCrossSubnet", to: to2, method: "Native", nextHops: addrs("192.168.11.12")},
		{name: "VXLANCrossSubnet, other subnet", enc: "VXLANCrossSubnet", paths: []bgp.Path{fromFabric(to3, leaf, 3)}, to: to3, method: "VXLAN", nextHops: addrs("192.168.12.13")},
		{
			name: "adopted until settled", enc: "Auto", to: to3, method: "Native", nextHops: addrs(leaf),
			adopted: map[netip.Prefix][]snapshot.Hop{netip.MustParsePrefix(to3): {{Gateway: netip.MustParseAddr(leaf), Device: "eth0"}}},
		},
		{
			name: "adopted from a device that is gone", enc: "Auto", to: to3, method: "VXLAN", nextHops: addrs("192.168.12.13"),
			adopted: map[netip.Prefix][]snapshot.Hop{netip.MustParsePrefix(to3): {{Gateway: netip.MustParseAddr(leaf), Device: "eth9"}}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := local(tt.paths...)
			l.Adopted, l.Settled = tt.adopted, tt.adopted == nil
			s := Remote(snapshot.Build(objects(tt.enc), l))
			prefix := netip.MustParsePrefix(tt.to)
			i := slices.IndexFunc(s.Routes, func(r desired.Route) bool { return r.Prefix == prefix })
			if i < 0 {
				t.Fatalf("no route to %s in %v", tt.to, s.Routes)
			}
			var got []netip.Addr
			for _, n := range groupOf(t, s, s.Routes[i].Nexthop) {
				got = append(got, n.Gateway)
			}
			slices.SortFunc(got, netip.Addr.Compare)
			if diff := cmp.Diff(tt.nextHops, got, comparers); diff != "" {
				t.Errorf("next hops in the kernel (-want +got):\n%s", diff)
			}
			p := pathOf(s, prefix)
			if p.Method != tt.method || p.Reason == "" {
				t.Errorf("path = %+v, want method %s and a reason", p, tt.method)
			}
			if (tt.method == "None") != (s.Routes[i].Type == desired.RouteBlackhole) {
				t.Errorf("route type = %d for method %s", s.Routes[i].Type, tt.method)
			}
		})
	}
}

func groupOf(t *testing.T, s RemoteState, id desired.NexthopID) []desired.Nexthop {
	t.Helper()
	var out []desired.Nexthop
	for _, n := range s.Nexthops {
		if n.ID != id {
			continue
		}
		if n.Group == "" {
			t.Fatalf("route refers to %v, which is no group", n)
		}
		for _, m := range n.Members() {
			i := slices.IndexFunc(s.Nexthops, func(n desired.Nexthop) bool { return n.ID == m })
			if i < 0 {
				t.Fatalf("member %d of %v is missing", m, n)
			}
			out = append(out, s.Nexthops[i])
		}
	}
	return out
}

func pathOf(s RemoteState, prefix netip.Prefix) Path {
	name := map[string]string{"10.244.0.64/26": "node2", "10.244.0.128/26": "node3", "fd00:244::80/122": "node3"}[prefix.String()]
	for _, p := range s.Paths {
		if p.Node == name && p.Family == bgp.FamilyOf(prefix.Addr()) {
			return p
		}
	}
	return Path{}
}

func TestRemoteWholeState(t *testing.T) {
	s := Remote(snapshot.Build(objects(v1alpha1.EncapsulationAuto), local()))
	if s.MTU != 1500 {
		t.Errorf("MTU of pods = %d, want that of eth0, 1500", s.MTU)
	}
	wantVXLAN := []desired.VXLAN{{Name: "hel-vxlan", VNI: 4096, Port: 4789, Local: netip.MustParseAddr("192.168.11.11"), MAC: MACOf("node1"), MTU: 1450}}
	if diff := cmp.Diff(wantVXLAN, s.VXLANs, comparers); diff != "" {
		t.Errorf("VXLAN devices (-want +got):\n%s", diff)
	}
	wantAddresses := []desired.Address{
		{Device: "lo", Prefix: netip.MustParsePrefix("10.244.0.1/32")}, {Device: "lo", Prefix: netip.MustParsePrefix("fd00:244::1/128")},
		{Device: "hel-vxlan", Prefix: netip.MustParsePrefix("10.244.0.1/32")},
		{Device: "hel-ipip", Prefix: netip.MustParsePrefix("10.244.0.1/32")},
	}
	if diff := cmp.Diff(wantAddresses, s.Addresses, comparers); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	wantOrigins := []bgp.Origin{
		{Prefix: netip.MustParsePrefix("10.244.0.0/26"), NextHop: netip.MustParseAddr("192.168.11.11")},
		{Prefix: netip.MustParsePrefix("fd00:244::/122"), NextHop: netip.MustParseAddr("fd00:11::11")},
	}
	if diff := cmp.Diff(wantOrigins, s.BGP.Origins, comparers); diff != "" {
		t.Errorf("origins (-want +got):\n%s", diff)
	}
	if len(s.BGP.Peers) != 2 || s.BGP.Peers[0].Name != "node/node2" || s.BGP.Peers[1].Name != "node/node3" {
		t.Errorf("peers = %+v, want node2 and node3", s.BGP.Peers)
	}
	if diff := cmp.Diff(addrs("192.168.11.12", "192.168.12.13", "fd00:11::12", "fd00:12::13"), s.NFT.Nodes, comparers); diff != "" {
		t.Errorf("nodes that may send VXLAN (-want +got):\n%s", diff)
	}
}

func TestForeignClaimsAreCountedNotObeyed(t *testing.T) {
	s := Remote(snapshot.Build(objects(v1alpha1.EncapsulationAuto), local(
		fromNode("10.244.0.128/26", "192.168.11.12", "192.168.11.12"), // node2 claims node3's block
		fromNode("10.244.9.0/26", "192.168.11.12", "192.168.11.12"),   // node2 claims nobody's block
		fromNode("10.244.0.0/26", "192.168.11.12", "192.168.11.12"),   // node2 claims ours
		fromNode("10.244.9.0/26", "192.168.99.99", "192.168.99.99"),   // a node that the API no longer knows
		fromFabric("10.244.0.130/32", "192.168.11.1", 1),              // the fabric claims a part of node3's
		fromFabric("10.244.0.0/26", "192.168.11.1", 1),                // ours comes back: ignored
		fromFabric("10.244.77.0/26", "192.168.11.1", 1),               // somebody else's use of the pool: obeyed
		reflected("10.244.0.128/26", "192.168.12.13"),                 // node3's block by way of a reflector: not refused
		reflected("10.244.0.128/26", "192.168.11.12"),                 // and with another node as next hop
		reflected("10.244.0.64/27", "192.168.11.12"),                  // a part of a block
		reflected("10.244.0.0/26", "192.168.11.11"),                   // ours comes back: ignored
		reflected("10.244.78.0/26", "192.168.11.7"),                   // of a router that is a client of the reflector: obeyed
	)))
	want := map[bgp.Neighbour]Refusal{
		{Kind: bgp.PeerNode, Address: netip.MustParseAddr("192.168.11.12")}:      {Routes: 3, Example: netip.MustParsePrefix("10.244.0.0/26")},
		{Kind: bgp.PeerFabric, Address: netip.MustParseAddr("192.168.11.1")}:     {Routes: 1, Example: netip.MustParsePrefix("10.244.0.130/32")},
		{Kind: bgp.PeerNode, Address: netip.MustParseAddr("192.168.99.99")}:      {Routes: 1, Example: netip.MustParsePrefix("10.244.9.0/26")},
		{Kind: bgp.PeerReflector, Address: netip.MustParseAddr("192.168.11.12")}: {Routes: 2, Example: netip.MustParsePrefix("10.244.0.64/27")},
	}
	if diff := cmp.Diff(want, s.Refused, comparers); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
	for prefix, wanted := range map[string]bool{"10.244.9.0/26": false, "10.244.0.130/32": false, "10.244.77.0/26": true, "10.244.78.0/26": true, "10.244.0.64/27": false} {
		got := slices.ContainsFunc(s.Routes, func(r desired.Route) bool { return r.Prefix.String() == prefix })
		if got != wanted {
			t.Errorf("route %s installed = %t, want %t", prefix, got, wanted)
		}
	}
}

// TestSwitchIsOneObject shows what a change of path costs: one nexthop object differs, no route.
func TestSwitchIsOneObject(t *testing.T) {
	o := objects(v1alpha1.EncapsulationAuto)
	var paths []bgp.Path
	for i := range 50 {
		cidr := fmt.Sprintf("10.244.%d.0/26", i+1)
		o.Blocks = append(o.Blocks, block(cidr, "v4", "node3", false))
		paths = append(paths, fromFabric(cidr, "192.168.11.1", 3))
	}
	paths = append(paths, fromFabric("10.244.0.128/26", "192.168.11.1", 3))
	native := Remote(snapshot.Build(o, local(paths...)))
	fallback := Remote(snapshot.Build(o, local()))
	if diff := cmp.Diff(native.Routes, fallback.Routes, comparers); diff != "" {
		t.Errorf("routes differ between native and VXLAN (-native +vxlan):\n%s", diff)
	}
	changed := 0
	for _, n := range fallback.Nexthops {
		i := slices.IndexFunc(native.Nexthops, func(m desired.Nexthop) bool { return m.ID == n.ID })
		if i >= 0 && native.Nexthops[i] != n {
			changed++
		}
	}
	if changed != 1 {
		t.Errorf("%d nexthop objects change, want 1", changed)
	}
}

// TestRemoteDependsOnPresentFactsOnly feeds the same facts in random order.
func TestRemoteDependsOnPresentFactsOnly(t *testing.T) {
	o := objects(v1alpha1.EncapsulationAuto)
	paths := []bgp.Path{
		fromFabric("10.244.0.128/26", "192.168.11.1", 3), fromFabric("10.244.0.128/26", "192.168.11.2", 3),
		fromFabric("10.244.77.0/26", "192.168.11.2", 1), fromNode("10.244.0.64/26", "192.168.11.12", "192.168.11.12"),
	}
	want := Remote(snapshot.Build(o, local(paths...)))
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		rng.Shuffle(len(o.Nodes), func(i, j int) { o.Nodes[i], o.Nodes[j] = o.Nodes[j], o.Nodes[i] })
		rng.Shuffle(len(o.Blocks), func(i, j int) { o.Blocks[i], o.Blocks[j] = o.Blocks[j], o.Blocks[i] })
		rng.Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
		got := Remote(snapshot.Build(o, local(paths...)))
		if diff := cmp.Diff(want, got, comparers); diff != "" {
			t.Fatalf("state depends on order (-want +got):\n%s", diff)
		}
	}
}

func TestUnknownNodeComputesNoSpeaker(t *testing.T) {
	l := local()
	l.NodeName = "stranger"
	if s := Remote(snapshot.Build(objects(v1alpha1.EncapsulationAuto), l)); s.BGP.Global != (bgp.Global{}) {
		t.Errorf("a node that the API does not know has a speaker: %+v", s.BGP.Global)
	}
}

func TestVXLANUnderlayFollowsSharedFamily(t *testing.T) {
	o := objects(v1alpha1.EncapsulationVXLAN)
	o.Nodes[2] = node("node3", "fd00:12::13") // IPv6 only
	s := Remote(snapshot.Build(o, local()))
	want := []desired.FDBEntry{
		{Device: "hel-vxlan", MAC: MACOf("node2"), Remote: netip.MustParseAddr("192.168.11.12")},
		{Device: "hel-vxlan6", MAC: MACOf("node3"), Remote: netip.MustParseAddr("fd00:12::13")},
	}
	if diff := cmp.Diff(want, s.FDB, comparers); diff != "" {
		t.Errorf("FDB (-want +got):\n%s", diff)
	}
	if len(s.VXLANs) != 2 || s.VXLANs[0].MTU != 1450 || s.VXLANs[1].MTU != 1430 {
		t.Errorf("VXLAN devices = %+v, want MTU 1450 over IPv4 and 1430 over IPv6", s.VXLANs)
	}
}

func TestIDsOfNexthopsAreOursAndStable(t *testing.T) {
	table := newNexthopTable(0)
	for i := range 20_000 {
		table.group(desired.NexthopKey(fmt.Sprintf("node/n%d/IPv4", i)), []hop{{gateway: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), device: "eth0"}})
	}
	ids := table.ids()
	seen := map[desired.NexthopID]bool{}
	for i, id := range ids {
		if id>>31 != 1 || seen[id] {
			t.Fatalf("id %#x of %s is repeated or not ours", id, table.entries[i].name)
		}
		seen[id] = true
	}
	if diff := cmp.Diff(ids, table.ids()); diff != "" {
		t.Errorf("ids differ between two runs:\n%s", diff)
	}
}

func TestLocal(t *testing.T) {
	got := Local([]snapshot.Workload{{Device: "hel0123456789a", IPs: addrs("10.244.0.5", "fd00:244::5")}})
	want := LocalState{
		Routes: []desired.Route{
			{Prefix: netip.MustParsePrefix("10.244.0.5/32"), Type: desired.RouteDevice, Device: "hel0123456789a"},
			{Prefix: netip.MustParsePrefix("fd00:244::5/128"), Type: desired.RouteDevice, Device: "hel0123456789a"},
		},
		Workloads: []desired.Workload{{Device: "hel0123456789a", IPs: [2]netip.Addr{netip.MustParseAddr("10.244.0.5"), netip.MustParseAddr("fd00:244::5")}}},
	}
	if diff := cmp.Diff(want, got, comparers); diff != "" {
		t.Errorf("Local (-want +got):\n%s", diff)
	}
}

func BenchmarkRemote(b *testing.B) {
	for _, nodes := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("nodes=%d", nodes), func(b *testing.B) {
			o, l := bigCluster(nodes)
			for b.Loop() {
				Remote(snapshot.Build(o, l))
			}
		})
	}
}

func bigCluster(nodes int) (snapshot.Objects, snapshot.Local) {
	o := objects(v1alpha1.EncapsulationAuto)
	o.Pools = []v1alpha1.IPPool{pool("v4", "10.0.0.0/8", "Auto")}
	o.Nodes, o.Blocks = nil, nil
	var paths []bgp.Path
	for i := range nodes {
		name := fmt.Sprintf("node%d", i+1)
		o.Nodes = append(o.Nodes, node(name, netip.AddrFrom4([4]byte{192, 168, byte(11 + i/200), byte(11 + i%200)}).String()))
		for j := range 2 {
			n := 2*i + j
			cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 10), byte(n >> 2), byte(n&3) << 6}), 26).String()
			o.Blocks = append(o.Blocks, block(cidr, "v4", name, j == 0))
			paths = append(paths, fromFabric(cidr, "192.168.11.1", 3))
		}
	}
	return o, local(paths...)
}
