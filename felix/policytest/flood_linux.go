// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/heliograph-dev/heliograph/policy"
)

// Flood is a steady stream of packets that are allowed and of such that are denied, while something is
// done to a renderer: what is denied must never get in, what is allowed never be lost.
//
// Each packet begins a flow of its own. Beside them there is, for each of UDP that is allowed, one flow
// that goes on for all the time, in both directions: it is established, whatever the rules become.
type Flood struct {
	lab     *Lab
	allowed []Packet
	denied  []Packet
	lasting []Packet
	stop    chan struct{}
	done    chan struct{}
	heard   chan []arrival
	sent    map[uint32]fate
	err     error
}

// fate is what is to become of a packet.
type fate byte

const (
	isAllowed fate = iota
	isDenied
	isLasting
)

// FloodResult is what became of a flood.
type FloodResult struct {
	Allowed, Denied, Lasting int // sent
	Lost, Leaked, Cut        int // of these: not arrived, arrived, not arrived
	Overflow                 int // packets that the test's own socket had no room for: they count as lost
}

// String is one line.
func (r FloodResult) String() string {
	return fmt.Sprintf("%d allowed flows, of which %d lost; %d denied, %d let in; %d packets of lasting flows, %d lost; %d overflows",
		r.Allowed, r.Lost, r.Denied, r.Leaked, r.Lasting, r.Cut, r.Overflow)
}

// Packet makes one from pod to pod, for Flood and Pass.
func (l *Lab) Packet(from, to End, f policy.Family, p policy.Protocol, port uint16) Packet {
	pick := func(e End) netip.Addr {
		list := l.Outside
		switch {
		case e == Node:
			list = l.Node
		case e >= 0:
			list = l.pod(e).IPs
		}
		for _, ip := range list {
			if ip.Is4() == (f == policy.IPv4) {
				return ip
			}
		}
		return netip.Addr{}
	}
	out := Packet{From: from, To: to}
	out.Src, out.Dst, out.Protocol, out.SrcPort, out.DstPort, out.FromNode = pick(from), pick(to), p, 40000, port, from == Node
	switch p {
	case policy.ICMP:
		out.ICMPType = 8
	case policy.ICMPv6:
		out.ICMPType = 128
	}
	return out
}

// Pass sends packets, each of a flow that nobody knows, and says for each where it arrived.
func (l *Lab) Pass(packets ...Packet) [][]End {
	l.t.Helper()
	arrived, err := l.pass(packets)
	if err != nil {
		l.t.Fatal(err)
	}
	out := make([][]End, len(packets))
	for i, at := range arrived {
		out[i] = at
	}
	return out
}

// AtNode makes packets from the outside to the node and back, to each of two ports, of both families, by TCP and
// UDP.
func (l *Lab) AtNode(port, other uint16) (toPort, toOther []Packet) {
	for _, f := range []policy.Family{policy.IPv4, policy.IPv6} {
		for _, p := range []policy.Protocol{policy.TCP, policy.UDP} {
			toPort = append(toPort, l.Packet(Outside, Node, f, p, port), l.Packet(Node, Outside, f, p, port))
			toOther = append(toOther, l.Packet(Outside, Node, f, p, other), l.Packet(Node, Outside, f, p, other))
		}
	}
	return toPort, toOther
}

// Expect sends packets, and reports as errors those that arrive and should not, or the other way round.
func (l *Lab) Expect(when string, arrive bool, packets ...Packet) {
	l.t.Helper()
	for i, at := range l.Pass(packets...) {
		if (len(at) > 0) != arrive {
			l.t.Errorf("%s: %s arrived at %s, want %t", when, packets[i], at, arrive)
		}
	}
}

// Flood begins a flood between pods and the outside. The rules must be in force already.
func (l *Lab) Flood(allowed, denied []Packet) *Flood {
	f := &Flood{
		lab: l, allowed: allowed, denied: denied, sent: map[uint32]fate{},
		stop: make(chan struct{}), done: make(chan struct{}), heard: make(chan []arrival),
	}
	for _, p := range allowed {
		if p.Protocol != policy.UDP {
			continue
		}
		p.SrcPort = 19999
		back := p
		back.From, back.To, back.Src, back.Dst, back.SrcPort, back.DstPort = p.To, p.From, p.Dst, p.Src, p.DstPort, p.SrcPort
		f.lasting = append(f.lasting, p, back)
	}
	go f.listen()
	go f.send()
	return f
}

// send sends one packet of each sort at each tick.
func (f *Flood) send() {
	defer close(f.done)
	const pace = 2 * time.Millisecond
	ticker := time.NewTicker(pace)
	defer ticker.Stop()
	for round := uint16(0); ; round++ {
		select {
		case <-f.stop:
			return
		case <-ticker.C:
		}
		f.tick(round)
	}
}

// tick sends one packet of each sort.
func (f *Flood) tick(round uint16) {
	w := f.lab.wires
	err := w.do(func() error {
		var errs []error
		for s, list := range [][]Packet{isAllowed: f.allowed, isDenied: f.denied, isLasting: f.lasting} {
			for _, p := range list {
				if fate(s) != isLasting {
					p.SrcPort = 20000 + round%40000
				}
				id := w.nextID(1)
				f.sent[id] = fate(s)
				if err := w.inject(p.From, p.marshal(id)); err != nil {
					errs = append(errs, fmt.Errorf("send %s: %w", p, err))
				}
			}
		}
		return errors.Join(errs...)
	})
	if f.err == nil {
		f.err = err
	}
}

// listen reads what arrives, so that no socket overflows.
func (f *Flood) listen() {
	var got []arrival
	w := f.lab.wires
	buf := make([]byte, frameSize)
	for {
		if n, ifindex, ok := w.peers.read(buf); ok {
			if a, ok := w.arrived(buf[:n], ifindex); ok {
				got = append(got, a)
			}
			continue
		}
		got = w.drain(got)
		select {
		case <-f.done:
			f.heard <- got
			return
		default:
			w.peers.wait(20)
		}
	}
}

// Stop ends the flood, and fails the test if anything was lost or got in.
func (f *Flood) Stop() FloodResult {
	f.lab.t.Helper()
	close(f.stop)
	<-f.done
	got := <-f.heard
	rest, err := f.lab.wires.fence(f.lab.wires.nextID(1))
	if err = errors.Join(f.err, err); err != nil {
		f.lab.t.Fatalf("flood: %v", err)
	}
	r := f.tally(append(got, rest...))
	f.lab.t.Logf("flood: %s", r)
	switch {
	case r.Leaked > 0:
		f.lab.t.Errorf("the flood got in: %s", r)
	case r.Lost+r.Cut > r.Overflow:
		f.lab.t.Errorf("of the flood some was lost: %s", r)
	case r.Allowed == 0 || r.Denied == 0 && len(f.denied) > 0:
		f.lab.t.Errorf("there was no flood: %s", r)
	}
	return r
}

func (f *Flood) tally(got []arrival) FloodResult {
	var r FloodResult
	arrived := map[uint32]bool{}
	for _, a := range got {
		arrived[a.id] = true
	}
	for id, s := range f.sent {
		switch s {
		case isAllowed:
			r.Allowed++
			r.Lost += map[bool]int{false: 1}[arrived[id]]
		case isDenied:
			r.Denied++
			r.Leaked += map[bool]int{true: 1}[arrived[id]]
		case isLasting:
			r.Lasting++
			r.Cut += map[bool]int{false: 1}[arrived[id]]
		}
	}
	r.Overflow = f.lab.wires.peers.overflows()
	return r
}
