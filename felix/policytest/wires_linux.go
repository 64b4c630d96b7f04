// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/policy"
)

// protocols are those that packets of tests have. The node has a socket for each.
var protocols = []policy.Protocol{policy.TCP, policy.UDP, policy.ICMP, policy.ICMPv6, policy.SCTP, policy.UDPLite, unassigned}

// fenceType is the type of the frames that follow a burst (IEEE 802.1's local experimental one). No
// firewall sees them.
const fenceType = 0x88b5

// wires are the sockets that packets go in by and come out by.
//
// One thread sends, bound to one processor. So all packets stand in that processor's backlog in the
// order in which they were sent, and a frame that is sent last and arrived says that all before it
// have arrived, or never will.
type wires struct {
	peers   *ring // at the pods' and the outside's ends
	node    *ring // at the node's ends, of fences
	output  [2]int
	input   []input
	ifindex map[End]int // of the peers
	devices map[End]int // of the node's ends
	ends    map[int]End // of a peer's ifindex
	work    chan func()
	ids     atomic.Uint32
}

// input is a socket that sees what came in to the node itself.
type input struct {
	fd       int
	protocol policy.Protocol
	is4      bool
}

func command(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

func openWires(l *Lab) *wires {
	w := &wires{ifindex: map[End]int{}, devices: map[End]int{}, ends: map[int]End{}, work: make(chan func())}
	must := func(what string, err error) {
		if err != nil {
			l.t.Fatalf("%s: %v", what, err)
		}
	}
	l.inPeers(func() (err error) {
		w.peers, err = packetSocket(unix.ETH_P_ALL)
		for e := Outside; e <= rogue && err == nil; e++ {
			var i *net.Interface
			if i, err = net.InterfaceByName(peer(e)); err == nil {
				w.ifindex[e], w.ends[i.Index] = i.Index, e
			}
		}
		return err
	})
	var err error
	w.node, err = packetSocket(fenceType)
	must("open packet socket", err)
	for e := Outside; e <= rogue; e++ {
		device := "out0"
		if e != Outside {
			device = l.pod(e).Device
		}
		i, err := net.InterfaceByName(device)
		must("find "+device, err)
		w.devices[e] = i.Index
	}
	must("open raw sockets", w.openRaw())
	go w.send()
	l.t.Cleanup(w.close)
	must("wait for the wires", w.warm())
	return w
}

// warm returns once every wire carries frames both ways. The kernel makes a device ready some time after
// the other end is, and drops what is sent before.
func (w *wires) warm() error {
	for e := Outside; e <= rogue; e++ {
		for _, way := range []struct {
			from    *ring
			ifindex int
			to      *ring
		}{{w.node, w.devices[e], w.peers}, {w.peers, w.ifindex[e], w.node}} {
			var err error
			for range 50 {
				id := w.nextID(1)
				send := func() error { return w.fenceFrame(way.from, way.ifindex, id) }
				if err = w.do(send); err == nil {
					_, err = w.collect(way.to, id, 100*time.Millisecond)
				}
				if err == nil {
					break
				}
			}
			if err != nil {
				return fmt.Errorf("%s: %w", e, err)
			}
		}
	}
	return nil
}

func packetSocket(protocol uint16) (*ring, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(protocol)))
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return nil, err
	}
	return useRing(fd)
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (w *wires) openRaw() error {
	for i, family := range []int{unix.AF_INET, unix.AF_INET6} {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		w.output[i] = fd
		for _, p := range protocols {
			fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(p))
			if err != nil {
				return fmt.Errorf("protocol %s: %w", p, err)
			}
			w.input = append(w.input, input{fd, p, family == unix.AF_INET})
		}
	}
	return nil
}

func (w *wires) close() {
	close(w.work)
	w.peers.close()
	w.node.close()
	for _, fd := range w.output {
		_ = unix.Close(fd)
	}
	for _, in := range w.input {
		_ = unix.Close(in.fd)
	}
}

// send runs what is to be sent, on the one thread.
func (w *wires) send() {
	runtime.LockOSThread()
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err == nil {
		n := rand.IntN(cpus.Count()) //nolint:gosec // so that tests beside each other do not share one
		for cpu := range 8 * len(cpus) * 8 {
			if !cpus.IsSet(cpu) {
				continue
			}
			if n--; n < 0 {
				cpus.Zero()
				cpus.Set(cpu)
				_ = unix.SchedSetaffinity(0, &cpus) // without it, fences are a little less sure
				break
			}
		}
	}
	for f := range w.work {
		f()
	}
}

// nextID gives n ids that nobody else has.
func (w *wires) nextID(n int) uint32 {
	return w.ids.Add(uint32(n)) - uint32(n) + 1 //nolint:gosec // few
}

