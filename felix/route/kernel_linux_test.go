// SPDX-License-Identifier: Apache-2.0

package route_test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/route"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

func TestTableOnKernel(t *testing.T) {
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) { tc.run(t, &counter{world: newKernel(t, mainTable)}) })
		})
	}
}

// The same in a table whose number is more than a byte; in short, on an emulated machine, what differs.
func TestProbeTableOnKernel(t *testing.T) {
	for _, tc := range cases {
		if testing.Short() && !strings.Contains(tc.name, "every kind") && !strings.Contains(tc.name, "default") && !strings.Contains(tc.name, "drift") {
			continue
		}
		t.Run(tc.name, func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) { tc.run(t, &counter{world: newKernel(t, desired.TableIPIP)}) })
		})
	}
}

// Tables are strangers to each other, and errors and status name them.
func TestTablesAreStrangers(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		k := newKernel(t, mainTable)
		main := &counter{world: k}
		probes := &counter{world: realKernel{route.NewKernel(k.conn, desired.TableVXLAN), k.conn, desired.TableVXLAN}}
		a, b := route.New(main, quiet), route.New(probes, quiet)
		a.SetDesired(all)
		b.SetDesired(moved)
		apply(t, a)
		apply(t, b)
		holds(t, main, all)
		holds(t, probes, moved)
		if got := b.Status()[0].Object; got != "route 10.1.0.0/26 table 80003" {
			t.Errorf("object = %q", got)
		}
		b.SetDesired(nil)
		apply(t, b)
		a.QueueResync()
		apply(t, a)
		holds(t, main, all)
		holds(t, probes, nil)
	})
}

// The kernel can hold a foreign route beside ours with the same prefix and metric. A replace might hit
// it, so there is none, and a deletion takes ours alone.
func TestForeignRouteAppended(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		c := &counter{world: newKernel(t, mainTable)}
		tab := route.New(c, quiet)
		tab.SetDesired(all)
		apply(t, tab)
		var theirs []string
		for _, p := range []string{"10.1.0.0/26", "10.1.1.1/32", "10.1.2.0/26", "2001:db8:1::/122", "2001:db8:1:1::1/128", "2001:db8:1:2::/122"} {
			nettest.Cmd(t, "ip", "route", "append", p, "dev", "vb", "metric", "80", "proto", "4")
			theirs = append(theirs, p+" proto 4 metric 80")
		}
		tab.SetDesired(moved)
		tab.QueueResync()
		if err := tab.Apply(t.Context()); err == nil || strings.Count(err.Error(), "foreign route with our metric") < 5 {
			t.Errorf("Apply() = %v; want foreign routes in the way", err)
		}
		for _, want := range theirs {
			if !slices.Contains(c.list(t), want) {
				t.Errorf("%q is gone", want)
			}
		}
		tab.SetDesired(nil)
		apply(t, tab)
		slices.Sort(theirs)
		if got := c.list(t); !slices.Equal(got, theirs) {
			t.Errorf("routes left: %q; want %q", got, theirs)
		}
	})
}

const mainTable = 254

// realKernel is the world made of a table of the kernel.
type realKernel struct {
	*route.Kernel
	conn  *kernel.Conn
	table uint32
}

func newKernel(t *testing.T, table uint32) realKernel {
	t.Helper()
	for _, v := range []string{"a", "b"} {
		nettest.Cmd(t, "ip", "link", "add", "v"+v, "type", "veth", "peer", "name", "p"+v)
		nettest.Cmd(t, "ip", "link", "set", "p"+v, "up")
		setUp(t, "v"+v)
	}
	nettest.Cmd(t, "ip", "address", "add", "192.0.2.1/24", "dev", "va")
	nettest.Cmd(t, "ip", "address", "add", "2001:db8::1/64", "dev", "va", "nodad")
	conn, err := kernel.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return realKernel{route.NewKernel(conn, table), conn, table}
}

// setUp brings a device up with its nexthop objects.
func setUp(t *testing.T, device string) {
	t.Helper()
	id := map[string]uint32{"va": 1, "vb": 2}[device]
	nettest.Cmd(t, "ip", "link", "set", device, "up")
	single := strconv.FormatUint(uint64(1<<31|id+100), 10)
	nettest.Cmd(t, "ip", "nexthop", "add", "id", single, "via", "169.254.1.1", "dev", device, "onlink", "proto", "80")
	// A group of one; an IPv6 route needs an IPv6 gateway in it.
	nettest.Cmd(t, "ip", "nexthop", "replace", "id", single, "via", "fe80::1", "dev", device, "onlink", "proto", "80")
	nettest.Cmd(t, "ip", "nexthop", "add", "id", strconv.FormatUint(uint64(1<<31|id), 10), "group", single, "proto", "80")
}

// route runs `ip route` on the table.
func (k realKernel) route(t *testing.T, args ...any) {
	t.Helper()
	words := strings.Fields("route " + strings.TrimSuffix(fmt.Sprintln(args...), "\n"))
	nettest.Cmd(t, "ip", append(words, "table", fmt.Sprint(k.table))...)
}

func (k realKernel) mtu(t *testing.T, prefix string, mtu int) {
	t.Helper()
	k.route(t, "replace", prefix, "dev va scope link metric 80 proto 80 mtu", mtu)
}

func (k realKernel) foreign(t *testing.T, prefix string, metric uint32, protocol uint8) {
	t.Helper()
	k.route(t, "add", prefix, "dev va metric", metric, "proto", protocol)
}

func (k realKernel) remove(t *testing.T, prefix string, metric uint32) {
	t.Helper()
	k.route(t, "del", prefix, "metric", metric)
}

func (realKernel) flap(t *testing.T, device string) {
	t.Helper()
	nettest.Cmd(t, "ip", "link", "set", device, "down")
	setUp(t, device)
}

