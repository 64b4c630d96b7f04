// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// How often a NodeStatus is written: soon after a change, and not more often than reportSpacing;
// jitter keeps a thousand nodes from writing at once after a change that all of them see.
const (
	reportSpacing = 2 * time.Second
	reportJitter  = time.Second
	reportRetry   = 5 * time.Second
	reportTimeout = 10 * time.Second
	// checkInterval is how often the API server is asked whether it is there.
	checkInterval = 30 * time.Second
)

// reporter writes the NodeStatus of this node, last of all and never in the way of the loop.
type reporter struct {
	client client.Client
	node   string
	log    *slog.Logger
	// reflector is what the node's route reflector says of itself.
	reflector func() *v1alpha1.ReflectorStatus
	// policy is what the enforcement of policy says of itself, with its problems.
	policy func() policyReport
	latest atomic.Pointer[Report]
	wake   chan struct{}
	// reachable says whether the last request to the API server got an answer.
	reachable atomic.Bool
	lost      time.Time // since when it has not been reachable, the last time
	lastErr   error
	// known is the object as the API server last told it, so that a report that changes nothing costs
	// no request; nil if it has to be asked.
	known *v1alpha1.NodeStatus
	asked time.Time
}

func newReporter(c client.Client, node string, reflector func() *v1alpha1.ReflectorStatus, policy func() policyReport, log *slog.Logger) *reporter {
	return &reporter{client: c, node: node, reflector: reflector, policy: policy, log: log, wake: make(chan struct{}, 1)}
}

// publish hands over a new report.
func (r *reporter) publish(report *Report) {
	r.latest.Store(report)
	r.poke()
}

// poke asks for a report to be written.
func (r *reporter) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run writes until ctx ends.
func (r *reporter) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := r.write(ctx); err != nil {
			pause(ctx, reportRetry+rand.N(reportRetry), nil)
			continue
		}
		pause(ctx, reportSpacing+rand.N(reportJitter), nil)
		pause(ctx, checkInterval+rand.N(reportSpacing), r.wake)
	}
}

// pause ends after d, with ctx, or when somebody pokes wake.
func pause(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-wake:
	}
}

// write brings the NodeStatus up to date.
func (r *reporter) write(ctx context.Context) error {
	report := r.latest.Load()
	if report == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	err := r.writeStatus(ctx, report)
	if err != nil {
		r.known = nil
	}
	r.noteReachable(err)
	return err
}

func (r *reporter) writeStatus(ctx context.Context, report *Report) error {
	if err := r.ask(ctx); err != nil {
		return err
	}
	want := report.nodeStatus(time.Now())
	want.Reflector = r.reflector()
	r.policy().addTo(&want)
	steady(want.Paths, r.known.Status.Paths)
	conditions := slices.Clone(r.known.Status.Conditions)
	for _, c := range append(want.Conditions, r.staleCondition(report)) {
		apimeta.SetStatusCondition(&conditions, c)
	}
	want.Conditions = conditions
	if equality.Semantic.DeepEqual(want, r.known.Status) {
		return nil
	}
	ns := r.known.DeepCopy()
	ns.Status = want
	if err := r.client.Status().Update(ctx, ns); err != nil {
		return fmt.Errorf("write NodeStatus %s: %w", r.node, err)
	}
	r.known = ns
	return nil
}

// ask makes the object known, unless it was asked for lately: somebody may have deleted or changed it.
func (r *reporter) ask(ctx context.Context) error {
	now := time.Now()
	if r.known != nil && now.Sub(r.asked) < checkInterval {
		return nil
	}
	ns := &v1alpha1.NodeStatus{}
	err := r.client.Get(ctx, types.NamespacedName{Name: r.node}, ns)
	switch {
	case apierrors.IsNotFound(err):
		if ns, err = r.create(ctx); err != nil {
			return fmt.Errorf("create NodeStatus %s: %w", r.node, err)
		}
	case err != nil:
		return fmt.Errorf("read NodeStatus %s: %w", r.node, err)
	}
	r.known, r.asked = ns, now
	return nil
}

// create makes the object, owned by its Node, so that it goes when the Node goes.
func (r *reporter) create(ctx context.Context) (*v1alpha1.NodeStatus, error) {
	var node corev1.Node
	if err := r.client.Get(ctx, types.NamespacedName{Name: r.node}, &node); err != nil {
		return nil, fmt.Errorf("read its owner: %w", err)
	}
	ns := &v1alpha1.NodeStatus{ObjectMeta: metav1.ObjectMeta{
		Name: r.node,
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID,
		}},
	}}
	return ns, r.client.Create(ctx, ns)
}

// staleCondition tells whether the agent works from the copy on disk, and of the last time that the
// API server was out of reach: while it is, nobody can be told.
func (r *reporter) staleCondition(report *Report) metav1.Condition {
	c := metav1.Condition{Type: "Stale", Status: metav1.ConditionFalse, Reason: "APIServerReachable", Message: "the agent works from what the API server says"}
	switch {
	case report.FromDisk:
		c.Status, c.Reason = metav1.ConditionTrue, "CopyOnDisk"
		c.Message = "the agent works from the copy on disk: it cannot yet watch all that it needs"
	case !r.lost.IsZero():
		c.Message = "the agent works from what the API server says again; it was out of reach since " + r.lost.UTC().Format(time.RFC3339)
	}
	return c
}

// noteReachable logs what changed: that the API server is away or back, and that it refuses a write.
func (r *reporter) noteReachable(err error) {
	// Whatever the server answers, it answers: only a request without one means that it is away.
	var status apierrors.APIStatus
	ok := err == nil || errors.As(err, &status)
	was := r.reachable.Swap(ok)
	switch {
	case was && !ok:
		r.lost = time.Now()
		r.log.Warn("the API server is out of reach; going on with what it last said", "error", err)
	case !was && ok:
		r.log.Info("the API server answers")
	}
	if apierrors.IsConflict(err) {
		return // somebody was faster; the next attempt asks again
	}
	if ok && err != nil && (r.lastErr == nil || r.lastErr.Error() != err.Error()) {
		r.log.Warn("cannot write NodeStatus; trying again", "error", err)
	}
	r.lastErr = err
}
