// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// networkDelay is how long reports gather: a node that waits for its first pods should not wait for us.
const networkDelay = 100 * time.Millisecond

// Reasons of the Node condition NetworkUnavailable. They are also the memory of whether a node has been
// proven before, which survives the controller and needs no object of its own.
const (
	reasonNotProvenYet = "HeliographNotProvenYet"
	reasonProven       = "HeliographPathsProven"
	reasonLost         = "HeliographPathsLost"
)

// NodeReconciler keeps pods from a node that has not shown yet that its network works, by a taint, and
// tells by the condition NetworkUnavailable if it later stops working. It never puts the taint on a node
// that had been proven: pods that run there must not be harmed by a fault of the network around them.
type NodeReconciler struct {
	Client client.Client
	Events events.EventRecorder
	Log    *slog.Logger
}

// SetupWithManager starts the reconciler with the manager.
func (r *NodeReconciler) SetupWithManager(mgr manager.Manager) error {
	poke := pokeAfter(networkDelay)
	err := builder.ControllerManagedBy(mgr).Named("node").WithOptions(retries()).
		Watches(&corev1.Node{}, poke, builder.WithPredicates(changed(networkPart))).
		Watches(&v1alpha1.NodeStatus{}, poke, builder.WithPredicates(changed(provenPart))).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up the node controller: %w", err)
	}
	return nil
}

// Reconcile looks at all nodes and writes what differs.
func (r *NodeReconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	var nodes corev1.NodeList
	var statuses v1alpha1.NodeStatusList
	for _, list := range []client.ObjectList{&nodes, &statuses} {
		if err := r.Client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return reconcile.Result{}, fmt.Errorf("list %T: %w", list, err)
		}
	}
	reports := make(map[string]*v1alpha1.NodeStatus, len(statuses.Items))
	for i := range statuses.Items {
		reports[statuses.Items[i].Name] = &statuses.Items[i]
	}
	var errs []error
	for i := range nodes.Items {
		n := &nodes.Items[i]
		errs = append(errs, r.bring(ctx, n, judgeNetwork(n, reports[n.Name])))
	}
	return reconcile.Result{}, unlessStopping(ctx, errors.Join(errs...))
}

// network is what a Node should say of its network.
type network struct {
	keep    bool // whatever it says now: there is no news
	tainted bool
	status  corev1.ConditionStatus // of NetworkUnavailable
	reason  string
	message string
}

// judgeNetwork decides from what the agent reports, and from what the Node said before. An agent that is
// gone, or doubts itself, says nothing: the kernel goes on forwarding without it.
func judgeNetwork(n *corev1.Node, s *v1alpha1.NodeStatus) network {
	_, before := networkCondition(n.Status.Conditions)
	wasProven := before.Reason == reasonProven || before.Reason == reasonLost
	var proven *metav1.Condition
	if s != nil && !stale(s) {
		proven = apimeta.FindStatusCondition(s.Status.Conditions, v1alpha1.ConditionPathsProven)
	}
	switch {
	case proven != nil && proven.Status == metav1.ConditionTrue && apimeta.IsStatusConditionTrue(s.Status.Conditions, v1alpha1.ConditionReady):
		return network{status: corev1.ConditionFalse, reason: reasonProven, message: proven.Message}
	case wasProven && (proven == nil || proven.Status != metav1.ConditionFalse):
		return network{keep: true}
	case wasProven:
		return network{status: corev1.ConditionTrue, reason: reasonLost, message: proven.Message}
	case proven == nil:
		return network{tainted: true, status: corev1.ConditionTrue, reason: reasonNotProvenYet, message: "the agent has not reported yet"}
	}
	return network{tainted: true, status: corev1.ConditionTrue, reason: reasonNotProvenYet, message: "the agent is not in sync, or: " + proven.Message}
}

func networkCondition(conditions []corev1.NodeCondition) (int, corev1.NodeCondition) {
	i := slices.IndexFunc(conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeNetworkUnavailable })
	if i < 0 {
		return i, corev1.NodeCondition{}
	}
	return i, conditions[i]
}

// bring makes a Node say what it should. The condition comes first where the taint goes: otherwise a
// crash between the two would taint the node again.
func (r *NodeReconciler) bring(ctx context.Context, cached *corev1.Node, want network) error {
	if want.keep {
		return nil
	}
	n := cached.DeepCopy() // each write leaves in it what the API server made of it
	if !want.tainted {
		return errors.Join(r.setCondition(ctx, n, want), r.setTaint(ctx, n, false))
	}
	return errors.Join(r.setTaint(ctx, n, true), r.setCondition(ctx, n, want))
}

func (r *NodeReconciler) setCondition(ctx context.Context, n *corev1.Node, want network) error {
	i, have := networkCondition(n.Status.Conditions)
	if have.Status == want.status && have.Reason == want.reason {
		return nil
	}
	before, now := n.DeepCopy(), metav1.Now()
	c := corev1.NodeCondition{
		Type: corev1.NodeNetworkUnavailable, Status: want.status, Reason: want.reason, Message: want.message,
		LastTransitionTime: now, LastHeartbeatTime: now,
	}
	if have.Status == want.status {
		c.LastTransitionTime = have.LastTransitionTime
	}
	if i >= 0 {
		n.Status.Conditions[i] = c
	} else {
		n.Status.Conditions = append(n.Status.Conditions, c)
	}
	// Strategic: by type, so that the conditions that our cache does not keep are left alone.
	if err := r.Client.Status().Patch(ctx, n, client.StrategicMergeFrom(before)); err != nil {
		return ignoreGone(err, "write the condition NetworkUnavailable of Node %s", n.Name)
	}
	r.Log.Info("node network changed", "node", n.Name, "unavailable", want.status, "reason", want.reason, "message", want.message)
	kind := corev1.EventTypeNormal
	if want.status == corev1.ConditionTrue {
		kind = corev1.EventTypeWarning
	}
	r.Events.Eventf(n, nil, kind, want.reason, "Reconcile", "%s", note(want.message))
	return nil
}

// setTaint changes our taint alone. The patch names the version that it was made from: a list of taints
// is replaced as a whole, and somebody else may have changed it.
func (r *NodeReconciler) setTaint(ctx context.Context, n *corev1.Node, tainted bool) error {
	ours := func(t corev1.Taint) bool { return t.Key == v1alpha1.TaintNotReady }
	if slices.ContainsFunc(n.Spec.Taints, ours) == tainted {
		return nil
	}
	before := n.DeepCopy()
	if tainted {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: v1alpha1.TaintNotReady, Effect: corev1.TaintEffectNoSchedule})
	} else {
		n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, ours)
	}
	err := r.Client.Patch(ctx, n, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	return ignoreGone(err, "change the taint %s of Node %s", v1alpha1.TaintNotReady, n.Name)
}

// ignoreGone is nil if the object is gone, and says otherwise what failed.
func ignoreGone(err error, format string, args ...any) error {
	if client.IgnoreNotFound(err) == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
}