var listed = regexp.MustCompile(`^(?:6 )?(\S+) .*proto (\S+) .*metric (\d+)`)

func (k realKernel) list(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, family := range []string{"-4", "-6"} {
		// A table without a route was perhaps never made: an error.
		out, err := exec.Command("ip", "-N", family, "route", "show", "table", fmt.Sprint(k.table)).Output()
		if err != nil && k.table == mainTable {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			m := listed.FindStringSubmatch(strings.TrimSpace(line))
			if m == nil || m[2] == "2" {
				continue
			}
			prefix := m[1]
			if !strings.Contains(prefix, "/") {
				prefix += map[string]string{"-4": "/32", "-6": "/128"}[family]
			}
			all = append(all, fmt.Sprintf("%s proto %s metric %s", prefix, m[2], m[3]))
		}
	}
	slices.Sort(all)
	return all
}

// TestLarge: the routes of a large cluster, written and adopted.
func TestLarge(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		k := newKernel(t, mainTable)
		n := 100_000
		if testing.Short() {
			n = 5000
		}
		routes := make([]desired.Route, n)
		for i := range routes {
			a := netip.AddrFrom4([4]byte{10, byte(i >> 10), byte(i >> 2), byte(i << 6)})
			routes[i] = desired.Route{Prefix: netip.PrefixFrom(a, 26), Type: desired.RouteNexthop, Nexthop: nhA}
		}
		for _, mtu := range []int{0, 1450} {
			for i := range routes {
				routes[i].MTU = mtu
			}
			tab := route.New(k, quiet)
			tab.SetDesired(slices.Clone(routes))
			start := time.Now()
			apply(t, tab)
			t.Logf("%d routes with MTU %d written in %v", n, mtu, time.Since(start))
			c := &counter{world: k}
			tab = route.New(c, quiet)
			tab.SetDesired(slices.Clone(routes))
			start = time.Now()
			apply(t, tab)
			t.Logf("adopted in %v", time.Since(start))
			if c.writes() != 0 {
				t.Errorf("%d writes for what is there", c.writes())
			}
		}
	})
}

// TestMTUIsAnswered: a node that forwards by a route with an MTU answers what does not fit into it with
// too-big, so that the sender learns of it. The node is the test's own namespace, between src and dst.
func TestMTUIsAnswered(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		k := newKernel(t, mainTable)
		nettest.Cmd(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
		in := func(ns string, args ...string) {
			nettest.Cmd(t, "nsenter", append([]string{"--net=/run/netns/" + ns}, args...)...)
		}
		for n, ns := range map[int]string{1: "src", 2: "dst"} {
			v4, v6 := fmt.Sprintf("198.51.%d.", n), fmt.Sprintf("2001:db8:51:%d::", n)
			nettest.Cmd(t, "ip", "netns", "add", ns)
			nettest.Cmd(t, "ip", "link", "add", ns, "type", "veth", "peer", "name", "eth0", "netns", ns)
			nettest.Cmd(t, "ip", "link", "set", ns, "up")
			nettest.Cmd(t, "ip", "addr", "add", v4+"1/24", "dev", ns)
			nettest.Cmd(t, "ip", "addr", "add", v6+"1/64", "dev", ns, "nodad")
			in(ns, "ip", "link", "set", "eth0", "up")
			in(ns, "ip", "addr", "add", v4+"2/24", "dev", "eth0")
			in(ns, "ip", "addr", "add", v6+"2/64", "dev", "eth0", "nodad")
			in(ns, "ip", "route", "add", "default", "via", v4+"1")
			in(ns, "ip", "route", "add", "default", "via", v6+"1")
		}
		for id, gateway := range map[desired.NexthopID]string{1<<31 | 14: "198.51.2.2", 1<<31 | 16: "2001:db8:51:2::2"} {
			nettest.Cmd(t, "ip", "nexthop", "add", "id", fmt.Sprint(uint32(id+100)), "via", gateway, "dev", "dst", "onlink", "proto", "80")
			nettest.Cmd(t, "ip", "nexthop", "add", "id", fmt.Sprint(uint32(id)), "group", fmt.Sprint(uint32(id+100)), "proto", "80")
		}
		targets := []struct {
			family string
			route  desired.Route
			ip     string
			want   string
		}{
			{"-4", via("10.3.0.1/32", 1<<31|14), "10.3.0.1", "mtu = 1400"},
			{"-4", dev("10.3.0.2/32", "dst"), "10.3.0.2", "mtu = 1400"},
			{"-6", via("2001:db8:3::1/128", 1<<31|16), "2001:db8:3::1", "mtu=1400"},
			{"-6", dev("2001:db8:3::2/128", "dst"), "2001:db8:3::2", "mtu=1400"},
		}
		var routes []desired.Route
		for _, r := range targets {
			in("dst", "ip", "addr", "add", r.route.Prefix.String(), "dev", "eth0", "nodad")
			routes = append(routes, sized(r.route, 1400))
		}
		tab := route.New(k, quiet)
		tab.SetDesired(routes)
		apply(t, tab)
		for _, r := range targets {
			ping := func(size string) string {
				out, _ := exec.Command("nsenter", "--net=/run/netns/src", "ping", r.family, "-c2", "-i0.2", "-W1", "-Mdo", "-s"+size, r.ip).CombinedOutput()
				return string(out)
			}
			if out := ping("1000"); !strings.Contains(out, " 0% packet loss") && !strings.Contains(out, " 50% packet loss") {
				t.Errorf("%s is not reached:\n%s", r.ip, out)
			}
			if out := ping("1400"); !strings.Contains(out, r.want) {
				t.Errorf("%s: want %q in\n%s", r.ip, r.want, out)
			}
		}
	})
}
