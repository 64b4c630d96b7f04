// SPDX-License-Identifier: Apache-2.0

// Package felix is the node agent: it makes a node's kernel and BGP speaker what the API's objects
// ask for. It owns the order in which that happens and nothing else: reading is felix/watch's,
// deciding felix/calc's, writing the drivers'.
//
//	K8s API ─▶ watch ─▶ snapshot ─▶ calc ─▶ desired ─▶ drivers ─▶ kernel
//	                       ▲                    └─▶ bgp/speaker
//	 kernel, BGP, pods ────┘  (these only poke: they are input of the next run, never commands)
package felix

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/inspect"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/probe"
	"github.com/heliograph-dev/heliograph/felix/sysctl"
	"github.com/heliograph-dev/heliograph/felix/watch"
	"github.com/heliograph-dev/heliograph/internal/reflectd"
)

// Options configure an agent.
type Options struct {
	NodeName       string
	Namespace      string // of heliograph
	DaemonSet      string // of the agents
	StateDir       string // /var/lib/heliograph
	Socket         string // of the CNI plugin
	SysctlRoot     string // /proc/sys/net, or where it is mounted
	CNIBinDir      string // for uninstall
	CNIConfDir     string // for uninstall
	MetricsAddress string // of /metrics, /healthz and /readyz
	Version        string
	Config         *rest.Config
	Log            *slog.Logger
}

// Agent is one node's agent.
type Agent struct {
	opts     Options
	log      *slog.Logger
	registry *prometheus.Registry
	watcher  *watch.Watcher
	bgp      *speakers
	prober   *probe.Prober
	drivers  drivers
	monitor  *kernel.Monitor
	pods     *pods
	reporter *reporter
	events   *events
	loop     *loop
	health   *health
	heart    *heart // of the loop
	policy   *policyPart
	latest   *atomic.Pointer[Report]
}

// New opens what the agent needs from the node. It changes nothing yet.
func New(ctx context.Context, opts Options) (*Agent, error) {
	a := &Agent{opts: opts, log: opts.Log, registry: prometheus.NewRegistry(), heart: &heart{name: "loop"}}
	a.heart.Beat(time.Now())
	a.bgp = newSpeakers(opts.StateDir, a.log)
	a.registry.MustRegister(reflectd.NewCollector(a.bgp.engine))
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	var err error
	if a.policy, err = openPolicy(opts, a.log); err != nil {
		return nil, err
	}
	if err := a.openAPI(); err != nil {
		return nil, err
	}
	if a.drivers, err = openDrivers(opts, a.log); err != nil {
		return nil, err
	}
	a.monitor, err = kernel.NewMonitor(a.drivers.ownsPort, a.log)
	if err != nil {
		return nil, err
	}
	a.prober, err = probe.New(probe.Options{
		Marks:    calc.ProbeMarks,
		MethodOf: func(index int) path.Method { return methodOf(a.drivers.linkName(index)) }, Registerer: a.registry,
	}, a.log)
	if err != nil {
		return nil, err
	}
	return a, a.wire(ctx)
}

// openAPI makes the clients. It talks to nobody yet: the API server may be away.
func (a *Agent) openAPI() error {
	var err error
	a.watcher, err = watch.New(a.opts.Config, watch.Options{
		Namespace: a.opts.Namespace, DaemonSet: a.opts.DaemonSet,
		Path: a.opts.StateDir + "/snapshot.json", Feed: a.policy.feed, Log: a.log,
	})
	if err != nil {
		return err
	}
	scheme, err := watch.Scheme()
	if err != nil {
		return err
	}
	mapper, err := watch.Mapper(scheme)
	if err != nil {
		return err
	}
	c, err := client.New(a.opts.Config, client.Options{Scheme: scheme, Mapper: mapper})
	if err != nil {
		return fmt.Errorf("make API client: %w", err)
	}
	a.reporter = newReporter(c, a.opts.NodeName, a.bgp.status, a.policy.status, a.log)
	a.bgp.moved = a.reporter.poke
	a.events, err = newEvents(a.opts.Config, scheme, a.opts.NodeName)
	return err
}

