// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/internal/nettest"
	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/eval"
)

// lab is a node (the test's own namespace) and pods, which say nothing by themselves. Packets are put
// onto a pod's link as frames, and seen on another's as frames, whatever they are. After each goes one of
// a flow that conntrack knows, which no policy stops: when that has arrived, what is missing was dropped.
type lab struct {
	t    *testing.T
	pods []labPod
	next uint32 // marks packets
	odd  int    // protocols without ports that were used
}

type labPod struct {
	name, device string
	socket       int
	ips          [2]netip.Addr
}

var (
	nodeMAC = [6]byte{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
	podMAC  = [6]byte{0x02, 0, 0, 0, 0, 1}
)

const flowPort = 9999

// longest is how long floods go on where the machine is slow: an emulated one sends 30 packets a second.
const longest = 20 * time.Second

func newLab(t *testing.T, n int) *lab {
	l := &lab{t: t}
	for _, s := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+s, []byte("1"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	nettest.Cmd(t, "ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
	nettest.Cmd(t, "ip", "addr", "add", "2001:db8::1/128", "dev", "lo", "nodad")
	for i := range n {
		l.addPod(i)
	}
	return l
}

func (l *lab) addPod(i int) {
	p := labPod{name: fmt.Sprint("pod", i), device: deviceNo(i)}
	p.ips = [2]netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), netip.AddrFrom16([16]byte{0xfd, 15: byte(i + 1)})}
	cmd := func(args ...string) { l.t.Helper(); nettest.Cmd(l.t, "ip", args...) }
	cmd("netns", "add", p.name)
	mac := func(m [6]byte) string { return net.HardwareAddr(m[:]).String() }
	cmd("link", "add", p.device, "address", mac(nodeMAC), "type", "veth", "peer", "name", "eth0", "address", mac(podMAC), "netns", p.name)
	cmd("link", "set", p.device, "up")
	cmd("-n", p.name, "link", "set", "eth0", "up")
	for _, ip := range p.ips {
		cmd("route", "add", netip.PrefixFrom(ip, ip.BitLen()).String(), "dev", p.device)
		cmd("neigh", "add", ip.String(), "lladdr", mac(podMAC), "dev", p.device, "nud", "permanent")
	}
	l.inside(p.name, func() error {
		all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
		if err != nil {
			return err
		}
		p.socket = fd
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: eth0.Index})
	})
	l.t.Cleanup(func() { _ = unix.Close(p.socket) })
	l.pods = append(l.pods, p)
}

// inside runs f with its thread in a namespace: sockets belong to that in which they were made.
func (l *lab) inside(ns string, f func() error) {
	l.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		file, err := os.Open("/run/netns/" + ns)
		if err == nil {
			err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		l.t.Fatal(err)
	}
}

// establish makes conntrack know a flow between each two pods.
func (l *lab) establish() {
	l.t.Helper()
	for family := range 2 {
		for i := range l.pods {
			for j := range i {
				for _, pair := range [][2]int{{i, j}, {j, i}, {i, j}} {
					l.fence(pair[0], pair[1], family)
				}
			}
		}
	}
}

// fence sends a packet of that flow, and says which marks have arrived before it.
func (l *lab) fence(from, to, family int) map[uint32]bool {
	l.t.Helper()
	mark := l.send(from, eval.Packet{Src: l.pods[from].ips[family], Dst: l.pods[to].ips[family], Protocol: policy.UDP, SrcPort: flowPort, DstPort: flowPort})
	seen := map[uint32]bool{}
	buffer := make([]byte, 2048)
	for !seen[mark] {
		n, addr, err := unix.Recvfrom(l.pods[to].socket, buffer, 0)
		if err != nil {
			l.t.Fatalf("%s does not hear of %s: %v", l.pods[to].name, l.pods[from].name, err)
		}
		if at := bytes.Index(buffer[:n], marker); at >= 0 && addr.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_OUTGOING {
			seen[binary.BigEndian.Uint32(buffer[at+len(marker):])] = true
		}
	}
	return seen
}

// passes says whether a packet of a pod gets to another.
func (l *lab) passes(from, to int, p eval.Packet, flags ...byte) bool {
	l.t.Helper()
	family := 0
	if p.Dst.Is6() {
		family = 1
	}
	mark := l.send(from, p, flags...)
	return l.fence(from, to, family)[mark]
}

var marker = []byte("heliograph")

// send puts a packet onto a pod's link. TCP is a SYN if no flags are given.
func (l *lab) send(from int, p eval.Packet, flags ...byte) uint32 {
	l.t.Helper()
	l.next++
	payload := binary.BigEndian.AppendUint32(bytes.Clone(marker), l.next)
	frame := append(append(nodeMAC[:], podMAC[:]...), 0x08, 0x00)
	if p.Dst.Is6() {
		copy(frame[12:], []byte{0x86, 0xdd})
	}
	frame = append(frame, ipPacket(p, transportHeader(p, flags, payload))...)
	if _, err := unix.Write(l.pods[from].socket, frame); err != nil {
		l.t.Fatal(err)
	}
	return l.next
}

