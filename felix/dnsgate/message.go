// SPDX-License-Identifier: Apache-2.0

package dnsgate

import "encoding/binary"

const (
	header4, header6, headerUDP, headerTCP = 20, 40, 8, 20

	protocolTCP, protocolUDP = 6, 17
)

// message returns the DNS message that an IP packet carries; nil if it carries none that is whole. Anybody
// may have made the packet. Of TCP (RFC 7766 §8) a message is read that a segment holds all of.
func message(packet []byte) []byte {
	protocol, segment := transport(packet)
	switch {
	case protocol == protocolUDP && len(segment) >= headerUDP:
		return segment[headerUDP:]
	case protocol == protocolTCP && len(segment) >= headerTCP:
		offset := int(segment[12]>>4) * 4
		if offset < headerTCP || offset+2 > len(segment) {
			return nil
		}
		if m := segment[offset+2:]; int(binary.BigEndian.Uint16(segment[offset:])) == len(m) {
			return m
		}
	}
	return nil
}

// transport returns what IP carries. A packet with extension headers is none that a resolver sends.
func transport(p []byte) (protocol byte, segment []byte) {
	switch {
	case len(p) >= header4 && p[0]>>4 == 4:
		length, total := int(p[0]&0xf)*4, int(binary.BigEndian.Uint16(p[2:]))
		const fragmented = 0x3fff
		if length < header4 || total < length || total > len(p) || binary.BigEndian.Uint16(p[6:])&fragmented != 0 {
			return 0, nil
		}
		return p[9], p[length:total]
	case len(p) >= header6 && p[0]>>4 == 6:
		total := header6 + int(binary.BigEndian.Uint16(p[4:]))
		if total > len(p) {
			return 0, nil
		}
		return p[6], p[header6:total]
	}
	return 0, nil
}
