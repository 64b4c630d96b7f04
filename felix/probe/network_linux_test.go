// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// network is two nodes and a router between them:
//
//	a (the test's own namespace)       router            b
//	10.244.0.1, fd00:244::1                              10.244.1.1, fd00:244:1::1
//	eth0 192.0.2.1 ─────────────── .254  .254 ────────── eth0 198.51.100.1
//	vx ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌ VXLAN ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌ vx
type network struct {
	t     *testing.T
	a, b  *Prober
	stopB func()
}

var podAddrs = map[string][]string{"a": {"10.244.0.1", "fd00:244::1"}, "b": {"10.244.1.1", "fd00:244:1::1"}}

func (n *network) ip(args string) { n.t.Helper(); nettest.Cmd(n.t, "ip", strings.Fields(args)...) }

// in runs a command in a namespace, "" is the test's own.
func (n *network) in(ns, args string) string {
	n.t.Helper()
	f := strings.Fields(args)
	if ns != "" {
		f = append([]string{"ip", "netns", "exec", ns}, f...)
	}
	return nettest.Cmd(n.t, f[0], f[1:]...)
}

func newNetwork(t *testing.T) *network {
	n := &network{t: t}
	n.ip("netns add b")
	n.ip("netns add router")
	n.ip("link add eth0 type veth peer name toa netns router")
	n.ip("-n b link add eth0 type veth peer name tob netns router")
	for _, c := range []string{
		"ip link set lo up", "ip addr add 192.0.2.254/24 dev toa", "ip addr add 198.51.100.254/24 dev tob",
		"ip addr add 2001:db8:1::254/64 dev toa nodad", "ip addr add 2001:db8:2::254/64 dev tob nodad",
		"ip link set toa up", "ip link set tob up", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
		"sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.toa.rp_filter=0 net.ipv4.conf.tob.rp_filter=0",
		"ip route add 10.244.0.1 via 192.0.2.1", "ip route add 10.244.1.1 via 198.51.100.1",
		"ip -6 route add fd00:244::1 via 2001:db8:1::1", "ip -6 route add fd00:244:1::1 via 2001:db8:2::1",
	} {
		n.in("router", c)
	}
	n.node("", "a", "b", 1, 2)
	n.node("b", "b", "a", 2, 1)
	n.a, _ = n.start("", "a", "b")
	n.b, n.stopB = n.start("b", "b", "a")
	return n
}

// node sets up one end.
func (n *network) node(ns, me, other string, mine, others int) {
	outer := []string{"", "192.0.2", "198.51.100"}
	cmds := []string{
		"ip link set lo up",
		fmt.Sprintf("ip addr add %s.1/24 dev eth0", outer[mine]), fmt.Sprintf("ip addr add 2001:db8:%d::1/64 dev eth0 nodad", mine),
		"ip link set eth0 up",
		fmt.Sprintf("ip link add vx address 02:00:00:00:00:0%d mtu 1450 type vxlan id 1 dstport 4789 nolearning local %s.1", mine, outer[mine]),
		"ip link set vx up",
		"sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0 net.ipv4.conf.vx.rp_filter=0",
		fmt.Sprintf("ip route add default via %s.254", outer[mine]), fmt.Sprintf("ip -6 route add default via 2001:db8:%d::254", mine),
		fmt.Sprintf("bridge fdb append 02:00:00:00:00:0%d dev vx dst %s.1", others, outer[others]),
	}
	for i, f := range []string{"-4", "-6"} {
		remote := podAddrs[other][i]
		via := []string{outer[mine] + ".254", fmt.Sprintf("2001:db8:%d::254", mine)}[i]
		cmds = append(cmds,
			fmt.Sprintf("ip %s addr add %s dev lo", f, podAddrs[me][i]),
			fmt.Sprintf("ip %s neigh add %s lladdr 02:00:00:00:00:0%d dev vx nud permanent", f, remote, others),
			fmt.Sprintf("ip %s rule add pref 80 fwmark %d lookup %d", f, desired.MarkNative, desired.TableNative),
			fmt.Sprintf("ip %s rule add pref 80 fwmark %d lookup %d", f, desired.MarkVXLAN, desired.TableVXLAN),
			fmt.Sprintf("ip %s route add %s via %s table %d", f, remote, via, desired.TableNative),
			fmt.Sprintf("ip %s route add %s dev vx table %d", f, remote, desired.TableVXLAN),
		)
	}
	for _, c := range cmds {
		n.in(ns, c)
	}
}

func targetsOf(me, other string, mtu int) []path.Target {
	var out []path.Target
	for i, f := range []bgp.Family{bgp.IPv4, bgp.IPv6} {
		out = append(out, path.Target{
			Key:   path.Key{Node: other, Family: f},
			Local: netip.MustParseAddr(podAddrs[me][i]), Remote: netip.MustParseAddr(podAddrs[other][i]),
			Needs: [path.Methods]path.Need{path.Native: path.Active, path.VXLAN: path.Active},
			MTU:   [path.Methods]int{path.Native: mtu, path.VXLAN: 1450},
		})
	}
	return out
}

