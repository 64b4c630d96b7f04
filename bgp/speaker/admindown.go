// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bfd"

	"github.com/heliograph-dev/heliograph/bgp"
)

// GoBGP 4.8 stops BFD by falling silent, which is a failure to the other side. What is here says
// AdminDown for it (RFC 5880 §6.8.16). FRR and BIRD want the discriminators of the session for that,
// which GoBGP tells nobody; but every packet of the other side carries both.

const (
	// adminDowns is how often AdminDown is said, since nobody acknowledges it.
	adminDowns = 3
	// bfdPort is where BFD over one hop is received (RFC 5881 §4).
	bfdPort = 3784
	// firstSourcePort and lastSourcePort are the source ports that RFC 5881 §4 allows.
	firstSourcePort, lastSourcePort = 49152, 65535
	bfdTTL                          = 255 // RFC 5881 §5
)

// heard is a packet of a peer.
type heard struct {
	from   netip.Addr
	packet bfd.BFDHeader
}

// farewell is what has to be known to say AdminDown to peers. The zero farewell says nothing.
type farewell struct {
	peers   map[netip.Addr]bgp.BFD
	packets map[netip.Addr]bfd.BFDHeader // the last of each peer
	ear     *ear
}

// prepareFarewell listens to those of the peers that BFD is up with. From then on packets no longer
// reach GoBGP, which would take the answer to AdminDown for a failure, so its sessions with them have
// to end soon.
func (r *instance) prepareFarewell(ctx context.Context, peers []netip.Addr) farewell {
	f := farewell{peers: map[netip.Addr]bgp.BFD{}}
	for _, addr := range peers {
		if r.view.bfdState(addr) == bgp.BFDUp {
			f.peers[addr] = r.bfd.peers[addr]
		}
	}
	if len(f.peers) == 0 {
		return farewell{}
	}
	patience := time.Second
	for _, b := range r.bfd.peers {
		patience = min(patience, 2*b.ReceiveInterval) // after three without a packet GoBGP declares a failure
	}
	var err error
	if f.ear, err = listenBFD(ctx, f.peers); err != nil {
		r.log.Warn("bfd cannot be ended in order: peers may take it for a failure", "error", err)
	}
	f.packets = f.ear.hear(ctx, f.peers, patience)
	return f
}

// say tells the peers that BFD ends on purpose, so that they need not take our silence for a failure
// (RFC 5882 §4.2).
func (f farewell) say(ctx context.Context, log *slog.Logger) {
	if f.ear == nil {
		return
	}
	defer f.ear.close()
	for addr, b := range f.peers {
		packet, ok := f.packets[addr]
		if !ok {
			log.Warn("bfd peer not told that bfd ends: it sent nothing", "address", addr)
			continue
		}
		if err := sendAdminDown(ctx, addr, packet, b.DetectMultiplier); err != nil {
			log.Warn("bfd peer not told that bfd ends", "address", addr, "error", err)
		}
	}
}

// ear receives what is meant for GoBGP: the kernel prefers a socket that is bound to an address.
type ear struct {
	conns   []*net.UDPConn
	packets chan heard
	done    chan struct{}
	readers sync.WaitGroup
}

// listenBFD listens on every address of ours that one of the peers sends to.
func listenBFD(ctx context.Context, peers map[netip.Addr]bgp.BFD) (*ear, error) {
	e := &ear{packets: make(chan heard), done: make(chan struct{})}
	var errs []error
	bound := map[netip.Addr]bool{}
	for peer := range peers {
		local, err := sourceAddress(ctx, peer)
		if err != nil || bound[local] {
			errs = append(errs, err)
			continue
		}
		bound[local] = true
		lc := net.ListenConfig{Control: setsockopt(syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)} // as GoBGP does
		conn, err := lc.ListenPacket(ctx, "udp", netip.AddrPortFrom(local, bfdPort).String())
		if err != nil {
			errs = append(errs, fmt.Errorf("listen for BFD: %w", err))
			continue
		}
		udp := conn.(*net.UDPConn)
		e.conns = append(e.conns, udp)
		e.readers.Go(func() { e.read(udp) })
	}
	return e, errors.Join(errs...)
}

