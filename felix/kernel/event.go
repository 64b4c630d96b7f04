// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

// Kind says which subsystems a foreign event may have disturbed; kinds are or-ed.
type Kind uint8

// The kinds of pokes. They name what to read again, not what happened.
const (
	Link      Kind = 1 << iota // devices of ours
	Address                    // addresses of ours, or on devices of ours
	Route                      // routes of ours, or in the way of ours
	Neighbour                  // neighbour and FDB entries on devices of ours
	Nexthop                    // nexthop objects of ours
	Uplink                     // devices and addresses that are not ours: the node's own
	Rule                       // routing policy rules of ours
	All       Kind = 1<<iota - 1
)

// String lists the kinds.
func (k Kind) String() string {
	var names []string
	for i, n := range []string{"link", "address", "route", "neighbour", "nexthop", "uplink", "rule"} {
		if k&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return strings.Join(names, "|")
}

// Message types, attributes and flags of rtnetlink that events are read by.
const (
	rtmNewLink, rtmDelLink       = 16, 17
	rtmNewAddr, rtmDelAddr       = 20, 21
	rtmNewRoute, rtmDelRoute     = 24, 25
	rtmNewNeigh, rtmDelNeigh     = 28, 29
	rtmNewRule, rtmDelRule       = 32, 33
	rtmNewNexthop, rtmDelNexthop = 104, 105

	iflaAddress, iflaName, iflaMTU = 1, 3, 4
	ifaProto                       = 11
	rtaDst, rtaOIF, rtaTable       = 1, 4, 15
	fraTable, fraProtocol          = 15, 21
	nhaID                          = 1

	flagsUp      = 0x1 | 0x40 | 0x10000 // IFF_UP, IFF_RUNNING, IFF_LOWER_UP
	tableMain    = 254
	protoKernel  = 2
	flagCloned   = 0x200 // RTM_F_CLONED
	nudPermanent = 0x80
	ourNexthops  = 1 << 31 // ids of ours have the highest bit set
)

// link is what is remembered of a device, so that notifications that change nothing (Linux sends
// plenty) do not poke, and events that carry an index alone find the name.
type link struct {
	name, mac string
	mtu       uint32
	flags     uint32
}

// events turns notifications into kinds.
type events struct {
	own   func(portID uint32) bool
	ours  func(netip.Prefix) bool
	links map[int32]link
}

// kind tells what a notification may have disturbed. Events that our own sockets caused disturb
// nothing but what the kernel did in their wake.
func (e *events) kind(m Message) Kind {
	own := m.PortID != 0 && e.own(m.PortID)
	switch m.Type {
	case rtmNewLink, rtmDelLink:
		return e.link(m, own)
	case rtmNewAddr, rtmDelAddr:
		return e.address(m, own)
	case rtmNewRoute, rtmDelRoute:
		return e.route(m, own)
	case rtmNewNeigh, rtmDelNeigh:
		return e.neighbour(m, own)
	case rtmNewNexthop, rtmDelNexthop:
		return e.nexthop(m, own)
	case rtmNewRule, rtmDelRule:
		return e.rule(m, own)
	}
	return 0
}

// link reads an ifinfomsg. When a device goes down or away the kernel drops the nexthop objects, routes
// and neighbours on it, IPv4 routes and nexthops without a notification of their own.
func (e *events) link(m Message, own bool) Kind {
	if len(m.Body) < 16 || m.Body[0] != 0 { // family: AF_BRIDGE tells of bridge ports
		return 0
	}
	index := int32(binary.NativeEndian.Uint32(m.Body[4:]))
	now := parseLink(m.Body)
	old, known := e.links[index]
	gone := m.Type == rtmDelLink
	if gone {
		delete(e.links, index)
	} else {
		e.links[index] = now
	}
	if known && !gone && now == old {
		return 0
	}
	kind := Uplink
	if isOurs(now.name) || isOurs(old.name) {
		kind = Link
	}
	fell := gone || known && (old.flags&^now.flags&1 != 0 || old.name != now.name)
	switch {
	case fell && own:
		return Nexthop | Route
	case fell && kind == Link:
		return Link | Address | Neighbour | Nexthop | Route
	case fell:
		return Uplink | Nexthop | Route
	case own:
		return 0
	}
	return kind
}

func parseLink(body []byte) link {
	l := link{flags: binary.NativeEndian.Uint32(body[8:]) & flagsUp}
	for typ, v := range Attributes(body[16:]) {
		switch typ {
		case iflaName:
			l.name = String(v)
		case iflaAddress:
			l.mac = string(v)
		case iflaMTU:
			l.mtu = Uint32(v)
		}
	}
	return l
}

// address reads an ifaddrmsg. With an address go the routes that prefer it as their source.
func (e *events) address(m Message, own bool) Kind {
	if len(m.Body) < 8 {
		return 0
	}
	kind := Uplink
	if isOurs(e.links[int32(binary.NativeEndian.Uint32(m.Body[4:]))].name) {
		kind = Address
	}
	for typ, v := range Attributes(m.Body[8:]) {
		if typ == ifaProto && len(v) == 1 && v[0] == desired.Protocol {
			kind = Address
		}
	}
	if own {
		kind = 0
	}
	if m.Type == rtmDelAddr {
		kind |= Nexthop | Route
	}
	return kind
}

// route reads an rtmsg. In the main table others' routes concern us if they are in the way of ours; in
// tables of ours all do. The kernel's own routes on our devices (fe80::/64, multicast) come and go with
// every pod and are nobody's concern.
func (e *events) route(m Message, own bool) Kind {
	if own || len(m.Body) < 12 || binary.NativeEndian.Uint32(m.Body[8:])&flagCloned != 0 {
		return 0
	}
	switch table, protocol := tableOf(m), m.Body[5]; {
	case protocol == desired.Protocol || isOurTable(table):
		return Route
	case table != tableMain || protocol == protoKernel:
		return 0
	}
	addr := netip.IPv4Unspecified()
	if m.Body[0] == afINET6 {
		addr = netip.IPv6Unspecified()
	}
	for typ, v := range Attributes(m.Body[12:]) {
		switch typ {
		case rtaDst:
			addr = Addr(v)
		case rtaOIF:
			if isOurs(e.links[int32(Uint32(v))].name) {
				return Route
			}
		}
	}
	if p := netip.PrefixFrom(addr, int(m.Body[1])); p.IsValid() && e.ours(p) {
		return Route
	}
	return 0
}

// neighbour reads an ndmsg. What a pod's veth learns by ARP is noise; a tunnel learns nothing.
func (e *events) neighbour(m Message, own bool) Kind {
	if own || len(m.Body) < 12 {
		return 0
	}
	name := e.links[int32(binary.NativeEndian.Uint32(m.Body[4:]))].name
	permanent := binary.NativeEndian.Uint16(m.Body[8:])&nudPermanent != 0
	tunnel := strings.HasPrefix(name, desired.LinkPrefix+"-")
	if isOurs(name) && (tunnel || permanent || m.Type == rtmDelNeigh) {
		return Neighbour
	}
	return 0
}

// nexthop reads an nhmsg. Whoever replaces an object of ours puts his own protocol on it, hence the
// look at the id.
func (e *events) nexthop(m Message, own bool) Kind {
	if own || len(m.Body) < 8 {
		return 0
	}
	ours := m.Body[2] == desired.Protocol
	for typ, v := range Attributes(m.Body[8:]) {
		ours = ours || typ == nhaID && Uint32(v)&ourNexthops != 0
	}
	if ours {
		return Nexthop | Route
	}
	return 0
}

// rule reads a fib_rule_hdr. Others' rules are none of our business, unless they lead to our tables.
func (e *events) rule(m Message, own bool) Kind {
	if own || len(m.Body) < 12 {
		return 0
	}
	for typ, v := range Attributes(m.Body[12:]) {
		switch {
		case typ == fraProtocol && len(v) == 1 && v[0] == desired.Protocol, typ == fraTable && isOurTable(Uint32(v)):
			return Rule
		}
	}
	return 0
}

// tableOf reads the routing table of an rtmsg: numbers beyond a byte are in an attribute.
func tableOf(m Message) uint32 {
	for typ, v := range Attributes(m.Body[12:]) {
		if typ == rtaTable {
			return Uint32(v)
		}
	}
	return uint32(m.Body[4])
}

func isOurTable(table uint32) bool {
	return table == desired.TableNative || table == desired.TableIPIP || table == desired.TableVXLAN
}

func isOurs(device string) bool { return strings.HasPrefix(device, desired.LinkPrefix) }

const afINET6 = 10
