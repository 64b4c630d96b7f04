// SPDX-License-Identifier: Apache-2.0

package capability

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
)

// Kernel is the Handle of the network namespace in which it was opened.
type Kernel struct {
	nl   *netlink.Handle
	conn *kernel.Conn
}

var _ Handle = (*Kernel)(nil)

// Probe finds out what the kernel of this node can. It takes some milliseconds, more if modules have to
// be loaded, and is worth repeating after an error.
func Probe(ctx context.Context, log *slog.Logger) (Result, error) {
	k, err := Open()
	if err != nil {
		return Result{}, err
	}
	defer k.Close()
	return ProbeWith(ctx, k, log)
}

// Open opens netlink sockets in the present network namespace.
func Open() (*Kernel, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	conn, err := kernel.Dial()
	if err != nil {
		nl.Close()
		return nil, err
	}
	return &Kernel{nl, conn}, nil
}

// Close closes the sockets.
func (k *Kernel) Close() {
	k.nl.Close()
	_ = k.conn.Close()
}

// AddDevice makes a device. What the kernel tells such devices apart by is of the ranges for
// documentation, or drawn by lot.
func (k *Kernel) AddDevice(name, kind string) (int, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	links := map[string]netlink.Link{
		IPIP: &netlink.Iptun{
			LinkAttrs: attrs, Local: net.IPv4(192, 0, 2, 1), Remote: net.IPv4(203, 0, 113, byte(random())),
			PMtuDisc: 1, Proto: unix.IPPROTO_IPIP,
		},
		VXLAN:     &netlink.Vxlan{LinkAttrs: attrs, VxlanId: int(random() & 0xffffff), Port: 4789, SrcAddr: net.IPv4(192, 0, 2, 1)},
		WireGuard: &netlink.Wireguard{LinkAttrs: attrs},
	}
	link, ok := links[kind]
	if !ok {
		return 0, fmt.Errorf("device of kind %q: %w", kind, syscall.EINVAL)
	}
	if err := k.nl.LinkAdd(link); err != nil {
		return 0, err
	}
	made, err := k.nl.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return 0, fmt.Errorf("gone right after it was made: %w", syscall.ENODEV)
	}
	if err != nil {
		return 0, err
	}
	if made.Type() != kind {
		return 0, fmt.Errorf("the kernel made a %s: %w", made.Type(), syscall.EINVAL)
	}
	return made.Attrs().Index, nil
}

// DeleteDevice deletes a device.
func (k *Kernel) DeleteDevice(index int) error {
	return k.nl.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}})
}

// AddNexthop makes an object that leads nowhere.
func (k *Kernel) AddNexthop(ctx context.Context, id desired.NexthopID) error {
	return k.nexthop(ctx, unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE|unix.NLM_F_EXCL, id)
}

// DeleteNexthop deletes it.
func (k *Kernel) DeleteNexthop(ctx context.Context, id desired.NexthopID) error {
	return k.nexthop(ctx, unix.RTM_DELNEXTHOP, 0, id)
}

func (k *Kernel) nexthop(ctx context.Context, typ, flags uint16, id desired.NexthopID) error {
	var b kernel.Batch
	b.Begin(typ, flags)
	if typ == unix.RTM_NEWNEXTHOP {
		b.Raw(unix.AF_INET, 0, desired.Protocol, 0, 0, 0, 0, 0)
	} else {
		b.Raw(make([]byte, 8)...)
	}
	b.AttrUint32(unix.NHA_ID, uint32(id))
	if typ == unix.RTM_NEWNEXTHOP {
		b.Attr(unix.NHA_BLACKHOLE, nil)
	}
	for _, err := range k.conn.Execute(ctx, &b) {
		return err
	}
	return nil
}
