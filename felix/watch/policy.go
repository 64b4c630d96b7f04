// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heliograph-dev/heliograph/felix/feed"
)

// Kinds that go to the feed, by their resources.
const (
	Pods            feed.Kind = "pods"
	Namespaces      feed.Kind = "namespaces"
	NetworkPolicies feed.Kind = "networkpolicies.networking.k8s.io"
)

// FeedTypes make an empty object of each kind that goes to the feed.
func FeedTypes() map[feed.Kind]func() client.Object {
	return map[feed.Kind]func() client.Object{
		Pods:            func() client.Object { return &corev1.Pod{} },
		Namespaces:      func() client.Object { return &corev1.Namespace{} },
		NetworkPolicies: func() client.Object { return &networkingv1.NetworkPolicy{} },
	}
}

// watchFeed hands each change of the kinds that policy follows from to the feed.
func (w *Watcher) watchFeed(ctx context.Context) error {
	for kind, empty := range FeedTypes() {
		informer, err := w.cache.GetInformer(ctx, empty(), cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watch %s: %w", kind, err)
		}
		registration, err := informer.AddEventHandler(feedHandler(kind, w.opts.Feed))
		if err != nil {
			return fmt.Errorf("watch %s: %w", kind, err)
		}
		w.heard = append(w.heard, registration.HasSynced)
	}
	return nil
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

// alike says whether two trimmed objects differ in nothing but their version: kubelet writes a pod's
// status several times while it starts.
func alike(before, after any) bool {
	b, ok := before.(*corev1.Pod)
	a, ok2 := after.(*corev1.Pod)
	return ok && ok2 && a.UID == b.UID && equality.Semantic.DeepEqual(a.Labels, b.Labels) && equality.Semantic.DeepEqual(a.Annotations, b.Annotations) &&
		equality.Semantic.DeepEqual(a.Spec, b.Spec) && equality.Semantic.DeepEqual(a.Status, b.Status)
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
