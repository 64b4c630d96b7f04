// SPDX-License-Identifier: Apache-2.0

// Package hostile makes bad BGP for tests and measurements: it changes messages that routers really sent
// (recorded.go) in ways that parsers stumble over. What it makes depends on its seed alone.
package hostile

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
)

const (
	headerLen = 19
	maxLen    = 4096
)

// Message types of RFC 4271 §4.1 and RFC 2918.
const (
	Open         = 1
	Update       = 2
	Notification = 3
	Keepalive    = 4
	Refresh      = 5
)

// Message encodes a message of a type.
func Message(typ byte, body ...byte) []byte {
	m := make([]byte, headerLen, headerLen+len(body))
	for i := range 16 {
		m[i] = 0xff
	}
	m[18] = typ
	return fixed(append(m, body...))
}

// fixed gives a message the length that it has.
func fixed(m []byte) []byte {
	binary.BigEndian.PutUint16(m[16:], uint16(len(m)))
	return m
}

// Recorded decodes the recorded messages.
func Recorded() ([][]byte, error) {
	var out [][]byte
	for i, s := range recorded() {
		m, err := hex.DecodeString(s)
		if err != nil || len(m) < headerLen {
			return nil, fmt.Errorf("recorded message %d: %d octets: %w", i, len(m), err)
		}
		out = append(out, m)
	}
	return out, nil
}

// Mutator makes bad messages of good ones.
type Mutator struct {
	rng    *rand.Rand
	corpus [][]byte // all but OPENs
	opens  [][]byte
}

// New makes a mutator of the recorded messages, those of the regression cases, and more of the caller's.
func New(seed uint64, more ...[]byte) (*Mutator, error) {
	all, err := Recorded()
	if err != nil {
		return nil, err
	}
	m := &Mutator{rng: rand.New(rand.NewPCG(seed, seed))}
	for _, c := range Cases() {
		all = append(all, c.Message)
	}
	for _, x := range append(all, more...) {
		if x[18] == Open {
			m.opens = append(m.opens, x)
		} else {
			m.corpus = append(m.corpus, x)
		}
	}
	return m, nil
}

// Next returns a message that is wrong in some way, mostly. Its header is mostly right: behind a wrong one
// nothing is read.
func (m *Mutator) Next() []byte { return m.mutate(m.pick(m.corpus)) }

// NextOpen does so with an OPEN.
func (m *Mutator) NextOpen() []byte { return m.mutate(m.pick(m.opens)) }

// Chance is true one time in n.
func (m *Mutator) Chance(n int) bool { return m.rng.IntN(n) == 0 }

func (m *Mutator) pick(list [][]byte) []byte { return list[m.rng.IntN(len(list))] }

func (m *Mutator) mutate(in []byte) []byte {
	b := slices.Clone(in)
	for range 1 + m.rng.IntN(3) {
		b = m.damage(b)
	}
	if len(b) < headerLen {
		return append(b, make([]byte, headerLen-len(b))...)
	}
	b = b[:min(len(b), maxLen)]
	if m.rng.IntN(16) != 0 {
		copy(b, Message(in[18])[:headerLen])
		b = fixed(b)
	}
	return b
}

// damage changes one thing.
func (m *Mutator) damage(b []byte) []byte {
	if len(b) <= headerLen {
		return append(b, m.noise(1+m.rng.IntN(8))...)
	}
	at := headerLen + m.rng.IntN(len(b)-headerLen)
	if m.rng.IntN(16) == 0 {
		at = m.rng.IntN(len(b))
	}
	end := min(len(b), at+1+m.rng.IntN(12))
	switch m.rng.IntN(9) {
	case 0:
		b[at] ^= 1 << m.rng.IntN(8)
	case 1:
		b[at] = []byte{0, 1, 0x7f, 0x80, 0xfe, 0xff}[m.rng.IntN(6)]
	case 2:
		b[at] += byte(1 - 2*m.rng.IntN(2))
	case 3:
		b = slices.Delete(b, at, end)
	case 4:
		b = slices.Insert(b, at, slices.Clone(b[at:end])...)
	case 5:
		b = slices.Insert(b, at, m.noise(end-at)...)
	case 6:
		copy(b[at:], m.noise(end-at))
	case 7:
		b = b[:at]
	case 8:
		b = append(b[:at:at], m.tail()...)
	}
	return b
}

// tail is the end of another message, from somewhere on.
func (m *Mutator) tail() []byte {
	other := m.pick(m.corpus)
	return other[headerLen+m.rng.IntN(len(other)-headerLen+1):]
}

func (m *Mutator) noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(m.rng.Uint32())
	}
	return b
}
