// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"encoding/binary"
	"net/netip"
	"strings"
)

// Path attribute types.
const (
	attrOrigin      = 1
	attrASPath      = 2
	attrNextHop     = 3
	attrMED         = 4
	attrLocalPref   = 5
	attrAtomic      = 6
	attrAggregator  = 7
	attrCommunities = 8
	attrOriginator  = 9
	attrClusterList = 10
	attrMPReach     = 14
	attrMPUnreach   = 15
	attrExtended    = 16 // extended communities
	attrAS4Path     = 17
	attrAS4Aggr     = 18
	attrExtendedV6  = 25
	attrLarge       = 32
)

const (
	flagOptional   = 0x80
	flagTransitive = 0x40
	flagPartial    = 0x20
	flagLong       = 0x10
)

// verdict is what an error in an attribute costs (RFC 7606 §2).
type verdict uint8

const (
	fine verdict = iota
	discard
	treatAsWithdraw
)

// knownFlags has the optional and transitive bits of each attribute that we know.
func knownFlags(typ byte) (byte, bool) {
	switch typ {
	case attrOrigin, attrASPath, attrNextHop, attrLocalPref, attrAtomic:
		return flagTransitive, true
	case attrMED, attrOriginator, attrClusterList, attrMPReach, attrMPUnreach:
		return flagOptional, true
	case attrAggregator, attrCommunities, attrExtended, attrAS4Path, attrAS4Aggr, attrExtendedV6, attrLarge:
		return flagOptional | flagTransitive, true
	}
	return 0, false
}

// check tells what is wrong with the value of a known attribute (RFC 7606 §7 and the RFCs of each).
func check(typ byte, v []byte, as4 bool) (verdict, string) {
	multiple := func(n int) (verdict, string) {
		if len(v) == 0 || len(v)%n != 0 {
			return treatAsWithdraw, "length"
		}
		return fine, ""
	}
	exactly := func(n int, otherwise verdict) (verdict, string) {
		if len(v) != n {
			return otherwise, "length"
		}
		return fine, ""
	}
	switch typ {
	case attrOrigin:
		if len(v) == 1 && v[0] > 2 {
			return treatAsWithdraw, "value"
		}
		return exactly(1, treatAsWithdraw)
	case attrASPath:
		if !validASPath(v, as4) {
			return treatAsWithdraw, "segments"
		}
	case attrNextHop, attrMED, attrLocalPref, attrOriginator:
		return exactly(4, treatAsWithdraw)
	case attrAtomic:
		return exactly(0, discard)
	case attrAggregator:
		if as4 {
			return exactly(8, discard)
		}
		return exactly(6, discard)
	case attrCommunities, attrClusterList:
		return multiple(4)
	case attrExtended:
		return multiple(8)
	case attrExtendedV6:
		return multiple(20)
	case attrLarge:
		return multiple(12)
	case attrAS4Path:
		if !validASPath(v, true) { // RFC 6793 §6
			return discard, "segments"
		}
	case attrAS4Aggr:
		return exactly(8, discard)
	}
	return fine, ""
}

const (
	segmentSet      = 1
	segmentSequence = 2
)

func asSize(as4 bool) int {
	if as4 {
		return 4
	}
	return 2
}

// validASPath checks the segments. Those of confederations do not belong here: we are in none.
func validASPath(b []byte, as4 bool) bool {
	for len(b) > 0 {
		if len(b) < 2 || (b[0] != segmentSet && b[0] != segmentSequence) || b[1] == 0 || len(b) < 2+int(b[1])*asSize(as4) {
			return false
		}
		b = b[2+int(b[1])*asSize(as4):]
	}
	return true
}

// eachAS calls f for each AS number of a valid path of four octets each.
func eachAS(b []byte, f func(segment byte, as uint32)) {
	for len(b) > 0 {
		n := int(b[1])
		for i := range n {
			f(b[0], binary.BigEndian.Uint32(b[2+4*i:]))
		}
		b = b[2+4*n:]
	}
}

// widen makes an AS_PATH of two octets one of four, with what AS4_PATH remembers (RFC 6793 §4.2.3).
func widen(path, as4Path []byte) []byte {
	out := make([]byte, 0, 2*len(path)+len(as4Path))
	n := 0
	for b := path; len(b) > 0; b = b[2+2*int(b[1]):] {
		out = append(out, b[0], b[1])
		for i := range int(b[1]) {
			out = append(out, 0, 0, b[2+2*i], b[3+2*i])
		}
		n += segmentLen(b[0], b[1])
	}
	m := pathLen(as4Path)
	if len(as4Path) == 0 || m > n {
		return out
	}
	return append(leading(out, n-m), as4Path...)
}

// leading is the path cut to its first n AS numbers, as the decision process counts them.
func leading(path []byte, n int) []byte {
	var out []byte
	for b := path; len(b) > 0 && n > 0; b = b[2+4*int(b[1]):] {
		k := int(b[1])
		if b[0] == segmentSequence {
			k = min(k, n)
			n -= k
		} else {
			n--
		}
		out = append(out, b[0], byte(k))
		out = append(out, b[2:2+4*k]...)
	}
	return out
}

// segmentLen: a set counts as one (RFC 4271 §9.1.2.2 a).
func segmentLen(typ, n byte) int {
	if typ == segmentSet {
		return 1
	}
	return int(n)
}

func pathLen(b []byte) int {
	n := 0
	for ; len(b) > 0; b = b[2+4*int(b[1]):] {
		n += segmentLen(b[0], b[1])
	}
	return n
}

