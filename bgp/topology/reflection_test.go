// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
)

// racks are five nodes: a and b in rack 1, c and d in rack 2, and e alone with IPv6 only.
func racks() []Node {
	var out []Node
	for i, name := range []string{"a", "b", "c", "d", "e"} {
		n := Node{Name: name, Labels: map[string]string{"rack": fmt.Sprint(1 + i/2), "name": name}, IPv6: netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+1))}
		if name != "e" {
			n.IPv4 = netip.MustParseAddr(fmt.Sprintf("192.168.0.%d", i+1))
		}
		out = append(out, n)
	}
	return out
}

func reflecting(mesh bool, nodes ...string) *v1alpha1.RouteReflectionStatus {
	s := &v1alpha1.RouteReflectionStatus{Mesh: mesh}
	for _, n := range nodes {
		name, cluster, _ := strings.Cut(n, "@")
		s.Reflectors = append(s.Reflectors, v1alpha1.Reflector{Node: name, ClusterID: cluster, State: v1alpha1.ReflectorActive})
	}
	return s
}

// sessions says whom a node peers with: "mesh b c | reflectors a | reflects client a, ...".
func sessions(o Output) string {
	var parts []string
	name := func(full string) string { _, n, _ := strings.Cut(full, "/"); return n }
	list := func(what string, names []string) {
		if slices.Sort(names); len(names) > 0 {
			parts = append(parts, what+" "+strings.Join(names, " "))
		}
	}
	var mesh, reflectors, clients, fellows, above, below []string
	for _, p := range o.Peers {
		mesh = append(mesh, name(p.Name))
	}
	for _, p := range o.Reflection.Reflectors {
		reflectors = append(reflectors, name(p.Name))
	}
	for _, p := range o.Reflection.Reflector.Peers {
		switch n := name(p.Name); {
		case p.Kind == bgp.PeerNode:
			clients = append(clients, n)
		case p.Client:
			below = append(below, n)
		case p.Port != 0:
			above = append(above, n) // or a fellow that it connects to
		default:
			fellows = append(fellows, n)
		}
	}
	list("mesh", mesh)
	list("client of", reflectors)
	list("reflects for", clients)
	list("and reflector", below)
	list("connects to", above)
	list("awaits", fellows)
	return strings.Join(parts, "; ")
}

func TestReflection(t *testing.T) {
	rack := func(id, reflector, clients string) v1alpha1.RouteReflectorCluster {
		return v1alpha1.RouteReflectorCluster{ClusterID: id, ReflectorSelector: "name == '" + reflector + "'", ClientSelector: clients}
	}
	for name, tt := range map[string]struct {
		spec     *v1alpha1.RouteReflection
		status   *v1alpha1.RouteReflectionStatus
		want     map[string]string
		problems string
	}{
		"nothing chosen yet": {
			want: map[string]string{"a": "mesh b c d e", "e": "mesh a b c d"},
		},
		"joining": {
			status: reflecting(true, "a", "c"),
			want: map[string]string{
				"a": "mesh b c d e; client of a c; reflects for a b c d e; connects to c",
				"b": "mesh a c d e; client of a c",
			},
		},
		"reflected": {
			status: reflecting(false, "a", "c"),
			want: map[string]string{
				"a": "client of a c; reflects for a b c d e; connects to c",
				"c": "client of a c; reflects for a b c d e; awaits a",
				"e": "client of a c",
			},
		},
		"one is gone": {
			status: reflecting(false, "a", "x"),
			want:   map[string]string{"b": "client of a", "a": "client of a; reflects for a b c d e"},
		},
		"a cluster for each rack, and one above": {
			spec:   manual(rack("1.0.0.0", "e", "name in {'a', 'c'}"), rack("1.0.0.1", "a", "rack == '1'"), rack("1.0.0.2", "c", "rack == '2'")),
			status: reflecting(false, "e@1.0.0.0", "a@1.0.0.1", "c@1.0.0.2"),
			want: map[string]string{
				"a": "client of a; reflects for a b; connects to e",
				"b": "client of a",
				"d": "client of c",
				"e": "client of e; reflects for e; and reflector a c",
			},
		},
		"a loop": {
			spec:   manual(rack("1.0.0.1", "a", "name in {'b', 'c'}"), rack("1.0.0.2", "c", "name in {'a', 'd', 'e'}")),
			status: reflecting(false, "a@1.0.0.1", "c@1.0.0.2"),
			want: map[string]string{
				"a": "client of a; reflects for a b; connects to c",
				"c": "client of c; reflects for c d e; awaits a",
			},
			problems: "reflector a of cluster 1.0.0.1 cannot be a client of cluster 1.0.0.2, whose reflectors are clients themselves",
		},
		"a client of two clusters": {
			spec:   manual(rack("1.0.0.1", "a", "rack == '1'"), rack("1.0.0.2", "c", "has(rack)")),
			status: reflecting(false, "a@1.0.0.1", "c@1.0.0.2"),
			want: map[string]string{
				"b": "client of a",
				"a": "client of a; reflects for a b; connects to c",
			},
		},
		"an unreadable selector, and all": {
			spec:     manual(rack("1.0.0.1", "a", "rack =="), rack("1.0.0.2", "c", "")),
			status:   reflecting(false, "a@1.0.0.1", "c@1.0.0.2"),
			want:     map[string]string{"a": "client of a; reflects for a; connects to c", "b": "client of c", "c": "client of c; reflects for b c d e; awaits a"},
			problems: "routeReflection.clusters[0].clientSelector: position 8",
		},
		"a cluster that the spec no longer has": {
			status: reflecting(false, "a@1.0.0.1", "c@1.0.0.2"),
			want:   map[string]string{"b": "client of a c"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for node, want := range tt.want {
				out := Compute(Input{Self: node, Nodes: racks(), Pools: pools, Config: v1alpha1.BGPConfigurationSpec{RouteReflection: tt.spec}, Reflection: tt.status})
				if got := sessions(out); got != want {
					t.Errorf("%s:\n got %s\nwant %s", node, got, want)
				}
				if got := fmt.Sprint(out.Problems); !strings.Contains(got, tt.problems) || tt.problems == "" && len(out.Problems) > 0 {
					t.Errorf("%s: problems %s, want %q", node, got, tt.problems)
				}
			}
		})
	}
}

