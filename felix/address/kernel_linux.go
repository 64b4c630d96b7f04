// SPDX-License-Identifier: Apache-2.0

package address

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

// ifaProto is IFA_PROTO, which neither x/sys/unix nor this version of vishvananda/netlink has: hence the
// messages made by hand below.
const ifaProto = 11

// Kernel is the Handle of the network namespace in which it was opened.
type Kernel struct {
	links   *netlink.Handle
	sockets map[int]*nl.SocketHandle
	stamps  bool
}

var _ Handle = (*Kernel)(nil)

// Open opens netlink sockets in the present network namespace.
func Open() (*Kernel, error) {
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		links.Close()
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return &Kernel{
		links:   links,
		sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}},
		stamps:  kernelAtLeast(5, 18),
	}, nil
}

// Close closes the sockets.
func (k *Kernel) Close() {
	k.links.Close()
	k.sockets[unix.NETLINK_ROUTE].Close()
}

// KeepsProtocol says whether the kernel has IFA_PROTO: before Linux 5.18 it is ignored without a word.
func (k *Kernel) KeepsProtocol() bool { return k.stamps }

// List lists the addresses of all devices.
func (k *Kernel) List() ([]Entry, error) {
	links, err := k.links.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := make(map[uint32]string, len(links))
	for _, l := range links {
		names[uint32(l.Attrs().Index)] = l.Attrs().Name
	}
	req := k.request(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
	if err != nil {
		return nil, err
	}
	var out []Entry
	for _, m := range msgs {
		e, index, err := parse(m)
		if err != nil {
			return nil, err
		}
		if e.Device = names[index]; e.Device != "" && e.Prefix.IsValid() {
			out = append(out, e)
		}
	}
	return out, nil
}

// Add adds an address with our protocol. NODAD: nobody else can have it, and until DAD is over nothing
// could be sent from it. NOPREFIXROUTE: a /128 needs no route beside the one of the local table.
func (k *Kernel) Add(a desired.Address) error {
	return k.change(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, a)
}

// Delete deletes an address.
func (k *Kernel) Delete(a desired.Address) error {
	return k.change(unix.RTM_DELADDR, 0, a)
}

func (k *Kernel) change(msgType, flags int, a desired.Address) error {
	link, err := k.links.LinkByName(a.Device)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return fmt.Errorf("no such device: %w", syscall.ENODEV)
	}
	if err != nil {
		return fmt.Errorf("find device: %w", err)
	}
	family := unix.AF_INET
	ifaFlags := uint32(0)
	if a.Prefix.Addr().Is6() {
		family = unix.AF_INET6
		ifaFlags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE
	}
	msg := nl.NewIfAddrmsg(family)
	msg.Prefixlen = uint8(a.Prefix.Bits())
	msg.Index = uint32(link.Attrs().Index)
	ip := a.Prefix.Addr().AsSlice()
	req := k.request(msgType, flags|unix.NLM_F_ACK)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, ip))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, ip))
	if msgType == unix.RTM_NEWADDR {
		req.AddData(nl.NewRtAttr(unix.IFA_FLAGS, binary.NativeEndian.AppendUint32(nil, ifaFlags)))
		req.AddData(nl.NewRtAttr(ifaProto, []byte{desired.Protocol}))
	}
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// request makes a message that goes over the kept socket.
func (k *Kernel) request(msgType, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(msgType, flags)
	req.Sockets = k.sockets
	return req
}

func parse(m []byte) (Entry, uint32, error) {
	msg := nl.DeserializeIfAddrmsg(m)
	attrs, err := nl.ParseRouteAttr(m[msg.Len():])
	if err != nil {
		return Entry{}, 0, fmt.Errorf("parse address: %w", err)
	}
	var e Entry
	var local, address netip.Addr
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(a.Value)
		case unix.IFA_ADDRESS: // the peer's on a point-to-point device; IPv6 has no other without a peer
			address, _ = netip.AddrFromSlice(a.Value)
		case ifaProto:
			e.Protocol = a.Value[0]
		}
	}
	if !local.IsValid() {
		local = address
	}
	e.Prefix = netip.PrefixFrom(local, int(msg.Prefixlen))
	return e, msg.Index, nil
}

func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	var haveMajor, haveMinor int
	if unix.Uname(&u) != nil {
		return false
	}
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &haveMajor, &haveMinor); n != 2 {
		return false
	}
	return haveMajor > major || haveMajor == major && haveMinor >= minor
}
