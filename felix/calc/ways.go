// SPDX-License-Identifier: Apache-2.0

package calc

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

// Path is the way to one remote node for one family of pod addresses.
type Path struct {
	Node     string
	Family   bgp.Family
	Method   v1alpha1.PathMethod
	NextHops []netip.Addr
	Reason   string   // why this method and not a better one
	Allowed  path.Set // by the pool of the node's primary block
	Decision path.Decision
}

// way is a remote node and a family, with all that can be said of how to reach it before it is decided.
type way struct {
	node   *snapshot.Node
	can    remoteCan
	family bgp.Family
	lead   int // index of the block that stands for the node: its primary one
	blocks []wayBlock
	tunnel [path.Methods][]hop // by method; Native is the blocks' own
	input  *path.Input
}

// remoteCan is what the other node's agent said that its kernel can do, if it did.
type remoteCan struct {
	can   path.Capabilities
	known bool
}

// wayBlock is one block of the remote node.
type wayBlock struct {
	snapshot.Block
	place         int // in the routes
	encapsulation v1alpha1.Encapsulation
	allowed       path.Set // by the pool
	native        []hop    // none: it cannot be reached natively now
	why           string   // what native rests on, or why not
}

// wanted is what may be chosen for the block: no native way if its own route is missing, be the node's
// other blocks reachable so or not.
func (b *wayBlock) wanted() path.Set {
	if len(b.native) == 0 {
		return b.allowed &^ path.SetOf(path.Native)
	}
	return b.allowed
}

func (w *way) hops(b *wayBlock, m path.Method) []hop {
	switch m {
	case path.Native:
		return b.native
	case path.Methods:
		return nil
	}
	return w.tunnel[m]
}

// podAddress is the node's own address in the pod network, as far as the API tells.
func (w *way) podAddress() netip.Addr {
	if b := &w.blocks[w.lead]; b.Primary {
		return b.CIDR.Addr().Next()
	}
	return netip.Addr{}
}

// findCandidates finds, for every other node and family, which methods there are.
func (c *computation) findCandidates() {
	c.ways = make([]way, 0, 2*len(c.Nodes))
	c.inputs = make([]path.Input, 0, 2*len(c.Nodes)) // never grows: ways point into it
	c.blocks = make([]wayBlock, 0, len(c.Blocks))
	families := [...]bgp.Family{bgp.IPv4, bgp.IPv6}
	for i := range c.Nodes {
		n := &c.Nodes[i]
		if n.Name == c.NodeName {
			continue
		}
		var reports [len(families)]path.Report
		var can remoteCan
		for i, f := range families { // by whichever it said it
			reports[i] = c.Probes[path.Key{Node: n.Name, Family: f}]
			if r := &reports[i]; r.RemoteKnown && !can.known {
				can = remoteCan{r.Remote, true}
			}
		}
		for i, f := range families {
			w := way{node: n, family: f, can: can}
			if !c.findBlocks(&w) {
				continue
			}
			c.inputs = append(c.inputs, path.Input{Key: path.Key{Node: n.Name, Family: f}, Adopted: path.Methods, Report: reports[i]})
			w.input = &c.inputs[len(c.inputs)-1]
			c.findMethods(&w)
			c.ways = append(c.ways, w)
		}
	}
}

// findBlocks fills in the node's blocks of the family; false if there are none.
func (c *computation) findBlocks(w *way) bool {
	link, sameSubnet := c.onLink(w.node.IP(w.family))
	first := len(c.blocks)
	for _, b := range c.owned[w.node.Name] {
		if bgp.FamilyOf(b.CIDR.Addr()) != w.family {
			continue
		}
		known := c.candidates.at[b.CIDR]
		wb := wayBlock{Block: b, place: known.place, encapsulation: v1alpha1.EncapsulationAuto}
		if pool, ok := c.PoolNamed(b.Pool); ok {
			wb.encapsulation = pool.Encapsulation
		}
		wb.allowed = allowed(wb.encapsulation, w.family, sameSubnet)
		if crossSubnet(wb.encapsulation) && sameSubnet {
			wb.native, wb.why = []hop{{gateway: w.node.IP(w.family), device: link.Device}}, "same subnet"
		} else {
			wb.native, wb.why = c.nativeHops(w.node, w.family, b, known)
		}
		c.blocks = append(c.blocks, wb)
	}
	w.blocks = c.blocks[first:len(c.blocks):len(c.blocks)]
	w.lead = max(0, slices.IndexFunc(w.blocks, func(b wayBlock) bool { return b.Primary && !b.Releasing }))
	return len(w.blocks) > 0
}

