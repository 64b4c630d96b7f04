// SPDX-License-Identifier: Apache-2.0

package calc

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

// pathIndex holds the BGP paths that may be used, by prefix.
type pathIndex struct {
	byPrefix map[netip.Prefix][]bgp.Path
	lengths  map[bgp.Family][]int // prefix lengths of fabric paths, longest first
}

// indexPaths sorts out what BGP learned: from a node only its own blocks count, from a router all
// that does not lie within a block of ours, from a reflector what either of them may announce, and a
// node's blocks only by way of that node. What a peer may not announce is counted, not obeyed.
func (c *computation) indexPaths() {
	c.candidates = pathIndex{byPrefix: make(map[netip.Prefix][]bgp.Path, len(c.Blocks)), lengths: map[bgp.Family][]int{}}
	owner := make(map[netip.Prefix]string, len(c.Blocks))
	for node, blocks := range c.owned {
		for _, b := range blocks {
			owner[b.CIDR] = node
		}
	}
	nodeAt := make(map[netip.Addr]string, 2*len(c.Nodes))
	for _, n := range c.Nodes {
		nodeAt[n.IPv4], nodeAt[n.IPv6] = n.Name, n.Name
	}
	for _, p := range c.BGP.Paths {
		sent := p
		if p.Kind == bgp.PeerReflector && owner[p.Prefix] == "" {
			p.Kind = bgp.PeerFabric // of a router that is a client of the reflector
		}
		switch {
		case p.Kind == bgp.PeerReflector && owner[p.Prefix] != nodeAt[p.NextHop]:
			c.refuse(sent)
			continue
		case p.Kind == bgp.PeerNode && (owner[p.Prefix] == "" || owner[p.Prefix] != nodeAt[p.Peer]):
			c.refuse(p)
			continue
		case owner[p.Prefix] == c.NodeName:
			continue // the fabric gives us back what is ours
		case p.Kind == bgp.PeerFabric && c.insideBlock(p.Prefix):
			c.refuse(sent)
			continue
		}
		c.candidates.byPrefix[p.Prefix] = append(c.candidates.byPrefix[p.Prefix], p)
		if f := bgp.FamilyOf(p.Prefix.Addr()); p.Kind == bgp.PeerFabric && !slices.Contains(c.candidates.lengths[f], p.Prefix.Bits()) {
			c.candidates.lengths[f] = append(c.candidates.lengths[f], p.Prefix.Bits())
		}
	}
	for _, l := range c.candidates.lengths {
		slices.SortFunc(l, func(a, b int) int { return cmp.Compare(b, a) })
	}
}

func (c *computation) refuse(p bgp.Path) {
	r := c.out.Refused[p.Neighbour()]
	if r.Routes == 0 || p.Prefix.Compare(r.Example) < 0 {
		r.Example = p.Prefix
	}
	r.Routes++
	c.out.Refused[p.Neighbour()] = r
}

// insideBlock says whether a prefix is a part, but not the whole, of some node's block: to obey it
// would take addresses away from their node.
func (c *computation) insideBlock(p netip.Prefix) bool {
	i, found := slices.BinarySearchFunc(c.Blocks, p.Addr(), func(b snapshot.Block, a netip.Addr) int { return b.CIDR.Addr().Compare(a) })
	if !found {
		i--
	}
	return i >= 0 && c.Blocks[i].CIDR.Contains(p.Addr()) && c.Blocks[i].CIDR.Bits() < p.Bits()
}

// nativeHops looks for BGP next hops that are on-link: the owner's own, or else the routers' that have the
// shortest AS_PATH. It says what they rest on, or why there are none.
func (c *computation) nativeHops(n snapshot.Node, f bgp.Family, b snapshot.Block) ([]hop, string) {
	paths := c.candidates.covering(b.CIDR)
	if p, ok := pathTo(paths, n.IP(f)); ok {
		if link, ok := c.onLink(p.NextHop); ok {
			return []hop{{gateway: p.NextHop, device: link.Device}}, "BGP route from the node itself, in the same subnet" + byReflector(p) + stale(p.Stale)
		}
	}
	if hops, isStale := c.fabricHops(paths); len(hops) > 0 {
		return hops, fmt.Sprintf("BGP route from the fabric, %d next hop(s)%s", len(hops), stale(isStale))
	}
	if hops := c.adoptedHops(b.CIDR); len(hops) > 0 {
		return hops, "kept from before the agent's restart, until BGP has converged"
	}
	if len(paths) > 0 {
		return nil, fmt.Sprintf("no next hop of its %d BGP route(s) is on-link (such as %s)", len(paths), paths[0].NextHop)
	}
	return nil, "no BGP route to " + b.CIDR.String() + c.sessionDown(n)
}

