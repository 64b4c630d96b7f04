// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Registers hold 16 bytes (NFT_REG_1 ...), or 4 of these (NFT_REG32_00 ...): here they are counted by the
// latter. The kernel names one by its larger name where it can, and what it says is compared with what
// we said: so do we.
func register(n uint32) uint32 {
	if n%4 == 0 {
		return unix.NFT_REG_1 + n/4
	}
	return unix.NFT_REG32_00 + n
}

const register1 = unix.NFT_REG_1

// condition loads a field into registers and compares.
func (b *batch) condition(c *Condition) {
	var at uint32 // behind the tag
	for ; int(at)*4 < len(c.Tag); at++ {
		b.expression("immediate", func() {
			b.u32(unix.NFTA_IMMEDIATE_DREG, register(at))
			b.value(unix.NFTA_IMMEDIATE_DATA, c.Tag[at*4:at*4+4])
		})
	}
	b.load(c.Field, at)
	switch c.Op {
	case In, NotIn, VerdictOf:
		b.lookup(c)
	case Within, NotWithin:
		op := uint32(unix.NFT_RANGE_EQ)
		if c.Op == NotWithin {
			op = unix.NFT_RANGE_NEQ
		}
		b.expression("range", func() {
			b.u32(unix.NFTA_RANGE_SREG, register1)
			b.u32(unix.NFTA_RANGE_OP, op)
			b.value(unix.NFTA_RANGE_FROM_DATA, c.Value)
			b.value(unix.NFTA_RANGE_TO_DATA, c.Last)
		})
	case HasAny:
		b.mask(c.Value)
		b.compare(unix.NFT_CMP_NEQ, strings.Repeat("\x00", len(c.Value)))
	case Equal, BeginsWith:
		b.mask(c.Mask)
		b.compare(unix.NFT_CMP_EQ, c.Value)
	case NotEqual, BeginsNot:
		b.mask(c.Mask)
		b.compare(unix.NFT_CMP_NEQ, c.Value)
	}
}

func (b *batch) lookup(c *Condition) {
	b.expression("lookup", func() {
		b.text(unix.NFTA_LOOKUP_SET, c.Set)
		b.u32(unix.NFTA_LOOKUP_SREG, register1)
		switch c.Op {
		case NotIn:
			b.u32(unix.NFTA_LOOKUP_FLAGS, unix.NFT_LOOKUP_F_INV)
		case VerdictOf:
			b.u32(unix.NFTA_LOOKUP_DREG, unix.NFT_REG_VERDICT)
		}
	})
}

func (b *batch) mask(mask string) {
	if mask == "" {
		return
	}
	b.expression("bitwise", func() {
		b.u32(unix.NFTA_BITWISE_SREG, register1)
		b.u32(unix.NFTA_BITWISE_DREG, register1)
		b.u32(unix.NFTA_BITWISE_LEN, uint32(len(mask)))
		b.value(unix.NFTA_BITWISE_MASK, mask)
		b.value(unix.NFTA_BITWISE_XOR, strings.Repeat("\x00", len(mask)))
	})
}

func (b *batch) compare(op uint32, value string) {
	b.expression("cmp", func() {
		b.u32(unix.NFTA_CMP_SREG, register1)
		b.u32(unix.NFTA_CMP_OP, op)
		b.value(unix.NFTA_CMP_DATA, value)
	})
}

// load loads a field into registers from the one with a number.
func (b *batch) load(f Field, at uint32) {
	const pair = 4 // registers that a device's name takes
	switch f {
	case Family:
		b.meta(unix.NFT_META_NFPROTO, at)
	case InDevice:
		b.meta(unix.NFT_META_IIFNAME, at)
	case OutDevice:
		b.meta(unix.NFT_META_OIFNAME, at)
	case InOutDevice:
		b.meta(unix.NFT_META_IIFNAME, at)
		b.meta(unix.NFT_META_OIFNAME, at+pair)
	case InInDevice:
		b.meta(unix.NFT_META_IIFNAME, at)
		b.meta(unix.NFT_META_IIFNAME, at+pair)
	case OutOutDevice:
		b.meta(unix.NFT_META_OIFNAME, at)
		b.meta(unix.NFT_META_OIFNAME, at+pair)
	case State:
		b.expression("ct", func() {
			b.u32(unix.NFTA_CT_DREG, register(at))
			b.u32(unix.NFTA_CT_KEY, unix.NFT_CT_STATE)
		})
	case Protocol:
		b.meta(unix.NFT_META_L4PROTO, at)
	default:
		b.loadHeader(f, at)
	}
}

// loadHeader loads what is in the packet. A tuple's parts lie one behind the other.
func (b *batch) loadHeader(f Field, at uint32) {
	const network, transport = unix.NFT_PAYLOAD_NETWORK_HEADER, unix.NFT_PAYLOAD_TRANSPORT_HEADER
	switch f {
	case Source4:
		b.payload(network, 12, 4, at)
	case Destination4:
		b.payload(network, 16, 4, at)
	case Source6:
		b.payload(network, 8, 16, at)
	case Destination6:
		b.payload(network, 24, 16, at)
	case SourcePort:
		b.payload(transport, 0, 2, at)
	case DestinationPort:
		b.payload(transport, 2, 2, at)
	case ICMPType:
		b.payload(transport, 0, 1, at)
	case ICMPCode:
		b.payload(transport, 1, 1, at)
	case TCPFlags:
		b.payload(transport, 13, 1, at)
	case SourceService4:
		b.service(Source4, SourcePort, 1, at)
	case DestinationService4:
		b.service(Destination4, DestinationPort, 1, at)
	case SourceService6:
		b.service(Source6, SourcePort, 4, at)
	case DestinationService6:
		b.service(Destination6, DestinationPort, 4, at)
	}
}

// service loads an address, which takes so many registers, the protocol and a port.
func (b *batch) service(address, port Field, size, at uint32) {
	b.load(address, at)
	b.load(Protocol, at+size)
	b.load(port, at+size+1)
}

func (b *batch) meta(key, at uint32) {
	b.expression("meta", func() {
		b.u32(unix.NFTA_META_DREG, register(at))
		b.u32(unix.NFTA_META_KEY, key)
	})
}

func (b *batch) payload(base, offset, length, at uint32) {
	b.expression("payload", func() {
		b.u32(unix.NFTA_PAYLOAD_DREG, register(at))
		b.u32(unix.NFTA_PAYLOAD_BASE, base)
		b.u32(unix.NFTA_PAYLOAD_OFFSET, offset)
		b.u32(unix.NFTA_PAYLOAD_LEN, length)
	})
}