// narrow makes a path of four octets each one of two, with AS_TRANS for what does not fit, and tells
// whether anything did not.
func narrow(path []byte) (out []byte, lost bool) {
	for b := path; len(b) > 0; b = b[2+4*int(b[1]):] {
		out = append(out, b[0], b[1])
		for i := range int(b[1]) {
			as := binary.BigEndian.Uint32(b[2+4*i:])
			if as > 0xffff {
				as, lost = asTrans, true
			}
			out = binary.BigEndian.AppendUint16(out, uint16(as))
		}
	}
	return out, lost
}

// appendAttr appends an attribute whose value is in pieces.
func appendAttr(b []byte, flags, typ byte, value ...[]byte) []byte {
	n := 0
	for _, v := range value {
		n += len(v)
	}
	flags &^= flagLong
	if n > 255 {
		b = append(b, flags|flagLong, typ, byte(n>>8), byte(n))
	} else {
		b = append(b, flags, typ, byte(n))
	}
	for _, v := range value {
		b = append(b, v...)
	}
	return b
}

// attr is one attribute of a message.
type attr struct {
	flags, typ byte
	value      []byte
}

// nextAttr cuts the first attribute off; false says that it does not fit.
func nextAttr(b []byte) (attr, []byte, bool) {
	if len(b) < 3 {
		return attr{}, nil, false
	}
	a, n := attr{flags: b[0], typ: b[1]}, int(b[2])
	b, head := b, 3
	if a.flags&flagLong != 0 {
		if len(b) < 4 {
			return a, nil, false
		}
		n, head = int(binary.BigEndian.Uint16(b[2:])), 4
	}
	if len(b) < head+n {
		return a, nil, false
	}
	a.value = b[head : head+n]
	return a, b[head+n:], true
}

// attrs are the interned attributes of routes, as they go out. They never change.
type attrs struct {
	key    string // how they are found: family, next hop of IPv6, raw
	raw    string // the attributes, NEXT_HOP among them if the family is IPv4; no MP_REACH_NLRI
	family family
	refs   int // paths that have them; the core's

	// What decides (RFC 4271 §9.1.2.2, RFC 4456 §9).
	localPref   uint32
	med         uint32
	pathLen     int
	origin      uint8
	neighborAS  uint32
	originator  uint32
	clusterLen  int
	nextHop     netip.Addr
	narrowCache []byte
}

// newAttrs reads what a session's parser wrote, so it is valid.
func newAttrs(key string) *attrs {
	n := int(key[1])
	a := &attrs{key: key, raw: key[2+n:], family: family(key[0])}
	if n > 0 {
		a.nextHop, _ = netip.AddrFromSlice([]byte(key[2 : 2+min(n, 16)]))
	}
	a.each(func(x attr) {
		switch x.typ {
		case attrOrigin:
			a.origin = x.value[0]
		case attrASPath:
			a.pathLen = pathLen(x.value)
			if len(x.value) > 0 && x.value[0] == segmentSequence {
				a.neighborAS = binary.BigEndian.Uint32(x.value[2:])
			}
		case attrNextHop:
			a.nextHop, _ = netip.AddrFromSlice(x.value)
		case attrMED:
			a.med = binary.BigEndian.Uint32(x.value)
		case attrLocalPref:
			a.localPref = binary.BigEndian.Uint32(x.value)
		case attrOriginator:
			a.originator = binary.BigEndian.Uint32(x.value)
		case attrClusterList:
			a.clusterLen = len(x.value)/4 - 1 // our own stands in front
		}
	})
	return a
}

// nextHopBytes is MP_REACH_NLRI's next hop; IPv4 has none.
func (a *attrs) nextHopBytes() string { return a.key[2 : 2+int(a.key[1])] }

func (a *attrs) each(f func(attr)) {
	b := []byte(a.raw)
	for len(b) > 0 {
		x, rest, ok := nextAttr(b)
		if !ok {
			return
		}
		f(x)
		b = rest
	}
}

// narrow is raw for a peer with AS numbers of two octets (RFC 6793 §4.2.2). The core's.
func (a *attrs) narrow() []byte {
	if a.narrowCache != nil {
		return a.narrowCache
	}
	var out, as4Path, as4Aggr []byte
	put := func() {
		if as4Path != nil {
			out = appendAttr(out, flagOptional|flagTransitive, attrAS4Path, as4Path)
		}
		if as4Aggr != nil {
			out = appendAttr(out, flagOptional|flagTransitive, attrAS4Aggr, as4Aggr)
		}
		as4Path, as4Aggr = nil, nil
	}
	a.each(func(x attr) {
		if x.typ > attrAS4Path {
			put()
		}
		switch x.typ {
		case attrASPath:
			short, lost := narrow(x.value)
			if lost {
				as4Path = x.value
			}
			out = appendAttr(out, x.flags, x.typ, short)
		case attrAggregator:
			as := binary.BigEndian.Uint32(x.value)
			if as > 0xffff {
				as, as4Aggr = asTrans, x.value
			}
			out = appendAttr(out, x.flags, x.typ, []byte{byte(as >> 8), byte(as)}, x.value[4:])
		default:
			out = appendAttr(out, x.flags, x.typ, x.value)
		}
	})
	put()
	a.narrowCache = out
	return out
}

// asPath prints the AS_PATH.
func (a *attrs) asPath() string {
	var out []string
	a.each(func(x attr) {
		if x.typ != attrASPath {
			return
		}
		for b := x.value; len(b) > 0; b = b[2+4*int(b[1]):] {
			var segment []string
			eachAS(b[:2+4*int(b[1])], func(_ byte, as uint32) { segment = append(segment, utoa(as)) })
			if b[0] == segmentSet {
				out = append(out, "{"+strings.Join(segment, ",")+"}")
			} else {
				out = append(out, segment...)
			}
		}
	})
	return strings.Join(out, " ")
}
