// SPDX-License-Identifier: Apache-2.0

package calc

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

// evidence of a method whose probes all end alike.
func evidence(v path.Verdict) path.Evidence {
	e := path.Evidence{Verdict: v, Run: path.Window, RunSince: now, Sent: path.Window}
	if v == path.Lost {
		e.Lost = path.Window
	}
	return e
}

// TestTunnels is how node1 reaches node3, in another subnet and without BGP, as far as that depends on
// what the two can do and on what the probes say.
func TestTunnels(t *testing.T) {
	const everything = path.CanIPIP | path.CanVXLAN
	report := func(remote path.Capabilities, ipip, vxlan path.Verdict) path.Report {
		return path.Report{RemoteKnown: true, Remote: remote, Methods: [path.Methods]path.Evidence{
			path.IPIP: evidence(ipip), path.VXLAN: evidence(vxlan),
		}}
	}
	tests := []struct {
		name    string
		enc     v1alpha1.Encapsulation
		can     path.Capabilities
		report  path.Report
		adopted map[netip.Prefix]path.Method
		want    v1alpha1.PathMethod
		reason  string
	}{
		{name: "both can", enc: "Auto", can: everything, report: report(everything, path.Answers, path.Answers), want: "IPIP", reason: "not Native: no BGP route"},
		{name: "this kernel cannot", enc: "Auto", can: path.CanVXLAN, report: report(everything, path.Unknown, path.Answers), want: "VXLAN", reason: "this node's kernel has no ipip"},
		{name: "the other kernel cannot", enc: "Auto", can: everything, report: report(path.CanVXLAN, path.Unknown, path.Answers), want: "VXLAN", reason: "the kernel of node3 has no ipip"},
		{name: "the other says that it can, and cannot", enc: "Auto", can: everything, report: report(everything, path.Lost, path.Answers), want: "VXLAN", reason: "not IPIP: probes lost 5/5"},
		{name: "the other has said nothing yet", enc: "Auto", can: everything, want: "VXLAN", reason: "node3 has not said yet"},
		{
			name: "the other has said nothing, and IPIP was in use before", enc: "Auto", can: everything, want: "IPIP",
			adopted: map[netip.Prefix]path.Method{netip.MustParsePrefix("10.244.0.128/26"): path.IPIP}, reason: "not Native: no BGP route",
		},
		{name: "protocol 4 is dropped", enc: "Auto", can: everything, report: report(everything, path.Lost, path.Answers), want: "VXLAN", reason: "while others are answered"},
		{name: "IPIP alone is allowed, and lost", enc: "IPIP", can: everything, report: report(everything, path.Lost, path.Answers), want: "IPIP", reason: "pool v4 says IPIP"},
		{name: "IPIP alone is allowed, and not known", enc: "IPIP", can: everything, want: "IPIP", reason: "pool v4 says IPIP"},
		{name: "IPIP alone is allowed, and this kernel cannot", enc: "IPIP", can: path.CanVXLAN, want: "None", reason: "not IPIP: this node's kernel has no ipip"},
		{name: "IPIPCrossSubnet", enc: "IPIPCrossSubnet", can: everything, want: "IPIP", reason: "pool v4 says IPIPCrossSubnet"},
		{name: "VXLAN alone is allowed", enc: "VXLAN", can: everything, report: report(everything, path.Answers, path.Answers), want: "VXLAN", reason: "pool v4 says VXLAN"},
		{name: "nothing answers", enc: "Auto", can: everything, report: path.Report{Silent: true, RemoteKnown: true, Remote: path.CanVXLAN}, want: "VXLAN", reason: "this is a guess"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := objects(v1alpha1.EncapsulationAuto)
			o.Pools[0].Spec.Encapsulation = tt.enc // IPv4's: IPIP carries nothing else
			l := local()
			l.Capabilities.Can = tt.can
			l.AdoptedMethods = tt.adopted
			l.Probes = map[path.Key]path.Report{{Node: "node3", Family: bgp.IPv4}: tt.report}
			s := Remote(snapshot.Build(o, l))
			p := pathOf(s, netip.MustParsePrefix("10.244.0.128/26"))
			if p.Method != tt.want || !strings.Contains(p.Reason, tt.reason) {
				t.Errorf("by %s, reason %q; want %s, %q", p.Method, p.Reason, tt.want, tt.reason)
			}
			if p6 := pathOf(s, netip.MustParsePrefix("fd00:244::80/122")); p6.Method != "VXLAN" || strings.Contains(p6.Reason, "IPIP") {
				t.Errorf("IPv6 goes by %s, reason %q; it knows no IPIP", p6.Method, p6.Reason)
			}
		})
	}
}