func transportHeader(p eval.Packet, flags, payload []byte) []byte {
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.SrcPort), p.DstPort)
	at := -1 // of the checksum
	var h []byte
	switch p.Protocol {
	case policy.TCP:
		f := byte(2)
		if len(flags) > 0 {
			f = flags[0]
		}
		h, at = append(ports, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, f, 0x20, 0, 0, 0, 0, 0), 16
	case policy.UDP, policy.UDPLite:
		h, at = append(binary.BigEndian.AppendUint16(ports, uint16(8+len(payload))), 0, 0), 6
	case policy.SCTP:
		h = append(ports, make([]byte, 8)...)
	case policy.ICMP, policy.ICMPv6:
		h, at = append([]byte{p.ICMPType, p.ICMPCode, 0, 0}, ports...), 2
	}
	h = append(h, payload...)
	if at >= 0 {
		var pseudo []byte
		if p.Protocol != policy.ICMP {
			pseudo = append(append(pseudo, p.Src.AsSlice()...), p.Dst.AsSlice()...)
			pseudo = append(pseudo, 0, byte(p.Protocol), byte(len(h)>>8), byte(len(h)))
		}
		binary.BigEndian.PutUint16(h[at:], checksum(append(pseudo, h...)))
	}
	return h
}

func ipPacket(p eval.Packet, body []byte) []byte {
	if p.Dst.Is4() {
		h := []byte{0x45, 0, 0, byte(20 + len(body)), 0, 0, 0x40, 0, 64, byte(p.Protocol), 0, 0}
		h = append(append(h, p.Src.AsSlice()...), p.Dst.AsSlice()...)
		binary.BigEndian.PutUint16(h[10:], checksum(h))
		return append(h, body...)
	}
	h := []byte{0x60, 0, 0, 0, 0, byte(len(body)), byte(p.Protocol), 64}
	return append(append(append(h, p.Src.AsSlice()...), p.Dst.AsSlice()...), body...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i, v := range b {
		if i%2 == 0 {
			sum += uint32(v) << 8
		} else {
			sum += uint32(v)
		}
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// podsOf lets endpoints be those of the lab.
func (w *world) podsOf(l *lab) {
	for i, p := range l.pods {
		id := policy.EndpointID{Namespace: "ns", Name: fmt.Sprint(i)}
		e := w.Endpoints[id]
		if e == nil {
			e = w.endpoint(id)
		}
		moved := *e
		moved.Device, moved.IPs = p.device, p.ips[:]
		w.Endpoints[id] = &moved
	}
	for id := range w.Endpoints {
		if id.Name >= fmt.Sprint(len(l.pods)) {
			delete(w.Endpoints, id)
		}
	}
}

// TestPacketsAgainstTheEvaluator sends random packets through random states.
func TestPacketsAgainstTheEvaluator(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		seed := uint64(time.Now().UnixNano())
		l, w := newLab(t, 3), newWorld(seed)
		d := New(open(t), quiet())
		free := newBuilder()
		for i, p := range l.pods {
			free.pod(fmt.Sprint(i), p.device, chain(), chain())
		}
		apply(t, d, free.State)
		l.establish()
		allowed, denied := 0, 0
		end := time.Now().Add(longest)
		for i := 0; i < 300 && time.Now().Before(end); i++ {
			w.next()
			w.podsOf(l)
			apply(t, d, w.State)
			e := eval.New(w.State)
			for range 10 {
				from, to := w.IntN(3), w.IntN(3)
				if from == to {
					continue
				}
				p := w.packet(l, from, to)
				want := e.Evaluate(p)
				if got := l.passes(from, to, p); got != (want.Verdict == policy.Allow) {
					t.Fatalf("seed %d: %+v from %d to %d: passes %v, want %s\n%+v\n%+v\n%s", seed, p, from, to, got, want.Verdict, want.Egress, want.Ingress, list(t))
				}
				if want.Verdict == policy.Allow {
					allowed++
				} else {
					denied++
				}
			}
		}
		t.Logf("seed %d: %d allowed, %d denied", seed, allowed, denied)
		if allowed < 100 || denied < 100 {
			t.Errorf("%d allowed, %d denied: too few to mean something", allowed, denied)
		}
	})
}

func (w *world) packet(l *lab, from, to int) eval.Packet {
	family := w.IntN(2)
	l.next++
	p := eval.Packet{Src: l.pods[from].ips[family], Dst: l.pods[to].ips[family]}
	p.Protocol = []policy.Protocol{policy.TCP, policy.TCP, policy.UDP, policy.UDP, policy.SCTP, policy.ICMP, 0}[w.IntN(7-l.odd/99)]
	if p.Protocol == 0 { // another each time: conntrack knows no more of it than the protocol
		l.odd++
		p.Protocol = policy.Protocol(140 + l.odd%100)
	}
	switch {
	case p.Protocol == policy.ICMP:
		p.ICMPType, p.ICMPCode = 8, uint8(w.IntN(2))
		if family == 1 {
			p.Protocol, p.ICMPType = policy.ICMPv6, 128
		}
		p.SrcPort = uint16(l.next) // the identifier
	case p.Protocol.HasPorts():
		p.SrcPort, p.DstPort = uint16(20000+l.next%40000), uint16(78+w.IntN(6))
		if w.IntN(3) == 0 {
			p.SrcPort = uint16(78 + w.IntN(6))
			p.DstPort = uint16(20000 + l.next%40000)
		}
	}
	return p
}
