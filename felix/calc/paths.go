// SPDX-License-Identifier: Apache-2.0

package calc

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

// pathIndex holds the BGP paths that may be used, and whose block a prefix is.
type pathIndex struct {
	at      map[netip.Prefix]candidate
	foreign []netip.Prefix       // those with paths that are nobody's block, sorted
	lengths map[bgp.Family][]int // prefix lengths of fabric paths, longest first
}

// candidate is what is known of one prefix.
type candidate struct {
	paths []bgp.Path // that may be used
	owner string     // node whose block it is
	block bool       // it is a block, if perhaps nobody's
	place int        // of the block in View.Blocks
}

// indexPaths sorts out what BGP learned: from a node only its own blocks count, from a router all
// that does not lie within a block of ours, from a reflector what either of them may announce, and a
// node's blocks only by way of that node. What a peer may not announce is counted, not obeyed.
func (c *computation) indexPaths() {
	x := pathIndex{at: make(map[netip.Prefix]candidate, len(c.Blocks)), lengths: map[bgp.Family][]int{}}
	for i, b := range c.Blocks {
		x.at[b.CIDR] = candidate{owner: b.Node, block: true, place: i}
	}
	for _, prefix := range c.ours {
		known := x.at[prefix]
		x.at[prefix] = candidate{owner: c.NodeName, block: true, place: known.place}
	}
	byPrefix := func(a, b bgp.Path) int { return a.Prefix.Compare(b.Prefix) }
	rest := c.BGP.Paths
	if !slices.IsSortedFunc(rest, byPrefix) { // the speaker's are
		rest = slices.Clone(rest)
		slices.SortStableFunc(rest, byPrefix)
	}
	for len(rest) > 0 {
		n := 1
		for n < len(rest) && rest[n].Prefix == rest[0].Prefix {
			n++
		}
		c.indexPrefix(&x, rest[:n:n])
		rest = rest[n:]
	}
	for _, l := range x.lengths {
		slices.SortFunc(l, func(a, b int) int { return cmp.Compare(b, a) })
	}
	c.candidates = x
}

// indexPrefix takes all paths of one prefix. They are not copied unless some of them are refused.
func (c *computation) indexPrefix(x *pathIndex, paths []bgp.Path) {
	prefix := paths[0].Prefix
	k := x.at[prefix]
	inside := !k.block && c.insideBlock(prefix)
	refused := func(p bgp.Path) bool {
		switch p.Kind {
		case bgp.PeerNode:
			return k.owner == "" || !c.isAt(k.owner, p.Peer)
		case bgp.PeerReflector:
			return inside || k.owner != "" && !c.isAt(k.owner, p.NextHop)
		case bgp.PeerFabric:
			return inside
		}
		return true
	}
	for _, p := range paths {
		if refused(p) {
			c.refuse(p)
		}
	}
	if k.owner == c.NodeName {
		return // the fabric gives us back what is ours
	}
	if slices.ContainsFunc(paths, refused) {
		paths = slices.DeleteFunc(slices.Clone(paths), refused)
	}
	if len(paths) == 0 {
		return
	}
	if !k.block {
		x.foreign = append(x.foreign, prefix)
		paths = ofRouters(paths)
	}
	k.paths = paths
	x.at[prefix] = k
	f, fabric := bgp.FamilyOf(prefix.Addr()), func(p bgp.Path) bool { return p.Kind == bgp.PeerFabric }
	if !slices.Contains(x.lengths[f], prefix.Bits()) && slices.ContainsFunc(paths, fabric) {
		x.lengths[f] = append(x.lengths[f], prefix.Bits())
	}
}

// ofRouters makes paths to what is no node's block those of routers: what reflectors pass on of their
// clients outside of the cluster.
func ofRouters(paths []bgp.Path) []bgp.Path {
	reflected := func(p bgp.Path) bool { return p.Kind == bgp.PeerReflector }
	if !slices.ContainsFunc(paths, reflected) {
		return paths
	}
	paths = slices.Clone(paths)
	for i := range paths {
		paths[i].Kind = bgp.PeerFabric
	}
	return paths
}

// isAt says whether a node has the address.
func (c *computation) isAt(name string, ip netip.Addr) bool {
	i, ok := slices.BinarySearchFunc(c.Nodes, name, func(n snapshot.Node, name string) int { return cmp.Compare(n.Name, name) })
	return ok && ip.IsValid() && (c.Nodes[i].IPv4 == ip || c.Nodes[i].IPv6 == ip)
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
func (c *computation) nativeHops(n *snapshot.Node, f bgp.Family, b snapshot.Block, known candidate) ([]hop, string) {
	paths := known.paths
	if len(paths) == 0 {
		paths = c.candidates.around(b.CIDR)
	}
	if p, ok := pathTo(paths, n.IP(f)); ok {
		if link, ok := c.onLink(p.NextHop); ok {
			return []hop{{gateway: p.NextHop, device: link.Device}}, "BGP route from the node itself, in the same subnet" + byReflector(p) + stale(p.Stale)
		}
	}
	if hops, isStale := c.fabricHops(paths); len(hops) > 0 {
		return hops, "BGP route from the fabric, " + strconv.Itoa(len(hops)) + " next hop(s)" + stale(isStale)
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
func (c *computation) sessionDown(n *snapshot.Node) string {
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
	hops = make([]hop, 0, len(paths))
	for _, p := range paths {
		link, ok := c.onLink(p.NextHop)
		if !ok || p.Kind != bgp.PeerFabric || shortest >= 0 && p.ASPathLen > shortest {
			continue
		}
		if p.ASPathLen < shortest {
			hops, isStale = hops[:0], false
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

// around returns the fabric's paths for the longest prefix around one that has none of its own.
func (x pathIndex) around(p netip.Prefix) []bgp.Path {
	for _, bits := range x.lengths[bgp.FamilyOf(p.Addr())] {
		if bits >= p.Bits() {
			continue
		}
		wider, err := p.Addr().Prefix(bits)
		if err != nil {
			continue
		}
		if paths := x.at[wider].paths; len(paths) > 0 {
			return paths
		}
	}
	return nil
}

// fabricRoutes installs what routers announce beside our blocks: other users of the pools'
// ranges, and what acceptPrefixes lets in.
func (c *computation) fabricRoutes() {
	for _, prefix := range c.candidates.foreign {
		if hops, _ := c.fabricHops(c.candidates.at[prefix].paths); len(hops) > 0 {
			c.out.Routes = append(c.out.Routes, c.toNexthop(prefix, c.nexthops.contentGroup(bgp.FamilyOf(prefix.Addr()), hops), 0))
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
