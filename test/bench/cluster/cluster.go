// SPDX-License-Identifier: Apache-2.0

// Package cluster makes up what one agent knows: the API's objects, BGP's paths, the probes' reports.
package cluster

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

const (
	// RackSize is how many nodes a rack has.
	RackSize = 40
	// BlocksPerFamily is how many blocks a node has of each family.
	BlocksPerFamily = 2
	leaves          = 2 // of each rack
)

// The pools of Racks.
var (
	pools4 = netip.MustParsePrefix("10.128.0.0/9")
	pools6 = netip.MustParsePrefix("fd00:244::/64")
)

// Node makes a node with addresses, in a rack.
func Node(name, rack string, ips ...netip.Addr) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"rack": rack}}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	for _, ip := range ips {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip.String()})
	}
	return n
}

// Pool makes a pool.
func Pool(name string, cidr netip.Prefix, e v1alpha1.Encapsulation) v1alpha1.IPPool {
	return v1alpha1.IPPool{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.IPPoolSpec{CIDR: cidr.String(), Encapsulation: e, NATOutgoing: true},
	}
}

// Block makes a node's block of a pool.
func Block(cidr netip.Prefix, pool, node string, primary bool) v1alpha1.IPBlock {
	return v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{Name: cidr.String()},
		Spec:       v1alpha1.IPBlockSpec{CIDR: cidr.String(), Pool: pool, Node: node, Primary: primary},
	}
}

// Cluster is many racks, seen from the first node of the first of them. Each rack has two leaves, which
// hand on what all others announce; within the rack with the node's own next hop.
type Cluster struct {
	Objects snapshot.Objects
	Self    string
	MTU     int
	can     path.Capabilities
	members []member
}

type member struct {
	name   string
	rack   int
	ips    [2]netip.Addr
	blocks []netip.Prefix
}

// Racks makes up a cluster of n nodes, whose kernels can what can says.
func Racks(n int, can path.Capabilities) *Cluster {
	c := &Cluster{Self: "node-0-0", MTU: 1500, can: can}
	off := false
	c.Objects.BGP = []v1alpha1.BGPConfiguration{{
		ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.DefaultName},
		Spec:       v1alpha1.BGPConfigurationSpec{NodeToNodeMeshEnabled: &off},
	}}
	c.Objects.Pools = []v1alpha1.IPPool{
		Pool("four", pools4, v1alpha1.EncapsulationAuto), Pool("six", pools6, v1alpha1.EncapsulationAuto),
	}
	for i := range n {
		c.addNode(i)
	}
	for rack := range (n + RackSize - 1) / RackSize {
		c.addPeers(rack)
	}
	return c
}

func (c *Cluster) addNode(i int) {
	rack := i / RackSize
	m := member{name: fmt.Sprintf("node-%d-%d", rack, i%RackSize), rack: rack}
	m.ips = [2]netip.Addr{underlay(bgp.IPv4, rack, 11+i%RackSize), underlay(bgp.IPv6, rack, 11+i%RackSize)}
	c.Objects.Nodes = append(c.Objects.Nodes, Node(m.name, fmt.Sprint(rack), m.ips[:]...))
	for k := range BlocksPerFamily {
		number := i*BlocksPerFamily + k
		four := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128 | byte(number>>10), byte(number >> 2), byte(number << 6)}), 26)
		six := pools6.Addr().As16()
		six[13], six[14], six[15] = byte(number>>10), byte(number>>2), byte(number<<6)
		m.blocks = append(m.blocks, four, netip.PrefixFrom(netip.AddrFrom16(six), 122))
		c.Objects.Blocks = append(c.Objects.Blocks, Block(four, "four", m.name, k == 0), Block(m.blocks[2*k+1], "six", m.name, k == 0))
	}
	c.members = append(c.members, m)
}

