// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
)

// crossing is how long after the start of a session the other side's connection may still be on its way.
const crossing = 3 * time.Second

// maxConnections of one neighbour that are not established: two collide, more are a flood.
const maxConnections = 4

// peer is one neighbour. The core owns it.
type peer struct {
	addr    netip.Addr
	cfg     Peer
	accept  compiled
	dynamic bool // from a range: it exists since it connected
	label   string

	sessions map[*session]struct{} // not established
	up       *session
	source   *source // nil: it has no routes here
	dialing  bool

	since     time.Time // of the last change between Established and not
	flaps     int64
	lastError string
	heldUntil time.Time
	damping   damping

	updates  int64
	problems int64
	problem  string

	// RFC 4724: which families have routes of a session that ended, and how long they stay.
	stale      familySet
	staleUntil time.Time
	eor        familySet
	refreshing familySet // RFC 7313: between the beginning of a refresh and its end
}

// peerKey tells neighbours apart.
type peerKey struct{ addr, id netip.Addr }

// key is that of the neighbour at an address that the configuration is for.
func (p Peer) key(addr netip.Addr) peerKey { return peerKey{addr, p.RouterID} }

func (p *peer) key() peerKey { return p.cfg.key(p.addr) }

// name is made once: a snapshot has ten thousand of them.
func (p *peer) name() string {
	if p.dynamic && p.label == "" {
		p.label = p.cfg.Name + "/" + p.addr.String()
	}
	if p.dynamic {
		return p.label
	}
	return p.cfg.Name
}

// match finds the configuration of an address: the longest prefix. Of peers that share it, it is that with
// the router ID, or the first if that is not known.
func match(peers []Peer, addr, id netip.Addr) (Peer, bool) {
	best := -1
	for i, p := range peers {
		if id.IsValid() && p.RouterID != id {
			continue
		}
		if p.Prefix.Contains(addr) && (best < 0 || p.Prefix.Bits() > peers[best].Prefix.Bits()) {
			best = i
		}
	}
	if best < 0 {
		return Peer{}, false
	}
	return peers[best], true
}

// peerOf finds or makes the peer at an address, with a router ID if that is known.
func (c *core) peerOf(addr, id netip.Addr) (*peer, error) {
	if p := c.peers[peerKey{addr, id}]; p != nil {
		return p, nil // most have no router ID to look for
	}
	cfg, ok := match(c.cfg.Peers, addr, id)
	if !ok {
		return nil, errors.New("no peer has this address")
	}
	if p := c.peers[cfg.key(addr)]; p != nil {
		return p, nil
	}
	if len(c.peers) >= c.opts.MaxPeers {
		// Those who have gone make room: many at once, since who came in such numbers may go on.
		c.forget(func(*peer) bool { return true })
	}
	if len(c.peers) >= c.opts.MaxPeers {
		return nil, errors.New("too many peers")
	}
	p := &peer{addr: addr, cfg: cfg, accept: cfg.Accept.compile(), dynamic: !cfg.single(), sessions: map[*session]struct{}{}, since: time.Now()}
	c.peers[p.key()] = p
	return p, nil
}

// forget drops what is known of neighbours from ranges that have gone, if the choice falls on them. Who is
// shut out would be let in again: they stay.
func (c *core) forget(choice func(p *peer) bool) {
	now := time.Now()
	for key, p := range c.peers {
		gone := p.dynamic && p.up == nil && len(p.sessions) == 0 && p.source == nil
		if gone && !now.Before(p.heldUntil) && !p.damping.active(now) && choice(p) {
			delete(c.peers, key)
		}
	}
}

// mayConnect says why there must be no new connection; nil: there may be.
func (p *peer) mayConnect() error {
	switch {
	case p.cfg.Held != "":
		return errors.New(p.cfg.Held)
	case time.Now().Before(p.heldUntil):
		return errors.New("held down: " + p.lastError)
	case p.damping.active(time.Now()):
		return errors.New(p.damping.why())
	case len(p.sessions) >= maxConnections:
		return errors.New("too many connections")
	}
	return nil
}

// candidate is the peer that a connection may be of, and why it must not be; nil: nobody's. Of several at
// one address it is the first that may connect: which of them it is, its OPEN tells.
func (c *core) candidate(addr netip.Addr) (*peer, error) {
	p, err := c.peerOf(addr, netip.Addr{})
	if err != nil {
		return nil, err
	}
	if err = p.mayConnect(); err == nil || !p.cfg.RouterID.IsValid() {
		return p, err
	}
	for _, cfg := range c.cfg.Peers {
		if other := c.peers[cfg.key(addr)]; other != nil && cfg.Prefix == p.cfg.Prefix && other.mayConnect() == nil {
			return other, nil
		}
	}
	return p, err
}