// What the sessions are made of, in full.
func TestReflectorPeers(t *testing.T) {
	port := int32(1790)
	block4, block6 := netip.MustParsePrefix("10.244.1.0/26"), netip.MustParsePrefix("fd00:244::/122")
	router := v1alpha1.BGPPeer{Spec: v1alpha1.BGPPeerSpec{PeerIP: "192.168.0.99", ASNumber: DefaultASN, ReflectorClient: true, AcceptPrefixes: []string{"172.16.0.0/12"}}}
	router.Name = "edge"
	foreign, clash := router, router
	foreign.Name, foreign.Spec.PeerIP, foreign.Spec.ASNumber = "foreign", "192.168.0.98", 65001
	clash.Name, clash.Spec.PeerIP = "clash", "192.168.0.2"
	in := Input{
		Self: "b", Nodes: racks(), Pools: pools, Reflection: reflecting(false, "a", "b"), Peers: []v1alpha1.BGPPeer{router, foreign, clash},
		Blocks: []Block{{"e", block6}, {"a", block4}},
		Config: v1alpha1.BGPConfigurationSpec{RouteReflection: &v1alpha1.RouteReflection{Port: &port}, NodeMeshPassword: &v1alpha1.BGPPassword{}},
	}
	in.Config.NodeMeshPassword.SecretKeyRef.Name = "mesh"
	out := Compute(in)
	r := out.Reflection.Reflector
	if r.RouterID != r.ClusterID || r.RouterID.As4()[0]>>4 != 15 || !slices.Equal(r.Listen, []netip.AddrPort{netip.MustParseAddrPort("192.168.0.2:1790"), netip.MustParseAddrPort("[fd00::2]:1790")}) {
		t.Errorf("reflector: %+v", r)
	}
	times := bgp.Timers{Hold: 90 * time.Second, Keepalive: 30 * time.Second, ConnectRetry: 5 * time.Second}
	both, common := []bgp.Family{bgp.IPv4, bgp.IPv6}, []netip.Prefix{pools[0], netip.MustParsePrefix("172.16.0.0/12"), pools[1]}
	held := "Secret mesh is missing"
	want := map[string]bgp.ReflectorPeer{
		"client/a": {Kind: bgp.PeerNode, Client: true, Address: ip("192.168.0.1"), RouterID: ip("192.168.0.1"), Timers: times, Families: both, Held: held, Accept: []netip.Prefix{block4}},
		"client/e": {Kind: bgp.PeerNode, Client: true, Address: ip("fd00::5"), RouterID: routerID(in.Nodes[4]), Timers: times, Families: both[1:], Held: held, Accept: []netip.Prefix{block6}},
		"reflector/a": {
			Kind: bgp.PeerReflector, Address: ip("192.168.0.1"), RouterID: ip("0.0.0.0"), Timers: times, Families: both, Held: held, Accept: common,
		},
		"peer/edge": {
			Kind: bgp.PeerFabric, Client: true, Address: ip("192.168.0.99"), Port: 179, Timers: times, Families: both,
			Accept: []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")}, MaxPrefixes: maxRouterPrefixes,
		},
	}
	got := map[string]bgp.ReflectorPeer{}
	for _, p := range r.Peers {
		if _, ok := want[p.Name]; ok {
			if p.Kind == bgp.PeerReflector {
				if p.RouterID == r.RouterID || p.RouterID.As4()[0]>>4 != 15 {
					t.Errorf("router ID of %s: %s; ours is %s", p.Name, p.RouterID, r.RouterID)
				}
				p.RouterID = ip("0.0.0.0")
			}
			name := p.Name
			p.Name = ""
			got[name] = p
		}
	}
	if diff := cmp.Diff(want, got, comparers); diff != "" {
		t.Errorf("peers (-want +got):\n%s", diff)
	}
	if names := len(r.Peers); names != 5+1+1 {
		t.Errorf("%d peers", names)
	}
	problems := fmt.Sprint(out.Problems)
	for _, want := range []string{"BGPPeer foreign} asNumber: 65001 is not", "BGPPeer clash} peerIP 192.168.0.2 is that of node b"} {
		if !strings.Contains(problems, strings.ReplaceAll(want, "} ", " ")) {
			t.Errorf("problems %s, want %q", problems, want)
		}
	}
	wantUp := bgp.Peer{
		Name: "reflector/b", Kind: bgp.PeerReflector, Address: ip("192.168.0.2"), LocalAddress: ip("192.168.0.2"), Port: 1790, ASN: DefaultASN, Held: held,
		Timers: times, GracefulRestart: bgp.GracefulRestart{Enabled: true, RestartTime: DefaultRestartTime}, Families: both, Accept: common,
	}
	if diff := cmp.Diff(wantUp, out.Reflection.Reflectors[1], comparers); diff != "" {
		t.Errorf("its speaker's session with itself (-want +got):\n%s", diff)
	}
}
