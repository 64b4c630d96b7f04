// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// lab is a node (the test's own namespace), two pods, and the world outside:
//
//	pod1 ── hel00000000001 ┐            ┌ 192.0.2.2, 2001:db8::2       (no route back to pods)
//	pod2 ── hel00000000002 ┤ node ─ out0 ┤
//	rogue ─ hel0000000000f ┘  .1        └ 198.51.100.2                 (in no_nat)
type lab struct {
	t *testing.T
	k real
	d *Table
}

func newLab(t *testing.T) lab {
	k := newReal(t)
	l := lab{t, k, New(k, slog.New(slog.DiscardHandler))}
	for _, s := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+s, []byte("1"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.addPod("pod1", pod(1))
	l.addPod("pod2", pod(2))
	l.addPod("rogue", pod(15))
	l.ip("netns", "add", "outside")
	l.ip("link", "add", "out0", "type", "veth", "peer", "name", "eth0", "netns", "outside")
	for _, a := range []string{"192.0.2.1/24", "198.51.100.1/24", "2001:db8::1/64"} {
		l.ip("addr", "add", a, "dev", "out0", "nodad")
	}
	l.ip("link", "set", "out0", "up")
	for _, a := range []string{"192.0.2.2/24", "198.51.100.2/24", "2001:db8::2/64"} {
		l.in("outside", "ip", "addr", "add", a, "dev", "eth0", "nodad")
	}
	l.in("outside", "ip", "link", "set", "eth0", "up")
	return l
}

// apply makes the node know its two pods, and changes that.
func (l lab) apply(change func(*desired.NFT)) {
	l.t.Helper()
	n := desired.NFT{
		Workloads:  []desired.Workload{pod(1), pod(2)},
		Tunnels:    []string{desired.VXLANDevice},
		NATSources: prefixes("10.244.0.0/16", "fd00:244::/56"),
		NoNAT:      prefixes("10.244.0.0/16", "fd00:244::/56", "198.51.100.0/24"),
		VXLANPorts: []uint16{4789},
	}
	if change != nil {
		change(&n)
	}
	apply(l.t, l.d, n)
}

// addPod makes a namespace with a veth as the CNI plugin does: single addresses, default routes by a
// gateway that the node's end answers for.
func (l lab) addPod(name string, w desired.Workload) {
	const mac, gateway6 = "ee:ee:ee:ee:ee:ee", "fe80::ecee:eeff:feee:eeee"
	l.ip("netns", "add", name)
	l.ip("link", "add", w.Device, "address", mac, "type", "veth", "peer", "name", "eth0", "netns", name)
	l.ip("link", "set", w.Device, "up")
	l.ip("addr", "replace", gateway6+"/64", "dev", w.Device, "nodad")
	l.in(name, "ip", "link", "set", "lo", "up")
	l.in(name, "ip", "link", "set", "eth0", "up")
	for _, a := range w.IPs {
		host := netPrefix(a.String(), a.BitLen())
		l.ip("route", "add", host, "dev", w.Device)
		l.in(name, "ip", "addr", "add", host, "dev", "eth0", "nodad")
	}
	l.in(name, "ip", "route", "add", "169.254.1.1", "dev", "eth0")
	l.in(name, "ip", "route", "add", "default", "via", "169.254.1.1")
	l.in(name, "ip", "neigh", "add", "169.254.1.1", "lladdr", mac, "dev", "eth0", "nud", "permanent")
	l.in(name, "ip", "route", "add", "default", "via", gateway6, "dev", "eth0")
}

func netPrefix(addr string, bits int) string { return fmt.Sprintf("%s/%d", addr, bits) }

func (l lab) ip(args ...string) { l.t.Helper(); nettest.Cmd(l.t, "ip", args...) }

// in runs a command in a namespace.
func (l lab) in(ns string, args ...string) string {
	l.t.Helper()
	return nettest.Cmd(l.t, "nsenter", append([]string{"--net=/run/netns/" + ns}, args...)...)
}

// pings tells whether a ping is answered, from a namespace; "" is the node's.
func (l lab) pings(ns, to string, args ...string) bool {
	cmd := append([]string{"ping", "-c1", "-W0.5", to}, args...)
	if ns != "" {
		cmd = append([]string{"nsenter", "--net=/run/netns/" + ns}, cmd...)
	}
	return exec.Command(cmd[0], cmd[1:]...).Run() == nil
}

// reaches checks that pings are answered, be it after some neighbour discovery.
func (l lab) reaches(what, ns, to string) {
	l.t.Helper()
	for range 10 {
		if l.pings(ns, to) {
			return
		}
	}
	l.t.Errorf("%s: no answer\n%s", what, l.k.nft("list", "table", "inet", desired.NFTTable))
}

// silent checks that a ping is not answered.
func (l lab) silent(what, ns, to string, args ...string) {
	l.t.Helper()
	if l.pings(ns, to, args...) {
		l.t.Errorf("%s: answered\n%s", what, l.k.nft("list", "table", "inet", desired.NFTTable))
	}
}

// counts reads the counter of a rule.
func (l lab) counts(chain, comment string) int {
	l.t.Helper()
	out := l.k.nft("list", "chain", "inet", desired.NFTTable, chain)
	m := regexp.MustCompile(`counter packets (\d+) .* comment "` + comment + `"`).FindStringSubmatch(out)
	if m == nil {
		l.t.Fatalf("no counter %s in\n%s", comment, out)
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// drops checks that a ping is not answered, and that this rule is the cause.
func (l lab) drops(chain, comment, what, ns, to string, args ...string) {
	l.t.Helper()
	before := l.counts(chain, comment)
	l.silent(what, ns, to, args...)
	if l.counts(chain, comment) == before {
		l.t.Errorf("%s: rule %s/%s has not counted", what, chain, comment)
	}
}

func TestPacketsOfPods(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		l := newLab(t)
		l.apply(nil)
		for i, ip := range pod(2).IPs {
			node, outside := "192.0.2.1", "192.0.2.2"
			if i == 1 {
				node, outside = "2001:db8::1", "2001:db8::2"
			}
			l.reaches("pod to pod "+ip.String(), "pod1", ip.String())
			l.reaches("node to pod "+ip.String(), "", ip.String())
			l.reaches("pod to node "+node, "pod1", node)
			l.reaches("pod to outside, masqueraded", "pod1", outside)
		}

		l.in("pod1", "ip", "addr", "add", "10.244.0.99/32", "dev", "eth0")
		l.in("pod1", "ip", "addr", "add", "fd00:244::99/128", "dev", "eth0", "nodad")
		for src, dst := range map[string][]string{
			"10.244.0.99":  {pod(2).IPs[0].String(), "192.0.2.2", "192.0.2.1"},
			"fd00:244::99": {pod(2).IPs[1].String(), "2001:db8::2", "2001:db8::1"},
		} {
			for _, to := range dst {
				l.drops("source", "spoofed", "spoofed "+src+" to "+to, "pod1", to, "-I", src)
			}
		}
		// Another pod's address is spoofed too.
		l.in("pod1", "ip", "addr", "add", pod(2).IPs[0].String()+"/32", "dev", "eth0")
		l.drops("source", "spoofed", "another pod's address", "pod1", "192.0.2.2", "-I", pod(2).IPs[0].String())
	})
}

func TestPacketsOfUnknownDevices(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		l := newLab(t)
		l.apply(nil)
		for i, ip := range pod(15).IPs {
			l.drops("target", "unknown-device", "node to the unknown", "", ip.String())
			l.drops("target", "unknown-device", "pod to the unknown", "pod1", ip.String())
			if i == 0 { // in IPv6 it cannot even find its gateway
				l.drops("source", "spoofed", "the unknown to a pod", "rogue", pod(1).IPs[0].String())
				l.drops("source", "spoofed", "the unknown to the node", "rogue", "192.0.2.1")
			}
			l.silent("the unknown to outside", "rogue", []string{"192.0.2.2", "2001:db8::2"}[i])
		}
		l.apply(func(n *desired.NFT) { n.Workloads = append(n.Workloads, pod(15)) })
		for _, ip := range pod(15).IPs {
			l.reaches("node to the known", "", ip.String())
		}
		l.apply(func(n *desired.NFT) { n.Workloads = nil })
		l.silent("nobody is known", "", pod(1).IPs[0].String())
	})
}

