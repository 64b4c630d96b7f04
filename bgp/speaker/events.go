// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
)

// endOfRIBWait bounds how long stale routes wait for End-of-RIB once their peer is back. FRR
// may hold its own routes back for 360 s.
const endOfRIBWait = 400 * time.Second

// stateChange is one step of a session's state machine.
type stateChange struct {
	peer         netip.Addr
	state        bgp.SessionState
	reason       report
	graceful     bool // the peer may be restarting: keep its routes
	capabilities capabilities
}

// onState follows a session's state machine. GoBGP reports a session as up before it reports the
// first route, and as down after the last.
func (v *view) onState(generation int, c stateChange) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.sessions[c.peer]
	if s == nil || generation != v.generation || s.state == bgp.StateHeld {
		return
	}
	switch {
	case c.state == bgp.StateEstablished:
		v.up(s, c.capabilities)
	case s.state == bgp.StateEstablished:
		kept := s.capabilities.graceful
		restart := s.capabilities.restartTime
		v.leave(s, c.state, c.reason)
		if c.graceful && restart > 0 && !s.silent && !c.reason.silent {
			v.keepStale(s, kept, restart)
		} else {
			v.dropAll(s)
		}
	default:
		s.state = c.state
		s.explain(c.reason)
	}
	v.touch()
}

func (v *view) up(s *session, caps capabilities) {
	s.state, s.since, s.wasUp = bgp.StateEstablished, time.Now(), true
	s.explained, s.silent = false, false
	s.endOfRIB = 0
	s.capabilities = caps
	v.steerBFD(s)
	s.stopTimer()
	stale := v.dropStale(s, ^caps.graceful)
	if stale > 0 {
		v.expire(s, endOfRIBWait)
	}
	v.log.Info("bgp peer up", "peer", s.peer.Name, "address", s.peer.Address, "asn", s.peer.ASN, "staleRoutes", stale)
}

// leave moves a session to a state that is not Established.
func (v *view) leave(s *session, to bgp.SessionState, why report) {
	wasUp := s.state == bgp.StateEstablished
	s.state = to
	s.explain(why)
	if to == bgp.StateHeld {
		s.lastError = why.text
	}
	if !wasUp {
		return
	}
	s.since = time.Now()
	s.flaps++
	s.endOfRIB = 0
	s.capabilities = capabilities{}
	v.steerBFD(s)
	close(v.downs)
	v.downs = make(chan struct{})
	v.log.Info("bgp peer down", "peer", s.peer.Name, "address", s.peer.Address, "reason", s.lastError)
}

// keepStale marks the routes of the families as stale and drops the rest. What was stale already
// goes (RFC 4724 §4.2: "to deal with possible consecutive restarts").
func (v *view) keepStale(s *session, kept familySet, restart time.Duration) {
	for prefix, r := range s.routes {
		if r.stale || !kept.has(bgp.FamilyOf(prefix.Addr())) {
			v.set(s, prefix, route{}, false)
			continue
		}
		r.stale = true
		v.set(s, prefix, r, true)
	}
	if len(s.routes) > 0 {
		v.log.Info("bgp peer may be restarting: its routes are kept", "peer", s.peer.Name, "routes", len(s.routes), "for", restart)
		v.expire(s, restart)
	}
}

// expire drops what is still stale after d.
func (v *view) expire(s *session, d time.Duration) {
	s.stopTimer()
	var timer *time.Timer
	timer = time.AfterFunc(d, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if s.timer != timer {
			return // stopped just now
		}
		n := len(s.routes)
		v.dropStale(s, familyBit(bgp.IPv4)|familyBit(bgp.IPv6))
		v.log.Info("bgp peer did not come back in time: its stale routes are dropped", "peer", s.peer.Name, "routes", n-len(s.routes))
		v.touch()
	})
	s.timer = timer
}

// dropStale drops the stale routes of the families and returns how many of others are left.
func (v *view) dropStale(s *session, families familySet) (left int) {
	for prefix, r := range s.routes {
		switch {
		case !r.stale:
		case families.has(bgp.FamilyOf(prefix.Addr())):
			v.set(s, prefix, route{}, false)
		default:
			left++
		}
	}
	return left
}

func (v *view) dropAll(s *session) {
	s.stopTimer()
	for prefix := range s.routes {
		v.set(s, prefix, route{}, false)
	}
}

// onPaths takes what peers said. Between sessions GoBGP may still report what it does to its own
// copy of the routes; those of ours are kept or dropped in onState.
func (v *view) onPaths(generation int, updates []update) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if generation != v.generation {
		return
	}
	news := false
	for _, u := range updates {
		s := v.sessions[u.peer]
		if s == nil || s.state != bgp.StateEstablished {
			continue
		}
		r := route{nextHop: u.nextHop, pathLen: u.pathLen, ownASN: u.ownASN, reflected: u.reflected}
		r.refused = s.refuse(u.prefix, r)
		news = v.set(s, u.prefix, r, !u.withdraw) || news
		if v.maxPrefixes > 0 && len(s.routes) > v.maxPrefixes {
			why := fmt.Sprintf("peer sent more than %d prefixes", v.maxPrefixes)
			v.leave(s, bgp.StateIdle, report{text: why})
			v.dropAll(s)
			v.onOverLimit(u.peer, why)
		}
	}
	if news {
		v.touch()
	}
}

// onEndOfRIB notes the end of a peer's initial update: what it did not repeat is gone.
func (v *view) onEndOfRIB(generation int, addr netip.Addr, f bgp.Family) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.sessions[addr]
	if s == nil || generation != v.generation || s.state != bgp.StateEstablished {
		return
	}
	s.endOfRIB = s.endOfRIB.with(f)
	if v.dropStale(s, familyBit(f)) == 0 {
		s.stopTimer()
	}
	v.touch()
}

// refilter judges all routes of a session again, since its peer changed.
func (v *view) refilter(s *session) {
	for prefix, r := range s.routes {
		r.refused = s.refuse(prefix, r)
		v.set(s, prefix, r, true)
		v.dirty[routeKey{prefix, s.peer.Address}] = struct{}{} // its Kind stands in the path
	}
}

// set stores or removes one route, keeps the counters and the dirty set, and tells whether that
// changed anything.
func (v *view) set(s *session, prefix netip.Prefix, r route, present bool) bool {
	old, had := s.routes[prefix]
	if had == present && (!had || old == r) {
		return false
	}
	if had {
		s.count(old, -1)
	}
	if present {
		s.routes[prefix] = r
		s.count(r, +1)
	} else {
		delete(s.routes, prefix)
	}
	if had && old.refused == "" || present && r.refused == "" {
		v.dirty[routeKey{prefix, s.peer.Address}] = struct{}{}
	}
	return true
}