func crossSubnet(e v1alpha1.Encapsulation) bool {
	return e == v1alpha1.EncapsulationVXLANCrossSubnet || e == v1alpha1.EncapsulationIPIPCrossSubnet
}

// allowed are the methods that a pool allows. IPIP carries IPv4 alone.
func allowed(e v1alpha1.Encapsulation, f bgp.Family, sameSubnet bool) path.Set {
	switch {
	case e == v1alpha1.EncapsulationNever, crossSubnet(e) && sameSubnet:
		return path.SetOf(path.Native)
	case e == v1alpha1.EncapsulationIPIP, e == v1alpha1.EncapsulationIPIPCrossSubnet:
		return path.SetOf(path.IPIP)
	case e == v1alpha1.EncapsulationVXLAN, e == v1alpha1.EncapsulationVXLANCrossSubnet:
		return path.SetOf(path.VXLAN)
	case f == bgp.IPv6:
		return path.SetOf(path.Native, path.VXLAN)
	}
	return path.SetOf(path.Native, path.IPIP, path.VXLAN)
}

// findMethods completes the input of the decision.
func (c *computation) findMethods(w *way) {
	lead := &w.blocks[w.lead]
	if m, ok := c.AdoptedMethods[lead.CIDR]; ok {
		w.input.Adopted = m
	}
	w.input.Why[path.Native] = lead.why
	if len(lead.native) > 0 {
		w.input.Available |= path.SetOf(path.Native)
	}
	w.tunnel[path.IPIP], w.input.Why[path.IPIP] = c.ipipHops(w)
	w.tunnel[path.VXLAN], w.input.Why[path.VXLAN] = c.vxlanHops(w)
	for _, m := range []path.Method{path.IPIP, path.VXLAN} {
		if len(w.tunnel[m]) > 0 {
			w.input.Available |= path.SetOf(m)
		}
	}
	for i := range w.blocks {
		if s := w.blocks[i].wanted(); !slices.Contains(w.input.Wanted, s) {
			w.input.Wanted = append(w.input.Wanted, s)
		}
	}
}

// ipipHops is the way through the IPIP device, if both nodes can. A node that has not said so is not
// offered IPIP, unless there is nothing else to offer, or it was in use before this process.
func (c *computation) ipipHops(w *way) ([]hop, string) {
	lead := &w.blocks[w.lead]
	switch {
	case w.family == bgp.IPv6:
		return nil, "IPIP carries IPv4 alone"
	case c.Capabilities.Can&path.CanIPIP == 0:
		return nil, "this node's kernel has no ipip: " + c.Capabilities.Why[path.CanIPIP]
	case len(c.out.IPIPs) == 0 || !w.node.IPv4.IsValid():
		return nil, "this node and " + w.node.Name + " share no IPv4 underlay"
	case w.can.known && w.can.can&path.CanIPIP == 0:
		return nil, "the kernel of " + w.node.Name + " has no ipip"
	case !w.can.known && lead.allowed.Has(path.VXLAN) && w.input.Adopted != path.IPIP:
		return nil, w.node.Name + " has not said yet whether it can do IPIP"
	}
	return []hop{{gateway: w.node.IPv4, device: desired.IPIPDevice, onLink: true}}, ""
}

func (c *computation) vxlanHops(w *way) ([]hop, string) {
	t, ok := c.tunnelTo(w.node)
	if !ok {
		return nil, "this node and " + w.node.Name + " share no address family"
	}
	if w.can.known && w.can.can&path.CanVXLAN == 0 {
		return nil, "the kernel of " + w.node.Name + " has no vxlan"
	}
	if c.Capabilities.Can&path.CanVXLAN == 0 {
		return nil, "this node's kernel has no vxlan: " + c.Capabilities.Why[path.CanVXLAN]
	}
	return []hop{{gateway: gatewayOf(w.node, w.family), device: t.device, onLink: true}}, ""
}

