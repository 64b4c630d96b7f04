// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"fmt"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
)

const (
	flushDelay    = time.Millisecond
	maxFlushDelay = 10 * time.Millisecond
	quiet         = 20 * time.Millisecond
	// busyFlush is how many prefixes make a flush a part of something larger, which may wait.
	busyFlush = 64
	// Flushes are what a flapping route costs all clients: an endless run of them gets a slower rhythm
	// than a burst, which may have flushBurst at once and then flushRate a second.
	flushBurst = 400
	flushRate  = 100
	// staleTime bounds how long stale routes wait for an End-of-RIB after the session is back.
	staleTime = 6 * time.Minute
	// pokeEvery is how often Changed has a value at most, and pokePerPeer what each neighbour adds: the
	// snapshot that it leads to costs the core about a microsecond for each.
	pokeEvery   = 200 * time.Millisecond
	pokePerPeer = 100 * time.Microsecond
	// forgetAfter is how long a neighbour from a range is remembered once it is gone.
	forgetAfter = 10 * time.Minute
)

// core owns everything that sessions share. It is one goroutine; what it does, it does quickly, and it
// never waits for a session.
type core struct {
	opts    Options
	log     *slog.Logger
	events  chan event
	stopped chan struct{} // closed when nobody reads events any more
	changed chan struct{} // 1 slot
	batches sync.Pool
	cluster [4]byte

	cfg    Config
	peers  map[peerKey]*peer
	ids    map[[4]byte]int // router IDs of established sessions
	tables [families]table
	pool   pool
	groups map[groupKey]*group

	scratch *encoder // flush's

	nextSource uint32
	nextGroup  int

	flushTimer *time.Timer
	armed      bool
	delay      time.Duration
	flushed    time.Time
	credit     float64 // flushes that may still be quick

	poking atomic.Bool // a poke is due
	poked  time.Time   // when the last was, or is

	// RFC 4724 §4.1: after a restart routes are held back until those who were here have told theirs.
	awaited map[netip.Addr]struct{}
	since   time.Time

	ending bool
}

// event is something that the core is to do.
type event interface{ on(c *core) }

// call runs a function on the core.
type call func(c *core)

func (f call) on(c *core) { f(c) }

func newCore(cfg Config, opts Options, log *slog.Logger) *core {
	c := &core{
		opts: opts, log: log,
		events: make(chan event, 64), stopped: make(chan struct{}), changed: make(chan struct{}, 1),
		cfg: cfg, peers: map[peerKey]*peer{}, ids: map[[4]byte]int{}, pool: pool{byKey: map[string]*attrs{}}, groups: map[groupKey]*group{},
		cluster: cfg.clusterID().As4(), scratch: newEncoder(groupKey{}), delay: flushDelay, credit: flushBurst, since: time.Now(),
	}
	c.batches.New = func() any { return &batch{} }
	for f := range families {
		c.tables[f] = table{family: f, dests: map[prefix]*dest{}}
	}
	for _, a := range opts.Restarted {
		if c.awaited == nil {
			c.awaited = map[netip.Addr]struct{}{}
		}
		c.awaited[a.Unmap()] = struct{}{}
	}
	return c
}

// run is the core's goroutine.
func (c *core) run() {
	defer close(c.stopped)
	c.flushTimer = time.NewTimer(time.Hour)
	defer c.flushTimer.Stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for !c.ending {
		select {
		case e := <-c.events:
			c.safely(e)
		case <-c.flushTimer.C:
			c.armed = false
			c.safely(call((*core).flush))
		case <-tick.C:
			c.safely(call((*core).tick))
		}
		if c.armed || c.dirty() == 0 || c.deferring() {
			continue
		}
		if len(c.events) == 0 && time.Since(c.flushed) > quiet {
			c.safely(call((*core).flush)) // one change in a quiet time need not wait for others
			continue
		}
		c.armed = true
		c.flushTimer.Reset(c.delay)
	}
}

// safely makes a panic cost the session whose event it was.
func (c *core) safely(e event) {
	defer func() {
		if p := recover(); p != nil {
			c.log.Error("core panicked", "panic", p, "stack", string(debug.Stack()))
			if b, ok := e.(*batch); ok {
				b.session.kill(notify(errCease, subReset, nil, ""), "internal error")
			}
		}
	}()
	e.on(c)
}

