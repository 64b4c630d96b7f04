// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/heliograph-dev/heliograph/cni/ipam/store"
	"github.com/heliograph-dev/heliograph/cni/podnet"
	"github.com/heliograph-dev/heliograph/felix/conntrack"
	"github.com/heliograph-dev/heliograph/felix/localapi"
	"github.com/heliograph-dev/heliograph/felix/workload"
)

// pods is the part of the agent that serves the CNI plugin.
type pods struct {
	store   *store.Store
	net     *podnet.Net
	manager *workload.Manager
	server  *localapi.Server
	tracked *conntrack.Table
	pokes   chan struct{} // for the loop
	changed chan struct{} // for policy
	log     *slog.Logger
}

// sweepRetry is the longest time between two attempts to finish what an earlier agent left.
const sweepRetry = 5 * time.Second

// openPods opens the allocator and the socket's server, and ties them to the loop.
func openPods(a *Agent) (*pods, error) {
	p := &pods{pokes: make(chan struct{}, 1), changed: make(chan struct{}, 1), log: a.log}
	var err error
	if p.net, err = podnet.New(); err != nil {
		return nil, fmt.Errorf("open netlink socket for pods: %w", err)
	}
	p.store, err = store.Open(store.Options{
		Path: filepath.Join(a.opts.StateDir, "ipam.db"), Kernel: workload.FromKernel(p.net), Log: a.log,
	})
	if err != nil {
		return nil, fmt.Errorf("open address store: %w", err)
	}
	flows, err := conntrack.Open()
	if err != nil {
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	p.tracked = conntrack.New(flows)
	p.manager = workload.New(workload.Options{
		Store: p.store, Interfaces: p.net, StateDir: a.opts.StateDir, Log: a.log,
		Hooks: workload.Hooks{
			Poke: p.poke,
			Sync: func(ctx context.Context, device string) error {
				round := a.loop.gate.join()
				p.poke()
				return round.wait(ctx, device)
			},
			InForce: func(ctx context.Context, device string) error { return a.policy.enforcer.InForce(ctx, device) },
			Ready:   a.acceptsPods,
			FlushConntrack: func(ip netip.Addr) error {
				_, err := p.tracked.DeleteByIP(context.Background(), ip)
				return err
			},
			MTU: a.podMTU,
		},
	})
	p.server, err = localapi.New(p.manager, a.opts.Socket, a.log, a.registry)
	if err != nil {
		return nil, err
	}
	return p, a.registry.Register(workload.UsageCollector{Usage: p.store.Usage})
}

func (p *pods) poke() {
	for _, c := range []chan struct{}{p.pokes, p.changed} {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// run serves the plugin until ctx ends.
func (p *pods) run(ctx context.Context) error {
	if err := p.sweep(ctx); err != nil {
		return err
	}
	var sweeping sync.WaitGroup
	sweeping.Go(func() { p.manager.Run(ctx) })
	defer sweeping.Wait()
	return p.server.Serve(ctx)
}

// sweep finishes what an earlier agent left, which must be done before pods are served. It is tried
// until it succeeds: the rest of the agent has better to do than to start anew.
func (p *pods) sweep(ctx context.Context) error {
	failed := false
	for wait := firstRetry; ; wait = min(2*wait, sweepRetry) {
		err := p.manager.Sweep(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil && failed:
			p.log.Info("what an earlier agent left is finished")
			return nil
		case err == nil:
			return nil
		case !failed:
			p.log.Warn("cannot finish what an earlier agent left; no pod is served until then", "error", err)
		}
		failed = true
		pause(ctx, wait, nil)
	}
}

func (p *pods) close() error { return errors.Join(p.store.Close(), p.net.Close()) }

// errNoFacts is why no pod can be connected yet.
var errNoFacts = errors.New("the agent has not programmed the node yet")

// acceptsPods says whether this node can take new pods: whether its filter and routes stand. A peer
// that is down, or a route of another node that the kernel refuses, is no reason to refuse a pod.
func (a *Agent) acceptsPods() error {
	if a.latest.Load() == nil {
		return errNoFacts
	}
	return a.policy.enforcer.Ready()
}

// podMTU is that of new pods; 0, the kernel's default, before the first run.
func (a *Agent) podMTU() int {
	if r := a.latest.Load(); r != nil {
		return r.MTU
	}
	return 0
}
