// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"context"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
)

const (
	// pokeDelay gathers what arrives together into one poke.
	pokeDelay = time.Millisecond
	// restAfterSnapshot is how many times as long as a snapshot takes to make the next poke waits
	// after the last, at most maxPokeDelay: a storm of routes must not be a storm of snapshots.
	restAfterSnapshot = 10
	maxPokeDelay      = 50 * time.Millisecond
)

// view is what the speaker knows: the sessions and one Adj-RIB-In for each. GoBGP's callbacks and
// Apply write it, Snapshot reads it. Whoever holds mu calls nothing of GoBGP.
type view struct {
	log           *slog.Logger
	changed       chan struct{}
	maxPrefixes   int // 0: no limit
	onOverLimit   func(peer netip.Addr, why string)
	onUnreachable func(peer netip.Addr) // its session has to be reset
	onBFD         func()                // BFD is to run with other peers than before

	mu         sync.Mutex
	generation int // of the server; callbacks of an older one are ignored
	running    bool
	sessions   map[netip.Addr]*session
	origins    [2]int64 // how many we originate: IPv4, IPv6

	paths  []bgp.Path            // of the last snapshot: never written again
	dirty  map[routeKey]struct{} // what may differ from paths
	cached *bgp.Snapshot         // nil: something changed
	order  []netip.Addr          // of the sessions; nil: they changed
	downs  chan struct{}         // closed and made anew when a session goes down

	armed    bool // a poke is on its way
	lastPoke time.Time
	cost     time.Duration // of the last snapshot
}

// routeKey is one route of one peer.
type routeKey struct {
	prefix netip.Prefix
	peer   netip.Addr
}

func newView(log *slog.Logger) *view {
	return &view{
		log:      log,
		changed:  make(chan struct{}, 1),
		sessions: map[netip.Addr]*session{},
		dirty:    map[routeKey]struct{}{},
		downs:    make(chan struct{}),
	}
}

// reset forgets everything, because the server starts or has stopped, and returns the generation
// that callbacks of the new server must show.
func (v *view) reset(running bool) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.generation++
	v.running = running
	for addr, s := range v.sessions {
		s.stopTimer()
		v.dropAll(s)
		delete(v.sessions, addr)
	}
	v.order = nil
	v.origins = [2]int64{}
	v.touch()
	return v.generation
}

// touch notes that the next snapshot differs, and arms the poke.
func (v *view) touch() {
	v.cached = nil
	if v.armed {
		return
	}
	v.armed = true
	rest := time.Until(v.lastPoke.Add(restAfterSnapshot * v.cost))
	time.AfterFunc(max(pokeDelay, min(rest, maxPokeDelay)), v.poke)
}

func (v *view) poke() {
	v.mu.Lock()
	v.armed = false
	v.lastPoke = time.Now()
	for _, s := range v.sessions {
		s.logRefused(v.log)
	}
	v.mu.Unlock()
	select {
	case v.changed <- struct{}{}:
	default:
	}
}

// setPeer makes a session for p, or tells an existing one what it should be from now on.
func (v *view) setPeer(p bgp.Peer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.sessions[p.Address]
	if s == nil {
		s = &session{state: bgp.StateIdle, since: time.Now(), routes: map[netip.Prefix]route{}}
		v.sessions[p.Address] = s
		v.order = nil
	} else if reflect.DeepEqual(s.peer, p) {
		return // Apply is repeated often, and must not poke for nothing
	}
	s.peer = p
	s.accept = newAcceptor(p.Accept)
	v.refilter(s)
	switch {
	case p.Held != "":
		v.leave(s, bgp.StateHeld, report{text: p.Held})
		v.dropAll(s)
	case s.state == bgp.StateHeld:
		s.state, s.lastError = bgp.StateIdle, ""
	}
	v.touch()
}

// resetPeer notes that Apply ends the session, and why.
func (v *view) resetPeer(addr netip.Addr, why string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s := v.sessions[addr]; s != nil {
		v.leave(s, bgp.StateIdle, report{text: why})
		v.dropAll(s)
		v.touch()
	}
}

// retainPeers forgets all sessions but those of want.
func (v *view) retainPeers(want map[netip.Addr]bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for addr, s := range v.sessions {
		if !want[addr] {
			s.stopTimer()
			v.dropAll(s)
			delete(v.sessions, addr)
			v.order = nil
			v.touch()
		}
	}
}

// setOrigins notes what is advertised to every peer that speaks the family.
func (v *view) setOrigins(prefixes []netip.Prefix) {
	var n [2]int64
	for _, p := range prefixes {
		n[familyIndex(bgp.FamilyOf(p.Addr()))]++
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.origins != n {
		v.origins = n
		v.touch()
	}
}

// neverUp tells whether the session with addr has not been up since the server started.
func (v *view) neverUp(addr netip.Addr) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.sessions[addr]
	return s != nil && !s.wasUp
}

func (v *view) established(addr netip.Addr) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.sessions[addr]
	return s != nil && s.state == bgp.StateEstablished
}

// waitAllDown waits until no session is up, at most for limit.
func (v *view) waitAllDown(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		v.mu.Lock()
		up := false
		for _, s := range v.sessions {
			up = up || s.state == bgp.StateEstablished
		}
		downs := v.downs
		v.mu.Unlock()
		if !up {
			return
		}
		select {
		case <-downs:
		case <-ctx.Done():
			return
		}
	}
}

// noteReport takes down why a session does not come up, or why it ended.
func (v *view) noteReport(generation int, addr netip.Addr, r report) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.sessions[addr]
	if s == nil || generation != v.generation {
		return
	}
	changed := s.explain(r)
	if r.silent && s.wasUp && !s.silent {
		// GoBGP tells of the expired timer and of the end of the session in no fixed order.
		s.silent = true
		if s.state != bgp.StateEstablished && len(s.routes) > 0 {
			v.dropAll(s)
			changed = true
		}
	}
	if changed {
		v.touch()
	}
}

func (v *view) currentGeneration() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.generation
}

func familyIndex(f bgp.Family) int {
	if f == bgp.IPv6 {
		return 1
	}
	return 0
}
