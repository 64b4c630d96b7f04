// SPDX-License-Identifier: Apache-2.0

// Package conntrack deletes connection-tracking entries: of addresses that change hands, so that the next
// pod with an address does not inherit the last one's flows, and of flows that policy denies now. It
// keeps nothing and owns nothing.
package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Handle is the part of netlink.Handle that Table uses; *netlink.Handle satisfies it.
type Handle interface {
	ConntrackDeleteFilters(table netlink.ConntrackTableType, family netlink.InetFamily, filters ...netlink.CustomConntrackFilter) (uint, error)
}

// Open opens a netlink socket in the present network namespace. Close it after use.
func Open() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return h, nil
}

// Table is the connection-tracking table.
type Table struct {
	handle Handle
}

// New makes a Table.
func New(h Handle) *Table { return &Table{handle: h} }

// DeleteByIP deletes the entries that have the address in their original or reply tuple, and returns
// how many it deleted. Entries that are gone meanwhile count.
func (t *Table) DeleteByIP(ctx context.Context, addr netip.Addr) (int, error) {
	n, err := t.deleteAll(ctx, family(addr), holds(addr.Unmap()))
	if err != nil {
		err = fmt.Errorf("of %s: %w", addr, err)
	}
	return n, err
}

// deleteAll deletes what matches. The dump may be cut short when the table is resized meanwhile: what was
// not in it is still there.
func (t *Table) deleteAll(ctx context.Context, f netlink.InetFamily, filter netlink.CustomConntrackFilter) (int, error) {
	const attempts = 3
	total := 0
	for range attempts {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		n, err := t.handle.ConntrackDeleteFilters(netlink.ConntrackTable, f, filter)
		total += int(n)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			continue
		}
		if err != nil {
			return total, fmt.Errorf("delete conntrack entries: %w", err)
		}
		return total, nil
	}
	return total, fmt.Errorf("delete conntrack entries: the table changed during each of %d reads", attempts)
}

func family(addr netip.Addr) netlink.InetFamily {
	if addr.Unmap().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// holds matches flows that have the address on any side.
type holds netip.Addr

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (h holds) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	for _, ip := range []net.IP{f.Forward.SrcIP, f.Forward.DstIP, f.Reverse.SrcIP, f.Reverse.DstIP} {
		if a, ok := netip.AddrFromSlice(ip); ok && a.Unmap() == netip.Addr(h) {
			return true
		}
	}
	return false
}

// Flow is a connection as policy sees its first packet: behind the translation of its destination, and
// before that of its source.
type Flow struct {
	Src, Dst         netip.Addr
	Protocol         uint8
	SrcPort, DstPort uint16
}

// DeleteIf deletes the entries of both families that match, and returns how many.
func (t *Table) DeleteIf(ctx context.Context, matches func(Flow) bool) (int, error) {
	total := 0
	for _, f := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		n, err := t.deleteAll(ctx, f, flows(matches))
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// flows matches entries by what policy sees of them.
type flows func(Flow) bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (m flows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	src, ok := netip.AddrFromSlice(f.Forward.SrcIP)
	dst, ok2 := netip.AddrFromSlice(f.Reverse.SrcIP)
	return ok && ok2 && m(Flow{
		Src: src.Unmap(), Dst: dst.Unmap(), Protocol: f.Forward.Protocol, SrcPort: f.Forward.SrcPort, DstPort: f.Reverse.SrcPort,
	})
}
