// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
)

// session is one peer as the view knows it; view.mu guards it.
type session struct {
	peer   bgp.Peer
	accept acceptor

	state     bgp.SessionState
	since     time.Time
	wasUp     bool // since the server started
	flaps     int64
	lastError string
	explained bool // lastError is what one side told the other: a vague report must not replace it
	silent    bool // the session ended, or is about to, since the peer said nothing for the hold time

	bfd      bgp.BFDState
	bfdSince time.Time
	bfdOn    bool // BFD is to run: see view.steerBFD

	capabilities capabilities // of the peer, while Established
	endOfRIB     familySet
	timer        *time.Timer // drops stale routes; nil: there are none to drop

	routes        map[netip.Prefix]route // its Adj-RIB-In
	accepted      int64
	refused       int64
	refusedLogged bool
}

// route is one route as a peer sent it.
type route struct {
	nextHop netip.Addr // invalid: none that could be used
	pathLen int
	ownASN  uint8
	stale   bool
	refused string // why; empty: accepted
	reflected
}

// refuse tells why a route is not accepted, or nothing.
func (s *session) refuse(prefix netip.Prefix, r route) string {
	switch {
	case r.ownASN > s.peer.AllowOwnASN:
		return "own AS number in AS_PATH"
	case !s.accept.accepts(prefix):
		return "prefix is not accepted from this peer"
	case !r.nextHop.IsValid():
		return "no usable next hop"
	}
	return ""
}

func (s *session) count(r route, n int64) {
	if r.refused == "" {
		s.accepted += n
	} else {
		s.refused += n
	}
}

// explain notes why the session is down, and tells whether that was news.
func (s *session) explain(r report) bool {
	if r.text == "" || s.state == bgp.StateHeld || (r.vague && s.explained) || s.lastError == r.textFor(s.peer) {
		return false
	}
	s.lastError = r.textFor(s.peer)
	s.explained = !r.vague && !r.connecting
	return true
}

func (s *session) stopTimer() {
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}

// logRefused says once that a peer sends what is refused, and once that it no longer does. It is no
// warning: FRR sends us back what it learned from us.
func (s *session) logRefused(log *slog.Logger) {
	if (s.refused > 0) == s.refusedLogged {
		return
	}
	s.refusedLogged = s.refused > 0
	if !s.refusedLogged {
		log.Info("bgp peer no longer sends routes that are refused", "peer", s.peer.Name)
		return
	}
	for prefix, r := range s.routes {
		if r.refused != "" {
			log.Info("bgp routes refused", "peer", s.peer.Name, "routes", s.refused, "example", prefix, "because", r.refused)
			return
		}
	}
}

// bfdStatus is empty only if nobody asked for BFD.
func (s *session) bfdStatus() bgp.BFDState {
	if s.bfd == "" && s.peer.BFD.Enabled && s.state != bgp.StateHeld {
		return bgp.BFDDown
	}
	return s.bfd
}

// status is the session as others see it.
func (s *session) status(origins [2]int64) bgp.Session {
	out := bgp.Session{
		Peer:       s.peer.Name,
		Kind:       s.peer.Kind,
		Address:    s.peer.Address,
		ASN:        s.peer.ASN,
		State:      s.state,
		Since:      s.since,
		Flaps:      s.flaps,
		LastError:  s.lastError,
		PrefixesIn: s.accepted,
		Rejected:   s.refused,
		BFD:        s.bfdStatus(),
		BFDSince:   s.bfdSince,
		EndOfRIB:   s.endOfRIB.list(),
	}
	if s.state == bgp.StateEstablished {
		for _, f := range families(s.peer) {
			if s.capabilities.families.has(f) {
				out.PrefixesOut += origins[familyIndex(f)]
			}
		}
	}
	return out
}
