// SPDX-License-Identifier: Apache-2.0

// Package topology decides which BGP sessions one node should have: with every other node (the
// mesh) or with reflectors, and with the routers that BGPPeers name. And it chooses the reflectors. It is
// pure: nodes and BGP objects in, sessions out.
package topology

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/labels"
)

// Defaults of what a BGPConfiguration may leave out.
const (
	DefaultASN          = 64512
	DefaultPort         = v1alpha1.DefaultBGPPort
	DefaultHoldTime     = 90 * time.Second
	DefaultConnectRetry = 5 * time.Second
	DefaultRestartTime  = 120 * time.Second

	DefaultBFDInterval   = 300 * time.Millisecond
	DefaultBFDMultiplier = 3
)

// Node is a node as a BGP speaker.
type Node struct {
	Name   string
	Labels map[string]string
	IPv4   netip.Addr // may be invalid
	IPv6   netip.Addr // may be invalid
}

// Input is all that the sessions of one node follow from.
type Input struct {
	Self    string
	Nodes   []Node
	Config  v1alpha1.BGPConfigurationSpec
	Peers   []v1alpha1.BGPPeer
	Pools   []netip.Prefix               // what may be accepted from anybody
	Secrets map[string]map[string][]byte // by name in heliograph's namespace
	Subnets []netip.Prefix               // of this node's links: BFD reaches no further
	// Reflection is what the controller chose; nil: it has not yet.
	Reflection *v1alpha1.RouteReflectionStatus
	Blocks     []Block // of all nodes: what reflectors take from each
}

// Block is a block of addresses and the node that has it.
type Block struct {
	Node   string
	Prefix netip.Prefix
}

// Problem is an object that could not be obeyed in full.
type Problem struct {
	Object string
	Reason string
}

// Output is the sessions of one node. Origins are left to the caller.
type Output struct {
	Global bgp.Global
	Peers  []bgp.Peer // sorted by Address
	// Reflection is the node's part in route reflection.
	Reflection bgp.Reflection
	Problems   []Problem
}

// Compute decides the sessions of in.Self. While the API does not know that node, there are none.
func Compute(in Input) Output {
	i := slices.IndexFunc(in.Nodes, func(n Node) bool { return n.Name == in.Self })
	if i < 0 {
		return Output{}
	}
	b := builder{Input: in, self: in.Nodes[i], seen: map[netip.Addr]string{}}
	b.out.Global = bgp.Global{ASN: b.asn(), RouterID: routerID(b.self), Port: port(in.Config.ListenPort)}
	b.pools = slices.SortedFunc(slices.Values(in.Pools), netip.Prefix.Compare)
	if meshEnabled(in.Config) && (in.Reflection == nil || in.Reflection.Mesh) {
		b.mesh()
	}
	b.reflect()
	peers := slices.Clone(in.Peers)
	slices.SortFunc(peers, func(x, y v1alpha1.BGPPeer) int { return cmp.Compare(x.Name, y.Name) })
	for _, p := range peers {
		b.fabric(p)
	}
	slices.SortFunc(b.out.Peers, func(x, y bgp.Peer) int { return x.Address.Compare(y.Address) })
	return b.out
}

// Selects says whether a BGPPeer wants the node to peer.
func Selects(spec v1alpha1.BGPPeerSpec, node string, nodeLabels map[string]string) (bool, error) {
	if spec.Node != "" {
		return spec.Node == node, nil
	}
	sel, err := labels.Parse(spec.NodeSelector)
	if err != nil {
		return false, fmt.Errorf("nodeSelector: %w", err)
	}
	return sel.Matches(nodeLabels), nil
}

type builder struct {
	Input
	self  Node
	pools []netip.Prefix
	seen  map[netip.Addr]string // address → name of the session that has it
	out   Output
}

func (b *builder) asn() uint32 {
	if b.Config.ASNumber == nil {
		return DefaultASN
	}
	return uint32(*b.Config.ASNumber) //nolint:gosec // 1 to 2^32-2 by validation
}

func meshEnabled(c v1alpha1.BGPConfigurationSpec) bool {
	return c.NodeToNodeMeshEnabled == nil || *c.NodeToNodeMeshEnabled
}

// between are the addresses of the one session between this node and another: IPv4 where both have it.
func (b *builder) between(n Node) (local, remote netip.Addr, ok bool) {
	local, remote = b.self.IPv4, n.IPv4
	if !local.IsValid() || !remote.IsValid() {
		local, remote = b.self.IPv6, n.IPv6
	}
	return local, remote, local.IsValid() && remote.IsValid()
}

