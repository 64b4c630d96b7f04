// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
)

var comparers = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func ptr[T any](v T) *T { return &v }

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

var nodes = []Node{
	{Name: "node1", Labels: map[string]string{"rack": "r1"}, IPv4: ip("192.168.11.11"), IPv6: ip("fd00:11::11")},
	{Name: "node2", Labels: map[string]string{"rack": "r1"}, IPv4: ip("192.168.11.12"), IPv6: ip("fd00:11::12")},
	{Name: "node3", Labels: map[string]string{"rack": "r2"}, IPv6: ip("fd00:12::13")},
}

var pools = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/56")}

func peer(name string, spec v1alpha1.BGPPeerSpec) v1alpha1.BGPPeer {
	return v1alpha1.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
}

func TestMesh(t *testing.T) {
	got := Compute(Input{Self: "node1", Nodes: nodes, Pools: pools})
	base := bgp.Peer{
		Kind: bgp.PeerNode, Port: 179, ASN: 64512,
		Timers:          bgp.Timers{Hold: 90 * time.Second, Keepalive: 30 * time.Second, ConnectRetry: 5 * time.Second},
		GracefulRestart: bgp.GracefulRestart{Enabled: true, RestartTime: 120 * time.Second},
		Accept:          pools,
	}
	node2, node3 := base, base
	node2.Name, node2.Address, node2.LocalAddress = "node/node2", ip("192.168.11.12"), ip("192.168.11.11")
	node2.Families = []bgp.Family{bgp.IPv4, bgp.IPv6}
	node3.Name, node3.Address, node3.LocalAddress = "node/node3", ip("fd00:12::13"), ip("fd00:11::11")
	node3.Families = []bgp.Family{bgp.IPv6}
	want := Output{
		Global: bgp.Global{ASN: 64512, RouterID: ip("192.168.11.11"), Port: 179},
		Peers:  []bgp.Peer{node2, node3},
	}
	if diff := cmp.Diff(want, got, comparers); diff != "" {
		t.Errorf("Compute (-want +got):\n%s", diff)
	}
}

func TestFabricPeer(t *testing.T) {
	spec := v1alpha1.BGPPeerSpec{
		NodeSelector: "rack == 'r1'", PeerIP: "192.168.11.1", Port: ptr(int32(1790)), ASNumber: 65101,
		NumAllowedLocalASNumbers: ptr(int32(1)), EBGPMultihop: ptr(int32(3)),
		BGPTimers:       v1alpha1.BGPTimers{HoldTime: &metav1.Duration{Duration: 9 * time.Second}},
		GracefulRestart: &v1alpha1.GracefulRestart{Enabled: ptr(false)},
		AcceptPrefixes:  []string{"172.16.0.0/12"},
	}
	in := Input{
		Self: "node1", Nodes: nodes, Pools: pools, Peers: []v1alpha1.BGPPeer{peer("leaf1", spec)},
		Config: v1alpha1.BGPConfigurationSpec{
			ASNumber: ptr(int64(4200000001)), NodeToNodeMeshEnabled: ptr(false),
			BGPTimers: v1alpha1.BGPTimers{KeepaliveTime: &metav1.Duration{Duration: 20 * time.Second}},
		},
	}
	want := []bgp.Peer{{
		Name: "peer/leaf1", Kind: bgp.PeerFabric, Address: ip("192.168.11.1"), Port: 1790, ASN: 65101,
		Timers:       bgp.Timers{Hold: 9 * time.Second, Keepalive: 3 * time.Second, ConnectRetry: 5 * time.Second},
		EBGPMultihop: 3, AllowOwnASN: 1,
		GracefulRestart: bgp.GracefulRestart{RestartTime: 120 * time.Second},
		Families:        []bgp.Family{bgp.IPv4, bgp.IPv6},
		Accept:          []netip.Prefix{pools[0], netip.MustParsePrefix("172.16.0.0/12"), pools[1]},
	}}
	got := Compute(in)
	if diff := cmp.Diff(want, got.Peers, comparers); diff != "" {
		t.Errorf("peers (-want +got):\n%s", diff)
	}
	if got.Global.ASN != 4200000001 {
		t.Errorf("ASN = %d", got.Global.ASN)
	}
	in.Self = "node3"
	if got := Compute(in); len(got.Peers) != 0 {
		t.Errorf("node3 is in rack r2 and peers with %v", got.Peers)
	}
}

