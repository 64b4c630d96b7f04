// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"iter"
	"net/netip"
)

const (
	headerLen = 16 // struct nlmsghdr
	attrLen   = 4  // struct nlattr
	// typeMask takes NLA_F_NESTED and NLA_F_NET_BYTEORDER off an attribute's type.
	typeMask = 0x3fff
)

// Message is one netlink message that was received. Body is a view into the receive buffer.
type Message struct {
	Type   uint16
	Flags  uint16
	Seq    uint32
	PortID uint32 // of the socket whose request caused it; 0 if it was the kernel itself
	Body   []byte
}

// Messages walks over the messages of datagrams laid end to end. It ends at the first message whose
// length cannot be right.
func Messages(b []byte) iter.Seq[Message] {
	return func(yield func(Message) bool) {
		for len(b) >= headerLen {
			l := int(binary.NativeEndian.Uint32(b))
			if l < headerLen || l > len(b) {
				return
			}
			if !yield(Message{
				Type:   binary.NativeEndian.Uint16(b[4:]),
				Flags:  binary.NativeEndian.Uint16(b[6:]),
				Seq:    binary.NativeEndian.Uint32(b[8:]),
				PortID: binary.NativeEndian.Uint32(b[12:]),
				Body:   b[headerLen:l:l],
			}) {
				return
			}
			b = b[min(align(l), len(b)):]
		}
	}
}

// Attributes walks over type and value of the attributes in b. It ends at the first one whose length
// cannot be right.
func Attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= attrLen {
			l := int(binary.NativeEndian.Uint16(b))
			if l < attrLen || l > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&typeMask, b[attrLen:l:l]) {
				return
			}
			b = b[min(align(l), len(b)):]
		}
	}
}

// Uint32 reads an attribute of four bytes; 0 for any other length.
func Uint32(v []byte) uint32 {
	if len(v) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(v)
}

// Addr reads an attribute that is an address; the zero Addr for a length that no family has.
func Addr(v []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(v)
	return a
}

// String reads an attribute that is a string, with or without its terminating NUL.
func String(v []byte) string {
	for i, c := range v {
		if c == 0 {
			return string(v[:i])
		}
	}
	return string(v)
}

func align(n int) int { return (n + 3) &^ 3 }
