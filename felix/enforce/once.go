// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/heliograph-dev/heliograph/cni/ipam"
	"github.com/heliograph-dev/heliograph/felix/feed"
	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/compile"
)

// once is one run: what changed, compiled, in the kernel, told.
func (e *Enforcer) once(ctx context.Context) {
	start := time.Now()
	e.opts.Heart.Begin("policy", start)
	e.begin()
	changes := e.opts.Feed.Take()
	for _, c := range changes {
		e.take(c)
	}
	if e.book.heard(changes, start) {
		e.mistakes = e.compiler.Problems()
	}
	e.takePods(e.opts.Pods())
	e.compiler.SetFailsafes(e.opts.Failsafes())
	delta := e.compiler.Flush()
	if err := e.advance(delta); err != nil {
		// Only a mistake of ours brings us here: the kernel follows the deltas all the same.
		e.log.Error("a change of policy does not fit what was there", "error", err)
	}
	err := e.enforce(ctx, delta)
	if ctx.Err() != nil {
		return // what was cut off is no failure
	}
	e.settle(err, delta, start)
	e.note(changes)
}

// begin counts the run, before it takes anything.
func (e *Enforcer) begin() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.started++
}

// enforce makes the kernel obey.
func (e *Enforcer) enforce(ctx context.Context, delta policy.Delta) error {
	if e.use != nil {
		e.use.Update(delta)
	}
	changed := e.choose(ctx)
	if e.use == nil {
		return changed
	}
	if err := e.applyNames(ctx, delta); err != nil {
		return err
	}
	start := time.Now()
	if err := e.use.Apply(ctx); err != nil {
		return err
	}
	if e.reading {
		e.readTook, e.reading = time.Since(start), false
	}
	if err := e.sweep(ctx); err != nil {
		return err
	}
	return changed
}

// takePods hands the compiler the pods of this node that changed.
func (e *Enforcer) takePods(attachments []ipam.Allocation) {
	// The runtime may make a pod's sandbox anew before it has deleted the old one, whose device is closed then.
	newest := make(map[policy.EndpointID]ipam.Allocation, len(attachments))
	for _, a := range attachments {
		id := identity(a)
		if other, ok := newest[id]; !ok || other.Created.Before(a.Created) {
			newest[id] = a
		}
	}
	for id, a := range newest {
		w := workload(id, a)
		if old, ok := e.workloads[id]; !ok || !same(old, w) {
			e.workloads[id] = w
			e.compiler.SetWorkload(w)
		}
	}
	for id := range e.workloads {
		if _, ok := newest[id]; !ok {
			delete(e.workloads, id)
			e.compiler.RemoveWorkload(id)
		}
	}
}

// identity is the pod of an attachment. One that is not known, since its record was lost, has no namespace,
// where no pod can be: it is closed.
func identity(a ipam.Allocation) policy.EndpointID {
	if a.Pod.Name == "" {
		return policy.EndpointID{Name: a.Device}
	}
	return policy.EndpointID{Namespace: a.Pod.Namespace, Name: a.Pod.Name}
}

func workload(id policy.EndpointID, a ipam.Allocation) compile.Workload {
	w := compile.Workload{ID: id, UID: a.Pod.UID, Device: a.Device}
	for _, ip := range a.Addresses {
		if ip.IsValid() {
			w.IPs = append(w.IPs, ip)
		}
	}
	return w
}

func same(a, b compile.Workload) bool {
	return a.UID == b.UID && a.Device == b.Device && slices.Equal(a.IPs, b.IPs)
}

// advance makes the state what it will be in the kernel.
func (e *Enforcer) advance(d policy.Delta) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.version++
	e.stale = e.stale || len(d.Endpoints) > 0
	return e.state.Apply(d)
}

// settle tells what the run brought about.
func (e *Enforcer) settle(err error, d policy.Delta, start time.Time) {
	now := time.Now()
	if err != nil {
		e.failed(err, now)
		return
	}
	e.retry.Succeeded()
	e.book.enforced(now, e.state, func(d time.Duration) { e.metrics.inForceSeconds.Observe(d.Seconds()) })
	if !d.Empty() {
		e.metrics.applySeconds.Observe(now.Sub(start).Seconds())
		e.cut.after(d, !e.begun)
	}
	e.publish(nil)
}

// failed sets when to try again, and logs what is new.
func (e *Enforcer) failed(err error, now time.Time) {
	e.retry.Failed(now)
	e.metrics.errors.Inc()
	e.publish(fmt.Errorf("policy: %w", err))
}

// publish tells who waits, and the status.
func (e *Enforcer) publish(err error) {
	e.mu.Lock()
	if err == nil {
		e.begun, e.obeyed = true, e.started
		if e.stale {
			e.force, e.stale = newForce(e.state), false
		}
	}
	switch {
	case err != nil && e.lastErr == nil:
		e.log.Warn("policy is not in force; trying again", "error", err)
	case err == nil && e.lastErr != nil:
		e.log.Info("policy is in force again")
	}
	e.lastErr = err
	changed := e.refreshStatus()
	close(e.moved)
	e.moved = make(chan struct{})
	e.mu.Unlock()
	if changed {
		e.opts.Changed()
	}
}

// note has the changes kept on disk.
func (e *Enforcer) note(changes []feed.Change) {
	whole := !e.noted && !e.fromDisk && e.opts.Feed.Synced()
	e.noted = e.noted || whole
	e.opts.Journal.Note(changes, whole)
}
