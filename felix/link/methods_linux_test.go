// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/link"
	"github.com/heliograph-dev/heliograph/felix/neigh"
	"github.com/heliograph-dev/heliograph/felix/nexthop"
	"github.com/heliograph-dev/heliograph/felix/route"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// A method is how a node is reached; the number is of the nexthop object.
type method desired.NexthopID

const (
	native method = 1<<31 | iota + 1
	ipip
	vxlan
	native6
	vxlan6
)

const group4, group6 desired.NexthopID = 1<<31 | 10, 1<<31 | 11

var names = map[method]string{native: "native", ipip: "IPIP", vxlan: "VXLAN"}

// node is one of two in a subnet, in a namespace of its own, made by the real drivers:
//
//	a 192.0.2.1, 2001:db8::1                         b 192.0.2.2, 2001:db8::2
//	  10.244.1.1, fd00:244::1:1   eth0 ─── eth0        10.244.2.1, fd00:244::2:1
type node struct {
	t    *testing.T
	n    int
	name string

	link    *link.Tunnels
	neigh   *neigh.Table
	nexthop *nexthop.Table
	route   *route.Table
}

func under(n int) netip.Addr  { return netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", n)) }
func under6(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", n)) }
func pod(n int) netip.Addr    { return netip.MustParseAddr(fmt.Sprintf("10.244.%d.1", n)) }
func pod6(n int) netip.Addr   { return netip.MustParseAddr(fmt.Sprintf("fd00:244::%d:1", n)) }
func mac(n int) desired.MAC   { return desired.MAC{0x66, 0xa0, 0, 0, 0, byte(n)} }

// linkLocal is the EUI-64 address of mac(n).
func linkLocal(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fe80::64a0:ff:fe00:%d", n)) }

func newNodes(t *testing.T) (a, b *node) {
	t.Helper()
	nettest.Cmd(t, "ip", "netns", "add", "a")
	nettest.Cmd(t, "ip", "netns", "add", "b")
	nettest.Cmd(t, "ip", "link", "add", "eth0", "netns", "a", "type", "veth", "peer", "name", "eth0", "netns", "b")
	a, b = newNode(t, 1, "a"), newNode(t, 2, "b")
	a.start() // both uplinks have a carrier now
	b.start()
	return a, b
}

func newNode(t *testing.T, n int, name string) *node {
	t.Helper()
	d := &node{t: t, n: n, name: name}
	for _, dev := range []string{"lo", "eth0"} {
		d.in("ip", "link", "set", dev, "up")
	}
	for _, args := range [][]string{
		{under(n).String() + "/24", "dev", "eth0"}, {under6(n).String() + "/64", "dev", "eth0", "nodad"},
		{pod(n).String() + "/32", "dev", "lo"}, {pod6(n).String() + "/128", "dev", "lo", "nodad"},
	} {
		d.in("ip", append([]string{"addr", "add"}, args...)...)
	}
	return d
}

// start makes tunnels, and the routes to the other node, natively at first.
func (d *node) start() {
	d.t.Helper()
	d.inside(d.open)
	n, other := d.n, 3-d.n
	d.link.SetDesired([]desired.VXLAN{{
		Name: desired.VXLANDevice, VNI: 4096, Port: 4789, Local: under(n), MAC: mac(n), MTU: 1450,
	}}, []desired.IPIP{{Name: desired.IPIPDevice, Local: under(n), MTU: 1480}})
	d.neigh.SetDesired([]desired.Neighbour{
		{Device: desired.VXLANDevice, IP: under(other), MAC: mac(other)},
		{Device: desired.VXLANDevice, IP: linkLocal(other), MAC: mac(other)},
	}, []desired.FDBEntry{{Device: desired.VXLANDevice, MAC: mac(other), Remote: under(other)}})
	d.route.SetDesired([]desired.Route{
		{Prefix: netip.PrefixFrom(pod(other), 26).Masked(), Type: desired.RouteNexthop, Nexthop: group4, Source: pod(n)},
		{Prefix: netip.PrefixFrom(pod6(other), 122).Masked(), Type: desired.RouteNexthop, Nexthop: group6, Source: pod6(n)},
	})
	for _, apply := range []func() error{
		func() error { return d.link.Apply(d.t.Context()) },
		func() error { return d.neigh.Apply(d.t.Context()) },
		func() error { return d.use(native) },
		func() error { return d.route.Apply(d.t.Context()) },
	} {
		if err := apply(); err != nil {
			d.t.Fatal(err)
		}
	}
}

// open opens the drivers' sockets, which belong to the namespace that they are opened in.
func (d *node) open() {
	quiet := slog.New(slog.DiscardHandler)
	links, err1 := link.Open()
	neighs, err2 := neigh.Open()
	conn, err3 := kernel.Dial()
	if err := errors.Join(err1, err2, err3); err != nil {
		d.t.Error(err)
		return
	}
	d.link = link.New(links, quiet)
	d.neigh = neigh.New(neighs, []string{desired.VXLANDevice}, quiet)
	d.nexthop = nexthop.New(nexthop.NewKernel(conn), quiet)
	d.route = route.New(route.NewKernel(conn, 0), quiet)
}

// use switches the way to the other node: one message for each family. IPv6 has no IPIP, and stays.
func (d *node) use(m method) error {
	other := 3 - d.n
	id := func(m method) desired.NexthopID { return desired.NexthopID(m) }
	six := native6
	if m == vxlan {
		six = vxlan6
	}
	d.nexthop.SetDesired([]desired.Nexthop{
		{ID: id(native), Gateway: under(other), Device: "eth0", OnLink: true},
		{ID: id(ipip), Gateway: under(other), Device: desired.IPIPDevice, OnLink: true},
		{ID: id(vxlan), Gateway: under(other), Device: desired.VXLANDevice, OnLink: true},
		{ID: id(native6), Gateway: under6(other), Device: "eth0", OnLink: true},
		{ID: id(vxlan6), Gateway: linkLocal(other), Device: desired.VXLANDevice, OnLink: true},
		{ID: group4, Group: desired.EncodeGroup([]desired.NexthopID{id(m)})},
		{ID: group6, Group: desired.EncodeGroup([]desired.NexthopID{id(six)})},
	})
	return d.nexthop.Apply(d.t.Context())
}

func (d *node) in(name string, args ...string) {
	d.t.Helper()
	nettest.Cmd(d.t, "nsenter", append([]string{"--net=/run/netns/" + d.name, name}, args...)...)
}

// pings tells whether one of some pings to the other's address is answered.
func (d *node) pings(to netip.Addr, tries int) bool {
	for range tries {
		if exec.Command("nsenter", "--net=/run/netns/"+d.name, "ping", "-c1", "-W1", "-s100", to.String()).Run() == nil { //nolint:gosec // a test's
			return true
		}
	}
	return false
}

// inside runs f with its thread in the namespace: sockets belong to that in which they were made.
func (d *node) inside(f func()) {
	d.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		file, err := os.Open("/run/netns/" + d.name)
		if err == nil {
			err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		d.t.Fatal(err)
	}
}

func both(t *testing.T, a, b *node, m method) {
	t.Helper()
	if err := errors.Join(a.use(m), b.use(m)); err != nil {
		t.Fatal(err)
	}
}

// sniff opens a packet socket on the node's uplink. Nothing is waited for longer than two seconds.
func (d *node) sniff() (fd int) {
	d.t.Helper()
	var err error
	d.inside(func() {
		const all = 0x0300 // ETH_P_ALL in network order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, all); err != nil {
			return
		}
		var uplink *net.Interface
		if uplink, err = net.InterfaceByName("eth0"); err != nil {
			return
		}
		err = errors.Join(
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: uplink.Index}),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}))
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return fd
}

