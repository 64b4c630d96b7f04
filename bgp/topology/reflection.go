// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/labels"
)

// Defaults of what a RouteReflection may leave out.
const (
	DefaultReflectorPort = v1alpha1.DefaultReflectorPort
	DefaultMeshThreshold = 50
	DefaultReflectors    = 3
	DefaultTopologyKey   = "topology.kubernetes.io/zone"

	// maxRouterPrefixes is what a router that is a client of the reflectors may send of a family.
	maxRouterPrefixes = 10_000
)

// hierarchy says who reflects for whom. Node labels can change at any time, and users can ask for loops:
// it is made anew from what stands in the API, and is the same on all nodes and in the controller.
type hierarchy struct {
	reflectors []reflectorNode // by name
	clusters   []cluster       // in the order of the spec
	problems   []string
}

// reflectorNode is a node that reflects.
type reflectorNode struct {
	Node
	cluster  string     // its ID of mode Manual; empty: it serves all
	routerID netip.Addr // not that of the node's speaker
	above    string     // the cluster that it is a client of; empty: it is at the top
}

type cluster struct {
	id      string
	all     bool // no clientSelector: all nodes but reflectors
	none    bool // one that cannot be read
	clients labels.Selector
}

// names says whether the clientSelector, if there is one, selects the node.
func (c cluster) names(n Node) bool { return !c.all && !c.none && c.clients.Matches(n.Labels) }

// newHierarchy resolves the reflectors that the controller names. Those whose node is gone are left out.
func newHierarchy(spec *v1alpha1.RouteReflection, reflectors []v1alpha1.Reflector, node func(name string) (Node, bool)) *hierarchy {
	h := &hierarchy{}
	if spec != nil {
		for i, c := range spec.Clusters {
			sel, err := labels.Parse(c.ClientSelector)
			if err != nil {
				h.problem("routeReflection.clusters[%d].clientSelector: %v; it selects no node", i, err)
			}
			h.clusters = append(h.clusters, cluster{id: c.ClusterID, all: c.ClientSelector == "", none: err != nil, clients: sel})
		}
	}
	for _, r := range reflectors {
		if n, ok := node(r.Node); ok {
			h.reflectors = append(h.reflectors, reflectorNode{Node: n, cluster: h.known(r.ClusterID)})
		}
	}
	slices.SortFunc(h.reflectors, func(a, b reflectorNode) int { return cmp.Compare(a.Name, b.Name) })
	h.nameRouters()
	h.stack()
	return h
}

func (h *hierarchy) problem(format string, args ...any) {
	h.problems = append(h.problems, fmt.Sprintf(format, args...))
}

// known is the ID, or nothing for one that the spec no longer has: until the controller has replaced them,
// such reflectors serve all.
func (h *hierarchy) known(id string) string {
	if slices.ContainsFunc(h.clusters, func(c cluster) bool { return c.id == id }) {
		return id
	}
	return ""
}

// nameRouters gives reflectors identifiers of 240.0.0.0/4, where no address of a node can be: a BGP
// Identifier only has to be unique within the AS (RFC 6286 §2.1).
func (h *hierarchy) nameRouters() {
	used := map[netip.Addr]bool{}
	for i := range h.reflectors {
		r := &h.reflectors[i]
		for salt := 0; !r.routerID.IsValid() || used[r.routerID]; salt++ {
			sum := sha256.Sum256(fmt.Appendf(nil, "reflector/%s/%d", r.Name, salt))
			var id [4]byte
			binary.BigEndian.PutUint32(id[:], 0xf0000000|binary.BigEndian.Uint32(sum[:])>>4)
			id[3] &^= 1 // never 255.255.255.255
			r.routerID = netip.AddrFrom4(id)
		}
		used[r.routerID] = true
	}
}

// stack finds the reflectors that are clients of another cluster's. There are two levels: whoever would
// make a third, or a loop, stays at the top, where all are meshed.
func (h *hierarchy) stack() {
	lower := map[string]bool{} // clusters with a reflector that wants to be a client
	above := make([]string, len(h.reflectors))
	for i, r := range h.reflectors {
		for _, c := range h.clusters {
			if r.cluster != "" && c.id != r.cluster && c.names(r.Node) {
				above[i], lower[r.cluster] = c.id, true
				break
			}
		}
	}
	for i := range h.reflectors {
		r := &h.reflectors[i]
		switch {
		case above[i] == "":
		case lower[above[i]]:
			h.problem("routeReflection.clusters: reflector %s of cluster %s cannot be a client of cluster %s, whose reflectors are clients themselves: it is meshed with the others", r.Name, r.cluster, above[i])
		default:
			r.above = above[i]
		}
	}
}

