// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// statusDelay is how long reports gather before the status is computed: when a router goes down,
// all of its nodes say so within a few seconds.
const statusDelay = 500 * time.Millisecond

// ConfigReconciler writes the status of BGPPeers and FelixConfigurations.
type ConfigReconciler struct {
	Client client.Client
	// Namespace of the Secrets that passwords refer to.
	Namespace string
	Events    events.EventRecorder
	Log       *slog.Logger
}

// SetupWithManager starts the reconciler with the manager.
func (r *ConfigReconciler) SetupWithManager(mgr manager.Manager) error {
	poke := pokeAfter(statusDelay)
	err := builder.ControllerManagedBy(mgr).Named("config").WithOptions(retries()).
		Watches(&v1alpha1.BGPPeer{}, poke, builder.WithPredicates(changed(specPart))).
		Watches(&v1alpha1.FelixConfiguration{}, poke, builder.WithPredicates(changed(specPart))).
		Watches(&v1alpha1.NodeStatus{}, poke, builder.WithPredicates(changed(sessionsPart))).
		Watches(&corev1.Node{}, poke, builder.WithPredicates(changed(nodePart))).
		Watches(&corev1.Secret{}, poke).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up the config controller: %w", err)
	}
	return nil
}

// Reconcile computes the status of all configuration and writes what differs.
func (r *ConfigReconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	var peers v1alpha1.BGPPeerList
	var felixes v1alpha1.FelixConfigurationList
	var nodes corev1.NodeList
	var statuses v1alpha1.NodeStatusList
	for _, list := range []client.ObjectList{&peers, &felixes, &nodes, &statuses} {
		if err := r.Client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return reconcile.Result{}, fmt.Errorf("list %T: %w", list, err)
		}
	}
	var secrets corev1.SecretList
	if err := r.Client.List(ctx, &secrets, client.InNamespace(r.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return reconcile.Result{}, fmt.Errorf("list Secrets of namespace %s: %w", r.Namespace, err)
	}
	v := newView(r.Namespace, nodes.Items, statuses.Items, secrets.Items, felixes.Items)
	var errs []error
	for i := range peers.Items {
		errs = append(errs, r.writePeer(ctx, v, &peers.Items[i]))
	}
	for i := range felixes.Items {
		errs = append(errs, r.writeFelix(ctx, v, &felixes.Items[i]))
	}
	return reconcile.Result{}, unlessStopping(ctx, errors.Join(errs...))
}

func (r *ConfigReconciler) writePeer(ctx context.Context, v *view, cached *v1alpha1.BGPPeer) error {
	obj := cached.DeepCopy()
	var c condition
	obj.Status, c = v.peerStatus(cached)
	obj.Status.Conditions = cached.DeepCopy().Status.Conditions
	transition := setReady(&obj.Status.Conditions, obj.Generation, c)
	if equality.Semantic.DeepEqual(obj.Status, cached.Status) {
		return nil
	}
	return r.write(ctx, obj, cached, c, transition)
}

func (r *ConfigReconciler) writeFelix(ctx context.Context, v *view, cached *v1alpha1.FelixConfiguration) error {
	obj := cached.DeepCopy()
	c := v.felixCondition(cached)
	obj.Status.ObservedGeneration = obj.Generation
	transition := setReady(&obj.Status.Conditions, obj.Generation, c)
	if equality.Semantic.DeepEqual(obj.Status, cached.Status) {
		return nil
	}
	return r.write(ctx, obj, cached, c, transition)
}

// write writes a status, and tells of a transition by an Event and in the log.
func (r *ConfigReconciler) write(ctx context.Context, obj, cached client.Object, c condition, transition bool) error {
	if err := r.Client.Status().Patch(ctx, obj, client.MergeFrom(cached)); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return nil
		}
		return fmt.Errorf("write the status of %T %s: %w", obj, obj.GetName(), err)
	}
	if transition {
		r.Log.Info("configuration changed", "kind", fmt.Sprintf("%T", obj), "name", obj.GetName(),
			"ready", c.status, "reason", c.reason, "message", c.message)
		r.Events.Eventf(obj, nil, eventType(c.status, c.reason), c.reason, "Reconcile", "%s", note(c.message))
	}
	return nil
}