// post hands an event over; it waits while the core is behind, which is how a flood is slowed down.
func (c *core) post(e event) {
	select {
	case c.events <- e:
	case <-c.stopped:
	}
}

// do runs f on the core and waits for it; false says that the core has stopped.
func (c *core) do(f func(c *core)) bool {
	done := make(chan struct{})
	c.post(call(func(c *core) { defer close(done); f(c) }))
	select {
	case <-done:
		return true
	case <-c.stopped:
		return false
	}
}

func (c *core) batch(s *session) *batch {
	b := c.batches.Get().(*batch)
	b.reset(s)
	return b
}

// poke says that something has changed: at once, and then together with what comes in the next moment. Whoever
// hears it takes a snapshot, and clients that come and go must not make the core do nothing else.
func (c *core) poke() {
	if !c.poking.CompareAndSwap(false, true) {
		return // it will be said
	}
	say := func() {
		c.poking.Store(false)
		select {
		case c.changed <- struct{}{}:
		default:
		}
	}
	wait := pokeEvery + time.Duration(len(c.peers))*pokePerPeer - time.Since(c.poked)
	c.poked = time.Now().Add(max(0, wait))
	if wait <= 0 {
		say()
		return
	}
	time.AfterFunc(wait, say)
}

func (c *core) dirty() int { return len(c.tables[ipv4].dirty) + len(c.tables[ipv6].dirty) }

// on applies what a session has read.
func (b *batch) on(c *core) {
	p := b.session.peer
	if p.up == b.session {
		p.updates += int64(b.updates)
		if b.problems > 0 {
			c.complain(p, b)
		}
		for _, o := range b.ops {
			if b.session.stopped() {
				break
			}
			c.apply(p, b, o)
		}
		c.relieve()
	}
	if cap(b.arena)+24*cap(b.prefixes) <= 4*batchSize {
		c.batches.Put(b)
	}
}

func (c *core) complain(p *peer, b *batch) {
	if p.problems == 0 {
		c.log.Warn("malformed UPDATE, treated as a withdrawal where it matters", "peer", p.name(), "address", p.addr, "problem", b.problem)
	}
	p.problems += int64(b.problems)
	p.problem = b.problem
}

func (c *core) apply(p *peer, b *batch, o op) {
	t := &c.tables[o.family]
	switch o.kind {
	case opAnnounce:
		c.announce(p, t, b.prefixes[o.from:o.to], b.arena[o.attrs:o.end])
	case opWithdraw, opRefuse:
		for _, x := range b.prefixes[o.from:o.to] {
			t.withdraw(&c.pool, p.source, x)
		}
		if o.kind == opRefuse {
			p.source.rejected += int64(o.to - o.from)
		}
	case opEndOfRIB:
		p.eor.add(o.family)
		c.swept(p, o.family)
		c.arrived(p)
		c.poke()
	case opRefresh:
		c.refresh(b.session, o.family)
	case opRefreshBegin:
		// RFC 7313 §4: after a restart, the End-of-RIB comes first.
		if p.up.neg.restart == nil || p.eor.has(o.family) {
			p.refreshing.add(o.family)
			t.markStale(p.source)
		}
	case opRefreshEnd:
		if p.refreshing.has(o.family) {
			p.refreshing &^= 1 << o.family
			c.swept(p, o.family)
		}
	}
}

// announce takes routes in, as far as the peer's policy goes.
func (c *core) announce(p *peer, t *table, prefixes []prefix, key []byte) {
	a := c.pool.get(key)
	a.refs++ // ours, while nobody else may have any
	defer c.pool.release(a)
	src := p.source
	for _, x := range prefixes {
		if !p.accept.match(t.family, x) {
			src.rejected++
			t.withdraw(&c.pool, src, x)
			continue
		}
		t.announce(&c.pool, src, x, a)
	}
	if limit := p.cfg.MaxPrefixes; limit > 0 && src.paths[t.family].n > int(limit) {
		c.overLimit(p, t.family)
	}
}

// overLimit ends a session that has too many prefixes (RFC 4486 §4), and keeps it down for a while.
func (c *core) overLimit(p *peer, f family) {
	limit := p.cfg.MaxPrefixes
	data := []byte{0, f.afi(), safiUnicast, byte(limit >> 24), byte(limit >> 16), byte(limit >> 8), byte(limit)}
	n := notify(errCease, subMaxPrefixes, data, "more than %d %s prefixes", limit, f.public())
	p.heldUntil = time.Now().Add(c.opts.OverLimitRetry)
	p.up.kill(n, n.Error())
}

