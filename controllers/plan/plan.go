// SPDX-License-Identifier: Apache-2.0

// Package plan decides which node holds which block of addresses. It is a pure function from what
// the API holds to what should change there: Compute reads no clock, keeps no state, and gives the
// same plan for the same input, so two controllers that race plan the same writes, and the name of
// a block, made of its range, lets the API server refuse the second.
//
// The rules, per node and address family:
//
//   - A node that a pool serves has exactly one primary block that is not releasing. A pool serves
//     a node if it is in force (valid, no older pool overlaps it), not disabled, and its
//     nodeSelector matches. Of several, the first by name that has a free block gives it.
//   - One spare ahead of demand: when no block of the node is empty, it gets one more. A block is
//     empty while no pod uses an address of it; the node's own address in the primary does not
//     count. A block that the node has not reported yet counts as empty.
//   - More than two empty blocks besides the primary: the youngest are released.
//   - A stray block (its pool was deleted, or no longer selects the node) is released once the
//     node has a primary from a pool that serves it; until then it stays, the primary too.
//   - Releasing is a handshake: only a block that the node's NodeStatus lists is marked releasing,
//     and it is deleted once the NodeStatus no longer lists it. It is never taken back.
//   - Blocks of a node that is gone are deleted at once, and its NodeStatus with them.
//   - A block that a NodeStatus reports in use but the API lacks is made again for its node, unless
//     another block is in its place.
//
// A block is never given out where it would overlap one that exists, whatever pool that one is of.
package plan

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// maxEmpty is how many empty blocks a node may keep besides its primary.
const maxEmpty = 2

// Node is what the plan needs of a Kubernetes Node.
type Node struct {
	Name   string
	Labels map[string]string
}

// Input is what the API holds. Compute changes none of it. Of a NodeStatus only the name,
// status.blocks and status.podNetworkIPs are read.
type Input struct {
	Pools    []v1alpha1.IPPool
	Blocks   []v1alpha1.IPBlock
	Nodes    []Node
	Statuses []v1alpha1.NodeStatus
}

// Plan is what should change in the API, and what the pools' status should say. Apply Create
// before Release before Delete: a node must have its new primary before it gives the old one back.
type Plan struct {
	// Create are new blocks, primaries first.
	Create []Block
	// Release are the names of blocks to mark as releasing.
	Release []string
	// Delete are blocks that nobody holds any more.
	Delete []Deletion
	// Forget are the names of NodeStatuses whose Node is gone.
	Forget []string
	// Pools is the state of every pool, sorted by name.
	Pools []PoolState
	// Problems are those of nodes, sorted by node and reason.
	Problems []Problem
}

// Empty says whether the plan changes nothing. Pools and Problems do not count.
func (p Plan) Empty() bool {
	return len(p.Create) == 0 && len(p.Release) == 0 && len(p.Delete) == 0 && len(p.Forget) == 0
}

// Block is a block to create. Its name is BlockName(CIDR).
type Block struct {
	CIDR    netip.Prefix
	Pool    string
	Node    string
	Primary bool
}

// Deletion is a block to delete.
type Deletion struct {
	Name string
	Node string
	// NodeGone: because its node is; otherwise because the node has given it back.
	NodeGone bool
}

// PoolState is what the status of a pool should say.
type PoolState struct {
	Name     string
	Ready    bool
	Reason   string
	Message  string
	Blocks   int64 // once the plan is applied
	Capacity int64
	InUse    int64
}

// Reasons of problems of nodes. They are reasons of Events, too.
const (
	// ProblemNoPool: pools exist, but none of any family serves the node.
	ProblemNoPool = "NoIPPool"
	// ProblemNoBlock: the pools that serve the node are exhausted.
	ProblemNoBlock = "IPPoolExhausted"
	// ProblemBlockLost: the node uses a block that is no longer its own.
	ProblemBlockLost = "IPBlockLost"
	// ProblemBlockOverlap: a block of the node overlaps another one.
	ProblemBlockOverlap = "IPBlockOverlap"
)

// Problem is something that an operator should know about a node.
type Problem struct {
	Node    string
	Reason  string
	Message string
}

// Compute makes the plan.
func Compute(in Input) Plan {
	p := newPlanner(in)
	p.dropNodeless()
	p.restore()
	p.checkOverlaps()
	p.eachNodeFamily((*planner).givePrimary)
	p.eachNodeFamily((*planner).retire)
	p.eachNodeFamily((*planner).giveSpare)
	p.checkServed()
	return p.finish()
}

// families are looked at in this order.
var families = [...]family{ipv4, ipv6}

type family int

const (
	ipv4 family = iota
	ipv6
)

func (f family) String() string {
	if f == ipv6 {
		return "IPv6"
	}
	return "IPv4"
}

func familyOf(p netip.Prefix) family {
	if p.Addr().Is4() {
		return ipv4
	}
	return ipv6
}

// block is an IPBlock, existing or planned.
type block struct {
	name      string
	cidr      netip.Prefix
	pool      *pool // nil: it is of no pool that exists
	poolName  string
	node      string
	primary   bool
	releasing bool // it gives out no address
	deleting  bool // the API only waits for a finalizer
	created   time.Time
	reported  bool
	inUse     int64
}

