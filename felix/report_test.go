// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/desired"
)

func TestPathClock(t *testing.T) {
	path := func(node string, f bgp.Family, m v1alpha1.PathMethod) calc.Path {
		return calc.Path{Node: node, Family: f, Method: m}
	}
	t0 := time.Unix(1000, 0)
	c := pathClock{}
	for i, step := range []struct {
		in      []calc.Path
		since   []int // minutes after t0, by path
		changed []string
	}{
		{in: []calc.Path{path("b", bgp.IPv4, v1alpha1.PathVXLAN), path("b", bgp.IPv6, v1alpha1.PathVXLAN)}, since: []int{0, 0}},
		{in: []calc.Path{path("b", bgp.IPv4, v1alpha1.PathNative), path("b", bgp.IPv6, v1alpha1.PathVXLAN)}, since: []int{1, 0}, changed: []string{"b IPv4 Native"}},
		{in: []calc.Path{path("b", bgp.IPv4, v1alpha1.PathNative), path("c", bgp.IPv4, v1alpha1.PathNone)}, since: []int{1, 2}},
		{in: []calc.Path{path("b", bgp.IPv4, v1alpha1.PathNative), path("b", bgp.IPv6, v1alpha1.PathNative)}, since: []int{1, 3}},
	} {
		all, changed := c.update(step.in, t0.Add(time.Duration(i)*time.Minute))
		var since []int
		for _, p := range all {
			since = append(since, int(p.Since.Sub(t0)/time.Minute))
		}
		var names []string
		for _, p := range changed {
			names = append(names, p.Node+" "+p.Family.String()+" "+string(p.Method))
		}
		if diff := cmp.Diff(step.since, since) + cmp.Diff(step.changed, names); diff != "" {
			t.Errorf("step %d (-want +got):\n%s", i, diff)
		}
	}
}

// Work may take long; silence may not.
func TestHeart(t *testing.T) {
	var h heart
	now := time.Now()
	h.Beat(now)
	if err := h.check(now.Add(waitLimit)); err != nil {
		t.Error(err)
	}
	if err := h.check(now.Add(waitLimit + time.Second)); err == nil {
		t.Error("a silent loop counts as alive")
	}
	h.Begin("route", now)
	if err := h.check(now.Add(5 * time.Minute)); err != nil {
		t.Errorf("five minutes of work: %v", err)
	}
	if err := h.check(now.Add(workLimit + time.Second)); err == nil || !strings.Contains(err.Error(), `"route"`) {
		t.Errorf("got %v, want an error that names the step", err)
	}
	h.Beat(now)
	if err := h.check(now.Add(5 * time.Minute)); err == nil {
		t.Error("the limit for work holds after the work")
	}
}