// pathTo is the path that leads to the node itself, by its own word or a reflector's. One that is not
// stale is preferred.
func pathTo(paths []bgp.Path, node netip.Addr) (best bgp.Path, ok bool) {
	for _, p := range paths {
		if (p.Kind == bgp.PeerNode || p.Kind == bgp.PeerReflector) && p.NextHop == node && (!ok || best.Stale && !p.Stale) {
			best, ok = p, true
		}
	}
	return best, ok
}

func byReflector(p bgp.Path) string {
	if p.Kind == bgp.PeerReflector {
		return ", by way of reflector " + p.Peer.String()
	}
	return ""
}

// sessionDown says of a node in the same subnet, whose own session would tell of its blocks, that it is
// down; or that all reflectors are out of reach.
func (c *computation) sessionDown(n snapshot.Node) string {
	reflectors, up := 0, 0
	for _, s := range c.BGP.Sessions {
		if s.Kind == bgp.PeerReflector {
			reflectors++
			if s.State == bgp.StateEstablished {
				up++
			}
		}
		if s.Peer != "node/"+n.Name || s.State == bgp.StateEstablished {
			continue
		}
		why := s.LastError
		if why == "" {
			why = "no reason known"
		}
		return fmt.Sprintf("; its session is down since %s (%s)", s.Since.UTC().Format(time.TimeOnly), why)
	}
	if reflectors > 0 {
		return fmt.Sprintf("; %d of %d sessions with reflectors are established", up, reflectors)
	}
	return ""
}

func stale(s bool) string {
	if s {
		return ", whose peer is restarting (RFC 4724)"
	}
	return ""
}

// fabricHops are the on-link next hops of the routers' paths with the shortest AS_PATH.
func (c *computation) fabricHops(paths []bgp.Path) (hops []hop, isStale bool) {
	shortest := -1
	for _, p := range paths {
		link, ok := c.onLink(p.NextHop)
		if !ok || p.Kind != bgp.PeerFabric || shortest >= 0 && p.ASPathLen > shortest {
			continue
		}
		if p.ASPathLen < shortest {
			hops, isStale = nil, false
		}
		shortest = p.ASPathLen
		isStale = isStale || p.Stale
		hops = append(hops, hop{gateway: p.NextHop, device: link.Device})
	}
	return sortHops(hops), isStale
}

func (c *computation) adoptedHops(prefix netip.Prefix) []hop {
	if c.Settled {
		return nil
	}
	var hops []hop
	for _, a := range c.Adopted[prefix] {
		if link, ok := c.onLink(a.Gateway); ok && link.Device == a.Device {
			hops = append(hops, hop{gateway: a.Gateway, device: a.Device})
		}
	}
	return sortHops(hops)
}

func sortHops(hops []hop) []hop {
	slices.SortFunc(hops, func(a, b hop) int {
		return cmp.Or(a.gateway.Compare(b.gateway), cmp.Compare(a.device, b.device))
	})
	return slices.Compact(hops)
}

// onLink finds the link whose subnet holds an address of somebody else.
func (c *computation) onLink(a netip.Addr) (snapshot.OnLink, bool) {
	for _, l := range c.Links {
		if a.IsValid() && l.Subnet.Contains(a) && l.Addr != a {
			return l, true
		}
	}
	return snapshot.OnLink{}, false
}

// covering returns the paths for the prefix itself, or else the fabric's for the longest prefix
// around it.
func (x pathIndex) covering(p netip.Prefix) []bgp.Path {
	if paths := x.byPrefix[p]; len(paths) > 0 {
		return paths
	}
	for _, bits := range x.lengths[bgp.FamilyOf(p.Addr())] {
		if bits >= p.Bits() {
			continue
		}
		wider, err := p.Addr().Prefix(bits)
		if err != nil {
			continue
		}
		if paths := x.byPrefix[wider]; len(paths) > 0 {
			return paths
		}
	}
	return nil
}

// fabricRoutes installs what routers announce beside our blocks: other users of the pools'
// ranges, and what acceptPrefixes lets in.
func (c *computation) fabricRoutes() {
	blocks := make(map[netip.Prefix]bool, len(c.Blocks))
	for _, b := range c.Blocks {
		blocks[b.CIDR] = true
	}
	for prefix, paths := range c.candidates.byPrefix {
		if blocks[prefix] || slices.Contains(c.ours, prefix) {
			continue
		}
		if hops, _ := c.fabricHops(paths); len(hops) > 0 {
			c.route(prefix, c.nexthops.contentGroup(bgp.FamilyOf(prefix.Addr()), hops), 0)
		}
	}
}

func gateways(hops []hop) []netip.Addr {
	out := make([]netip.Addr, len(hops))
	for i, h := range hops {
		out[i] = h.gateway
	}
	return out
}
