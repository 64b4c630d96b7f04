// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

func dial(t *testing.T) *kernel.Conn {
	t.Helper()
	c, err := kernel.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// blackhole appends a request to create 10.0.0.i/32.
func blackhole(b *kernel.Batch, i int, protocol byte) {
	b.Begin(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	b.Raw(unix.AF_INET, 32, 0, 0, unix.RT_TABLE_MAIN, protocol, 0, unix.RTN_BLACKHOLE, 0, 0, 0, 0)
	b.AttrAddr(unix.RTA_DST, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
	b.AttrUint32(unix.RTA_PRIORITY, 80)
}

func TestExecuteMapsErrorsToMessages(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		c := dial(t)
		var b kernel.Batch
		for i := range 1000 {
			blackhole(&b, i, 80)
		}
		if errs := c.Execute(t.Context(), &b); errs != nil {
			t.Fatalf("Execute() = %v", errs)
		}
		// Every seventh is new, all others exist: 857 refusals, each as an answer of its own.
		b.Reset()
		for i := range 1000 {
			if i%7 == 0 {
				blackhole(&b, 1000+i, 80)
			} else {
				blackhole(&b, i, 80)
			}
		}
		errs := c.Execute(t.Context(), &b)
		if len(errs) != 1000 {
			t.Fatalf("Execute() returned %d results", len(errs))
		}
		for i, err := range errs {
			if i%7 == 0 && err != nil || i%7 != 0 && !errors.Is(err, unix.EEXIST) {
				t.Fatalf("message %d: %v", i, err)
			}
		}
		if got := c.Sent(); got != 2000 {
			t.Errorf("Sent() = %d; want 2000", got)
		}
	})
}

func TestExecuteTellsTheKernelsWords(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		var b kernel.Batch
		b.Begin(unix.RTM_NEWROUTE, unix.NLM_F_CREATE)
		b.Raw(unix.AF_INET, 32, 0, 0, unix.RT_TABLE_MAIN, 80, 0, unix.RTN_UNICAST, 0, 0, 0, 0)
		b.AttrAddr(unix.RTA_DST, netip.MustParseAddr("10.0.0.1"))
		b.AttrUint32(30, 12345) // a nexthop object that does not exist
		errs := dial(t).Execute(t.Context(), &b)
		if len(errs) != 1 || errs[0] == nil || !strings.Contains(errs[0].Error(), "Nexthop id does not exist") {
			t.Errorf("Execute() = %v; want the kernel's text", errs)
		}
	})
}

func TestExecuteAfterCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var b kernel.Batch
	blackhole(&b, 1, 80)
	c := dial(t)
	if errs := c.Execute(ctx, &b); len(errs) != 1 || !errors.Is(errs[0], context.Canceled) {
		t.Errorf("Execute() = %v; want canceled", errs)
	}
}

func TestDumpIsLarge(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		c := dial(t)
		var b kernel.Batch
		for i := range 20_000 {
			blackhole(&b, i, 80)
		}
		if errs := c.Execute(t.Context(), &b); errs != nil {
			t.Fatal(errs[0])
		}
		b.Reset()
		b.Begin(unix.RTM_GETROUTE, 0)
		b.Raw(unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, 0, 0, 0, 0, 0, 0, 0)
		dump, err := c.Dump(t.Context(), &b, nil)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for m := range kernel.Messages(dump) {
			if m.Type == unix.RTM_NEWROUTE {
				n++
			}
		}
		if n != 20_000 {
			t.Errorf("%d routes in the dump; want 20000", n)
		}
	})
}