// TestReplaceHasNoGap: while the table is replaced again and again, nothing of the unknown gets through,
// and nothing of the known is lost.
func TestReplaceHasNoGap(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		l := newLab(t)
		l.apply(nil)
		to := pod(2).IPs[0].String()
		l.reaches("before", "pod1", to)
		results := make(chan string, 2)
		for _, ns := range []string{"pod1", "rogue"} {
			cmd := exec.Command("nsenter", "--net=/run/netns/"+ns, "ping", "-q", "-i0.005", "-c300", "-W1", to)
			go func() {
				out, _ := cmd.CombinedOutput()
				results <- ns + " " + regexp.MustCompile(`\d+ received`).FindString(string(out))
			}()
		}
		got := map[string]bool{}
		replaced := 0
		for len(got) < 2 {
			select {
			case r := <-results:
				got[r] = true
			default:
				l.k.drift()
				l.d.QueueResync()
				l.apply(nil)
				replaced++
			}
		}
		t.Logf("replaced %d times", replaced)
		if !got["pod1 300 received"] || !got["rogue 0 received"] {
			t.Errorf("results = %v; want all of pod1's answered and none of rogue's", got)
		}
	})
}

func TestMasqueradeOnlyToOutside(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		l := newLab(t)
		l.apply(nil)
		l.reaches("outside knows no pods, yet answers", "pod1", "192.0.2.2")
		masqueraded := l.counts("postrouting", "masquerade4")
		if masqueraded == 0 {
			t.Error("masquerade4 has not counted")
		}
		l.silent("no_nat is not masqueraded, so has no way back", "pod1", "198.51.100.2")
		l.in("outside", "ip", "route", "add", "10.244.0.0/16", "via", "198.51.100.1")
		l.reaches("no_nat with a way back", "pod1", "198.51.100.2")
		l.reaches("pod to pod", "pod1", pod(2).IPs[0].String())
		if l.counts("postrouting", "masquerade4") != masqueraded {
			t.Error("masqueraded what it should not")
		}
		l.apply(func(n *desired.NFT) { n.NATSources = nil })
		l.in("outside", "ip", "route", "del", "10.244.0.0/16")
		l.silent("without NAT sources", "pod1", "192.0.2.2")
	})
}

