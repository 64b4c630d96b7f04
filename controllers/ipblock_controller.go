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
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/controllers/plan"
)

const (
	// planDelay is how long events gather before a plan is made: a thousand nodes that join within
	// a second cost about ten plans.
	planDelay = 100 * time.Millisecond
	// usageInterval is how often a pool's status is written at most if nothing but the number of
	// addresses in use changed.
	usageInterval = 5 * time.Second
	// maxFailures ends an apply early: the API server is away, and the rest would fail, too.
	maxFailures = 10
	// maxLabel is the longest value of a label; names of nodes and pools may be longer.
	maxLabel = 63
	// maxNote is the longest note of an Event.
	maxNote = 1024
)

// IPBlockReconciler makes plans and applies them, and writes the status of IPPools.
type IPBlockReconciler struct {
	Client client.Client
	// Live reads past the cache: before something is deleted, the API server itself is asked.
	Live   client.Reader
	Events events.EventRecorder
	Log    *slog.Logger

	metrics *controllerMetrics
	// Owned by Reconcile, which runs once at a time.
	usageWritten map[string]time.Time      // by pool
	problems     map[plan.Problem]struct{} // of the last plan
}

// SetupWithManager starts the reconciler with the manager.
func (r *IPBlockReconciler) SetupWithManager(mgr manager.Manager) error {
	poke := pokeAfter(planDelay)
	err := builder.ControllerManagedBy(mgr).Named("ipblock").WithOptions(retries()).
		Watches(&v1alpha1.IPPool{}, poke, builder.WithPredicates(changed(specPart))).
		Watches(&v1alpha1.IPBlock{}, poke, builder.WithPredicates(changed(specPart))).
		Watches(&v1alpha1.NodeStatus{}, poke, builder.WithPredicates(changed(blocksPart))).
		Watches(&corev1.Node{}, poke, builder.WithPredicates(changed(nodePart))).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up the ipblock controller: %w", err)
	}
	return nil
}

// observed is what the plan is made from, and the objects to write to.
type observed struct {
	in     plan.Input
	pools  map[string]*v1alpha1.IPPool
	blocks map[string]*v1alpha1.IPBlock
	nodes  map[string]*corev1.Node
}

// Reconcile makes one plan and applies it. Failures are joined; what could be done is done.
func (r *IPBlockReconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	o, err := r.observe(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	p := plan.Compute(o.in)
	again, applyErr := r.apply(ctx, o, p)
	wait, reportErr := r.report(ctx, o, p)
	if again {
		wait = planDelay
	}
	return reconcile.Result{RequeueAfter: wait}, unlessStopping(ctx, errors.Join(applyErr, reportErr))
}

// observe lists everything. The objects are those of the cache: to be read only.
func (r *IPBlockReconciler) observe(ctx context.Context) (observed, error) {
	var pools v1alpha1.IPPoolList
	var blocks v1alpha1.IPBlockList
	var nodes corev1.NodeList
	var statuses v1alpha1.NodeStatusList
	for _, list := range []client.ObjectList{&pools, &blocks, &nodes, &statuses} {
		if err := r.Client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return observed{}, fmt.Errorf("list %T: %w", list, err)
		}
	}
	o := observed{
		in:     plan.Input{Pools: pools.Items, Blocks: blocks.Items, Statuses: statuses.Items},
		pools:  byName(pools.Items, func(p *v1alpha1.IPPool) string { return p.Name }),
		blocks: byName(blocks.Items, func(b *v1alpha1.IPBlock) string { return b.Name }),
		nodes:  byName(nodes.Items, func(n *corev1.Node) string { return n.Name }),
	}
	for i := range nodes.Items {
		o.in.Nodes = append(o.in.Nodes, plan.Node{Name: nodes.Items[i].Name, Labels: nodes.Items[i].Labels})
	}
	return o, nil
}

func byName[T any](items []T, name func(*T) string) map[string]*T {
	m := make(map[string]*T, len(items))
	for i := range items {
		m[name(&items[i])] = &items[i]
	}
	return m
}