// mesh peers with every other node.
func (b *builder) mesh() {
	password, held := b.password(b.Config.NodeMeshPassword)
	for _, n := range b.Nodes {
		if n.Name == b.self.Name {
			continue
		}
		local, remote, ok := b.between(n)
		if !ok {
			b.problem("Node "+n.Name, "shares no address family with this node")
			continue
		}
		b.add(bgp.Peer{
			Name: "node/" + n.Name, Kind: bgp.PeerNode,
			Address: remote, Port: port(b.Config.ListenPort), LocalAddress: local, ASN: b.asn(),
			Password: password, Held: held, Timers: timers(b.Config.BGPTimers, v1alpha1.BGPTimers{}),
			GracefulRestart: restart(b.Config.GracefulRestart, nil),
			BFD:             b.meshBFD(remote),
			Families:        b.families(n), Accept: b.pools,
		})
	}
}

func (b *builder) fabric(p v1alpha1.BGPPeer) {
	object := "BGPPeer " + p.Name
	selected, err := Selects(p.Spec, b.self.Name, b.self.Labels)
	if err != nil {
		b.problem(object, err.Error())
	}
	if !selected || p.Spec.ReflectorClient {
		return
	}
	addr, err := netip.ParseAddr(p.Spec.PeerIP)
	if err != nil {
		b.problem(object, fmt.Sprintf("peerIP: %v", err))
		return
	}
	accept, err := acceptPrefixes(b.pools, p.Spec.AcceptPrefixes)
	if err != nil {
		b.problem(object, err.Error())
	}
	password, held := b.password(p.Spec.Password)
	if held != "" {
		b.problem(object, held)
	}
	b.add(bgp.Peer{
		Name: "peer/" + p.Name, Kind: bgp.PeerFabric,
		Address: addr.Unmap(), Port: port(p.Spec.Port),
		ASN:      uint32(p.Spec.ASNumber), //nolint:gosec // 1 to 2^32-2 by validation
		Password: password, Held: held,
		Timers:          timers(p.Spec.BGPTimers, b.Config.BGPTimers),
		EBGPMultihop:    uint8Of(p.Spec.EBGPMultihop),
		AllowOwnASN:     uint8Of(p.Spec.NumAllowedLocalASNumbers),
		GracefulRestart: restart(p.Spec.GracefulRestart, b.Config.GracefulRestart),
		BFD:             b.fabricBFD(object, p.Spec, addr.Unmap()),
		Families:        b.families(b.self), Accept: accept,
	})
}

// meshBFD is BFD with another node. Between subnets there is none: GoBGP speaks it over one hop only,
// and a mesh spans subnets by its nature, so that is no problem to report.
func (b *builder) meshBFD(remote netip.Addr) bgp.BFD {
	if !b.onLink(remote) {
		return bgp.BFD{}
	}
	return bfd(nil, b.Config.BFD)
}

// fabricBFD is BFD with a router. What the BGPPeer itself asks for and cannot have is a problem; a
// default of the BGPConfiguration is only meant for those that can.
func (b *builder) fabricBFD(object string, spec v1alpha1.BGPPeerSpec, remote netip.Addr) bgp.BFD {
	wanted := bfd(spec.BFD, b.Config.BFD)
	if !wanted.Enabled {
		return bgp.BFD{}
	}
	why := ""
	switch {
	case uint8Of(spec.EBGPMultihop) > 1:
		why = "bfd: not with ebgpMultihop: BFD works over one hop only"
	case !b.onLink(remote):
		why = fmt.Sprintf("bfd: %s is in no subnet of node %s: BFD works over one hop only", remote, b.self.Name)
	default:
		return wanted
	}
	if spec.BFD != nil && spec.BFD.Enabled != nil && *spec.BFD.Enabled {
		b.problem(object, why)
	}
	return bgp.BFD{}
}

func (b *builder) onLink(a netip.Addr) bool {
	return slices.ContainsFunc(b.Subnets, func(s netip.Prefix) bool { return s.Contains(a) })
}

// add keeps the first session of each address: nodes before routers, then by name.
func (b *builder) add(p bgp.Peer) {
	if other, taken := b.seen[p.Address]; taken {
		b.problem(p.Name, fmt.Sprintf("address %s is that of %s already", p.Address, other))
		return
	}
	if p.Address == b.self.IPv4 || p.Address == b.self.IPv6 {
		b.problem(p.Name, fmt.Sprintf("address %s is this node's own", p.Address))
		return
	}
	b.seen[p.Address] = p.Name
	b.out.Peers = append(b.out.Peers, p)
}

// families are those that this node and the other side both have an address of: what is needed for
// a next hop that both can resolve.
func (b *builder) families(other Node) []bgp.Family {
	var f []bgp.Family
	if b.self.IPv4.IsValid() && other.IPv4.IsValid() {
		f = append(f, bgp.IPv4)
	}
	if b.self.IPv6.IsValid() && other.IPv6.IsValid() {
		f = append(f, bgp.IPv6)
	}
	return f
}

