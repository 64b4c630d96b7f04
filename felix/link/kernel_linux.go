// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addrGenNone tells the kernel to make no link-local address: IN6_ADDR_GEN_MODE_NONE.
const addrGenNone = 1

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

// Devices lists all network devices.
func (k *Kernel) Devices() ([]Device, error) {
	links, err := k.nl.LinkList()
	if err != nil {
		return nil, err
	}
	out := make([]Device, 0, len(links))
	for _, l := range links {
		out = append(out, fromLink(l))
	}
	return out, nil
}

// Addresses lists the addresses of all devices.
func (k *Kernel) Addresses() ([]Address, error) {
	links, err := k.nl.LinkList()
	if err != nil {
		return nil, err
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	addrs, err := k.nl.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var out []Address
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		if a.Peer != nil { // point to point: the prefix is the peer's
			bits, _ = a.Peer.Mask.Size()
		}
		if name := names[a.LinkIndex]; ok && name != "" {
			out = append(out, Address{Device: name, Prefix: netip.PrefixFrom(ip.Unmap(), bits)})
		}
	}
	return out, nil
}

// Add creates a tunnel device, down.
func (k *Kernel) Add(d Device) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = d.Name, d.MTU
	switch d.Kind {
	case kindVXLAN:
		// UDP checksums stay on, as the kernel has them by default for both families: receivers need
		// them to merge segments (GRO).
		attrs.HardwareAddr = hardware(d.MAC)
		return k.nl.LinkAdd(&netlink.Vxlan{
			LinkAttrs: attrs,
			VxlanId:   int(d.Tunnel.VNI),
			Port:      int(d.Tunnel.Port),
			SrcAddr:   d.Tunnel.Local.AsSlice(),
			Learning:  false,
			UDPCSum:   true,
		})
	case kindIPIP:
		// A TTL of 0 is the inner packet's, and as with VXLAN nothing is fragmented on the way.
		return k.nl.LinkAdd(&netlink.Iptun{LinkAttrs: attrs, Local: d.Tunnel.Local.AsSlice(), PMtuDisc: 1, Proto: unix.IPPROTO_IPIP})
	}
	return fmt.Errorf("device of kind %q: %w", d.Kind, syscall.EINVAL)
}

// Delete deletes a device.
func (k *Kernel) Delete(index int) error {
	return k.nl.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}})
}

// Configure sets what may be changed on a living device.
func (k *Kernel) Configure(index int, d Device) error {
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
	if err := k.nl.LinkSetMTU(link, d.MTU); err != nil {
		return fmt.Errorf("set MTU %d: %w", d.MTU, err)
	}
	if d.Kind == kindVXLAN {
		if err := k.nl.LinkSetHardwareAddr(link, hardware(d.MAC)); err != nil {
			return fmt.Errorf("set MAC %s: %w", hardware(d.MAC), err)
		}
	}
	// Before up: then the kernel makes no link-local address of its own, which it would of an IPIP device
	// too (RFC 5214), and sends no DAD probe.
	if err := k.nl.LinkSetIP6AddrGenMode(link, addrGenNone); err != nil && !withoutIPv6(err) {
		return fmt.Errorf("set addrgenmode none: %w", err)
	}
	if err := k.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

// SetLinkLocal adds addr without DAD and then deletes the others. Without IPv6 it does nothing.
func (k *Kernel) SetLinkLocal(index int, addr netip.Addr, others []netip.Addr) error {
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
	err := k.nl.AddrReplace(link, linkLocalAddr(addr))
	if withoutIPv6(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, o := range others {
		if err := k.nl.AddrDel(link, linkLocalAddr(o)); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return fmt.Errorf("delete %s: %w", o, err)
		}
	}
	return nil
}

func linkLocalAddr(addr netip.Addr) *netlink.Addr {
	return &netlink.Addr{
		IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(64, 128)},
		Flags: unix.IFA_F_NODAD,
		Scope: unix.RT_SCOPE_LINK,
	}
}

// withoutIPv6 recognises the errors of a kernel, or of a node, that has IPv6 turned off: no module, or
// the sysctl disable_ipv6. An IPv4-only cluster on such a node is fine.
func withoutIPv6(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EACCES)
}

func fromLink(l netlink.Link) Device {
	a := l.Attrs()
	d := Device{
		Index: a.Index, Name: a.Name, Kind: l.Type(), Alias: a.Alias,
		Up: a.Flags&net.FlagUp != 0, MTU: a.MTU, PeerNetns: a.NetNsID,
	}
	if d.Kind == "device" { // the library's word for a device that has no kind
		d.Kind = ""
	}
	if len(a.HardwareAddr) == len(d.MAC) { // of an IPIP device it is the local IPv4 address
		copy(d.MAC[:], a.HardwareAddr)
	}
	switch l := l.(type) {
	case *netlink.Vxlan:
		d.Tunnel = fromVxlan(l)
	case *netlink.Iptun:
		d.Tunnel = fromIptun(l)
	}
	return d
}

func fromVxlan(v *netlink.Vxlan) Tunnel {
	t := Tunnel{VNI: uint32(v.VxlanId), Port: uint16(v.Port)}
	if ip, ok := netip.AddrFromSlice(v.SrcAddr); ok {
		t.Local = ip.Unmap()
	}
	switch {
	case v.Learning:
		t.Unusual = "learning"
	case len(v.Group) > 0:
		t.Unusual = "a default destination"
	case v.FlowBased:
		t.Unusual = "external control"
	case v.GBP:
		t.Unusual = "group policy"
	case v.Proxy || v.RSC || v.L2miss || v.L3miss:
		t.Unusual = "proxy, rsc or miss notifications"
	case v.VtepDevIndex != 0:
		t.Unusual = "a fixed underlay device"
	}
	return t
}

func fromIptun(i *netlink.Iptun) Tunnel {
	t := Tunnel{Local: endOf(i.Local), Remote: endOf(i.Remote)}
	switch {
	case i.FlowBased:
		t.Unusual = "external control"
	case i.EncapType != 0:
		t.Unusual = "an encapsulation of its own"
	case i.ParentIndex != 0:
		t.Unusual = "a fixed underlay device"
	case i.PMtuDisc == 0:
		t.Unusual = "no path MTU discovery"
	case i.Ttl != 0 || i.Tos != 0:
		t.Unusual = "a fixed TTL or TOS"
	case i.Proto != unix.IPPROTO_IPIP:
		t.Unusual = "other payloads than IPv4"
	}
	return t
}

// endOf is an end of an IPIP tunnel; invalid for any, which the kernel reports as 0.0.0.0 or not at all.
func endOf(ip net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	if a = a.Unmap(); !ok || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}
