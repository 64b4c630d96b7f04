// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

func TestBGPSummary(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		state      bgpState
		node, form string
	}{
		"mesh":             {state: sampleMesh(now)},
		"mesh-wide":        {state: sampleMesh(now), form: "wide"},
		"reflectors":       {state: sampleReflection(now)},
		"reflectors-node3": {state: sampleReflection(now), node: "node3"},
		"reflectors-json":  {state: sampleReflection(now), node: "node1", form: "json"},
		"nothing":          {},
		"nothing-json":     {form: "json"},
	} {
		t.Run(name, func(t *testing.T) {
			summary, err := tt.state.summary(tt.node)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := summary.write(&got, tt.form, now); err != nil {
				t.Fatal(err)
			}
			golden(t, "bgp-summary-"+name+".txt", got.Bytes())
		})
	}
}

func TestBGPSummaryRefuses(t *testing.T) {
	if _, err := sampleMesh(time.Now()).summary("nodeX"); err == nil || err.Error() != "there is no node nodeX" {
		t.Errorf("error = %v", err)
	}
	if err := (bgpSummary{}).write(&bytes.Buffer{}, "yaml", time.Now()); err == nil || !strings.Contains(err.Error(), `--output is "yaml"`) {
		t.Errorf("error = %v", err)
	}
}

// NodeStatus lists 256 sessions, those that are not established first, and counts the rest.
func TestBGPSummaryOfCutLists(t *testing.T) {
	sessions := func(established, other int) (out []v1alpha1.BGPSessionStatus) {
		for i := range established + other {
			b := v1alpha1.BGPSessionStatus{Name: fmt.Sprintf("client/node%d", i), PeerIP: fmt.Sprintf("fd00:11::%x", i+1), State: "Established"}
			if i < other {
				b.State = "Active"
			}
			out = append(out, b)
		}
		return out
	}
	for name, tt := range map[string]struct {
		status             v1alpha1.ReflectorStatus
		established, total int64
	}{
		"all listed":           {v1alpha1.ReflectorStatus{Clients: 5, ClientsConverged: 4, Sessions: sessions(4, 1)}, 4, 5},
		"the rest established": {v1alpha1.ReflectorStatus{Clients: 1000, ClientsConverged: 900, Sessions: sessions(200, 56)}, 944, 1000},
		"none of the listed":   {v1alpha1.ReflectorStatus{Clients: 1000, ClientsConverged: 100, Sessions: sessions(0, 256)}, 100, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			got := reflectorOf("node1", tt.status)
			if diff := cmp.Diff([2]int64{tt.established, tt.total}, [2]int64{got.Established, got.Total}); diff != "" {
				t.Errorf("established and total (-want +got):\n%s", diff)
			}
			var out bytes.Buffer
			if err := (bgpSummary{Speakers: []bgpSpeaker{got}}).write(&out, "", time.Now()); err != nil {
				t.Fatal(err)
			}
			more := fmt.Sprintf("… and %d more, which the NodeStatus does not list\n", tt.total-int64(len(tt.status.Sessions)))
			if want := int64(len(tt.status.Sessions)) < tt.total; strings.HasSuffix(out.String(), more) != want {
				t.Errorf("says %q: %v, want %v", more, !want, want)
			}
		})
	}
}

