// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/felix/explain"
)

// The whole of what is printed, of walks that arrive and of some that do not.
func TestRouteExplainGolden(t *testing.T) {
	for name, tt := range map[string]struct {
		ip, from string
		change   func(*routeFacts)
	}{
		"native":     {ip: "10.244.2.7", from: "node1"},
		"vxlan":      {ip: "fd00:244::87", from: "node1", change: func(f *routeFacts) { f.kernel = vxlanRoute() }},
		"ecmp-fault": {ip: "10.244.2.7", from: "node1", change: func(f *routeFacts) { f.kernel.Hops[1].Neighbour.State = "failed" }},
		"local":      {ip: "10.244.1.5", from: "node1", change: func(f *routeFacts) { f.kernel = podRoute() }},
		"no-exec": {ip: "10.244.2.7", from: "node1", change: func(f *routeFacts) {
			f.kernel, f.noKernel = nil, "run kernel-route in pod heliograph-system/heliograph-agent-x: pods \"heliograph-agent-x\" is forbidden"
		}},
		"no-pools":   {ip: "192.0.2.1", from: "node1"},
		"everywhere": {ip: "10.244.2.7"},
	} {
		t.Run(name, func(t *testing.T) {
			f := sampleFacts(tt.ip, tt.from)
			if tt.change != nil {
				tt.change(&f)
			}
			steps := explainEverywhere(f)
			if tt.from != "" {
				steps = explainRoute(f)
			}
			var got bytes.Buffer
			if err := writeSteps(&got, steps); err != nil {
				t.Fatal(err)
			}
			golden(t, "explain-"+name+".txt", got.Bytes())
		})
	}
}

