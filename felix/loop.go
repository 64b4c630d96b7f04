// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/cni/ipam"
	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
	"github.com/heliograph-dev/heliograph/felix/trigger"
)

const (
	// remoteSpacing lets a burst of routes or objects cost one computation.
	remoteSpacing = 20 * time.Millisecond
	maxSpacing    = 2 * time.Second
	// driftSpacing lets a burst of kernel notifications cost one reading.
	driftSpacing = 100 * time.Millisecond
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
	SetBlocks(blocks []ipam.Block) error
	RequireFamilies(v4, v6 bool)
	SetCooldown(d time.Duration)
	Usage() []ipam.BlockUsage
	Owner(ip netip.Addr) (cni.Attachment, bool)
	Problem() string
}

// inputs are where the loop reads facts, and what pokes it.
type inputs struct {
	source      source
	speaker     bgpSpeaker
	pods        podStore
	attachments func() []ipam.Allocation // of the pods that are connected: felix/workload
	links       linkReader
	filters     func(device string) bool // drops what comes in where the answer would not leave
	can         snapshot.Capabilities    // of this node's kernel
	monitor     *kernel.Monitor
	nftPokes    <-chan struct{}
	podPokes    <-chan struct{}
}

// outputs are what the loop writes, and whom it tells.
type outputs struct {
	dataplane *dataplane
	gate      *gate
	heart     *heart
	metrics   *metrics
	publish   func(*Report)
	tell      teller
}

// teller tells users, rarely, what changed: Events.
type teller interface {
	pathsChanged(changed []PathReport)
	unanswered(p PathReport)
	quorumChanged(q Quorum)
}

// schedule is what was asked for and when it is due.
type schedule struct {
	remote    trigger.Trigger // recompute everything
	local     trigger.Trigger // recompute the pods
	drift     trigger.Trigger // read back what somebody else disturbed
	drifted   kernel.Kind
	refreshed time.Time // when all of the kernel was last read back
	retry     trigger.Backoff
}

// loop is the one goroutine that decides and writes: facts in, kernel and BGP out, report last.
type loop struct {
	node    string
	version string
	log     *slog.Logger
	inputs
	outputs
	schedule

	adopted adoption
	paths   paths
	facts   factCache

	// What the last run found and brought about.
	view      snapshot.View
	state     calc.RemoteState
	yielding  bool // see yield
	podsRead  bool // the pods were read at least once
	summary   remoteSummary
	intruders map[bgp.Neighbour]intruder
	trouble   trouble
	lastErr   error // as last logged
	runs      uint64
}

// run loops until ctx ends. The first run waits for the API server's word, or for the copy on disk:
// nothing is written before.
func (l *loop) run(ctx context.Context) error {
	l.remote.Spacing, l.drift.Spacing = remoteSpacing, driftSpacing
	l.retry.First, l.retry.Most = firstRetry, lastRetry
	if err := l.awaitFacts(ctx); err != nil {
		return err
	}
	l.remote.Poke()
	l.local.Poke()
	l.refreshed = time.Now()
	for ctx.Err() == nil {
		now := time.Now()
		l.heart.Beat(now)
		l.pokeDue(now)
		if !l.work(ctx, now) {
			l.listen(ctx, now)
		}
	}
	return nil
}

// work does what is due, if anything is.
func (l *loop) work(ctx context.Context, now time.Time) bool {
	drift := l.drift.Take(now)
	if drift {
		l.dataplane.queueResync(l.drifted)
		l.drifted = 0
	}
	remote, local := l.remote.Take(now), l.local.Take(now)
	if !remote && !local && !drift {
		return false
	}
	l.once(ctx, remote)
	if remote {
		// Half of the time at most goes into this, so that pods need not wait while a large table comes in.
		l.remote.Spacing = min(max(remoteSpacing, 2*time.Since(now)), maxSpacing)
	}
	return true
}

