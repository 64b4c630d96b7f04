// SPDX-License-Identifier: Apache-2.0

package calc

import (
	"crypto/sha256"
	"net/netip"
	"slices"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

// What VXLAN adds to a packet: the outer IP header, UDP, VXLAN and the inner Ethernet header.
const (
	vxlanOverhead4 = 20 + 8 + 8 + 14
	vxlanOverhead6 = 40 + 8 + 8 + 14
)

// ipipOverhead is the outer IPv4 header.
const ipipOverhead = 20

// MACOf is the hardware address of a node's VXLAN device. It follows from the node's name, so that
// nobody has to publish it: 46 bits of a hash, locally administered, unicast.
func MACOf(node string) desired.MAC {
	sum := sha256.Sum256([]byte("vxlan " + node))
	m := desired.MAC(sum[:6])
	m[0] = m[0]&^0x01 | 0x02
	return m
}

// linkLocal is the EUI-64 address that Linux gives a device of this hardware address (RFC 4291 §2.5.1).
func linkLocal(m desired.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{
		0xfe, 0x80, 0, 0, 0, 0, 0, 0,
		m[0] ^ 0x02, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5],
	})
}

// tunnels sets up VXLAN to every other node, whether a pool wants it now or not: a tunnel must
// stand before it is needed. The underlay is IPv4 where both ends have it, else IPv6.
func (c *computation) tunnels() {
	devices := map[bgp.Family]bool{}
	c.out.FDB = make([]desired.FDBEntry, 0, len(c.Nodes))
	c.out.Neighbours = make([]desired.Neighbour, 0, 2*len(c.Nodes))
	for i := range c.Nodes {
		n := &c.Nodes[i]
		if n.Name == c.NodeName {
			continue
		}
		t, ok := c.tunnelTo(n)
		if !ok {
			continue
		}
		devices[bgp.FamilyOf(t.underlay)] = true
		mac := MACOf(n.Name)
		c.out.FDB = append(c.out.FDB, desired.FDBEntry{Device: t.device, MAC: mac, Remote: t.underlay})
		// IPv6 routes go by the link-local address: a global one that is on-link elsewhere is
		// refused by the kernel as a gateway here ("invalid gateway or device mismatch").
		c.out.Neighbours = append(c.out.Neighbours, desired.Neighbour{Device: t.device, IP: linkLocal(mac), MAC: mac})
		if n.IPv4.IsValid() {
			c.out.Neighbours = append(c.out.Neighbours, desired.Neighbour{Device: t.device, IP: n.IPv4, MAC: mac})
		}
	}
	for _, f := range []bgp.Family{bgp.IPv4, bgp.IPv6} {
		// The device of the preferred family is there even without other nodes, so that the first
		// one to come finds it.
		preferred := f == bgp.IPv4 || !c.Self.IPv4.IsValid()
		if link, ok := c.links[f]; ok && (devices[f] || preferred) {
			c.out.VXLANs = append(c.out.VXLANs, c.device(f, link))
		}
	}
	c.ipip()
}

// ipip sets up the one IPIP device, if this kernel can and some pool may want it.
func (c *computation) ipip() {
	link, ok := c.links[bgp.IPv4]
	wanted := slices.ContainsFunc(c.Pools, func(p snapshot.Pool) bool {
		return p.CIDR.Addr().Is4() && allowed(p.Encapsulation, bgp.IPv4, false).Has(path.IPIP)
	})
	if ok && wanted && c.Capabilities.Can&path.CanIPIP != 0 {
		c.out.IPIPs = []desired.IPIP{{Name: desired.IPIPDevice, Local: c.Self.IPv4, MTU: max(1280, min(c.out.MTU, link.MTU)-ipipOverhead)}}
	}
}

func (c *computation) device(f bgp.Family, link snapshot.OnLink) desired.VXLAN {
	name, overhead := desired.VXLANDevice, vxlanOverhead4
	if f == bgp.IPv6 {
		name, overhead = desired.VXLANDevice6, vxlanOverhead6
	}
	// Never smaller than what IPv6 needs (RFC 8200 §5).
	mtu := max(1280, min(c.out.MTU, link.MTU)-overhead)
	return desired.VXLAN{
		Name: name, VNI: c.Felix.VXLANVNI, Port: c.Felix.VXLANPort,
		Local: c.Self.IP(f), MAC: MACOf(c.NodeName), MTU: mtu,
	}
}

// tunnel is the VXLAN way to one node.
type tunnel struct {
	device   string
	underlay netip.Addr // the remote end
}

// tunnelTo says how VXLAN reaches a node; false if the two share no address family.
func (c *computation) tunnelTo(n *snapshot.Node) (tunnel, bool) {
	if _, ok := c.links[bgp.IPv4]; ok && n.IPv4.IsValid() {
		return tunnel{desired.VXLANDevice, n.IPv4}, true
	}
	if _, ok := c.links[bgp.IPv6]; ok && n.IPv6.IsValid() {
		return tunnel{desired.VXLANDevice6, n.IPv6}, true
	}
	return tunnel{}, false
}

// gatewayOf is the address on the tunnel device that routes of a family to the node go by.
func gatewayOf(n *snapshot.Node, f bgp.Family) netip.Addr {
	if f == bgp.IPv4 && n.IPv4.IsValid() {
		return n.IPv4
	}
	return linkLocal(MACOf(n.Name))
}
