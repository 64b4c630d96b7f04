// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/heliograph-dev/heliograph/bgp"
)

const (
	// bfdGrace is how long a BFD session that the peer ended may take to come back, before a peer that
	// still says Down is taken for one that does not hear us. Peers send once a second meanwhile.
	bfdGrace = 3 * time.Second
	// quietLimit bounds how long we wait for GoBGP to end BFD sessions.
	quietLimit = 500 * time.Millisecond
)

// bfdEngine is GoBGP's BFD in a server of its own, which speaks BGP with nobody. In the server that
// does, GoBGP would reset the BGP session on AdminDown, which is no failure (RFC 5882 §4.2), and if
// BFD ends that never was up; and it would greet the next session with the NOTIFICATION of a failure
// between sessions. Here its resets hit a neighbour that is shut down, and the view decides.
type bfdEngine struct {
	server *server.BgpServer
	peers  map[netip.Addr]bgp.BFD
}

// startBFD has to come before the server that speaks BGP: each one that starts sets GoBGP's variables of
// the process, to the same values, and one that runs reads them. No port is open without a peer.
func startBFD(ctx context.Context, g bgp.Global, log *slog.Logger, v *view, generation int) (*bfdEngine, error) {
	events := &bfdTap{next: log.Handler(), view: v, generation: generation}
	e := &bfdEngine{
		server: server.NewBgpServer(server.LoggerOption(slog.New(events), new(slog.LevelVar))),
		peers:  map[netip.Addr]bgp.BFD{},
	}
	go e.server.Serve()
	global := &api.Global{Asn: g.ASN, RouterId: g.RouterID.String(), ListenPort: -1, Families: []uint32{0, 1}}
	if err := e.server.StartBgp(ctx, &api.StartBgpRequest{Global: global}); err != nil {
		e.close()
		return nil, fmt.Errorf("start bfd: %w", err)
	}
	return e, nil
}

// close ends all sessions; once it returns nothing more is sent.
func (e *bfdEngine) close() {
	e.server.Stop()
}

// all are the peers that have BFD.
func (e *bfdEngine) all() []netip.Addr {
	return slices.Collect(maps.Keys(e.peers))
}

func (e *bfdEngine) add(ctx context.Context, addr netip.Addr, asn uint32, b bgp.BFD) error {
	err := e.server.AddPeer(ctx, &api.AddPeerRequest{Peer: &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: addr.String(), PeerAsn: asn, AdminDown: true},
		Bfd: &api.BfdPeerConfig{
			Enabled:                  true,
			Port:                     bfdPort,
			DesiredMinimumTxInterval: uint32(b.TransmitInterval.Microseconds()), //nolint:gosec // at most 60 s by validation
			RequiredMinimumReceive:   uint32(b.ReceiveInterval.Microseconds()),  //nolint:gosec // likewise
			DetectionMultiplier:      uint32(b.DetectMultiplier),
		},
	}})
	if err != nil {
		return fmt.Errorf("start bfd with %s: %w", addr, err)
	}
	e.peers[addr] = b
	return nil
}

func (e *bfdEngine) remove(ctx context.Context, addr netip.Addr) error {
	if err := e.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: addr.String()}); err != nil {
		return fmt.Errorf("end bfd with %s: %w", addr, err)
	}
	delete(e.peers, addr)
	return nil
}

