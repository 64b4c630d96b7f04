// SPDX-License-Identifier: Apache-2.0

// Package calc computes what the kernel and the BGP speaker of a node should be from one
// snapshot.View. It is pure: the same view gives the same state, whatever came before. There are
// two halves, since they change at different times: Local (this node's pods) on every pod,
// Remote (all else) on every change of the cluster or of BGP.
package calc

import (
	"net/netip"
	"slices"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/bgp/topology"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

// LocalState is what follows from the pods of this node.
type LocalState struct {
	Routes    []desired.Route // one per address, sorted
	Workloads []desired.Workload
}

// Local computes the routes to this node's pods, and who may speak on which device.
func Local(workloads []snapshot.Workload) LocalState {
	var s LocalState
	for _, w := range workloads {
		d := desired.Workload{Device: w.Device}
		for _, ip := range w.IPs {
			i := 0
			if ip.Is6() {
				i = 1
			}
			d.IPs[i] = ip
			s.Routes = append(s.Routes, desired.Route{
				Prefix: netip.PrefixFrom(ip, ip.BitLen()), Type: desired.RouteDevice, Device: w.Device,
			})
		}
		s.Workloads = append(s.Workloads, d)
	}
	return s
}

// RemoteState is what follows from the cluster, from BGP and from what was decided on the paths.
type RemoteState struct {
	Sysctls    []desired.Sysctl
	VXLANs     []desired.VXLAN
	IPIPs      []desired.IPIP
	Addresses  []desired.Address
	Neighbours []desired.Neighbour
	FDB        []desired.FDBEntry
	Nexthops   []desired.Nexthop
	Routes     []desired.Route
	NFT        desired.NFT // without Workloads: these are of Local
	// Rules send each method's probes to the table with its routes; ProbeRoutes are those, by method.
	Rules       []desired.Rule
	ProbeRoutes [path.Methods][]desired.Route
	Targets     []path.Target // of the probes
	BGP         bgp.Desired
	Paths       []Path
	// Refused counts, per peer, BGP paths that it may not announce: a node that announces what the
	// API does not say it owns, or anybody who announces our own blocks.
	Refused  map[bgp.Neighbour]Refusal
	MTU      int // of pods
	Problems []snapshot.Problem
}

// Refusal is what one peer announces and must not.
type Refusal struct {
	Routes  int64
	Example netip.Prefix // the first in order
}

// Draft is a computation half way: what there is to decide is known, and not yet what was decided.
type Draft struct{ c computation }

// Prepare computes everything but the pods of this node, as far as it does not depend on the choice of
// paths.
func Prepare(v snapshot.View) *Draft {
	c := computation{
		View:     v,
		nexthops: newNexthopTable(len(v.Nodes)),
		owned:    map[string][]snapshot.Block{},
		out:      RemoteState{Refused: map[bgp.Neighbour]Refusal{}, Problems: slices.Clone(v.Problems)},
	}
	c.underlay()
	c.indexBlocks()
	c.tunnels()
	c.ownAddresses()
	c.sysctls()
	c.indexPaths()
	c.findCandidates()
	return &Draft{c}
}

// Inputs are the paths to be decided on.
func (d *Draft) Inputs() []path.Input { return d.c.inputs }

// Finish computes the state that follows from the decisions, one for each of Inputs and in their order.
func (d *Draft) Finish(decisions []path.Decision) RemoteState {
	c := d.c
	c.ownRoutes()
	c.remoteRoutes(decisions)
	c.fabricRoutes()
	c.probing(decisions)
	c.firewall()
	c.speaker()
	c.resolve()
	return c.out
}

// resolve gives the nexthop objects their ids, in the routes too, and sorts what is not yet.
func (c *computation) resolve() {
	var ids []desired.NexthopID
	c.out.Nexthops, ids = c.nexthops.resolve()
	finish := func(routes []desired.Route) {
		for i := range routes {
			if r := &routes[i]; r.Type == desired.RouteNexthop {
				r.Nexthop = ids[r.Nexthop]
			}
		}
		slices.SortFunc(routes, func(a, b desired.Route) int { return a.Prefix.Compare(b.Prefix) })
	}
	finish(c.out.Routes)
	for _, routes := range c.out.ProbeRoutes {
		finish(routes)
	}
}

type computation struct {
	snapshot.View
	links      map[bgp.Family]snapshot.OnLink // the link that holds the node's address
	podSource  map[bgp.Family]netip.Addr      // the node's own address in the pod network
	owned      map[string][]snapshot.Block    // blocks by node, sorted by CIDR
	ours       []netip.Prefix                 // own blocks, sorted
	candidates pathIndex
	ways       []way
	inputs     []path.Input // of the ways
	blocks     []wayBlock   // of all ways
	nexthops   *nexthopTable
	out        RemoteState
}

// underlay finds the links that hold the node's addresses, and with them the MTU of pods.
func (c *computation) underlay() {
	c.links = map[bgp.Family]snapshot.OnLink{}
	for _, l := range c.Links {
		if l.Addr == c.Self.IPv4 || l.Addr == c.Self.IPv6 {
			c.links[bgp.FamilyOf(l.Addr)] = l
		}
	}
	for _, f := range []bgp.Family{bgp.IPv4, bgp.IPv6} {
		link, ok := c.links[f]
		if ip := c.Self.IP(f); ip.IsValid() && !ok {
			c.problem("Node "+c.Self.Name, "no device of this node has its address "+ip.String())
		}
		if ok && (c.out.MTU == 0 || link.MTU < c.out.MTU) {
			c.out.MTU = link.MTU
		}
	}
	if c.Felix.MTU != 0 {
		c.out.MTU = c.Felix.MTU
	}
}

func (c *computation) indexBlocks() {
	for _, b := range c.Blocks {
		c.owned[b.Node] = append(c.owned[b.Node], b)
	}
	known := c.owned[c.NodeName]
	for _, b := range c.OwnBlocks {
		if !slices.ContainsFunc(known, func(k snapshot.Block) bool { return k.CIDR == b.CIDR }) {
			known = append(known, b)
		}
	}
	slices.SortFunc(known, func(a, b snapshot.Block) int { return a.CIDR.Compare(b.CIDR) })
	c.owned[c.NodeName] = known
	for _, b := range known {
		c.ours = append(c.ours, b.CIDR)
	}
}

// ownAddresses puts the node itself into the pod network: the second address of its primary block
// of each family, on lo, where no other device's fate touches it. While a primary block is being
// replaced there are two, and the node has both addresses; it speaks with the one that stays.
func (c *computation) ownAddresses() {
	c.podSource = map[bgp.Family]netip.Addr{}
	for _, b := range c.owned[c.NodeName] {
		if !b.Primary {
			continue
		}
		ip := b.CIDR.Addr().Next()
		if f := bgp.FamilyOf(ip); !c.podSource[f].IsValid() || !b.Releasing {
			c.podSource[f] = ip
		}
		c.out.Addresses = append(c.out.Addresses, desired.Address{Device: "lo", Prefix: netip.PrefixFrom(ip, ip.BitLen())})
	}
	c.tunnelAddresses()
}

// tunnelAddresses gives the tunnels the node's own IPv4 address too. Nobody needs it there but the
// reverse path filter: of a device without an address Linux takes loose (2) for strict, and drops
// what comes by the tunnel while the answer would leave natively, that is during every change of
// path (fib_validate_source: no_addr).
func (c *computation) tunnelAddresses() {
	ip := c.podSource[bgp.IPv4]
	if !ip.IsValid() {
		return
	}
	for _, device := range c.tunnelDevices() {
		c.out.Addresses = append(c.out.Addresses, desired.Address{Device: device, Prefix: netip.PrefixFrom(ip, ip.BitLen())})
	}
}

func (c *computation) tunnelDevices() []string {
	var out []string
	for _, d := range c.out.VXLANs {
		out = append(out, d.Name)
	}
	for _, d := range c.out.IPIPs {
		out = append(out, d.Name)
	}
	return out
}

// sysctls: forwarding, and loose reverse path filtering on the tunnels and the uplink, since a packet may
// come in by a tunnel while the answer leaves natively, and the reverse. The kernel takes the larger of
// all and the device's own: 2 (loose) wins over a strict 1. An uplink that does not filter is left alone.
func (c *computation) sysctls() {
	c.out.Sysctls = []desired.Sysctl{{Path: "ipv4/ip_forward", Value: "1"}}
	if c.Self.IPv6.IsValid() {
		c.out.Sysctls = append(c.out.Sysctls, desired.Sysctl{Path: "ipv6/conf/all/forwarding", Value: "1"})
	}
	loose := c.tunnelDevices()
	if l, ok := c.links[bgp.IPv4]; ok && l.StrictRPF {
		loose = append(loose, l.Device)
	}
	for _, device := range loose {
		c.out.Sysctls = append(c.out.Sysctls, desired.Sysctl{Path: "ipv4/conf/" + device + "/rp_filter", Value: "2"})
	}
}

// ownRoutes drops what is for our blocks and for no pod of ours, instead of sending it back up the
// default route, and originates the blocks.
func (c *computation) ownRoutes() {
	for _, b := range c.owned[c.NodeName] {
		if b.CIDR.IsSingleIP() {
			continue // a block of one address is its pod's own route
		}
		c.out.Routes = append(c.out.Routes, desired.Route{Prefix: b.CIDR, Type: desired.RouteBlackhole})
	}
}

func (c *computation) firewall() {
	n := &c.out.NFT
	for _, p := range c.Pools {
		n.NoNAT = append(n.NoNAT, p.CIDR)
		if p.NATOutgoing {
			n.NATSources = append(n.NATSources, p.CIDR)
		}
	}
	n.Tunnels = c.tunnelDevices()
	for _, d := range c.out.IPIPs {
		n.IPIPLocal, n.IPIPOthers = append(n.IPIPLocal, d.Local), c.ForeignIPIP
	}
	for _, d := range c.out.VXLANs {
		n.VXLANPorts = []uint16{d.Port}
	}
	for _, node := range c.Nodes {
		if node.Name == c.NodeName {
			continue
		}
		for _, ip := range []netip.Addr{node.IPv4, node.IPv6} {
			if ip.IsValid() {
				n.Nodes = append(n.Nodes, ip)
			}
		}
	}
	slices.SortFunc(n.NATSources, netip.Prefix.Compare)
	slices.SortFunc(n.NoNAT, netip.Prefix.Compare)
	slices.SortFunc(n.Nodes, netip.Addr.Compare)
}

// speaker computes the sessions, and originates the blocks of pools that may be advertised.
func (c *computation) speaker() {
	in := topology.Input{Self: c.NodeName, Config: c.BGPConfig, Peers: c.BGPPeers, Secrets: c.Secrets, Reflection: c.Reflection}
	if c.reflects() {
		for _, b := range c.Blocks {
			in.Blocks = append(in.Blocks, topology.Block{Node: b.Node, Prefix: b.CIDR})
		}
	}
	for _, n := range c.Nodes {
		in.Nodes = append(in.Nodes, topology.Node{Name: n.Name, Labels: n.Labels, IPv4: n.IPv4, IPv6: n.IPv6})
	}
	for _, p := range c.Pools {
		in.Pools = append(in.Pools, p.CIDR)
	}
	for _, l := range c.Links {
		in.Subnets = append(in.Subnets, l.Subnet)
	}
	t := topology.Compute(in)
	for _, p := range t.Problems {
		c.problem(p.Object, p.Reason)
	}
	c.out.BGP = bgp.Desired{Global: t.Global, Peers: t.Peers, Reflection: t.Reflection}
	if t.Global != (bgp.Global{}) {
		c.out.BGP.Global.Restarting = c.Restarting
	}
	for _, b := range c.owned[c.NodeName] {
		nextHop := c.Self.IP(bgp.FamilyOf(b.CIDR.Addr()))
		pool, ok := c.PoolNamed(b.Pool)
		if nextHop.IsValid() && (!ok || !pool.DisableBGPExport) {
			c.out.BGP.Origins = append(c.out.BGP.Origins, bgp.Origin{Prefix: b.CIDR, NextHop: nextHop})
		}
	}
}

// reflects says whether this node is a reflector.
func (c *computation) reflects() bool {
	return c.Reflection != nil && slices.ContainsFunc(c.Reflection.Reflectors, func(r v1alpha1.Reflector) bool { return r.Node == c.NodeName })
}

func (c *computation) problem(object, reason string) {
	c.out.Problems = append(c.out.Problems, snapshot.Problem{Object: object, Reason: reason})
}
