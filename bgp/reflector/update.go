// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
)

func utoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// opKind is what a message wants of the core.
type opKind uint8

const (
	opAnnounce opKind = iota
	opWithdraw
	// opRefuse is a route that must not be used: the prefix is withdrawn, and counted as rejected.
	opRefuse
	opEndOfRIB
	opRefresh
	opRefreshBegin
	opRefreshEnd
)

// op refers to the prefixes and attributes of its batch.
type op struct {
	kind       opKind
	family     family
	from, to   int // prefixes
	attrs, end int // arena
}

// batch is what a session read in one go.
type batch struct {
	session  *session
	ops      []op
	prefixes []prefix
	arena    []byte
	updates  int
	problems int    // UPDATEs that were treated as withdrawals, or lost attributes
	problem  string // the first of them
}

func (b *batch) reset(s *session) {
	*b = batch{session: s, ops: b.ops[:0], prefixes: b.prefixes[:0], arena: b.arena[:0]}
}

func (b *batch) size() int { return len(b.arena) + 24*len(b.prefixes) }

func (b *batch) add(kind opKind, f family) {
	b.ops = append(b.ops, op{kind: kind, family: f})
}

// complain keeps the first problem of a batch: there may be thousands.
func (b *batch) complain(format string, args ...any) {
	if b.problems == 0 {
		b.problem = fmt.Sprintf(format, args...)
	}
	b.problems++
}

// parser turns a session's UPDATEs into ops. It keeps its scratch memory from one to the next.
type parser struct {
	neg     negotiated
	asn     uint32
	self    [4]byte // our router ID
	cluster [4]byte

	attrs []attr
	index [256]uint8 // position+1 in attrs
	// What the attributes add up to.
	verdict verdict
	problem string
	reach   reach
	unreach reach
}

// reach is MP_REACH_NLRI or MP_UNREACH_NLRI.
type reach struct {
	present  bool
	family   family
	nextHop  []byte
	from, to int // prefixes in the batch
}

// update reads the body of an UPDATE. A notification is returned for what ends the session.
func (p *parser) update(b []byte, out *batch) *notification {
	out.updates++
	if len(b) == 4 && b[0]|b[1]|b[2]|b[3] == 0 {
		out.add(opEndOfRIB, ipv4)
		return nil
	}
	wl := int(binary.BigEndian.Uint16(b))
	if len(b) < 4+wl {
		return notify(errUpdate, subMalformed, nil, "withdrawn routes are longer than the message")
	}
	withdrawn := b[2 : 2+wl]
	al := int(binary.BigEndian.Uint16(b[2+wl:]))
	if len(b) < 4+wl+al {
		return notify(errUpdate, subMalformed, nil, "attributes are longer than the message")
	}
	section, nlri := b[4+wl:4+wl+al], b[4+wl+al:]
	if bad := p.scan(section, out); bad != nil {
		return bad
	}
	if bad := p.withdraw(withdrawn, out); bad != nil {
		return bad
	}
	return p.announce(nlri, out)
}

// scan checks the attributes one by one and collects them.
func (p *parser) scan(b []byte, out *batch) *notification {
	for _, a := range p.attrs {
		p.index[a.typ] = 0
	}
	p.attrs, p.verdict, p.problem = p.attrs[:0], fine, ""
	p.reach, p.unreach = reach{}, reach{}
	for len(b) > 0 {
		a, rest, ok := nextAttr(b)
		if !ok {
			p.fault(treatAsWithdraw, "attribute is longer than what is left") // RFC 7606 §4
			return nil
		}
		b = rest
		if p.index[a.typ] != 0 {
			if a.typ == attrMPReach || a.typ == attrMPUnreach {
				return notify(errUpdate, subMalformed, nil, "attribute %d is there twice", a.typ)
			}
			continue // RFC 7606 §3 g: all but the first are discarded
		}
		if bad := p.one(a, out); bad != nil {
			return bad
		}
	}
	return nil
}

func (p *parser) fault(v verdict, what string) {
	if p.problem == "" {
		p.problem = what
	}
	p.verdict = max(p.verdict, v)
}

