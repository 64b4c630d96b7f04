// SPDX-License-Identifier: Apache-2.0

// Package enforce is the half of the agent that does network policy: it has each change of pods,
// namespaces and policies compiled, makes the kernel obey, and tells who waits for that.
//
//	feed (API), pods of this node ─▶ policy/compile ─ Delta ─▶ State ─▶ felix/nftpolicy or felix/iptables
//	                                                             │
//	                                                             ├▶ flows that became denied are cut (conntrack)
//	                                                             └▶ Status: what is in force, since when
//
// It has a goroutine of its own: a policy must not wait until a thousand routes are written, nor the
// other way round. Nothing is written before the API server, or the copy on disk, has said all: what
// an earlier agent left in the kernel is in force until then.
package enforce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/cni/ipam"
	"github.com/heliograph-dev/heliograph/felix/conntrack"
	"github.com/heliograph-dev/heliograph/felix/feed"
	"github.com/heliograph-dev/heliograph/felix/trigger"
	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/compile"
)

const (
	// apiPatience is how long a starting agent waits for the API server before it starts from the copy
	// on disk.
	apiPatience = 5 * time.Second
	// beat is the longest that the idle loop is silent.
	beat = 10 * time.Second
	// firstRetry to lastRetry: when a failed Apply is tried again.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
	// pollInterval is how often rules are read of which nobody tells the changes, pollShare what that may
	// cost, as a part of the time.
	pollInterval = 10 * time.Second
	pollShare    = 100
)

// Renderer makes a policy.State true in the kernel: docs/design/0004-policy.md.
type Renderer interface {
	Update(d policy.Delta)
	QueueResync()
	Apply(ctx context.Context) error
	Refused() map[policy.PolicyID]error
	Counters(ctx context.Context) (map[policy.RuleID]policy.Count, error)
	Delete(ctx context.Context) error
}

// Flows is the table of connections: conntrack.Table.
type Flows interface {
	DeleteIf(ctx context.Context, denied func(conntrack.Flow) bool) (int, error)
}

// Heart hears that the loop moves, for liveness.
type Heart interface {
	Beat(now time.Time)
	Begin(work string, now time.Time)
}

// Options configure New.
type Options struct {
	Feed    *feed.Feed
	Journal *feed.Journal
	// Pods are the attachments of this node, PodPokes says that they changed.
	Pods     func() []ipam.Allocation
	PodPokes <-chan struct{}
	// Dataplanes that there are, the best first, and which is asked for: Auto or a name; empty as long as
	// nobody knows. Choices says that it changed.
	Dataplanes []Dataplane
	Choice     func() string
	// Node is the name of this node, Failsafes what no policy may take from it; Choices tells of a change.
	Node      string
	Failsafes func() compile.Failsafes
	Choices   <-chan struct{}
	// Disturbed says that somebody else changed what a dataplane wrote.
	Disturbed <-chan struct{}
	Flows     Flows
	// NodeAddresses are the node's own, whose packets to its pods always pass.
	NodeAddresses   func() ([]netip.Addr, error)
	RefreshInterval func() time.Duration
	Names           Names
	Heart           Heart
	Changed         func() // Status changed
	Log             *slog.Logger
	Registerer      prometheus.Registerer
}

// Enforcer is the loop and what it knows.
type Enforcer struct {
	opts    Options
	log     *slog.Logger
	metrics *metrics

	// Of the loop's goroutine.
	compiler  *compile.Compiler
	nodes     *nodes
	names     namesPart
	use       *inUse // nil before the first run
	workloads map[policy.EndpointID]compile.Workload
	book      book
	mistakes  []compile.Problem
	retry     trigger.Backoff
	refreshed time.Time
	reading   bool          // the next run reads the kernel
	readTook  time.Duration // the last such run
	fromDisk  bool
	noted     bool // the journal holds all that the API server said

	cut   cutter
	diary *diary

	asks chan func() // what the loop is asked to do for others

	mu      sync.RWMutex
	state   *policy.State // written by the loop alone
	version uint64        // of state
	started uint64        // runs
	obeyed  uint64        // the last run of which the kernel obeys what it took
	force   force
	stale   bool          // force is not what state says
	moved   chan struct{} // closed, and made anew, with each change of force
	lastErr error
	begun   bool // something was put in force
	status  Status
}

// force is what of the state others ask for while they wait, or look.
type force struct {
	unknown map[string]bool // by device, whether it is closed, since the API has not shown the pod
	closed  int             // how many are
	byIP    map[netip.Addr]policy.EndpointID
}

func newForce(s *policy.State) force {
	f := force{unknown: make(map[string]bool, len(s.Endpoints)), byIP: make(map[netip.Addr]policy.EndpointID, 2*len(s.Endpoints))}
	for _, ep := range s.Endpoints {
		if ep.ID.Host {
			continue // nobody waits for it, and its addresses are the node's
		}
		f.unknown[ep.Device] = ep.Unknown
		if ep.Unknown {
			f.closed++
		}
		for _, ip := range ep.IPs {
			f.byIP[ip] = ep.ID
		}
	}
	return f
}