// apply writes the plan. again says that somebody else wrote first: then the rest of the plan is
// not worth applying, since it was made from what is no longer so.
func (r *IPBlockReconciler) apply(ctx context.Context, o observed, p plan.Plan) (again bool, err error) {
	live := liveState{reader: r.Live}
	var errs []error
	for _, write := range r.writes(o, p, &live) {
		err := write(ctx)
		switch {
		case err == nil:
		case apierrors.IsAlreadyExists(err), apierrors.IsConflict(err):
			r.Log.Info("another writer was first, planning again", "reason", err.Error())
			return true, errors.Join(errs...)
		default:
			errs = append(errs, err)
		}
		if len(errs) >= maxFailures {
			break
		}
	}
	return false, errors.Join(errs...)
}

// writes are the plan's writes in their order.
func (r *IPBlockReconciler) writes(o observed, p plan.Plan, live *liveState) []func(context.Context) error {
	var writes []func(context.Context) error
	for _, b := range p.Create {
		writes = append(writes, func(ctx context.Context) error { return r.create(ctx, b) })
	}
	for _, name := range p.Release {
		writes = append(writes, func(ctx context.Context) error { return r.release(ctx, o.blocks[name]) })
	}
	for _, d := range p.Delete {
		writes = append(writes, func(ctx context.Context) error { return r.delete(ctx, live, o.blocks[d.Name], d) })
	}
	for _, name := range p.Forget {
		writes = append(writes, func(ctx context.Context) error { return r.forget(ctx, live, name) })
	}
	return writes
}

func (r *IPBlockReconciler) create(ctx context.Context, b plan.Block) error {
	obj := &v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{Name: plan.BlockName(b.CIDR), Labels: map[string]string{}},
		Spec:       v1alpha1.IPBlockSpec{CIDR: b.CIDR.String(), Pool: b.Pool, Node: b.Node, Primary: b.Primary},
	}
	for key, value := range map[string]string{v1alpha1.LabelPool: b.Pool, v1alpha1.LabelNode: b.Node} {
		if len(value) <= maxLabel {
			obj.Labels[key] = value
		}
	}
	if err := r.Client.Create(ctx, obj); err != nil {
		return fmt.Errorf("create IPBlock %s for node %s: %w", obj.Name, b.Node, err)
	}
	r.metrics.writes.WithLabelValues("create").Inc()
	r.Log.Info("block given to node", "block", b.CIDR, "pool", b.Pool, "node", b.Node, "primary", b.Primary)
	return nil
}

func (r *IPBlockReconciler) release(ctx context.Context, cached *v1alpha1.IPBlock) error {
	if cached == nil {
		return nil
	}
	obj := cached.DeepCopy()
	obj.Spec.Releasing = true
	patch := client.MergeFromWithOptions(cached, client.MergeFromWithOptimisticLock{})
	if err := r.Client.Patch(ctx, obj, patch); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("mark IPBlock %s as releasing: %w", obj.Name, err)
	}
	r.metrics.writes.WithLabelValues("release").Inc()
	r.Log.Info("block asked back from node", "block", obj.Spec.CIDR, "pool", obj.Spec.Pool, "node", obj.Spec.Node)
	return nil
}

func (r *IPBlockReconciler) delete(ctx context.Context, live *liveState, obj *v1alpha1.IPBlock, d plan.Deletion) error {
	if obj == nil {
		return nil
	}
	free, err := live.gaveBack(ctx, d)
	if err != nil || !free {
		return err
	}
	err = r.Client.Delete(ctx, obj.DeepCopy(), client.Preconditions{UID: &obj.UID, ResourceVersion: &obj.ResourceVersion})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete IPBlock %s: %w", obj.Name, err)
	}
	r.metrics.writes.WithLabelValues("delete").Inc()
	r.Log.Info("block taken back", "block", obj.Spec.CIDR, "pool", obj.Spec.Pool, "node", obj.Spec.Node, "nodeGone", d.NodeGone)
	return nil
}

func (r *IPBlockReconciler) forget(ctx context.Context, live *liveState, name string) error {
	gone, err := live.nodeGone(ctx, name)
	if err != nil || !gone {
		return err
	}
	err = r.Client.Delete(ctx, &v1alpha1.NodeStatus{ObjectMeta: metav1.ObjectMeta{Name: name}})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete NodeStatus %s: %w", name, err)
	}
	return nil
}

