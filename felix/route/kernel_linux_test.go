// SPDX-License-Identifier: Apache-2.0

package route_test

import (
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/route"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

func TestTableOnKernel(t *testing.T) {
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) { tc.run(t, &counter{world: newKernel(t)}) })
		})
	}
}

// The kernel can hold a foreign route beside ours with the same prefix and metric. A replace might hit
// it, so there is none, and a deletion takes ours alone.
func TestForeignRouteAppended(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		c := &counter{world: newKernel(t)}
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

// realKernel is the world made of the kernel.
type realKernel struct{ *route.Kernel }

func newKernel(t *testing.T) realKernel {
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
	return realKernel{route.NewKernel(conn)}
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

func (realKernel) foreign(t *testing.T, prefix string, metric uint32, protocol uint8) {
	t.Helper()
	nettest.Cmd(t, "ip", "route", "add", prefix, "dev", "va", "metric", fmt.Sprint(metric), "proto", fmt.Sprint(protocol))
}

func (realKernel) remove(t *testing.T, prefix string, metric uint32) {
	t.Helper()
	nettest.Cmd(t, "ip", "route", "del", prefix, "metric", fmt.Sprint(metric))
}

func (realKernel) flap(t *testing.T, device string) {
	t.Helper()
	nettest.Cmd(t, "ip", "link", "set", device, "down")
	setUp(t, device)
}

var listed = regexp.MustCompile(`^(?:6 )?(\S+) .*proto (\S+) .*metric (\d+)`)

func (realKernel) list(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, family := range []string{"-4", "-6"} {
		out, err := exec.Command("ip", "-N", family, "route", "show", "table", "main").Output()
		if err != nil {
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
