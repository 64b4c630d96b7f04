// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"

	"github.com/heliograph-dev/heliograph/bgp"
)

// reconcilePeers makes the server's neighbours equal to peers, each on its own.
func (r *instance) reconcilePeers(ctx context.Context, peers []bgp.Peer) error {
	var errs []error
	named := make(map[netip.Addr]bool, len(peers))
	unique := make([]bgp.Peer, 0, len(peers))
	for _, p := range peers {
		if named[p.Address] {
			errs = append(errs, fmt.Errorf("peer %s: address %s is named twice", p.Name, p.Address))
			continue
		}
		named[p.Address] = true
		unique = append(unique, p)
	}
	for addr, has := range r.peers {
		if !named[addr] {
			errs = append(errs, r.remove(ctx, has.peer))
		}
	}
	r.view.retainPeers(named)
	for _, p := range unique {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := r.reconcilePeer(ctx, p); err != nil {
			r.view.noteReport(r.view.currentGeneration(), p.Address, report{text: err.Error()})
			errs = append(errs, fmt.Errorf("peer %s (%s): %w", p.Name, p.Address, err))
		}
	}
	return errors.Join(errs...)
}

func (r *instance) reconcilePeer(ctx context.Context, p bgp.Peer) error {
	r.view.setPeer(p)
	if !p.Address.IsValid() || p.ASN == 0 {
		return errors.New("without an address and an AS number")
	}
	has, ok := r.peers[p.Address]
	switch {
	case p.Held != "" && !ok:
		return nil
	case p.Held != "":
		r.log.Info("bgp session held", "peer", p.Name, "address", p.Address, "reason", p.Held)
		return r.remove(ctx, has.peer)
	case !ok:
		return r.add(ctx, p)
	}
	if why := resetReason(has.peer, p); why != "" {
		r.log.Info("bgp session reset", "peer", p.Name, "address", p.Address, "changed", why)
		r.view.resetPeer(p.Address, "configuration changed: "+why)
		return r.replace(ctx, has, p)
	}
	if has.peer.Timers.ConnectRetry != p.Timers.ConnectRetry {
		if err := r.updatePeer(ctx, p, has.restarting); err != nil {
			return fmt.Errorf("update: %w", err)
		}
	}
	has.peer = p
	r.peers[p.Address] = has
	return nil
}

// resetReason says what differs between two peers that is negotiated in OPEN or belongs to the TCP
// connection, so that it needs a new session. It is empty for all else.
func resetReason(a, b bgp.Peer) string {
	switch {
	case a.ASN != b.ASN:
		return "AS number"
	case a.Password != b.Password:
		return "password"
	case a.Port != b.Port:
		return "port"
	case a.LocalAddress != b.LocalAddress:
		return "local address"
	case a.EBGPMultihop != b.EBGPMultihop:
		return "multihop"
	case !slices.Equal(families(a), families(b)):
		return "families"
	case a.GracefulRestart != b.GracefulRestart:
		return "graceful restart"
	case a.Timers.Hold != b.Timers.Hold || a.Timers.Keepalive != b.Timers.Keepalive:
		return "hold time"
	}
	return ""
}

func (r *instance) add(ctx context.Context, p bgp.Peer) error {
	restarting := p.GracefulRestart.Enabled && time.Now().Before(r.restartUntil)
	if err := r.server.AddPeer(ctx, &api.AddPeerRequest{Peer: buildPeer(p, restarting)}); err != nil {
		return fmt.Errorf("add: %w", err)
	}
	r.peers[p.Address] = running{peer: p, restarting: restarting}
	return nil
}

// remove ends the session and forgets the peer. With a password it goes through an update, because
// GoBGP's DeletePeer leaves the key on the listening socket, where it would refuse every later
// connection from this address that has none.
func (r *instance) remove(ctx context.Context, p bgp.Peer) error {
	if p.Password != "" {
		p.Password = ""
		off := buildPeer(p, false)
		off.Conf.AdminDown = true
		if _, err := r.server.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: off}); err != nil {
			return fmt.Errorf("remove password of %s: %w", p.Address, err)
		}
	}
	if err := r.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: p.Address.String()}); err != nil {
		return fmt.Errorf("remove peer %s: %w", p.Address, err)
	}
	delete(r.peers, p.Address)
	return nil
}

// replace makes a new session for a changed peer.
func (r *instance) replace(ctx context.Context, has running, p bgp.Peer) error {
	if err := r.remove(ctx, has.peer); err != nil {
		return err
	}
	return r.add(ctx, p)
}

func (r *instance) updatePeer(ctx context.Context, p bgp.Peer, restarting bool) error {
	_, err := r.server.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: buildPeer(p, restarting)})
	return err
}

// disable ends the session of a peer that sent too much, and says so (RFC 9003).
func (r *instance) disable(ctx context.Context, addr netip.Addr, why string) {
	has, ok := r.peers[addr]
	if !ok {
		return
	}
	if err := r.server.DisablePeer(ctx, &api.DisablePeerRequest{Address: addr.String(), Communication: why}); err != nil {
		r.log.Warn("bgp session not ended", "peer", has.peer.Name, "error", err)
		return
	}
	has.disabled = true
	r.peers[addr] = has
}

// enable undoes disable, if the peer has not been replaced meanwhile.
func (r *instance) enable(ctx context.Context, addr netip.Addr) {
	if r.peers[addr].disabled {
		r.readd(ctx, addr)
	}
}

// readd gives a peer a new session without its history.
func (r *instance) readd(ctx context.Context, addr netip.Addr) {
	has, ok := r.peers[addr]
	if !ok {
		return
	}
	if err := r.replace(ctx, has, has.peer); err != nil {
		r.log.Warn("bgp session not started again", "peer", has.peer.Name, "error", err)
	}
}

// endRestart makes sessions that have not come up in the restart time ordinary ones. Those that
// have come up no longer claim to be restarting anyway.
func (r *instance) endRestart(ctx context.Context) {
	for addr, has := range r.peers {
		if has.restarting && r.view.neverUp(addr) {
			r.readd(ctx, addr)
			continue
		}
		has.restarting = false
		r.peers[addr] = has
	}
}
