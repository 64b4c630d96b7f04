// SPDX-License-Identifier: Apache-2.0

// Package ipam decides which address of a node's blocks a pod gets. It is memory and arithmetic
// only: time is passed in, durability is cni/ipam/store's.
//
// A block belongs to one node, and a node gives out addresses of its own blocks alone. The first
// address of a block is never given out, so that nobody mistakes it for a network address, and in a
// primary block the second is the node's own. A block's other addresses go through
//
//	never used ──▶ in use ──▶ cooling down ──▶ free ──▶ in use …
//
// and are taken in that order: what was never used first, then what was released longest ago. So an
// address comes back as late as the block's size allows, whatever the cooldown.
package ipam

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/heliograph-dev/heliograph/cni"
)

// DefaultCooldown is how long a released address rests before it may be used again.
const DefaultCooldown = 30 * time.Second

// Families of addresses, as indices.
const (
	IPv4 = 0
	IPv6 = 1
)

// Block is a block of addresses that this node owns.
type Block struct {
	Name         string
	CIDR         netip.Prefix // masked
	Pool         string
	Primary      bool // the node's first of its family: holds the node's own address
	Releasing    bool // being given back: no new allocations
	PoolDisabled bool // no new allocations either, and its family is not missed
}

// Request asks for the addresses of an attachment.
type Request struct {
	Attachment cni.Attachment
	Network    string // name of the network configuration
	Pod        cni.Pod
	Device     string // the node's end of the pair
}

// Allocation is what an attachment has.
type Allocation struct {
	Attachment cni.Attachment `json:"attachment"`
	Network    string         `json:"network,omitempty"` // empty if recovered from the kernel
	Pod        cni.Pod        `json:"pod"`               // partly or wholly empty if recovered
	Device     string         `json:"device"`
	Addresses  [2]netip.Addr  `json:"addresses"` // IPv4, IPv6; one may be invalid
	Created    time.Time      `json:"created"`
}

// BlockUsage counts the addresses of a block that a pod can have.
type BlockUsage struct {
	Name        string
	CIDR        netip.Prefix
	Pool        string
	InUse       int
	CoolingDown int
	Capacity    int
	Orphan      bool // not this node's any more, known only for what is still in use
}

// ErrNotReady says that SetBlocks was never called.
var ErrNotReady = errors.New("the address blocks of this node are not known yet")

// NoAddressError says that a family has no address left.
type NoAddressError struct {
	Family int          // IPv4 or IPv6
	Blocks []BlockUsage // of that family; empty: the node has none
}

// Error implements error.
func (e *NoAddressError) Error() string {
	name := [2]string{"IPv4", "IPv6"}[e.Family]
	if len(e.Blocks) == 0 {
		return "no " + name + " address: this node has no " + name + " block yet; the controller assigns one shortly"
	}
	parts := make([]string, len(e.Blocks))
	for i, b := range e.Blocks {
		parts[i] = fmt.Sprintf("%s (%d of %d in use, %d cooling down)", b.CIDR, b.InUse, b.Capacity, b.CoolingDown)
	}
	return "no " + name + " address left on this node: blocks " + strings.Join(parts, ", ") +
		"; the controller assigns another block shortly"
}

// Capacity is how many pods a block has addresses for.
func Capacity(cidr netip.Prefix, primary bool) int {
	n := int64(size(cidr)) - firstOffset(primary)
	return int(max(n, 0))
}

// NodeAddress is the address of a primary block that is the node's own; invalid if the block has a
// single address.
func NodeAddress(cidr netip.Prefix) netip.Addr {
	if size(cidr) < 2 {
		return netip.Addr{}
	}
	return cidr.Masked().Addr().Next()
}

// Allocator holds the allocations of one node. It is not safe for concurrent use.
type Allocator struct {
	cooldown time.Duration
	last     time.Time // the latest time that was passed in
	ready    bool
	require  [2]bool
	blocks   []*block // own ones by preference, then orphans
	allocs   map[cni.Attachment]*Allocation
	owners   map[netip.Addr]cni.Attachment
	released map[netip.Addr]time.Time // zero: long ago
}