// tunnel makes a VXLAN device on the node and one outside, which is then a node of the cluster, or is not.
func (l lab) tunnel() {
	l.ip("link", "add", desired.VXLANDevice, "mtu", "1450", "type", "vxlan", "id", "5", "dstport", "4789", "remote", "192.0.2.2")
	l.ip("link", "set", desired.VXLANDevice, "up")
	l.ip("addr", "add", "172.31.0.1/24", "dev", desired.VXLANDevice)
	l.in("outside", "ip", "link", "add", "vx", "type", "vxlan", "id", "5", "dstport", "4789", "remote", "192.0.2.1")
	l.in("outside", "ip", "link", "set", "vx", "up", "mtu", "1500")
	l.in("outside", "ip", "addr", "add", "172.31.0.2/24", "dev", "vx")
	l.in("outside", "ip", "route", "add", "10.244.0.0/16", "via", "172.31.0.1")
}

func TestVXLANOnlyFromNodes(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		l := newLab(t)
		l.tunnel()
		l.apply(nil)
		l.drops("input", "vxlan-stranger4", "a stranger's VXLAN", "outside", "172.31.0.1")
		l.apply(func(n *desired.NFT) { n.Nodes = addrs("192.0.2.2") })
		l.reaches("a node's VXLAN", "outside", "172.31.0.1")
		l.reaches("a node's VXLAN to a pod", "outside", pod(1).IPs[0].String())
	})
}