// reflector returns the reflector on a node.
func (h *hierarchy) reflector(name string) (reflectorNode, bool) {
	i, ok := slices.BinarySearchFunc(h.reflectors, name, func(r reflectorNode, n string) int { return cmp.Compare(r.Name, n) })
	if !ok {
		return reflectorNode{}, false
	}
	return h.reflectors[i], true
}

// clusterOf is the cluster that a node's speaker is a client of: that of its own reflector, or else the
// first that selects it. Empty: none.
func (h *hierarchy) clusterOf(n Node) string {
	if r, ok := h.reflector(n.Name); ok && r.cluster != "" {
		return r.cluster
	}
	for _, c := range h.clusters {
		if c.all || c.names(n) {
			return c.id
		}
	}
	return ""
}

// serves says whether a node's speaker is a client of the reflector.
func (h *hierarchy) serves(r reflectorNode, n Node) bool {
	return r.cluster == "" || r.cluster == h.clusterOf(n)
}

// bond is how one reflector sees another.
type bond struct {
	client bool // the other is our client
	dial   bool // we connect
}

// bond says how a reflector peers with another one, if it does. Of two at the top the one with the lesser
// name connects, and a client connects to those above it.
func (h *hierarchy) bond(own, other reflectorNode) (bond, bool) {
	switch {
	case own.above == "" && other.above == "":
		return bond{dial: own.Name < other.Name}, true
	case own.above != "" && own.above == other.cluster:
		return bond{dial: true}, true
	case other.above != "" && other.above == own.cluster:
		return bond{client: true}, true
	}
	return bond{}, false
}

// reflect computes this node's part in route reflection.
func (b *builder) reflect() {
	if b.Reflection == nil || len(b.Reflection.Reflectors) == 0 {
		return
	}
	byName := make(map[string]Node, len(b.Nodes))
	for _, n := range b.Nodes {
		byName[n.Name] = n
	}
	h := newHierarchy(b.Config.RouteReflection, b.Reflection.Reflectors, func(name string) (Node, bool) { n, ok := byName[name]; return n, ok })
	for _, p := range h.problems {
		b.problem("BGPConfiguration "+v1alpha1.DefaultName, p)
	}
	common := b.reflected()
	password, held := b.password(b.Config.NodeMeshPassword)
	for _, r := range h.reflectors {
		local, remote, ok := b.between(r.Node)
		if !ok || !h.serves(r, b.self) {
			continue
		}
		b.out.Reflection.Reflectors = append(b.out.Reflection.Reflectors, bgp.Peer{
			Name: "reflector/" + r.Name, Kind: bgp.PeerReflector,
			Address: remote, Port: b.reflectorPort(), LocalAddress: local, ASN: b.asn(),
			Password: password, Held: held, Timers: timers(b.Config.BGPTimers, v1alpha1.BGPTimers{}),
			GracefulRestart: restart(b.Config.GracefulRestart, nil), Families: b.families(r.Node), Accept: common,
		})
	}
	slices.SortFunc(b.out.Reflection.Reflectors, func(x, y bgp.Peer) int { return x.Address.Compare(y.Address) })
	if own, ok := h.reflector(b.self.Name); ok {
		b.out.Reflection.Reflector = b.reflector(h, own, common)
	}
}

// reflected are the prefixes that may come by reflectors: those of pools, and what routers that are their
// clients may announce.
func (b *builder) reflected() []netip.Prefix {
	var more []string
	for _, p := range b.Peers {
		if p.Spec.ReflectorClient {
			more = append(more, p.Spec.AcceptPrefixes...)
		}
	}
	all, _ := acceptPrefixes(b.pools, more) // who has the router for a client tells what is wrong
	return all
}

func (b *builder) reflectorPort() uint16 {
	if r := b.Config.RouteReflection; r != nil && r.Port != nil {
		return port(r.Port)
	}
	return DefaultReflectorPort
}