// New makes an enforcer; Run starts it.
func New(o Options) (*Enforcer, error) {
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, err
	}
	e := &Enforcer{
		opts: o, log: o.Log, metrics: m, compiler: compile.New(), nodes: newNodes(), names: namesPart{Names: o.Names}, workloads: map[policy.EndpointID]compile.Workload{},
		book: book{pages: map[policy.PolicyID]*page{}}, state: policy.NewState(), moved: make(chan struct{}),
		cut: cutter{poke: make(chan struct{}, 1)}, asks: make(chan func()), diary: newDiary(), retry: trigger.Backoff{First: firstRetry, Most: lastRetry},
	}
	return e, o.Registerer.Register(collector{e})
}

// Run enforces until ctx ends. What is in the kernel stays.
func (e *Enforcer) Run(ctx context.Context) error {
	if err := e.awaitFacts(ctx); err != nil {
		return err
	}
	var cutting sync.WaitGroup
	cutting.Go(func() { e.runCutter(ctx) })
	defer cutting.Wait()
	e.refreshed = time.Now()
	for ctx.Err() == nil {
		e.once(ctx)
		e.listen(ctx)
	}
	return nil
}

// awaitFacts waits for the API server, or for long enough to start from the copy on disk. Without
// either it goes on waiting.
func (e *Enforcer) awaitFacts(ctx context.Context) error {
	patience := time.NewTimer(apiPatience)
	defer patience.Stop()
	for !e.opts.Feed.Synced() {
		e.opts.Heart.Beat(time.Now())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-e.opts.Feed.Changed():
		case <-time.After(beat):
		case <-patience.C:
			changes, complete, err := e.opts.Journal.Load()
			if err == nil && complete {
				e.log.Warn("no answer from the API server: policies and pods are those of the copy on disk")
				e.opts.Feed.Seed(changes)
				e.fromDisk = true
				return e.awaitChoice(ctx)
			}
			e.log.Warn("no answer from the API server, and no copy of policies on disk: waiting", "error", err)
		}
	}
	return e.awaitChoice(ctx)
}

// awaitChoice waits until it is known by which dataplane policy should be enforced: what an earlier agent
// left is in force until then, and to change from another one for a moment would be in vain.
func (e *Enforcer) awaitChoice(ctx context.Context) error {
	for e.opts.Choice() == "" {
		e.opts.Heart.Beat(time.Now())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-e.opts.Choices:
		case <-time.After(beat):
		}
	}
	return nil
}

// listen waits until somebody pokes, or something is due. What it is asked meanwhile needs no run.
func (e *Enforcer) listen(ctx context.Context) {
	for e.await(ctx) {
	}
	if now := time.Now(); now.Sub(e.refreshed) >= e.refreshInterval() {
		e.refreshed = now
		e.resync()
	}
}

// await waits for one thing, and says whether to go on waiting.
func (e *Enforcer) await(ctx context.Context) bool {
	now := time.Now()
	e.opts.Heart.Beat(now)
	wait := min(beat, e.refreshed.Add(e.refreshInterval()).Sub(now))
	if at := e.retry.At(); !at.IsZero() {
		wait = min(wait, at.Sub(now))
	}
	select {
	case <-ctx.Done():
	case <-e.opts.Feed.Changed():
	case <-e.opts.PodPokes:
	case <-e.opts.Choices:
	case ask := <-e.asks:
		ask()
		return true
	case <-e.opts.Disturbed:
		e.log.Info("somebody changed our policy rules: repairing them")
		e.resync()
	case <-time.After(max(0, wait)):
	}
	return false
}

// resync has the next run read the kernel.
func (e *Enforcer) resync() {
	e.names.Gate.QueueResync()
	if e.use != nil {
		e.use.QueueResync()
		e.reading = true
	}
}

// refreshInterval is how long after one reading of the kernel the next is due.
func (e *Enforcer) refreshInterval() time.Duration {
	interval := e.opts.RefreshInterval()
	if e.use != nil && e.use.polled {
		return min(interval, max(pollInterval, pollShare*e.readTook))
	}
	return interval
}

// Delete takes all that was written out of the kernel, of every dataplane. For uninstalling, after Run.
func (e *Enforcer) Delete(ctx context.Context) error {
	var errs []error
	for _, d := range slices.Backward(e.opts.Dataplanes) {
		r, err := d.Open()
		if err == nil {
			err = r.Delete(ctx)
		}
		if err != nil && !errors.Is(err, ErrMissing) {
			errs = append(errs, fmt.Errorf("%s: %w", d.Name, err))
		}
	}
	return errors.Join(errs...)
}
