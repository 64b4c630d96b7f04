// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// dropNodeless deletes what belongs to nodes that are gone, and what nodes have given back. The
// ranges stay taken in this plan: only when the block is gone from the API is it free.
func (p *planner) dropNodeless() {
	for _, b := range p.blocks {
		n := p.nodeName[b.node]
		switch {
		case b.deleting:
		case n == nil:
			p.plan.Delete = append(p.plan.Delete, Deletion{Name: b.name, Node: b.node, NodeGone: true})
		case b.releasing && n.status != nil && !b.reported:
			p.plan.Delete = append(p.plan.Delete, Deletion{Name: b.name, Node: b.node})
		}
	}
	for i := range p.statuses {
		if name := p.statuses[i].Name; p.nodeName[name] == nil {
			p.plan.Forget = append(p.plan.Forget, name)
		}
	}
}

// restore makes those blocks again that nodes use and somebody deleted. Only blocks that a pool
// could have given are: a NodeStatus is the word of a node, and no node may claim other ranges.
func (p *planner) restore() {
	for _, n := range p.nodes {
		if n.status == nil {
			continue
		}
		for _, s := range n.status.Status.Blocks {
			if b := p.blocks[s.Name]; s.InUse == 0 || b != nil && b.node == n.Name {
				continue
			}
			cidr, err := netip.ParsePrefix(s.CIDR)
			if err != nil || BlockName(cidr) != s.Name {
				continue
			}
			p.restoreBlock(n, cidr, s.Pool, s.InUse)
		}
	}
}

func (p *planner) restoreBlock(n *node, cidr netip.Prefix, poolName string, inUse int64) {
	f := familyOf(cidr)
	if i := slices.IndexFunc(p.taken[f], func(b *block) bool { return b.cidr.Overlaps(cidr) }); i >= 0 {
		other := p.taken[f][i]
		p.problem(n.Name, ProblemBlockLost, fmt.Sprintf("uses %d addresses of block %s, which node %s holds now (IPBlock %s)",
			inUse, cidr, other.node, other.name))
		return
	}
	pl := p.poolName[poolName]
	if pl == nil || !pl.cuts(cidr) {
		p.problem(n.Name, ProblemBlockLost, fmt.Sprintf("uses %d addresses of block %s, which no IPPool %s has", inUse, cidr, poolName))
		return
	}
	own := cidr.Addr().Next().String()
	primary := slices.Contains(n.status.Status.PodNetworkIPs, own) &&
		!slices.ContainsFunc(n.blocks[f], func(b *block) bool { return b.primary && !b.releasing })
	b := p.create(n, pl, cidr, primary)
	b.reported, b.inUse = true, inUse
	slices.SortFunc(p.taken[f], byAddress)
}

// checkOverlaps reports blocks that somebody made by hand over others.
func (p *planner) checkOverlaps() {
	for _, f := range families {
		var widest *block // the one that reaches furthest so far
		for _, b := range p.taken[f] {
			if widest != nil && widest.cidr.Overlaps(b.cidr) {
				for _, pair := range [][2]*block{{widest, b}, {b, widest}} {
					p.problem(pair[0].node, ProblemBlockOverlap,
						fmt.Sprintf("IPBlock %s overlaps IPBlock %s of node %s", pair[0].name, pair[1].name, pair[1].node))
				}
				continue
			}
			widest = b
		}
	}
}

// stray says that the node should not keep the block: its pool was deleted, or does not select the
// node any more. A pool whose selector does not parse keeps what it has.
func (n *node) stray(b *block) bool {
	return b.pool == nil || b.pool.reason == "" && !b.pool.selector.Matches(n.Labels)
}

// primary is the block that holds the node's own address from now on, or nil.
func (n *node) primary(f family) *block {
	for _, b := range n.blocks[f] {
		if b.primary && !b.releasing && !n.stray(b) {
			return b
		}
	}
	return nil
}

