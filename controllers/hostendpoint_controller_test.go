// SPDX-License-Identifier: Apache-2.0

//go:build linux

package controllers

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

func newHost(name, node, device string) *v1alpha1.HostEndpoint {
	return &v1alpha1.HostEndpoint{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.HostEndpointSpec{Node: node, InterfaceName: device},
	}
}

func testHostEndpoints(t *testing.T, s *suite) {
	s.run(t)
	first, second, lost := newHost("a", "host-node", "*"), newHost("b", "host-node", "*"), newHost("lost", "nowhere", "eth0")
	s.create(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "host-node"}})
	s.create(t, first, second, lost)
	s.wantReady(t, first, "True Accepted: in force")
	s.wantReady(t, second, "False Overlap: HostEndpoint a is for the same device of the same node, and counts")
	s.wantEvent(t, "HostEndpoint", "b", "Warning Overlap")
	s.wantReady(t, lost, `False Missing: there is no Node "nowhere"`)
	if err := s.admin.Delete(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	s.wantReady(t, second, "True Accepted: in force")
	for _, device := range []string{"lo", "hel0123456789a", "a/b", ""} {
		if err := s.admin.Create(t.Context(), newHost("bad", "host-node", device)); err == nil {
			t.Errorf("the API takes the device %q", device)
		}
	}
}
