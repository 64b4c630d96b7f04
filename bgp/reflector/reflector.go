// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"
)

// Options are what a Reflector has for good.
type Options struct {
	// MaxLag is how many octets of its group's log a client may be behind. 0: 32 MiB.
	MaxLag int
	// MaxPeers bounds how many neighbours there may be, those of ranges included. 0: 10,000.
	MaxPeers int
	// MaxOctets is about how much memory all routes may take. The client that takes most is shut out if
	// they take more. 0: 1 GiB.
	MaxOctets int
	// OverLimitRetry is how long a client stays down that sent too many prefixes. 0: a minute.
	OverLimitRetry time.Duration
	// Restarted are the neighbours that had a session with a process whose work this one takes over
	// (RFC 4724 §4.1). Routes are sent when all of them have told theirs, or after Deferral.
	Restarted []netip.Addr
	// Deferral is the Selection_Deferral_Timer. 0: the restart time.
	Deferral time.Duration
}

func (o Options) withDefaults() Options {
	if o.MaxLag == 0 {
		o.MaxLag = 32 << 20
	}
	if o.MaxPeers == 0 {
		o.MaxPeers = 10000
	}
	if o.MaxOctets == 0 {
		o.MaxOctets = 1 << 30
	}
	if o.OverLimitRetry == 0 {
		o.OverLimitRetry = time.Minute
	}
	return o
}

func (o Options) deferral(c Config) time.Duration {
	if o.Deferral > 0 {
		return o.Deferral
	}
	return c.GracefulRestart.RestartTime
}

// Reflector makes itself equal to a Config.
type Reflector struct {
	opts    Options
	log     *slog.Logger
	changed chan struct{}

	applying sync.Mutex // Apply and Stop; never held by what they wait for
	run      *instance  // nil: nothing runs
}

// instance is what runs for one identity: AS number, router ID, cluster ID.
type instance struct {
	cfg       Config
	core      *core
	listeners map[netip.AddrPort]*listener
	dialers   map[peerKey]context.CancelFunc
	ctx       context.Context
	cancel    context.CancelFunc
	work      sync.WaitGroup // listeners, dialers, sessions
}

// New makes a reflector that does nothing until Apply.
func New(opts Options, log *slog.Logger) *Reflector {
	return &Reflector{opts: opts.withDefaults(), log: log, changed: make(chan struct{}, 1)}
}

// Changed has a value when a session has come up or gone down since it was last read. It has one five times
// a second at most, more rarely if there are thousands of neighbours.
func (r *Reflector) Changed() <-chan struct{} { return r.changed }

// Apply makes the reflector equal to a Config. Sessions that the difference does not concern go on. An
// error of one listener does not keep the rest from being applied; Apply again retries.
func (r *Reflector) Apply(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	r.applying.Lock()
	defer r.applying.Unlock()
	cfg.Peers = slices.Clone(cfg.Peers)
	for i, p := range cfg.Peers {
		cfg.Peers[i] = p.withDefaults(cfg)
	}
	if r.run != nil && !r.run.cfg.sameIdentity(cfg) {
		r.log.Info("identity has changed: all sessions begin again")
		if err := r.stop(ctx, shutdown(subConfigChange, "")); err != nil {
			return err
		}
		r.opts.Restarted = nil // whoever was here has been told to forget
	}
	if r.run == nil {
		r.run = r.start(cfg)
	}
	run := r.run
	run.cfg = cfg
	err := run.listen(cfg, r.log)
	run.core.do(func(c *core) { c.configure(cfg) })
	run.dial(cfg, r.log)
	return err
}

func (c Config) sameIdentity(d Config) bool {
	return c.ASN == d.ASN && c.RouterID == d.RouterID && c.clusterID() == d.clusterID()
}

func (r *Reflector) start(cfg Config) *instance {
	c := newCore(cfg, r.opts, r.log)
	c.changed = r.changed
	run := &instance{cfg: cfg, core: c, listeners: map[netip.AddrPort]*listener{}, dialers: map[peerKey]context.CancelFunc{}}
	run.ctx, run.cancel = context.WithCancel(context.Background()) // it outlives Apply; Stop ends it
	go c.run()
	return run
}

// Stop ends everything. With graceful, connections are closed without a word, so that clients keep the
// routes for the restart time (RFC 4724); otherwise they are told.
func (r *Reflector) Stop(ctx context.Context, graceful bool) error {
	r.applying.Lock()
	defer r.applying.Unlock()
	if r.run == nil {
		return nil
	}
	var n *notification
	if !graceful {
		n = shutdown(subShutdown, "reflector stops")
	}
	return r.stop(ctx, n)
}

func (r *Reflector) stop(ctx context.Context, n *notification) error {
	run := r.run
	r.run = nil
	run.cancel()
	for _, l := range run.listeners {
		_ = l.Close()
	}
	run.core.do(func(c *core) { c.endAll(n) })
	over := make(chan struct{})
	go func() { run.work.Wait(); close(over) }()
	select {
	case <-over:
	case <-ctx.Done():
		return fmt.Errorf("stop reflector: %w", ctx.Err())
	}
	run.core.do(func(c *core) { c.ending = true })
	return nil
}