// New returns an empty allocator. Restore, then SetBlocks, make it useful.
func New(cooldown time.Duration) *Allocator {
	return &Allocator{
		cooldown: cooldown,
		allocs:   map[cni.Attachment]*Allocation{},
		owners:   map[netip.Addr]cni.Attachment{},
		released: map[netip.Addr]time.Time{},
	}
}

// SetCooldown changes how long a released address rests, for those that rest already too.
func (a *Allocator) SetCooldown(d time.Duration) { a.cooldown = max(d, 0) }

// RequireFamilies says which families an allocation must have, beyond those that the node has blocks
// of. Without it a pod that comes between a node's first IPv4 and its first IPv6 block would be
// IPv4-only for its life.
func (a *Allocator) RequireFamilies(v4, v6 bool) { a.require = [2]bool{v4, v6} }

// Restore takes an allocation that exists already, from disk or from the kernel. It fails if one of
// its addresses is somebody else's, or the attachment is known with other addresses.
func (a *Allocator) Restore(x Allocation) error {
	if old, ok := a.allocs[x.Attachment]; ok {
		if old.Addresses == x.Addresses {
			return nil
		}
		return fmt.Errorf("attachment %s/%s has %v and %v", x.Attachment.ContainerID, x.Attachment.IfName, old.Addresses, x.Addresses)
	}
	for _, ip := range x.Addresses {
		if owner, ok := a.owners[ip]; ok {
			return fmt.Errorf("address %s belongs to %s/%s and %s/%s", ip,
				owner.ContainerID, owner.IfName, x.Attachment.ContainerID, x.Attachment.IfName)
		}
	}
	a.add(&x)
	if len(a.blocks) > 0 {
		a.rebuild(a.own(), a.orphans())
	}
	return nil
}

// RestoreReleased takes a release of before. A time in the future, or one older than the cooldown,
// is as good as now or long ago: the clock may have been stepped meanwhile. It must come before
// SetBlocks.
func (a *Allocator) RestoreReleased(now time.Time, ip netip.Addr, at time.Time) {
	if _, used := a.owners[ip]; used {
		return
	}
	// Adding to now gives the time now's monotonic reading, so later steps do not matter.
	a.released[ip] = now.Add(-max(now.Sub(at), 0))
}

// SetBlocks says which blocks the node owns. Allocations are taken from primary blocks first, then
// in the order given. A block that is not named any more but has allocations stays known as an
// orphan; its released addresses are forgotten, and returned. Of blocks that overlap, which the
// controller never makes, only the first is used.
func (a *Allocator) SetBlocks(blocks []Block) (forgotten []netip.Addr) {
	a.ready = true
	sorted := slices.Clone(blocks)
	slices.SortStableFunc(sorted, func(x, y Block) int { return cmp.Compare(rank(x), rank(y)) })
	var own []Block
	for _, b := range sorted {
		b.CIDR = b.CIDR.Masked()
		if b.CIDR.IsValid() && !slices.ContainsFunc(own, func(o Block) bool { return o.CIDR.Overlaps(b.CIDR) }) {
			own = append(own, b)
		}
	}
	orphans := slices.DeleteFunc(append(a.own(), a.orphans()...), func(old Block) bool {
		return slices.ContainsFunc(own, func(b Block) bool { return b.CIDR.Overlaps(old.CIDR) })
	})
	for ip := range a.released {
		if !slices.ContainsFunc(own, func(b Block) bool { return b.CIDR.Contains(ip) }) {
			delete(a.released, ip)
			forgotten = append(forgotten, ip)
		}
	}
	a.rebuild(own, orphans)
	return forgotten
}

// AddOrphan makes a block known that was the node's before a restart.
func (a *Allocator) AddOrphan(b Block) { a.rebuild(a.own(), append(a.orphans(), b)) }

