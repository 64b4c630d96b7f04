// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// Capability codes (RFC 5492's registry).
const (
	capMultiprotocol   = 1
	capRefresh         = 2
	capExtendedMessage = 6
	capGracefulRestart = 64
	capAS4             = 65
	capAddPath         = 69
	capEnhancedRefresh = 70
)

const (
	optCapabilities = 2
	optExtended     = 255 // RFC 9072

	addPathReceive = 1
	addPathSend    = 2
)

// open is an OPEN message: what one side wants and can.
type open struct {
	asn      uint32
	hold     uint16
	id       [4]byte
	families familySet
	as4      bool
	refresh  bool
	enhanced bool
	extended bool
	restart  *restart
	// addPaths has the families that the sender offers to send all paths of (ours), or wants to
	// receive them of (the peer's).
	addPaths familySet
}

// restart is the graceful restart capability (RFC 4724 §3).
type restart struct {
	restarting bool
	time       time.Duration
	families   familySet
	forwarding familySet
}

// message encodes our OPEN.
func (o open) message() []byte {
	b := appendHeader(nil, msgOpen)
	my := uint16(asTrans)
	if o.asn <= 0xffff {
		my = uint16(o.asn)
	}
	b = append(b, 4)
	b = binary.BigEndian.AppendUint16(b, my)
	b = binary.BigEndian.AppendUint16(b, o.hold)
	b = append(b, o.id[:]...)
	b = append(b, 0, optCapabilities, 0)
	start := len(b)
	for f := range families {
		if o.families.has(f) {
			b = append(b, capMultiprotocol, 4, 0, f.afi(), 0, safiUnicast)
		}
	}
	for _, c := range []struct {
		code byte
		can  bool
	}{{capRefresh, o.refresh}, {capExtendedMessage, o.extended}, {capEnhancedRefresh, o.enhanced}} {
		if c.can {
			b = append(b, c.code, 0)
		}
	}
	if o.as4 {
		b = binary.BigEndian.AppendUint32(append(b, capAS4, 4), o.asn)
	}
	if o.restart != nil {
		b = o.restart.append(b)
	}
	if o.addPaths != 0 {
		b = append(b, capAddPath, 0)
		at := len(b)
		for f := range families {
			if o.addPaths.has(f) {
				b = append(b, 0, f.afi(), safiUnicast, addPathSend)
			}
		}
		b[at-1] = byte(len(b) - at)
	}
	b[start-1] = byte(len(b) - start)
	b[start-3] = byte(len(b) - start + 2)
	return finish(b, 0)
}

func (r restart) append(b []byte) []byte {
	v := uint16(r.time/time.Second) & 0xfff
	if r.restarting {
		v |= 0x8000
	}
	b = append(b, capGracefulRestart, 0)
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, v)
	for f := range families {
		if r.families.has(f) {
			flags := byte(0)
			if r.forwarding.has(f) {
				flags = 0x80
			}
			b = append(b, 0, f.afi(), safiUnicast, flags)
		}
	}
	b[at-1] = byte(len(b) - at)
	return b
}

// parseOpen reads the body of a peer's OPEN (RFC 4271 §6.2, RFC 5492, RFC 9072).
func parseOpen(b []byte) (open, *notification) {
	var o open
	if b[0] != 4 {
		return o, notify(errOpen, subVersion, []byte{0, 4}, "version %d", b[0])
	}
	o.asn = uint32(binary.BigEndian.Uint16(b[1:]))
	o.hold = binary.BigEndian.Uint16(b[3:])
	copy(o.id[:], b[5:])
	if o.hold == 1 || o.hold == 2 {
		return o, notify(errOpen, subBadHoldTime, nil, "hold time %d s", o.hold)
	}
	params, wide := b[10:], false
	length := int(b[9])
	if length == 255 && len(params) >= 3 && params[0] == optExtended {
		length, params, wide = int(binary.BigEndian.Uint16(params[1:])), params[3:], true
	}
	if length != len(params) {
		return o, notify(errOpen, 0, nil, "optional parameters of %d octets where there are %d", length, len(params))
	}
	if bad := o.parameters(params, wide); bad != nil {
		return o, bad
	}
	if o.families == 0 { // RFC 4760: without the capability, IPv4 unicast
		o.families.add(ipv4)
	}
	return o, nil
}