// relieve ends the session of whoever takes most when all routes together take more than they may: one
// that floods must not cost the others theirs.
func (c *core) relieve() {
	if c.pool.octets <= c.opts.MaxOctets {
		return
	}
	var greedy *peer
	for _, p := range c.peers {
		if p.source != nil && (greedy == nil || p.source.octets > greedy.source.octets) {
			greedy = p
		}
	}
	if greedy == nil {
		return
	}
	n := notify(errCease, subResources, nil, "its routes take %d octets, all together %d", greedy.source.octets, c.pool.octets)
	c.log.Error("too many routes: the client that has most is shut out", "peer", greedy.name(), "address", greedy.addr,
		"octets", greedy.source.octets, "all", c.pool.octets, "for", c.opts.OverLimitRetry)
	greedy.heldUntil, greedy.lastError = time.Now().Add(c.opts.OverLimitRetry), n.Error()
	c.end(greedy, n)
}

// swept drops what is stale still though the peer says that it has told all.
func (c *core) swept(p *peer, f family) {
	c.tables[f].purge(&c.pool, p.source, true)
	if p.stale&^(1<<f) == 0 {
		p.staleUntil = time.Time{}
	}
	p.stale &^= 1 << f
}

// flush tells the groups what has changed since the last time.
func (c *core) flush() {
	n := c.dirty()
	if n == 0 || c.deferring() {
		return
	}
	for f := range families {
		for _, d := range c.tables[f].dirty {
			d.best, _ = decide(d.paths)
		}
	}
	for _, g := range c.groups {
		e := c.scratch
		e.reset(g.groupKey)
		for f := range families {
			for _, d := range c.tables[f].dirty {
				g.change(e, f, d)
			}
		}
		if e.tooLong > 0 {
			c.log.Warn("routes withheld: their attributes do not fit into a message", "group", g.id, "prefixes", e.tooLong)
		}
		if len(e.withdraw[ipv4])+len(e.withdraw[ipv6]) > 0 {
			g.dump = dump{} // who joins must not hear of what is gone
		}
		if b := e.finish(); b != nil {
			g.append(b, e.messages)
		}
		c.cutLaggards(g)
	}
	for f := range families {
		c.tables[f].settle()
	}
	if c.scratch.reset(groupKey{}); cap(c.scratch.items) > 1<<16 {
		c.scratch = newEncoder(groupKey{}) // a burst must not be kept for good
	}
	c.pace(n)
}

// pace chooses how long the next flush waits for more, after one of n prefixes.
func (c *core) pace(n int) {
	now := time.Now()
	c.credit = max(0, min(c.credit+now.Sub(c.flushed).Seconds()*flushRate, flushBurst)-1)
	c.flushed = now
	switch {
	case c.credit < 1:
		c.delay = maxFlushDelay
	case n >= busyFlush: // more is likely to come when much has come
		c.delay = min(2*c.delay, maxFlushDelay)
	default:
		c.delay = flushDelay
	}
}

// cutLaggards ends the sessions for which too much of the log is kept.
func (c *core) cutLaggards(g *group) {
	for s := range g.members {
		at := s.out.at.Load()
		if g.tail.end > at && g.tail.end-at > uint64(c.opts.MaxLag) {
			n := notify(errCease, subResources, nil, "client is %d octets behind", g.tail.end-at)
			s.kill(n, n.Error())
		}
	}
}

// refresh sends a client the family's routes again (RFC 2918, RFC 7313).
func (c *core) refresh(s *session, f family) {
	c.flush()
	if c.deferring() || s.group == nil {
		return // it gets all in a moment
	}
	b := s.group.table(&c.tables, 1<<f)
	i := insert{after: s.group.tail, parts: []*block{b}, refresh: 1 << f}
	if s.neg.enhanced {
		i.parts = []*block{{buf: refreshMessage(f, refreshBegin)}, b}
		i.then = refreshMessage(f, refreshEnd)
	}
	s.out.insert(i)
}

// groupOf finds or makes the group of a session.
func (c *core) groupOf(s *session) *group {
	cfg := s.peer.cfg
	key := groupKey{
		families: s.neg.families, addPaths: s.neg.addPaths, as4: s.neg.as4, extended: s.neg.extended,
		nonClient: cfg.NonClient, policy: cfg.Advertise.key(),
	}
	g := c.groups[key]
	if g == nil {
		c.nextGroup++
		g = newGroup(key, c.nextGroup, cfg.Advertise.compile())
		c.groups[key] = g
		if key.addPaths != 0 {
			for f := range families {
				c.tables[f].gone = true
			}
		}
	}
	return g
}