func TestLinkNames(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		c := dial(t)
		index, err := c.LinkIndex("lo")
		if err != nil || index != 1 {
			t.Errorf("LinkIndex(lo) = %d, %v", index, err)
		}
		if name, err := c.LinkName(1); err != nil || name != "lo" {
			t.Errorf("LinkName(1) = %q, %v", name, err)
		}
		for _, name := range []string{"none", "", "a-name-that-is-too-long-for-a-device"} {
			if _, err := c.LinkIndex(name); !errors.Is(err, unix.ENODEV) {
				t.Errorf("LinkIndex(%q) = %v; want ENODEV", name, err)
			}
		}
		if _, err := c.LinkName(77); !errors.Is(err, unix.ENODEV) {
			t.Errorf("LinkName(77) = %v; want ENODEV", err)
		}
	})
}

// monitored runs a monitor for which c's requests are our own.
func monitored(t *testing.T, c *kernel.Conn) *kernel.Monitor {
	t.Helper()
	m, err := kernel.NewMonitor(func(id uint32) bool { return id == c.PortID() }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	m.SetFilter(func(p netip.Prefix) bool { return p == netip.MustParsePrefix("10.0.0.0/26") })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	return m
}

// pokes collects kinds until all that are wanted have come, but not for ever.
func pokes(t *testing.T, m *kernel.Monitor, want kernel.Kind) kernel.Kind {
	t.Helper()
	var got kernel.Kind
	deadline := time.After(5 * time.Second)
	for got&want != want {
		select {
		case k := <-m.Pokes():
			got |= k
		case <-deadline:
			return got
		}
	}
	return got
}

func TestMonitor(t *testing.T) {
	const none = kernel.Kind(0)
	tests := []struct {
		name    string
		prepare []string // before the monitor runs; ip(8) arguments
		do      []string
		want    kernel.Kind
	}{
		{"our route deleted", []string{"route add blackhole 10.9.0.0/26 proto 80 metric 80"}, []string{"route del 10.9.0.0/26"}, kernel.Route},
		{"foreign route elsewhere", nil, []string{"route add blackhole 10.9.0.0/26 proto 4"}, none},
		{"foreign route on our prefix", nil, []string{"route add blackhole 10.0.0.0/26 proto 4"}, kernel.Route},
		{"foreign route in another table", nil, []string{"route add blackhole 10.0.0.0/26 proto 4 table 100"}, none},
		{"our route in a table of ours deleted", []string{"route add blackhole default proto 80 metric 80 table 80001"}, []string{"route del default table 80001"}, kernel.Route},
		{"foreign route in a table of ours", nil, []string{"-6 route add blackhole default proto 4 table 80003"}, kernel.Route},
		{"our rule deleted", []string{"rule add pref 80 fwmark 7 table 99 protocol 80"}, []string{"rule del pref 80"}, kernel.Rule},
		{"our IPv6 rule deleted", []string{"-6 rule add pref 80 fwmark 7 table 99 protocol 80"}, []string{"-6 rule del pref 80"}, kernel.Rule},
		{"foreign rule to a table of ours", nil, []string{"rule add pref 90 table 80002 protocol 4"}, kernel.Rule},
		{"foreign rule", nil, []string{"rule add pref 80 fwmark 7 table 99 protocol 4"}, none},
		{"foreign route on our device", []string{"link set hel1 up"}, []string{"route add 10.9.0.0/26 dev hel1"}, kernel.Route},
		{"our nexthop deleted", []string{"link set v0 up", "nexthop add id 5 via 169.254.1.1 dev v0 onlink proto 80"}, []string{"nexthop del id 5"}, kernel.Nexthop | kernel.Route},
		{"our nexthop taken", []string{"link set v0 up", "nexthop add id 2147483653 via 169.254.1.1 dev v0 onlink proto 80"}, []string{"nexthop replace id 2147483653 via 169.254.1.2 dev v0 onlink"}, kernel.Nexthop | kernel.Route},
		{"foreign nexthop", []string{"link set v0 up"}, []string{"nexthop add id 5 via 169.254.1.1 dev v0 onlink"}, none},
		{"our address deleted", []string{"address add 10.9.0.1/32 dev hel1"}, []string{"address del 10.9.0.1/32 dev hel1"}, kernel.Address | kernel.Nexthop | kernel.Route},
		{"address of the uplink", nil, []string{"address add 192.0.2.1/24 dev v0"}, kernel.Uplink},
		{"neighbour on our tunnel", []string{"link set hel-x up"}, []string{"neighbour add 10.9.0.1 lladdr 02:00:00:00:00:01 dev hel-x nud permanent"}, kernel.Neighbour},
		{"neighbour elsewhere", []string{"link set v0 up"}, []string{"neighbour add 10.9.0.1 lladdr 02:00:00:00:00:01 dev v0 nud permanent"}, none},
		{"our device down", []string{"link set hel1 up"}, []string{"link set hel1 down"}, kernel.Link | kernel.Address | kernel.Neighbour | kernel.Nexthop | kernel.Route},
		{"our device deleted", nil, []string{"link del hel1"}, kernel.Link | kernel.Address | kernel.Neighbour | kernel.Nexthop | kernel.Route},
		{"uplink down", []string{"link set v0 up"}, []string{"link set v0 down"}, kernel.Uplink | kernel.Nexthop | kernel.Route},
		{"uplink up", nil, []string{"link set v0 up"}, kernel.Uplink},
		{"uplink's MTU", nil, []string{"link set v0 mtu 1400"}, kernel.Uplink},
		{"uplink's alias", nil, []string{"link set v0 alias x"}, none},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) {
				for _, args := range append([]string{
					"link add v0 type veth peer name v1", "link set v1 up",
					"link add hel1 type bridge", "link add hel-x type bridge",
				}, tc.prepare...) {
					nettest.Cmd(t, "ip", strings.Fields(args)...)
				}
				m := monitored(t, dial(t))
				mark(t, m)
				for _, args := range tc.do {
					nettest.Cmd(t, "ip", strings.Fields(args)...)
				}
				if tc.want == none {
					got := mark(t, m)
					if slices.Contains(tc.prepare, "link set v0 up") {
						got &^= kernel.Uplink // carrier and IPv6 address come when they like
					}
					if got != none {
						t.Errorf("poked %v; want nothing", got)
					}
					return
				}
				if got := pokes(t, m, tc.want); got&tc.want != tc.want {
					t.Errorf("poked %v; want %v", got, tc.want)
				}
			})
		})
	}
}

