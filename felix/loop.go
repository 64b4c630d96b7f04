// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/cni/ipam"
	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
	"github.com/heliograph-dev/heliograph/felix/trigger"
)

const (
	// remoteSpacing lets a burst of routes or objects cost one computation.
	remoteSpacing = 20 * time.Millisecond
	// loopBeat is the longest that the idle loop is silent.
	loopBeat = 10 * time.Second
	// firstRetry to lastRetry: when a failed Apply is tried again.
	firstRetry = 200 * time.Millisecond
	lastRetry  = 30 * time.Second
)

// source is where the loop's facts of the cluster come from: felix/watch.
type source interface {
	Changed() <-chan struct{}
	Synced() bool
	Objects(ctx context.Context) (snapshot.Objects, error)
	Save(o snapshot.Objects) error
	Load() (snapshot.Objects, time.Time, error)
}

// bgpSpeaker is bgp/speaker as the loop uses it.
type bgpSpeaker interface {
	Apply(ctx context.Context, d bgp.Desired) error
	Snapshot() bgp.Snapshot
	Changed() <-chan struct{}
}

// podStore is cni/ipam/store as the loop uses it.
type podStore interface {
	Attachments() []ipam.Allocation
	SetBlocks(blocks []ipam.Block) error
	RequireFamilies(v4, v6 bool)
	SetCooldown(d time.Duration)
	Usage() []ipam.BlockUsage
	Problem() string
}

// loop is the one goroutine that decides and writes: facts in, kernel and BGP out, report last.
type loop struct {
	node      string
	version   string
	log       *slog.Logger
	source    source
	speaker   bgpSpeaker
	pods      podStore
	links     linkReader
	dataplane *dataplane
	monitor   *kernel.Monitor
	nftPokes  <-chan struct{}
	podPokes  <-chan struct{}
	gate      *gate
	heart     *heart
	metrics   *metrics
	publish   func(*Report)
	onChange  func([]PathReport)
	adopted   adoption

	facts    factCache
	remote   trigger.Trigger // recompute everything
	local    trigger.Trigger // recompute the pods
	retry    time.Duration   // 0: the last Apply succeeded
	view     snapshot.View
	state    calc.RemoteState
	clock    pathClock
	runs     uint64
	applied  bool // at least one full Apply succeeded
	lastErr  error
	saveErr  error
	speakErr error
}

// run loops until ctx ends. The first run waits for the API server's word, or for the copy on disk:
// nothing is written before.
func (l *loop) run(ctx context.Context) error {
	l.remote.Spacing = remoteSpacing
	if err := l.awaitFacts(ctx); err != nil {
		return err
	}
	l.remote.Poke()
	l.local.Poke()
	refresh := time.NewTimer(snapshot.DefaultRefreshInterval)
	defer refresh.Stop()
	for {
		l.heart.beat(time.Now())
		now := time.Now()
		remote, local := l.remote.Take(now), l.local.Take(now)
		if remote || local {
			l.once(ctx, remote)
			refresh.Reset(l.refreshInterval())
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.source.Changed():
			l.facts.forgetObjects()
			l.remote.Poke()
		case <-l.speaker.Changed():
			l.remote.Poke()
		case <-l.podPokes:
			l.local.Poke()
		case kinds := <-l.monitor.Pokes():
			l.disturbed(kinds)
		case <-l.nftPokes:
			l.log.Info("somebody changed our nft table: repairing it")
			l.dataplane.nft.QueueResync()
			l.local.Poke()
		case <-refresh.C:
			l.dataplane.queueResync(kernel.All)
			l.facts.forgetLinks()
			l.remote.Poke()
		case <-time.After(l.idle(time.Now())):
			l.wake()
		}
	}
}

// disturbed reacts to what somebody else did to the kernel.
func (l *loop) disturbed(kinds kernel.Kind) {
	l.dataplane.queueResync(kinds)
	l.local.Poke()
	if kinds&(kernel.Link|kernel.Uplink) != 0 {
		l.facts.forgetLinks()
		l.remote.Poke()
	}
}

// idle is how long the loop may sleep: until a delayed run is due, a failed one is to be tried
// again, BGP counts as settled, or the heart has to beat.
func (l *loop) idle(now time.Time) time.Duration {
	d := loopBeat
	for _, t := range []*trigger.Trigger{&l.remote, &l.local} {
		if wait, ok := t.Wait(now); ok {
			d = min(d, wait)
		}
	}
	if l.retry > 0 {
		d = min(d, l.retry)
	}
	if wait, ok := l.adopted.deadline(now); ok {
		d = min(d, wait)
	}
	return d
}

func (l *loop) wake() {
	if l.retry > 0 || l.adopted.pending() {
		l.remote.Poke()
	}
}

func (l *loop) refreshInterval() time.Duration {
	if l.view.Felix.RefreshInterval > 0 {
		return l.view.Felix.RefreshInterval
	}
	return snapshot.DefaultRefreshInterval
}

