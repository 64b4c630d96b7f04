// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"net/netip"
)

// Batch is a list of requests under construction. Begin starts a message, Raw and the attribute
// methods extend it. The zero Batch is empty; Reset keeps its memory for the next use.
type Batch struct {
	buf   []byte
	start []int // offset of each message
}

// Begin starts the next message. NLM_F_REQUEST and NLM_F_ACK are set where they are needed.
func (b *Batch) Begin(typ, flags uint16) {
	b.start = append(b.start, len(b.buf))
	b.buf = append(b.buf, make([]byte, headerLen)...)
	h := b.buf[len(b.buf)-headerLen:]
	binary.NativeEndian.PutUint16(h[4:], typ)
	binary.NativeEndian.PutUint16(h[6:], flags|nlmRequest)
	b.grown()
}

// Raw appends the fixed header of the message's family (rtmsg, nhmsg, ifinfomsg ...), whose size is a
// multiple of four.
func (b *Batch) Raw(p ...byte) {
	b.buf = append(b.buf, p...)
	b.grown()
}

// Attr appends an attribute.
func (b *Batch) Attr(typ uint16, v []byte) {
	b.attr(typ, len(v))
	b.buf = append(b.buf, v...)
	for len(b.buf)%4 != 0 {
		b.buf = append(b.buf, 0)
	}
	b.grown()
}

// AttrUint32 appends an attribute of four bytes in the machine's order.
func (b *Batch) AttrUint32(typ uint16, v uint32) {
	b.attr(typ, 4)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, v)
	b.grown()
}

// AttrUint8 appends an attribute of one byte.
func (b *Batch) AttrUint8(typ uint16, v uint8) { b.Attr(typ, []byte{v}) }

// Nest appends an attribute that holds those that fill appends, less than 64 KiB of them.
func (b *Batch) Nest(typ uint16, fill func()) {
	at := len(b.buf)
	b.attr(typ|nested, 0)
	fill()
	binary.NativeEndian.PutUint16(b.buf[at:], uint16(len(b.buf)-at))
	b.grown()
}

// AttrAddr appends an attribute that is an address.
func (b *Batch) AttrAddr(typ uint16, a netip.Addr) {
	if a.Is4() {
		v := a.As4()
		b.Attr(typ, v[:])
		return
	}
	v := a.As16()
	b.Attr(typ, v[:])
}

// Len is the number of messages.
func (b *Batch) Len() int { return len(b.start) }

// Size is the number of bytes.
func (b *Batch) Size() int { return len(b.buf) }

// Reset makes the batch empty.
func (b *Batch) Reset() { b.buf, b.start = b.buf[:0], b.start[:0] }

func (b *Batch) attr(typ uint16, n int) {
	b.buf = binary.NativeEndian.AppendUint16(b.buf, uint16(attrLen+n))
	b.buf = binary.NativeEndian.AppendUint16(b.buf, typ)
}

// grown sets the length of the last message.
func (b *Batch) grown() {
	at := b.start[len(b.start)-1]
	binary.NativeEndian.PutUint32(b.buf[at:], uint32(len(b.buf)-at))
}

// seal numbers the messages from..to-1, the first with seq, asks for an acknowledgement of the last
// one, and returns their bytes.
func (b *Batch) seal(from, to int, seq uint32) []byte {
	for i := from; i < to; i++ {
		binary.NativeEndian.PutUint32(b.buf[b.start[i]+8:], seq+uint32(i-from))
	}
	last := b.buf[b.start[to-1]:]
	binary.NativeEndian.PutUint16(last[6:], binary.NativeEndian.Uint16(last[6:])|nlmAck)
	end := len(b.buf)
	if to < len(b.start) {
		end = b.start[to]
	}
	return b.buf[b.start[from]:end]
}

// fits returns how many messages from the given one on go into one datagram.
func (b *Batch) fits(from int) int {
	to := from + 1
	for to < len(b.start) && to-from < maxMessages {
		end := len(b.buf)
		if to+1 < len(b.start) {
			end = b.start[to+1]
		}
		if end-b.start[from] > maxBytes {
			break
		}
		to++
	}
	return to
}

const (
	nlmRequest = 0x1    // NLM_F_REQUEST
	nlmAck     = 0x4    // NLM_F_ACK
	nested     = 0x8000 // NLA_F_NESTED

	// maxMessages go into one datagram. Each of them may be answered by an error of its own, about
	// 1 KiB in the kernel's accounting, and all must fit into the receive buffer that an
	// unprivileged namespace grants (416 KiB): what does not fit is lost. Nothing is to be gained
	// beyond 64.
	maxMessages = 256
	maxBytes    = 64 << 10
)