// begin makes a session of a connection; nil: refused, and the connection is closed. A neighbour is told
// so (RFC 4486 §4), a stranger is not: it may become a neighbour in a moment, and some who get a
// NOTIFICATION take long until they try again.
func (c *core) begin(conn net.Conn, addr netip.Addr, active bool) (*session, *notification) {
	addr = addr.Unmap().WithZone("")
	p, err := c.candidate(addr)
	if p == nil {
		c.log.Debug("connection refused", "address", addr, "why", err)
		return nil, nil
	}
	if err != nil {
		p.damping.refused++
		c.log.Debug("connection refused", "peer", p.name(), "address", addr, "why", err)
		return nil, notify(errCease, subRejected, nil, "%v", err)
	}
	s := &session{
		core: c, peer: p, cfg: p.cfg, addr: addr, conn: conn, active: active, ours: c.open(p.cfg),
		log: c.log.With("peer", p.name(), "address", addr), done: make(chan struct{}),
	}
	s.out.wake = make(chan struct{}, 1)
	s.phase.Store(bgp.StateOpenSent)
	p.sessions[s] = struct{}{}
	return s, nil
}

// opened asks whether a session whose OPEN was good may go on.
type opened struct {
	session *session
	reply   chan *notification
}

func (e opened) on(c *core) { e.reply <- c.collide(e.session) }

// collide is RFC 4271 §6.8: of two connections with one neighbour the one stays that was begun by the
// side with the higher identifier. It returns the notification for the new one if that must go.
func (c *core) collide(s *session) *notification {
	p := s.peer
	collision := func() *notification { return notify(errCease, subCollision, nil, "") }
	if _, ok := p.sessions[s]; !ok {
		return notify(errCease, subDeconfigured, nil, "")
	}
	if n := c.identify(s); n != nil {
		return n
	}
	p = s.peer
	if up := p.up; up != nil && !up.stopped() {
		// RFC 4724 §5: one that can restart has restarted, though its old connection seems to live; but not
		// in the moment in which both sides' connections have crossed.
		crossed := up.active != s.active && time.Since(p.since) < crossing
		if up.neg.restart == nil || s.neg.restart == nil || crossed {
			return collision()
		}
		up.kill(nil, "peer connected again")
		c.down(up, ended{text: "peer connected again", graceful: true})
	}
	for other := range p.sessions {
		if other == s || stateOf(other) != bgp.StateOpenConfirm {
			continue
		}
		// The same side began both: then it has given up the older one.
		keepNew := other.active == s.active || s.active == (compareID(s.ours.id, s.neg.id) > 0)
		if !keepNew {
			return collision()
		}
		other.kill(collision(), collision().Error())
	}
	s.phase.Store(bgp.StateOpenConfirm)
	return nil
}

// identify gives a session to whom its OPEN says that it is of.
func (c *core) identify(s *session) *notification {
	id := netip.AddrFrom4(s.neg.id)
	if !s.cfg.RouterID.IsValid() || s.cfg.RouterID == id {
		return nil
	}
	p, err := c.peerOf(s.addr, id)
	if err != nil {
		return notify(errOpen, subBadID, nil, "identifier %s is not %s", id, s.cfg.RouterID)
	}
	if err := p.mayConnect(); err != nil {
		return notify(errCease, subRejected, nil, "%v", err)
	}
	delete(s.peer.sessions, s)
	s.peer, s.cfg, s.log = p, p.cfg, c.log.With("peer", p.name(), "address", s.addr)
	p.sessions[s] = struct{}{}
	return nil
}

func compareID(a, b [4]byte) int { return netip.AddrFrom4(a).Compare(netip.AddrFrom4(b)) }

// established says that a session is up.
type established struct {
	session *session
	reply   chan bool
}

func (e established) on(c *core) { e.reply <- c.rise(e.session) }

func (c *core) rise(s *session) bool {
	p := s.peer
	if _, ok := p.sessions[s]; !ok || p.up != nil || s.stopped() {
		return false
	}
	delete(p.sessions, s)
	p.up, p.since, p.eor, p.refreshing = s, time.Now(), 0, 0
	if p.source == nil {
		c.nextSource++
		p.source = &source{id: c.nextSource, peer: p.name(), addr: p.addr, nonClient: p.cfg.NonClient}
	}
	c.resume(p)
	c.join(s)
	c.warnTwins(s)
	// Nothing will come that is worth waiting for.
	if r := s.neg.restart; r == nil || r.restarting {
		c.await(p.addr)
	}
	s.log.Info("session established", "hold", s.neg.hold, "families", s.neg.families, "group", s.group.id)
	c.poke()
	return true
}

