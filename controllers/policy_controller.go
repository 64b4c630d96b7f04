// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// PolicyReconciler writes the status of policies and tiers: what of them is not obeyed, and where. The
// agents use the same compiler, so there is nobody to ask. Policies of Kubernetes have no status; what is
// wrong with them is told by an Event.
type PolicyReconciler struct {
	Client client.Client
	Events events.EventRecorder
	Log    *slog.Logger
	// served says that the API has ClusterNetworkPolicies, which are nobody's duty to install.
	served atomic.Bool
	// told is the generation of the policies of Kubernetes that an Event was about.
	told map[types.UID]int64
}

// servedInterval is how often it is asked whether the API has ClusterNetworkPolicies by now.
const servedInterval = 10 * time.Second

// SetupWithManager starts the reconciler with the manager.
func (r *PolicyReconciler) SetupWithManager(mgr manager.Manager) error {
	poke := pokeAfter(statusDelay)
	spec := builder.WithPredicates(changed(specPart))
	c, err := builder.ControllerManagedBy(mgr).Named("policy").WithOptions(retries()).
		Watches(&v1alpha1.NetworkPolicy{}, poke, spec).
		Watches(&v1alpha1.GlobalNetworkPolicy{}, poke, spec).
		Watches(&v1alpha1.Tier{}, poke, spec).
		Watches(&networkingv1.NetworkPolicy{}, poke, spec).
		// Which services there are is all that is asked.
		WatchesMetadata(&corev1.Service{}, poke, builder.WithPredicates(predicate.Funcs{
			UpdateFunc: func(event.UpdateEvent) bool { return false },
		})).
		Build(r)
	if err != nil {
		return fmt.Errorf("set up the policy controller: %w", err)
	}
	await := func(ctx context.Context) error { return r.awaitClusterPolicies(ctx, mgr, c) }
	if err := mgr.Add(manager.RunnableFunc(await)); err != nil {
		return fmt.Errorf("set up the watch of ClusterNetworkPolicies: %w", err)
	}
	return nil
}

// awaitClusterPolicies adds the watch of ClusterNetworkPolicies once their CRD is there.
func (r *PolicyReconciler) awaitClusterPolicies(ctx context.Context, mgr manager.Manager, c controller.Controller) error {
	kind := schema.GroupKind{Group: policyv1alpha2.GroupName, Kind: "ClusterNetworkPolicy"}
	ticker := time.NewTicker(servedInterval)
	defer ticker.Stop()
	for {
		_, err := mgr.GetRESTMapper().RESTMapping(kind, policyv1alpha2.GroupVersion.Version)
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
	r.served.Store(true)
	err := c.Watch(source.Kind[client.Object](mgr.GetCache(), &policyv1alpha2.ClusterNetworkPolicy{}, pokeAfter(statusDelay), changed(specPart)))
	if err != nil {
		return fmt.Errorf("watch ClusterNetworkPolicies: %w", err)
	}
	r.Log.Info("the API has ClusterNetworkPolicies")
	return nil
}

// policyLists is all that is looked at.
type policyLists struct {
	policies v1alpha1.NetworkPolicyList
	globals  v1alpha1.GlobalNetworkPolicyList
	tiers    v1alpha1.TierList
	k8s      networkingv1.NetworkPolicyList
	services metav1.PartialObjectMetadataList
	clusters policyv1alpha2.ClusterNetworkPolicyList
}

func (r *PolicyReconciler) list(ctx context.Context) (*policyLists, error) {
	var l policyLists
	l.services.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ServiceList"))
	lists := []client.ObjectList{&l.policies, &l.globals, &l.tiers, &l.k8s, &l.services}
	if r.served.Load() {
		lists = append(lists, &l.clusters)
	}
	for _, list := range lists {
		if err := r.Client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return nil, fmt.Errorf("list %T: %w", list, err)
		}
	}
	return &l, nil
}

