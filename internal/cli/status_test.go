// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestStatus(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		state clusterState
		only  string
	}{
		"cluster":  {state: sampleCluster(now)},
		"one-node": {state: sampleCluster(now), only: "node2"},
		"empty":    {},
	} {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			if err := tt.state.print(&got, tt.only, now); err != nil {
				t.Fatal(err)
			}
			golden(t, "status-"+name+".txt", got.Bytes())
		})
	}
}

// golden compares with a file in testdata, or writes it with -update.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// sampleCluster has a node that is well, one in trouble, and one without an agent.
func sampleCluster(now time.Time) clusterState {
	ago := func(d time.Duration) *metav1.Time { return &metav1.Time{Time: now.Add(-d)} }
	node := func(name string) corev1.Node { return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }
	condition := func(status metav1.ConditionStatus, reason, message string) []metav1.Condition {
		return []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: status, Reason: reason, Message: message}}
	}
	well := v1alpha1.NodeStatusStatus{
		PodNetworkIPs: []string{"10.244.0.1", "fd00:244::1"}, SessionsEstablished: 1, SessionsTotal: 1, PathsNative: 1,
		Blocks:     []v1alpha1.BlockStatus{{Name: "b0", InUse: 3}, {Name: "b1", InUse: 4}},
		Sessions:   []v1alpha1.BGPSessionStatus{{Name: "peer/leaf1", PeerIP: "192.168.11.254", ASNumber: 65101, State: "Established", Since: ago(3 * time.Hour), PrefixesIn: 2, PrefixesOut: 2}},
		Paths:      []v1alpha1.PathStatus{{Node: "node2", Family: "IPv4", Method: v1alpha1.PathNative, NextHops: []string{"192.168.11.254"}, Reason: "BGP route from the fabric, 1 next hop(s)", Since: ago(90 * time.Second)}},
		Conditions: condition(metav1.ConditionTrue, "InSync", "the dataplane is in sync"),
	}
	trouble := v1alpha1.NodeStatusStatus{
		PodNetworkIPs: []string{"10.244.1.1"}, SessionsTotal: 1, PathsVXLAN: 1, PathsIPIP: 1,
		Blocks:   []v1alpha1.BlockStatus{{Name: "b2", InUse: 1}},
		Sessions: []v1alpha1.BGPSessionStatus{{Name: "peer/leaf2", PeerIP: "192.168.12.254", ASNumber: 65102, State: "Held", Rejected: 5, LastError: "Secret leaf2 has no key password"}},
		Paths: []v1alpha1.PathStatus{
			{Node: "node1", Family: "IPv4", Method: v1alpha1.PathVXLAN, NextHops: []string{"192.168.11.1"}, Reason: "no BGP route to 10.244.0.0/26", Since: ago(2 * time.Second)},
			{Node: "node3", Family: "IPv4", Method: v1alpha1.PathIPIP, NextHops: []string{"192.168.12.3"}, Reason: "not Native: no BGP route to 10.244.2.0/26; nothing answers by any method: this is a guess", Since: ago(time.Hour), Unanswered: true},
		},
		Problems:   []string{"route 10.244.0.0/26: a foreign route (protocol 4, metric 10) takes its traffic"},
		Conditions: condition(metav1.ConditionFalse, "OutOfSync", "the dataplane is not in sync: see problems"),
	}
	return clusterState{
		nodes:    []corev1.Node{node("node1"), node("node2"), node("node3")},
		statuses: map[string]v1alpha1.NodeStatus{"node1": {Status: well}, "node2": {Status: trouble}, "gone": {Status: well}},
		pools: []v1alpha1.IPPool{{
			ObjectMeta: metav1.ObjectMeta{Name: "default-ipv4"}, Spec: v1alpha1.IPPoolSpec{CIDR: "10.244.0.0/16", Encapsulation: v1alpha1.EncapsulationAuto},
			Status: v1alpha1.IPPoolStatus{Blocks: 3, BlockCapacity: 1024, AddressesInUse: 8, Conditions: condition(metav1.ConditionTrue, "Valid", "")},
		}},
		peers: []v1alpha1.BGPPeer{{
			ObjectMeta: metav1.ObjectMeta{Name: "leaf1"}, Spec: v1alpha1.BGPPeerSpec{PeerIP: "192.168.11.254", ASNumber: 65101},
			Status: v1alpha1.BGPPeerStatus{Established: 1, Sessions: 1},
		}},
	}
}