// ipipTo sends IPIP to the node, with a ping to its address on the tunnel inside, as the outside does by
// hand: by a packet socket, so that it needs no ipip in this kernel. It returns once the packet was sent.
func (l lab) ipipTo(dst string) {
	l.t.Helper()
	inner := netip4(1, "172.31.9.2", "172.31.9.1", icmpEcho())
	l.inside("outside", func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_IPIP)
		if err == nil {
			defer unix.Close(fd) //nolint:errcheck // a test's
			err = unix.Sendto(fd, inner, 0, &unix.SockaddrInet4{Addr: netip.MustParseAddr(dst).As4()})
		}
		if err != nil {
			l.t.Errorf("send IPIP: %v", err)
		}
	})
}

// netip4 is an IPv4 packet.
func netip4(protocol byte, src, dst string, payload []byte) []byte {
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	p := []byte{0x45, 0, 0, byte(20 + len(payload)), 0, 0, 0, 0, 64, protocol, 0, 0}
	p = append(append(p, s[:]...), d[:]...)
	binary.BigEndian.PutUint16(p[10:], checksum(p))
	return append(p, payload...)
}

func icmpEcho() []byte {
	p := []byte{8, 0, 0, 0, 0, 1, 0, 1}
	binary.BigEndian.PutUint16(p[2:], checksum(p))
	return p
}

// checksum is RFC 1071's.
func checksum(p []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(p); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// TestIPIPOnlyFromNodes counts what the rule drops: it sits before the kernel's own handler of IPIP, so
// this needs none. TestIPIPOnlyFromNodesEndToEnd has one.
func TestIPIPOnlyFromNodes(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		l := newLab(t)
		l.apply(nil)
		l.reaches("outside is a neighbour", "outside", "192.0.2.1")
		for _, c := range []struct {
			name   string
			change func(*desired.NFT)
			to     string
			drops  bool
		}{
			{"a stranger's, without a tunnel of ours", nil, "192.0.2.1", false},
			{"a stranger's", func(n *desired.NFT) { n.IPIPLocal = addrs("192.0.2.1") }, "192.0.2.1", true},
			{"a stranger's to another address of the host", func(n *desired.NFT) { n.IPIPLocal = addrs("192.0.2.1") }, "198.51.100.1", false},
			{"a node's", func(n *desired.NFT) { n.IPIPLocal, n.Nodes = addrs("192.0.2.1"), addrs("192.0.2.2") }, "192.0.2.1", false},
			{"another tunnel's", func(n *desired.NFT) { n.IPIPLocal, n.IPIPOthers = addrs("192.0.2.1"), addrs("192.0.2.2") }, "192.0.2.1", false},
		} {
			l.apply(c.change)
			before := l.counts("input", "ipip-stranger")
			l.ipipTo(c.to)
			// What comes after it on the same way has gone through when it is answered.
			l.reaches("afterwards", "outside", "192.0.2.1")
			if got := l.counts("input", "ipip-stranger") > before; got != c.drops {
				t.Errorf("%s: dropped = %v; want %v", c.name, got, c.drops)
			}
		}
	})
}

