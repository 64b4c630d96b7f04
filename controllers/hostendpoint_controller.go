// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// HostEndpointReconciler writes the status of HostEndpoints: whether the node exists, and which of several for
// one device counts.
type HostEndpointReconciler struct {
	Client client.Client
	Events events.EventRecorder
	Log    *slog.Logger
}

// SetupWithManager starts the reconciler with the manager.
func (r *HostEndpointReconciler) SetupWithManager(mgr manager.Manager) error {
	poke := pokeAfter(statusDelay)
	err := builder.ControllerManagedBy(mgr).Named("hostendpoint").WithOptions(retries()).
		Watches(&v1alpha1.HostEndpoint{}, poke, builder.WithPredicates(changed(specPart))).
		// Which nodes there are is all that is asked.
		Watches(&corev1.Node{}, poke, builder.WithPredicates(predicate.Funcs{
			UpdateFunc: func(event.UpdateEvent) bool { return false },
		})).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up the host endpoint controller: %w", err)
	}
	return nil
}

// hostDevice is what one HostEndpoint can be for.
type hostDevice struct{ node, device string }

// Reconcile computes the status of all HostEndpoints, and writes what differs.
func (r *HostEndpointReconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	var hosts v1alpha1.HostEndpointList
	var nodes corev1.NodeList
	for _, list := range []client.ObjectList{&hosts, &nodes} {
		if err := r.Client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return reconcile.Result{}, unlessStopping(ctx, fmt.Errorf("list %T: %w", list, err))
		}
	}
	known := map[string]bool{}
	for i := range nodes.Items {
		known[nodes.Items[i].Name] = true
	}
	first := map[hostDevice]string{}
	for i := range hosts.Items {
		h := &hosts.Items[i]
		at := hostDevice{h.Spec.Node, h.Spec.InterfaceName}
		if name, taken := first[at]; !taken || strings.Compare(h.Name, name) < 0 {
			first[at] = h.Name
		}
	}
	var errs []error
	for i := range hosts.Items {
		h := &hosts.Items[i]
		errs = append(errs, r.write(ctx, h, hostCondition(h, known[h.Spec.Node], first[hostDevice{h.Spec.Node, h.Spec.InterfaceName}])))
	}
	return reconcile.Result{}, unlessStopping(ctx, errors.Join(errs...))
}

func hostCondition(h *v1alpha1.HostEndpoint, known bool, first string) condition {
	switch {
	case !known:
		return condition{metav1.ConditionFalse, v1alpha1.ReasonMissing, fmt.Sprintf("there is no Node %q", h.Spec.Node)}
	case first != h.Name:
		return condition{metav1.ConditionFalse, v1alpha1.ReasonOverlap, fmt.Sprintf("HostEndpoint %s is for the same device of the same node, and counts", first)}
	}
	return condition{metav1.ConditionTrue, v1alpha1.ReasonAccepted, "in force"}
}

func (r *HostEndpointReconciler) write(ctx context.Context, cached *v1alpha1.HostEndpoint, c condition) error {
	obj := cached.DeepCopy()
	obj.Status.ObservedGeneration = obj.Generation
	transition := setReady(&obj.Status.Conditions, obj.Generation, c)
	if equality.Semantic.DeepEqual(obj.Status, cached.Status) {
		return nil
	}
	if err := r.Client.Status().Patch(ctx, obj, client.MergeFrom(cached)); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return nil
		}
		return fmt.Errorf("write the status of HostEndpoint %s: %w", obj.Name, err)
	}
	if transition {
		r.Log.Info("host endpoint changed", "name", obj.Name, "ready", c.status, "reason", c.reason, "message", c.message)
		r.Events.Eventf(obj, nil, eventType(c.status, c.reason), c.reason, "Reconcile", "%s", note(c.message))
	}
	return nil
}