// remoteRoutes makes the routes to every block of every other node. All blocks that go the way of their
// node's primary block refer to the node's one group, so that a change of path is one message; a block
// that differs, since its route has not arrived yet, has a group of its own.
func (c *computation) remoteRoutes(decisions []path.Decision) {
	c.out.Paths = make([]Path, 0, len(c.ways))
	// In the order of the blocks, which is that of their prefixes: so there is little to sort at the end.
	routes := make([]desired.Route, len(c.Blocks), len(c.Blocks)+len(c.out.Routes))
	for i := range c.ways {
		w, d := &c.ways[i], &decisions[i]
		lead := &w.blocks[w.lead]
		chosen := d.Choose(lead.wanted())
		hops := w.hops(lead, chosen)
		c.out.Paths = append(c.out.Paths, Path{
			Node: w.node.Name, Family: w.family, Method: methodName(chosen), NextHops: gateways(hops),
			Reason: reason(w, d, chosen), Allowed: lead.allowed, Decision: *d,
		})
		var group nexthopRef
		if chosen != path.Methods {
			group = c.nexthops.group(nodeGroup(w.node, w.family), hops)
		}
		for j := range w.blocks {
			b := &w.blocks[j]
			routes[b.place] = c.blockRoute(w, d, b, group, hops)
		}
	}
	none := func(r desired.Route) bool { return r.Type == 0 } // our own, and those of nodes that are gone
	c.out.Routes = append(slices.DeleteFunc(routes, none), c.out.Routes...)
}

func (c *computation) blockRoute(w *way, d *path.Decision, b *wayBlock, group nexthopRef, groupHops []hop) desired.Route {
	m := d.Choose(b.wanted())
	if m == path.Methods {
		// Better no answer than one from wherever the default route leads.
		return desired.Route{Prefix: b.CIDR, Type: desired.RouteBlackhole}
	}
	if hops := w.hops(b, m); !slices.Equal(hops, groupHops) {
		group = c.nexthops.contentGroup(w.family, hops)
	}
	return c.toNexthop(b.CIDR, group, c.pathMTU(w, d, m))
}

// pathMTU is what was seen to come through, if that is less than the device would let pass: the node then
// tells its pods itself what a broken network does not.
func (c *computation) pathMTU(w *way, d *path.Decision, m path.Method) int {
	if seen := d.Report.Methods[m].MTU; seen > 0 && seen < c.methodMTU(w, m) {
		return seen
	}
	return 0
}

// toNexthop is a route whose nexthop object has no id yet.
func (c *computation) toNexthop(prefix netip.Prefix, ref nexthopRef, mtu int) desired.Route {
	return desired.Route{
		Prefix: prefix, Type: desired.RouteNexthop, Nexthop: desired.NexthopID(ref), Source: c.podSource[bgp.FamilyOf(prefix.Addr())], MTU: mtu,
	}
}

func methodName(m path.Method) v1alpha1.PathMethod {
	return v1alpha1.PathMethod(m.String())
}

// reason says why a method and not a better one, in words for users.
func reason(w *way, d *path.Decision, chosen path.Method) string {
	lead := &w.blocks[w.lead]
	var parts []string
	forbidden := false
	for m := path.Native; m < chosen && m < path.Methods; m++ {
		switch {
		case lead.allowed.Has(m):
			parts = append(parts, fmt.Sprintf("not %s: %s", m, d.Why(m)))
		case m != path.IPIP || w.family == bgp.IPv4:
			forbidden = true
		}
	}
	if forbidden {
		parts = append(parts, fmt.Sprintf("pool %s says %s", lead.Pool, lead.encapsulation))
	}
	if chosen != path.Methods && d.Report.Silent {
		parts = append(parts, "nothing answers by any method: this is a guess")
	}
	if len(parts) == 0 {
		return d.Why(chosen)
	}
	return strings.Join(parts, "; ")
}
