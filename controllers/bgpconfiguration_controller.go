// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp/topology"
)

// electionDelay is how long news gather before reflectors are chosen.
const electionDelay = 100 * time.Millisecond

// reflectorPrefix begins the name of a session with a reflector in a NodeStatus.
const reflectorPrefix = "reflector/"

// BGPConfigurationReconciler chooses the route reflectors, and writes that and all else of the status of
// the BGPConfiguration. Agents follow the status: what is written here is what they do.
type BGPConfigurationReconciler struct {
	Client client.Client
	// Namespace of the Secrets that passwords refer to.
	Namespace string
	Events    events.EventRecorder
	Log       *slog.Logger
	metrics   *controllerMetrics
}

// SetupWithManager starts the reconciler with the manager.
func (r *BGPConfigurationReconciler) SetupWithManager(mgr manager.Manager) error {
	poke := pokeAfter(electionDelay)
	err := builder.ControllerManagedBy(mgr).Named("bgpconfiguration").WithOptions(retries()).
		Watches(&v1alpha1.BGPConfiguration{}, poke, builder.WithPredicates(changed(specPart))).
		Watches(&v1alpha1.NodeStatus{}, poke, builder.WithPredicates(changed(reflectorPart))).
		Watches(&corev1.Node{}, poke, builder.WithPredicates(changed(candidatePart))).
		Watches(&corev1.Secret{}, poke).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up the bgpconfiguration controller: %w", err)
	}
	return nil
}

// Reconcile looks at all nodes, and writes the status if it differs.
func (r *BGPConfigurationReconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	var configs v1alpha1.BGPConfigurationList
	var nodes corev1.NodeList
	var statuses v1alpha1.NodeStatusList
	for _, list := range []client.ObjectList{&configs, &nodes, &statuses} {
		if err := r.Client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return reconcile.Result{}, fmt.Errorf("list %T: %w", list, err)
		}
	}
	var secrets corev1.SecretList
	if err := r.Client.List(ctx, &secrets, client.InNamespace(r.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return reconcile.Result{}, fmt.Errorf("list Secrets of namespace %s: %w", r.Namespace, err)
	}
	in := topology.ElectionInput{Nodes: electionNodes(nodes.Items, statuses.Items), Now: time.Now()}
	var cached *v1alpha1.BGPConfiguration
	for i := range configs.Items {
		if configs.Items[i].Name == v1alpha1.DefaultName {
			cached = &configs.Items[i]
			in.Config, in.Status = cached.Spec, cached.Status.RouteReflection
		}
	}
	e := topology.Elect(in)
	r.metrics.observeReflectors(e.Status)
	var result reconcile.Result
	if !e.Next.IsZero() {
		result.RequeueAfter = max(time.Second, time.Until(e.Next))
	}
	if cached == nil {
		return result, unlessStopping(ctx, r.create(ctx, e.Status))
	}
	v := newView(r.Namespace, nil, nil, secrets.Items, nil)
	return result, unlessStopping(ctx, r.write(ctx, cached, e, v.bgpCondition(cached)))
}

// create makes the object if there is something to say: a small cluster needs none.
func (r *BGPConfigurationReconciler) create(ctx context.Context, s v1alpha1.RouteReflectionStatus) error {
	if s.Mesh && len(s.Reflectors) == 0 {
		return nil
	}
	obj := &v1alpha1.BGPConfiguration{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.DefaultName}}
	if err := r.Client.Create(ctx, obj); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create BGPConfiguration %s: %w", obj.Name, err)
	}
	return nil
}