// Every place where it can stop being true: the last step, its name, and what it says.
func TestRouteExplainStops(t *testing.T) {
	match := func(change func(*explain.Match)) func(*routeFacts) {
		return func(f *routeFacts) { change(f.kernel.Match) }
	}
	foreign := match(func(m *explain.Match) { m.Protocol = 4 })
	vxlan := func(change func(*explain.Hop)) func(*routeFacts) {
		return func(f *routeFacts) {
			f.kernel = vxlanRoute()
			change(&f.kernel.Hops[0])
		}
	}
	both := func(change func(*explain.Hop)) func(*routeFacts) {
		return func(f *routeFacts) {
			for i := range f.kernel.Hops {
				change(&f.kernel.Hops[i])
			}
		}
	}
	node1 := func(change func(*v1alpha1.NodeStatusStatus)) func(*routeFacts) {
		return func(f *routeFacts) {
			ns := f.state.statuses["node1"]
			change(&ns.Status)
			f.state.statuses["node1"] = ns
		}
	}
	unanswered := node1(func(st *v1alpha1.NodeStatusStatus) { st.Paths[0].Unanswered = true })
	for name, tt := range map[string]struct {
		ip     string
		change func(*routeFacts)
		step   string
		want   string // in the last step
		whole  bool   // nothing stops
	}{
		"nothing":      {step: "far end", want: "nothing is known", whole: true},
		"no pool":      {ip: "203.0.113.1", step: "pool", want: "in no IPPool"},
		"no pool IPv6": {ip: "2001:db8::1", step: "pool", want: "in no IPPool"},
		"a node's own": {ip: "192.168.12.2", step: "pool", want: "node node2's own address"},
		"no block":     {ip: "10.244.9.1", step: "block", want: "no node holds a block"},
		"owner gone":   {change: func(f *routeFacts) { f.state.nodes = f.state.nodes[:1] }, step: "block", want: "there is no such node"},
		"no report":    {change: func(f *routeFacts) { delete(f.state.statuses, "node1") }, step: "choice", want: "has not reported"},
		"no way":       {change: node1(func(st *v1alpha1.NodeStatusStatus) { st.Paths, st.PathsNative, st.PathsVXLAN = nil, 0, 0 }), step: "choice", want: "knows no way to node2"},
		"no method": {change: node1(func(st *v1alpha1.NodeStatusStatus) {
			st.Paths[0].Method, st.Paths[0].Reason = "None", "pool says Never"
		}), step: "choice", want: "no method works: pool says Never"},
		"no route":               {change: func(f *routeFacts) { f.kernel = &explain.Route{Error: "network is unreachable"} }, step: "kernel", want: "no route to 10.244.2.7 (network is unreachable)"},
		"foreign route":          {change: foreign, step: "kernel", want: "a foreign route takes its traffic: unicast 10.244.2.0/26, protocol 4 (static)"},
		"default route":          {change: match(func(m *explain.Match) { m.Protocol, m.Prefix = 3, netip.MustParsePrefix("0.0.0.0/0") }), step: "kernel", want: "the route to 10.244.2.0/26 is missing"},
		"wider route of ours":    {change: match(func(m *explain.Match) { m.Prefix = netip.MustParsePrefix("10.244.0.0/16") }), step: "kernel", want: "the route to the block is missing"},
		"left-over pod":          {change: match(func(m *explain.Match) { m.Prefix = netip.MustParsePrefix("10.244.2.7/32") }), step: "kernel", want: "a part of the block"},
		"blackhole":              {change: match(func(m *explain.Match) { m.Type = "blackhole" }), step: "kernel", want: "drops: blackhole 10.244.2.0/26"},
		"empty group":            {change: func(f *routeFacts) { f.kernel.Hops = nil }, step: "nexthop", want: "object 2147483700 has no way out"},
		"device gone":            {change: both(func(h *explain.Hop) { h.Device = explain.Device{Index: 9} }), step: "nexthop", want: "device 9 is gone"},
		"device down":            {change: both(func(h *explain.Hop) { h.Device.Up = false }), step: "nexthop", want: "device eth0 is down"},
		"no carrier":             {change: both(func(h *explain.Hop) { h.Device.Carrier = false }), step: "nexthop", want: "device eth0 has no carrier"},
		"neighbour failed":       {change: both(func(h *explain.Hop) { h.Neighbour.State = "failed" }), step: "nexthop", want: "is failed: nobody there answers"},
		"neighbour not resolved": {change: both(func(h *explain.Hop) { h.Neighbour = nil }), step: "far end", want: "nothing is known", whole: true},
		"one of two ways":        {change: func(f *routeFacts) { f.kernel.Hops[0].Device.Up = false }, step: "nexthop", want: "1 of 2 ways out work"},
		"tunnel down":            {ip: "fd00:244::87", change: vxlan(func(h *explain.Hop) { h.Device.Up = false }), step: "nexthop", want: "device hel-vxlan is down"},
		"tunnel, no neighbour":   {ip: "fd00:244::87", change: vxlan(func(h *explain.Hop) { h.Neighbour = nil }), step: "nexthop", want: "hel-vxlan has no neighbour entry for fe80::2"},
		"tunnel, no FDB":         {ip: "fd00:244::87", change: vxlan(func(h *explain.Hop) { h.Remote, h.Underlay = netip.Addr{}, nil }), step: "nexthop", want: "no FDB entry for 02:00:00:00:00:02"},
		"no underlay":            {ip: "fd00:244::87", change: vxlan(func(h *explain.Hop) { h.Underlay = &explain.Route{Error: "network is unreachable"} }), step: "nexthop", want: "no way to the tunnel's other end 192.168.12.2 (network is unreachable)"},
		"underlay neighbour":     {ip: "fd00:244::87", change: vxlan(func(h *explain.Hop) { h.Underlay.Hops[0].Neighbour.State = "incomplete" }), step: "nexthop", want: "on the way to the tunnel's other end 192.168.12.2, neighbour"},
		"underlay device":        {ip: "fd00:244::87", change: vxlan(func(h *explain.Hop) { h.Underlay.Hops[0].Device.Carrier = false }), step: "nexthop", want: "on the way to the tunnel's other end 192.168.12.2, device eth0 has no carrier"},
		"unanswered":             {change: unanswered, step: "far end", want: "node2 answers probes by no method at all"},
		"unanswered, no kernel":  {change: func(f *routeFacts) { unanswered(f); f.kernel = nil }, step: "far end", want: "by no method at all"},
		"unanswered by a fault":  {change: func(f *routeFacts) { unanswered(f); foreign(f) }, step: "kernel", want: "a foreign route"},
		"no pod":                 {ip: "10.244.2.9", step: "far end", want: "no pod on node2 has 10.244.2.9"},
		"pods not to be seen":    {ip: "10.244.2.9", change: func(f *routeFacts) { f.pods, f.noPods = nil, "forbidden" }, step: "far end", want: "nothing is known", whole: true},
		"local, no pod":          {ip: "10.244.1.9", change: localBlackhole, step: "kernel", want: "no pod here has the address"},
		"local, no pod route":    {ip: "10.244.1.5", change: localBlackhole, step: "kernel", want: "there is no route to the pod"},
		"local, foreign":         {ip: "10.244.1.5", change: func(f *routeFacts) { f.kernel = podRoute(); f.kernel.Match.Protocol = 3 }, step: "kernel", want: "a foreign route"},
		"local, sent away":       {ip: "10.244.1.5", change: func(f *routeFacts) { f.kernel.Match.Prefix = netip.MustParsePrefix("10.244.1.0/26") }, step: "kernel", want: "takes its traffic away"},
		"the node's own": {ip: "10.244.1.1", change: func(f *routeFacts) {
			f.kernel = &explain.Route{Match: &explain.Match{Prefix: netip.MustParsePrefix("10.244.1.1/32"), Type: "local", Protocol: 2, Table: 255}}
		}, step: "far end", want: "nothing is known", whole: true},
	} {
		t.Run(name, func(t *testing.T) {
			ip := tt.ip
			if ip == "" {
				ip = "10.244.2.7"
			}
			f := sampleFacts(ip, "node1")
			if tt.change != nil {
				tt.change(&f)
			}
			steps := explainRoute(f)
			last := steps[len(steps)-1]
			if last.name != tt.step || last.broken == tt.whole || !strings.Contains(last.text, tt.want) {
				t.Errorf("last step = %+v; want %s with %q", last, tt.step, tt.want)
			}
			for _, s := range steps[:len(steps)-1] {
				if s.broken {
					t.Errorf("it goes on after %+v", s)
				}
			}
		})
	}
}