// mark makes an event that pokes and waits for it, so that all earlier ones are known to be through. It
// returns what else was poked.
func mark(t *testing.T, m *kernel.Monitor) (others kernel.Kind) {
	t.Helper()
	nettest.Cmd(t, "ip", "address", "replace", "192.0.2.77/32", "dev", "hel-x")
	return pokes(t, m, kernel.Address) &^ kernel.Address
}

func TestMonitorIgnoresOurOwn(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		nettest.Cmd(t, "ip", "link", "add", "hel-x", "type", "bridge")
		c := dial(t)
		m := monitored(t, c)
		mark(t, m)
		var b kernel.Batch
		for i := range 100 {
			blackhole(&b, i, 80)
		}
		if errs := c.Execute(t.Context(), &b); errs != nil {
			t.Fatal(errs)
		}
		if got := mark(t, m); got != 0 {
			t.Errorf("poked %v by our own requests", got)
		}
	})
}

// More events than the socket holds: whatever they were, everything is poked.
func TestMonitorOverrun(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		c := dial(t)
		m, err := kernel.NewMonitor(func(id uint32) bool { return id == c.PortID() }, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		var b kernel.Batch
		for i := range 50_000 { // while nobody reads
			blackhole(&b, i, 80)
		}
		if errs := c.Execute(t.Context(), &b); errs != nil {
			t.Fatal(errs[0])
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		if got := pokes(t, m, kernel.All); got != kernel.All {
			t.Errorf("poked %v; want everything", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func ExampleKind() {
	fmt.Println(kernel.Link | kernel.Route)
	// Output: link|route
}