// endAll ends all sessions, with a notification or without.
func (c *core) endAll(n *notification) {
	for _, p := range c.peers {
		if p.up != nil {
			p.up.kill(n, errStopping.Error())
		}
		for s := range p.sessions {
			s.kill(n, errStopping.Error())
		}
	}
}

// configure makes the peers what the configuration says.
func (c *core) configure(cfg Config) {
	c.cfg = cfg
	for key, p := range c.peers {
		now, ok := match(cfg.Peers, key.addr, key.id)
		if !ok || now.RouterID != key.id { // one that gets or loses an identity is another
			c.end(p, shutdown(subDeconfigured, ""))
			delete(c.peers, key)
			continue
		}
		c.reconfigure(p, now)
	}
	for _, p := range cfg.Peers {
		if p.single() {
			if _, err := c.peerOf(p.Prefix.Addr(), p.RouterID); err != nil {
				c.log.Error("peer is left out", "peer", p.Name, "err", err)
			}
		}
	}
}

// reconfigure changes one peer, without a reset if that is possible.
func (c *core) reconfigure(p *peer, now Peer) {
	was := p.cfg
	p.cfg, p.accept, p.dynamic, p.label = now, now.Accept.compile(), !now.single(), ""
	if now.needsReset(was) {
		c.end(p, shutdown(subConfigChange, ""))
		return
	}
	if p.up == nil {
		return
	}
	if was.Accept.key() != now.Accept.key() {
		c.refilter(p)
	}
	if was.Advertise.key() != now.Advertise.key() {
		c.regroup(p.up)
	}
	for f := range families {
		if now.MaxPrefixes > 0 && p.source.paths[f].n > int(now.MaxPrefixes) {
			c.overLimit(p, f)
		}
	}
}

// needsReset tells whether a session must begin again for the change.
func (p Peer) needsReset(was Peer) bool {
	for _, x := range []*Peer{&p, &was} {
		x.Name, x.Accept, x.Advertise, x.MaxPrefixes, x.Timers.ConnectRetry = "", Policy{}, Policy{}, 0, 0
		x.Prefix = netip.Prefix{} // another range with the same settings is as good
	}
	return !reflect.DeepEqual(p, was)
}

// refilter drops what is not accepted any more and asks for what may be accepted now: it was not kept.
func (c *core) refilter(p *peer) {
	for f := range families {
		t := &c.tables[f]
		for x := p.source.paths[f].first; x != nil; {
			after := x.after
			if !p.accept.match(f, x.dest.prefix) {
				t.remove(&c.pool, x)
				p.source.rejected++
			}
			x = after
		}
		if p.up.neg.families.has(f) && p.up.neg.refresh {
			p.up.out.send(refreshMessage(f, refreshRequest))
		}
	}
	if !p.up.neg.refresh {
		n := shutdown(subConfigChange, "")
		p.up.kill(n, n.Error())
	}
}

// regroup moves a session into the group of its new policy: it gets what it lacks and loses what it
// must not have, where the old log ends, and goes on in the new one.
func (c *core) regroup(s *session) {
	c.flush()
	old := s.group
	c.leave(s)
	g := c.groupOf(s)
	s.group = g
	g.members[s] = struct{}{}
	if c.deferring() {
		return
	}
	e := newEncoder(g.groupKey)
	for f := range families {
		for _, d := range c.tables[f].dests {
			had, has := old.policy.match(f, d.prefix), g.policy.match(f, d.prefix)
			if had == has || !g.families.has(f) {
				continue
			}
			g.move(e, f, d, has)
		}
	}
	i := insert{after: old.tail, jump: g.tail}
	if b := e.finish(); b != nil {
		i.parts = []*block{b}
	}
	s.out.insert(i)
}

// move announces or withdraws a prefix whose policy has changed.
func (g *group) move(e *encoder, f family, d *dest, announce bool) {
	for x := d.paths; x != nil; x = x.next {
		n := nlri{prefix: d.prefix}
		if g.addPaths.has(f) {
			n.id = x.from.id
		} else if x != d.best {
			continue
		}
		switch {
		case !g.sends(x.from):
		case announce:
			e.addAnnounce(x.from, x.attrs, n)
		default:
			e.addWithdraw(f, n)
		}
	}
}

// listener is one socket that clients connect to.
type listener struct {
	net.Listener
	signed map[netip.Prefix]string // the passwords that the kernel has
}

// listen opens and closes sockets and gives the kernel the passwords.
func (run *instance) listen(cfg Config, log *slog.Logger) error {
	var errs []error
	for addr, l := range run.listeners {
		if !slices.Contains(cfg.Listen, addr) {
			_ = l.Close()
			delete(run.listeners, addr)
		}
	}
	for _, addr := range cfg.Listen {
		l := run.listeners[addr]
		if l == nil {
			var err error
			if l, err = listenOn(run.ctx, addr); err != nil {
				errs = append(errs, fmt.Errorf("listen on %s: %w", addr, err))
				continue
			}
			run.listeners[addr] = l
			// Before the first connection: without its key a client would be refused for long.
			errs = append(errs, l.sign(cfg.Peers))
			run.work.Go(func() { run.accept(l, log) })
			continue
		}
		errs = append(errs, l.sign(cfg.Peers))
	}
	return errors.Join(errs...)
}