func (p *planner) givePrimary(n *node, f family) {
	if n.primary(f) != nil {
		return
	}
	serving := p.serving(n, f)
	if p.allocate(n, f, serving, true) != nil || len(serving) == 0 {
		return
	}
	for _, pl := range serving {
		pl.without = append(pl.without, n.Name)
	}
	effect := "the node has no block, and its pods get no address"
	if len(n.blocks[f]) > 0 {
		effect = "the node keeps blocks of a pool that is gone or does not select it"
	}
	p.exhausted(n, f, serving, effect)
}

// giveSpare keeps one empty block ahead of demand.
func (p *planner) giveSpare(n *node, f family) {
	serving := p.serving(n, f)
	if len(serving) == 0 || n.primary(f) == nil {
		return
	}
	full := true
	for _, b := range n.blocks[f] {
		if b.releasing || b.pool == nil || !slices.Contains(serving, b.pool) {
			continue
		}
		if b.empty() {
			return
		}
		full = full && b.full()
	}
	if p.allocate(n, f, serving, false) != nil {
		return
	}
	for _, pl := range serving {
		if full {
			pl.full = append(pl.full, n.Name)
		} else {
			pl.spareless = append(pl.spareless, n.Name)
		}
	}
	if full {
		p.exhausted(n, f, serving, "its blocks are full, and new pods get no address")
	}
}

// retire releases what the node should not keep: strays once it has a primary to live on, second
// primaries, empty blocks of disabled pools, and empty blocks beyond maxEmpty, the youngest first.
func (p *planner) retire(n *node, f family) {
	primary := n.primary(f)
	if primary == nil {
		return
	}
	var empty []*block
	for _, b := range n.blocks[f] {
		switch {
		case b.releasing || b == primary:
		case n.stray(b) || b.primary:
			p.release(b)
		case !b.empty():
		case b.pool.disabled:
			p.release(b)
		default:
			empty = append(empty, b)
		}
	}
	for i := len(empty) - 1; i >= 0 && len(empty) > maxEmpty; i-- {
		if p.release(empty[i]) {
			empty = slices.Delete(empty, i, i+1)
		}
	}
}

// release marks the block as releasing, if its node has reported it. One that is not in the
// NodeStatus yet may be in use already, and its absence there must not be read as "given back".
func (p *planner) release(b *block) bool {
	if !b.reported {
		return false
	}
	b.releasing = true
	p.plan.Release = append(p.plan.Release, b.name)
	return true
}

// serving lists the pools that may give the node blocks, by name.
func (p *planner) serving(n *node, f family) []*pool {
	var serving []*pool
	for _, pl := range p.pools {
		if pl.serves(n, f) {
			serving = append(serving, pl)
		}
	}
	return serving
}

// allocate gives the node a free block of the first pool that has one, or returns nil.
func (p *planner) allocate(n *node, f family, pools []*pool, primary bool) *block {
	for _, pl := range pools {
		if pl.free == nil {
			pl.free = newCursor(pl, p.taken[f])
		}
		if cidr, ok := pl.free.free(); ok {
			return p.create(n, pl, cidr, primary)
		}
	}
	return nil
}

func (p *planner) create(n *node, pl *pool, cidr netip.Prefix, primary bool) *block {
	b := &block{name: BlockName(cidr), cidr: cidr, poolName: pl.name, node: n.Name, primary: primary}
	p.own(b)
	p.plan.Create = append(p.plan.Create, Block{CIDR: cidr, Pool: pl.name, Node: n.Name, Primary: primary})
	return b
}

func (p *planner) exhausted(n *node, f family, pools []*pool, effect string) {
	names := make([]string, len(pools))
	for i, pl := range pools {
		names[i] = pl.name
	}
	p.problem(n.Name, ProblemNoBlock, fmt.Sprintf("no free %s block in IPPool %s: %s", f, strings.Join(names, ", "), effect))
}

// checkServed reports nodes that got nothing although there are pools.
func (p *planner) checkServed() {
	if len(p.pools) == 0 {
		return
	}
	for _, n := range p.nodes {
		if len(n.blocks[ipv4])+len(n.blocks[ipv6])+len(p.serving(n, ipv4))+len(p.serving(n, ipv6)) == 0 {
			p.problem(n.Name, ProblemNoPool, "no IPPool that is ready and enabled selects this node: its pods get no address")
		}
	}
}
