// SPDX-License-Identifier: Apache-2.0

package throughput

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/cni/podnet"
	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
	"github.com/heliograph-dev/heliograph/test/bench/cluster"
	"github.com/heliograph-dev/heliograph/test/bench/dataplane"
	"github.com/heliograph-dev/heliograph/test/bench/sandbox"
)

const (
	uplink = "eth0"
	mtu    = 1500
)

// network is two nodes on one wire with a pod each, in namespaces NAME-node1, NAME-pod1 and so on.
type network struct {
	name string
	pods [2][2]netip.Addr // by node: IPv4, IPv6
}

func (n network) node(i int) string { return fmt.Sprintf("%s-node%d", n.name, i+1) }
func (n network) pod(i int) string  { return fmt.Sprintf("%s-pod%d", n.name, i+1) }

// nodeIPs are a node's own addresses.
func nodeIPs(i int) [2]netip.Prefix {
	return [2]netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 1, byte(1 + i)}), 24),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, 1, 15: byte(1 + i)}), 64),
	}
}

// wire makes the namespaces, and the wire between the nodes.
func (n network) wire() error {
	var commands []string
	for i := range 2 {
		commands = append(commands, "netns add "+n.node(i), "netns add "+n.pod(i),
			"-n "+n.pod(i)+" link set lo up", "-n "+n.node(i)+" link set lo up")
	}
	commands = append(commands, fmt.Sprintf("link add %s netns %s type veth peer name %s netns %s", uplink, n.node(0), uplink, n.node(1)))
	for i := range 2 {
		ips := nodeIPs(i)
		commands = append(commands,
			fmt.Sprintf("-n %s link set %s up", n.node(i), uplink),
			fmt.Sprintf("-n %s address add %s dev %s", n.node(i), ips[0], uplink),
			fmt.Sprintf("-n %s address add %s dev %s nodad", n.node(i), ips[1], uplink))
	}
	return ip(commands...)
}

func ip(commands ...string) error {
	for _, c := range commands {
		if err := sandbox.Run("ip", strings.Fields(c)...); err != nil {
			return err
		}
	}
	return nil
}

// newPlain makes what the others are measured against: veth pairs and routes made by hand.
func newPlain() (network, error) {
	n := network{name: "raw"}
	if err := n.wire(); err != nil {
		return n, err
	}
	for i := range 2 {
		four := netip.AddrFrom4([4]byte{10, 9, byte(1 + i), 2})
		six := netip.AddrFrom16([16]byte{0xfd, 0, 0, 9, 7: byte(1 + i), 15: 2})
		n.pods[i] = [2]netip.Addr{four, six}
		pod, node := n.pod(i), n.node(i)
		commands := []string{fmt.Sprintf("link add eth0 netns %s type veth peer name pod0 netns %s", pod, node)}
		commands = append(commands, "-n "+pod+" link set eth0 up", "-n "+node+" link set pod0 up")
		for k, bits := range []int{24, 64} {
			own, gateway := n.pods[i][k], n.pods[i][k].Prev()
			commands = append(commands,
				fmt.Sprintf("-n %s address add %s/%d dev pod0 %s", node, gateway, bits, nodad(k)),
				fmt.Sprintf("-n %s address add %s/%d dev eth0 %s", pod, own, bits, nodad(k)),
				fmt.Sprintf("-n %s route add default via %s", pod, gateway))
		}
		if err := ip(commands...); err != nil {
			return n, err
		}
	}
	for i := range 2 {
		for k, bits := range []int{24, 64} {
			to, err := n.pods[1-i][k].Prefix(bits)
			if err != nil {
				return n, err
			}
			if err := ip(fmt.Sprintf("-n %s route add %s via %s", n.node(i), to, nodeIPs(1 - i)[k].Addr())); err != nil {
				return n, err
			}
		}
		err := sandbox.In(n.node(i), func() error {
			for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
				if err := os.WriteFile("/proc/sys/net/"+f, []byte("1"), 0); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func nodad(family int) string { return []string{"", "nodad"}[family] }

// ours is a network of heliograph's: pods' interfaces, drivers, and all that felix/calc says.
type ours struct {
	network
	can    path.Capabilities
	planes [2]*dataplane.Plane
	local  [2]calc.LocalState
}

// The pods' pools; each node has one block of each.
var pools = [2]netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/64")}

func block(node, family int) netip.Prefix {
	if family == 0 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, 0, byte(64 * node)}), 26)
	}
	a := pools[1].Addr().As16()
	a[15] = byte(64 * node)
	return netip.PrefixFrom(netip.AddrFrom16(a), 122)
}