// start runs a prober in a namespace, on a thread that never comes back from there.
func (n *network) start(ns, me, other string) (*Prober, func()) {
	n.t.Helper()
	index, err := strconv.Atoi(strings.Split(n.in(ns, "ip -o link show vx"), ":")[0])
	if err != nil {
		n.t.Fatal(err)
	}
	p, err := New(Options{
		Marks: [path.Methods]uint32{desired.MarkNative, desired.MarkIPIP, desired.MarkVXLAN},
		MethodOf: func(i int) path.Method {
			if i == index {
				return path.VXLAN
			}
			return path.Native
		},
	}, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		n.t.Fatal(err)
	}
	c := Config{Key: testKey, Capabilities: path.CanVXLAN}
	for i := range 2 {
		c.Locals = append(c.Locals, netip.MustParseAddr(podAddrs[me][i]))
		c.Peers = append(c.Peers, netip.MustParseAddr(podAddrs[other][i]))
	}
	p.SetConfig(c)
	p.SetTargets(targetsOf(me, other, 1500))
	ctx, cancel := context.WithCancel(n.t.Context())
	done := make(chan error, 1)
	go func() {
		if ns != "" {
			runtime.LockOSThread()
			if err := enter(ns); err != nil {
				done <- err
				return
			}
		}
		done <- p.Run(ctx)
	}()
	stop := func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
		done <- nil
	}
	n.t.Cleanup(stop)
	return p, stop
}

func enter(ns string) error {
	f, err := os.Open("/run/netns/" + ns)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
}

// drop makes the router drop what matches, and nothing else.
func (n *network) drop(rules ...string) {
	n.t.Helper()
	n.in("router", "nft flush ruleset")
	n.in("router", "nft add table inet t")
	n.in("router", "nft add chain inet t f { type filter hook forward priority 0 ; }")
	for _, r := range rules {
		n.in("router", "nft add rule inet t f "+r+" drop")
	}
}

// want waits until both families' reports of a prober are as they should be.
func (n *network) want(what string, p *Prober, ok func(path.Report) bool) {
	n.t.Helper()
	began, deadline := time.Now(), time.After(40*time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		good := 0
		for _, r := range p.Reports() {
			if ok(r) {
				good++
			}
		}
		if good == 2 {
			n.t.Logf("%s: after %v", what, time.Since(began).Round(10*time.Millisecond))
			return
		}
		select {
		case <-p.Changed():
		case <-tick.C:
		case <-deadline:
			n.t.Fatalf("%s: not within 40 s: %+v", what, p.Reports())
		}
	}
}

func verdicts(native, vxlan path.Verdict) func(path.Report) bool {
	return func(r path.Report) bool {
		return r.Methods[path.Native].Verdict == native && r.Methods[path.VXLAN].Verdict == vxlan && !r.Silent
	}
}

func proven(r path.Report) bool {
	return verdicts(path.Answers, path.Answers)(r) && r.Methods[path.Native].Run >= path.Window &&
		r.Methods[path.VXLAN].Run >= path.Window && !r.Methods[path.Native].Kernel
}

const (
	toB4, toB6 = "ip daddr 10.244.1.1", "ip6 daddr fd00:244:1::1"
	toA4, toA6 = "ip daddr 10.244.0.1", "ip6 daddr fd00:244::1"
)

func TestNetwork(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		n := newNetwork(t)
		lost, answers := path.Lost, path.Answers
		n.want("all answers", n.a, proven)
		n.want("all answers at b", n.b, proven)
		n.want("MTUs", n.a, func(r path.Report) bool {
			return r.Methods[path.Native].MTU == 1500 && r.Methods[path.VXLAN].MTU == 1450 && r.Remote == path.CanVXLAN
		})
		n.drop(toB4, toB6, toA4, toA6)
		n.want("native is a blackhole", n.a, verdicts(lost, answers))
		n.want("native is a blackhole for b", n.b, verdicts(lost, answers))
		n.drop()
		n.want("native is back", n.a, proven)
		n.drop(toB4, toB6)
		n.want("one direction is lost", n.a, verdicts(lost, answers))
		n.want("and so it is for b", n.b, verdicts(lost, answers))
		n.drop()
		n.want("both directions are back", n.a, proven)
		n.drop("udp dport 4789")
		n.want("VXLAN is a blackhole", n.a, verdicts(answers, lost))
		n.drop()
		n.want("VXLAN is back", n.a, proven)
		n.drop("meta length 1-65535")
		n.want("nothing gets through", n.a, func(r path.Report) bool {
			return r.Silent && r.Methods[path.Native].Verdict == path.Unknown && r.Methods[path.VXLAN].Verdict == path.Unknown
		})
		n.drop()
		n.want("all is back", n.a, proven)
	})
}

// TestNetworkMTU: the router drops large packets and says nothing.
func TestNetworkMTU(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		n := newNetwork(t)
		n.drop("meta length 1401-65535")
		n.want("MTU", n.a, func(r path.Report) bool {
			native, vxlan := r.Methods[path.Native], r.Methods[path.VXLAN]
			// VXLAN's outer packet is 50 bytes larger than the inner one.
			return native.MTU > 1400-sizingGrain-1 && native.MTU <= 1400 && vxlan.MTU > 1350-sizingGrain-1 && vxlan.MTU <= 1350 &&
				native.Verdict == path.Answers && vxlan.Verdict == path.Answers
		})
	})
}

// TestNetworkKernel: the other agent is down, its kernel is not.
func TestNetworkKernel(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		n := newNetwork(t)
		n.want("all answers", n.a, proven)
		n.stopB()
		kernel := func(r path.Report) bool { return r.Methods[path.Native].Kernel && r.Methods[path.VXLAN].Kernel }
		n.want("the kernel answers", n.a, func(r path.Report) bool {
			return verdicts(path.Answers, path.Answers)(r) && kernel(r)
		})
		n.drop(toB4, toB6)
		n.want("native is a blackhole", n.a, func(r path.Report) bool { return verdicts(path.Lost, path.Answers)(r) && kernel(r) })
		n.drop()
		n.want("native is back", n.a, func(r path.Report) bool { return verdicts(path.Answers, path.Answers)(r) && kernel(r) })
		n.b, n.stopB = n.start("b", "b", "a")
		n.want("the agent is back", n.a, proven)
	})
}