func TestPasswords(t *testing.T) {
	ref := &v1alpha1.BGPPassword{SecretKeyRef: corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "tor"}, Key: "password"}}
	for name, tt := range map[string]struct {
		secrets  map[string]map[string][]byte
		password bgp.Password
		held     string
	}{
		"there":       {map[string]map[string][]byte{"tor": {"password": []byte("s3cret")}}, "s3cret", ""},
		"no secret":   {nil, "", "Secret tor is missing"},
		"no key":      {map[string]map[string][]byte{"tor": {"other": []byte("x")}}, "", "Secret tor has no key password, or it is empty"},
		"empty value": {map[string]map[string][]byte{"tor": {"password": nil}}, "", "Secret tor has no key password, or it is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			out := Compute(Input{
				Self: "node1", Nodes: nodes[:1], Secrets: tt.secrets,
				Peers: []v1alpha1.BGPPeer{peer("leaf1", v1alpha1.BGPPeerSpec{PeerIP: "192.168.11.1", ASNumber: 65101, Password: ref})},
			})
			if p := out.Peers[0]; p.Password != tt.password || p.Held != tt.held {
				t.Errorf("password %q held %q, want %q and %q", string(p.Password), p.Held, string(tt.password), tt.held)
			}
			if (tt.held == "") != (len(out.Problems) == 0) {
				t.Errorf("problems = %v", out.Problems)
			}
		})
	}
}

func TestBadPeersAreNamedAndHurtNobodyElse(t *testing.T) {
	good := peer("good", v1alpha1.BGPPeerSpec{PeerIP: "192.168.11.1", ASNumber: 65101})
	out := Compute(Input{Self: "node1", Nodes: nodes[:2], Peers: []v1alpha1.BGPPeer{
		good,
		peer("same-address", v1alpha1.BGPPeerSpec{PeerIP: "192.168.11.1", ASNumber: 65109}),
		peer("node2s-address", v1alpha1.BGPPeerSpec{PeerIP: "192.168.11.12", ASNumber: 65101}),
		peer("our-address", v1alpha1.BGPPeerSpec{PeerIP: "192.168.11.11", ASNumber: 65101}),
		peer("bad-selector", v1alpha1.BGPPeerSpec{PeerIP: "192.168.11.9", ASNumber: 65101, NodeSelector: "rack =="}),
		peer("bad-address", v1alpha1.BGPPeerSpec{PeerIP: "leaf1", ASNumber: 65101}),
	}})
	var names []string
	for _, p := range out.Peers {
		names = append(names, p.Name)
	}
	if diff := cmp.Diff([]string{"peer/good", "node/node2"}, names); diff != "" {
		t.Errorf("peers (-want +got):\n%s", diff)
	}
	for _, name := range []string{"same-address", "node2s-address", "our-address", "bad-selector", "bad-address"} {
		found := false
		for _, p := range out.Problems {
			found = found || strings.Contains(p.Object, name)
		}
		if !found {
			t.Errorf("no problem names %s: %v", name, out.Problems)
		}
	}
}

func TestRouterIDWithoutIPv4(t *testing.T) {
	out := Compute(Input{Self: "node3", Nodes: nodes[2:]})
	if id := out.Global.RouterID; !id.Is4() || id.IsUnspecified() {
		t.Errorf("router ID = %v, want four bytes that are not zero (RFC 6286)", id)
	}
}