// Allocate gives an attachment one address of each family that the node has blocks of, or what it
// has already; fresh tells which. It gives both or none.
//
// Errors: ErrNotReady, *NoAddressError.
func (a *Allocator) Allocate(now time.Time, r Request) (x Allocation, fresh bool, err error) {
	if old, ok := a.allocs[r.Attachment]; ok {
		return *old, false, nil
	}
	if !a.ready {
		return x, false, ErrNotReady
	}
	a.advance(now)
	var from [2]*block
	for family := range from {
		if from[family], err = a.pick(now, family); err != nil {
			return x, false, err
		}
	}
	if from[IPv4] == nil && from[IPv6] == nil {
		return x, false, &NoAddressError{Family: IPv4}
	}
	x = Allocation{Attachment: r.Attachment, Network: r.Network, Pod: r.Pod, Device: r.Device, Created: now.Round(0)}
	for family, b := range from {
		if b != nil {
			x.Addresses[family] = b.take()
			delete(a.released, x.Addresses[family])
		}
	}
	kept := x
	a.add(&kept)
	return x, true, nil
}

// Undo takes back an Allocate whose result was given to nobody. Its addresses are free at once.
func (a *Allocator) Undo(attachment cni.Attachment) {
	x, ok := a.allocs[attachment]
	if !ok {
		return
	}
	a.remove(x)
	for _, ip := range x.Addresses {
		if b := a.blockOf(ip); b != nil {
			b.inUse--
			b.free.pushFront(freed{ip: ip})
			a.released[ip] = time.Time{}
		}
	}
	a.dropEmptyOrphans()
}

// Release ends an allocation; its addresses begin to cool down. ok is false if there was none.
func (a *Allocator) Release(now time.Time, attachment cni.Attachment) (x Allocation, ok bool) {
	p, ok := a.allocs[attachment]
	if !ok {
		return x, false
	}
	a.advance(now)
	a.remove(p)
	for _, ip := range p.Addresses {
		if !ip.IsValid() {
			continue
		}
		b := a.blockOf(ip)
		if b == nil {
			continue
		}
		b.inUse--
		if !b.gives(ip) {
			continue // the node's own address, had by a pod from before the block was primary
		}
		b.free.pushBack(freed{ip: ip, at: now})
		a.released[ip] = now
	}
	a.dropEmptyOrphans()
	return *p, true
}

// Get returns the allocation of an attachment.
func (a *Allocator) Get(attachment cni.Attachment) (Allocation, bool) {
	if x, ok := a.allocs[attachment]; ok {
		return *x, true
	}
	return Allocation{}, false
}

// Owner says which attachment has an address.
func (a *Allocator) Owner(ip netip.Addr) (cni.Attachment, bool) {
	x, ok := a.owners[ip]
	return x, ok
}

// Allocations returns all, in the order of their devices.
func (a *Allocator) Allocations() []Allocation {
	all := make([]Allocation, 0, len(a.allocs))
	for _, x := range a.allocs {
		all = append(all, *x)
	}
	slices.SortFunc(all, func(x, y Allocation) int {
		return cmp.Or(cmp.Compare(x.Device, y.Device), cmp.Compare(x.Attachment.ContainerID, y.Attachment.ContainerID),
			cmp.Compare(x.Attachment.IfName, y.Attachment.IfName))
	})
	return all
}

// Usage counts, for every block that is known. An allocation outside of all of them has an entry of
// its own, with its address as the CIDR.
func (a *Allocator) Usage(now time.Time) []BlockUsage {
	a.advance(now)
	var out []BlockUsage
	for _, b := range a.blocks {
		out = append(out, b.usage(now, a.cooldown))
	}
	known := len(out)
	for ip := range a.owners {
		if a.blockOf(ip) == nil {
			out = append(out, BlockUsage{CIDR: netip.PrefixFrom(ip, ip.BitLen()), InUse: 1, Capacity: 1, Orphan: true})
		}
	}
	slices.SortFunc(out[known:], func(x, y BlockUsage) int { return x.CIDR.Addr().Compare(y.CIDR.Addr()) })
	return out
}

// Available is nil if an Allocate would succeed now, or what it would return.
func (a *Allocator) Available(now time.Time) error {
	if !a.ready {
		return ErrNotReady
	}
	a.advance(now)
	v4, err := a.pick(now, IPv4)
	if err != nil {
		return err
	}
	v6, err := a.pick(now, IPv6)
	if err == nil && v4 == nil && v6 == nil {
		err = &NoAddressError{Family: IPv4}
	}
	return err
}