// password resolves a reference. What is missing holds the session down: peering without the
// password that somebody asked for would be worse.
func (b *builder) password(ref *v1alpha1.BGPPassword) (p bgp.Password, held string) {
	if ref == nil {
		return "", ""
	}
	secret, ok := b.Secrets[ref.SecretKeyRef.Name]
	if !ok {
		return "", fmt.Sprintf("Secret %s is missing", ref.SecretKeyRef.Name)
	}
	value := secret[ref.SecretKeyRef.Key]
	if len(value) == 0 {
		return "", fmt.Sprintf("Secret %s has no key %s, or it is empty", ref.SecretKeyRef.Name, ref.SecretKeyRef.Key)
	}
	return bgp.Password(value), ""
}

func (b *builder) problem(object, reason string) {
	b.out.Problems = append(b.out.Problems, Problem{Object: object, Reason: reason})
}

func acceptPrefixes(pools []netip.Prefix, more []string) ([]netip.Prefix, error) {
	all := slices.Clone(pools)
	for _, s := range more {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return pools, fmt.Errorf("acceptPrefixes: %w", err)
		}
		all = append(all, p.Masked())
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return slices.Compact(all), nil
}

// routerID is the IPv4 address, or without one 32 bits of a hash of the name, since it only needs
// to be unique within the AS (RFC 6286 §2.1).
func routerID(n Node) netip.Addr {
	if n.IPv4.IsValid() {
		return n.IPv4
	}
	sum := sha256.Sum256([]byte(n.Name))
	var id [4]byte
	binary.BigEndian.PutUint32(id[:], max(1, binary.BigEndian.Uint32(sum[:])))
	return netip.AddrFrom4(id)
}

func port(p *int32) uint16 {
	if p == nil {
		return DefaultPort
	}
	return uint16(*p) //nolint:gosec // 1 to 65535 by validation
}

func uint8Of(n *int32) uint8 {
	if n == nil {
		return 0
	}
	return uint8(*n) //nolint:gosec // at most 255 by validation
}

// timers takes each timer from the first that sets it. A hold time that somebody sets without a
// keepalive time gets a third of it (RFC 4271 §10).
func timers(own, common v1alpha1.BGPTimers) bgp.Timers {
	t := bgp.Timers{Hold: DefaultHoldTime, ConnectRetry: DefaultConnectRetry}
	for _, layer := range []v1alpha1.BGPTimers{common, own} {
		if layer.HoldTime != nil {
			t.Hold, t.Keepalive = layer.HoldTime.Duration, 0
		}
		if layer.KeepaliveTime != nil {
			t.Keepalive = layer.KeepaliveTime.Duration
		}
		if layer.ConnectRetryTime != nil {
			t.ConnectRetry = layer.ConnectRetryTime.Duration
		}
	}
	if t.Keepalive == 0 || t.Keepalive >= t.Hold {
		t.Keepalive = max(time.Second, t.Hold/3)
	}
	return t
}

func restart(own, common *v1alpha1.GracefulRestart) bgp.GracefulRestart {
	gr := bgp.GracefulRestart{Enabled: true, RestartTime: DefaultRestartTime}
	for _, layer := range []*v1alpha1.GracefulRestart{common, own} {
		if layer == nil {
			continue
		}
		if layer.Enabled != nil {
			gr.Enabled = *layer.Enabled
		}
		if layer.RestartTime != nil {
			gr.RestartTime = layer.RestartTime.Duration.Truncate(time.Second)
		}
	}
	return gr
}

// bfd takes each field from the first that sets it. It is the zero BFD unless enabled.
func bfd(own, common *v1alpha1.BFD) bgp.BFD {
	b := bgp.BFD{TransmitInterval: DefaultBFDInterval, ReceiveInterval: DefaultBFDInterval, DetectMultiplier: DefaultBFDMultiplier}
	for _, layer := range []*v1alpha1.BFD{common, own} {
		if layer == nil {
			continue
		}
		if layer.Enabled != nil {
			b.Enabled = *layer.Enabled
		}
		if layer.TransmitInterval != nil {
			b.TransmitInterval = layer.TransmitInterval.Duration
		}
		if layer.ReceiveInterval != nil {
			b.ReceiveInterval = layer.ReceiveInterval.Duration
		}
		if layer.DetectMultiplier != nil {
			b.DetectMultiplier = uint8Of(layer.DetectMultiplier)
		}
	}
	if !b.Enabled {
		return bgp.BFD{}
	}
	return b
}