// frame returns the length and the outer IP protocol of the first large frame that comes in.
func frame(t *testing.T, fd int) (length int, protocol byte) {
	t.Helper()
	buf := make([]byte, 2048)
	for range 100 {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			t.Fatalf("no frame: %v", err)
		}
		if at, ok := from.(*unix.SockaddrLinklayer); !ok || at.Pkttype == unix.PACKET_OUTGOING || n < 140 {
			continue
		}
		if binary.BigEndian.Uint16(buf[12:]) == unix.ETH_P_IPV6 {
			return n, buf[14+6]
		}
		return n, buf[14+9]
	}
	t.Fatal("no frame of that size")
	return 0, 0
}

// TestOverhead: each method reaches the other node, and costs what it should: 20 bytes, or 50.
func TestOverhead(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		nettest.NeedLink(t, "ipip")
		a, b := newNodes(t)
		for _, c := range []struct {
			method   method
			to       netip.Addr
			length   int // of the frame: Ethernet header, IP header, ICMP header and 100 bytes, and the tunnel
			protocol byte
		}{
			{native, pod(2), 14 + 20 + 8 + 100, unix.IPPROTO_ICMP},
			{ipip, pod(2), 14 + 20 + 8 + 100 + 20, unix.IPPROTO_IPIP},
			{vxlan, pod(2), 14 + 20 + 8 + 100 + 50, unix.IPPROTO_UDP},
			{native, pod6(2), 14 + 40 + 8 + 100, unix.IPPROTO_ICMPV6},
			{vxlan, pod6(2), 14 + 40 + 8 + 100 + 50, unix.IPPROTO_UDP},
		} {
			both(t, a, b, c.method)
			fd := b.sniff()
			if !a.pings(c.to, 5) {
				t.Errorf("%s to %s: no answer", names[c.method], c.to)
				continue
			}
			if length, protocol := frame(t, fd); length != c.length || protocol != c.protocol {
				t.Errorf("%s to %s: frame of %d bytes, protocol %d; want %d, %d", names[c.method], c.to, length, protocol, c.length, c.protocol)
			}
			_ = unix.Close(fd)
		}
	})
}