func (o *open) parameters(b []byte, wide bool) *notification {
	head := 2
	if wide {
		head = 3
	}
	mp := false
	for len(b) > 0 {
		if len(b) < head {
			return notify(errOpen, 0, nil, "optional parameter is cut off")
		}
		l := int(b[1])
		if wide {
			l = int(binary.BigEndian.Uint16(b[1:]))
		}
		if len(b) < head+l {
			return notify(errOpen, 0, nil, "optional parameter is cut off")
		}
		if b[0] != optCapabilities {
			return notify(errOpen, subOptParam, nil, "optional parameter %d", b[0])
		}
		if !o.capabilities(b[head:head+l], &mp) {
			return notify(errOpen, 0, nil, "capability is cut off")
		}
		b = b[head+l:]
	}
	if mp && o.families == 0 {
		return notify(errOpen, subCapability, []byte{capMultiprotocol, 4, 0, afiIPv4, 0, safiUnicast}, "no common address family")
	}
	return nil
}

// capabilities reads one parameter's. What is unknown, or known but malformed, is ignored (RFC 5492 §3).
func (o *open) capabilities(b []byte, mp *bool) bool {
	for len(b) > 0 {
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return false
		}
		code, v := b[0], b[2:2+int(b[1])]
		b = b[2+len(v):]
		switch {
		case code == capMultiprotocol && len(v) == 4:
			*mp = true
			if f, ok := familyOf(binary.BigEndian.Uint16(v), v[3]); ok {
				o.families.add(f)
			}
		case code == capRefresh:
			o.refresh = true
		case code == capEnhancedRefresh:
			o.enhanced = true
		case code == capExtendedMessage:
			o.extended = true
		case code == capAS4 && len(v) == 4:
			o.as4, o.asn = true, binary.BigEndian.Uint32(v)
		case code == capGracefulRestart && len(v) >= 2:
			o.restart = parseRestart(v)
		case code == capAddPath:
			for ; len(v) >= 4; v = v[4:] {
				if f, ok := familyOf(binary.BigEndian.Uint16(v), v[2]); ok && v[3]&addPathReceive != 0 && v[3] <= 3 {
					o.addPaths.add(f)
				}
			}
		}
	}
	return true
}

func parseRestart(v []byte) *restart {
	head := binary.BigEndian.Uint16(v)
	r := &restart{restarting: head&0x8000 != 0, time: time.Duration(head&0xfff) * time.Second}
	for v = v[2:]; len(v) >= 4; v = v[4:] {
		if f, ok := familyOf(binary.BigEndian.Uint16(v), v[2]); ok {
			r.families.add(f)
			if v[3]&0x80 != 0 {
				r.forwarding.add(f)
			}
		}
	}
	return r
}

// negotiated is what both sides of a session can.
type negotiated struct {
	hold      time.Duration // 0: none
	keepalive time.Duration
	id        [4]byte // the peer's
	families  familySet
	as4       bool
	refresh   bool
	enhanced  bool
	extended  bool
	addPaths  familySet
	restart   *restart // the peer's; nil if either side has none
}

// negotiate checks a peer's OPEN against ours (RFC 4271 §6.2, RFC 6286).
func negotiate(ours, theirs open, p Peer) (negotiated, *notification) {
	n := negotiated{
		id:       theirs.id,
		families: ours.families & theirs.families,
		as4:      theirs.as4,
		refresh:  theirs.refresh,
		enhanced: theirs.enhanced && theirs.refresh,
		extended: theirs.extended,
		addPaths: ours.addPaths & theirs.addPaths,
		restart:  theirs.restart,
	}
	switch {
	case theirs.asn != p.ASN:
		return n, notify(errOpen, subBadPeerAS, nil, "peer AS is %d, not %d", theirs.asn, p.ASN)
	case theirs.id == [4]byte{}:
		return n, notify(errOpen, subBadID, nil, "router ID is 0.0.0.0")
	case theirs.id == ours.id: // within one AS (RFC 6286 §2.2)
		return n, notify(errOpen, subBadID, nil, "router ID %s is ours", netip.AddrFrom4(theirs.id))
	case n.families == 0:
		return n, notify(errOpen, subCapability, nil, "no common address family")
	}
	n.addPaths &= n.families
	n.hold = time.Duration(min(ours.hold, theirs.hold)) * time.Second
	if n.hold > 0 {
		n.keepalive = min(n.hold/3, p.Timers.Keepalive)
	}
	return n, nil
}