// liveState asks the API server itself before a deletion. The caches of different kinds are not of
// the same moment: a replica that has just become leader may know a block and not yet its node.
type liveState struct {
	reader client.Reader
	gone   map[string]bool // asked already, in this apply
}

func (l *liveState) nodeGone(ctx context.Context, name string) (bool, error) {
	if gone, ok := l.gone[name]; ok {
		return gone, nil
	}
	err := l.reader.Get(ctx, client.ObjectKey{Name: name}, &corev1.Node{})
	if client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("get Node %s: %w", name, err)
	}
	if l.gone == nil {
		l.gone = map[string]bool{}
	}
	l.gone[name] = err != nil
	return err != nil, nil
}

// gaveBack says whether nobody holds the block any more.
func (l *liveState) gaveBack(ctx context.Context, d plan.Deletion) (bool, error) {
	if d.NodeGone {
		return l.nodeGone(ctx, d.Node)
	}
	var s v1alpha1.NodeStatus
	if err := l.reader.Get(ctx, client.ObjectKey{Name: d.Node}, &s); err != nil {
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return false, fmt.Errorf("get NodeStatus %s: %w", d.Node, err)
	}
	return !slices.ContainsFunc(s.Status.Blocks, func(b v1alpha1.BlockStatus) bool { return b.Name == d.Name }), nil
}

// report writes the pools' status, sets the metrics, and tells of new problems once. It returns
// after what time to look again because a write was put off, or 0.
func (r *IPBlockReconciler) report(ctx context.Context, o observed, p plan.Plan) (time.Duration, error) {
	r.metrics.observe(p)
	problems := make(map[plan.Problem]struct{}, len(p.Problems))
	for _, problem := range p.Problems {
		problems[problem] = struct{}{}
		if _, told := r.problems[problem]; told {
			continue
		}
		r.Log.Warn("problem with a node's blocks", "node", problem.Node, "reason", problem.Reason, "message", problem.Message)
		if n := o.nodes[problem.Node]; n != nil {
			r.Events.Eventf(n, nil, corev1.EventTypeWarning, problem.Reason, "GiveBlocks", "%s", note(problem.Message))
		}
	}
	r.problems = problems

	var wait time.Duration
	var errs []error
	for _, s := range p.Pools {
		w, err := r.writePool(ctx, o.pools[s.Name], s)
		errs = append(errs, err)
		if w > 0 && (wait == 0 || w < wait) {
			wait = w
		}
	}
	return wait, errors.Join(errs...)
}

func (r *IPBlockReconciler) writePool(ctx context.Context, cached *v1alpha1.IPPool, s plan.PoolState) (time.Duration, error) {
	obj := cached.DeepCopy()
	obj.Status.ObservedGeneration = obj.Generation
	obj.Status.Blocks, obj.Status.BlockCapacity = s.Blocks, s.Capacity
	event := setReady(&obj.Status.Conditions, obj.Generation, condition{status: conditionStatus(s.Ready), reason: s.Reason, message: s.Message})
	now := time.Now()
	if equality.Semantic.DeepEqual(obj.Status, cached.Status) {
		if obj.Status.AddressesInUse == s.InUse {
			return 0, nil
		}
		if wait := usageInterval - now.Sub(r.usageWritten[s.Name]); wait > 0 {
			return wait, nil
		}
	}
	obj.Status.AddressesInUse = s.InUse
	if err := r.Client.Status().Patch(ctx, obj, client.MergeFrom(cached)); client.IgnoreNotFound(err) != nil {
		return 0, fmt.Errorf("write the status of IPPool %s: %w", s.Name, err)
	}
	if r.usageWritten == nil {
		r.usageWritten = map[string]time.Time{}
	}
	r.usageWritten[s.Name] = now
	if event {
		r.Log.Info("pool changed", "pool", s.Name, "ready", s.Ready, "reason", s.Reason, "message", s.Message)
		r.Events.Eventf(obj, nil, eventType(conditionStatus(s.Ready), s.Reason), s.Reason, "GiveBlocks", "%s", note(s.Message))
	}
	return 0, nil
}