func localBlackhole(f *routeFacts) {
	f.kernel = &explain.Route{
		Error: "invalid argument",
		Match: &explain.Match{Prefix: netip.MustParsePrefix("10.244.1.0/26"), Type: "blackhole", Protocol: 80, Table: 254, Metric: 80},
	}
}

// sampleFacts is a cluster of two nodes in two racks: native for IPv4, by two routers, VXLAN for IPv6.
func sampleFacts(ip, from string) routeFacts {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) *metav1.Time { return &metav1.Time{Time: now.Add(-d)} }
	node := func(name, ip string) corev1.Node {
		return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}}}
	}
	well := []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}}
	pool := func(name, cidr string) v1alpha1.IPPool {
		return v1alpha1.IPPool{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.IPPoolSpec{CIDR: cidr, Encapsulation: v1alpha1.EncapsulationAuto},
			Status: v1alpha1.IPPoolStatus{Conditions: well},
		}
	}
	block := func(cidr, pool, node string) v1alpha1.IPBlock {
		return v1alpha1.IPBlock{Spec: v1alpha1.IPBlockSpec{CIDR: cidr, Pool: pool, Node: node, Primary: true}}
	}
	pod := func(name, node string, ips ...corev1.PodIP) corev1.Pod {
		return corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.PodSpec{NodeName: node},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: ips},
		}
	}
	up := func(m v1alpha1.PathMethod, mtu int32) v1alpha1.PathMethodStatus {
		return v1alpha1.PathMethodStatus{Method: m, State: "Up", Since: ago(3 * time.Hour), Probes: "Answers", RTTMicroseconds: 401, Loss: "0/5", MTU: mtu}
	}
	down := v1alpha1.PathMethodStatus{Method: v1alpha1.PathNative, State: "Down", Since: ago(time.Minute), Probes: "Unknown", Reason: "no BGP route to fd00:244::80/122"}
	return routeFacts{
		ip: netip.MustParseAddr(ip), from: from, now: now,
		pools: []v1alpha1.IPPool{pool("default-ipv4", "10.244.0.0/16"), pool("default-ipv6", "fd00:244::/56")},
		blocks: []v1alpha1.IPBlock{
			block("10.244.1.0/26", "default-ipv4", "node1"), block("10.244.2.0/26", "default-ipv4", "node2"),
			block("fd00:244::80/122", "default-ipv6", "node2"),
		},
		state: clusterState{
			nodes: []corev1.Node{node("node1", "192.168.11.1"), node("node2", "192.168.12.2")},
			statuses: map[string]v1alpha1.NodeStatus{"node1": {Status: v1alpha1.NodeStatusStatus{
				PathsNative: 1, PathsVXLAN: 1,
				Paths: []v1alpha1.PathStatus{
					{
						Node: "node2", Family: "IPv4", Method: v1alpha1.PathNative, NextHops: []string{"192.168.11.253", "192.168.11.254"}, Since: ago(3 * time.Hour),
						Reason: "BGP route from the fabric, 2 next hop(s)", Methods: []v1alpha1.PathMethodStatus{up(v1alpha1.PathNative, 1500), up(v1alpha1.PathVXLAN, 1450)},
					},
					{
						Node: "node2", Family: "IPv6", Method: v1alpha1.PathVXLAN, NextHops: []string{"fe80::2"}, Since: ago(time.Minute), Changes: 1,
						Reason: "not Native: no BGP route to fd00:244::80/122", Methods: []v1alpha1.PathMethodStatus{down, up(v1alpha1.PathVXLAN, 1450)},
					},
				},
			}}},
		},
		pods: []corev1.Pod{
			pod("host", "node2", corev1.PodIP{IP: "192.168.12.2"}), pod("web", "node2", corev1.PodIP{IP: "10.244.2.7"}, corev1.PodIP{IP: "fd00:244::87"}),
			pod("db", "node1", corev1.PodIP{IP: "10.244.1.5"}),
		},
		kernel: nativeRoute(),
	}
}

