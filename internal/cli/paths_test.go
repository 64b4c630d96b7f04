// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

func TestPaths(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		state  clusterState
		filter pathFilter
		form   string
	}{
		"all":          {state: samplePaths(now)},
		"wide":         {state: samplePaths(now), form: "wide"},
		"json":         {state: samplePaths(now), filter: pathFilter{from: "node2", to: "node1"}, form: "json"},
		"from-to":      {state: samplePaths(now), filter: pathFilter{from: "node1", to: "node2"}},
		"family":       {state: samplePaths(now), filter: pathFilter{family: "6"}},
		"nothing":      {},
		"nothing-json": {form: "json"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tt.filter.complete(); err != nil {
				t.Fatal(err)
			}
			list, err := tt.state.paths(tt.filter)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := list.write(&got, tt.form, now); err != nil {
				t.Fatal(err)
			}
			golden(t, "paths-"+name+".txt", got.Bytes())
		})
	}
}

func TestPathsRefuses(t *testing.T) {
	now := time.Now()
	for name, tt := range map[string]struct {
		filter pathFilter
		form   string
		want   string
	}{
		"from":   {filter: pathFilter{from: "nodeX"}, want: "there is no node nodeX"},
		"to":     {filter: pathFilter{to: "nodeX"}, want: "there is no node nodeX"},
		"family": {filter: pathFilter{family: "IPX"}, want: `--family is "IPX"`},
		"form":   {form: "yaml", want: `--output is "yaml"`},
	} {
		t.Run(name, func(t *testing.T) {
			err := tt.filter.complete()
			var list pathList
			if err == nil {
				list, err = samplePaths(now).paths(tt.filter)
			}
			if err == nil {
				err = list.write(&bytes.Buffer{}, tt.form, now)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v; want %q in it", err, tt.want)
			}
		})
	}
}

// samplePaths has a path of each kind: the best, a worse one, one that nobody answers, none at all; a node
// that leaves out what is well, one whose report is old, and one without a report.
func samplePaths(now time.Time) clusterState {
	ago := func(d time.Duration) *metav1.Time { return &metav1.Time{Time: now.Add(-d)} }
	up := func(m v1alpha1.PathMethod, rtt int64, mtu int32) v1alpha1.PathMethodStatus {
		return v1alpha1.PathMethodStatus{Method: m, State: "Up", Since: ago(3 * time.Hour), Probes: "Answers", RTTMicroseconds: rtt, Loss: "0/5", MTU: mtu}
	}
	down := func(m v1alpha1.PathMethod, d time.Duration, reason string) v1alpha1.PathMethodStatus {
		return v1alpha1.PathMethodStatus{Method: m, State: "Down", Since: ago(d), Reason: reason, Probes: "Unknown"}
	}
	lost := v1alpha1.PathMethodStatus{
		Method: v1alpha1.PathIPIP, State: "Down", Since: ago(time.Minute), Probes: "Lost", Loss: "5/5", Failures: 2,
		Reason: "probes lost 5/5 while others are answered",
	}
	silent := v1alpha1.PathMethodStatus{
		Method: v1alpha1.PathVXLAN, State: "Up", Since: ago(time.Hour), Probes: "Unknown", Loss: "5/5", Reason: "nothing answers by any method",
	}
	agentless := up(v1alpha1.PathVXLAN, 812, 1450)
	agentless.KernelOnly = true
	statuses := map[string]v1alpha1.NodeStatus{
		"node1": {Status: v1alpha1.NodeStatusStatus{
			PathsNative: 2, PathsVXLAN: 2, PathsNone: 1,
			Paths: []v1alpha1.PathStatus{
				{
					Node: "node2", Family: "IPv4", Method: v1alpha1.PathVXLAN, NextHops: []string{"192.168.12.2"}, Since: ago(time.Minute), Changes: 3,
					Reason:  "not Native: no BGP route to 10.244.1.0/26; not IPIP: probes lost 5/5 while others are answered",
					Methods: []v1alpha1.PathMethodStatus{down(v1alpha1.PathNative, 2*time.Minute, "no BGP route to 10.244.1.0/26"), lost, agentless},
				},
				{
					Node: "node2", Family: "IPv6", Method: v1alpha1.PathNative, NextHops: []string{"fd00:11::254", "fd00:11::253"}, Since: ago(3 * time.Hour),
					Reason:  "BGP route from the fabric, 2 next hop(s)",
					Methods: []v1alpha1.PathMethodStatus{up(v1alpha1.PathNative, 401, 1500), up(v1alpha1.PathVXLAN, 523, 1450)},
				},
				{
					Node: "node3", Family: "IPv4", Method: v1alpha1.PathVXLAN, NextHops: []string{"192.168.12.3"}, Since: ago(time.Hour), Unanswered: true,
					Reason:  "pool default-ipv4 says VXLAN; nothing answers by any method: this is a guess",
					Methods: []v1alpha1.PathMethodStatus{silent},
				},
				{
					Node: "node3", Family: "IPv6", Method: v1alpha1.PathNone, Since: ago(time.Hour), Changes: 1,
					Reason:  "not Native: no BGP route to fd00:244::80/122; pool default-ipv6 says Never",
					Methods: []v1alpha1.PathMethodStatus{down(v1alpha1.PathNative, time.Hour, "no BGP route to fd00:244::80/122")},
				},
			},
			Conditions: []metav1.Condition{{Type: "Stale", Status: metav1.ConditionFalse}},
		}},
		"node2": {Status: v1alpha1.NodeStatusStatus{
			PathsNative: 1, PathsIPIP: 1,
			Paths: []v1alpha1.PathStatus{
				{Node: "node1", Family: "IPv6", Method: v1alpha1.PathNative, NextHops: []string{"fd00:11::1"}, Since: ago(3 * time.Hour), Reason: "BGP route from the node itself, in the same subnet"},
				{
					Node: "node1", Family: "IPv4", Method: v1alpha1.PathIPIP, NextHops: []string{"192.168.11.1"}, Since: ago(5 * time.Second), Changes: 1, Reason: "not Native: has to prove itself until 12:00:09",
					Methods: []v1alpha1.PathMethodStatus{
						{Method: v1alpha1.PathNative, State: "Proving", Since: ago(2 * time.Second), Probes: "Answers", Loss: "0/3", RTTMicroseconds: 388, Failures: 1, Reason: "has to prove itself until 12:00:09"},
						up(v1alpha1.PathIPIP, 402, 1480), up(v1alpha1.PathVXLAN, 512, 1450),
					},
				},
			},
			Conditions: []metav1.Condition{{Type: "Stale", Status: metav1.ConditionTrue, Message: "the agent has not been heard of for 5m0s"}},
		}},
	}
	node := func(name string) corev1.Node { return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }
	return clusterState{nodes: []corev1.Node{node("node1"), node("node2"), node("node3")}, statuses: statuses}
}
