// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/heliograph-dev/heliograph/policy"
)

const (
	nodeMAC = "ee:ee:ee:ee:ee:ee"
	outMAC  = "02:00:00:00:ff:01"
)

// Lab is a node with pods, in the namespace that the test is in: see the package's comment.
type Lab struct {
	Pods    []Pod // without the rogue
	Rogue   Pod
	Outside []netip.Addr
	Node    []netip.Addr // the node's own addresses

	t     testing.TB
	wires *wires
}

// NewLab makes a lab. It must be called inside of nettest.Run.
func NewLab(t testing.TB) *Lab {
	l := &Lab{t: t, Outside: outside(), Node: addrs("192.0.2.1", "2001:db8::1")}
	l.Pods = pods()
	l.Rogue, l.Pods = l.Pods[rogue], l.Pods[:rogue]
	l.build()
	l.wires = openWires(l)
	return l
}

// Endpoint returns a pod as an endpoint to which no policy applies.
func (l *Lab) Endpoint(pod int) *policy.Endpoint { return endpoint(pod, l.Pods[pod]) }

func (l *Lab) pod(e End) Pod {
	if e == rogue {
		return l.Rogue
	}
	return l.Pods[e]
}

// peer is the other end of a wire of the node.
func peer(e End) string {
	if e == Outside {
		return "out"
	}
	return fmt.Sprintf("pod%d", int(e))
}

func peerMAC(e End) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, byte(e) + 1} }

func (l *Lab) build() {
	err := writeSysctls(map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
		"ipv4/conf/default/send_redirects": "0", "ipv4/conf/all/send_redirects": "0", "ipv6/conf/default/accept_dad": "0",
		"ipv4/icmp_echo_ignore_all": "1", "ipv6/icmp/echo_ignore_all": "1", "ipv4/conf/all/log_martians": "0",
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.hush()
	l.ip("", "netns add peers")
	l.inPeers(func() error {
		return writeSysctls(map[string]string{"ipv6/conf/default/disable_ipv6": "1", "ipv6/conf/all/disable_ipv6": "1"})
	})
	var node, peers []string
	for e := End(0); e <= rogue; e++ {
		p := l.pod(e)
		node = append(node, fmt.Sprintf("link add %s address %s type veth peer name %s address %s netns peers", p.Device, nodeMAC, peer(e), peerMAC(e)))
		node = append(node, "link set "+p.Device+" up")
		for _, ip := range p.IPs {
			node = append(node, fmt.Sprintf("route add %s dev %s", ip, p.Device), neighbour(ip, p.Device, peerMAC(e)))
		}
		peers = append(peers, "link set "+peer(e)+" up")
	}
	node = append(node, fmt.Sprintf("link add out0 address %s type veth peer name %s address %s netns peers", outMAC, peer(Outside), peerMAC(Outside)))
	node = append(node, "link set out0 up")
	for _, a := range l.Node {
		node = append(node, fmt.Sprintf("addr add %s dev out0 nodad", netip.PrefixFrom(a, map[bool]int{true: 24, false: 64}[a.Is4()])))
	}
	node = append(node, "route add 198.51.100.0/24 dev out0", "route add 2001:db8:1::/64 dev out0")
	for _, a := range l.Outside {
		node = append(node, neighbour(a, "out0", peerMAC(Outside)))
	}
	l.ip("", node...)
	l.ip("peers", append(peers, "link set "+peer(Outside)+" up")...)
}

// hush drops what the node's kernel says of itself, before a renderer sees it: a rule would count it, though
// nobody sent it. That is (200,000 packets of tests had no other):
//
//   - redirects, for what goes out where it came in. IPv6 has no switch for them, and they are limited by
//     time, so they cannot be foretold;
//   - reports of multicast listeners, sent by a timer;
//   - that nobody listens, if it answers UDP-Lite. Linux's conntrack sums up UDP-Lite as if it were UDP, and
//     finds every packet invalid, and with it what answers it. Where it answers UDP, it is related;
//   - the time of day, where it was asked with a code, which the kernel ignores and conntrack does not: the
//     answer has none.
//
// Everything else that the kernel answers belongs to a flow, and passes as established.
func (l *Lab) hush() {
	const script = "add table inet hush; add chain inet hush output { type filter hook output priority mangle; }; " +
		"add rule inet hush output icmpv6 type { nd-redirect, mld2-listener-report } drop; " +
		"add rule inet hush output icmp type { destination-unreachable, timestamp-reply } ct state invalid drop; " +
		"add rule inet hush output icmpv6 type destination-unreachable ct state invalid drop"
	if out, err := command("nft", script); err != nil {
		l.t.Fatalf("nft: %v\n%s", err, out)
	}
}

func neighbour(ip netip.Addr, device string, mac net.HardwareAddr) string {
	return fmt.Sprintf("neigh add %s lladdr %s dev %s nud permanent", ip, mac, device)
}

// ip runs commands of the tool ip, all by one process.
func (l *Lab) ip(namespace string, commands ...string) {
	l.t.Helper()
	file := filepath.Join(l.t.TempDir(), "batch")
	if err := os.WriteFile(file, []byte(strings.Join(commands, "\n")+"\n"), 0o600); err != nil {
		l.t.Fatal(err)
	}
	args := []string{"-batch", file}
	if namespace != "" {
		args = append([]string{"-netns", namespace}, args...)
	}
	if out, err := command("ip", args...); err != nil {
		l.t.Fatalf("ip -batch: %v\n%s", err, out)
	}
}

func writeSysctls(values map[string]string) error {
	var errs []error
	for name, v := range values {
		errs = append(errs, os.WriteFile("/proc/sys/net/"+name, []byte(v), 0o600))
	}
	return errors.Join(errs...)
}

// inPeers runs f on a thread that is in the namespace of the wires' other ends. Sockets that f opens stay there.
func (l *Lab) inPeers(f func() error) {
	l.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		h, err := netns.GetFromPath("/run/netns/peers")
		if err == nil {
			defer h.Close() //nolint:errcheck // a test's
			err = netns.Set(h)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		l.t.Fatalf("in the peers' namespace: %v", err)
	}
}

// forget makes conntrack forget all flows.
func (l *Lab) forget() {
	l.t.Helper()
	if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		l.t.Fatalf("flush conntrack: %v", err)
	}
}