// podCapacity is how many addresses pods can have: all but the first, and but the node's own.
func (b *block) podCapacity() int64 {
	n := int64(1)<<min(b.cidr.Addr().BitLen()-b.cidr.Bits(), 53) - 1
	return n - b.ownAddresses()
}

func (b *block) ownAddresses() int64 {
	if b.primary {
		return 1
	}
	return 0
}

// empty says whether pods could have addresses of the block and have none.
func (b *block) empty() bool { return b.podCapacity() > 0 && b.inUse <= b.ownAddresses() }
func (b *block) full() bool  { return b.inUse >= b.podCapacity()+b.ownAddresses() }

// node is a Node with what it holds.
type node struct {
	Node
	blocks [len(families)][]*block // by age
	status *v1alpha1.NodeStatus
}

// planner is the state of one Compute.
type planner struct {
	pools    []*pool // by name
	poolName map[string]*pool
	nodes    []*node // by name
	nodeName map[string]*node
	blocks   map[string]*block
	taken    [len(families)][]*block // all blocks, by address; those to delete too
	statuses []v1alpha1.NodeStatus
	plan     Plan
}

func newPlanner(in Input) *planner {
	p := &planner{
		poolName: make(map[string]*pool, len(in.Pools)),
		nodeName: make(map[string]*node, len(in.Nodes)),
		blocks:   make(map[string]*block, len(in.Blocks)),
		statuses: in.Statuses,
	}
	for _, n := range in.Nodes {
		known := &node{Node: n}
		p.nodes = append(p.nodes, known)
		p.nodeName[n.Name] = known
	}
	slices.SortFunc(p.nodes, func(a, b *node) int { return cmp.Compare(a.Name, b.Name) })
	p.pools = judge(in.Pools, in.Blocks)
	for _, pl := range p.pools {
		p.poolName[pl.name] = pl
	}
	for i := range in.Blocks {
		p.addBlock(&in.Blocks[i])
	}
	for i := range in.Statuses {
		p.addStatus(&in.Statuses[i])
	}
	for f := range families {
		slices.SortFunc(p.taken[f], byAddress)
		for _, n := range p.nodes {
			slices.SortFunc(n.blocks[f], byAge)
		}
	}
	return p
}

func (p *planner) addBlock(obj *v1alpha1.IPBlock) {
	cidr, err := netip.ParsePrefix(obj.Spec.CIDR)
	if err != nil { // the API server refuses it
		return
	}
	b := &block{
		name: obj.Name, cidr: cidr, poolName: obj.Spec.Pool, node: obj.Spec.Node, primary: obj.Spec.Primary,
		deleting: obj.DeletionTimestamp != nil, created: obj.CreationTimestamp.Time,
	}
	b.releasing = obj.Spec.Releasing || b.deleting
	p.own(b)
}

// own makes the block known, and links it with its pool and node.
func (p *planner) own(b *block) {
	if pl := p.poolName[b.poolName]; pl != nil && pl.cuts(b.cidr) {
		b.pool = pl
	}
	f := familyOf(b.cidr)
	p.blocks[b.name] = b
	p.taken[f] = append(p.taken[f], b)
	if n := p.nodeName[b.node]; n != nil {
		n.blocks[f] = append(n.blocks[f], b)
	}
}

func (p *planner) addStatus(s *v1alpha1.NodeStatus) {
	n := p.nodeName[s.Name]
	if n == nil {
		return
	}
	n.status = s
	for i := range s.Status.Blocks {
		if b := p.blocks[s.Status.Blocks[i].Name]; b != nil && b.node == n.Name {
			b.reported, b.inUse = true, s.Status.Blocks[i].InUse
		}
	}
}

func byAddress(a, b *block) int {
	return cmp.Or(a.cidr.Addr().Compare(b.cidr.Addr()), cmp.Compare(a.cidr.Bits(), b.cidr.Bits()), cmp.Compare(a.name, b.name))
}

func byAge(a, b *block) int {
	return cmp.Or(a.created.Compare(b.created), a.cidr.Addr().Compare(b.cidr.Addr()))
}

func (p *planner) eachNodeFamily(rule func(*planner, *node, family)) {
	for _, n := range p.nodes {
		for _, f := range families {
			rule(p, n, f)
		}
	}
}

func (p *planner) problem(node, reason, message string) {
	p.plan.Problems = append(p.plan.Problems, Problem{Node: node, Reason: reason, Message: message})
}

// finish counts what the pools hold and sorts the plan.
func (p *planner) finish() Plan {
	deleted := make(map[string]bool, len(p.plan.Delete))
	for _, d := range p.plan.Delete {
		deleted[d.Name] = true
	}
	for _, b := range p.blocks {
		if b.pool != nil && !deleted[b.name] {
			b.pool.blocks++
			b.pool.inUse += b.inUse
		}
	}
	for _, pl := range p.pools {
		p.plan.Pools = append(p.plan.Pools, pl.state())
	}
	slices.Sort(p.plan.Release)
	slices.Sort(p.plan.Forget)
	slices.SortFunc(p.plan.Delete, func(a, b Deletion) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(p.plan.Problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Message, b.Message))
	})
	return p.plan
}