// listen waits until somebody pokes, or something is due.
func (l *loop) listen(ctx context.Context, now time.Time) {
	select {
	case <-ctx.Done():
	case <-l.source.Changed():
		l.facts.forgetObjects()
		l.remote.Poke()
	case <-l.speaker.Changed():
		l.remote.Poke()
	case <-l.paths.prober.Changed():
		l.remote.Poke()
	case <-l.podPokes:
		l.local.Poke()
		if l.yielding {
			l.remote.Poke()
		}
	case kinds := <-l.monitor.Pokes():
		l.disturbed(kinds)
	case <-l.nftPokes:
		l.log.Info("somebody changed our nft table: repairing it")
		l.dataplane.nft.QueueResync()
		l.local.Poke()
	case <-time.After(l.idle(now)):
	}
}

// disturbed reacts to what somebody else did to the kernel. Every pod that comes and goes does a
// little of that, so it is put together for a moment; and of the devices only those that are not
// ours are facts that paths follow from.
func (l *loop) disturbed(kinds kernel.Kind) {
	l.drifted |= kinds
	l.drift.Poke()
	if kinds&kernel.Uplink != 0 {
		l.facts.forgetLinks()
		l.remote.Poke()
	}
}

// pokeDue asks for the runs that time brings: a retry, the next full read-back of the kernel, and
// one when BGP has had long enough. They are points in time, so that no stream of other pokes can
// put them off.
func (l *loop) pokeDue(now time.Time) {
	if l.retry.Due(now) || l.adopted.due(now) || l.paths.due(now) {
		l.remote.Poke()
	}
	if now.Sub(l.refreshed) >= l.refreshInterval() {
		l.refreshed = now
		l.dataplane.queueResync(kernel.All)
		l.facts.forgetLinks()
		l.remote.Poke()
	}
}

// idle is how long the loop may sleep: until something is due, or the heart has to beat.
func (l *loop) idle(now time.Time) time.Duration {
	d := min(loopBeat, l.refreshed.Add(l.refreshInterval()).Sub(now))
	for _, t := range []*trigger.Trigger{&l.remote, &l.local, &l.drift} {
		if wait, ok := t.Wait(now); ok {
			d = min(d, wait)
		}
	}
	for _, at := range []time.Time{l.retry.At(), l.adopted.deadline(), l.paths.next} {
		if at.After(now) { // otherwise the run is asked for already
			d = min(d, at.Sub(now))
		}
	}
	return max(0, d)
}

func (l *loop) refreshInterval() time.Duration {
	if l.view.Felix.RefreshInterval > 0 {
		return l.view.Felix.RefreshInterval
	}
	return snapshot.DefaultRefreshInterval
}

// trouble is what each part of a run last failed with. A run for the pods alone forgets none of
// what the rest failed with.
type trouble struct {
	cluster error // reading the facts of the cluster: all that follows from them is kept as it is
	blocks  error // noting our blocks on disk
	pods    error // reading the pods of this node
	kernel  error
	bgp     error
	save    error // keeping the copy on disk: no reason to try again at once
}

func (t trouble) err() error { return errors.Join(t.cluster, t.blocks, t.pods, t.kernel, t.bgp) }

// once is one run: facts, computation, kernel, BGP, report.
func (l *loop) once(ctx context.Context, remote bool) {
	start := time.Now()
	round := l.gate.begin()
	l.runs++
	l.heart.Begin("compute", start)
	if remote {
		l.trouble.cluster = l.computeRemote(ctx)
	}
	l.trouble.pods = l.computeLocal()
	if l.factsComplete() {
		l.trouble.kernel = l.dataplane.apply(ctx)
	}
	round.end(l.podError(ctx))
	if remote {
		l.paths.probe(l.view, l.state)
		l.applyBGP(ctx)
		l.save()
	}
	if ctx.Err() != nil {
		return // what was cut off is no failure
	}
	now := time.Now()
	l.heart.Begin("report", now)
	l.noteTrouble(now)
	l.report()
	l.metrics.runSeconds.Observe(time.Since(start).Seconds())
}

// factsComplete says whether both halves of the desired state are known. Before, a driver would
// take what it has not heard of for an orphan.
func (l *loop) factsComplete() bool { return l.view.Self.Name != "" && l.podsRead }

// computeLocal hands the drivers what follows from the pods of this node.
func (l *loop) computeLocal() error {
	workloads, err := workloads(l.attachments(), l.links)
	if err != nil {
		return err
	}
	l.podsRead = true
	l.dataplane.setLocal(calc.Local(workloads))
	l.monitorPrefixes()
	return nil
}