// join makes a session a member, and sends it the table unless that has to wait.
func (c *core) join(s *session) {
	c.flush()
	s.out.source = s.peer.source
	s.group = c.groupOf(s)
	s.group.members[s] = struct{}{}
	if !c.deferring() {
		c.sendTable(s)
	}
}

func (c *core) sendTable(s *session) {
	g := s.group
	if g.dump.block == nil {
		g.dump = dump{at: g.tail, block: g.table(&c.tables, g.families)}
	}
	var eor []byte
	for f := range families {
		if g.families.has(f) {
			eor = append(eor, endOfRIB(f)...)
		}
	}
	// The log from the table to here belongs to the initial update too, so its end comes after that.
	s.out.join(g.dump.at, insert{after: g.dump.at, parts: []*block{g.dump.block}}, insert{after: g.tail, then: eor})
}

func (c *core) leave(s *session) {
	g := s.group
	if g == nil {
		return
	}
	delete(g.members, s)
	s.group = nil
	if len(g.members) == 0 {
		delete(c.groups, g.groupKey)
	}
}

// deferring tells whether routes are held back after a restart.
func (c *core) deferring() bool { return len(c.awaited) > 0 }

// arrived notes that a peer has told all, if it was waited for.
func (c *core) arrived(p *peer) {
	if _, ok := c.awaited[p.addr]; ok && p.eor&p.up.neg.families == p.up.neg.families {
		c.await(p.addr)
	}
}

// await crosses off whom we need not wait for any longer.
func (c *core) await(addr netip.Addr) {
	if _, ok := c.awaited[addr]; !ok {
		return
	}
	delete(c.awaited, addr)
	if len(c.awaited) == 0 {
		c.endDeferral("all are back")
	}
}

func (c *core) endDeferral(why string) {
	c.awaited = nil
	c.log.Info("restart is over: routes are sent", "why", why, "after", time.Since(c.since).Round(time.Millisecond))
	c.flush()
	for _, g := range c.groups {
		for s := range g.members {
			c.sendTable(s)
		}
	}
}

// tick does what is due by time.
func (c *core) tick() {
	now := time.Now()
	if c.deferring() && now.Sub(c.since) >= c.opts.deferral(c.cfg) {
		c.endDeferral(fmt.Sprintf("%d have not come back in time", len(c.awaited)))
	}
	for _, p := range c.peers {
		if !p.staleUntil.IsZero() && now.After(p.staleUntil) {
			c.log.Info("stale routes dropped", "peer", p.name(), "address", p.addr)
			p.staleUntil = time.Time{}
			c.dropStale(p)
		}
	}
	c.forget(func(p *peer) bool { return now.Sub(p.since) > forgetAfter && now.Sub(p.damping.last) > forgiven })
	for _, g := range c.groups {
		c.cutLaggards(g)
	}
}

// dropStale ends the wait for a peer that restarts.
func (c *core) dropStale(p *peer) {
	for f := range families {
		c.tables[f].purge(&c.pool, p.source, true)
	}
	p.stale = 0
	if p.up == nil {
		p.source = nil
	}
}

func (c *core) restarting() bool {
	gr := c.cfg.GracefulRestart
	return gr.Enabled && len(c.opts.Restarted) > 0 && time.Since(c.since) < gr.RestartTime
}

// open is our OPEN for a peer.
func (c *core) open(p Peer) open {
	o := open{
		asn: c.cfg.ASN, hold: uint16(p.Timers.Hold / time.Second), id: c.cfg.RouterID.As4(), families: familiesOf(p.Families),
		as4: true, refresh: true, enhanced: true, extended: true,
	}
	if p.AddPaths {
		o.addPaths = o.families
	}
	// The capability without families says that we help (RFC 4724 §3), with them that we restart.
	o.restart = &restart{}
	if gr := c.cfg.GracefulRestart; gr.Enabled {
		o.restart = &restart{restarting: c.restarting(), time: gr.RestartTime, families: o.families, forwarding: o.families}
	}
	return o
}

func stateOf(s *session) bgp.SessionState {
	st, _ := s.phase.Load().(bgp.SessionState)
	return st
}