func uplink() explain.Device {
	return explain.Device{Index: 2, Name: "eth0", Kind: "veth", Up: true, Carrier: true, MTU: 1500}
}

func nativeRoute() *explain.Route {
	hop := func(id uint32, via, mac string) explain.Hop {
		return explain.Hop{Nexthop: id, Gateway: netip.MustParseAddr(via), Device: uplink(), Neighbour: &explain.Neighbour{MAC: mac, State: "reachable"}}
	}
	return &explain.Route{
		Match: &explain.Match{Prefix: netip.MustParsePrefix("10.244.2.0/26"), Type: "unicast", Protocol: 80, Table: 254, Metric: 80, Nexthop: 2147483700},
		Hops:  []explain.Hop{hop(2147483701, "192.168.11.253", "02:00:00:00:00:fd"), hop(2147483702, "192.168.11.254", "02:00:00:00:00:fe")},
	}
}

func vxlanRoute() *explain.Route {
	remote := netip.MustParseAddr("192.168.12.2")
	return &explain.Route{
		Match: &explain.Match{Prefix: netip.MustParsePrefix("fd00:244::80/122"), Type: "unicast", Protocol: 80, Table: 254, Metric: 80, Nexthop: 2147483800, MTU: 1400},
		Hops: []explain.Hop{{
			Nexthop: 2147483801, Gateway: netip.MustParseAddr("fe80::2"),
			Device:    explain.Device{Index: 3, Name: "hel-vxlan", Kind: "vxlan", Up: true, Carrier: true, MTU: 1450},
			Neighbour: &explain.Neighbour{MAC: "02:00:00:00:00:02", State: "permanent"}, Remote: remote,
			Underlay: &explain.Route{
				Address: remote, Match: &explain.Match{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Type: "unicast", Protocol: 3, Table: 254},
				Hops: []explain.Hop{{Gateway: netip.MustParseAddr("192.168.11.254"), Device: uplink(), Neighbour: &explain.Neighbour{MAC: "02:00:00:00:00:fe", State: "stale"}}},
			},
		}},
	}
}

func podRoute() *explain.Route {
	return &explain.Route{
		Match: &explain.Match{Prefix: netip.MustParsePrefix("10.244.1.5/32"), Type: "unicast", Protocol: 80, Table: 254, Metric: 80},
		Hops:  []explain.Hop{{Device: explain.Device{Index: 7, Name: "hel0123456789a", Kind: "veth", Up: true, Carrier: true, MTU: 1500}}},
	}
}
