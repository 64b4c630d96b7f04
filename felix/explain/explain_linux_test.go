// SPDX-License-Identifier: Apache-2.0

package explain_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/heliograph-dev/heliograph/felix/explain"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// world has an uplink of two routers, a VXLAN device with one remote node, and a rule of probes: before
// the first rule Linux has the local table merged with the main one.
const world = `
rule add fwmark 0x68656c01 table 80001 priority 80
link add eth0 type veth peer name fabric
link set fabric up
link set eth0 up mtu 1500
addr add 192.0.2.1/24 dev eth0
addr add 2001:db8::1/64 dev eth0 nodad
neigh add 192.0.2.254 lladdr 02:00:00:00:00:fe dev eth0 nud permanent
neigh add 2001:db8::fe lladdr 02:00:00:00:00:fe dev eth0 nud permanent
neigh add 192.0.2.253 dev eth0 nud failed
link add hel-vxlan address 02:00:00:00:00:01 mtu 1450 type vxlan id 4096 dstport 4789 local 192.0.2.1 nolearning
link set hel-vxlan up addrgenmode none
neigh add 198.51.100.2 lladdr 02:00:00:00:00:02 dev hel-vxlan nud permanent
neigh add fe80::2 lladdr 02:00:00:00:00:02 dev hel-vxlan nud permanent
fdb
route add 198.51.100.0/24 via 192.0.2.254
nexthop add id 2147483649 via 192.0.2.254 dev eth0 proto 80
nexthop add id 2147483650 via 192.0.2.253 dev eth0 proto 80
nexthop add id 2147483651 via 198.51.100.2 dev hel-vxlan onlink proto 80
nexthop add id 2147483652 via 2001:db8::fe dev eth0 proto 80
nexthop add id 2147483653 via fe80::2 dev hel-vxlan onlink proto 80
nexthop add id 2147483660 group 2147483649/2147483650 proto 80
nexthop add id 2147483661 group 2147483651 proto 80
nexthop add id 2147483662 group 2147483652 proto 80
nexthop add id 2147483663 group 2147483653 proto 80
`

func build(t *testing.T, script string) {
	t.Helper()
	for line := range strings.Lines(script) {
		switch line = strings.TrimSpace(line); line {
		case "":
		case "fdb":
			nettest.Cmd(t, "bridge", "fdb", "add", "02:00:00:00:00:02", "dev", "hel-vxlan", "dst", "198.51.100.2", "self", "permanent")
		default:
			nettest.Cmd(t, "ip", strings.Fields(line)...)
		}
	}
}

func TestExplain(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		build(t, world)
		for _, tt := range kernelCases() {
			t.Run(tt.name, func(t *testing.T) {
				build(t, tt.script)
				got, err := explain.Explain(netip.MustParseAddr(tt.address))
				if err != nil {
					t.Fatal(err)
				}
				tt.want.Address = netip.MustParseAddr(tt.address)
				opts := cmp.Options{
					cmpopts.IgnoreFields(explain.Device{}, "Index"), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}),
				}
				if diff := cmp.Diff(tt.want, got, opts); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				roundTrip(t, got)
			})
		}
	})
}

// roundTrip checks that the answer survives its journey from the agent's pod.
func roundTrip(t *testing.T, r explain.Route) {
	t.Helper()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back explain.Route
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, back, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("through JSON (-want +got):\n%s", diff)
	}
}

type kernelCase struct {
	name, script, address string
	want                  explain.Route
}

