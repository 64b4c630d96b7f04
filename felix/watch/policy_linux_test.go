// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/felix/feed"
	"github.com/heliograph-dev/heliograph/internal/apitest"
)

// hears takes what comes until there is a change of an object.
func hears(t *testing.T, c *cluster, k feed.Key, gone bool) (found client.Object) {
	t.Helper()
	eventually(t, func() string {
		for _, change := range c.feed.Take() {
			if change.Key == k && (change.Object == nil) == gone {
				found = change.Object
				return ""
			}
		}
		return fmt.Sprintf("nothing is heard of %v (gone: %v): are the agent's rights enough?", k, gone)
	})
	return found
}

// testFeed: of each kind what is made, and deleted, is heard of.
func testFeed(t *testing.T, c *cluster) {
	meta := metav1.ObjectMeta{Namespace: "default", Name: "x"}
	global := metav1.ObjectMeta{Name: "x"}
	if !c.feed.Synced() {
		t.Error("the feed is not in sync")
	}
	for kind, object := range map[feed.Kind]client.Object{
		Namespaces:        &corev1.Namespace{ObjectMeta: global},
		ServiceAccounts:   &corev1.ServiceAccount{ObjectMeta: meta},
		EndpointSlices:    &discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4},
		NetworkPolicies:   &networkingv1.NetworkPolicy{ObjectMeta: meta},
		OwnPolicies:       &v1alpha1.NetworkPolicy{ObjectMeta: meta},
		GlobalPolicies:    &v1alpha1.GlobalNetworkPolicy{ObjectMeta: global},
		Tiers:             &v1alpha1.Tier{ObjectMeta: global},
		NetworkSets:       &v1alpha1.NetworkSet{ObjectMeta: meta, Spec: v1alpha1.NetworkSetSpec{Nets: []string{"192.0.2.0/24"}}},
		GlobalNetworkSets: &v1alpha1.GlobalNetworkSet{ObjectMeta: global, Spec: v1alpha1.NetworkSetSpec{Nets: []string{"2001:db8::/32"}}},
		Nodes:             &corev1.Node{ObjectMeta: global},
	} {
		t.Run(string(kind), func(t *testing.T) {
			c.create(t, object)
			hears(t, c, feed.KeyOf(kind, object), false)
			if kind == Namespaces {
				return // without a controller it never goes
			}
			if err := c.admin.Delete(t.Context(), object); err != nil {
				t.Fatal(err)
			}
			hears(t, c, feed.KeyOf(kind, object), true)
		})
	}
	t.Run("pods", func(t *testing.T) { testPods(t, c) })
	t.Run("a kind that is installed later", func(t *testing.T) { testOptional(t, c) })
}

// testPods: of a pod no more is kept than policy needs, and what it does not need is not heard of.
func testPods(t *testing.T, c *cluster) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "x", Labels: map[string]string{"app": "x"}, Annotations: map[string]string{"a": "b"}},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "c", Image: "image", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}, {ContainerPort: 81}},
			}, {Name: "d", Image: "image"}},
			ServiceAccountName: "default",
		},
	}
	c.create(t, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "default"}}, pod)
	key := feed.KeyOf(Pods, pod)
	got := hears(t, c, key, false).(*corev1.Pod)
	want := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "x", UID: pod.UID, ResourceVersion: got.ResourceVersion, Labels: map[string]string{"app": "x"},
		},
		Spec: corev1.PodSpec{
			Containers:         []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80, Protocol: corev1.ProtocolTCP}}}},
			ServiceAccountName: "default",
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("kept of a pod (-want +got):\n%s", diff)
	}
	status := func(change func(*corev1.PodStatus)) {
		t.Helper()
		change(&pod.Status)
		if err := c.admin.Status().Update(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	status(func(s *corev1.PodStatus) { s.Phase, s.Message = corev1.PodRunning, "noise" })
	status(func(s *corev1.PodStatus) { s.PodIP, s.PodIPs = "10.244.0.5", []corev1.PodIP{{IP: "10.244.0.5"}} })
	if got := hears(t, c, key, false).(*corev1.Pod); got.Status.PodIP != "10.244.0.5" {
		t.Errorf("first change that is heard: %+v; want the one that brings the address", got.Status)
	}
}

// testOptional: what the API server did not know at first is watched once it does.
func testOptional(t *testing.T, c *cluster) {
	_, err := envtest.InstallCRDs(c.root, envtest.CRDInstallOptions{Paths: []string{filepath.Join(apitest.Root(), "config", "crd", "network-policy-api")}})
	if err != nil {
		t.Fatal(err)
	}
	policy := &policyv1alpha2.ClusterNetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "x"},
		Spec: policyv1alpha2.ClusterNetworkPolicySpec{
			Tier: policyv1alpha2.AdminTier, Priority: 1, Subject: policyv1alpha2.ClusterNetworkPolicySubject{Namespaces: &metav1.LabelSelector{}},
		},
	}
	c.create(t, policy)
	hears(t, c, feed.KeyOf(ClusterNetworkPolicies, policy), false)
	if err := c.admin.Delete(t.Context(), policy); err != nil {
		t.Fatal(err)
	}
	hears(t, c, feed.KeyOf(ClusterNetworkPolicies, policy), true)
}
