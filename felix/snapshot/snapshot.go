// SPDX-License-Identifier: Apache-2.0

// Package snapshot turns what users wrote and what this node is into one immutable View, the only
// input of felix/calc. It parses and resolves defaults; bad objects are left out, each with a
// Problem that names it, so that one of them never stops the rest. It does no I/O.
package snapshot

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/path"
)

// Objects is what the API server says, as far as an agent needs it. It is kept on disk, so that an
// agent can start without an API server.
type Objects struct {
	Nodes   []corev1.Node                 `json:"nodes"` // trimmed: name, labels, addresses
	Pools   []v1alpha1.IPPool             `json:"pools"`
	Blocks  []v1alpha1.IPBlock            `json:"blocks"`
	BGP     []v1alpha1.BGPConfiguration   `json:"bgpConfigurations"`
	Peers   []v1alpha1.BGPPeer            `json:"bgpPeers"`
	Felix   []v1alpha1.FelixConfiguration `json:"felixConfigurations"`
	Secrets map[string]map[string][]byte  `json:"secrets"` // by name in our namespace, only those referred to
}

// Local is what this node knows of itself, from the kernel and its own stores.
type Local struct {
	NodeName  string
	Links     []OnLink   // every subnet that a device of the node is attached to
	Workloads []Workload // the pods of this node
	OwnBlocks []Block    // blocks that hold addresses of this node's pods, whether the API still knows them or not
	BGP       bgp.Snapshot
	// ForeignIPIP are the remote ends of IPIP tunnels of others on this node.
	ForeignIPIP []netip.Addr
	// Adopted are native next hops that the kernel held when this process started. They count as
	// BGP paths until Settled.
	Adopted map[netip.Prefix][]Hop
	Settled bool // BGP has said all it had to say since the start
	// AdoptedMethods are how the kernel reached remote blocks when this process started.
	AdoptedMethods map[netip.Prefix]path.Method
	Capabilities   Capabilities
	Probes         map[path.Key]path.Report
	// Restarting says that this node forwarded for an earlier agent until just now.
	Restarting bool
}

// Capabilities are what this node's kernel was seen to do, and for each lacking one why not.
type Capabilities struct {
	Can path.Capabilities
	Why map[path.Capabilities]string
}

// OnLink is a subnet on a device.
type OnLink struct {
	Device string
	MTU    int
	Addr   netip.Addr // the node's own
	Subnet netip.Prefix
	// StrictRPF says that the device drops what comes in from where the answer would not leave to
	// (RFC 3704): rp_filter is 1, on the device or on all.
	StrictRPF bool
}

// Hop is a gateway on a device.
type Hop struct {
	Gateway netip.Addr
	Device  string
}

// Workload is a pod's attachment on this node.
type Workload struct {
	Device string
	IPs    []netip.Addr
}

// Node is a node of the cluster.
type Node struct {
	Name   string
	Labels map[string]string
	IPv4   netip.Addr // may be invalid
	IPv6   netip.Addr // may be invalid
	Ready  bool       // kubelet says so, and the API server believes it
}

// IP returns the node's address of a family; invalid if it has none.
func (n Node) IP(f bgp.Family) netip.Addr {
	if f == bgp.IPv6 {
		return n.IPv6
	}
	return n.IPv4
}

// Pool is a parsed IPPool.
type Pool struct {
	Name             string
	CIDR             netip.Prefix
	Encapsulation    v1alpha1.Encapsulation
	NATOutgoing      bool
	Disabled         bool
	DisableBGPExport bool
}

// Block is a parsed IPBlock.
type Block struct {
	Name      string
	CIDR      netip.Prefix
	Pool      string
	Node      string
	Primary   bool
	Releasing bool
}

