// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/felix/feed"
)

// Kinds that go to the feed, by their resources.
const (
	Pods                   feed.Kind = "pods"
	Namespaces             feed.Kind = "namespaces"
	Nodes                  feed.Kind = "nodes"
	IPBlocks               feed.Kind = "ipblocks.heliograph.dev"
	ServiceAccounts        feed.Kind = "serviceaccounts"
	EndpointSlices         feed.Kind = "endpointslices.discovery.k8s.io"
	NetworkPolicies        feed.Kind = "networkpolicies.networking.k8s.io"
	OwnPolicies            feed.Kind = "networkpolicies.heliograph.dev"
	GlobalPolicies         feed.Kind = "globalnetworkpolicies.heliograph.dev"
	Tiers                  feed.Kind = "tiers.heliograph.dev"
	NetworkSets            feed.Kind = "networksets.heliograph.dev"
	GlobalNetworkSets      feed.Kind = "globalnetworksets.heliograph.dev"
	HostEndpoints          feed.Kind = "hostendpoints.heliograph.dev"
	ClusterNetworkPolicies feed.Kind = "clusternetworkpolicies.policy.networking.k8s.io"
)

// FeedTypes make an empty object of each kind that goes to the feed.
func FeedTypes() map[feed.Kind]func() client.Object {
	return map[feed.Kind]func() client.Object{
		Pods:                   func() client.Object { return &corev1.Pod{} },
		Namespaces:             func() client.Object { return &corev1.Namespace{} },
		Nodes:                  func() client.Object { return &corev1.Node{} },
		IPBlocks:               func() client.Object { return &v1alpha1.IPBlock{} },
		ServiceAccounts:        func() client.Object { return &corev1.ServiceAccount{} },
		EndpointSlices:         func() client.Object { return &discoveryv1.EndpointSlice{} },
		NetworkPolicies:        func() client.Object { return &networkingv1.NetworkPolicy{} },
		OwnPolicies:            func() client.Object { return &v1alpha1.NetworkPolicy{} },
		GlobalPolicies:         func() client.Object { return &v1alpha1.GlobalNetworkPolicy{} },
		Tiers:                  func() client.Object { return &v1alpha1.Tier{} },
		NetworkSets:            func() client.Object { return &v1alpha1.NetworkSet{} },
		GlobalNetworkSets:      func() client.Object { return &v1alpha1.GlobalNetworkSet{} },
		HostEndpoints:          func() client.Object { return &v1alpha1.HostEndpoint{} },
		ClusterNetworkPolicies: func() client.Object { return &policyv1alpha2.ClusterNetworkPolicy{} },
	}
}

// optional are kinds that a cluster need not have.
func optional(kind feed.Kind) bool { return kind == ClusterNetworkPolicies }

// watchFeed hands each change of the kinds that policy follows from to the feed.
func (w *Watcher) watchFeed(ctx context.Context) error {
	for kind, empty := range FeedTypes() {
		if optional(kind) {
			continue
		}
		heard, err := w.watchKind(ctx, kind, empty())
		if err != nil {
			return err
		}
		w.heard = append(w.heard, heard)
	}
	return nil
}

// watchKind hands each change of one kind to the feed. What it returns says whether the feed has all that
// there was when the watch began.
func (w *Watcher) watchKind(ctx context.Context, kind feed.Kind, empty client.Object) (toolscache.InformerSynced, error) {
	informer, err := w.cache.GetInformer(ctx, empty, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", kind, err)
	}
	registration, err := informer.AddEventHandler(feedHandler(kind, w.opts.Feed))
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", kind, err)
	}
	return registration.HasSynced, nil
}

func feedHandler(kind feed.Kind, f *feed.Feed) toolscache.ResourceEventHandlerFuncs {
	put := func(obj any) {
		if o, ok := obj.(client.Object); ok {
			f.Put(feed.KeyOf(kind, o), o)
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: put,
		UpdateFunc: func(before, after any) {
			if !alike(before, after) {
				put(after)
			}
		},
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if o, ok := obj.(client.Object); ok {
				f.Delete(feed.KeyOf(kind, o))
			}
		},
	}
}

