// SPDX-License-Identifier: Apache-2.0

package capability_test

import (
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/capability"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/link"
	"github.com/heliograph-dev/heliograph/felix/nexthop"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

var quiet = slog.New(slog.DiscardHandler)

// TestKernel: every kernel that we test on has VXLAN and nexthop objects, and says why it has no ipip
// if it has none.
func TestKernel(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		for range 3 {
			r, err := capability.Probe(t.Context(), quiet)
			if err != nil || !r.VXLAN || !r.NexthopObjects {
				t.Fatalf("Probe() = %+v, %v", r, err)
			}
			for what, can := range map[string]bool{capability.IPIP: r.IPIP, capability.WireGuard: r.WireGuard} {
				if why := r.Reasons[what]; can == (why != "") || !can && !strings.Contains(why, "this kernel has no such thing") {
					t.Errorf("%s: %v, reason %q", what, can, why)
				}
			}
			t.Logf("%+v", r)
		}
		nothingIsLeft(t)
	})
}

// TestKernelHasAll: the kernel of the VM has everything.
func TestKernelHasAll(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		nettest.NeedLink(t, "ipip")
		nettest.NeedLink(t, "wireguard")
		r, err := capability.Probe(t.Context(), quiet)
		if err != nil || !r.IPIP || !r.WireGuard || len(r.Reasons) > 0 {
			t.Errorf("Probe() = %+v, %v", r, err)
		}
		nothingIsLeft(t)
	})
}

// TestCrashIsSwept: what is left behind goes with the next Apply of the drivers.
func TestCrashIsSwept(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		k, err := capability.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		for _, kind := range []string{capability.IPIP, capability.VXLAN, capability.WireGuard} {
			if _, err := k.AddDevice(capability.Prefix+kind[:4], kind); err != nil {
				t.Logf("%s: %v", kind, err)
			}
		}
		if err := k.AddNexthop(t.Context(), 1<<31|7); err != nil {
			t.Fatal(err)
		}
		links, err := link.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer links.Close()
		tunnels := link.New(links, quiet)
		tunnels.SetDesired(nil, nil)
		if err := tunnels.Apply(t.Context()); err != nil {
			t.Error(err)
		}
		conn, err := kernel.Dial()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close() //nolint:errcheck // a test's
		objects := nexthop.New(nexthop.NewKernel(conn), quiet)
		objects.SetDesired(nil)
		if err := objects.Apply(t.Context()); err != nil {
			t.Error(err)
		}
		if err := objects.ApplyDeletes(t.Context()); err != nil {
			t.Error(err)
		}
		nothingIsLeft(t)
	})
}

func nothingIsLeft(t *testing.T) {
	t.Helper()
	interfaces, err := net.Interfaces()
	if err != nil || slices.ContainsFunc(interfaces, func(i net.Interface) bool { return strings.HasPrefix(i.Name, capability.Prefix) }) {
		t.Errorf("devices = %v, %v", interfaces, err)
	}
	if out := nettest.Cmd(t, "ip", "nexthop", "show"); out != "" {
		t.Errorf("nexthop objects:\n%s", out)
	}
}