// Felix is the dataplane configuration of this node, with defaults resolved.
type Felix struct {
	MTU             int // 0: from the uplink
	VXLANPort       uint16
	VXLANVNI        uint32
	ProbePort       uint16
	RefreshInterval time.Duration
	IPAMCooldown    time.Duration
	Dataplane       string // of policy: v1alpha1.DataplaneAuto and so on
	// FailsafeInbound and FailsafeOutbound are as users wrote them; nil: the defaults, which policy has.
	FailsafeInbound, FailsafeOutbound *[]v1alpha1.ProtoPort
	DNSServers                        []string
}

// DefaultDNSServer is who is believed about names of domains.
const DefaultDNSServer = "k8s-service:kube-system/kube-dns"

// Defaults of Felix (RFC 7348 for the port).
const (
	DefaultVXLANPort       = v1alpha1.DefaultVXLANPort
	DefaultVXLANVNI        = 4096
	DefaultProbePort       = v1alpha1.DefaultProbePort
	DefaultRefreshInterval = 90 * time.Second
	DefaultIPAMCooldown    = 30 * time.Second
)

// View is the parsed input of one computation. Everything in it is sorted.
type View struct {
	Local
	Self   Node // zero if the API does not know this node yet
	Nodes  []Node
	Pools  []Pool
	Blocks []Block
	Felix  Felix
	// BGPConfig and BGPPeers are left as users wrote them: bgp/topology resolves them.
	BGPConfig v1alpha1.BGPConfigurationSpec
	// Reflection is the controller's choice of reflectors; nil: it has not chosen.
	Reflection *v1alpha1.RouteReflectionStatus
	BGPPeers   []v1alpha1.BGPPeer
	Secrets    map[string]map[string][]byte
	Problems   []Problem
}

// Problem is an object that is not obeyed, and why.
type Problem struct {
	Object string // "IPPool default-ipv4"
	Reason string
}

// String is one line for status and logs.
func (p Problem) String() string { return p.Object + ": " + p.Reason }

// Build parses objects into a View.
func Build(o Objects, l Local) View {
	v := View{
		Local: l, Secrets: o.Secrets,
		Nodes: make([]Node, 0, len(o.Nodes)), Blocks: make([]Block, 0, len(o.Blocks)),
	}
	for _, n := range o.Nodes {
		v.Nodes = append(v.Nodes, v.node(n))
	}
	for _, p := range o.Pools {
		v.addPool(p)
	}
	for _, b := range o.Blocks {
		v.addBlock(b)
	}
	v.BGPPeers = slices.Clone(o.Peers)
	for _, c := range o.BGP {
		if c.Name == v1alpha1.DefaultName {
			v.BGPConfig, v.Reflection = c.Spec, c.Status.RouteReflection
		}
	}
	v.Felix = felixOf(o.Felix, l.NodeName)
	v.sort()
	if i, ok := slices.BinarySearchFunc(v.Nodes, l.NodeName, func(n Node, name string) int { return cmp.Compare(n.Name, name) }); ok {
		v.Self = v.Nodes[i]
	}
	return v
}

// node takes the first InternalIP of each family, as kubelet reports them.
func (v *View) node(n corev1.Node) Node {
	out := Node{Name: n.Name, Labels: n.Labels}
	for _, c := range n.Status.Conditions {
		out.Ready = out.Ready || c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	}
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		ip, err := netip.ParseAddr(a.Address)
		switch ip = ip.Unmap(); {
		case err != nil:
			v.problem("Node", n.Name, "address %q: %v", a.Address, err)
		case ip.Is4() && !out.IPv4.IsValid():
			out.IPv4 = ip
		case ip.Is6() && !out.IPv6.IsValid():
			out.IPv6 = ip
		}
	}
	return out
}

func (v *View) addPool(p v1alpha1.IPPool) {
	cidr, err := netip.ParsePrefix(p.Spec.CIDR)
	if err != nil || cidr != cidr.Masked() {
		v.problem("IPPool", p.Name, "cidr %q is not a network", p.Spec.CIDR)
		return
	}
	enc := p.Spec.Encapsulation
	if enc == "" {
		enc = v1alpha1.EncapsulationAuto
	}
	v.Pools = append(v.Pools, Pool{
		Name: p.Name, CIDR: cidr, Encapsulation: enc, NATOutgoing: p.Spec.NATOutgoing,
		Disabled: p.Spec.Disabled, DisableBGPExport: p.Spec.DisableBGPExport,
	})
}

