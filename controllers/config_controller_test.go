// SPDX-License-Identifier: Apache-2.0

//go:build linux

package controllers

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

func password(name, key string) *v1alpha1.BGPPassword {
	p := &v1alpha1.BGPPassword{}
	p.SecretKeyRef.Name, p.SecretKeyRef.Key = name, key
	return p
}

func newPeer(name string, change func(*v1alpha1.BGPPeerSpec)) *v1alpha1.BGPPeer {
	p := &v1alpha1.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.BGPPeerSpec{PeerIP: "192.0.2.1", ASNumber: 65101}}
	if change != nil {
		change(&p.Spec)
	}
	return p
}

func session(peer, state, lastError string) v1alpha1.BGPSessionStatus {
	return v1alpha1.BGPSessionStatus{Name: "peer/" + peer, PeerIP: "192.0.2.1", ASNumber: 65101, State: state, LastError: lastError}
}

func testSecret(t *testing.T, s *suite) {
	s.run(t)
	s.create(t, newNode("node1"))
	s.report(t, "node1", v1alpha1.NodeStatusStatus{Sessions: []v1alpha1.BGPSessionStatus{session("tor", "Held", "no password")}})
	tor := newPeer("tor", func(p *v1alpha1.BGPPeerSpec) { p.Password = password("bgp", "tor") })
	mesh := &v1alpha1.BGPConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.BGPConfigurationSpec{NodeMeshPassword: password("bgp", "mesh")}}
	s.create(t, tor, mesh)
	s.wantReady(t, tor, "False SecretMissing: Secret heliograph-system/bgp does not exist; sessions are held down")
	s.wantReady(t, mesh, "False SecretMissing: Secret heliograph-system/bgp does not exist; sessions are held down")
	s.wantEvent(t, "BGPPeer", "tor", "Warning SecretMissing")

	elsewhere := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "bgp", Namespace: "default"}, StringData: map[string]string{"tor": "x"}}
	s.create(t, elsewhere)
	t.Cleanup(func() { s.admin.Delete(t.Context(), elsewhere) }) //nolint:errcheck // best effort
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "bgp", Namespace: namespace}, StringData: map[string]string{"other": "x"}}
	s.create(t, secret)
	s.wantReady(t, tor, "False SecretMissing: Secret heliograph-system/bgp has no key tor; sessions are held down")

	update := func(data map[string]string) {
		t.Helper()
		secret.StringData = data
		if err := s.admin.Update(t.Context(), secret); err != nil {
			t.Fatal(err)
		}
	}
	update(map[string]string{"tor": ""})
	s.wantReady(t, tor, "False SecretMissing: Secret heliograph-system/bgp has an empty value at key tor; sessions are held down")
	update(map[string]string{"tor": "secret", "mesh": "secret"})
	s.wantReady(t, tor, "False SessionsDown: 0 of 1 sessions are established; node1: Held (no password)")
	s.wantReady(t, mesh, "True Accepted: in force")
	s.report(t, "node1", v1alpha1.NodeStatusStatus{Sessions: []v1alpha1.BGPSessionStatus{session("tor", "Established", "")}})
	s.wantReady(t, tor, "True SessionsUp: 1 of 1 sessions are established")
	s.wantEvent(t, "BGPPeer", "tor", "Normal SessionsUp")
}

func testPeers(t *testing.T, s *suite) {
	s.run(t)
	s.create(t, newNode("node1", "rack=r1"), newNode("node2", "rack=r1"), newNode("node3", "rack=r2"))
	tor := newPeer("tor", func(p *v1alpha1.BGPPeerSpec) { p.NodeSelector = "rack == 'r1'" })
	one := newPeer("one", func(p *v1alpha1.BGPPeerSpec) { p.Node = "node9" })
	wrong := newPeer("wrong", func(p *v1alpha1.BGPPeerSpec) { p.NodeSelector = "rack = 'r1'" })
	none := newPeer("none", func(p *v1alpha1.BGPPeerSpec) { p.NodeSelector = "rack == 'r9'" })
	s.create(t, tor, one, wrong, none)
	s.wantReady(t, one, "False NoNodeSelected: there is no node node9")
	s.wantReady(t, none, "False NoNodeSelected: nodeSelector selects no node")
	s.wantReady(t, wrong, `False Invalid: nodeSelector: position 6: expected ==, !=, in, not in, contains, starts with or ends with, found "="; no node peers`)
	const silent = "Unknown (the agent of the node has not reported yet)"
	s.wantReady(t, tor, "Unknown SessionsUnknown: 0 of 2 sessions are established; node1: "+silent+"; node2: "+silent)

	s.report(t, "node1", v1alpha1.NodeStatusStatus{Sessions: []v1alpha1.BGPSessionStatus{session("tor", "Established", "")}})
	s.report(t, "node2", v1alpha1.NodeStatusStatus{Sessions: []v1alpha1.BGPSessionStatus{session("tor", "Active", "received OPEN error: bad peer AS")}})
	s.wantReady(t, tor, "False SessionsDown: 1 of 2 sessions are established; node2: Active (received OPEN error: bad peer AS)")
	if tor.Status.Sessions != 2 || tor.Status.Established != 1 || len(tor.Status.Nodes) != 1 || tor.Status.Nodes[0].Node != "node2" {
		t.Errorf("status: %+v", tor.Status)
	}

	s.report(t, "node2", v1alpha1.NodeStatusStatus{Sessions: []v1alpha1.BGPSessionStatus{session("tor", "Established", "")}})
	s.wantReady(t, tor, "True SessionsUp: 2 of 2 sessions are established")

	// node2 loses its power: its last report stays, and says nothing any more.
	node := &corev1.Node{}
	s.get(t, "node2", node)
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Reason: "NodeStatusUnknown"}}
	if err := s.admin.Status().Update(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	s.wantReady(t, tor, "Unknown SessionsUnknown: 1 of 2 sessions are established; node2: Unknown (the node is out of reach; its last report said Established)")
	s.delete(t, node)
	s.wantReady(t, tor, "True SessionsUp: 1 of 1 sessions are established")
}