func (r *BGPConfigurationReconciler) write(ctx context.Context, cached *v1alpha1.BGPConfiguration, e topology.Election, c condition) error {
	obj := cached.DeepCopy()
	obj.Status.ObservedGeneration, obj.Status.RouteReflection = obj.Generation, &e.Status
	if c.status == metav1.ConditionTrue && len(e.Problems) > 0 {
		c = condition{metav1.ConditionFalse, v1alpha1.ReasonInvalid, strings.Join(e.Problems, "; ")}
	}
	transition := setReady(&obj.Status.Conditions, obj.Generation, c)
	if equality.Semantic.DeepEqual(obj.Status, cached.Status) {
		return nil
	}
	// The election was made from this version: a later one may say that there is another leader.
	if err := r.Client.Status().Patch(ctx, obj, client.MergeFromWithOptions(cached, client.MergeFromWithOptimisticLock{})); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return nil
		}
		return fmt.Errorf("write the status of BGPConfiguration %s: %w", obj.Name, err)
	}
	if transition {
		r.Log.Info("configuration changed", "name", obj.Name, "ready", c.status, "reason", c.reason, "message", c.message)
		r.Events.Eventf(obj, nil, eventType(c.status, c.reason), c.reason, "Reconcile", "%s", note(c.message))
	}
	for _, change := range e.Changes {
		r.Log.Info("route reflection changed", "reason", change.Reason, "note", change.Note)
		r.Events.Eventf(obj, nil, corev1.EventTypeNormal, change.Reason, "Elect", "%s", note(change.Note))
	}
	return nil
}

// electionNodes is what reflectors are chosen from.
func electionNodes(nodes []corev1.Node, statuses []v1alpha1.NodeStatus) []topology.ElectionNode {
	reports := byName(statuses, func(s *v1alpha1.NodeStatus) string { return s.Name })
	out := make([]topology.ElectionNode, 0, len(nodes))
	for i := range nodes {
		n := &nodes[i]
		e := topology.ElectionNode{
			Node:  topology.Node{Name: n.Name, Labels: n.Labels},
			Ready: readiness(n) == corev1.ConditionTrue, Unschedulable: n.Spec.Unschedulable || n.DeletionTimestamp != nil,
			Unproven: slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == v1alpha1.TaintNotReady }),
		}
		for _, a := range n.Status.Addresses {
			switch ip, err := netip.ParseAddr(a.Address); {
			case err != nil || a.Type != corev1.NodeInternalIP:
			case ip.Unmap().Is4() && !e.IPv4.IsValid():
				e.IPv4 = ip.Unmap()
			case ip.Is6() && !ip.Is4In6() && !e.IPv6.IsValid():
				e.IPv6 = ip
			}
		}
		if s := reports[n.Name]; s != nil {
			e.NodesConverged, e.Reflector = int(s.Status.NodesConverged), reflectorReport(s.Status.Reflector)
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b topology.ElectionNode) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func reflectorReport(s *v1alpha1.ReflectorStatus) *topology.ReflectorReport {
	if s == nil {
		return nil
	}
	out := &topology.ReflectorReport{Converged: int(s.ClientsConverged), Problem: s.Problem}
	for _, session := range s.Sessions {
		if node, ok := strings.CutPrefix(session.Name, reflectorPrefix); ok && session.State != stateEstablished {
			m := topology.Missed{Node: node, Since: time.Now()}
			if session.Since != nil {
				m.Since = session.Since.Time
			}
			out.Missing = append(out.Missing, m)
		}
	}
	return out
}

// candidatePart is what decides on whether a node may reflect.
func candidatePart(obj any) any {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return nil
	}
	return []any{n.UID, n.Labels, readiness(n), n.Spec.Unschedulable, n.Spec.Taints, n.Status.Addresses, n.DeletionTimestamp != nil}
}

// reflectorPart is what a node says of its reflector and of the mesh.
func reflectorPart(obj any) any {
	s, ok := obj.(*v1alpha1.NodeStatus)
	if !ok {
		return nil
	}
	return []any{s.UID, s.Status.NodesConverged, reflectorReportPart(s.Status.Reflector)}
}

// reflectorReportPart leaves out what changes with every route.
func reflectorReportPart(s *v1alpha1.ReflectorStatus) any {
	if s == nil {
		return nil
	}
	out := []any{s.ClientsConverged, s.Problem}
	for _, session := range s.Sessions {
		out = append(out, session.Name, session.State)
	}
	return out
}
