// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"
)

// Match is what a packet must fulfil: all of its conditions. The zero Match matches every packet.
// A condition on a set that does not exist is not fulfilled, not even a negated one.
type Match struct {
	Family      Family
	Source      Peer
	Destination Peer
	// Transport lists alternatives, of which one must match; none: any protocol.
	Transport []Transport
	// NotTransport lists what must not match: not-protocols, not-ports, not-ICMP.
	NotTransport []Transport
}

// Equal says whether two matches are the same.
func (m Match) Equal(o Match) bool {
	return m.Family == o.Family && m.Source.Equal(o.Source) && m.Destination.Equal(o.Destination) &&
		slices.EqualFunc(m.Transport, o.Transport, Transport.Equal) &&
		slices.EqualFunc(m.NotTransport, o.NotTransport, Transport.Equal)
}

func (m *Match) sets(yield func(SetID) bool) bool {
	for _, p := range []*Peer{&m.Source, &m.Destination} {
		for _, a := range p.Within {
			if !each(a.Sets, yield) {
				return false
			}
		}
		if !each(p.Outside.Sets, yield) {
			return false
		}
	}
	for _, list := range [][]Transport{m.Transport, m.NotTransport} {
		for _, t := range list {
			if !each(t.SourcePorts.Named, yield) || !each(t.DestinationPorts.Named, yield) {
				return false
			}
		}
	}
	return true
}

func each(ids []SetID, yield func(SetID) bool) bool {
	for _, id := range ids {
		if !yield(id) {
			return false
		}
	}
	return true
}

// Family is an IP version.
type Family uint8

// Families.
const (
	AnyFamily Family = 0
	IPv4      Family = 4
	IPv6      Family = 6
)

// String is "IPv4", "IPv6" or "any".
func (f Family) String() string {
	if f == AnyFamily {
		return "any"
	}
	return fmt.Sprintf("IPv%d", uint8(f))
}

// Peer is the condition on one end's address.
type Peer struct {
	// Within must all hold the address: one list for Kubernetes, whose peers are alternatives; one for
	// the selector and one for the nets where a language wants both. None: any address.
	Within []Addresses
	// Outside must not hold the address.
	Outside Addresses
}

// Any says whether the peer matches every address.
func (p Peer) Any() bool { return len(p.Within) == 0 && p.Outside.Empty() }

// Equal says whether two peers are the same.
func (p Peer) Equal(o Peer) bool {
	return slices.EqualFunc(p.Within, o.Within, Addresses.Equal) && p.Outside.Equal(o.Outside)
}

// Addresses holds the addresses of all its sets and nets. Without any it holds none.
type Addresses struct {
	Sets []SetID
	Nets []Net
}

// Empty says whether it holds no address, whatever the sets have for members.
func (a Addresses) Empty() bool { return len(a.Sets) == 0 && len(a.Nets) == 0 }

// Equal says whether they are written alike.
func (a Addresses) Equal(o Addresses) bool {
	return slices.Equal(a.Sets, o.Sets) && slices.EqualFunc(a.Nets, o.Nets, Net.Equal)
}

// Protocol is an IP protocol number. AnyProtocol is 0, so the hop-by-hop header, which is no
// transport, cannot be asked for.
type Protocol uint8

// Protocols that have names.
const (
	AnyProtocol Protocol = 0
	ICMP        Protocol = 1
	TCP         Protocol = 6
	UDP         Protocol = 17
	ICMPv6      Protocol = 58
	SCTP        Protocol = 132
	UDPLite     Protocol = 136
)

// String is the protocol's name, or its number.
func (p Protocol) String() string {
	switch p {
	case AnyProtocol:
		return "any"
	case ICMP:
		return "ICMP"
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case ICMPv6:
		return "ICMPv6"
	case SCTP:
		return "SCTP"
	case UDPLite:
		return "UDPLite"
	}
	return fmt.Sprintf("%d", uint8(p))
}

// HasPorts says whether packets of the protocol have ports.
func (p Protocol) HasPorts() bool { return p == TCP || p == UDP || p == SCTP || p == UDPLite }

// Transport is a condition on a packet's protocol and what that protocol carries. All of it must
// hold. A condition on ports is fulfilled by protocols that have ports only.
type Transport struct {
	Protocol         Protocol
	SourcePorts      Ports
	DestinationPorts Ports
	ICMP             ICMPMatch
}

// Equal says whether two are written alike.
func (t Transport) Equal(o Transport) bool {
	return t.Protocol == o.Protocol && t.ICMP == o.ICMP && t.SourcePorts.Equal(o.SourcePorts) &&
		t.DestinationPorts.Equal(o.DestinationPorts)
}

// Ports are alternatives: a range that holds the port, or a set of kind AddressPorts that holds the
// address, protocol and port of the packet at that end. Without any, every port will do.
type Ports struct {
	Ranges []PortRange
	Named  []SetID
}

// Any says whether every port will do.
func (p Ports) Any() bool { return len(p.Ranges) == 0 && len(p.Named) == 0 }

// Equal says whether they are written alike.
func (p Ports) Equal(o Ports) bool {
	return slices.Equal(p.Ranges, o.Ranges) && slices.Equal(p.Named, o.Named)
}

// PortRange is ports from First to Last, both included.
type PortRange struct{ First, Last uint16 }

// Contains says whether the port is in the range.
func (r PortRange) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

// String is "80" or "80-90".
func (r PortRange) String() string {
	if r.First == r.Last {
		return fmt.Sprintf("%d", r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// ICMPMatch is a condition on an ICMP or ICMPv6 message. The zero one is none.
type ICMPMatch struct {
	HasType, HasCode bool
	Type, Code       uint8
}
