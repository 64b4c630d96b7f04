// SPDX-License-Identifier: Apache-2.0

// Package nflog hears of packets that rules in the kernel log (NFLOG). It reads, and owns nothing: which
// packets are logged, and how many of them, is what the rules say.
package nflog

import (
	"encoding/binary"
	"net/netip"
)

// Packet is a logged packet, as far as its headers could be read.
type Packet struct {
	Prefix           string // what the rule says
	In, Out          int    // indices of devices; 0: none
	Src, Dst         netip.Addr
	Protocol         uint8
	SrcPort, DstPort uint16 // of TCP, UDP, SCTP and UDPLite
	Type, Code       uint8  // of ICMP and ICMPv6
}

const (
	header4, header6 = 20, 40
	// maxExtensions of IPv6 that are walked.
	maxExtensions = 8
)

// IP protocol numbers (IANA).
const (
	hopByHop, routing, fragment, destination = 0, 43, 44, 60
	icmp, icmp6                              = 1, 58
	tcp, udp, sctp, udpLite                  = 6, 17, 132, 136
)

// parse reads the headers of a packet, which anybody may have made.
func (p *Packet) parse(b []byte) {
	if len(b) == 0 {
		return
	}
	switch b[0] >> 4 {
	case 4:
		p.parse4(b)
	case 6:
		p.parse6(b)
	}
}

func (p *Packet) parse4(b []byte) {
	if len(b) < header4 {
		return
	}
	p.Src, p.Dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	p.Protocol = b[9]
	length := int(b[0]&0xf) * 4
	if offset := binary.BigEndian.Uint16(b[6:]) & 0x1fff; offset == 0 && length >= header4 && length <= len(b) {
		p.parseTransport(b[length:])
	}
}

func (p *Packet) parse6(b []byte) {
	if len(b) < header6 {
		return
	}
	p.Src, p.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	next, rest := b[6], b[header6:]
	for range maxExtensions {
		length := 0
		switch next {
		case hopByHop, routing, destination:
			if len(rest) < 2 {
				return
			}
			length = 8 * (int(rest[1]) + 1)
		case fragment:
			length = 8
			if len(rest) < length || binary.BigEndian.Uint16(rest[2:])&0xfff8 != 0 {
				p.Protocol = next
				return
			}
		default:
			p.Protocol = next
			p.parseTransport(rest)
			return
		}
		if length > len(rest) {
			return
		}
		next, rest = rest[0], rest[length:]
	}
}

func (p *Packet) parseTransport(b []byte) {
	if len(b) < 4 {
		return
	}
	switch p.Protocol {
	case tcp, udp, sctp, udpLite:
		p.SrcPort, p.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	case icmp, icmp6:
		p.Type, p.Code = b[0], b[1]
	}
}