func (e *ear) close() {
	close(e.done)
	for _, c := range e.conns {
		_ = c.Close()
	}
	e.readers.Wait()
}

func (e *ear) read(conn *net.UDPConn) {
	var buf [64]byte
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf[:])
		if err != nil {
			return // closed
		}
		h := heard{from: from.Addr().Unmap()}
		if h.packet.UnmarshalBinary(buf[:n]) != nil || h.packet.YourDiscriminator == 0 {
			continue
		}
		select {
		case e.packets <- h:
		case <-e.done:
			return
		}
	}
}

// hear waits for a packet of each peer, but not for longer than patience.
func (e *ear) hear(ctx context.Context, peers map[netip.Addr]bgp.BFD, patience time.Duration) map[netip.Addr]bfd.BFDHeader {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	out := map[netip.Addr]bfd.BFDHeader{}
	for len(out) < len(peers) && len(e.conns) > 0 {
		select {
		case h := <-e.packets:
			if _, ok := peers[h.from]; ok {
				out[h.from] = h.packet
			}
		case <-ctx.Done():
			return out
		}
	}
	return out
}

// sendAdminDown says to the peer that sent the packet that its session with us ends on purpose.
func sendAdminDown(ctx context.Context, peer netip.Addr, last bfd.BFDHeader, multiplier uint8) error {
	slow := uint32(time.Second.Microseconds()) // what RFC 5880 §6.8.3 asks of a session that is not up
	header := bfd.BFDHeader{
		Version:               1,
		Diagnostic:            bfd.DiagnosticAdministrativelyDown,
		State:                 bfd.StateAdminDown,
		DetectTimeMultiplier:  multiplier,
		MyDiscriminator:       last.YourDiscriminator,
		YourDiscriminator:     last.MyDiscriminator,
		DesiredMinTxInterval:  slow,
		RequiredMinRxInterval: slow,
	}
	packet, err := header.MarshalBinary()
	if err != nil {
		return fmt.Errorf("marshal BFD packet: %w", err)
	}
	conn, err := dialBFD(ctx, peer)
	if err != nil {
		return err
	}
	for range adminDowns {
		_, err = conn.Write(packet)
	}
	return errors.Join(err, conn.Close())
}

// dialBFD opens a socket with a source port and the TTL that RFC 5881 §4 and §5 demand. A port may
// be in use, so it tries several.
func dialBFD(ctx context.Context, to netip.Addr) (net.Conn, error) {
	const tries = 8
	option := setsockopt(syscall.IPPROTO_IP, syscall.IP_TTL, bfdTTL)
	if to.Is6() {
		option = setsockopt(syscall.IPPROTO_IPV6, syscall.IPV6_UNICAST_HOPS, bfdTTL)
	}
	var err error
	for range tries {
		port := firstSourcePort + rand.IntN(lastSourcePort-firstSourcePort+1) //nolint:gosec // needs no secrecy
		dialer := net.Dialer{LocalAddr: &net.UDPAddr{Port: port}, Control: option}
		var conn net.Conn
		if conn, err = dialer.DialContext(ctx, "udp", netip.AddrPortFrom(to, bfdPort).String()); err == nil {
			return conn, nil
		}
	}
	return nil, fmt.Errorf("open BFD socket to %s: %w", to, err)
}

// sourceAddress is the address of ours that the kernel, and so GoBGP's BFD, uses towards a peer.
func sourceAddress(ctx context.Context, peer netip.Addr) (netip.Addr, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", netip.AddrPortFrom(peer, bfdPort).String()) // sends nothing
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find the way to %s: %w", peer, err)
	}
	defer func() { _ = conn.Close() }()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// setsockopt is a Control of net that sets one option before the socket is bound.
func setsockopt(level, option, value int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = syscall.SetsockoptInt(int(fd), level, option, value) })
		return errors.Join(err, failed)
	}
}