func kernelCases() []kernelCase {
	eth0 := explain.Device{Name: "eth0", Kind: "veth", Up: true, Carrier: true, MTU: 1500}
	tunnel := explain.Device{Name: "hel-vxlan", Kind: "vxlan", Up: true, Carrier: true, MTU: 1450}
	router := &explain.Neighbour{MAC: "02:00:00:00:00:fe", State: "permanent"}
	far := &explain.Neighbour{MAC: "02:00:00:00:00:02", State: "permanent"}
	remote := netip.MustParseAddr("198.51.100.2")
	ours := func(prefix string, nexthop uint32, metric uint32) *explain.Match {
		return &explain.Match{Prefix: netip.MustParsePrefix(prefix), Type: "unicast", Protocol: 80, Table: 254, Metric: metric, Nexthop: nexthop}
	}
	underlay := &explain.Route{
		Address: remote,
		Match:   &explain.Match{Prefix: netip.MustParsePrefix("198.51.100.0/24"), Type: "unicast", Protocol: 3, Table: 254},
		Hops:    []explain.Hop{{Gateway: netip.MustParseAddr("192.0.2.254"), Device: eth0, Neighbour: router}},
	}
	return append([]kernelCase{
		{
			name: "native, two routers", script: "route add 10.1.0.0/26 nhid 2147483660 proto 80 metric 80", address: "10.1.0.7",
			want: explain.Route{Match: ours("10.1.0.0/26", 2147483660, 80), Hops: []explain.Hop{
				{Nexthop: 2147483649, Gateway: netip.MustParseAddr("192.0.2.254"), Device: eth0, Neighbour: router},
				{Nexthop: 2147483650, Gateway: netip.MustParseAddr("192.0.2.253"), Device: eth0, Neighbour: &explain.Neighbour{State: "failed"}},
			}},
		},
		{
			name: "native IPv6", script: "route add 2001:db8:1::/122 nhid 2147483662 proto 80 metric 80", address: "2001:db8:1::7",
			want: explain.Route{Match: ours("2001:db8:1::/122", 2147483662, 80), Hops: []explain.Hop{
				{Nexthop: 2147483652, Gateway: netip.MustParseAddr("2001:db8::fe"), Device: eth0, Neighbour: router},
			}},
		},
		{
			name: "VXLAN", script: "route add 10.1.1.0/26 nhid 2147483661 proto 80 metric 80", address: "10.1.1.7",
			want: explain.Route{Match: ours("10.1.1.0/26", 2147483661, 80), Hops: []explain.Hop{
				{Nexthop: 2147483651, Gateway: remote, Device: tunnel, Neighbour: far, Remote: remote, Underlay: underlay},
			}},
		},
		{
			name: "VXLAN IPv6", script: "route add 2001:db8:2::/122 nhid 2147483663 proto 80 metric 80", address: "2001:db8:2::7",
			want: explain.Route{Match: ours("2001:db8:2::/122", 2147483663, 80), Hops: []explain.Hop{
				{Nexthop: 2147483653, Gateway: netip.MustParseAddr("fe80::2"), Device: tunnel, Neighbour: far, Remote: remote, Underlay: underlay},
			}},
		},
	}, strangeCases(eth0, router)...)
}