// sampleMesh has three nodes, of which one has not reported, and routers of both families.
func sampleMesh(now time.Time) bgpState {
	ago := func(d time.Duration) *metav1.Time { return &metav1.Time{Time: now.Add(-d)} }
	as := int64(64513)
	up := func(name, ip string, as int64) v1alpha1.BGPSessionStatus {
		return v1alpha1.BGPSessionStatus{Name: name, PeerIP: ip, ASNumber: as, State: "Established", Since: ago(3 * time.Hour), PrefixesIn: 2, PrefixesOut: 2}
	}
	flapped := up("peer/leaf1", "fd00:11::254", 65101)
	flapped.Flaps, flapped.LastError, flapped.BFD, flapped.BFDSince, flapped.Rejected = 2, "hold timer expired", "Up", ago(time.Hour), 7
	return bgpState{
		clusterState: clusterState{nodes: nodesNamed("node1", "node2", "node3"), statuses: map[string]v1alpha1.NodeStatus{
			"node1": {Status: v1alpha1.NodeStatusStatus{SessionsEstablished: 2, SessionsTotal: 3, Sessions: []v1alpha1.BGPSessionStatus{
				{Name: "node/node3", PeerIP: "192.168.12.3", ASNumber: as, State: "Active", LastError: "connection refused"},
				up("node/node2", "192.168.11.12", as), flapped,
			}}},
			"node2": {Status: v1alpha1.NodeStatusStatus{
				SessionsEstablished: 1, SessionsTotal: 1, Sessions: []v1alpha1.BGPSessionStatus{up("node/node1", "192.168.11.11", as)},
				Conditions: []metav1.Condition{{Type: "Stale", Status: metav1.ConditionTrue, Message: "the agent has not been heard of for 5m0s"}},
			}},
		}},
		config: &v1alpha1.BGPConfiguration{
			Spec:   v1alpha1.BGPConfigurationSpec{ASNumber: &as},
			Status: v1alpha1.BGPConfigurationStatus{RouteReflection: &v1alpha1.RouteReflectionStatus{Mesh: true, Reason: "3 nodes are not more than meshThreshold 50"}},
		},
	}
}

// sampleReflection has two reflectors, of which one joins and has a problem, and a node that has more
// sessions than it lists.
func sampleReflection(now time.Time) bgpState {
	ago := func(d time.Duration) metav1.Time { return metav1.Time{Time: now.Add(-d)} }
	since := ago(time.Hour)
	session := func(name, ip, state string) v1alpha1.BGPSessionStatus {
		return v1alpha1.BGPSessionStatus{Name: name, PeerIP: ip, ASNumber: 64512, State: state, Since: &since, PrefixesIn: 4, PrefixesOut: 12}
	}
	held := session("peer/router", "fd00:11::253", "Held")
	held.Since, held.LastError = nil, "Secret router has no key password"
	speaker := func(name, ip string) v1alpha1.NodeStatusStatus {
		return v1alpha1.NodeStatusStatus{SessionsEstablished: 1, SessionsTotal: 1, Sessions: []v1alpha1.BGPSessionStatus{session(name, ip, "Established")}}
	}
	node1, node2, node3 := speaker("reflector/node1", "192.168.11.11"), speaker("reflector/node1", "192.168.11.11"), speaker("reflector/node1", "192.168.11.11")
	node1.Reflector = &v1alpha1.ReflectorStatus{
		RouterID: "10.99.0.1", ClusterID: "10.99.0.1", Clients: 4, ClientsConverged: 3, Routes: 12, Paths: 14,
		Sessions: []v1alpha1.BGPSessionStatus{
			held, session("client/node1", "192.168.11.11", "Established"), session("client/node2", "fd00:12::2", "Established"),
			session("client/node3", "192.168.12.3", "Established"), session("reflector/node2", "192.168.11.12", "Established"),
		},
	}
	node2.Reflector = &v1alpha1.ReflectorStatus{RouterID: "10.99.0.2", ClusterID: "10.99.0.2", Problem: "listen on 192.168.11.12:1179: address already in use"}
	node3.SessionsTotal, node3.SessionsEstablished = 300, 299
	return bgpState{
		clusterState: clusterState{nodes: nodesNamed("node1", "node2", "node3"), statuses: map[string]v1alpha1.NodeStatus{
			"node1": {Status: node1}, "node2": {Status: node2}, "node3": {Status: node3},
		}},
		config: &v1alpha1.BGPConfiguration{Status: v1alpha1.BGPConfigurationStatus{RouteReflection: &v1alpha1.RouteReflectionStatus{
			MeshSince: &since, Reason: "3 nodes are more than meshThreshold 2", Reflectors: []v1alpha1.Reflector{
				{Node: "node1", Zone: "rack1", State: v1alpha1.ReflectorActive, Since: since, Reason: "has the routes of all nodes"},
				{Node: "node2", ClusterID: "10.0.0.1", State: v1alpha1.ReflectorJoining, Since: ago(5 * time.Second)},
			},
		}}},
	}
}

func nodesNamed(names ...string) (out []corev1.Node) {
	for _, name := range names {
		out = append(out, corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	return out
}
