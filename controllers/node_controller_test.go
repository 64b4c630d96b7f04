// SPDX-License-Identifier: Apache-2.0

//go:build linux

package controllers

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// proven is what an agent reports of its network.
func proven(ready, proven metav1.ConditionStatus) v1alpha1.NodeStatusStatus {
	now := metav1.Now()
	return v1alpha1.NodeStatusStatus{Conditions: []metav1.Condition{
		{Type: v1alpha1.ConditionReady, Status: ready, Reason: "Test", LastTransitionTime: now},
		{Type: v1alpha1.ConditionPathsProven, Status: proven, Reason: "Test", Message: "so many answer", LastTransitionTime: now},
	}}
}

// wantNetwork waits for a Node to be tainted by us or not, and for its condition "STATUS REASON".
func (s *suite) wantNetwork(t *testing.T, node string, tainted bool, condition string) {
	t.Helper()
	eventually(t, func() error {
		var n corev1.Node
		s.get(t, node, &n)
		has := slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == v1alpha1.TaintNotReady })
		_, c := networkCondition(n.Status.Conditions)
		if got := fmt.Sprintf("%s %s", c.Status, c.Reason); got != condition || has != tainted {
			return fmt.Errorf("%s: tainted %t and %q, want %t and %q", node, has, got, tainted, condition)
		}
		return nil
	})
}

// testUnproven follows a node from its first day: tainted until its network works, and never again.
func testUnproven(t *testing.T, s *suite) {
	_, stop := s.run(t)
	n := newNode("node1")
	n.Spec.Taints = []corev1.Taint{{Key: "theirs", Effect: corev1.TaintEffectNoExecute}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse}}
	s.create(t, n)
	s.wantNetwork(t, "node1", true, "True HeliographNotProvenYet")
	s.report(t, "node1", proven(metav1.ConditionTrue, metav1.ConditionFalse))
	s.report(t, "node1", proven(metav1.ConditionFalse, metav1.ConditionTrue))
	s.wantNetwork(t, "node1", true, "True HeliographNotProvenYet")
	s.report(t, "node1", proven(metav1.ConditionTrue, metav1.ConditionTrue))
	s.wantNetwork(t, "node1", false, "False HeliographPathsProven")
	s.wantEvent(t, "Node", "node1", "Normal HeliographPathsProven")

	s.report(t, "node1", proven(metav1.ConditionTrue, metav1.ConditionFalse))
	s.wantNetwork(t, "node1", false, "True HeliographPathsLost")
	s.wantEvent(t, "Node", "node1", "Warning HeliographPathsLost")

	// Another controller remembers it: nothing but the Node itself is its memory.
	stop()
	_, stop = s.run(t)
	defer stop()
	s.report(t, "node1", proven(metav1.ConditionTrue, metav1.ConditionUnknown))
	s.wantNetwork(t, "node1", false, "True HeliographPathsLost")
	s.report(t, "node1", proven(metav1.ConditionTrue, metav1.ConditionTrue))
	s.wantNetwork(t, "node1", false, "False HeliographPathsProven")

	// An agent that is gone says nothing: its kernel goes on forwarding.
	s.delete(t, &v1alpha1.NodeStatus{ObjectMeta: metav1.ObjectMeta{Name: "node1"}})
	s.create(t, newNode("node2"))
	s.wantNetwork(t, "node2", true, "True HeliographNotProvenYet")
	s.wantNetwork(t, "node1", false, "False HeliographPathsProven")
	var after corev1.Node
	s.get(t, "node1", &after)
	theirs := func(t corev1.Taint) bool { return t.Key == "theirs" }
	if !slices.ContainsFunc(after.Spec.Taints, theirs) || len(after.Status.Conditions) != 2 {
		t.Errorf("what others had put on the node is %v and %v", after.Spec.Taints, after.Status.Conditions)
	}
}

// testNodeGuard shows that the right to patch Nodes is good for nothing else.
func testNodeGuard(t *testing.T, s *suite) {
	s.create(t, newNode("node1"))
	controller, err := client.New(s.config, client.Options{Scheme: s.admin.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	// Each attempt changes something, also if the one before went through: a new policy takes a moment.
	for name, change := range map[string]func(*corev1.Node){
		"a label": func(n *corev1.Node) { n.Labels = map[string]string{"mine": n.ResourceVersion} },
		"another taint": func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: "x", Value: n.ResourceVersion, Effect: corev1.TaintEffectNoExecute}}
		},
		"cordoning": func(n *corev1.Node) { n.Spec.Unschedulable = !n.Spec.Unschedulable },
	} {
		eventually(t, func() error {
			var n corev1.Node
			s.get(t, "node1", &n)
			before := n.DeepCopy()
			change(&n)
			if err := controller.Patch(t.Context(), &n, client.MergeFrom(before)); !apierrors.IsInvalid(err) && !apierrors.IsForbidden(err) {
				return fmt.Errorf("%s: the controller may change it: %w", name, err)
			}
			return nil
		})
	}
}

// testProbeKey shows that there is a key, that it stays, and that another is made if it is taken away.
func testProbeKey(t *testing.T, s *suite) {
	s.run(t)
	s.create(t, newNode("node1"))
	at := client.ObjectKey{Namespace: namespace, Name: v1alpha1.ProbeSecret}
	key := func(not string) (secret corev1.Secret) {
		t.Helper()
		eventually(t, func() error {
			if err := s.admin.Get(t.Context(), at, &secret); err != nil {
				return err
			}
			if k := secret.Data[v1alpha1.ProbeSecretKey]; len(k) != probeKeySize || string(k) == not {
				return fmt.Errorf("the key has %d bytes, or is the old one", len(k))
			}
			return nil
		})
		return secret
	}
	first := key("")
	s.create(t, newNode("node2"))
	if again := key(""); string(again.Data["key"]) != string(first.Data["key"]) {
		t.Error("the key changes by itself")
	}
	s.delete(t, &first)
	second := key(string(first.Data["key"]))
	second.Data = nil
	if err := s.admin.Update(t.Context(), &second); err != nil {
		t.Fatal(err)
	}
	key("")
}