// Releasable says whether a block may go to another node: it is marked as releasing, so nothing new
// comes, and none of its addresses is in use or cooling down. A block that is not known is.
func (a *Allocator) Releasable(now time.Time, name string) bool {
	a.advance(now)
	for _, b := range a.blocks {
		if b.Name == name {
			u := b.usage(now, a.cooldown)
			return (b.Releasing || b.orphan) && u.InUse == 0 && u.CoolingDown == 0
		}
	}
	return true
}

// Blocks returns the blocks that are known, and which of them are orphans.
func (a *Allocator) Blocks() (own, orphans []Block) { return a.own(), a.orphans() }

// Released returns when the addresses that rest, or wait after that, were released.
func (a *Allocator) Released() map[netip.Addr]time.Time {
	out := make(map[netip.Addr]time.Time, len(a.released))
	for ip, at := range a.released {
		out[ip] = at
	}
	return out
}

// pick finds the block that the next address of a family comes from. Both are nil if the family is
// not used here.
func (a *Allocator) pick(now time.Time, family int) (*block, error) {
	wanted := a.require[family]
	var usages []BlockUsage
	for _, b := range a.blocks {
		if b.orphan || b.PoolDisabled || familyOf(b.CIDR.Addr()) != family {
			continue
		}
		wanted = true
		if !b.Releasing && b.ready(now, a.cooldown) {
			return b, nil
		}
		usages = append(usages, b.usage(now, a.cooldown))
	}
	if !wanted {
		return nil, nil
	}
	return nil, &NoAddressError{Family: family, Blocks: usages}
}

// advance notes the time. When the clock went backwards, releases lie in the future and would rest
// for too long; they count from now.
func (a *Allocator) advance(now time.Time) {
	if now.Before(a.last) {
		for _, b := range a.blocks {
			b.free.clamp(now)
		}
		for ip, at := range a.released {
			if at.After(now) {
				a.released[ip] = now
			}
		}
	}
	a.last = now
}

func (a *Allocator) add(x *Allocation) {
	a.allocs[x.Attachment] = x
	for _, ip := range x.Addresses {
		if ip.IsValid() {
			a.owners[ip] = x.Attachment
			delete(a.released, ip)
		}
	}
}

func (a *Allocator) remove(x *Allocation) {
	delete(a.allocs, x.Attachment)
	for _, ip := range x.Addresses {
		delete(a.owners, ip)
	}
}

// blockOf finds the block of an address. A node has few.
func (a *Allocator) blockOf(ip netip.Addr) *block {
	for _, b := range a.blocks {
		if b.CIDR.Contains(ip) {
			return b
		}
	}
	return nil
}

func (a *Allocator) own() (out []Block) {
	for _, b := range a.blocks {
		if !b.orphan {
			out = append(out, b.Block)
		}
	}
	return out
}

func (a *Allocator) orphans() (out []Block) {
	for _, b := range a.blocks {
		if b.orphan {
			out = append(out, b.Block)
		}
	}
	return out
}

// rebuild makes the blocks afresh from the allocations and releases.
func (a *Allocator) rebuild(own, orphans []Block) {
	a.blocks = nil
	for _, b := range own {
		a.blocks = append(a.blocks, newBlock(b, false))
	}
	for _, b := range orphans {
		a.blocks = append(a.blocks, newBlock(b, true))
	}
	for ip := range a.owners {
		if b := a.blockOf(ip); b != nil {
			b.inUse++
			b.used[ip] = true
		}
	}
	for ip, at := range a.released {
		if b := a.blockOf(ip); b != nil && b.gives(ip) {
			b.free.pushBack(freed{ip: ip, at: at})
			b.used[ip] = true
		}
	}
	for _, b := range a.blocks {
		b.free.sort()
		b.skipUsed()
	}
	a.dropEmptyOrphans()
}

func (a *Allocator) dropEmptyOrphans() {
	a.blocks = slices.DeleteFunc(a.blocks, func(b *block) bool { return b.orphan && b.inUse == 0 })
}

func rank(b Block) int {
	if b.Primary {
		return 0
	}
	return 1
}

func familyOf(ip netip.Addr) int {
	if ip.Is4() {
		return IPv4
	}
	return IPv6
}
