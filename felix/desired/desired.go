// SPDX-License-Identifier: Apache-2.0

// Package desired holds what the kernel of a node should look like, as plain comparable values.
// felix/calc computes them, the drivers make them true. Whatever belongs to heliograph is
// recognised by a process without memory: Protocol on routes, nexthop objects and addresses, the
// device prefix, our own nft table.
package desired

import "net/netip"

// Protocol is the route protocol number that marks everything of ours in the kernel.
const Protocol = 80

// Names of our devices and of our nft tables.
const (
	// LinkPrefix begins the name of every device of ours, WorkloadPrefix + 11 hex digits is the host's
	// end of a pod's veth pair.
	LinkPrefix     = "hel"
	WorkloadPrefix = "hel"
	VXLANDevice    = "hel-vxlan"
	VXLANDevice6   = "hel-vxlan6"
	IPIPDevice     = "hel-ipip"
	NFTTable       = "heliograph"        // family inet
	NFTPolicyTable = "heliograph-policy" // family inet; felix/nftpolicy's
)

// RouteMetric is the priority of our routes in the main table. It is our own, so that a replace of
// ours can never hit a route of somebody else (the kernel replaces by prefix, TOS and priority,
// whatever the protocol).
const RouteMetric = 80

// A probe must go by one method whatever the routes for the traffic say: it carries a mark, which sends
// it to a table with that method's routes alone. The marks are "hel" and a number; all bits count.
const (
	MarkNative, MarkIPIP, MarkVXLAN    = 0x68650001, 0x68650002, 0x68650003
	TableNative, TableIPIP, TableVXLAN = 80001, 80002, 80003
	// RulePriority of the rules that do so, before the main table's 32766.
	RulePriority = 80
)

// VXLAN is a tunnel device (RFC 7348), external learning only. The underlay is one family per
// device: Local decides.
type VXLAN struct {
	Name  string
	VNI   uint32
	Port  uint16
	Local netip.Addr // underlay source address
	MAC   MAC
	MTU   int
}

// IPIP is the one IPv4-in-IPv4 device (RFC 2003). It has no remote end of its own: the gateway of a route
// is where a packet is sent to.
type IPIP struct {
	Name  string
	Local netip.Addr // underlay source address
	MTU   int
}

// MAC is a comparable hardware address.
type MAC [6]byte

// Address is an address of ours on a device.
type Address struct {
	Device string
	Prefix netip.Prefix
}

// Neighbour is a permanent neighbour entry on a device of ours.
type Neighbour struct {
	Device string
	IP     netip.Addr
	MAC    MAC
}

// FDBEntry sends frames for a MAC to a tunnel's remote end.
type FDBEntry struct {
	Device string
	MAC    MAC
	Remote netip.Addr // underlay address
}

// NexthopID is the id of a kernel nexthop object. Ours have the highest bit set.
type NexthopID uint32

// NexthopKey names a nexthop object by what it is for: "via/192.168.11.1/eth0" for a gateway,
// "node/NAME/IPv4" for the group through which a remote node is reached.
type NexthopKey string

// Nexthop is a kernel nexthop object: a gateway on a device, or a group of such. What remote routes
// refer to is always a group, if only of one, since the kernel cannot replace an object by a group.
type Nexthop struct {
	ID      NexthopID
	Gateway netip.Addr // of a single one
	Device  string     // of a single one
	OnLink  bool       // of a single one: do not check that the gateway is reachable on the device
	Group   string     // of a group: member ids in ascending order, encoded by EncodeGroup; comparable
}

// RouteType is what a route does.
type RouteType uint8

// The types of routes that we have.
const (
	RouteNexthop   RouteType = iota + 1 // to a nexthop object
	RouteDevice                         // to a directly attached device: a pod
	RouteBlackhole                      // drops silently, so that holes of a block do not loop
)

// Route is a route with our protocol and metric, in the main table or in one that probes go by. Prefix is
// its identity.
type Route struct {
	Prefix  netip.Prefix
	Type    RouteType
	Nexthop NexthopID  // of RouteNexthop
	Device  string     // of RouteDevice
	Source  netip.Addr // preferred source of the node's own packets; may be invalid
	MTU     int        // of the way, if smaller than the device's; 0: the device's
}

// Rule sends packets that carry a mark to a routing table of ours (ip-rule(8)).
type Rule struct {
	Family   uint8 // 4 or 6
	Priority uint32
	Mark     uint32 // all bits are compared
	Table    uint32
}

// Sysctl is a value below /proc/sys/net, by its path there, such as "ipv4/ip_forward".
type Sysctl struct {
	Path  string
	Value string
}

// Workload is the host's end of a pod's veth pair, and the addresses that the pod may use.
type Workload struct {
	Device string
	IPs    [2]netip.Addr // IPv4, IPv6; either may be invalid
}

// NFT is what the inet table NFTTable should hold: base chains that are always there, and sets.
type NFT struct {
	Workloads  []Workload     // known devices; everything else that begins with LinkPrefix and is no tunnel drops
	Tunnels    []string       // tunnel devices
	NATSources []netip.Prefix // what comes from here ...
	NoNAT      []netip.Prefix // ... and does not go here is masqueraded
	Nodes      []netip.Addr   // who may send us VXLAN and IPIP
	VXLANPorts []uint16       // UDP ports of the tunnels
	IPIPLocal  []netip.Addr   // our ends of IPIP tunnels; none without such a device
	IPIPOthers []netip.Addr   // remote ends of others' IPIP tunnels on this host
}

// State is all that the kernel of this node should hold for us.
type State struct {
	Sysctls    []Sysctl
	VXLANs     []VXLAN
	Addresses  []Address
	Neighbours []Neighbour
	FDB        []FDBEntry
	Nexthops   []Nexthop
	Routes     []Route
	NFT        NFT
}

// Phase is how far an object is from being true in the kernel.
type Phase uint8

// The phases of an object.
const (
	Done Phase = iota + 1
	Pending
	Failed
)

// Status is the state of one object of a driver.
type Status struct {
	Object string // printable identity: "route 10.244.1.0/26"
	Phase  Phase
	Error  string // of Failed
}