// do runs f on the sending thread.
func (w *wires) do(f func() error) error {
	done := make(chan error)
	w.work <- func() { done <- f() }
	return <-done
}

// inject sends one packet from where it comes from. On the sending thread.
func (w *wires) inject(from End, p []byte) error {
	if from == Node {
		return w.originate(p)
	}
	kind := uint16(unix.ETH_P_IP)
	if p[0]>>4 == 6 {
		kind = unix.ETH_P_IPV6
	}
	dst, _ := net.ParseMAC(nodeMAC)
	if from == Outside {
		dst, _ = net.ParseMAC(outMAC)
	}
	return w.frame(w.peers.fd, w.ifindex[from], dst, peerMAC(from), kind, p)
}

func (w *wires) frame(fd, ifindex int, dst, src net.HardwareAddr, kind uint16, payload []byte) error {
	f := binary.BigEndian.AppendUint16(append(append(make([]byte, 0, 14+len(payload)), dst...), src...), kind)
	to := &unix.SockaddrLinklayer{Ifindex: ifindex, Protocol: htons(kind), Halen: 6}
	copy(to.Addr[:], dst)
	return unix.Sendto(fd, append(f, payload...), 0, to)
}

// originate sends as the node itself. That a firewall drops it is no error of the test.
func (w *wires) originate(p []byte) error {
	s, ok := parse(p)
	if !ok {
		return errors.New("no packet of ours")
	}
	var err error
	if s.dst.Is4() {
		err = unix.Sendto(w.output[0], p, 0, &unix.SockaddrInet4{Addr: s.dst.As4()})
	} else {
		err = unix.Sendto(w.output[1], p, 0, &unix.SockaddrInet6{Addr: s.dst.As16()})
	}
	if errors.Is(err, unix.EPERM) {
		return nil
	}
	return err
}

// arrival is a packet of ours that came out.
type arrival struct {
	seen
	at End
}

// patience is how long a fence may take.
const patience = 5 * time.Second

// fence returns once all that was sent has come out, and what came out meanwhile. It goes through a wire to
// the node first, then back, behind what the node has forwarded by then.
func (w *wires) fence(id uint32) ([]arrival, error) {
	if err := w.do(func() error { return w.fenceFrame(w.peers, w.ifindex[Outside], id) }); err != nil {
		return nil, err
	}
	if _, err := w.collect(w.node, id, patience); err != nil {
		return nil, fmt.Errorf("fence to the node: %w", err)
	}
	if err := w.do(func() error { return w.fenceFrame(w.node, w.devices[Outside], id) }); err != nil {
		return nil, err
	}
	got, err := w.collect(w.peers, id, patience)
	if err != nil {
		return nil, fmt.Errorf("fence to the pods: %w", err)
	}
	return w.drain(got), nil
}

func (w *wires) fenceFrame(by *ring, ifindex int, id uint32) error {
	broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	return w.frame(by.fd, ifindex, broadcast, net.HardwareAddr{2, 0, 0, 0, 0xfe, 0}, fenceType, binary.BigEndian.AppendUint32(nil, id))
}

// collect reads until the fence.
func (w *wires) collect(r *ring, id uint32, longest time.Duration) (got []arrival, err error) {
	buf := make([]byte, frameSize)
	for deadline := time.Now().Add(longest); time.Now().Before(deadline); {
		n, ifindex, ok := r.read(buf)
		if !ok {
			r.wait(50)
			continue
		}
		if n >= 18 && binary.BigEndian.Uint16(buf[12:]) == fenceType {
			if binary.BigEndian.Uint32(buf[14:]) == id {
				return got, nil
			}
			continue
		}
		if a, ok := w.arrived(buf[:n], ifindex); ok {
			got = append(got, a)
		}
	}
	return got, errors.New("it did not arrive")
}

func (w *wires) arrived(frame []byte, ifindex int) (arrival, bool) {
	if len(frame) < 14 {
		return arrival{}, false
	}
	s, ok := parse(frame[14:])
	return arrival{s, w.ends[ifindex]}, ok
}

// drain adds what has come in to the node itself.
func (w *wires) drain(got []arrival) []arrival {
	buf := make([]byte, 2048)
	for _, in := range w.input {
		for {
			n, from, err := unix.Recvfrom(in.fd, buf, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				break
			}
			if s, ok := in.parse(buf[:n], from); ok {
				got = append(got, arrival{s, Node})
			}
		}
	}
	return got
}

// parse reads what a raw socket gives: of IPv6 it comes without the header.
func (in input) parse(b []byte, from unix.Sockaddr) (seen, bool) {
	if in.is4 {
		return parse(b)
	}
	s := seen{protocol: in.protocol}
	if a, ok := from.(*unix.SockaddrInet6); ok {
		s.src = netip.AddrFrom16(a.Addr)
	}
	return s, s.readTail(b)
}