// waitGone waits until GoBGP has ended its sessions with the peers, which it does in the background.
func (e *bfdEngine) waitGone(ctx context.Context, peers []netip.Addr) {
	ctx, cancel := context.WithTimeout(ctx, quietLimit)
	defer cancel()
	gone := map[netip.Addr]bool{}
	for _, p := range peers {
		gone[p] = true
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		left := 0
		e.server.ListBfdPeer(ctx, func(peer string, _ *api.BfdPeerState) {
			if addr, err := netip.ParseAddr(peer); err == nil && gone[addr.Unmap()] {
				left++
			}
		})
		if left == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// reconcileBFD makes the BFD sessions equal to what the peers ask for. The BGP sessions are not
// touched, and peers are told that a session ends on purpose.
func (r *instance) reconcileBFD(ctx context.Context) error {
	want := map[netip.Addr]bgp.Peer{}
	for addr, has := range r.peers {
		if has.peer.BFD.Enabled && r.view.bfdOn(addr) {
			want[addr] = has.peer
		}
	}
	var end []netip.Addr
	for addr, has := range r.bfd.peers {
		if want[addr].BFD != has {
			end = append(end, addr)
		}
	}
	errs := []error{r.endBFD(ctx, end)}
	for addr, p := range want {
		if _, ok := r.bfd.peers[addr]; !ok {
			errs = append(errs, r.bfd.add(ctx, addr, p.ASN, p.BFD))
		}
	}
	return errors.Join(errs...)
}

func (r *instance) endBFD(ctx context.Context, peers []netip.Addr) error {
	if len(peers) == 0 {
		return nil
	}
	bye := r.prepareFarewell(ctx, peers)
	var errs []error
	for _, addr := range peers {
		errs = append(errs, r.bfd.remove(ctx, addr))
	}
	r.bfd.waitGone(ctx, peers)
	bye.say(ctx, r.log)
	for _, addr := range peers {
		r.view.onBFDState(r.generation, addr, "")
	}
	return errors.Join(errs...)
}

// bfdTap is the handler behind the logger of the BFD server: GoBGP tells of the states of BFD sessions
// in time nowhere but in its log.
type bfdTap struct {
	next       slog.Handler
	view       *view
	generation int
}

// Enabled is always true: states are logged at debug level, and there is nothing else in this server.
func (*bfdTap) Enabled(context.Context, slog.Level) bool { return true }

func (t *bfdTap) Handle(ctx context.Context, rec slog.Record) error {
	if addr, err := netip.ParseAddr(attr(rec, "Peer").String()); err == nil {
		addr = addr.Unmap()
		switch rec.Message {
		case "Set state to UP":
			t.view.onBFDState(t.generation, addr, bgp.BFDUp)
		case "Set state to INIT":
			t.view.onBFDState(t.generation, addr, bgp.BFDInit)
		case "Set state to DOWN", "Insert BFD peer":
			t.view.onBFDState(t.generation, addr, bgp.BFDDown)
		case "Expired":
			t.view.onBFDExpired(t.generation, addr)
		case "Remote peer signaled BFD down":
			t.view.onBFDSignal(t.generation, addr)
		}
	}
	level := slog.LevelDebug
	if rec.Message == "Can't listen UDP" {
		level = slog.LevelWarn
	}
	return passOn(ctx, t.next, rec, level)
}

func (t *bfdTap) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := *t
	out.next = t.next.WithAttrs(attrs)
	return &out
}

func (t *bfdTap) WithGroup(name string) slog.Handler {
	out := *t
	out.next = t.next.WithGroup(name)
	return &out
}

// onBFDState follows the state of a BFD session.
func (v *view) onBFDState(generation int, addr netip.Addr, state bgp.BFDState) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.sessions[addr]
	if s == nil || generation != v.generation || s.bfd == state {
		return
	}
	if state == bgp.BFDUp {
		v.log.Info("bfd up", "peer", s.peer.Name, "address", addr)
	}
	s.bfd, s.bfdSince = state, time.Now()
	v.steerBFD(s)
	v.touch()
}

// steerBFD has BFD run from when the BGP session is up: FRR resets a session that comes up after BFD,
// as it makes its BFD session anew then. It runs on while the session is away, since it may tell that
// routes which are kept for a restart are worth nothing, until it fails itself.
func (v *view) steerBFD(s *session) {
	on := s.state == bgp.StateEstablished || s.bfdOn && s.bfd == bgp.BFDUp
	if on == s.bfdOn {
		return
	}
	s.bfdOn = on
	if s.peer.BFD.Enabled {
		v.onBFD()
	}
}

func (v *view) bfdOn(addr netip.Addr) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.sessions[addr]
	return s != nil && s.bfdOn
}

func (v *view) bfdState(addr netip.Addr) bgp.BFDState {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s := v.sessions[addr]; s != nil {
		return s.bfd
	}
	return ""
}

// onBFDExpired: the peer can no longer be reached. GoBGP says so before it says Down.
func (v *view) onBFDExpired(generation int, addr netip.Addr) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s := v.sessions[addr]; s != nil && generation == v.generation && s.bfd == bgp.BFDUp {
		v.unreachable(s, "BFD: detection time expired")
	}
}

// onBFDSignal: the peer ended BFD. GoBGP does not tell Down (it does not hear us) from AdminDown (no
// failure: RFC 5882 §4.2; FRR says it whenever it makes a session anew). In the first case a peer that
// has tied BGP to BFD sends a NOTIFICATION as well; for the others it is the state after bfdGrace that
// tells: one that does not hear us keeps us in Init.
func (v *view) onBFDSignal(generation int, addr netip.Addr) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.sessions[addr]
	if s == nil || generation != v.generation || s.bfd != bgp.BFDUp {
		return
	}
	v.log.Info("bfd ended by peer", "peer", s.peer.Name, "address", addr)
	time.AfterFunc(bfdGrace, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.sessions[addr] == s && s.bfd == bgp.BFDInit && time.Since(s.bfdSince) >= bfdGrace/2 {
			v.unreachable(s, "BFD: peer does not hear us")
		}
	})
}

// unreachable drops the routes of a peer at once, before its BGP session is reset. Routes that are kept
// for a restart go too, but not those of a node: its BFD lives in the agent that restarts, so its
// silence says nothing about the node's forwarding, and RFC 5882 §4.3 advises not to abort the
// restart. A node that dies does not close its session first.
func (v *view) unreachable(s *session, why string) {
	switch {
	case s.state == bgp.StateEstablished:
		v.leave(s, bgp.StateIdle, report{text: why})
		v.dropAll(s)
		v.onUnreachable(s.peer.Address)
	case s.peer.Kind != bgp.PeerNode && len(s.routes) > 0:
		v.log.Info("bfd down: stale routes are dropped", "peer", s.peer.Name, "address", s.peer.Address, "reason", why, "routes", len(s.routes))
		v.dropAll(s)
	default:
		v.log.Info("bfd down", "peer", s.peer.Name, "address", s.peer.Address, "reason", why)
	}
	v.touch()
}
