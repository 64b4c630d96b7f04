// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Monitor listens to the kernel's notifications and pokes when something that may concern heliograph
// was changed by somebody else. It delivers no contents: whoever is poked reads the kernel.
//
// When a device goes down IPv4 routes and nexthop objects on it vanish without a notification of
// their own; therefore such an event pokes routes and nexthops too.
type Monitor struct {
	sock  *netlink.Conn
	raw   syscall.RawConn
	query *Conn // for reading the devices' names
	ev    events
	ours  atomic.Pointer[func(netip.Prefix) bool]
	pokes chan Kind // one slot; an unread poke and a new one become one
	log   *slog.Logger
}

// NewMonitor subscribes in the network namespace of the calling thread. own tells port ids of
// our own sockets, and is called from Run's goroutine.
func NewMonitor(own func(portID uint32) bool, log *slog.Logger) (*Monitor, error) {
	sock, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{})
	if err != nil {
		return nil, fmt.Errorf("open monitor socket: %w", err)
	}
	query, err := Dial()
	if err != nil {
		_ = sock.Close()
		return nil, err
	}
	m := &Monitor{sock: sock, query: query, pokes: make(chan Kind, 1), log: log}
	m.ev = events{own: own, ours: m.concerns, links: map[int32]link{}}
	if err := m.subscribe(); err != nil {
		m.close()
		return nil, fmt.Errorf("set up monitor socket: %w", err)
	}
	return m, nil
}

func (m *Monitor) subscribe() (err error) {
	if err = m.sock.SetReadBuffer(readBuffer); err != nil {
		return err
	}
	for _, group := range []uint32{
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_NEXTHOP,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
	} {
		if err = m.sock.JoinGroup(group); err != nil {
			return err
		}
	}
	m.raw, err = m.sock.SyscallConn()
	return err
}

// SetFilter tells which prefixes are ours, so that a foreign route for exactly such a prefix pokes.
// The filter is called from Run's goroutine: it must not share what its maker still changes.
func (m *Monitor) SetFilter(ours func(netip.Prefix) bool) { m.ours.Store(&ours) }

// Pokes delivers the kinds that were disturbed since the last receive, or-ed.
func (m *Monitor) Pokes() <-chan Kind { return m.pokes }

// Run listens until ctx ends, then closes the socket and returns nil. It is called once.
func (m *Monitor) Run(ctx context.Context) error {
	defer m.close()
	defer context.AfterFunc(ctx, func() { _ = m.sock.SetReadDeadline(time.Unix(1, 0)) })()
	if err := m.readLinks(ctx); err != nil {
		return err
	}
	buf := make([]byte, datagram)
	for {
		n, err := m.receive(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // events were lost, nobody knows which
			m.log.Info("kernel notifications overrun, reading everything again")
			if err := m.readLinks(ctx); err != nil {
				return err
			}
			m.poke(All)
			continue
		case err != nil:
			return fmt.Errorf("receive kernel notifications: %w", err)
		}
		var kind Kind
		for msg := range Messages(buf[:n]) {
			kind |= m.ev.kind(msg)
		}
		m.poke(kind)
	}
}

// poke fills the one slot. Only Run sends, so the slot is free after it was emptied.
func (m *Monitor) poke(kind Kind) {
	if kind == 0 {
		return
	}
	select {
	case unread := <-m.pokes:
		kind |= unread
	default:
	}
	m.pokes <- kind
}

func (m *Monitor) concerns(p netip.Prefix) bool {
	ours := m.ours.Load()
	return ours != nil && (*ours)(p)
}

// readLinks learns the names of all devices.
func (m *Monitor) readLinks(ctx context.Context) error {
	var b Batch
	b.Begin(unix.RTM_GETLINK, 0)
	b.Raw(make([]byte, unix.SizeofIfInfomsg)...)
	dump, err := m.query.Dump(ctx, &b, nil)
	if err != nil && !errors.Is(err, ErrInterrupted) {
		return fmt.Errorf("list devices: %w", err)
	}
	clear(m.ev.links)
	for msg := range Messages(dump) {
		if msg.Type == rtmNewLink {
			m.ev.link(msg, true)
		}
	}
	return nil
}

func (m *Monitor) close() {
	_ = m.query.Close()
	_ = m.sock.Close()
}

func (m *Monitor) receive(buf []byte) (n int, err error) {
	rerr := m.raw.Read(func(fd uintptr) bool {
		n, err = recv(int(fd), buf, 0)
		return !errors.Is(err, unix.EAGAIN)
	})
	return n, errors.Join(rerr, err)
}