// alike says whether two trimmed objects differ in nothing that policy follows from: kubelet writes a
// pod's status several times while it starts, and a node's every minute; controllers write conditions.
func alike(before, after any) bool {
	a, ok := after.(client.Object)
	b, ok2 := before.(client.Object)
	if !ok || !ok2 || a.GetUID() != b.GetUID() || !maps.Equal(a.GetLabels(), b.GetLabels()) || !maps.Equal(a.GetAnnotations(), b.GetAnnotations()) {
		return false
	}
	switch a := a.(type) {
	case *corev1.Pod:
		b, ok := b.(*corev1.Pod)
		return ok && equality.Semantic.DeepEqual(a.Spec, b.Spec) && equality.Semantic.DeepEqual(a.Status, b.Status)
	case *corev1.Node:
		b, ok := b.(*corev1.Node)
		return ok && slices.Equal(a.Status.Addresses, b.Status.Addresses)
	case *corev1.Namespace, *corev1.ServiceAccount:
		return true
	case *discoveryv1.EndpointSlice:
		b, ok := b.(*discoveryv1.EndpointSlice)
		return ok && equality.Semantic.DeepEqual(a.Endpoints, b.Endpoints) && equality.Semantic.DeepEqual(a.Ports, b.Ports)
	}
	return a.GetGeneration() == b.GetGeneration()
}

// trimPod keeps of a Pod what policy/compile reads, since an agent holds all pods of the cluster.
func trimPod(obj any) (any, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	out := &corev1.Pod{
		TypeMeta: p.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion, Labels: p.Labels,
		},
		Spec: corev1.PodSpec{
			HostNetwork: p.Spec.HostNetwork, ServiceAccountName: p.Spec.ServiceAccountName,
			InitContainers: trimContainers(p.Spec.InitContainers), Containers: trimContainers(p.Spec.Containers),
		},
		Status: corev1.PodStatus{Phase: phase(p.Status.Phase), PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs},
	}
	// A static pod has two UIDs: the API's, and that which kubelet and the CNI plugin know, its hash.
	if hash, ok := p.Annotations[corev1.MirrorPodAnnotationKey]; ok {
		out.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: hash}
	}
	return out, nil
}

// phase keeps those that mean that a pod has ended: a pod that gets Running is no event for policy.
func phase(p corev1.PodPhase) corev1.PodPhase {
	if p == corev1.PodSucceeded || p == corev1.PodFailed {
		return p
	}
	return ""
}

// trimContainers keeps those that serve a port by a name.
func trimContainers(containers []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for _, c := range containers {
		var ports []corev1.ContainerPort
		for _, p := range c.Ports {
			if p.Name != "" {
				ports = append(ports, corev1.ContainerPort{Name: p.Name, ContainerPort: p.ContainerPort, Protocol: p.Protocol})
			}
		}
		if ports != nil {
			out = append(out, corev1.Container{Name: c.Name, RestartPolicy: c.RestartPolicy, Ports: ports})
		}
	}
	return out
}

// trimServiceAccount keeps name and labels.
func trimServiceAccount(obj any) (any, error) {
	s, ok := obj.(*corev1.ServiceAccount)
	if !ok {
		return obj, nil
	}
	return &corev1.ServiceAccount{
		TypeMeta:   s.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion, Labels: s.Labels},
	}, nil
}

// trimEndpointSlice keeps addresses and ports: whether an endpoint is ready does not matter to policy.
func trimEndpointSlice(obj any) (any, error) {
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return obj, nil
	}
	out := &discoveryv1.EndpointSlice{
		TypeMeta: s.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.Namespace, Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion,
			Labels: map[string]string{discoveryv1.LabelServiceName: s.Labels[discoveryv1.LabelServiceName]},
		},
		AddressType: s.AddressType, Ports: s.Ports,
	}
	for _, e := range s.Endpoints {
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{Addresses: e.Addresses})
	}
	return out, nil
}

// trimNamespace keeps name and labels.
func trimNamespace(obj any) (any, error) {
	n, ok := obj.(*corev1.Namespace)
	if !ok {
		return obj, nil
	}
	return &corev1.Namespace{
		TypeMeta:   n.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Labels: n.Labels},
	}, nil
}
