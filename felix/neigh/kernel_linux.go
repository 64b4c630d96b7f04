// SPDX-License-Identifier: Apache-2.0

package neigh

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kernel is the Handle of the network namespace in which it was opened.
type Kernel struct {
	nl *netlink.Handle
}

var _ Handle = (*Kernel)(nil)

// Open opens a netlink socket in the present network namespace.
func Open() (*Kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return &Kernel{nl: h}, nil
}

// Close closes the socket.
func (k *Kernel) Close() { k.nl.Close() }

// Index returns the index of a device.
func (k *Kernel) Index(device string) (int, error) {
	link, err := k.nl.LinkByName(device)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return 0, fmt.Errorf("no such device: %w", syscall.ENODEV)
	}
	if err != nil {
		return 0, err
	}
	return link.Attrs().Index, nil
}

// List reads the permanent entries of a device: neighbours of both families, and the FDB.
func (k *Kernel) List(index int) ([]Entry, error) {
	var out []Entry
	for _, family := range []int{unix.AF_INET, unix.AF_INET6, unix.AF_BRIDGE} {
		neighs, err := k.nl.NeighList(index, family)
		if err != nil {
			return nil, err
		}
		for _, n := range neighs {
			if n.State&netlink.NUD_PERMANENT != 0 {
				out = append(out, fromNeigh(n))
			}
		}
	}
	return out, nil
}

// Set adds an entry or changes what it points to. For a unicast MAC in an FDB this must be a replace:
// the kernel accepts an append, and keeps the old remote.
func (k *Kernel) Set(index int, e Entry) error {
	return k.nl.NeighSet(toNeigh(index, e))
}

// Delete deletes an entry.
func (k *Kernel) Delete(index int, e Entry) error {
	return k.nl.NeighDel(toNeigh(index, e))
}

func toNeigh(index int, e Entry) *netlink.Neigh {
	n := &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, HardwareAddr: net.HardwareAddr(e.MAC[:])}
	if e.IP.IsValid() {
		n.IP = e.IP.AsSlice()
		return n
	}
	n.Family, n.Flags, n.IP = unix.AF_BRIDGE, netlink.NTF_SELF, e.Remote.AsSlice()
	n.State |= netlink.NUD_NOARP // what `bridge fdb add … permanent` sets
	return n
}

func fromNeigh(n netlink.Neigh) Entry {
	var e Entry
	copy(e.MAC[:], n.HardwareAddr)
	ip, _ := netip.AddrFromSlice(n.IP)
	if n.Family == unix.AF_BRIDGE {
		e.Remote = ip.Unmap()
	} else {
		e.IP = ip
	}
	return e
}
