// SPDX-License-Identifier: Apache-2.0

package calc

import (
	"net/netip"
	"slices"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/path"
)

// ProbeMarks and ProbeTables are the marks that probes carry and the tables that they lead to, by method.
var (
	ProbeMarks  = [path.Methods]uint32{path.Native: desired.MarkNative, path.IPIP: desired.MarkIPIP, path.VXLAN: desired.MarkVXLAN}
	ProbeTables = [path.Methods]uint32{path.Native: desired.TableNative, path.IPIP: desired.TableIPIP, path.VXLAN: desired.TableVXLAN}
)

// probing lets a probe go to each other node by each method that there is, whatever the choice: a mark
// sends it to a table that knows that method alone.
func (c *computation) probing(decisions []path.Decision) {
	for _, f := range []bgp.Family{bgp.IPv4, bgp.IPv6} {
		if c.podSource[f].IsValid() {
			c.probeRules(f)
		}
	}
	c.out.Targets = make([]path.Target, 0, len(c.ways))
	for m := range c.out.ProbeRoutes {
		c.out.ProbeRoutes[m] = slices.Grow(c.out.ProbeRoutes[m], len(c.ways))
	}
	// The routes in the order of their prefixes, as far as that is known: so there is little to sort at the end.
	leads := make([]int, len(c.Blocks))
	for i := range c.ways {
		w := &c.ways[i]
		if to := w.podAddress(); to.IsValid() && c.podSource[w.family].IsValid() {
			leads[w.blocks[w.lead].place] = i + 1
			c.out.Targets = append(c.out.Targets, c.target(w, &decisions[i], to))
		}
	}
	for _, lead := range leads {
		if lead > 0 {
			c.probeRoutes(&c.ways[lead-1])
		}
	}
}

// probeRules are the rules of a family, and what else is in each table: what a method cannot reach in the
// pod network must not be reached by another. The rest of the world must be found in the main table: the
// outer packet of a tunnel carries the mark of the inner one.
func (c *computation) probeRules(f bgp.Family) {
	for m := range path.Methods {
		if m == path.IPIP && f == bgp.IPv6 {
			continue
		}
		c.out.Rules = append(c.out.Rules, desired.Rule{
			Family: uint8(f), Priority: desired.RulePriority, Mark: ProbeMarks[m], Table: ProbeTables[m],
		})
		for _, p := range c.Pools {
			if bgp.FamilyOf(p.CIDR.Addr()) == f {
				c.out.ProbeRoutes[m] = append(c.out.ProbeRoutes[m], desired.Route{Prefix: p.CIDR, Type: desired.RouteBlackhole})
			}
		}
	}
}

func (c *computation) probeRoutes(w *way) {
	to := w.podAddress()
	for m := range path.Methods {
		if !w.input.Available.Has(m) {
			continue
		}
		hops := w.hops(&w.blocks[w.lead], m)
		var ref nexthopRef
		if m == path.Native {
			ref = c.nexthops.contentGroup(w.family, hops) // shared by all behind the same routers
		} else {
			ref = c.nexthops.single(hops[0])
		}
		c.out.ProbeRoutes[m] = append(c.out.ProbeRoutes[m], c.toNexthop(netip.PrefixFrom(to, to.BitLen()), ref, 0))
	}
}

// target is what the prober is to find out about a path.
func (c *computation) target(w *way, d *path.Decision, to netip.Addr) path.Target {
	t := path.Target{Key: w.input.Key, Local: c.podSource[w.family], Remote: to, Group: group(w)}
	var allowed, inUse path.Set
	for i := range w.blocks {
		b := &w.blocks[i]
		allowed |= b.wanted()
		if m := d.Choose(b.wanted()); m != path.Methods {
			inUse |= path.SetOf(m)
		}
	}
	for m := range path.Methods {
		if t.Needs[m] = d.Need(m, allowed, inUse); t.Needs[m] != path.Off {
			t.MTU[m] = c.methodMTU(w, m)
		}
	}
	return t
}

// group tells together the nodes to which all ways are the same: behind the same next hops, and neighbours
// by their addresses. The other end's netmask is not known here; /24 and /64 are what racks have.
func group(w *way) string {
	ip := w.node.IP(w.family)
	if !ip.IsValid() {
		return w.node.Name
	}
	bits := 24
	if ip.Is6() {
		bits = 64
	}
	name := netip.PrefixFrom(ip, bits).Masked().AppendTo(nil)
	for _, h := range w.blocks[w.lead].native {
		name = h.gateway.AppendTo(append(name, ' '))
	}
	return string(name)
}

// methodMTU is the largest packet of a pod that the device of a method lets pass.
func (c *computation) methodMTU(w *way, m path.Method) int {
	if m == path.Native || len(w.tunnel[m]) == 0 {
		return c.out.MTU
	}
	device := w.tunnel[m][0].device
	for _, d := range c.out.IPIPs {
		if d.Name == device {
			return d.MTU
		}
	}
	for _, d := range c.out.VXLANs {
		if d.Name == device {
			return d.MTU
		}
	}
	return 0
}