// reflector is what this node's reflector should be.
func (b *builder) reflector(h *hierarchy, own reflectorNode, common []netip.Prefix) bgp.Reflector {
	out := bgp.Reflector{
		ASN: b.asn(), RouterID: own.routerID, ClusterID: own.routerID, GracefulRestart: restart(b.Config.GracefulRestart, nil),
	}
	if id, err := netip.ParseAddr(own.cluster); err == nil {
		out.ClusterID = id
	}
	for _, a := range []netip.Addr{b.self.IPv4, b.self.IPv6} {
		if a.IsValid() {
			out.Listen = append(out.Listen, netip.AddrPortFrom(a, b.reflectorPort()))
		}
	}
	password, held := b.password(b.Config.NodeMeshPassword)
	base := bgp.ReflectorPeer{Password: password, Held: held, Timers: timers(b.Config.BGPTimers, v1alpha1.BGPTimers{})}
	taken := b.clients(h, own, base, &out)
	b.fellows(h, own, base, common, &out)
	b.routers(taken, &out)
	slices.SortFunc(out.Peers, func(x, y bgp.ReflectorPeer) int { return cmp.Compare(x.Name, y.Name) })
	return out
}

// clients are the speakers of nodes, each of which may announce its own blocks and nothing else.
func (b *builder) clients(h *hierarchy, own reflectorNode, base bgp.ReflectorPeer, out *bgp.Reflector) (taken map[netip.Addr]string) {
	blocks := make(map[string][]netip.Prefix, len(b.Nodes))
	for _, block := range b.Blocks {
		blocks[block.Node] = append(blocks[block.Node], block.Prefix)
	}
	taken = make(map[netip.Addr]string, len(b.Nodes))
	for _, n := range b.Nodes {
		taken[n.IPv4], taken[n.IPv6] = "node "+n.Name, "node "+n.Name
		_, remote, ok := b.between(n)
		if !ok || !h.serves(own, n) {
			continue
		}
		p := base
		p.Name, p.Kind, p.Client = "client/"+n.Name, bgp.PeerNode, true
		p.Address, p.RouterID, p.Families, p.Accept = remote, routerID(n), b.families(n), blocks[n.Name]
		slices.SortFunc(p.Accept, netip.Prefix.Compare)
		out.Peers = append(out.Peers, p)
	}
	return taken
}

// fellows are the other reflectors.
func (b *builder) fellows(h *hierarchy, own reflectorNode, base bgp.ReflectorPeer, common []netip.Prefix, out *bgp.Reflector) {
	for _, r := range h.reflectors {
		bond, bound := h.bond(own, r)
		local, remote, ok := b.between(r.Node)
		if r.Name == own.Name || !bound || !ok {
			continue
		}
		p := base
		p.Name, p.Kind, p.Client = "reflector/"+r.Name, bgp.PeerReflector, bond.client
		p.Address, p.RouterID, p.Families, p.Accept = remote, r.routerID, b.families(r.Node), common
		if bond.dial {
			p.Port, p.LocalAddress = b.reflectorPort(), local
		}
		out.Peers = append(out.Peers, p)
	}
}

// routers are clients outside of the cluster.
func (b *builder) routers(taken map[netip.Addr]string, out *bgp.Reflector) {
	peers := slices.Clone(b.Peers)
	slices.SortFunc(peers, func(x, y v1alpha1.BGPPeer) int { return cmp.Compare(x.Name, y.Name) })
	for _, p := range peers {
		object := "BGPPeer " + p.Name
		selected, err := Selects(p.Spec, b.self.Name, b.self.Labels)
		if !p.Spec.ReflectorClient || !selected || err != nil {
			continue // a selector that cannot be read has been told of by fabric
		}
		addr, err := netip.ParseAddr(p.Spec.PeerIP)
		if err != nil {
			b.problem(object, fmt.Sprintf("peerIP: %v", err))
			continue
		}
		addr = addr.Unmap()
		if other, ok := taken[addr]; ok {
			b.problem(object, fmt.Sprintf("peerIP %s is that of %s already", addr, other))
			continue
		}
		if uint32(p.Spec.ASNumber) != b.asn() { //nolint:gosec // 1 to 2^32-2 by validation
			b.problem(object, fmt.Sprintf("asNumber: %d is not the cluster's %d: a client of reflectors is an iBGP peer (RFC 4456)", p.Spec.ASNumber, b.asn()))
			continue
		}
		accept, err := acceptPrefixes(nil, p.Spec.AcceptPrefixes)
		if err != nil {
			b.problem(object, err.Error())
		}
		password, held := b.password(p.Spec.Password)
		if held != "" {
			b.problem(object, held)
		}
		taken[addr] = object
		out.Peers = append(out.Peers, bgp.ReflectorPeer{
			Name: "peer/" + p.Name, Kind: bgp.PeerFabric, Client: true, Address: addr, Port: port(p.Spec.Port),
			Password: password, Held: held, Timers: timers(p.Spec.BGPTimers, b.Config.BGPTimers),
			Families: b.families(b.self), Accept: accept, MaxPrefixes: maxRouterPrefixes,
		})
	}
}
