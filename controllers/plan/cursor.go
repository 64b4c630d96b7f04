// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"net/netip"
	"strconv"
	"strings"
)

// BlockName is the name of the IPBlock of a range, such as 10-244-0-64-26 or fd00-244---122. Every
// range has one and only one, so the API server refuses to give it out twice.
func BlockName(cidr netip.Prefix) string {
	addr := strings.NewReplacer(".", "-", ":", "-").Replace(cidr.Addr().String())
	if strings.HasPrefix(addr, "-") { // "::": a name begins with a letter or digit
		addr = "0" + addr
	}
	return addr + "-" + strconv.Itoa(cidr.Bits())
}

// cursor walks once through a pool from its first block to its last and stops at free ones. It
// steps from taken range to taken range, so its cost is the number of blocks that are held, and
// not the number that the pool has.
type cursor struct {
	pool  netip.Prefix
	next  netip.Prefix // the next candidate; invalid: the pool is at its end
	taken []*block     // those within the pool, by address; the walk has passed what is not there
}

func newCursor(pl *pool, taken []*block) *cursor {
	c := &cursor{pool: pl.cidr, next: netip.PrefixFrom(pl.cidr.Addr(), pl.bits)}
	for _, b := range taken {
		if b.cidr.Overlaps(pl.cidr) {
			c.taken = append(c.taken, b)
		}
	}
	return c
}

// free returns the next free block. Each is returned once.
func (c *cursor) free() (netip.Prefix, bool) {
	for c.next.IsValid() {
		for len(c.taken) > 0 && lastAddr(c.taken[0].cidr).Less(c.next.Addr()) {
			c.taken = c.taken[1:]
		}
		if len(c.taken) == 0 || !c.taken[0].cidr.Overlaps(c.next) {
			found := c.next
			c.skip(found)
			return found, true
		}
		if t := c.taken[0].cidr; t.Bits() < c.next.Bits() {
			c.skip(t) // of an older pool with larger blocks: step over all of it
		} else {
			c.skip(c.next)
		}
	}
	return netip.Prefix{}, false
}

// skip moves to the first block behind the range.
func (c *cursor) skip(p netip.Prefix) {
	addr := lastAddr(p).Next()
	if addr.IsValid() && c.pool.Contains(addr) {
		c.next = netip.PrefixFrom(addr, c.next.Bits())
	} else {
		c.next = netip.Prefix{}
	}
}

// lastAddr is the last address of a masked prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		setHostBits(a[:], p.Bits())
		return netip.AddrFrom4(a)
	}
	a := p.Addr().As16()
	setHostBits(a[:], p.Bits())
	return netip.AddrFrom16(a)
}

func setHostBits(a []byte, bits int) {
	for i := bits / 8; i < len(a); i++ {
		mask := byte(0xff)
		if i == bits/8 {
			mask >>= bits % 8
		}
		a[i] |= mask
	}
}