// once is one run: facts, computation, kernel, BGP, report.
func (l *loop) once(ctx context.Context, remote bool) {
	start := time.Now()
	round := l.gate.begin()
	l.runs++
	err := l.compute(ctx, remote)
	if err == nil {
		err = l.dataplane.apply(ctx)
	}
	if err == nil {
		l.applied = true
	}
	round.end(l.podError(err))
	if remote {
		l.applyBGP(ctx)
	}
	l.noteError(err)
	l.report(time.Now())
	l.metrics.runSeconds.Observe(time.Since(start).Seconds())
}

// compute reads the facts and hands the desired state to the drivers.
func (l *loop) compute(ctx context.Context, remote bool) error {
	links, err := l.facts.links(l.links)
	if err != nil {
		return err
	}
	workloads, err := workloads(l.pods, l.links)
	if err != nil {
		return err
	}
	if remote {
		if err := l.computeRemote(ctx, links); err != nil {
			return err
		}
	}
	l.dataplane.setLocal(calc.Local(workloads))
	return nil
}

// errUnknownNode holds everything as it is: a Node object that is gone for a moment is no reason to
// tear a working node down.
var errUnknownNode = errors.New("the API server does not know this node")

func (l *loop) computeRemote(ctx context.Context, links []snapshot.OnLink) error {
	objects, err := l.facts.objects(ctx, l.source)
	if err != nil {
		return err
	}
	now := time.Now()
	speakerState := l.speaker.Snapshot()
	view := snapshot.Build(objects, snapshot.Local{
		NodeName: l.node, Links: links, OwnBlocks: l.ownBlocks(), BGP: speakerState,
		Adopted: l.adopted.hops, Settled: l.adopted.settled(speakerState, now), Restarting: l.adopted.restarting,
	})
	if view.Self.Name == "" {
		return errUnknownNode
	}
	l.view = view
	l.state = calc.Remote(view)
	l.dataplane.setRemote(l.state)
	l.monitorPrefixes()
	if l.source.Synced() {
		l.saveErr = l.source.Save(objects)
	}
	return l.giveBlocks()
}

// ownBlocks are those that hold addresses of our pods, as the store knows: they stay ours, whatever
// becomes of the API's objects.
func (l *loop) ownBlocks() []snapshot.Block {
	var out []snapshot.Block
	for _, u := range l.pods.Usage() {
		if u.InUse > 0 {
			out = append(out, snapshot.Block{Name: u.Name, CIDR: u.CIDR, Pool: u.Pool, Node: l.node})
		}
	}
	return out
}

// giveBlocks tells the allocator which blocks it may use.
func (l *loop) giveBlocks() error {
	var blocks []ipam.Block
	families := map[bgp.Family]bool{}
	for _, p := range l.view.Pools {
		families[bgp.FamilyOf(p.CIDR.Addr())] = families[bgp.FamilyOf(p.CIDR.Addr())] || !p.Disabled
	}
	for _, b := range l.view.Blocks {
		if b.Node != l.node {
			continue
		}
		pool, known := l.view.PoolNamed(b.Pool)
		blocks = append(blocks, ipam.Block{
			Name: b.Name, CIDR: b.CIDR, Pool: b.Pool, Primary: b.Primary, Releasing: b.Releasing,
			PoolDisabled: known && pool.Disabled,
		})
	}
	l.pods.SetCooldown(l.view.Felix.IPAMCooldown)
	l.pods.RequireFamilies(families[bgp.IPv4] && l.view.Self.IPv4.IsValid(), families[bgp.IPv6] && l.view.Self.IPv6.IsValid())
	return l.pods.SetBlocks(blocks)
}

// monitorPrefixes lets the kernel monitor know which prefixes are ours, so that a foreign route for
// one of them is seen at once.
func (l *loop) monitorPrefixes() {
	ours := make(map[netip.Prefix]bool, len(l.state.Routes))
	for _, r := range l.state.Routes {
		ours[r.Prefix] = true
	}
	l.monitor.SetFilter(func(p netip.Prefix) bool { return ours[p] })
}

// applyBGP comes after the kernel: what is advertised can be reached.
func (l *loop) applyBGP(ctx context.Context) {
	if l.state.BGP.Global == (bgp.Global{}) {
		return
	}
	l.speakErr = l.speaker.Apply(ctx, l.state.BGP)
	l.heart.beat(time.Now())
}

// noteError logs the first failure and the first success after it, and sets when to try again.
func (l *loop) noteError(err error) {
	err = errors.Join(err, l.speakErr)
	switch {
	case err != nil && (l.lastErr == nil || l.lastErr.Error() != err.Error()):
		l.log.Warn("not in sync; trying again", "error", err)
	case err == nil && l.lastErr != nil:
		l.log.Info("in sync again")
	}
	l.lastErr = err
	if err == nil {
		l.retry = 0
		return
	}
	l.retry = min(lastRetry, max(firstRetry, 2*l.retry))
}