// resume is RFC 4724 §4.2: what a restarted peer did not keep is dropped at once, the rest waits for
// its End-of-RIB.
func (c *core) resume(p *peer) {
	r := p.up.neg.restart
	for f := range families {
		if !p.stale.has(f) {
			continue
		}
		kept := r != nil && r.families.has(f) && p.up.neg.families.has(f) && (!r.restarting || r.forwarding.has(f))
		if !kept {
			c.tables[f].purge(&c.pool, p.source, true)
			p.stale &^= 1 << f
		}
	}
	p.staleUntil = time.Time{}
	if p.stale != 0 {
		p.staleUntil = time.Now().Add(staleTime)
	}
}

// warnTwins says that two clients have one router ID: each ignores the other's routes as its own.
func (c *core) warnTwins(s *session) {
	if c.ids[s.neg.id]++; c.ids[s.neg.id] == 1 {
		return
	}
	for _, other := range c.peers {
		if other.up != nil && other.up != s && other.up.neg.id == s.neg.id {
			s.log.Warn("router ID is another client's too: they will ignore each other's routes unless they are one router",
				"routerID", netip.AddrFrom4(s.neg.id), "other", other.addr)
			return
		}
	}
}

// closed says that a session is over, and its connection closed.
type closed struct {
	session *session
	ended   ended
}

func (e closed) on(c *core) {
	p := e.session.peer
	if _, ok := p.sessions[e.session]; ok {
		delete(p.sessions, e.session)
		c.failed(p, e.ended.text)
		// How often we try, ConnectRetryTimer says; whose it was of two at one address, only an OPEN.
		if s := e.session; !s.active && (!s.cfg.RouterID.IsValid() || s.cfg.RouterID == netip.AddrFrom4(s.neg.id)) {
			c.oscillate(p, 0, e.ended)
		}
		return
	}
	c.down(e.session, e.ended)
}

// failed notes why there is no session yet.
func (c *core) failed(p *peer, why string) {
	if p.up != nil || why == "" {
		return
	}
	if why != p.lastError {
		c.log.Info("session could not be established", "peer", p.name(), "address", p.addr, "why", why)
	}
	p.lastError = why
	c.poke()
}

// down takes an established session out.
func (c *core) down(s *session, e ended) {
	p := s.peer
	if p.up != s {
		return
	}
	c.leave(s)
	if c.ids[s.neg.id]--; c.ids[s.neg.id] == 0 {
		delete(c.ids, s.neg.id)
	}
	c.oscillate(p, max(time.Since(p.since), 1), e)
	p.up, p.since, p.lastError = nil, time.Now(), e.text
	p.flaps++
	keep := familySet(0)
	wait := time.Duration(0)
	if r := s.neg.restart; e.graceful && r != nil && r.time > 0 {
		keep, wait = r.families&s.neg.families, r.time
	}
	for f := range families {
		t := &c.tables[f]
		// What a second restart finds stale is too old (RFC 4724 §4.2).
		t.purge(&c.pool, p.source, keep.has(f))
		if keep.has(f) {
			t.markStale(p.source)
		}
	}
	p.stale, p.staleUntil = keep, time.Time{}
	if keep != 0 {
		p.staleUntil = time.Now().Add(wait)
	} else {
		p.source = nil
	}
	s.log.Info("session ended", "why", e.text, "routes", map[bool]string{true: "kept", false: "dropped"}[keep != 0])
	c.poke()
}

// end ends all sessions of a peer with a notification, and forgets its routes.
func (c *core) end(p *peer, n *notification) {
	for s := range p.sessions {
		s.kill(n, n.Error())
		delete(p.sessions, s)
	}
	if p.up != nil {
		p.up.kill(n, n.Error())
		c.down(p.up, ended{text: n.Error(), innocent: true})
	}
	if p.source != nil {
		for f := range families {
			c.tables[f].purge(&c.pool, p.source, false)
		}
		p.source, p.stale, p.staleUntil = nil, 0, time.Time{}
	}
}

// state is the peer's for status.
func (p *peer) state(now time.Time) bgp.SessionState {
	switch {
	case p.up != nil:
		return bgp.StateEstablished
	case p.cfg.Held != "":
		return bgp.StateHeld
	}
	best := bgp.StateActive
	for s := range p.sessions {
		if stateOf(s) == bgp.StateOpenConfirm {
			return bgp.StateOpenConfirm
		}
		best = bgp.StateOpenSent
	}
	switch {
	case len(p.sessions) > 0:
		return best
	case now.Before(p.heldUntil), p.damping.active(now):
		return bgp.StateIdle
	case p.dialing:
		return bgp.StateConnect
	}
	return best
}