// errUnknownNode holds everything as it is: a Node object that is gone for a moment is no reason to
// tear a working node down.
var errUnknownNode = errors.New("the API server does not know this node")

// computeRemote hands the drivers all else.
func (l *loop) computeRemote(ctx context.Context) error {
	now, speakerState := time.Now(), l.speaker.Snapshot()
	settled := l.adopted.settled(speakerState, slices.Concat(l.state.BGP.Peers, l.state.BGP.Reflection.Reflectors), now)
	links, err := l.facts.links(l.links, l.filters)
	if err != nil {
		return err
	}
	objects, err := l.facts.objects(ctx, l.source)
	if err != nil {
		return err
	}
	view := snapshot.Build(objects, snapshot.Local{
		NodeName: l.node, Links: links, OwnBlocks: l.ownBlocks(), BGP: speakerState,
		Adopted: l.adopted.hops, Settled: settled, Restarting: l.adopted.restarting,
		ForeignIPIP: l.facts.foreign, AdoptedMethods: l.adopted.methods, Capabilities: l.can, Probes: l.paths.prober.Reports(),
	})
	if view.Self.Name == "" {
		return errUnknownNode
	}
	l.view = view
	l.state = l.paths.decide(now, calc.Prepare(l.yield(view)))
	l.paths.wake(l.dataplane.follow(now, l.state))
	l.summarize(now)
	l.trouble.blocks = l.giveBlocks()
	return nil
}

// yield leaves the node's own address of a primary block to the pod that has it: the pod came while
// the block was not primary. So the node goes without until the pod is gone.
func (l *loop) yield(v snapshot.View) snapshot.View {
	l.yielding = false
	for i, b := range v.Blocks {
		if b.Node != l.node || !b.Primary {
			continue
		}
		owner, taken := l.pods.Owner(ipam.NodeAddress(b.CIDR))
		if !taken {
			continue
		}
		if !l.yielding {
			l.yielding, v.Blocks, v.Problems = true, slices.Clone(v.Blocks), slices.Clone(v.Problems)
		}
		v.Blocks[i].Primary = false
		v.Problems = append(v.Problems, snapshot.Problem{Object: "IPBlock " + b.Name, Reason: fmt.Sprintf(
			"the node goes without its own address %s: pod container %s has it from when the block was not primary", ipam.NodeAddress(b.CIDR), owner.ContainerID)})
	}
	return v
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
	remote, local := l.summary.prefixes, make(map[netip.Prefix]bool, len(l.dataplane.local.Routes))
	for _, r := range l.dataplane.local.Routes {
		local[r.Prefix] = true
	}
	l.monitor.SetFilter(func(p netip.Prefix) bool { return remote[p] || local[p] })
}

// applyBGP comes after the kernel: what is advertised can be reached.
func (l *loop) applyBGP(ctx context.Context) {
	if l.state.BGP.Global == (bgp.Global{}) {
		return
	}
	l.heart.Begin("bgp", time.Now())
	l.trouble.bgp = l.speaker.Apply(ctx, l.state.BGP)
}

// save keeps what the API server said, if it said anything new. It comes after the kernel: a slow
// disk must not hold up a change of path.
func (l *loop) save() {
	if l.facts.saved || l.facts.fromDisk || l.facts.objFacts == nil {
		return
	}
	l.heart.Begin("save", time.Now())
	err := l.source.Save(*l.facts.objFacts)
	if err != nil && l.trouble.save == nil {
		l.log.Warn("cannot keep a copy of what the API server says", "error", err)
	}
	l.trouble.save, l.facts.saved = err, err == nil
}

// noteTrouble logs the first failure and the first success after it, and sets when to try again.
func (l *loop) noteTrouble(now time.Time) {
	err := l.trouble.err()
	switch {
	case err != nil && (l.lastErr == nil || l.lastErr.Error() != err.Error()):
		l.log.Warn("not in sync; trying again", "error", err)
	case err == nil && l.lastErr != nil:
		l.log.Info("in sync again")
	}
	l.lastErr = err
	if err == nil {
		l.retry.Succeeded()
	} else {
		l.retry.Failed(now)
	}
}
