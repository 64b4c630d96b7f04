// SPDX-License-Identifier: Apache-2.0

package probe

import "encoding/binary"

// The types of ICMP (RFC 792) and ICMPv6 (RFC 4443) echo.
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
	echoHeader               = 8
)

// appendEcho appends an echo request. The kernel fills in ICMPv6's checksum, but not ICMP's.
func appendEcho(b []byte, v4 bool, id, sequence uint16, data []byte) []byte {
	start := len(b)
	kind := byte(echoRequest6)
	if v4 {
		kind = echoRequest4
	}
	b = append(b, kind, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, id)
	b = binary.BigEndian.AppendUint16(b, sequence)
	b = append(b, data...)
	if v4 {
		binary.BigEndian.PutUint16(b[start+2:], checksum(b[start:]))
	}
	return b
}

// echoData returns what an echo reply to the id carries, or nil if it is none. ICMP comes with its IP header.
func echoData(b []byte, v4 bool, id uint16) []byte {
	kind := byte(echoReply6)
	if v4 {
		kind = echoReply4
		if len(b) < 20 || len(b) < int(b[0]&0xf)*4 {
			return nil
		}
		b = b[int(b[0]&0xf)*4:]
	}
	if len(b) < echoHeader || b[0] != kind || b[1] != 0 || binary.BigEndian.Uint16(b[4:]) != id {
		return nil
	}
	return b[echoHeader:]
}

// checksum is the internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