func testFelix(t *testing.T, s *suite) {
	s.run(t)
	felix := func(name string, spec v1alpha1.FelixConfigurationSpec) *v1alpha1.FelixConfiguration {
		f := &v1alpha1.FelixConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
		s.create(t, f)
		return f
	}
	s.create(t, newNode("node1"))
	common := felix("default", v1alpha1.FelixConfigurationSpec{VXLANPort: ptr.To[int32](4789)})
	own := felix("node.node1", v1alpha1.FelixConfigurationSpec{MTU: ptr.To[int32](9000), VXLANPort: ptr.To[int32](4789)})
	nobody := felix("node.node2", v1alpha1.FelixConfigurationSpec{MTU: ptr.To[int32](9000)})
	s.wantReady(t, common, "True Accepted: in force on all nodes")
	s.wantReady(t, own, "True Accepted: in force on node node1")
	s.wantReady(t, nobody, "False Invalid: there is no node node2: in force nowhere")
	s.wantEvent(t, "FelixConfiguration", "node.node2", "Warning Invalid")
	s.create(t, newNode("node2"))
	s.wantReady(t, nobody, "True Accepted: in force on node node2")
	own.Spec.VXLANVNI = ptr.To[int32](7)
	if err := s.admin.Update(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	s.wantReady(t, own, "False Invalid: vxlanVNI must be the same on all nodes: set it in FelixConfiguration default, or node node1 has no VXLAN")
	var c client.Object = own
	s.wantEvent(t, "FelixConfiguration", c.GetName(), "Warning Invalid")
}

// A thousand nodes that lose one router make a status of bounded size.
func TestPeerStatusIsBounded(t *testing.T) {
	var nodes []corev1.Node
	var statuses []v1alpha1.NodeStatus
	for i := range 1000 {
		name := fmt.Sprintf("node%04d", i)
		nodes = append(nodes, *newNode(name))
		statuses = append(statuses, v1alpha1.NodeStatus{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Status:     v1alpha1.NodeStatusStatus{Sessions: []v1alpha1.BGPSessionStatus{session("tor", "Active", "hold timer expired")}},
		})
	}
	v := newView(namespace, nodes, statuses, nil, nil)
	s, c := v.peerStatus(newPeer("tor", nil))
	if len(s.Nodes) != 64 || s.Sessions != 1000 {
		t.Errorf("%d of %d sessions are listed, want 64 of 1000", len(s.Nodes), s.Sessions)
	}
	want := condition{metav1.ConditionFalse, v1alpha1.ReasonSessionsDown, "0 of 1000 sessions are established; " +
		"node0000: Active (hold timer expired); node0001: Active (hold timer expired); node0002: Active (hold timer expired); and 997 more"}
	if diff := cmp.Diff(want, c, cmp.AllowUnexported(condition{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The caches hold what the reconcilers need, and no password.
func TestTrim(t *testing.T) {
	secret, err := trimSecret(&corev1.Secret{Data: map[string][]byte{"a": []byte("hunter2"), "b": {}}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&corev1.Secret{Data: map[string][]byte{"a": []byte("*"), "b": {}}}, secret); diff != "" {
		t.Errorf("Secret (-want +got):\n%s", diff)
	}
	status, err := trimNodeStatus(&v1alpha1.NodeStatus{Status: v1alpha1.NodeStatusStatus{
		Sessions: []v1alpha1.BGPSessionStatus{session("tor", "Active", ""), {Name: "node/node2"}},
		Paths:    []v1alpha1.PathStatus{{Node: "node2"}},
		Blocks:   []v1alpha1.BlockStatus{{Name: "b"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := &v1alpha1.NodeStatus{Status: v1alpha1.NodeStatusStatus{
		Sessions: []v1alpha1.BGPSessionStatus{session("tor", "Active", "")},
		Blocks:   []v1alpha1.BlockStatus{{Name: "b"}},
	}}
	if diff := cmp.Diff(want, status); diff != "" {
		t.Errorf("NodeStatus (-want +got):\n%s", diff)
	}
}