func newOurs(can path.Capabilities) (*ours, error) {
	o := &ours{network: network{name: "hel"}, can: can}
	if err := o.wire(); err != nil {
		return nil, err
	}
	for i := range 2 {
		for family := range 2 {
			o.pods[i][family] = block(i, family).Addr().Next().Next() // the first is the node's own
		}
		err := sandbox.In(o.node(i), func() error {
			var err error
			o.planes[i], err = dataplane.Open()
			return err
		})
		if err != nil {
			return nil, err
		}
		if err := o.addPod(i); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// addPod makes a pod's interface as the CNI plugin has it made.
func (o *ours) addPod(i int) error {
	var socket *os.File
	err := sandbox.In(o.pod(i), func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err == nil {
			socket = os.NewFile(uintptr(fd), "netlink")
		}
		return err
	})
	if err != nil {
		return err
	}
	a := cni.Attachment{ContainerID: o.pod(i), IfName: "eth0"}
	err = sandbox.In(o.node(i), func() error {
		pods, err := podnet.New()
		if err != nil {
			return err
		}
		defer func() { _ = pods.Close() }()
		_, err = pods.Create(socket, podnet.Interface{Attachment: a, MTU: mtu, Addresses: o.pods[i]})
		return err
	})
	if err != nil {
		return fmt.Errorf("pod of node %d: %w", i+1, err)
	}
	o.local[i] = calc.Local([]snapshot.Workload{{Device: podnet.HostDevice(a), IPs: o.pods[i][:]}})
	return nil
}

// use makes both nodes send by one method: BGP tells all, and the pools ask for it.
func (o *ours) use(ctx context.Context, m path.Method) error {
	for i := range 2 {
		draft := calc.Prepare(snapshot.Build(o.objects(m), o.facts(i)))
		state := draft.Finish(path.NewMachine(nodeName(i)).Decide(time.Now(), draft.Inputs()))
		for _, p := range state.Paths {
			if want := methodOf(m, p.Family); string(p.Method) != want.String() {
				return fmt.Errorf("%s of %s goes by %s, want %s: %s", p.Family, nodeName(i), p.Method, want, p.Reason)
			}
		}
		err := sandbox.In(o.node(i), func() error {
			o.planes[i].Set(state, o.local[i])
			if err := o.planes[i].Apply(ctx); err != nil {
				return err
			}
			// A tunnel that no pool asks for any more takes its routes along. The agent's monitor would tell.
			o.planes[i].QueueResync()
			return o.planes[i].Apply(ctx)
		})
		if err != nil {
			return fmt.Errorf("program node %d: %w", i+1, err)
		}
	}
	return nil
}

// methodOf is what a family can have of a method: IPIP carries IPv4 alone.
func methodOf(m path.Method, f bgp.Family) path.Method {
	if m == path.IPIP && f == bgp.IPv6 {
		return path.Native
	}
	return m
}

func nodeName(i int) string { return fmt.Sprintf("node%d", i+1) }

// objects are the API's.
func (o *ours) objects(m path.Method) snapshot.Objects {
	encapsulation := [path.Methods]v1alpha1.Encapsulation{
		path.Native: v1alpha1.EncapsulationAuto, path.IPIP: v1alpha1.EncapsulationIPIP, path.VXLAN: v1alpha1.EncapsulationVXLAN,
	}
	var out snapshot.Objects
	for family, f := range []bgp.Family{bgp.IPv4, bgp.IPv6} {
		name := strings.ToLower(f.String())
		out.Pools = append(out.Pools, cluster.Pool(name, pools[family], encapsulation[methodOf(m, f)]))
		for i := range 2 {
			out.Blocks = append(out.Blocks, cluster.Block(block(i, family), name, nodeName(i), true))
		}
	}
	for i := range 2 {
		ips := nodeIPs(i)
		out.Nodes = append(out.Nodes, cluster.Node(nodeName(i), "1", ips[0].Addr(), ips[1].Addr()))
	}
	return out
}

// facts are what a node knows of itself, with what the other one announces.
func (o *ours) facts(i int) snapshot.Local {
	l := snapshot.Local{
		NodeName: nodeName(i), Settled: true, Capabilities: snapshot.Capabilities{Can: o.can},
		BGP: bgp.Snapshot{Running: true}, Probes: map[path.Key]path.Report{},
	}
	for family, own := range nodeIPs(i) {
		other := nodeIPs(1 - i)[family].Addr()
		l.Links = append(l.Links, snapshot.OnLink{Device: uplink, MTU: mtu, Addr: own.Addr(), Subnet: own.Masked()})
		l.BGP.Paths = append(l.BGP.Paths, bgp.Path{Prefix: block(1-i, family), NextHop: other, Peer: other, Kind: bgp.PeerNode})
		l.Probes[path.Key{Node: nodeName(1 - i), Family: bgp.FamilyOf(other)}] = path.Report{Remote: o.can, RemoteKnown: true}
	}
	return l
}
