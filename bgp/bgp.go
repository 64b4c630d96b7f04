// SPDX-License-Identifier: Apache-2.0

// Package bgp is the vocabulary of heliograph's BGP: what a speaker should be (Desired) and what it
// is (Snapshot), as plain comparable values. It owns no session and imports no BGP library; the
// speaker does.
package bgp

import (
	"log/slog"
	"net/netip"
	"slices"
	"time"
)

// Family is an address family of RFC 4760; the subsequent family is always unicast.
type Family uint8

// The families that heliograph speaks.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// String returns "IPv4" or "IPv6".
func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// FamilyOf returns the family of an address. An IPv4-mapped IPv6 address counts as IPv4.
func FamilyOf(a netip.Addr) Family {
	if a.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

// Password is a TCP MD5 password (RFC 2385). It hides itself from logs and from %v.
type Password string

// String hides the password.
func (p Password) String() string {
	if p == "" {
		return ""
	}
	return "********"
}

// GoString hides the password from %#v.
func (p Password) GoString() string { return p.String() }

// LogValue hides the password from slog.
func (p Password) LogValue() slog.Value { return slog.StringValue(p.String()) }

// PeerKind says what a peer is, and so what is believed of it.
type PeerKind uint8

const (
	// PeerNode is another node of the cluster.
	PeerNode PeerKind = iota + 1
	// PeerFabric is a router outside of the cluster, from a BGPPeer.
	PeerFabric
	// PeerReflector is the route reflector on a node: it passes on what others say (RFC 4456).
	PeerReflector
)

// GracefulRestart is RFC 4724 as one session uses it.
type GracefulRestart struct {
	Enabled     bool
	RestartTime time.Duration // whole seconds
}

// Timers of a session (RFC 4271 §10).
type Timers struct {
	Hold         time.Duration
	Keepalive    time.Duration
	ConnectRetry time.Duration
}

// BFD is RFC 5880 as one session uses it: asynchronous, over one hop (RFC 5881).
type BFD struct {
	Enabled          bool
	TransmitInterval time.Duration // Desired Min TX Interval
	ReceiveInterval  time.Duration // Required Min RX Interval
	DetectMultiplier uint8
}

// Peer is one session that the speaker should have. Its Address is its identity.
type Peer struct {
	Name            string // "node/NAME", "peer/NAME" or "reflector/NAME": for logs, status and metrics
	Kind            PeerKind
	Address         netip.Addr
	Port            uint16
	LocalAddress    netip.Addr // source of the TCP connection; invalid: the kernel chooses
	ASN             uint32
	Password        Password
	Held            string // not empty: the session must not start, and why
	Timers          Timers
	EBGPMultihop    uint8 // hops; 0 or 1: directly connected. Without meaning for iBGP
	AllowOwnASN     uint8 // how often our own AS may stand in a received AS_PATH
	GracefulRestart GracefulRestart
	BFD             BFD            // of a directly connected peer
	Families        []Family       // negotiated on the one session (RFC 4760)
	Accept          []netip.Prefix // a received route is accepted if one of these contains it; sorted. Empty: nothing is
}

// Origin is a prefix that the speaker originates. NextHops are the node's own addresses; a family
// without one is not advertised. With a session of the other family the speaker still sends the
// next hop of the prefix's own family (RFC 4760), so that peers can resolve it.
type Origin struct {
	Prefix  netip.Prefix
	NextHop netip.Addr
}

// Neighbour tells peers apart: a node's speaker and its reflector have the same address.
type Neighbour struct {
	Kind    PeerKind
	Address netip.Addr
}

// Neighbour returns who the peer is.
func (p Peer) Neighbour() Neighbour { return Neighbour{p.Kind, p.Address} }

// Neighbour returns whose session it is.
func (s Session) Neighbour() Neighbour { return Neighbour{s.Kind, s.Address} }

// Neighbour returns who sent the path.
func (p Path) Neighbour() Neighbour { return Neighbour{p.Kind, p.Peer} }

// Converged says whether the peer has told all it has: the End-of-RIB of every family has come (RFC 4724
// §2). One that does not send it has had time if the session is up for long.
func (s Session) Converged(families []Family, now time.Time) bool {
	if s.State != StateEstablished {
		return false
	}
	if now.Sub(s.Since) > convergence {
		return true
	}
	for _, f := range families {
		if !slices.Contains(s.EndOfRIB, f) {
			return false
		}
	}
	return true
}

// convergence is how long a peer without End-of-RIB may take.
const convergence = 5 * time.Second

// Global is what all sessions share.
type Global struct {
	ASN      uint32
	RouterID netip.Addr // IPv4 (RFC 6286)
	Port     uint16     // listen port; 0: nobody can connect
	// Restarting says that this process takes over from one that forwarded until just now (RFC
	// 4724 §4.1): peers are asked to keep the old routes. It is wrong on a cold start.
	Restarting bool
}

// Desired is everything the speaker should be. The zero Global means no speaker at all.
type Desired struct {
	Global  Global
	Peers   []Peer   // sorted by Address
	Origins []Origin // sorted by Prefix
	// Reflection is not the speaker's: it is for whoever runs reflectors beside it.
	Reflection Reflection
}

// Reflection is a node's part in route reflection (RFC 4456). The sessions with reflectors are those of a
// second speaker: a node that reflects has a speaker at the same address, and while the one takes over
// from the other there are sessions with both. The zero Reflection is none.
type Reflection struct {
	Reflectors []Peer    // that this node is a client of; sorted by Address
	Reflector  Reflector // that this node is
}

// Reflector is a route reflector. The zero Reflector is none.
type Reflector struct {
	ASN             uint32
	RouterID        netip.Addr // IPv4; not that of the node's speaker
	ClusterID       netip.Addr // IPv4
	Listen          []netip.AddrPort
	GracefulRestart GracefulRestart
	Peers           []ReflectorPeer // sorted by Name
}

// ReflectorPeer is one session that a reflector should have. Its Address and RouterID are its identity.
type ReflectorPeer struct {
	Name   string   // "client/NODE", "reflector/NODE" or "peer/NAME"
	Kind   PeerKind // PeerNode, PeerReflector or PeerFabric
	Client bool     // it is told of all routes; otherwise of those of clients (RFC 4456 §6)
	// Address of the other side, and the BGP Identifier that it must have; invalid: any.
	Address, RouterID netip.Addr
	// Port to connect to, from LocalAddress. 0: the other side connects.
	Port         uint16
	LocalAddress netip.Addr
	Password     Password
	Held         string // not empty: the session must not start, and why
	Timers       Timers
	Families     []Family
	Accept       []netip.Prefix // a received route is accepted if one of these contains it; sorted. Empty: nothing is
	MaxPrefixes  uint32         // of a family, accepted. 0: no limit
}

// SessionState is a state of RFC 4271 §8.2.2, by its usual name.
type SessionState string

// The states of a session.
const (
	StateIdle        SessionState = "Idle"
	StateConnect     SessionState = "Connect"
	StateActive      SessionState = "Active"
	StateOpenSent    SessionState = "OpenSent"
	StateOpenConfirm SessionState = "OpenConfirm"
	StateEstablished SessionState = "Established"
	// StateHeld is ours: Peer.Held forbids the session.
	StateHeld SessionState = "Held"
)

// BFDState is a state of RFC 5880 §6.2. It is empty without BFD.
type BFDState string

// The states of a BFD session.
const (
	BFDAdminDown BFDState = "AdminDown"
	BFDDown      BFDState = "Down"
	BFDInit      BFDState = "Init"
	BFDUp        BFDState = "Up"
)

// Session is the state of one peer.
type Session struct {
	Peer        string // Peer.Name
	Kind        PeerKind
	Address     netip.Addr
	ASN         uint32
	State       SessionState
	Since       time.Time // of the last change between Established and not
	Flaps       int64     // how often it left Established since the speaker started
	LastError   string    // why it last went down: "sent Cease/admin shutdown", "hold timer expired", "connection refused", ...
	PrefixesIn  int64     // accepted
	PrefixesOut int64
	Rejected    int64 // received and refused by Accept, or by AS_PATH loop
	BFD         BFDState
	BFDSince    time.Time // of its last change
	// EndOfRIB lists the families whose initial update is complete (RFC 4724 §2).
	EndOfRIB []Family
}

// Path is one usable route that one peer sent for a prefix.
type Path struct {
	Prefix  netip.Prefix
	NextHop netip.Addr // global, never link-local alone
	Peer    netip.Addr // Address of the peer that sent it
	Kind    PeerKind
	// ASPathLen is the length of the AS_PATH as the decision process counts it (RFC 4271 §9.1.2.2).
	ASPathLen int
	// Originator is the router ID of who brought a reflected route in, and Clusters the reflectors that
	// passed it on, the last one first, with spaces between (RFC 4456 §8). Empty without reflection.
	Originator netip.Addr
	Clusters   string
	Stale      bool // kept for a restarting peer (RFC 4724 §4.2)
}

// Snapshot is what the speaker is and knows. It is immutable.
type Snapshot struct {
	Running  bool
	Sessions []Session // sorted by Address
	Paths    []Path    // all accepted paths of all peers, sorted by Prefix, then Kind, NextHop, Peer
}
