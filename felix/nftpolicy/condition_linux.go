// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Registers hold 16 bytes (NFT_REG_1 ...), or 4 of these (NFT_REG32_00 ...). The kernel names one by its
// larger name where it can, and what it says is compared with what we said: so do we.
const (
	register1  = unix.NFT_REG_1
	register2  = unix.NFT_REG_2
	register32 = unix.NFT_REG32_00
)

// condition loads a field into registers and compares.
func (b *batch) condition(c *Condition) {
	b.load(c.Field)
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

func (b *batch) load(f Field) {
	switch f {
	case Family:
		b.meta(unix.NFT_META_NFPROTO, register1)
	case InDevice:
		b.meta(unix.NFT_META_IIFNAME, register1)
	case OutDevice:
		b.meta(unix.NFT_META_OIFNAME, register1)
	case InOutDevice:
		b.meta(unix.NFT_META_IIFNAME, register1)
		b.meta(unix.NFT_META_OIFNAME, register2)
	case InInDevice:
		b.meta(unix.NFT_META_IIFNAME, register1)
		b.meta(unix.NFT_META_IIFNAME, register2)
	case OutOutDevice:
		b.meta(unix.NFT_META_OIFNAME, register1)
		b.meta(unix.NFT_META_OIFNAME, register2)
	case State:
		b.expression("ct", func() {
			b.u32(unix.NFTA_CT_DREG, register1)
			b.u32(unix.NFTA_CT_KEY, unix.NFT_CT_STATE)
		})
	case Protocol:
		b.meta(unix.NFT_META_L4PROTO, register1)
	default:
		b.loadHeader(f)
	}
}

// loadHeader loads what is in the packet. A tuple's parts lie one behind the other.
func (b *batch) loadHeader(f Field) {
	const network, transport = unix.NFT_PAYLOAD_NETWORK_HEADER, unix.NFT_PAYLOAD_TRANSPORT_HEADER
	switch f {
	case Source4:
		b.payload(network, 12, 4, register1)
	case Destination4:
		b.payload(network, 16, 4, register1)
	case Source6:
		b.payload(network, 8, 16, register1)
	case Destination6:
		b.payload(network, 24, 16, register1)
	case SourcePort:
		b.payload(transport, 0, 2, register1)
	case DestinationPort:
		b.payload(transport, 2, 2, register1)
	case ICMPType:
		b.payload(transport, 0, 1, register1)
	case ICMPCode:
		b.payload(transport, 1, 1, register1)
	case TCPFlags:
		b.payload(transport, 13, 1, register1)
	case SourceService4, DestinationService4:
		b.load(map[Field]Field{SourceService4: Source4, DestinationService4: Destination4}[f])
		b.meta(unix.NFT_META_L4PROTO, register32+1)
		b.payload(transport, uint32(f-SourceService4)*2, 2, register32+2)
	case SourceService6, DestinationService6:
		b.load(map[Field]Field{SourceService6: Source6, DestinationService6: Destination6}[f])
		b.meta(unix.NFT_META_L4PROTO, register2)
		b.payload(transport, uint32(f-SourceService6)*2, 2, register32+5)
	}
}

func (b *batch) meta(key, register uint32) {
	b.expression("meta", func() {
		b.u32(unix.NFTA_META_DREG, register)
		b.u32(unix.NFTA_META_KEY, key)
	})
}

func (b *batch) payload(base, offset, length, register uint32) {
	b.expression("payload", func() {
		b.u32(unix.NFTA_PAYLOAD_DREG, register)
		b.u32(unix.NFTA_PAYLOAD_BASE, base)
		b.u32(unix.NFTA_PAYLOAD_OFFSET, offset)
		b.u32(unix.NFTA_PAYLOAD_LEN, length)
	})
}