func (v *View) addBlock(b v1alpha1.IPBlock) {
	cidr, err := netip.ParsePrefix(b.Spec.CIDR)
	if err != nil || cidr != cidr.Masked() {
		v.problem("IPBlock", b.Name, "cidr %q is not a network", b.Spec.CIDR)
		return
	}
	v.Blocks = append(v.Blocks, Block{
		Name: b.Name, CIDR: cidr, Pool: b.Spec.Pool, Node: b.Spec.Node,
		Primary: b.Spec.Primary, Releasing: b.Spec.Releasing,
	})
}

func (v *View) sort() {
	slices.SortFunc(v.Nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(v.Pools, func(a, b Pool) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(v.Blocks, func(a, b Block) int { return a.CIDR.Compare(b.CIDR) })
	slices.SortFunc(v.BGPPeers, func(a, b v1alpha1.BGPPeer) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(v.Workloads, func(a, b Workload) int { return strings.Compare(a.Device, b.Device) })
}

func (v *View) problem(kind, name, format string, args ...any) {
	v.Problems = append(v.Problems, Problem{Object: kind + " " + name, Reason: fmt.Sprintf(format, args...)})
}

// PoolNamed finds a pool by name.
func (v *View) PoolNamed(name string) (Pool, bool) {
	i, ok := slices.BinarySearchFunc(v.Pools, name, func(p Pool, n string) int { return strings.Compare(p.Name, n) })
	if !ok {
		return Pool{}, false
	}
	return v.Pools[i], true
}

// felixOf lays the node's own FelixConfiguration over the default one, field by field.
func felixOf(configs []v1alpha1.FelixConfiguration, node string) Felix {
	f := Felix{
		VXLANPort: DefaultVXLANPort, VXLANVNI: DefaultVXLANVNI, ProbePort: DefaultProbePort,
		RefreshInterval: DefaultRefreshInterval, IPAMCooldown: DefaultIPAMCooldown, Dataplane: string(v1alpha1.DataplaneAuto),
		DNSServers: []string{DefaultDNSServer},
	}
	for _, name := range []string{v1alpha1.DefaultName, v1alpha1.NodeNamePrefix + node} {
		for _, c := range configs {
			if c.Name == name {
				f.lay(c.Spec)
			}
		}
	}
	return f
}

func (f *Felix) lay(s v1alpha1.FelixConfigurationSpec) {
	if s.MTU != nil {
		f.MTU = int(*s.MTU)
	}
	if s.VXLANPort != nil {
		f.VXLANPort = uint16(*s.VXLANPort) //nolint:gosec // 1 to 65535 by validation
	}
	if s.VXLANVNI != nil {
		f.VXLANVNI = uint32(*s.VXLANVNI) //nolint:gosec // 1 to 2^24-1 by validation
	}
	if s.ProbePort != nil {
		f.ProbePort = uint16(*s.ProbePort) //nolint:gosec // 1 to 65535 by validation
	}
	if s.RouteRefreshInterval != nil {
		f.RefreshInterval = s.RouteRefreshInterval.Duration
	}
	if s.Dataplane != "" {
		f.Dataplane = string(s.Dataplane)
	}
	if s.FailsafeInboundHostPorts != nil {
		f.FailsafeInbound = s.FailsafeInboundHostPorts
	}
	if s.FailsafeOutboundHostPorts != nil {
		f.FailsafeOutbound = s.FailsafeOutboundHostPorts
	}
	if s.DNSTrustedServers != nil {
		f.DNSServers = s.DNSTrustedServers
	}
	if s.IPAMCooldown != nil {
		f.IPAMCooldown = s.IPAMCooldown.Duration
	}
}