func TestRouteClasses(t *testing.T) {
	state := calc.RemoteState{
		Nexthops: []desired.Nexthop{
			{ID: 1, Gateway: addr("192.168.11.2"), Device: "eth0"}, {ID: 2, Gateway: addr("192.168.12.1"), Device: "hel-vxlan"},
			{ID: 11, Group: desired.EncodeGroup([]desired.NexthopID{1})}, {ID: 12, Group: desired.EncodeGroup([]desired.NexthopID{2})},
		},
		Routes: []desired.Route{
			{Prefix: prefix("10.244.0.0/26"), Type: desired.RouteBlackhole},
			{Prefix: prefix("10.244.1.0/26"), Type: desired.RouteNexthop, Nexthop: 11},
			{Prefix: prefix("10.244.2.0/26"), Type: desired.RouteNexthop, Nexthop: 12},
			{Prefix: prefix("fd00:244:2::/122"), Type: desired.RouteNexthop, Nexthop: 12},
		},
	}
	want := map[RouteClass]int{
		{"blackhole", bgp.IPv4}: 1, {"native", bgp.IPv4}: 1, {"vxlan", bgp.IPv4}: 1, {"vxlan", bgp.IPv6}: 1,
	}
	if diff := cmp.Diff(want, routeClasses(state)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What keeps a pod's ADD from success: the filter, or a route to a pod whose device is there.
func TestPodError(t *testing.T) {
	why := errors.New("no such device")
	failed := func(object string) []desired.Status {
		return []desired.Status{{Object: object, Phase: desired.Failed, Error: why.Error()}}
	}
	local := calc.Local(nil)
	local.Routes = []desired.Route{{Prefix: prefix("10.244.0.5/32"), Type: desired.RouteDevice, Device: "hel00000000001"}}
	there := map[string]bool{"hel00000000001": true}
	for _, tt := range []struct {
		name   string
		failed map[string]error
		undone map[string][]desired.Status
		there  map[string]bool
		want   bool
	}{
		{name: "all is well", there: there},
		{name: "the filter", failed: map[string]error{"nft": why}, there: there, want: true},
		{name: "another node's route", failed: map[string]error{"route": why}, undone: map[string][]desired.Status{"route": failed("route 10.244.9.0/26")}, there: there},
		{name: "a tunnel", failed: map[string]error{"link": why}, undone: map[string][]desired.Status{"link": failed("link hel-vxlan")}, there: there},
		{name: "a pod's route", failed: map[string]error{"route": why}, undone: map[string][]desired.Status{"route": failed("route 10.244.0.5/32")}, there: there, want: true},
		{name: "the route of a pod that is gone", failed: map[string]error{"route": why}, undone: map[string][]desired.Status{"route": failed("route 10.244.0.5/32")}},
		{
			name: "routes cannot even be read", failed: map[string]error{"route": why}, there: there, want: true,
			undone: map[string][]desired.Status{"route": {{Object: "route 10.244.0.5/32", Phase: desired.Pending}}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &dataplane{failed: tt.failed, undone: tt.undone, local: local}
			if err := d.podError(tt.there); (err != nil) != tt.want || tt.want && !errors.Is(err, why) {
				t.Errorf("got %v, want an error: %v", err, tt.want)
			}
		})
	}
}

func TestNodeStatusOfReport(t *testing.T) {
	since := time.Unix(1000, 999)
	r := &Report{
		NodeIPs: []netip.Addr{addr("192.168.11.1")}, Blocks: []BlockUse{{Name: "b", CIDR: prefix("10.244.1.0/26")}, {Name: "a", CIDR: prefix("10.244.0.0/26")}},
		BGP: bgp.Snapshot{Sessions: []bgp.Session{
			{Peer: "node/b", Address: addr("192.168.11.2"), State: bgp.StateEstablished, Since: since, Rejected: 1},
			{Peer: "peer/tor", Address: addr("192.168.11.254"), State: bgp.StateHeld, LastError: "Secret tor not found"},
		}},
		Refused: map[bgp.Neighbour]calc.Refusal{{Address: addr("192.168.11.2")}: {Routes: 2}},
		Paths: []PathReport{
			{Path: calc.Path{Node: "b", Family: bgp.IPv4, Method: v1alpha1.PathNative}, Since: since},
			{Path: calc.Path{Node: "c", Family: bgp.IPv4, Method: v1alpha1.PathVXLAN}, Since: since},
			{Path: calc.Path{Node: "d", Family: bgp.IPv4, Method: v1alpha1.PathNone}, Since: since},
		},
		Problems: make([]string, maxProblems+1),
	}
	s := r.nodeStatus(time.Now())
	if s.SessionsTotal != 2 || s.SessionsEstablished != 1 || s.PathsNative != 1 || s.PathsVXLAN != 1 || s.PathsNone != 1 {
		t.Errorf("counts: %+v", s)
	}
	if s.Sessions[0].Rejected != 3 || s.Sessions[1].Since != nil || s.Blocks[0].Name != "a" || len(s.Problems) != maxProblems {
		t.Errorf("sessions %+v, blocks %+v, %d problems", s.Sessions, s.Blocks, len(s.Problems))
	}
	if s.Paths[0].Since.Nanosecond() != 0 {
		t.Error("times are finer than the API keeps them, and would be written for ever")
	}
	if c := s.Conditions[0]; c.Type != v1alpha1.ConditionReady || c.Status != "False" {
		t.Errorf("condition %+v", c)
	}
}

func TestWorstFirst(t *testing.T) {
	list := []int{1, 2, 3, 4, 5, 6}
	even := func(n int) bool { return n%2 == 0 }
	if diff := cmp.Diff([]int{2, 4, 6, 1}, worstFirst(list, 4, even)); diff != "" {
		t.Errorf("four of six (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(list, worstFirst(list, 6, even)); diff != "" {
		t.Errorf("a list that fits changes (-want +got):\n%s", diff)
	}
}

// A peer that keeps on announcing what is not its own is told of, once; one that stops within the
// patience, as a node whose block we have not heard of yet, is not.
func TestIntruders(t *testing.T) {
	var log bytes.Buffer
	l := &loop{log: slog.New(slog.NewTextHandler(&log, nil))}
	now := time.Unix(1000, 0)
	refused := map[bgp.Neighbour]calc.Refusal{{Address: addr("192.168.11.2")}: {Routes: 2, Example: prefix("10.244.9.0/26")}}
	for _, step := range []struct {
		at      time.Duration
		refused map[bgp.Neighbour]calc.Refusal
		told    bool
	}{
		{0, refused, false}, {5 * time.Second, nil, false}, {6 * time.Second, refused, false},
		{15 * time.Second, refused, false}, {16 * time.Second, refused, true}, {60 * time.Second, refused, true}, {61 * time.Second, nil, false},
	} {
		l.state.Refused = step.refused
		l.noteIntruders(now.Add(step.at))
		if told := l.intruders[bgp.Neighbour{Address: addr("192.168.11.2")}].told; told != step.told {
			t.Errorf("after %s: told = %t, want %t", step.at, told, step.told)
		}
	}
	if n := strings.Count(log.String(), "10.244.9.0/26"); n != 1 {
		t.Errorf("logged %d times, want once:\n%s", n, log.String())
	}
}
