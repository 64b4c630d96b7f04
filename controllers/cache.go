// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// peerPrefix begins the name of a session with a BGPPeer in a NodeStatus.
const peerPrefix = "peer/"

// trimNode keeps the labels, the taints, the addresses, whether the node is ready and schedulable, and what
// is said of its network.
func trimNode(obj any) (any, error) {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	conditions := slices.DeleteFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type != corev1.NodeReady && c.Type != corev1.NodeNetworkUnavailable
	})
	n.ManagedFields, n.Annotations = nil, nil
	n.Spec = corev1.NodeSpec{Taints: n.Spec.Taints, Unschedulable: n.Spec.Unschedulable}
	n.Status = corev1.NodeStatus{Conditions: conditions, Addresses: n.Status.Addresses}
	return n, nil
}

// trimNodeStatus keeps the blocks, the sessions with BGPPeers, and a reflector's with others.
func trimNodeStatus(obj any) (any, error) {
	s, ok := obj.(*v1alpha1.NodeStatus)
	if !ok {
		return obj, nil
	}
	s.ManagedFields = nil
	s.Status = v1alpha1.NodeStatusStatus{
		Blocks:         s.Status.Blocks,
		PodNetworkIPs:  s.Status.PodNetworkIPs,
		Conditions:     s.Status.Conditions,
		NodesConverged: s.Status.NodesConverged,
		Reflector:      s.Status.Reflector,
		Sessions: slices.DeleteFunc(s.Status.Sessions, func(b v1alpha1.BGPSessionStatus) bool {
			return !strings.HasPrefix(b.Name, peerPrefix)
		}),
	}
	if r := s.Status.Reflector; r != nil {
		r.Sessions = slices.DeleteFunc(r.Sessions, func(b v1alpha1.BGPSessionStatus) bool {
			return !strings.HasPrefix(b.Name, peerPrefix) && !strings.HasPrefix(b.Name, reflectorPrefix)
		})
	}
	return s, nil
}

// trimSecret keeps which keys have a value, and no value.
func trimSecret(obj any) (any, error) {
	s, ok := obj.(*corev1.Secret)
	if !ok {
		return obj, nil
	}
	s.ManagedFields, s.Annotations = nil, nil
	s.StringData = nil
	for k, v := range s.Data {
		s.Data[k] = v[:0:0]
		if len(v) > 0 {
			s.Data[k] = []byte{'*'}
		}
	}
	return s, nil
}

// everything is the one key of a reconciler that looks at everything at once.
var everything = reconcile.Request{}

// pokeAfter asks for a look at everything after the delay; events that come in between ask for the
// same one.
func pokeAfter(delay time.Duration) handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	poke := func(q queue) { q.AddAfter(everything, delay) }
	return handler.Funcs{
		CreateFunc:  func(_ context.Context, _ event.CreateEvent, q queue) { poke(q) },
		UpdateFunc:  func(_ context.Context, _ event.UpdateEvent, q queue) { poke(q) },
		DeleteFunc:  func(_ context.Context, _ event.DeleteEvent, q queue) { poke(q) },
		GenericFunc: func(_ context.Context, _ event.GenericEvent, q queue) { poke(q) },
	}
}

// retries are how a reconciler tries again what failed: soon at first, and never less often than
// every half minute.
func retries() controller.Options {
	return controller.Options{
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](planDelay, 30*time.Second),
	}
}

// unlessStopping drops the error of work that was cut short because the process ends.
func unlessStopping(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return nil
	}
	return err
}

// changed lets updates pass whose part differs. A kubelet updates its Node every few minutes, an
// agent its NodeStatus every few seconds, and most of that is not of interest here.
func changed(part func(obj any) any) predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return !reflect.DeepEqual(part(e.ObjectOld), part(e.ObjectNew))
	}}
}

func nodePart(obj any) any {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return nil
	}
	return []any{n.UID, n.Labels, readiness(n)}
}

// networkPart is what NodeReconciler writes, so that what others make of it is put right.
func networkPart(obj any) any {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return nil
	}
	_, c := networkCondition(n.Status.Conditions)
	return []any{n.UID, n.Spec.Taints, c.Status, c.Reason}
}

// provenPart is what an agent says of its node's network.
func provenPart(obj any) any {
	s, ok := obj.(*v1alpha1.NodeStatus)
	if !ok {
		return nil
	}
	part := []any{s.UID, stale(s), apimeta.IsStatusConditionTrue(s.Status.Conditions, v1alpha1.ConditionReady)}
	if proven := apimeta.FindStatusCondition(s.Status.Conditions, v1alpha1.ConditionPathsProven); proven != nil {
		part = append(part, proven.Status)
	}
	return part
}

func blocksPart(obj any) any {
	s, ok := obj.(*v1alpha1.NodeStatus)
	if !ok {
		return nil
	}
	return []any{s.UID, s.Status.Blocks, s.Status.PodNetworkIPs}
}

// sessionsPart leaves out what counts while a session is up.
func sessionsPart(obj any) any {
	s, ok := obj.(*v1alpha1.NodeStatus)
	if !ok {
		return nil
	}
	sessions := slices.Clone(s.Status.Sessions)
	if r := s.Status.Reflector; r != nil {
		sessions = append(sessions, r.Sessions...)
	}
	for i := range sessions {
		sessions[i].PrefixesIn, sessions[i].PrefixesOut, sessions[i].Rejected, sessions[i].Flaps = 0, 0, 0, 0
	}
	return []any{s.UID, sessions, stale(s)}
}

// specPart is what users write.
func specPart(obj any) any {
	o, ok := obj.(metav1.Object)
	if !ok {
		return nil
	}
	return []any{o.GetUID(), o.GetGeneration(), o.GetDeletionTimestamp() != nil}
}

// readiness is the status of the node's Ready condition, or empty.
func readiness(n *corev1.Node) corev1.ConditionStatus {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status
		}
	}
	return ""
}

// stale says that the agent itself doubts what it reported.
func stale(s *v1alpha1.NodeStatus) bool {
	for _, c := range s.Status.Conditions {
		if c.Type == "Stale" {
			return c.Status == metav1.ConditionTrue
		}
	}
	return false
}

// cachesInSync is ready when a lead taken now would find everything in memory.
func cachesInSync(c cache.Cache) healthz.Checker {
	return func(req *http.Request) error {
		ctx, cancel := context.WithTimeout(req.Context(), time.Second)
		defer cancel()
		if !c.WaitForCacheSync(ctx) {
			return errors.New("caches are not in sync")
		}
		return nil
	}
}