// strangeCases are routes that are not ours, drop, or are not there.
func strangeCases(eth0 explain.Device, router *explain.Neighbour) []kernelCase {
	match := func(prefix, typ string, protocol uint8, table, metric uint32) *explain.Match {
		return &explain.Match{Prefix: netip.MustParsePrefix(prefix), Type: typ, Protocol: protocol, Table: table, Metric: metric}
	}
	foreign := match("10.1.3.0/26", "unicast", 4, 254, 10)
	foreign.MTU, foreign.Source = 1400, netip.MustParseAddr("192.0.2.1")
	return []kernelCase{
		{
			name: "blackhole", script: "route add blackhole 10.1.2.0/26 proto 80 metric 80\nroute add unreachable 10.1.0.0/16", address: "10.1.2.7",
			want: explain.Route{Error: "invalid argument", Match: match("10.1.2.0/26", "blackhole", 80, 254, 80)},
		},
		{
			name: "blackhole IPv6", script: "route add blackhole 2001:db8:3::/122 proto 80 metric 80", address: "2001:db8:3::7",
			want: explain.Route{Error: "invalid argument", Match: match("2001:db8:3::/122", "blackhole", 80, 254, 80)},
		},
		{
			name: "foreign", address: "10.1.3.7",
			script: "route add blackhole 10.1.3.0/26 proto 80 metric 80\nroute add 10.1.3.0/26 via 192.0.2.254 src 192.0.2.1 mtu 1400 proto 4 metric 10",
			want:   explain.Route{Match: foreign, Hops: []explain.Hop{{Gateway: netip.MustParseAddr("192.0.2.254"), Device: eth0, Neighbour: router}}},
		},
		{
			name: "foreign with several ways", address: "10.1.4.7",
			script: "route add 10.1.4.0/26 proto 4 nexthop via 192.0.2.254 dev eth0 nexthop via inet6 2001:db8::fe dev eth0",
			want: explain.Route{Match: match("10.1.4.0/26", "unicast", 4, 254, 0), Hops: []explain.Hop{
				{Gateway: netip.MustParseAddr("192.0.2.254"), Device: eth0, Neighbour: router},
				{Gateway: netip.MustParseAddr("2001:db8::fe"), Device: eth0, Neighbour: router},
			}},
		},
		{
			name: "on the link", address: "192.0.2.99",
			want: explain.Route{
				Match: func() *explain.Match {
					m := match("192.0.2.0/24", "unicast", 2, 254, 0)
					m.Source = netip.MustParseAddr("192.0.2.1")
					return m
				}(),
				Hops: []explain.Hop{{Device: eth0}},
			},
		},
		{
			name: "own address", address: "192.0.2.1",
			want: explain.Route{Match: func() *explain.Match {
				m := match("192.0.2.1/32", "local", 2, 255, 0)
				m.Source = netip.MustParseAddr("192.0.2.1")
				return m
			}()},
		},
		{name: "none", address: "203.0.113.1", want: explain.Route{Error: "network is unreachable"}},
		{name: "none IPv6", address: "2001:db8:ffff::1", want: explain.Route{Error: "network is unreachable"}},
	}
}

// A tunnel whose entries went leaves a route that leads nowhere.
func TestHalfATunnel(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		build(t, world+"route add 10.1.1.0/26 nhid 2147483661 proto 80 metric 80")
		hop := func() explain.Hop {
			t.Helper()
			r, err := explain.Explain(netip.MustParseAddr("10.1.1.7"))
			if err != nil || len(r.Hops) != 1 {
				t.Fatalf("Explain() = %+v, %v", r, err)
			}
			return r.Hops[0]
		}
		nettest.Cmd(t, "bridge", "fdb", "del", "02:00:00:00:00:02", "dev", "hel-vxlan", "dst", "198.51.100.2", "self")
		if h := hop(); h.Neighbour == nil || h.Remote.IsValid() || h.Underlay != nil {
			t.Errorf("without an FDB entry: %+v", h)
		}
		build(t, "neigh del 198.51.100.2 dev hel-vxlan")
		if h := hop(); h.Neighbour != nil || h.Remote.IsValid() {
			t.Errorf("without a neighbour: %+v", h)
		}
		build(t, "link set fabric down")
		r, err := explain.Explain(netip.MustParseAddr("192.0.2.254"))
		if err != nil || len(r.Hops) != 1 || r.Hops[0].Device.Carrier || !r.Hops[0].Device.Up {
			t.Errorf("with the cable pulled out: %+v, %v", r, err)
		}
	})
}

// The device of IPIP has no remote end: the gateway is.
func TestIPIP(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		nettest.NeedLink(t, "ipip")
		build(t, world+`
			link add hel-ipip mtu 1480 type ipip local 192.0.2.1
			link set hel-ipip up
			nexthop add id 2147483654 via 198.51.100.2 dev hel-ipip onlink proto 80
			nexthop add id 2147483664 group 2147483654 proto 80
			route add 10.1.1.0/26 nhid 2147483664 proto 80 metric 80`)
		r, err := explain.Explain(netip.MustParseAddr("10.1.1.7"))
		if err != nil || len(r.Hops) != 1 {
			t.Fatalf("Explain() = %+v, %v", r, err)
		}
		h := r.Hops[0]
		if h.Device.Kind != "ipip" || h.Remote != h.Gateway || h.Underlay == nil || h.Underlay.Hops[0].Device.Name != "eth0" {
			t.Errorf("hop = %+v", h)
		}
	})
}