// wire connects the parts.
func (a *Agent) wire(ctx context.Context) error {
	a.latest = &a.reporter.latest
	m, err := newMetrics(a.registry, a.opts.Version, a.latest, a.reporter.reachable.Load, func() bool { return a.policy.enforcer.Status().InForce })
	if err != nil {
		return err
	}
	adopted, err := a.drivers.adopt(ctx)
	if err != nil {
		return err
	}
	a.loop = &loop{
		node: a.opts.NodeName, version: a.opts.Version, log: a.log,
		inputs: inputs{
			source: a.watcher, speaker: a.bgp, links: a.drivers.links, monitor: a.monitor, nftPokes: a.drivers.nftPokes,
			filters: strictRPF(sysctl.Dir(a.opts.SysctlRoot)), can: probeCapabilities(ctx, a.log),
		},
		outputs: outputs{
			dataplane: newDataplane(a.drivers, m, a.heart), gate: &gate{}, heart: a.heart, metrics: m,
			publish: a.publish, tell: a.events,
		},
		adopted: adopted, paths: newPaths(a.opts.NodeName, a.prober),
	}
	a.pods, err = openPods(a)
	if err != nil {
		return err
	}
	if err := a.policy.wire(a); err != nil {
		return err
	}
	a.loop.pods, a.loop.attachments, a.loop.podPokes = a.pods.store, a.pods.manager.Attachments, a.pods.pokes
	a.health = &health{
		alive: func() error {
			now := time.Now()
			return errors.Join(a.heart.check(now), a.policy.heart.check(now))
		}, ready: a.ready, gatherer: a.registry, log: a.log,
	}
	return nil
}

// publish hands a report to those who follow it.
func (a *Agent) publish(r *Report) {
	a.policy.choose(r)
	a.reporter.publish(r)
}

// errNoReason is for a part of the agent that ended by itself without an error.
var errNoReason = errors.New("no reason given")

// Why an agent is not ready.
var (
	errNotInSync = errors.New("the dataplane is not in sync yet")
	errNoQuorum  = errors.New("less than half of the other nodes answer: see the paths of the NodeStatus")
)

// ready says whether the node's network is as the API asks.
func (a *Agent) ready() error {
	r := a.latest.Load()
	switch {
	case r == nil || !r.InSync:
		return errNotInSync
	case !r.Quorum.Proven():
		return errNoQuorum
	}
	return a.policy.enforcer.Ready()
}

// Run runs the agent until ctx ends. What it programmed stays: the kernel goes on forwarding
// without it, and the next agent takes it over. Only if heliograph is being uninstalled all of it
// is taken away.
func (a *Agent) Run(ctx context.Context) error {
	a.log.Info("agent starts", "node", a.opts.NodeName, "version", a.opts.Version, "takesOver", a.loop.adopted.restarting)
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := a.events.start(inner); err != nil {
		return err
	}
	run := func(name string, part func(context.Context) error) {
		if err := part(inner); inner.Err() == nil { // nothing else ends a part
			cancel(fmt.Errorf("%s ended: %w", name, cmp.Or(err, errNoReason)))
		}
	}
	// Nobody waits for the watch: it only reads, and while the API server is away client-go ends only
	// after its backoff, of up to half a minute.
	go run("watch", a.watcher.Run)
	var running sync.WaitGroup
	for name, part := range map[string]func(context.Context) error{
		"kernel monitor": a.monitor.Run, "nft monitor": a.drivers.monitorNFT, "loop": a.loop.run, "prober": a.prober.Run,
		"policy": a.policy.enforcer.Run, "policy's copy on disk": a.policy.journal.Run, "policy monitor": a.policy.monitor, "iptables monitor": a.policy.monitorIPTables, "policy log": a.policy.listen,
		"names of domains": a.policy.learner.Run, "answers of DNS": a.policy.listenDNS,
		"cni socket": a.pods.run, "bgp": a.bgp.run, "inspection": a.inspect, "events": a.events.run,
		"reporter": func(ctx context.Context) error { a.reporter.run(ctx); return nil },
		"health":   func(ctx context.Context) error { return a.health.serve(ctx, a.opts.MetricsAddress) },
	} {
		running.Go(func() { run(name, part) })
	}
	<-inner.Done()
	err := context.Cause(inner)
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	running.Wait()
	// The context has ended, but saying goodbye takes a moment of its own.
	farewell, done := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer done()
	return errors.Join(err, a.stop(farewell))
}

// inspect shows BGP tables and policies to root. Without it everything else goes on.
func (a *Agent) inspect(ctx context.Context) error {
	server := inspect.New(inspect.Options{
		Socket: filepath.Join(filepath.Dir(a.opts.Socket), filepath.Base(inspect.SocketPath)), Speakers: []inspect.Speaker{a.bgp.node, a.bgp.client}, Reflector: a.bgp.engine,
		Policies: a.policy.enforcer,
	}, a.log)
	if err := server.Serve(ctx); err != nil {
		a.log.Error("BGP tables and policies cannot be shown: bgp routes and policy status will have no answer from this node", "error", err)
	}
	<-ctx.Done()
	return nil
}

// stop leaves the BGP sessions so that peers keep our routes (RFC 4724), unless we go for good.
func (a *Agent) stop(ctx context.Context) error {
	uninstall := a.watcher.Uninstalling()
	a.log.Info("agent stops", "uninstall", uninstall)
	errs := []error{a.bgp.Stop(ctx, !uninstall), a.pods.close(), a.policy.close()}
	if uninstall {
		errs = append(errs, a.uninstall(ctx))
	}
	return errors.Join(errs...)
}
