// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/path"
)

// DefaultPort is the UDP port of questions and answers.
const DefaultPort = 4793

// Config is what the cluster says about probing.
type Config struct {
	Key          []byte // of the HMAC; empty: nothing is asked and nothing answered
	Port         uint16 // 0: DefaultPort
	Capabilities path.Capabilities
	// Locals are the node's own pod-network addresses, to listen on. The first one of a family is asked from.
	Locals []netip.Addr
	Peers  []netip.Addr // who may ask: the other nodes' pod-network addresses
}

func (c *Config) equal(o *Config) bool {
	return bytes.Equal(c.Key, o.Key) && c.Port == o.Port && c.Capabilities == o.Capabilities &&
		slices.Equal(c.Locals, o.Locals) && slices.Equal(c.Peers, o.Peers)
}

// Options are what a Prober is made with.
type Options struct {
	Marks [path.Methods]uint32 // that send a packet by one method
	// MethodOf says which method a packet came by, from the index of its device: Native for what is no tunnel.
	// It is called from Run for each packet. Nil: there are no tunnels.
	MethodOf   func(ifindex int) path.Method
	Registerer prometheus.Registerer // nil: metrics are nobody's

	now  func() time.Time
	open func() (sockets, error)
}

// sockets are the part of the kernel that a Prober uses.
type sockets interface {
	// Bind makes the addresses, and no others, those that are listened on.
	Bind(locals []netip.Addr, port uint16) error
	Able(bgp.Family) bool // of echo
	Send(outbound) error
	Wait(time.Duration)    // until there is something to receive, or Wake
	Receive(func(inbound)) // all that is there
	Wake()                 // ends a Wait, from any goroutine
	Close()
}

const (
	// lateness is how late the loop may be to judge what happened meanwhile.
	lateness = 300 * time.Millisecond
	// publishInterval is how often reports are published whose news nobody waits for.
	publishInterval = 2 * time.Second
	bindRetry       = time.Second
	longest         = 10 * time.Second // that the loop sleeps
)

// Prober asks other nodes and answers them. Set… and Reports may be called from any goroutine.
type Prober struct {
	options Options
	log     *slog.Logger
	core    *core
	sockets sockets // while Run runs

	config  atomic.Pointer[Config]
	targets atomic.Pointer[[]path.Target]
	reports atomic.Pointer[map[path.Key]path.Report]
	wake    atomic.Pointer[func()]
	changed chan struct{}

	takenConfig  *Config // what the core has
	takenTargets *[]path.Target
	published    time.Time
	bindAt       time.Time // when to try again, zero: bound
	bindError    string
	rawTold      bool
}

// New makes a Prober that knows nobody. It does nothing until Run.
func New(options Options, log *slog.Logger) (*Prober, error) {
	if options.Registerer == nil {
		options.Registerer = prometheus.NewRegistry()
	}
	if options.MethodOf == nil {
		options.MethodOf = func(int) path.Method { return path.Native }
	}
	if options.now == nil {
		options.now = time.Now
	}
	if options.open == nil {
		options.open = func() (sockets, error) { return openSockets(options.Marks, options.MethodOf) }
	}
	count, err := newMetrics(options.Registerer)
	if err != nil {
		return nil, err
	}
	var seed [32]byte
	if _, err := crand.Read(seed[:]); err != nil {
		return nil, fmt.Errorf("seed nonces: %w", err)
	}
	p := &Prober{options: options, log: log, changed: make(chan struct{}, 1)}
	p.core = newCore(count, rand.NewChaCha8(seed),
		func(o outbound) error { return p.sockets.Send(o) },
		func(f bgp.Family) bool { return p.sockets.Able(f) })
	p.config.Store(&Config{})
	p.targets.Store(&[]path.Target{})
	p.reports.Store(&map[path.Key]path.Report{})
	return p, nil
}

// SetConfig sets the configuration. It touches memory only, and takes effect while Run runs.
func (p *Prober) SetConfig(c Config) {
	if p.config.Load().equal(&c) {
		return
	}
	c.Key, c.Locals, c.Peers = bytes.Clone(c.Key), slices.Clone(c.Locals), slices.Clone(c.Peers)
	p.config.Store(&c)
	p.poke()
}

