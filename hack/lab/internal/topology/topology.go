// Package topology computes the lab's network: which hosts there are, which
// addresses they have, and which veth pair joins which two. It is pure; package
// cluster carries the result out.
//
//	              spine AS 65100 ─── control
//	             /     \
//	 leaf1 AS 65101   leaf2 AS 65102
//	  |       |          |
//	node1   node2      node3 …
package topology

import (
	"fmt"
	"net/netip"
)

// The lab's numbers, as docs and manifests have them.
const (
	ClusterASN = 64512
	SpineASN   = 65100
	MaxNodes   = 100

	PodCIDRs      = "10.244.0.0/16,fd00:244::/56"
	ServiceCIDRs  = "10.96.0.0/16,fd00:96::/108"
	APIServiceIP  = "10.96.0.1"
	DNSServiceIP  = "10.96.0.10"
	racks         = 2
	nodesInRack1  = 2
	controlSubnet = 10
)

// Kind says what a host is for.
type Kind string

const (
	Node    Kind = "node"
	Leaf    Kind = "leaf"
	Spine   Kind = "spine"
	Control Kind = "control"
)

// Host is one network namespace.
type Host struct {
	Name string
	Kind Kind
	Rack int    // 0 for spine and control
	ASN  uint32 // routers only
	// Bridge joins the ports of a rack inside its leaf; it carries the gateway's
	// addresses.
	Bridge *Bridge
	Ports  []Port
}

// Bridge is a leaf's rack side.
type Bridge struct {
	Name  string
	Addrs []netip.Prefix
}

// Port is one end of a veth pair.
type Port struct {
	Name    string
	Addrs   []netip.Prefix // none on a bridge's port
	Bridged bool
	// Gateways are the default routes' next hops, one per family.
	Gateways []netip.Addr
}

// Link is a veth pair.
type Link struct {
	A, B End
}

// End names a port on a host.
type End struct {
	Host, Port string
}

// Plan is the whole network.
type Plan struct {
	Hosts []Host
	Links []Link
}

// New computes the plan of a lab with so many nodes.
func New(nodes int) (Plan, error) {
	if nodes < 1 || nodes > MaxNodes {
		return Plan{}, fmt.Errorf("plan %d nodes: want 1 to %d", nodes, MaxNodes)
	}
	control := Host{Name: "control", Kind: Control, Ports: []Port{{
		Name: "eth0", Addrs: hostAddrs(controlSubnet, 10), Gateways: gateways(controlSubnet),
	}}}
	spine := Host{Name: "spine", Kind: Spine, ASN: SpineASN, Ports: []Port{{
		Name: "control", Addrs: hostAddrs(controlSubnet, 1),
	}}}
	plan := Plan{Links: []Link{{End{"spine", "control"}, End{"control", "eth0"}}}}
	var leaves, members []Host
	for rack := 1; rack <= racks; rack++ {
		leaf := newLeaf(rack)
		up, down := pointToPoint(rack)
		spine.Ports = append(spine.Ports, Port{Name: leaf.Name, Addrs: up})
		leaf.Ports = append(leaf.Ports, Port{Name: "spine", Addrs: down})
		plan.Links = append(plan.Links, Link{End{"spine", leaf.Name}, End{leaf.Name, "spine"}})
		for i := 1; i <= nodes; i++ {
			if rackOf(i) != rack {
				continue
			}
			n := newNode(i)
			leaf.Ports = append(leaf.Ports, Port{Name: n.Name, Bridged: true})
			members = append(members, n)
			plan.Links = append(plan.Links, Link{End{leaf.Name, n.Name}, End{n.Name, "eth0"}})
		}
		leaves = append(leaves, leaf)
	}
	plan.Hosts = append([]Host{control, spine}, append(leaves, members...)...)
	return plan, nil
}

func newLeaf(rack int) Host {
	return Host{
		Name: fmt.Sprintf("leaf%d", rack), Kind: Leaf, Rack: rack, ASN: uint32(SpineASN + rack),
		Bridge: &Bridge{Name: "rack", Addrs: hostAddrs(controlSubnet+rack, 1)},
	}
}

func newNode(i int) Host {
	rack := rackOf(i)
	return Host{
		Name: fmt.Sprintf("node%d", i), Kind: Node, Rack: rack,
		Ports: []Port{{
			Name:     "eth0",
			Addrs:    hostAddrs(controlSubnet+rack, 10+i),
			Gateways: gateways(controlSubnet + rack),
		}},
	}
}

func rackOf(node int) int {
	if node <= nodesInRack1 {
		return 1
	}
	return 2
}

// hostAddrs has the host part in decimal digits in both families, so that
// 192.168.11.12 and fd00:11::12 are read as the same host.
func hostAddrs(subnet, host int) []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("192.168.%d.%d/24", subnet, host)),
		netip.MustParsePrefix(fmt.Sprintf("fd00:%d::%d/64", subnet, host)),
	}
}

func gateways(subnet int) []netip.Addr {
	var out []netip.Addr
	for _, p := range hostAddrs(subnet, 1) {
		out = append(out, p.Addr())
	}
	return out
}

// pointToPoint returns the spine's and the leaf's addresses of a rack's uplink.
func pointToPoint(rack int) (spine, leaf []netip.Prefix) {
	at := func(n int) []netip.Prefix {
		return []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("192.168.100.%d/31", n)),
			netip.MustParsePrefix(fmt.Sprintf("fd00:100::%d/127", n)),
		}
	}
	return at(2 * rack), at(2*rack + 1)
}

// Host returns a host by name.
func (p Plan) Host(name string) (Host, bool) {
	for _, h := range p.Hosts {
		if h.Name == name {
			return h, true
		}
	}
	return Host{}, false
}

// Of returns the hosts of one kind, in order.
func (p Plan) Of(k Kind) []Host {
	var out []Host
	for _, h := range p.Hosts {
		if h.Kind == k {
			out = append(out, h)
		}
	}
	return out
}

// Neighbours returns the hosts at the far ends of a host's links, in port order.
func (p Plan) Neighbours(name string) []Host {
	h, _ := p.Host(name)
	var out []Host
	for _, port := range h.Ports {
		if peer, ok := p.far(End{name, port.Name}); ok {
			n, _ := p.Host(peer.Host)
			out = append(out, n)
		}
	}
	return out
}

// AddrsToward returns the addresses that host has on its link to peer.
func (p Plan) AddrsToward(host, peer string) []netip.Addr {
	h, _ := p.Host(host)
	for _, port := range h.Ports {
		if far, ok := p.far(End{host, port.Name}); ok && far.Host == peer {
			addrs := port.Addrs
			if port.Bridged {
				addrs = h.Bridge.Addrs
			}
			return strip(addrs)
		}
	}
	return nil
}

func (p Plan) far(e End) (End, bool) {
	for _, l := range p.Links {
		switch e {
		case l.A:
			return l.B, true
		case l.B:
			return l.A, true
		}
	}
	return End{}, false
}

// Addrs returns a host's main addresses, IPv4 first: a node's or control's eth0,
// a leaf's gateway.
func (h Host) Addrs() []netip.Addr {
	if h.Bridge != nil {
		return strip(h.Bridge.Addrs)
	}
	return strip(h.Ports[0].Addrs)
}

// RackName is the value of the label heliograph.dev/rack.
func (h Host) RackName() string { return fmt.Sprintf("rack%d", h.Rack) }

// IsRouter tells whether FRR runs on the host.
func (h Host) IsRouter() bool { return h.Kind == Leaf || h.Kind == Spine }

func strip(ps []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, p := range ps {
		out = append(out, p.Addr())
	}
	return out
}