// one checks an attribute and keeps it, unless it is to be discarded.
func (p *parser) one(a attr, out *batch) *notification {
	want, known := knownFlags(a.typ)
	const class = flagOptional | flagTransitive
	switch {
	case !known && a.flags&flagOptional == 0:
		return notify(errUpdate, subUnrecognized, whole(a), "attribute %d", a.typ)
	case !known && a.flags&flagTransitive == 0:
		return nil // RFC 4271 §5: quietly ignored
	case !known:
		a.flags |= flagPartial
	case a.flags&class != want:
		p.fault(treatAsWithdraw, fmt.Sprintf("attribute %d has flags %#x", a.typ, a.flags))
	}
	switch a.typ {
	case attrMPReach:
		return p.mpReach(a, out)
	case attrMPUnreach:
		return p.mpUnreach(a, out)
	}
	v, what := check(a.typ, a.value, p.neg.as4)
	if v != fine {
		p.fault(v, fmt.Sprintf("attribute %d: %s", a.typ, what))
		if v == discard {
			return nil
		}
	}
	p.keep(a)
	return nil
}

// keep inserts in order of type, in which nearly all come.
func (p *parser) keep(a attr) {
	p.attrs = append(p.attrs, a)
	for i := len(p.attrs) - 1; i > 0 && p.attrs[i-1].typ > a.typ; i-- {
		p.attrs[i], p.attrs[i-1] = p.attrs[i-1], p.attrs[i]
	}
	p.index[a.typ] = 1
}

func (p *parser) find(typ byte) []byte {
	for _, a := range p.attrs {
		if a.typ == typ {
			return a.value
		}
	}
	return nil
}

// whole is the attribute as RFC 4271 §6.3 wants it in a NOTIFICATION.
func whole(a attr) []byte { return appendAttr(nil, a.flags, a.typ, a.value) }

func (p *parser) mpReach(a attr, out *batch) *notification {
	p.keep(attr{typ: attrMPReach})
	v := a.value
	if len(v) < 5 {
		return notify(errUpdate, subOptionalAttr, whole(a), "MP_REACH_NLRI of %d octets", len(v))
	}
	f, ok := familyOf(binary.BigEndian.Uint16(v), v[2])
	if !ok || !p.neg.families.has(f) {
		return nil // RFC 4760 §7 lets us ignore it
	}
	n := int(v[3])
	// RFC 7606 §7.11: behind a next hop of a wrong length the prefixes cannot be found.
	good := f == ipv4 && n == 4 || f == ipv6 && (n == 16 || n == 32)
	if !good || len(v) < 5+n {
		return notify(errUpdate, subOptionalAttr, whole(a), "next hop of %d octets", n)
	}
	p.reach = reach{present: true, family: f, nextHop: v[4 : 4+n], from: len(out.prefixes)}
	out.prefixes, ok = parsePrefixes(out.prefixes, f, v[5+n:])
	p.reach.to = len(out.prefixes)
	if !ok {
		return notify(errUpdate, subOptionalAttr, whole(a), "prefixes of MP_REACH_NLRI")
	}
	return nil
}

func (p *parser) mpUnreach(a attr, out *batch) *notification {
	p.keep(attr{typ: attrMPUnreach})
	v := a.value
	if len(v) < 3 {
		return notify(errUpdate, subOptionalAttr, whole(a), "MP_UNREACH_NLRI of %d octets", len(v))
	}
	f, ok := familyOf(binary.BigEndian.Uint16(v), v[2])
	if !ok || !p.neg.families.has(f) {
		return nil
	}
	p.unreach = reach{present: true, family: f, from: len(out.prefixes)}
	out.prefixes, ok = parsePrefixes(out.prefixes, f, v[3:])
	p.unreach.to = len(out.prefixes)
	if !ok {
		return notify(errUpdate, subOptionalAttr, whole(a), "prefixes of MP_UNREACH_NLRI")
	}
	return nil
}

