// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// maxSize bounds what is counted of a huge block; nobody runs more pods on a node.
const maxSize = 1 << 30

// block is a Block and where its addresses are in their life.
type block struct {
	Block
	orphan bool
	inUse  int
	next   int64 // the lowest offset that was never used
	size   int64
	free   queue               // released ones, longest ago first
	used   map[netip.Addr]bool // found in use or released when the block was made: next passes over them
}

func newBlock(b Block, orphan bool) *block {
	return &block{Block: b, orphan: orphan, next: firstOffset(b.Primary), size: int64(size(b.CIDR)), used: map[netip.Addr]bool{}}
}

// ready says whether take would have an address to give.
func (b *block) ready(now time.Time, cooldown time.Duration) bool {
	return b.next < b.size || b.free.len() > 0 && !b.free.front().cooling(now, cooldown)
}

// take gives the next address. The block must be ready.
func (b *block) take() netip.Addr {
	b.inUse++
	if b.next >= b.size {
		return b.free.popFront().ip
	}
	ip := offset(b.CIDR, b.next)
	b.next++
	b.skipUsed()
	return ip
}

// skipUsed moves next to an address that was never used. Over a block's life it takes one step per
// address.
func (b *block) skipUsed() {
	for b.next < b.size && b.used[offset(b.CIDR, b.next)] {
		b.next++
	}
}

// gives says whether an address of the block is one that pods can have.
func (b *block) gives(ip netip.Addr) bool {
	first := b.CIDR.Addr()
	return ip != first && (!b.Primary || ip != first.Next())
}

func (b *block) usage(now time.Time, cooldown time.Duration) BlockUsage {
	return BlockUsage{
		Name: b.Name, CIDR: b.CIDR, Pool: b.Pool, Orphan: b.orphan,
		InUse: b.inUse, CoolingDown: b.free.cooling(now, cooldown), Capacity: Capacity(b.CIDR, b.Primary),
	}
}

func firstOffset(primary bool) int64 {
	if primary {
		return 2
	}
	return 1
}

// size is how many addresses a prefix has, as far as anybody counts.
func size(p netip.Prefix) int {
	host := p.Addr().BitLen() - p.Bits()
	if host >= 30 {
		return maxSize
	}
	return 1 << host
}

// offset is the nth address of a prefix.
func offset(p netip.Prefix, n int64) netip.Addr {
	if p.Addr().Is4() {
		b := p.Addr().As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
		return netip.AddrFrom4(b)
	}
	b := p.Addr().As16()
	// No carry: what is counted of a block is below 2^31 and the prefix is masked.
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+uint64(n))
	return netip.AddrFrom16(b)
}

// freed is a released address.
type freed struct {
	ip netip.Addr
	at time.Time
}

func (f freed) cooling(now time.Time, cooldown time.Duration) bool {
	return now.Sub(f.at) < cooldown
}

// queue holds released addresses in the order of their release.
type queue struct {
	head  int
	items []freed
}

func (q *queue) len() int     { return len(q.items) - q.head }
func (q *queue) front() freed { return q.items[q.head] }

func (q *queue) pushBack(f freed) { q.items = append(q.items, f) }

func (q *queue) pushFront(f freed) {
	if q.head > 0 {
		q.head--
		q.items[q.head] = f
		return
	}
	q.items = slices.Insert(q.items, 0, f)
}

func (q *queue) popFront() freed {
	f := q.items[q.head]
	q.head++
	if q.head > len(q.items)/2 {
		q.items = append([]freed(nil), q.items[q.head:]...)
		q.head = 0
	}
	return f
}

func (q *queue) sort() {
	slices.SortFunc(q.items[q.head:], func(x, y freed) int {
		if c := x.at.Compare(y.at); c != 0 {
			return c
		}
		return x.ip.Compare(y.ip)
	})
}

// clamp moves releases of the future to now.
func (q *queue) clamp(now time.Time) {
	for i := q.head; i < len(q.items); i++ {
		if q.items[i].at.After(now) {
			q.items[i].at = now
		}
	}
}

// cooling counts from the end, so it looks at nothing that rests no more.
func (q *queue) cooling(now time.Time, cooldown time.Duration) int {
	n := 0
	for i := len(q.items) - 1; i >= q.head && q.items[i].cooling(now, cooldown); i-- {
		n++
	}
	return n
}
