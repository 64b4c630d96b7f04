// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/internal/nettest"
	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/eval"
)

// bound is a lab of so many pods, all free, with a driver and known flows.
func bound(t *testing.T, n int) (*lab, *Table, builder) {
	l, d, b := newLab(t, n), New(open(t), quiet()), newBuilder()
	for i := range l.pods {
		b.labPod(l, i, chain(), chain())
	}
	apply(t, d, b.State)
	l.establish()
	return l, d, b
}

func (b builder) labPod(l *lab, i int, ingress, egress policy.Chain) {
	p := l.pods[i]
	b.pod(p.name, p.device, ingress, egress, p.ips[0].String(), p.ips[1].String())
}

func (b builder) copy() builder {
	c := newBuilder()
	for id, s := range b.Sets {
		c.Sets[id] = s
	}
	for id, p := range b.Policies {
		c.Policies[id] = p
	}
	for id, e := range b.Endpoints {
		c.Endpoints[id] = e
	}
	return c
}

// tcp is a connection that nobody has opened before.
func (l *lab) tcp(from, to, family int, port uint16) eval.Packet {
	l.next++
	return eval.Packet{
		Src: l.pods[from].ips[family], Dst: l.pods[to].ips[family], Protocol: policy.TCP, SrcPort: uint16(20000 + l.next%40000), DstPort: port,
	}
}

// expect sends packets of both families.
func (l *lab) expect(what string, want bool, send func(family int) bool) {
	l.t.Helper()
	for family := range 2 {
		if got := send(family); got != want {
			l.t.Errorf("%s, family %d: passes %v, want %v\n%s", what, family, got, want, list(l.t))
		}
	}
}

func (l *lab) opens(from, to int, port uint16) func(int) bool {
	return func(family int) bool { l.t.Helper(); return l.passes(from, to, l.tcp(from, to, family, port)) }
}

func TestUnknownDevicesAndEndpoints(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		l, d, b := bound(t, 3)
		l.expect("between the known", true, l.opens(0, 1, 80))

		unknown := b.copy()
		id := policy.EndpointID{Namespace: "prod", Name: "pod1"}
		e := *b.Endpoints[id]
		e.Unknown = true
		unknown.Endpoints[id] = &e
		apply(t, d, unknown.State)
		l.expect("to the unknown", false, l.opens(0, 1, 80))
		l.expect("from the unknown", false, l.opens(1, 0, 80))
		l.expect("its established flow", true, func(family int) bool { l.fence(0, 1, family); return true })

		gone := b.copy()
		delete(gone.Endpoints, id)
		apply(t, d, gone.State)
		l.expect("to a device that is no endpoint", false, l.opens(0, 1, 80))
		l.expect("from a device that is no endpoint", false, l.opens(1, 0, 80))
		apply(t, d, policy.NewState())
		l.expect("when there is none", false, l.opens(0, 2, 80))
		apply(t, d, b.State)
		l.expect("when it is back", true, l.opens(0, 1, 80))
	})
}

// TestNodeAndPod: the node may talk to its pods, whatever their policies, but not to a device that is no
// endpoint; a pod to its node as its egress says.
func TestNodeAndPod(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		l, d, b := bound(t, 2)
		none, only80 := b.ingress("none"), b.egress("only-80", policy.Rule{Action: policy.Allow, Match: policy.Match{Transport: []policy.Transport{to(policy.UDP, 80)}}})
		b.labPod(l, 0, chain(tier(none)), chain(tier(only80)))
		apply(t, d, b.State)
		l.expect("node to a closed pod", true, func(family int) bool { return l.fromNode(0, family) })
		l.expect("pod to node, allowed", true, func(family int) bool { return l.toNode(0, family, 80) })
		l.expect("pod to node, denied", false, func(family int) bool { return l.toNode(0, family, 81) })
		l.expect("free pod to node", true, func(family int) bool { return l.toNode(1, family, 81) })
		l.expect("closed pod asks for its gateway", true, func(int) bool { return l.solicits(0) })

		delete(b.Endpoints, policy.EndpointID{Namespace: "prod", Name: "pod0"})
		d.Update(policy.Delta{Endpoints: []policy.EndpointChange{{ID: policy.EndpointID{Namespace: "prod", Name: "pod0"}, Op: policy.Removed}}})
		if err := d.Apply(context.Background()); err != nil {
			t.Fatal(err)
		}
		l.expect("node to what is no endpoint", false, func(family int) bool { return l.fromNode(0, family) })
		l.expect("what is no endpoint to node", false, func(family int) bool { return l.toNode(0, family, 80) })
		l.expect("it asks for its gateway", false, func(int) bool { return l.solicits(0) })
	})
}