// withdraw adds what is withdrawn, and finds RFC 4724's End-of-RIB.
func (p *parser) withdraw(b []byte, out *batch) *notification {
	from := len(out.prefixes)
	var ok bool
	if out.prefixes, ok = parsePrefixes(out.prefixes, ipv4, b); !ok {
		return notify(errUpdate, subNetwork, nil, "withdrawn routes")
	}
	if to := len(out.prefixes); to > from && p.neg.families.has(ipv4) {
		out.ops = append(out.ops, op{kind: opWithdraw, family: ipv4, from: from, to: to})
	}
	switch u := p.unreach; {
	case !u.present:
	case u.from < u.to:
		out.ops = append(out.ops, op{kind: opWithdraw, family: u.family, from: u.from, to: u.to})
	case len(p.attrs) == 1 && len(b) == 0:
		out.add(opEndOfRIB, u.family)
	}
	return nil
}

// announce adds what is announced, with the attributes as they will go out.
func (p *parser) announce(nlri []byte, out *batch) *notification {
	from := len(out.prefixes)
	var ok bool
	if out.prefixes, ok = parsePrefixes(out.prefixes, ipv4, nlri); !ok {
		return notify(errUpdate, subNetwork, nil, "prefixes")
	}
	to := len(out.prefixes)
	classic, mp := to > from, p.reach.present && p.reach.to > p.reach.from
	if !classic && !mp {
		if p.problem != "" {
			out.complain("%s", p.problem)
		}
		return nil
	}
	p.mandatory(classic)
	kind := opAnnounce
	switch {
	case p.verdict == treatAsWithdraw:
		kind = opWithdraw
	case p.loops():
		kind = opRefuse
	}
	if p.problem != "" {
		out.complain("%s", p.problem)
	}
	if kind == opAnnounce {
		p.modernise()
	}
	if classic && p.neg.families.has(ipv4) {
		p.emit(out, op{kind: kind, family: ipv4, from: from, to: to}, p.find(attrNextHop))
	}
	if mp {
		p.emit(out, op{kind: kind, family: p.reach.family, from: p.reach.from, to: p.reach.to}, p.reach.nextHop)
	}
	return nil
}

// mandatory looks for what must be there (RFC 4271 §5, RFC 7606 §3 d).
func (p *parser) mandatory(classic bool) {
	for _, typ := range []byte{attrOrigin, attrASPath, attrNextHop} {
		if typ == attrNextHop && !classic {
			continue
		}
		if p.index[typ] == 0 {
			p.fault(treatAsWithdraw, fmt.Sprintf("attribute %d is missing", typ))
		}
	}
}

// loops finds routes that came back to us (RFC 4456 §8, RFC 4271 §9).
func (p *parser) loops() bool {
	if bytes.Equal(p.find(attrOriginator), p.self[:]) {
		return true
	}
	for list := p.find(attrClusterList); len(list) > 0; list = list[4:] {
		if bytes.Equal(list[:4], p.cluster[:]) {
			return true
		}
	}
	path, n := p.find(attrASPath), asSize(p.neg.as4)
	for ; len(path) > 0; path = path[2+n*int(path[1]):] {
		for i := range int(path[1]) {
			as := uint32(binary.BigEndian.Uint16(path[2+n*i:]))
			if p.neg.as4 {
				as = binary.BigEndian.Uint32(path[2+n*i:])
			}
			if as == p.asn {
				return true
			}
		}
	}
	return false
}

// modernise gives AS numbers four octets and drops AS4_PATH and AS4_AGGREGATOR, which a peer with
// four octets must not send (RFC 6793 §4.1, §4.2.3).
func (p *parser) modernise() {
	as4Path, as4Aggr := p.find(attrAS4Path), p.find(attrAS4Aggr)
	kept := p.attrs[:0]
	aggr := p.find(attrAggregator)
	// If the AGGREGATOR is not AS_TRANS, both were added by somebody who did not know of the other.
	trusted := aggr == nil || p.neg.as4 || binary.BigEndian.Uint16(aggr) == asTrans
	for _, a := range p.attrs {
		switch a.typ {
		case attrAS4Path, attrAS4Aggr:
			p.index[a.typ] = 0
			continue
		case attrASPath:
			if !p.neg.as4 {
				if !trusted {
					as4Path = nil
				}
				a.value = widen(a.value, as4Path)
			}
		case attrAggregator:
			if !p.neg.as4 {
				if trusted && as4Aggr != nil {
					a.value = as4Aggr
				} else {
					a.value = append([]byte{0, 0}, a.value...)
				}
			}
		}
		kept = append(kept, a)
	}
	p.attrs = kept
}

