// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/cni/ipam"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/link"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// fakeLinks counts how often it is asked.
type fakeLinks struct {
	devices   []link.Device
	addresses []link.Address
	err       error
	asked     int
}

func (f *fakeLinks) Devices() ([]link.Device, error) {
	f.asked++
	return f.devices, f.err
}
func (f *fakeLinks) Addresses() ([]link.Address, error) { return f.addresses, f.err }

func TestLinks(t *testing.T) {
	f := &fakeLinks{
		devices: []link.Device{
			{Name: "lo", Up: true, MTU: 65536}, {Name: "eth0", Up: true, MTU: 1500}, {Name: "eth1", MTU: 9000},
			{Name: "hel-vxlan", Up: true, MTU: 1450}, {Name: "hel0123456789a", Kind: "veth", Up: true, MTU: 1500},
		},
		addresses: []link.Address{
			{Device: "lo", Prefix: prefix("10.244.0.1/32")}, {Device: "eth0", Prefix: prefix("fd00:11::1/64")},
			{Device: "eth0", Prefix: prefix("192.168.11.1/24")}, {Device: "eth0", Prefix: prefix("fe80::1/64")},
			{Device: "eth1", Prefix: prefix("192.168.99.1/24")}, {Device: "hel-vxlan", Prefix: prefix("fe80::2/64")},
			{Device: "hel0123456789a", Prefix: prefix("10.244.0.9/32")},
		},
	}
	want := []snapshot.OnLink{
		{Device: "eth0", MTU: 1500, Addr: addr("192.168.11.1"), Subnet: prefix("192.168.11.0/24")},
		{Device: "eth0", MTU: 1500, Addr: addr("fd00:11::1"), Subnet: prefix("fd00:11::/64")},
	}
	var c factCache
	for range 2 {
		got, err := c.links(f, func(string) bool { return false })
		if diff := cmp.Diff(want, got, byValue); err != nil || diff != "" {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	}
	if f.asked != 1 {
		t.Errorf("the kernel was asked %d times, want once", f.asked)
	}
	c.forgetLinks()
	f.err = errors.New("interrupted")
	if _, err := c.links(f, func(string) bool { return false }); !errors.Is(err, f.err) {
		t.Errorf("got %v, want %v", err, f.err)
	}
}

func TestWorkloads(t *testing.T) {
	f := &fakeLinks{devices: []link.Device{
		{Name: "hel00000000001", Kind: "veth"}, {Name: "hel00000000002", Kind: "bridge"}, {Name: "hel-vxlan", Kind: "vxlan"}, {Name: "eth0"},
	}}
	attachments := []ipam.Allocation{
		{Device: "hel00000000001", Addresses: [2]netip.Addr{addr("10.244.0.5"), addr("fd00:244::5")}},
		{Device: "hel00000000002", Addresses: [2]netip.Addr{addr("10.244.0.6")}}, // somebody else's device
		{Device: "hel00000000003", Addresses: [2]netip.Addr{addr("10.244.0.7")}}, // gone
	}
	got, err := workloads(attachments, f)
	want := []snapshot.Workload{{Device: "hel00000000001", IPs: []netip.Addr{addr("10.244.0.5"), addr("fd00:244::5")}}}
	if diff := cmp.Diff(want, got, byValue); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestAdopt(t *testing.T) {
	nexthops := []desired.Nexthop{
		{ID: 1, Gateway: addr("192.168.11.2"), Device: "eth0"}, {ID: 2, Gateway: addr("192.168.11.3"), Device: "eth0"},
		{ID: 3, Gateway: addr("192.168.12.1"), Device: "hel-vxlan", OnLink: true},
		{ID: 11, Group: desired.EncodeGroup([]desired.NexthopID{1, 2})}, {ID: 12, Group: desired.EncodeGroup([]desired.NexthopID{3})},
	}
	routes := []desired.Route{
		{Prefix: prefix("10.244.1.0/26"), Type: desired.RouteNexthop, Nexthop: 11},
		{Prefix: prefix("10.244.2.0/26"), Type: desired.RouteNexthop, Nexthop: 12},
		{Prefix: prefix("10.244.3.0/26"), Type: desired.RouteNexthop, Nexthop: 99}, // its object is gone
		{Prefix: prefix("10.244.0.0/26"), Type: desired.RouteBlackhole},
	}
	a := adopt(routes, nexthops)
	want := map[netip.Prefix][]snapshot.Hop{
		prefix("10.244.1.0/26"): {{Gateway: addr("192.168.11.2"), Device: "eth0"}, {Gateway: addr("192.168.11.3"), Device: "eth0"}},
	}
	if diff := cmp.Diff(want, a.hops, byValue); diff != "" || !a.restarting || a.done {
		t.Errorf("restarting %v, done %v (-want +got):\n%s", a.restarting, a.done, diff)
	}
	methods := map[netip.Prefix]path.Method{prefix("10.244.1.0/26"): path.Native, prefix("10.244.2.0/26"): path.VXLAN}
	if diff := cmp.Diff(methods, a.methods, byValue); diff != "" {
		t.Errorf("methods in use (-want +got):\n%s", diff)
	}
	if a := adopt(nil, nil); a.restarting || !a.done {
		t.Errorf("a fresh node takes over: %+v", a)
	}
	if a := adopt(routes[3:], nil); !a.restarting || !a.done {
		t.Errorf("with blackholes alone there is nothing to keep, but somebody was here: %+v", a)
	}
}

func TestSettled(t *testing.T) {
	both, v4 := []bgp.Family{bgp.IPv4, bgp.IPv6}, []bgp.Family{bgp.IPv4}
	peer := func(ip string, f []bgp.Family) bgp.Peer { return bgp.Peer{Address: addr(ip), Families: f} }
	session := func(ip string, s bgp.SessionState, f ...bgp.Family) bgp.Session {
		return bgp.Session{Address: addr(ip), State: s, EndOfRIB: f}
	}
	up := bgp.StateEstablished
	for _, tt := range []struct {
		name  string
		peers []bgp.Peer
		in    []bgp.Session
		idle  bool // the speaker does not run
		after time.Duration
		want  bool
	}{
		{name: "not even started", idle: true},
		{name: "nobody to ask", want: false},
		{name: "nobody to ask, for long enough", after: settleTime, want: true},
		{name: "all said", peers: []bgp.Peer{peer("10.0.0.1", both)}, in: []bgp.Session{session("10.0.0.1", up, both...)}, want: true},
		{name: "one family is missing", peers: []bgp.Peer{peer("10.0.0.1", both)}, in: []bgp.Session{session("10.0.0.1", up, bgp.IPv4)}},
		{name: "one family is all there is", peers: []bgp.Peer{peer("10.0.0.1", v4)}, in: []bgp.Session{session("10.0.0.1", up, bgp.IPv4)}, want: true},
		{name: "up, but nothing said", peers: []bgp.Peer{peer("10.0.0.1", v4)}, in: []bgp.Session{session("10.0.0.1", up)}},
		{name: "one of two is down", peers: []bgp.Peer{peer("10.0.0.1", v4), peer("10.0.0.2", v4)}, in: []bgp.Session{session("10.0.0.1", up, bgp.IPv4), session("10.0.0.2", bgp.StateActive)}},
		{name: "down for good", peers: []bgp.Peer{peer("10.0.0.2", v4)}, in: []bgp.Session{session("10.0.0.2", bgp.StateActive)}, after: settleTime, want: true},
		{name: "one has no session yet", peers: []bgp.Peer{peer("10.0.0.1", v4), peer("10.0.0.2", v4)}, in: []bgp.Session{session("10.0.0.1", up, bgp.IPv4)}},
		{name: "what is held says nothing", peers: []bgp.Peer{peer("10.0.0.1", v4), {Address: addr("10.0.0.2"), Held: "no Secret", Families: v4}}, in: []bgp.Session{session("10.0.0.1", up, bgp.IPv4), session("10.0.0.2", bgp.StateHeld)}, want: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Now()
			a := adoption{hops: map[netip.Prefix][]snapshot.Hop{prefix("10.244.1.0/26"): {{}}}}
			if a.settled(bgp.Snapshot{}, nil, start) || a.due(start) {
				t.Fatal("settled before BGP began")
			}
			s := bgp.Snapshot{Running: !tt.idle, Sessions: tt.in}
			if got := a.settled(s, tt.peers, start.Add(tt.after)); got != tt.want {
				t.Errorf("settled: got %v, want %v", got, tt.want)
			}
			if (a.hops == nil) != tt.want || a.deadline().IsZero() != tt.want {
				t.Errorf("hops %v, deadline %s", a.hops, a.deadline())
			}
			if tt.want && !a.settled(bgp.Snapshot{}, tt.peers, start) {
				t.Error("what is settled stays so")
			}
		})
	}
}

// The time that BGP has counts from the first run: until then the API server may have been away for
// long.
func TestSettleTimeCountsFromFirstRun(t *testing.T) {
	a := adopt([]desired.Route{{Prefix: prefix("10.244.1.0/26"), Nexthop: 11}}, []desired.Nexthop{
		{ID: 1, Gateway: addr("192.168.11.2"), Device: "eth0"}, {ID: 11, Group: desired.EncodeGroup([]desired.NexthopID{1})},
	})
	later := time.Now().Add(time.Hour)
	if a.due(later) || a.settled(bgp.Snapshot{}, nil, later) {
		t.Error("the hops were dropped before BGP began")
	}
	if !a.due(later.Add(settleTime)) || !a.settled(bgp.Snapshot{}, nil, later.Add(settleTime)) {
		t.Error("the hops are kept for ever")
	}
}
