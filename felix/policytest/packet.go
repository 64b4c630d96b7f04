// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"

	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/eval"
)

// End is where a packet comes from or goes to: the number of a pod, or one of the others.
type End int

// Ends that are no pods.
const (
	Outside End = -1
	Node    End = -2
)

// String is "pod 3", "outside" or "the node".
func (e End) String() string {
	switch e {
	case Outside:
		return "outside"
	case Node:
		return "the node"
	}
	return fmt.Sprintf("pod %d", int(e))
}

// Packet is a packet of a test.
type Packet struct {
	eval.Packet
	From, To End
	// MidStream is a TCP segment of which conntrack saw no beginning: an ACK.
	MidStream bool
	// Neighbour is a message of IPv6's neighbour discovery, by which a pod finds its node: it has the
	// hop limit that no router lets through.
	Neighbour bool
	// Via is the address and port of a service that the packet is sent to, which the test has the node
	// translate to Dst and DstPort. The zero one is none.
	Via netip.AddrPort
}

// String is "pod 1 to outside, TCP 10.244.0.2:1024 to 192.0.2.2:80".
func (p Packet) String() string {
	text := fmt.Sprintf("%s to %s, %s %s to %s", p.From, p.To, p.Protocol, p.Src, p.Dst)
	switch {
	case p.Protocol.HasPorts():
		text = fmt.Sprintf("%s to %s, %s %s to %s", p.From, p.To, p.Protocol,
			netip.AddrPortFrom(p.Src, p.SrcPort), netip.AddrPortFrom(p.Dst, p.DstPort))
	case p.Protocol == policy.ICMP || p.Protocol == policy.ICMPv6:
		text += fmt.Sprintf(" type %d code %d", p.ICMPType, p.ICMPCode)
	}
	if p.MidStream {
		text += " (mid-stream)"
	}
	if p.Via.IsValid() {
		text += fmt.Sprintf(" (by the service at %s)", p.Via)
	}
	return text
}

// tuple is what conntrack knows a flow by, the same in both directions.
type tuple struct {
	a, b     netip.AddrPort
	protocol policy.Protocol
	icmp     uint8
}

// tuple of the packet. ICMP messages that conntrack tracks have an id of their own, so they never meet.
func (p Packet) tuple() tuple {
	t := tuple{netip.AddrPortFrom(p.Src, p.SrcPort), netip.AddrPortFrom(p.Dst, p.DstPort), p.Protocol, p.ICMPType}
	if t.b.Compare(t.a) < 0 {
		t.a, t.b = t.b, t.a
	}
	return t
}

// unassigned is a protocol that no kernel knows.
const unassigned policy.Protocol = 99

const (
	magic = 0x48504b54
	// tail is the magic and the packet's id, with which each of our packets ends.
	tail = 8

	tcpSYN, tcpPSH, tcpACK = 0x02, 0x08, 0x10
)

// marshal returns the packet from its IP header on, with right checksums: conntrack looks at them.
func (p Packet) marshal(id uint32) []byte {
	if p.Via.IsValid() {
		p.Dst, p.DstPort = p.Via.Addr(), p.Via.Port()
	}
	end := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, magic), id)
	transport := p.transport(id, end)
	if p.Src.Is4() {
		return p.header4(transport)
	}
	h := make([]byte, 8, 40+len(transport))
	h[0], h[6], h[7] = 0x60, byte(p.Protocol), 64
	if p.Neighbour {
		h[7] = 255
	}
	binary.BigEndian.PutUint16(h[4:], uint16(len(transport)))
	h = append(append(h, p.Src.AsSlice()...), p.Dst.AsSlice()...)
	return append(h, transport...)
}

func (p Packet) header4(transport []byte) []byte {
	h := make([]byte, 12, 20+len(transport))
	h[0], h[8], h[9] = 0x45, 64, byte(p.Protocol)
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(transport)))
	h = append(append(h, p.Src.AsSlice()...), p.Dst.AsSlice()...)
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, transport...)
}

// transport is what follows the IP header.
func (p Packet) transport(id uint32, end []byte) []byte {
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.SrcPort), p.DstPort)
	switch p.Protocol {
	case policy.TCP:
		flags := byte(tcpSYN)
		if p.MidStream {
			flags = tcpACK | tcpPSH*byte(id&1) // every other one as with data
		}
		h := append(ports, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
		return p.sum(append(h, end...), 16)
	case policy.UDP:
		return p.sum(append(append(ports, 0, 8+tail, 0, 0), end...), 6)
	case policy.UDPLite: // a coverage of 0 is all of it
		return p.sum(append(append(ports, 0, 0, 0, 0), end...), 6)
	case policy.ICMP, policy.ICMPv6:
		h := []byte{p.ICMPType, p.ICMPCode, 0, 0, byte(id >> 8), byte(id), byte(id >> 24), byte(id >> 16)}
		return p.sum(append(h, end...), 2)
	case policy.SCTP:
		return sctpInit(ports, end)
	}
	return append([]byte{0, 0, 0, 0}, end...)
}

// sctpInit is an INIT chunk (RFC 9260): the end is its numbers of streams and its first sequence number.
func sctpInit(ports, end []byte) []byte {
	p := append(ports, 0, 0, 0, 0, 0, 0, 0, 0) // verification tag, checksum
	p = append(p, 1, 0, 0, 20)                 // INIT
	p = append(p, 0, 0, 0, 1, 0, 1, 0, 0)      // initiate tag, window
	p = append(p, end...)
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return p
}

// sum puts the checksum over the packet and, but for ICMP, its pseudo header at an offset.
func (p Packet) sum(transport []byte, at int) []byte {
	var pseudo []byte
	if p.Protocol != policy.ICMP {
		pseudo = append(append(pseudo, p.Src.AsSlice()...), p.Dst.AsSlice()...)
		pseudo = append(pseudo, 0, byte(p.Protocol))
		pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(transport)))
	}
	binary.BigEndian.PutUint16(transport[at:], checksum(append(pseudo, transport...)))
	return transport
}

// checksum is RFC 1071's, of an even number of bytes.
func checksum(p []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(p); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// seen is what a receiver can tell of a packet of ours.
type seen struct {
	id       uint32
	src, dst netip.Addr
	protocol policy.Protocol
}

// parse reads a packet from its IP header on. An answer or an error that holds one of ours is not ours:
// its addresses tell.
func parse(b []byte) (seen, bool) {
	var s seen
	switch {
	case len(b) >= 20+tail && b[0]>>4 == 4:
		n := int(binary.BigEndian.Uint16(b[2:]))
		if n < 20+tail || n > len(b) {
			return s, false
		}
		b, s.protocol = b[:n], policy.Protocol(b[9])
		s.src, s.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	case len(b) >= 40+tail && b[0]>>4 == 6:
		n := 40 + int(binary.BigEndian.Uint16(b[4:]))
		if n < 40+tail || n > len(b) {
			return s, false
		}
		b, s.protocol = b[:n], policy.Protocol(b[6])
		s.src, s.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	default:
		return s, false
	}
	return s, s.readTail(b)
}

func (s *seen) readTail(b []byte) bool {
	if len(b) < tail || binary.BigEndian.Uint32(b[len(b)-tail:]) != magic {
		return false
	}
	s.id = binary.BigEndian.Uint32(b[len(b)-4:])
	return true
}
