// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
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
	latest atomic.Pointer[Report]
	wake   chan struct{}
	// reachable says whether the last request to the API server got an answer.
	reachable atomic.Bool
	lost      time.Time // since when it has not been reachable
}

func newReporter(c client.Client, node string, log *slog.Logger) *reporter {
	return &reporter{client: c, node: node, log: log, wake: make(chan struct{}, 1)}
}

// publish hands over a new report.
func (r *reporter) publish(report *Report) {
	r.latest.Store(report)
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
	r.noteReachable(err)
	return err
}

func (r *reporter) writeStatus(ctx context.Context, report *Report) error {
	var ns v1alpha1.NodeStatus
	err := r.client.Get(ctx, types.NamespacedName{Name: r.node}, &ns)
	if apierrors.IsNotFound(err) {
		ns, err = r.create(ctx)
	}
	if err != nil {
		return fmt.Errorf("read NodeStatus %s: %w", r.node, err)
	}
	want := report.nodeStatus()
	conditions := ns.Status.Conditions
	for _, c := range append(want.Conditions, r.staleCondition()) {
		apimeta.SetStatusCondition(&conditions, c)
	}
	want.Conditions = conditions
	if equality.Semantic.DeepEqual(want, ns.Status) {
		return nil
	}
	ns.Status = want
	if err := r.client.Status().Update(ctx, &ns); err != nil {
		return fmt.Errorf("write NodeStatus %s: %w", r.node, err)
	}
	return nil
}

// create makes the object, owned by its Node, so that it goes when the Node goes.
func (r *reporter) create(ctx context.Context) (v1alpha1.NodeStatus, error) {
	var node corev1.Node
	if err := r.client.Get(ctx, types.NamespacedName{Name: r.node}, &node); err != nil {
		return v1alpha1.NodeStatus{}, err
	}
	ns := v1alpha1.NodeStatus{ObjectMeta: metav1.ObjectMeta{
		Name: r.node,
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID,
		}},
	}}
	err := r.client.Create(ctx, &ns)
	return ns, err
}

// staleCondition tells of the last time that the API server was out of reach: while it is, nobody
// can be told.
func (r *reporter) staleCondition() metav1.Condition {
	c := metav1.Condition{Type: "Stale", Status: metav1.ConditionFalse, Reason: "APIServerReachable", Message: "the agent works from what the API server says"}
	if !r.lost.IsZero() {
		c.Message = "the agent works from what the API server says again; it was out of reach since " + r.lost.UTC().Format(time.RFC3339)
	}
	return c
}

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
	case err != nil && ok && !apierrors.IsConflict(err):
		r.log.Warn("cannot write NodeStatus", "error", err)
	}
}