// SetTargets sets whom to ask. It touches memory only, and takes effect while Run runs.
func (p *Prober) SetTargets(targets []path.Target) {
	if slices.Equal(*p.targets.Load(), targets) {
		return
	}
	targets = slices.Clone(targets)
	p.targets.Store(&targets)
	p.poke()
}

// Reports returns what is known. The map must not be changed.
func (p *Prober) Reports() map[path.Key]path.Report { return *p.reports.Load() }

// Changed has one element after reports changed in more than figures: a verdict, silence, what a remote node
// can do, an MTU, or the fifth answer in a row.
func (p *Prober) Changed() <-chan struct{} { return p.changed }

func (p *Prober) poke() {
	if wake := p.wake.Load(); wake != nil {
		(*wake)()
	}
}

// Run asks and answers until the context ends. It returns an error only if it cannot begin.
func (p *Prober) Run(ctx context.Context) error {
	s, err := p.options.open()
	if err != nil {
		return fmt.Errorf("open sockets: %w", err)
	}
	p.sockets = s
	wake := s.Wake
	p.wake.Store(&wake)
	stop := context.AfterFunc(ctx, wake)
	defer func() {
		stop()
		p.wake.Store(nil)
		s.Close()
	}()
	for ctx.Err() == nil {
		p.turn()
	}
	return nil
}

// turn does what is due, and waits for the next that is, or for packets.
func (p *Prober) turn() {
	now := p.options.now()
	p.take(now)
	p.core.step(now)
	p.publish(now)
	due := now.Add(longest)
	for _, t := range []time.Time{p.core.next(now), p.bindAt, p.publishAt()} {
		if !t.IsZero() && t.Before(due) {
			due = t
		}
	}
	p.sockets.Wait(due.Sub(p.options.now()))
	late := p.options.now().Sub(due) > lateness
	// What lies in the buffers came in time, even if nobody was there to read it.
	p.sockets.Receive(func(in inbound) { p.core.receive(in, p.options.now(), late) })
	if late {
		p.core.discard()
	}
}

// take hands what was set meanwhile to the core.
func (p *Prober) take(now time.Time) {
	if c := p.config.Load(); c != p.takenConfig {
		p.takenConfig = c
		p.bindAt = now
		p.core.setConfig(*c, now)
	}
	if !p.bindAt.IsZero() && !p.bindAt.After(now) {
		p.bind(now)
	}
	if t := p.targets.Load(); t != p.takenTargets {
		p.takenTargets = t
		p.core.setTargets(*t, now)
	}
}

// bind follows the configuration. What cannot be bound is tried again.
func (p *Prober) bind(now time.Time) {
	c := p.takenConfig
	locals, port := c.Locals, c.Port
	if len(c.Key) == 0 {
		locals = nil // who cannot tell friend from foe does not listen
	}
	if port == 0 {
		port = DefaultPort
	}
	p.bindAt = time.Time{}
	err := p.sockets.Bind(locals, port)
	switch {
	case err != nil:
		p.bindAt = now.Add(bindRetry)
		if err.Error() != p.bindError {
			p.log.Error("cannot listen for probes, trying again", "error", err)
			p.bindError = err.Error()
		}
		return
	case p.bindError != "":
		p.log.Info("listening for probes again")
		p.bindError = ""
	}
	for _, a := range locals {
		if f := bgp.FamilyOf(a); !p.sockets.Able(f) && !p.rawTold {
			p.rawTold = true
			p.log.Warn("no raw socket: a node whose agent is down cannot be told from one that is gone", "family", f)
		}
	}
}

// publish publishes the reports, at once if somebody waits for the news.
func (p *Prober) publish(now time.Time) {
	if at := p.publishAt(); !p.core.significant && (at.IsZero() || at.After(now)) {
		return
	}
	reports := p.core.snapshot(now)
	p.reports.Store(&reports)
	p.published = now
	if p.core.significant {
		p.core.significant = false
		select {
		case p.changed <- struct{}{}:
		default:
		}
	}
}

// publishAt is when to publish what nobody waits for; zero: there is nothing.
func (p *Prober) publishAt() time.Time {
	if !p.core.dirty {
		return time.Time{}
	}
	return p.published.Add(publishInterval)
}