// Reconcile computes the status of all policies and tiers, and writes what differs.
func (r *PolicyReconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	l, err := r.list(ctx)
	if err != nil {
		return reconcile.Result{}, unlessStopping(ctx, err)
	}
	v := newPolicyView(l)
	var errs []error
	for i := range l.policies.Items {
		p := &l.policies.Items[i]
		errs = append(errs, r.writePolicy(ctx, p, p.DeepCopy(), v.condition(ourID(p), &p.Spec)))
	}
	for i := range l.globals.Items {
		p := &l.globals.Items[i]
		errs = append(errs, r.writePolicy(ctx, p, p.DeepCopy(), v.condition(globalID(p), &p.Spec.PolicySpec)))
	}
	for i := range l.clusters.Items {
		errs = append(errs, r.writeCluster(ctx, &l.clusters.Items[i], v))
	}
	for i := range l.tiers.Items {
		errs = append(errs, r.writeTier(ctx, &l.tiers.Items[i], v))
	}
	r.tell(v, l.k8s.Items)
	return reconcile.Result{}, unlessStopping(ctx, errors.Join(errs...))
}

// writePolicy changes obj, which is a copy of cached.
func (r *PolicyReconciler) writePolicy(ctx context.Context, cached, obj client.Object, c condition) error {
	status, before := policyStatus(obj), policyStatus(cached)
	status.ObservedGeneration = obj.GetGeneration()
	transition := setReady(&status.Conditions, obj.GetGeneration(), c)
	if equality.Semantic.DeepEqual(status, before) {
		return nil
	}
	return r.write(ctx, obj, cached, c, transition)
}

func policyStatus(obj client.Object) *v1alpha1.PolicyStatus {
	switch o := obj.(type) {
	case *v1alpha1.NetworkPolicy:
		return &o.Status
	case *v1alpha1.GlobalNetworkPolicy:
		return &o.Status
	}
	return &v1alpha1.PolicyStatus{}
}

func (r *PolicyReconciler) writeCluster(ctx context.Context, cached *policyv1alpha2.ClusterNetworkPolicy, v *policyView) error {
	obj := cached.DeepCopy()
	c := v.clusterCondition(cached)
	transition := setReady(&obj.Status.Conditions, obj.Generation, c)
	if equality.Semantic.DeepEqual(obj.Status, cached.Status) {
		return nil
	}
	return r.write(ctx, obj, cached, c, transition)
}

func (r *PolicyReconciler) writeTier(ctx context.Context, cached *v1alpha1.Tier, v *policyView) error {
	obj := cached.DeepCopy()
	obj.Status.ObservedGeneration = obj.Generation
	obj.Status.Policies = int32(v.inTier[obj.Name])
	c := condition{metav1.ConditionTrue, v1alpha1.ReasonAccepted, "in force"}
	transition := setReady(&obj.Status.Conditions, obj.Generation, c)
	if equality.Semantic.DeepEqual(obj.Status, cached.Status) {
		return nil
	}
	return r.write(ctx, obj, cached, c, transition)
}

// write writes a status, and tells of a transition by an Event and in the log.
func (r *PolicyReconciler) write(ctx context.Context, obj, cached client.Object, c condition, transition bool) error {
	if err := r.Client.Status().Patch(ctx, obj, client.MergeFrom(cached)); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return nil
		}
		return fmt.Errorf("write the status of %T %s: %w", obj, client.ObjectKeyFromObject(obj), err)
	}
	if transition {
		r.Log.Info("policy changed", "kind", fmt.Sprintf("%T", obj), "name", client.ObjectKeyFromObject(obj),
			"ready", c.status, "reason", c.reason, "message", c.message)
		r.Events.Eventf(obj, nil, eventType(c.status, c.reason), c.reason, "Reconcile", "%s", note(c.message))
	}
	return nil
}

// tell makes an Event for each policy of Kubernetes that has a mistake, once for each version of it.
func (r *PolicyReconciler) tell(v *policyView, policies []networkingv1.NetworkPolicy) {
	told := map[types.UID]int64{}
	for i := range policies {
		p := &policies[i]
		message := v.mistakes(k8sID(p))
		if message == "" {
			continue
		}
		told[p.UID] = p.Generation
		if r.told[p.UID] != p.Generation {
			r.Log.Info("policy changed", "kind", "NetworkPolicy", "name", client.ObjectKeyFromObject(p), "message", message)
			r.Events.Eventf(p, nil, corev1.EventTypeWarning, v1alpha1.ReasonInvalid, "Reconcile", "%s", note(message+"; the policy allows nothing in that direction"))
		}
	}
	r.told = told
}