// counted is what all rules have counted. What base chains have dropped: unlike a pod, the node is no place where frames are seen.
func (l *lab) counted() uint64 {
	l.t.Helper()
	var sum uint64
	counts, err := open(l.t).Counters()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, c := range counts {
		sum += c.Packets
	}
	return sum
}

// fromNode sends a datagram of the node, and says whether it gets to the pod's link.
func (l *lab) fromNode(to, family int) bool {
	l.t.Helper()
	before := l.counted()
	domain, addr := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: 7, Addr: l.pods[to].ips[0].As4()})
	if family == 1 {
		domain, addr = unix.AF_INET6, &unix.SockaddrInet6{Port: 7, Addr: l.pods[to].ips[1].As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	defer unix.Close(fd) //nolint:errcheck // a test's
	err = unix.Sendto(fd, []byte("x"), 0, addr)
	return err == nil && l.counted() == before // what the output hook drops is EPERM to the sender
}

// toNode sends a datagram to the node, and says whether a socket there gets it.
func (l *lab) toNode(from, family int, port uint16) bool {
	l.t.Helper()
	node := [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}[family]
	l.next++
	p := eval.Packet{Src: l.pods[from].ips[family], Dst: node, Protocol: policy.UDP, SrcPort: uint16(20000 + l.next), DstPort: port}
	return l.arrives(func() { l.send(from, p) }, domainOf(family), port)
}

func domainOf(family int) int { return [2]int{unix.AF_INET, unix.AF_INET6}[family] }

// arrives says whether what is sent reaches a UDP socket of the node. The kernel handles a frame that is
// written to one end of a veth pair before a second one; so a second, of no interest, is waited for.
func (l *lab) arrives(send func(), domain int, port uint16) bool {
	l.t.Helper()
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	defer unix.Close(fd) //nolint:errcheck // a test's
	bind := unix.Sockaddr(&unix.SockaddrInet4{Port: int(port)})
	if domain == unix.AF_INET6 {
		bind = &unix.SockaddrInet6{Port: int(port)}
	}
	if err := unix.Bind(fd, bind); err != nil {
		l.t.Fatal(err)
	}
	send()
	for i := range l.pods[1:] {
		l.fence(i, i+1, 0)
		l.fence(i+1, i, 0)
	}
	_, _, err = unix.Recvfrom(fd, make([]byte, 64), 0)
	return err == nil
}

// solicits sends a neighbour solicitation to the node, and says whether one of the base chains dropped it.
func (l *lab) solicits(from int) bool {
	l.t.Helper()
	before := l.counted()
	p := eval.Packet{
		Src: l.pods[from].ips[1], Dst: netip.MustParseAddr("2001:db8::1"), Protocol: policy.ICMPv6, ICMPType: 135,
	}
	l.send(from, p)
	l.fence(0, 1, 1)
	l.fence(1, 0, 1)
	return l.counted() == before
}

// TestMidStream: when the entry of a connection was deleted, its segments do not make it anew.
func TestMidStream(t *testing.T) {
	const push, ack = 0x08, 0x10
	nettest.Run(t, func(t *testing.T) {
		l, d, b := bound(t, 2)
		flags := func(from, to int, flags byte) func(int) bool {
			return func(family int) bool { return l.passes(from, to, l.tcp(from, to, family, 80), flags) }
		}
		l.expect("mid-stream between the free", true, flags(0, 1, ack))
		all := b.ingress("all", policy.Rule{Action: policy.Allow})
		b.labPod(l, 1, chain(tier(all)), chain())
		apply(t, d, b.State)
		l.expect("SYN to the isolated", true, l.opens(0, 1, 80))
		l.expect("mid-stream to the isolated", false, flags(0, 1, ack))
		l.expect("mid-stream from the isolated", false, flags(1, 0, ack))
		l.expect("with data", false, flags(1, 0, push|ack))
		audit := *b.Policies[all]
		audit.Audit = true
		b.Policies[all] = &audit
		d.Update(policy.Delta{Policies: []policy.PolicyChange{{ID: all, Op: policy.Changed, Policy: &audit}}})
		if err := d.Apply(context.Background()); err != nil {
			t.Fatal(err)
		}
		l.expect("a policy that only audits isolates nobody", true, flags(0, 1, ack))
	})
}

func TestToItself(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		l, d, b := bound(t, 2)
		none := b.ingress("none")
		b.labPod(l, 0, chain(tier(none)), chain(tier(none)))
		apply(t, d, b.State)
		l.expect("to another", false, l.opens(0, 1, 80))
		l.expect("to itself", true, func(family int) bool {
			mark := l.send(0, l.tcp(0, 0, family, 80))
			return l.fence(1, 0, family)[mark]
		})
	})
}