func (c *Cluster) addPeers(rack int) {
	for leaf := range leaves {
		for _, f := range []bgp.Family{bgp.IPv4, bgp.IPv6} {
			c.Objects.Peers = append(c.Objects.Peers, v1alpha1.BGPPeer{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("leaf-%d-%d-%s", rack, leaf, f)},
				Spec: v1alpha1.BGPPeerSpec{
					NodeSelector: fmt.Sprintf("rack == '%d'", rack), ASNumber: int64(65000 + rack),
					PeerIP: underlay(f, rack, 1+leaf).String(),
				},
			})
		}
	}
}

// underlay is an address in a rack's subnet: 192.168.RACK.HOST or fd00:168:RACK::HOST.
func underlay(f bgp.Family, rack, host int) netip.Addr {
	if f == bgp.IPv4 {
		return netip.AddrFrom4([4]byte{192, 168, byte(rack), byte(host)})
	}
	return netip.AddrFrom16([16]byte{0xfd, 0, 0x01, 0x68, 4: byte(rack >> 8), 5: byte(rack), 15: byte(host)})
}

// SelfAddresses are the node's own addresses with their subnets.
func (c *Cluster) SelfAddresses() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(c.members[0].ips[0], 24), netip.PrefixFrom(c.members[0].ips[1], 64)}
}

// Local is what the node knows of itself, but for the probes' reports: attached by a device, and told of
// all racks' blocks but those of the dead ones.
func (c *Cluster) Local(device string, dead ...int) snapshot.Local {
	l := snapshot.Local{
		NodeName: c.Self, Settled: true,
		Capabilities: snapshot.Capabilities{Can: c.can, Why: map[path.Capabilities]string{}},
		BGP:          bgp.Snapshot{Running: true, Paths: c.paths(dead)},
	}
	for _, p := range c.SelfAddresses() {
		l.Links = append(l.Links, snapshot.OnLink{Device: device, MTU: c.MTU, Addr: p.Addr(), Subnet: p.Masked()})
	}
	return l
}

func (c *Cluster) paths(dead []int) []bgp.Path {
	var out []bgp.Path
	for _, m := range c.members[1:] {
		if slices.Contains(dead, m.rack) {
			continue
		}
		for _, b := range m.blocks {
			f := bgp.FamilyOf(b.Addr())
			for leaf := range leaves {
				peer := underlay(f, 0, 1+leaf)
				p := bgp.Path{Prefix: b, Peer: peer, NextHop: peer, Kind: bgp.PeerFabric, ASPathLen: 3}
				if m.rack == 0 {
					p.ASPathLen, p.NextHop = 1, m.ips[0]
					if f == bgp.IPv6 {
						p.NextHop = m.ips[1]
					}
				}
				out = append(out, p)
			}
		}
	}
	slices.SortFunc(out, func(a, b bgp.Path) int { return a.Prefix.Compare(b.Prefix) })
	return out
}

// Reports are the probes' when all is well since a time, natively only to the racks that are not dead.
func (c *Cluster) Reports(since time.Time, dead ...int) map[path.Key]path.Report {
	reports := map[path.Key]path.Report{}
	for _, m := range c.members[1:] {
		for _, f := range []bgp.Family{bgp.IPv4, bgp.IPv6} {
			r := path.Report{Remote: c.can, RemoteKnown: true}
			for method, mtu := range [path.Methods]int{c.MTU, c.MTU - 20, c.MTU - 50} {
				switch path.Method(method) {
				case path.Native:
					if slices.Contains(dead, m.rack) {
						continue
					}
				case path.IPIP:
					if f == bgp.IPv6 || c.can&path.CanIPIP == 0 {
						continue
					}
				}
				r.Methods[method] = path.Evidence{
					Verdict: path.Answers, Run: path.Window, RunSince: since, LastAnswer: since, Sent: path.Window,
					RTT: time.Millisecond, MTU: mtu,
				}
			}
			reports[path.Key{Node: m.name, Family: f}] = r
		}
	}
	return reports
}
