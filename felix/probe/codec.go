// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"net/netip"

	"github.com/heliograph-dev/heliograph/felix/path"
)

// A packet, in bytes:
//
//	 0       3         4      5        6              7    8       16    32
//	┌───────┬─────────┬──────┬────────┬──────────────┬────┬───────┬─────┬──────────────────┐
//	│ "hel" │ version │ kind │ method │ capabilities │ 0  │ nonce │ MAC │ padding          │
//	└───────┴─────────┴──────┴────────┴──────────────┴────┴───────┴─────┴──────────────────┘
//
// The MAC is HMAC-SHA256, cut to 16 bytes, over family, source, destination, the first 16 bytes and the
// padding. Only questions that measure the path MTU are padded.
const (
	magic      = "hel"
	version    = 1
	headerSize = 16
	macSize    = 16
	packetSize = headerSize + macSize
)

type kind uint8

const (
	question kind = 1
	answer   kind = 2
)

// message is what a packet says.
type message struct {
	kind         kind
	method       path.Method
	capabilities path.Capabilities
	nonce        uint64
}

// What is wrong with a packet. The names are values of the metric's label.
var (
	errSize    = errors.New("size")
	errVersion = errors.New("version")
	errFormat  = errors.New("format")
)

// parse reads a packet. Whether it is true is for sealer.verify to say.
func parse(b []byte) (message, error) {
	if len(b) < packetSize {
		return message{}, errSize
	}
	if string(b[:3]) != magic || b[3] != version {
		return message{}, errVersion
	}
	m := message{
		kind: kind(b[4]), method: path.Method(b[5]), capabilities: path.Capabilities(b[6]),
		nonce: binary.BigEndian.Uint64(b[8:headerSize]),
	}
	if m.kind != question && m.kind != answer || m.method >= path.Methods || b[7] != 0 {
		return message{}, errFormat
	}
	if m.kind == answer && len(b) != packetSize {
		return message{}, errSize // nobody gains by making us send or take large answers
	}
	return m, nil
}

// sealer makes and checks MACs with one key. It is not for concurrent use.
type sealer struct {
	mac   hash.Hash
	sum   [sha256.Size]byte
	input [33 + headerSize]byte
}

func newSealer(key []byte) *sealer { return &sealer{mac: hmac.New(sha256.New, key)} }

// append appends the packet with its MAC, padded to size if that is more than a packet has.
func (s *sealer) append(b []byte, m message, size int, src, dst netip.Addr) []byte {
	start := len(b)
	b = append(b, magic...)
	b = append(b, version, byte(m.kind), byte(m.method), byte(m.capabilities), 0)
	b = binary.BigEndian.AppendUint64(b, m.nonce)
	b = append(b, make([]byte, macSize+max(0, size-packetSize))...)
	copy(b[start+headerSize:], s.seal(b[start:], src, dst))
	return b
}

// verify says whether a packet that parse took was made by somebody who has the key, for these addresses.
func (s *sealer) verify(b []byte, src, dst netip.Addr) bool {
	return hmac.Equal(b[headerSize:packetSize], s.seal(b, src, dst))
}

// seal returns the MAC, valid until the next call.
func (s *sealer) seal(b []byte, src, dst netip.Addr) []byte {
	family := byte(6)
	if src.Is4() {
		family = 4
	}
	from, to := src.As16(), dst.As16()
	in := append(s.input[:0], family)
	in = append(append(in, from[:]...), to[:]...)
	in = append(in, b[:headerSize]...)
	s.mac.Reset()
	s.mac.Write(in)
	s.mac.Write(b[packetSize:])
	return s.mac.Sum(s.sum[:0])[:macSize]
}