// TestCountersOfPackets: what matches by any alternative counts once, whatever the rule does.
func TestCountersOfPackets(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		l, d, b := bound(t, 2)
		b.Sets["one"], b.Sets["two"] = addressSet("10.0.0.1", "fd00::1"), addressSet("10.0.0.0/24", "fd00::/64")
		both := policy.Match{Source: in("one", "two")}
		audit := b.ingress("audit", policy.Rule{Action: policy.Log, Match: both}, policy.Rule{Action: policy.Deny, Match: both})
		b.Policies[audit].Audit = true
		web := b.ingress("web", policy.Rule{Action: policy.Log, Match: both},
			policy.Rule{Action: policy.Allow, Match: policy.Match{Transport: []policy.Transport{to(policy.TCP, 80, 443)}}},
			policy.Rule{Action: policy.Deny, Match: both})
		b.labPod(l, 1, chain(tier(audit, web)), chain())
		apply(t, d, b.State)
		l.expect("allowed", true, l.opens(0, 1, 443))
		l.expect("denied", false, l.opens(0, 1, 81))
		got, err := d.Counters(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for id, want := range map[policy.RuleID]uint64{
			{Policy: audit, Index: 0}: 4, {Policy: audit, Index: 1}: 4,
			{Policy: web, Index: 0}: 4, {Policy: web, Index: 1}: 2, {Policy: web, Index: 2}: 2,
		} {
			if got[id].Packets != want {
				t.Errorf("%s counted %d, want %d\n%s", id, got[id].Packets, want, list(t))
			}
		}
	})
}

// TestRestartsHaveNoGap: while drivers that know nothing take over again and again, nothing that is denied
// gets through, and nothing that is allowed is lost.
func TestRestartsHaveNoGap(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		l, d, b := bound(t, 2)
		web := b.ingress("web", policy.Rule{Action: policy.Allow, Match: policy.Match{Transport: []policy.Transport{to(policy.TCP, 80)}}})
		b.labPod(l, 1, chain(tier(web)), chain())
		apply(t, d, b.State)
		more := b.copy()
		more.Sets["set"] = addressSet("10.0.0.7")
		more.ingress("web", policy.Rule{Action: policy.Deny, Match: policy.Match{Source: in("set")}},
			policy.Rule{Action: policy.Allow, Match: policy.Match{Transport: []policy.Transport{to(policy.TCP, 80)}}})
		more.labPod(l, 1, chain(tier(web, more.ingress("none"))), chain())
		ctx, cancel := context.WithCancel(context.Background())
		restarts := make(chan int)
		go func() {
			n := 0
			for ; ctx.Err() == nil; n++ {
				next := New(d.handle, quiet())
				next.Update([2]*policy.State{b.State, more.State}[n%2].Delta())
				if err := next.Apply(context.Background()); err != nil {
					t.Error(err)
				}
			}
			restarts <- n
		}()
		lost, leaked := 0, 0
		end := time.Now().Add(longest)
		for i := 0; i < 2000 && time.Now().Before(end); i++ {
			for family := range 2 {
				if !l.opens(0, 1, 80)(family) {
					lost++
				}
				if l.opens(0, 1, 81)(family) {
					leaked++
				}
			}
		}
		cancel()
		t.Logf("%d restarts", <-restarts)
		if lost > 0 || leaked > 0 {
			t.Errorf("%d lost, %d leaked", lost, leaked)
		}
	})
}

// TestSCTP needs no module: the ports are where all protocols have them.
func TestSCTP(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		l, d, b := bound(t, 2)
		sctp := b.ingress("sctp", policy.Rule{Action: policy.Allow, Match: policy.Match{Transport: []policy.Transport{to(policy.SCTP, 80)}}})
		b.labPod(l, 1, chain(tier(sctp)), chain())
		apply(t, d, b.State)
		send := func(p policy.Protocol, port uint16) func(int) bool {
			return func(family int) bool {
				packet := l.tcp(0, 1, family, port)
				packet.Protocol = p
				return l.passes(0, 1, packet)
			}
		}
		l.expect("SCTP 80", true, send(policy.SCTP, 80))
		l.expect("SCTP 81", false, send(policy.SCTP, 81))
		l.expect("TCP 80", false, send(policy.TCP, 80))
	})
}

// TestLogs: what a rule denies is told to the group, with its prefix.
func TestLogs(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		l, d, b := bound(t, 2)
		deny := b.ingress("deny", policy.Rule{Action: policy.Deny})
		b.labPod(l, 1, chain(tier(deny)), chain())
		apply(t, d, b.State)
		out := list(t)
		prefix := policy.LogPrefix(policy.Deny, policy.RuleID{Policy: deny}.String())
		if want := fmt.Sprintf("log prefix %q group %d", prefix, policy.LogGroup); !strings.Contains(out, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
		l.expect("denied", false, l.opens(0, 1, 80))
	})
}