// emit writes the attributes of an announcement into the batch: next hop, then what RFC 4456 §8 adds.
func (p *parser) emit(out *batch, o op, nextHop []byte) {
	if o.kind == opAnnounce && !usable(nextHop) {
		o.kind = opRefuse
	}
	if o.kind == opAnnounce {
		o.attrs = len(out.arena)
		out.arena = p.encode(out.arena, o.family, nextHop)
		o.end = len(out.arena)
	}
	out.ops = append(out.ops, o)
}

func (p *parser) encode(b []byte, f family, nextHop []byte) []byte {
	if f == ipv4 {
		b = append(b, byte(f), 0)
	} else {
		// The link-local half may go only to those who share a link with the next hop (RFC 2545 §3), and
		// of that we know nothing.
		nextHop = nextHop[:16]
		b = append(b, byte(f), byte(len(nextHop)))
		b = append(b, nextHop...)
	}
	// What is added where it is not there yet, in order of type.
	type extra struct {
		typ   byte
		flags byte
		value []byte
	}
	missing := []extra{
		{attrNextHop, flagTransitive, nextHop},
		{attrLocalPref, flagTransitive, []byte{0, 0, 0, 100}},
		{attrOriginator, flagOptional, p.neg.id[:]},
		{attrClusterList, flagOptional, nil},
	}
	if f != ipv4 {
		missing = missing[1:]
	}
	for _, a := range p.attrs {
		for len(missing) > 0 && missing[0].typ < a.typ {
			b = p.appendOut(b, missing[0].flags, missing[0].typ, missing[0].value)
			missing = missing[1:]
		}
		switch {
		case a.typ == attrNextHop || a.typ == attrMPReach || a.typ == attrMPUnreach:
			continue
		case len(missing) > 0 && missing[0].typ == a.typ:
			missing = missing[1:]
		}
		b = p.appendOut(b, a.flags, a.typ, a.value)
	}
	for _, m := range missing {
		b = p.appendOut(b, m.flags, m.typ, m.value)
	}
	return b
}

func (p *parser) appendOut(b []byte, flags, typ byte, value []byte) []byte {
	if typ == attrClusterList {
		return appendAttr(b, flags, typ, p.cluster[:], value)
	}
	return appendAttr(b, flags, typ, value)
}

// usable tells whether a next hop can be one (RFC 4271 §6.3, RFC 2545: a link-local address alone
// means nothing beyond one link, so nothing to another client).
func usable(nextHop []byte) bool {
	if len(nextHop) == 4 {
		return nextHop[0] != 0 && nextHop[0] < 224
	}
	a, ok := netip.AddrFromSlice(nextHop[:min(16, len(nextHop))])
	return ok && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLinkLocalUnicast() && !a.IsLoopback()
}

// refresh reads a ROUTE-REFRESH (RFC 2918, RFC 7313).
func (p *parser) refresh(b []byte, out *batch) *notification {
	if len(b) != 4 {
		if p.neg.enhanced {
			return notify(errRefresh, 1, b, "ROUTE-REFRESH of %d octets", len(b))
		}
		return notify(errHeader, subBadLength, nil, "ROUTE-REFRESH of %d octets", len(b))
	}
	f, ok := familyOf(binary.BigEndian.Uint16(b), b[3])
	if !ok || !p.neg.families.has(f) {
		return nil
	}
	switch {
	case b[2] == refreshRequest:
		out.add(opRefresh, f)
	case b[2] == refreshBegin && p.neg.enhanced:
		out.add(opRefreshBegin, f)
	case b[2] == refreshEnd && p.neg.enhanced:
		out.add(opRefreshEnd, f)
	}
	return nil
}
