// SPDX-License-Identifier: Apache-2.0

package dnsgate

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func ip4(protocol byte, segment []byte) []byte {
	h := make([]byte, header4)
	h[0], h[9] = 0x45, protocol
	binary.BigEndian.PutUint16(h[2:], uint16(header4+len(segment))) //nolint:gosec // short
	return append(h, segment...)
}

func ip6(protocol byte, segment []byte) []byte {
	h := make([]byte, header6)
	h[0], h[6] = 0x60, protocol
	binary.BigEndian.PutUint16(h[4:], uint16(len(segment))) //nolint:gosec // short
	return append(h, segment...)
}

func udpSegment(m string) []byte { return append(make([]byte, headerUDP), m...) }

// tcpSegment says that the message is length bytes long.
func tcpSegment(length int, m string) []byte {
	h := make([]byte, headerTCP)
	h[12] = headerTCP / 4 << 4
	return append(binary.BigEndian.AppendUint16(h, uint16(length)), m...) //nolint:gosec // short
}

func TestMessage(t *testing.T) {
	fragment := ip4(protocolUDP, udpSegment("answer"))
	fragment[6] = 0x20
	for _, tt := range []struct {
		name   string
		packet []byte
		want   string
	}{
		{"UDP", ip4(protocolUDP, udpSegment("answer")), "answer"},
		{"UDP over IPv6", ip6(protocolUDP, udpSegment("answer")), "answer"},
		{"with padding of the link", append(ip4(protocolUDP, udpSegment("answer")), 0, 0), "answer"},
		{"TCP", ip4(protocolTCP, tcpSegment(6, "answer")), "answer"},
		{"TCP over IPv6", ip6(protocolTCP, tcpSegment(6, "answer")), "answer"},
		{"the first segment of two", ip4(protocolTCP, tcpSegment(7, "answer")), ""},
		{"two messages", ip4(protocolTCP, tcpSegment(5, "answer")), ""},
		{"without data", ip4(protocolTCP, tcpSegment(0, "")[:headerTCP]), ""},
		{"a fragment", fragment, ""},
		{"another protocol", ip4(1, udpSegment("answer")), ""},
		{"cut off", ip4(protocolUDP, udpSegment("answer"))[:30], ""},
		{"nothing", nil, ""},
	} {
		if got := message(tt.packet); string(got) != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func FuzzMessage(f *testing.F) {
	f.Add(ip4(protocolUDP, udpSegment("answer")))
	f.Add(ip6(protocolTCP, tcpSegment(6, "answer")))
	f.Fuzz(func(t *testing.T, packet []byte) {
		if m := message(packet); m != nil && !bytes.Contains(packet, m) {
			t.Errorf("%q is no part of the packet", m)
		}
	})
}