// sign makes the kernel check passwords (RFC 2385). A peer that must have one but has none yet gets
// none: mayConnect keeps it out.
func (l *listener) sign(peers []Peer) error {
	want := map[netip.Prefix]string{}
	here := l.Addr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	for _, p := range peers {
		if p.Password != "" && p.Prefix.Addr().Is4() == here.Is4() {
			want[p.Prefix] = string(p.Password)
		}
	}
	var errs []error
	for p := range l.signed {
		if _, ok := want[p]; !ok {
			if err := setListenerPassword(l.Listener, p, ""); err != nil {
				errs = append(errs, fmt.Errorf("remove password of %s: %w", p, err))
			}
			delete(l.signed, p)
		}
	}
	for p, password := range want {
		if l.signed[p] == password {
			continue
		}
		if err := setListenerPassword(l.Listener, p, password); err != nil {
			errs = append(errs, fmt.Errorf("set password of %s: %w", p, err))
			continue
		}
		l.signed[p] = password
	}
	return errors.Join(errs...)
}

// accept serves a socket until it is closed.
func (run *instance) accept(l *listener, log *slog.Logger) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of file descriptors, most likely: it passes
			log.Warn("accept failed", "err", err)
			if !pause(run.ctx, 100*time.Millisecond) {
				return
			}
			continue
		}
		remote := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
		run.serve(conn, remote, false)
	}
}

// serve begins a session on a connection; false: there must be none.
func (run *instance) serve(conn net.Conn, remote netip.Addr, active bool) *session {
	var s *session
	var refusal *notification
	run.core.do(func(c *core) {
		if run.ctx.Err() == nil {
			s, refusal = c.begin(conn, remote, active)
		}
	})
	if s != nil && s.cfg.TTLHops > 0 {
		if err := setTTL(conn, s.cfg.TTLHops); err != nil {
			s.log.Error("TTL security cannot be set", "err", err)
			s.kill(nil, fmt.Sprintf("TTL security: %v", err))
		}
	}
	if s == nil {
		if refusal != nil {
			_ = conn.SetWriteDeadline(time.Now().Add(farewell)) // nothing is before it: it does not wait
			_, _ = conn.Write(refusal.message())
		}
		_ = conn.Close()
		return nil
	}
	run.work.Go(s.run)
	return s
}

// dial starts and stops the dialers.
func (run *instance) dial(cfg Config, log *slog.Logger) {
	want := map[peerKey]Peer{}
	for _, p := range cfg.Peers {
		if p.Connect && p.Held == "" {
			want[p.key(p.Prefix.Addr())] = p
		}
	}
	for key, cancel := range run.dialers {
		cancel()
		delete(run.dialers, key)
	}
	for key, p := range want {
		ctx, cancel := context.WithCancel(run.ctx)
		run.dialers[key] = cancel
		run.work.Go(func() { run.keepDialing(ctx, p, log) })
	}
}

// keepDialing connects whenever there is no session, until the configuration changes. A session that
// it began outlives it.
func (run *instance) keepDialing(ctx context.Context, p Peer, log *slog.Logger) {
	addr := p.Prefix.Addr()
	for {
		wanted := false
		run.core.do(func(c *core) {
			if peer := c.peers[p.key(addr)]; peer != nil {
				wanted = peer.up == nil && len(peer.sessions) == 0 && peer.mayConnect() == nil
				peer.dialing = wanted
			}
		})
		if wanted {
			conn, err := connect(ctx, p)
			run.core.do(func(c *core) {
				if peer := c.peers[p.key(addr)]; peer != nil {
					peer.dialing = false
					if err != nil && ctx.Err() == nil {
						c.failed(peer, plain(err).Error())
					}
				}
			})
			if err == nil {
				run.serve(conn, addr, true)
			}
		}
		// RFC 4271 §10: jitter, lest two sides collide forever.
		if !pause(ctx, p.Timers.ConnectRetry*3/4+rand.N(p.Timers.ConnectRetry/4)) {
			return
		}
	}
}

// pause waits; false says that ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// connect dials a peer.
func connect(ctx context.Context, p Peer) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second, KeepAlive: -1, Control: dialControl(p)}
	if p.LocalAddress.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.LocalAddress, 0))
	}
	return d.DialContext(ctx, "tcp", netip.AddrPortFrom(p.Prefix.Addr(), p.Port).String())
}

// listenOn opens a socket for one family: a password of the one has no meaning for the other.
func listenOn(ctx context.Context, addr netip.AddrPort) (*listener, error) {
	network := "tcp6"
	if addr.Addr().Is4() {
		network = "tcp4"
	}
	lc := net.ListenConfig{KeepAlive: -1, Control: listenControl}
	l, err := lc.Listen(ctx, network, addr.String())
	if err != nil {
		return nil, err
	}
	return &listener{Listener: l, signed: map[netip.Prefix]string{}}, nil
}