// TestProbesGoByOneMethodEach shows the tables that probes go by, and what the prober is asked.
func TestProbesGoByOneMethodEach(t *testing.T) {
	l := local(fromFabric("10.244.0.128/26", "192.168.11.1", 3))
	l.Probes = map[path.Key]path.Report{{Node: "node3", Family: bgp.IPv4}: {RemoteKnown: true, Remote: path.CanIPIP | path.CanVXLAN}}
	s := Remote(snapshot.Build(objects(v1alpha1.EncapsulationAuto), l))
	to3 := netip.MustParsePrefix("10.244.0.129/32")
	for m, via := range map[path.Method]string{path.Native: "192.168.11.1 eth0", path.IPIP: "192.168.12.13 hel-ipip", path.VXLAN: "192.168.12.13 hel-vxlan"} {
		routes := s.ProbeRoutes[m]
		if !slices.ContainsFunc(routes, func(r desired.Route) bool {
			return r.Prefix.String() == "10.244.0.0/16" && r.Type == desired.RouteBlackhole
		}) {
			t.Errorf("%s: the pool does not end in the table %v", m, routes)
		}
		i := slices.IndexFunc(routes, func(r desired.Route) bool { return r.Prefix == to3 })
		if i < 0 {
			t.Fatalf("%s: no route to %s in %v", m, to3, routes)
		}
		if got := hopOf(s, routes[i].Nexthop); got != via {
			t.Errorf("%s: probes go via %s, want %s", m, got, via)
		}
	}
	var marks []uint32
	for _, r := range s.Rules {
		if r.Family == 4 {
			marks = append(marks, r.Mark)
		}
		if r.Mark&0xc000 != 0 {
			t.Errorf("the mark %#x has a bit by which kube-proxy masquerades or drops", r.Mark)
		}
	}
	if diff := cmp.Diff([]uint32{desired.MarkNative, desired.MarkIPIP, desired.MarkVXLAN}, marks); diff != "" {
		t.Errorf("marks (-want +got):\n%s", diff)
	}
	i := slices.IndexFunc(s.Targets, func(t path.Target) bool { return t.Key == path.Key{Node: "node3", Family: bgp.IPv4} })
	got := s.Targets[i]
	want := path.Target{
		Key: got.Key, Local: netip.MustParseAddr("10.244.0.1"), Remote: to3.Addr(), Group: "192.168.12.0/24 192.168.11.1",
		Needs: [path.Methods]path.Need{path.Native: path.Active, path.IPIP: path.Standby, path.VXLAN: path.Standby},
		MTU:   [path.Methods]int{path.Native: 1500, path.IPIP: 1480, path.VXLAN: 1450},
	}
	if diff := cmp.Diff(want, got, comparers); diff != "" {
		t.Errorf("target (-want +got):\n%s", diff)
	}
}

// hopOf is the gateway and the device of a nexthop object, or of the one member of a group.
func hopOf(s RemoteState, id desired.NexthopID) string {
	for _, n := range s.Nexthops {
		switch {
		case n.ID != id:
		case n.Group != "":
			return hopOf(s, n.Members()[0])
		default:
			return n.Gateway.String() + " " + n.Device
		}
	}
	return ""
}

// TestReversePathFilter shows that only an uplink that would drop is touched.
func TestReversePathFilter(t *testing.T) {
	for strict, want := range map[bool][]string{false: {"hel-vxlan", "hel-ipip"}, true: {"hel-vxlan", "hel-ipip", "eth0"}} {
		l := local()
		l.Links[0].StrictRPF = strict
		var got []string
		for _, v := range Remote(snapshot.Build(objects(v1alpha1.EncapsulationAuto), l)).Sysctls {
			if device, ok := strings.CutSuffix(v.Path, "/rp_filter"); ok {
				got = append(got, strings.TrimPrefix(device, "ipv4/conf/"))
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("strict %t: loose devices (-want +got):\n%s", strict, diff)
		}
	}
}
