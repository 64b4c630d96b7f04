// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/heliograph-dev/heliograph/bgp"
)

// family indexes what there is once for each address family.
type family uint8

const (
	ipv4 family = iota
	ipv6
	families // how many there are
)

const (
	afiIPv4     = 1
	afiIPv6     = 2
	safiUnicast = 1
)

func (f family) afi() byte {
	if f == ipv6 {
		return afiIPv6
	}
	return afiIPv4
}

func (f family) bits() uint8 {
	if f == ipv6 {
		return 128
	}
	return 32
}

func (f family) public() bgp.Family {
	if f == ipv6 {
		return bgp.IPv6
	}
	return bgp.IPv4
}

// familyOf finds the family of AFI and SAFI.
func familyOf(afi uint16, safi uint8) (family, bool) {
	switch {
	case safi != safiUnicast:
		return 0, false
	case afi == afiIPv4:
		return ipv4, true
	case afi == afiIPv6:
		return ipv6, true
	}
	return 0, false
}

// familySet is a set of families.
type familySet uint8

func (s familySet) has(f family) bool { return s&(1<<f) != 0 }

func (s *familySet) add(f family) { *s |= 1 << f }

// String is for logs.
func (s familySet) String() string {
	var out []string
	for _, f := range s.public() {
		out = append(out, f.String())
	}
	return strings.Join(out, "+")
}

func (s familySet) public() []bgp.Family {
	var out []bgp.Family
	for f := range families {
		if s.has(f) {
			out = append(out, f.public())
		}
	}
	return out
}

func familiesOf(list []bgp.Family) familySet {
	var s familySet
	for _, f := range list {
		if f == bgp.IPv6 {
			s.add(ipv6)
		} else {
			s.add(ipv4)
		}
	}
	return s
}

// prefix is an NLRI of one family: the address's bits from the top of hi, cleared beyond its length.
// A netip.Prefix would hold a pointer, which makes a map of many slower and the collector's work longer.
type prefix struct {
	hi, lo uint64
	bits   uint8
}

func fromNetip(p netip.Prefix) (family, prefix) {
	p = p.Masked()
	if p.Addr().Is4() {
		b := p.Addr().As4()
		return ipv4, prefix{hi: uint64(binary.BigEndian.Uint32(b[:])) << 32, bits: uint8(p.Bits())}
	}
	b := p.Addr().As16()
	return ipv6, prefix{hi: binary.BigEndian.Uint64(b[:]), lo: binary.BigEndian.Uint64(b[8:]), bits: uint8(p.Bits())}
}

func (p prefix) netip(f family) netip.Prefix {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], p.hi)
	binary.BigEndian.PutUint64(b[8:], p.lo)
	if f == ipv4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(b[:4])), int(p.bits))
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), int(p.bits))
}

func (p prefix) masked() prefix {
	switch {
	case p.bits < 64:
		p.hi &= ^uint64(0) << (64 - p.bits)
		p.lo = 0
	case p.bits < 128:
		p.lo &= ^uint64(0) << (128 - p.bits)
	}
	return p
}

func (p prefix) contains(q prefix) bool {
	q.bits = p.bits
	return q.masked() == p
}

// wireLen is the length of the NLRI.
func (p prefix) wireLen() int { return 1 + (int(p.bits)+7)/8 }

// appendTo appends the NLRI.
func (p prefix) appendTo(b []byte) []byte {
	b = append(b, p.bits)
	v := p.hi
	for i := range (int(p.bits) + 7) / 8 {
		if i == 8 {
			v = p.lo
		}
		b = append(b, byte(v>>56))
		v <<= 8
	}
	return b
}

// parsePrefixes appends the prefixes of an NLRI field; false says that the field is malformed.
// Bits beyond a prefix's length are irrelevant (RFC 4271 §4.3).
func parsePrefixes(out []prefix, f family, b []byte) ([]prefix, bool) {
	limit := f.bits()
	for len(b) > 0 {
		bits := b[0]
		n := (int(bits) + 7) / 8
		if bits > limit || len(b) < 1+n {
			return out, false
		}
		var a [16]byte
		copy(a[:], b[1:1+n])
		p := prefix{hi: binary.BigEndian.Uint64(a[:]), lo: binary.BigEndian.Uint64(a[8:]), bits: bits}
		out = append(out, p.masked())
		b = b[1+n:]
	}
	return out, true
}