// TestSwitchLosesNothing changes the method again and again under 1,000 packets a second.
func TestSwitchLosesNothing(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		nettest.NeedLink(t, "ipip")
		a, b := newNodes(t)
		if !a.pings(pod(2), 5) { // and neighbours are known
			t.Fatal("no answer")
		}
		const packets, each = 4000, 40
		server, client := stream(t, a, b)
		counted := make(chan int)
		go func() { counted <- count(server, packets) }()
		turn := make(chan struct{}, packets)
		start := time.Now()
		go send(client, packets, each, turn)
		switches := 0
		for range turn {
			if err := a.use([]method{ipip, vxlan, native}[switches%3]); err != nil {
				t.Error(err)
			}
			switches++
		}
		if got := <-counted; got != packets {
			t.Errorf("%d packets of %d arrived, with %d switches", got, packets, switches)
		}
		t.Logf("%d switches among %d packets in %v", switches, packets, time.Since(start))
	})
}

// stream makes a UDP connection from a's pod address to b's.
func stream(t *testing.T, a, b *node) (server *net.UDPConn, client net.Conn) {
	t.Helper()
	addr := net.JoinHostPort(pod(2).String(), "7000")
	var err1, err2 error
	b.inside(func() {
		var at *net.UDPAddr
		if at, err1 = net.ResolveUDPAddr("udp", addr); err1 == nil {
			server, err1 = net.ListenUDP("udp", at)
		}
	})
	a.inside(func() { client, err2 = net.Dial("udp", addr) })
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close(); _ = client.Close() })
	_ = server.SetReadBuffer(4 << 20)
	return server, client
}

// send sends numbered packets, one a millisecond, and gives a turn after every few of them.
func send(conn net.Conn, packets, each int, turn chan<- struct{}) {
	defer close(turn)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := range packets {
		<-tick.C
		_, _ = conn.Write(binary.BigEndian.AppendUint32(nil, uint32(i))) // what is lost is counted at the other end
		if i%each == each-1 {
			turn <- struct{}{}
		}
	}
}

// count counts packets until all have come, or none comes for five seconds.
func count(conn *net.UDPConn, packets int) int {
	seen := map[uint32]bool{}
	buf := make([]byte, 64)
	for len(seen) < packets {
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := conn.Read(buf)
		if err != nil {
			break
		}
		if n == 4 {
			seen[binary.BigEndian.Uint32(buf)] = true
		}
	}
	return len(seen)
}

// TestAsymmetricMethods: while a path changes one direction goes by one method, and the other by
// another. The host's reverse path filter is strict, but loose on the uplink and on tunnels, and the
// tunnels have the node's own address: without one, Linux takes loose for strict.
func TestAsymmetricMethods(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		nettest.NeedLink(t, "ipip")
		a, b := newNodes(t)
		for _, n := range []*node{a, b} {
			n.in("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
			for _, dev := range []string{"eth0", desired.IPIPDevice, desired.VXLANDevice} {
				n.in("sysctl", "-qw", "net.ipv4.conf."+dev+".rp_filter=2")
			}
		}
		for _, there := range []method{ipip, vxlan} {
			if err := errors.Join(a.use(native), b.use(there)); err != nil {
				t.Fatal(err)
			}
			if a.pings(pod(2), 1) {
				t.Errorf("answered by %s to a device without an address: it needs none any more", names[there])
			}
		}
		for _, n := range []*node{a, b} {
			for _, dev := range []string{desired.IPIPDevice, desired.VXLANDevice} {
				n.in("ip", "addr", "add", pod(n.n).String()+"/32", "dev", dev)
			}
		}
		for _, there := range []method{native, ipip, vxlan} {
			for _, back := range []method{native, ipip, vxlan} {
				if err := errors.Join(a.use(there), b.use(back)); err != nil {
					t.Fatal(err)
				}
				for _, to := range []netip.Addr{pod(2), pod6(2)} {
					if !a.pings(to, 3) {
						t.Errorf("%s: no answer, there by %s, back by %s", to, names[there], names[back])
					}
				}
			}
		}
		// A strict uplink is the user's to loosen (docs/install.md).
		a.in("sysctl", "-qw", "net.ipv4.conf.eth0.rp_filter=1")
		if err := errors.Join(a.use(ipip), b.use(native)); err != nil {
			t.Fatal(err)
		}
		if a.pings(pod(2), 1) {
			t.Error("answered natively through a strict uplink: docs/install.md may be corrected")
		}
	})
}