func TestBFD(t *testing.T) {
	on := &v1alpha1.BFD{Enabled: ptr(true)}
	ms := func(n int) *metav1.Duration { return &metav1.Duration{Duration: time.Duration(n) * time.Millisecond} }
	defaults := bgp.BFD{Enabled: true, TransmitInterval: 300 * time.Millisecond, ReceiveInterval: 300 * time.Millisecond, DetectMultiplier: 3}
	near, far := "192.168.11.1", "192.168.12.1"
	for name, tt := range map[string]struct {
		common  *v1alpha1.BFD
		peer    v1alpha1.BGPPeerSpec
		want    bgp.BFD // with the router
		nodes   bgp.BFD // with node2
		problem string
	}{
		"off by default":   {peer: v1alpha1.BGPPeerSpec{PeerIP: near}},
		"off though set":   {peer: v1alpha1.BGPPeerSpec{PeerIP: near, BFD: &v1alpha1.BFD{DetectMultiplier: ptr(int32(5))}}},
		"one peer":         {peer: v1alpha1.BGPPeerSpec{PeerIP: near, BFD: on}, want: defaults},
		"one peer, IPv6":   {peer: v1alpha1.BGPPeerSpec{PeerIP: "fd00:11::1", BFD: on}, want: defaults},
		"everybody":        {common: on, peer: v1alpha1.BGPPeerSpec{PeerIP: near}, want: defaults, nodes: defaults},
		"all but one peer": {common: on, peer: v1alpha1.BGPPeerSpec{PeerIP: near, BFD: &v1alpha1.BFD{Enabled: ptr(false)}}, nodes: defaults},
		"field by field": {
			common: &v1alpha1.BFD{TransmitInterval: ms(100), ReceiveInterval: ms(200), DetectMultiplier: ptr(int32(5))},
			peer:   v1alpha1.BGPPeerSpec{PeerIP: near, BFD: &v1alpha1.BFD{Enabled: ptr(true), TransmitInterval: ms(50), DetectMultiplier: ptr(int32(2))}},
			want:   bgp.BFD{Enabled: true, TransmitInterval: 50 * time.Millisecond, ReceiveInterval: 200 * time.Millisecond, DetectMultiplier: 2},
		},
		"several hops":             {peer: v1alpha1.BGPPeerSpec{PeerIP: near, BFD: on, EBGPMultihop: ptr(int32(2))}, problem: "not with ebgpMultihop"},
		"another subnet":           {peer: v1alpha1.BGPPeerSpec{PeerIP: far, BFD: on}, problem: "192.168.12.1 is in no subnet of node node1"},
		"several hops, by default": {common: on, peer: v1alpha1.BGPPeerSpec{PeerIP: far, EBGPMultihop: ptr(int32(2))}, nodes: defaults},
	} {
		t.Run(name, func(t *testing.T) {
			tt.peer.ASNumber = 65101
			in := Input{
				Self: "node1", Nodes: nodes, Config: v1alpha1.BGPConfigurationSpec{BFD: tt.common},
				Peers:   []v1alpha1.BGPPeer{peer("leaf1", tt.peer)},
				Subnets: []netip.Prefix{netip.MustParsePrefix("192.168.11.0/24"), netip.MustParsePrefix("fd00:11::/64")},
			}
			out := Compute(in)
			got := map[string]bgp.BFD{}
			for _, p := range out.Peers {
				got[p.Name] = p.BFD
			}
			want := map[string]bgp.BFD{"peer/leaf1": tt.want, "node/node2": tt.nodes, "node/node3": {}} // node3 is elsewhere
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("BFD (-want +got):\n%s", diff)
			}
			if tt.problem == "" && len(out.Problems) > 0 {
				t.Errorf("problems = %v", out.Problems)
			}
			if tt.problem != "" && (len(out.Problems) != 1 || out.Problems[0].Object != "BGPPeer leaf1" || !strings.Contains(out.Problems[0].Reason, tt.problem)) {
				t.Errorf("problems = %v, want %q", out.Problems, tt.problem)
			}
		})
	}
}