func TestIPIPOnlyFromNodesEndToEnd(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		nettest.NeedLink(t, "ipip")
		l := newLab(t)
		ipip := func(n *desired.NFT) {
			n.Tunnels, n.IPIPLocal = append(n.Tunnels, desired.IPIPDevice), addrs("192.0.2.1")
		}
		l.ip("link", "add", desired.IPIPDevice, "mtu", "1480", "type", "ipip", "local", "192.0.2.1")
		l.ip("link", "set", desired.IPIPDevice, "up")
		l.ip("addr", "add", "172.31.0.1/32", "dev", desired.IPIPDevice)
		l.ip("route", "add", "172.31.0.2", "via", "192.0.2.2", "dev", desired.IPIPDevice, "onlink")
		l.in("outside", "ip", "link", "add", "ti", "type", "ipip", "local", "192.0.2.2", "remote", "192.0.2.1")
		l.in("outside", "ip", "link", "set", "ti", "up", "mtu", "1500")
		l.in("outside", "ip", "addr", "add", "172.31.0.2/24", "dev", "ti")
		l.in("outside", "ip", "route", "add", "10.244.0.0/16", "dev", "ti")
		l.apply(ipip)
		l.drops("input", "ipip-stranger", "a stranger's IPIP", "outside", "172.31.0.1")
		l.apply(func(n *desired.NFT) { ipip(n); n.Nodes = addrs("192.0.2.2") })
		l.reaches("a node's IPIP", "outside", "172.31.0.1")
		l.reaches("a node's IPIP to a pod", "outside", pod(1).IPs[0].String())
		l.apply(func(n *desired.NFT) {
			ipip(n)
			n.Nodes, n.NoNAT = addrs("192.0.2.2"), prefixes("172.31.0.0/24")
		})
		if got := l.mss("outside", "172.31.0.2:7000", "pod1"); got != 1440-12 {
			t.Errorf("segment size of a connection through IPIP = %d, want 1428", got)
		}

		// A tunnel of the user's own to our address: its remote end is no stranger.
		l.apply(ipip)
		l.in("outside", "ip", "addr", "add", "192.0.2.12/24", "dev", "eth0")
		l.ip("link", "add", "theirs", "type", "ipip", "local", "192.0.2.1", "remote", "192.0.2.12")
		l.ip("link", "set", "theirs", "up")
		l.ip("addr", "add", "172.31.1.1/24", "dev", "theirs")
		l.in("outside", "ip", "link", "add", "tt", "type", "ipip", "local", "192.0.2.12", "remote", "192.0.2.1")
		l.in("outside", "ip", "link", "set", "tt", "up")
		l.in("outside", "ip", "addr", "add", "172.31.1.2/24", "dev", "tt")
		l.drops("input", "ipip-stranger", "their tunnel, not told of", "outside", "172.31.1.1")
		l.apply(func(n *desired.NFT) { ipip(n); n.IPIPOthers = addrs("192.0.2.12") })
		l.reaches("their tunnel", "outside", "172.31.1.1")
	})
}

func TestMSSIsClampedOnTunnels(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		l := newLab(t)
		l.tunnel()
		l.apply(func(n *desired.NFT) { n.Nodes, n.NoNAT = addrs("192.0.2.2"), prefixes("172.31.0.0/24") })
		// What the server may send is what the client's SYN said, less 12 bytes of timestamps.
		if got := l.mss("outside", "172.31.0.2:7000", "pod1"); got != 1410-12 {
			t.Errorf("segment size of a connection through the tunnel = %d, want 1398", got)
		}
		if got := l.mss("pod2", pod(2).IPs[0].String()+":7000", "pod1"); got != 1460-12 {
			t.Errorf("segment size of a connection without a tunnel = %d, want 1448", got)
		}
	})
}

// mss connects from one namespace to another, and returns the segment size that the server uses.
func (l lab) mss(server, addr, client string) int {
	var ln net.Listener
	var conn net.Conn
	var err error
	l.inside(server, func() { ln, err = net.Listen("tcp", addr) })
	if err != nil {
		l.t.Fatal(err)
	}
	defer ln.Close() //nolint:errcheck // a test's
	l.inside(client, func() { conn, err = net.Dial("tcp", addr) })
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close()
	accepted, err := ln.Accept()
	if err != nil {
		l.t.Fatal(err)
	}
	defer accepted.Close()
	raw, err := accepted.(*net.TCPConn).SyscallConn()
	if err != nil {
		l.t.Fatal(err)
	}
	var mss int
	if err := raw.Control(func(fd uintptr) { mss, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) }); err != nil {
		l.t.Fatal(err)
	}
	return mss
}

// inside runs f with its thread in a namespace: sockets belong to that in which they were made.
func (l lab) inside(ns string, f func()) {
	l.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		file, err := os.Open("/run/netns/" + ns)
		if err == nil {
			err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		l.t.Fatal(err)
	}
}
