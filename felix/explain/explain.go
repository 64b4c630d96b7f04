// SPDX-License-Identifier: Apache-2.0

// Package explain tells what the kernel of this node would do with a packet for one address: which route
// takes it, through which nexthop object and device, and what is known there of the gateway. It only
// reads, whatever others made of the kernel, and judges nothing. Its answer travels as JSON.
//
//	address ─▶ Match, the FIB's entry ─▶ Hops, the ways out ─▶ Device, Neighbour
//	                                        └ a tunnel's: Remote ─▶ Underlay, the same for the outer packet
package explain

import "net/netip"

// Types of routes, as the kernel names them.
const (
	TypeUnicast     = "unicast"
	TypeLocal       = "local"
	TypeBlackhole   = "blackhole"
	TypeUnreachable = "unreachable"
	TypeProhibit    = "prohibit"
	TypeThrow       = "throw"
)

// Route is what happens to a packet of this node for an address.
type Route struct {
	Address netip.Addr `json:"address"`
	// Error is what the kernel answered instead of a way; then Match may tell which route did it.
	Error string `json:"error,omitempty"`
	Match *Match `json:"match,omitempty"` // nil: no route takes it
	// Hops are the ways out: several with ECMP, none if the route drops or is local.
	Hops []Hop `json:"hops,omitempty"`
}

// Match is the entry of the forwarding table that takes the packet.
type Match struct {
	Prefix   netip.Prefix `json:"prefix"`
	Type     string       `json:"type"`
	Protocol uint8        `json:"protocol"`
	Table    uint32       `json:"table"`
	Metric   uint32       `json:"metric,omitempty"`
	Nexthop  uint32       `json:"nexthop,omitempty"` // id of the nexthop object; 0: it has none
	MTU      uint32       `json:"mtu,omitempty"`     // of the route's own; 0: the device's
	Source   netip.Addr   `json:"source,omitzero"`
}

// Hop is one way out.
type Hop struct {
	Nexthop uint32     `json:"nexthop,omitempty"` // id of the object, if it is one
	Gateway netip.Addr `json:"gateway,omitzero"`  // none: the address itself is on the link
	Device  Device     `json:"device"`
	// Neighbour is the entry of the gateway; nil: there is none.
	Neighbour *Neighbour `json:"neighbour,omitempty"`
	// Remote is where a tunnel's device sends the packet: by the FDB (VXLAN), or to the gateway (IPIP).
	Remote netip.Addr `json:"remote,omitzero"`
	// Underlay is the way of the outer packet to Remote.
	Underlay *Route `json:"underlay,omitempty"`
}

// Device is a network device.
type Device struct {
	Index   int    `json:"index"`
	Name    string `json:"name,omitempty"` // none: it is gone
	Kind    string `json:"kind,omitempty"` // vxlan, ipip, veth …
	Up      bool   `json:"up"`             // by the will of whoever configured it
	Carrier bool   `json:"carrier"`
	MTU     int    `json:"mtu,omitempty"`
}

// Neighbour is an entry of the neighbour table.
type Neighbour struct {
	MAC   string `json:"mac,omitempty"`
	State string `json:"state"` // permanent, reachable, stale, failed …
}

// Usable says whether packets can be sent by the entry.
func (n *Neighbour) Usable() bool { return n.State != stateFailed && n.State != stateIncomplete }

// States of a neighbour in which nobody is known to be there.
const (
	stateFailed     = "failed"
	stateIncomplete = "incomplete"
)
