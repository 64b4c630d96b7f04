// SPDX-License-Identifier: Apache-2.0

//go:build linux

package controllers

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// addNode makes a node that can reflect.
func (s *suite) addNode(t *testing.T, i int) {
	t.Helper()
	n := newNode(fmt.Sprintf("node%d", i), "topology.kubernetes.io/zone=z"+fmt.Sprint(i%2))
	s.create(t, n)
	n.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.168.0.%d", i)}, {Type: corev1.NodeInternalIP, Address: fmt.Sprintf("fd00::%d", i)},
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	if err := s.admin.Status().Update(t.Context(), n); err != nil {
		t.Fatal(err)
	}
}

// reflects is what the agent of a healthy node reports, with its reflector if it has one.
func reflects(r *v1alpha1.ReflectorStatus) v1alpha1.NodeStatusStatus {
	s := proven(metav1.ConditionTrue, metav1.ConditionTrue)
	s.Reflector = r
	return s
}

// wantReflection waits for "mesh, node1 Joining, ...".
func (s *suite) wantReflection(t *testing.T, want string) {
	t.Helper()
	eventually(t, func() error {
		var c v1alpha1.BGPConfiguration
		if err := s.admin.Get(t.Context(), client.ObjectKey{Name: "default"}, &c); err != nil {
			return err
		}
		r := c.Status.RouteReflection
		if r == nil {
			return errors.New("nothing is chosen")
		}
		got := []string{map[bool]string{true: "mesh", false: "no mesh"}[r.Mesh]}
		for _, x := range r.Reflectors {
			got = append(got, x.Node+" "+string(x.State))
		}
		if strings.Join(got, ", ") != want {
			return fmt.Errorf("got %s (%s), want %s", strings.Join(got, ", "), r.Reason, want)
		}
		return nil
	})
}

// The controller chooses reflectors by what the API says, makes the object if there is none, and tells why.
func testReflection(t *testing.T, s *suite) {
	_, stop := s.run(t)
	for i := range 4 {
		s.addNode(t, i)
		s.report(t, fmt.Sprintf("node%d", i), reflects(nil))
		s.wantNetwork(t, fmt.Sprintf("node%d", i), false, "False HeliographPathsProven")
	}
	config := &v1alpha1.BGPConfiguration{}
	config.Name = "default"
	config.Spec.RouteReflection = &v1alpha1.RouteReflection{MeshThreshold: ptr.To(int32(3)), Count: ptr.To(int32(2))}
	s.create(t, config)
	s.wantReflection(t, "mesh, node0 Joining, node1 Joining")
	s.wantEvent(t, "BGPConfiguration", "default", "Normal ReflectorJoins")
	all := &v1alpha1.ReflectorStatus{Clients: 4, ClientsConverged: 4}
	s.report(t, "node0", reflects(all))
	s.wantReflection(t, "mesh, node0 Active, node1 Joining")
	s.report(t, "node1", reflects(all))
	s.wantReflection(t, "no mesh, node0 Active, node1 Active")
	s.wantEvent(t, "BGPConfiguration", "default", "Normal MeshEnds")

	stop() // another one takes over, and goes on
	s.run(t)
	var n corev1.Node
	s.get(t, "node1", &n)
	n.Spec.Unschedulable = true
	if err := s.admin.Update(t.Context(), &n); err != nil {
		t.Fatal(err)
	}
	s.wantReflection(t, "no mesh, node0 Active, node1 Leaving, node3 Joining")
	s.report(t, "node3", reflects(all))
	s.wantReflection(t, "no mesh, node0 Active, node3 Active")
	s.delete(t, &corev1.Node{ObjectMeta: n.ObjectMeta})

	s.get(t, "default", config)
	config.Spec.RouteReflection.Count = ptr.To(int32(9))
	if err := s.admin.Update(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	s.report(t, "node2", reflects(all))
	s.wantReflection(t, "no mesh, node0 Active, node2 Active, node3 Active")
	s.wantReady(t, config, "False Invalid: routeReflection.count: 9 reflectors are wanted, and 3 nodes can reflect")
	s.delete(t, config)
	for i := 4; i < 52; i++ { // with those of before that are left: one more than a mesh has by default
		s.addNode(t, i)
		s.report(t, fmt.Sprintf("node%d", i), reflects(nil))
	}
	eventually(t, func() error {
		c := &v1alpha1.BGPConfiguration{}
		if err := s.admin.Get(t.Context(), client.ObjectKey{Name: "default"}, c); err != nil {
			return err
		}
		if r := c.Status.RouteReflection; r == nil || !r.Mesh || len(r.Reflectors) != 3 {
			return fmt.Errorf("reflection of 51 nodes: %+v", r)
		}
		return nil
	})
}

// A router that is a client of reflectors has its sessions with these.
func testReflectorClient(t *testing.T, s *suite) {
	s.run(t)
	s.create(t, newNode("node1"), newNode("node2"))
	edge := newPeer("edge", func(p *v1alpha1.BGPPeerSpec) { p.ReflectorClient = true })
	s.create(t, edge)
	s.wantReady(t, edge, "False NoNodeSelected: reflectorClient: no node that is selected is a route reflector")
	s.report(t, "node2", v1alpha1.NodeStatusStatus{Reflector: &v1alpha1.ReflectorStatus{Sessions: []v1alpha1.BGPSessionStatus{
		{Name: "client/node1", State: "Idle", PeerIP: "192.0.2.9"}, session("edge", "Established", ""),
	}}})
	s.wantReady(t, edge, "True SessionsUp: 1 of 1 sessions are established")
}
