// SPDX-License-Identifier: Apache-2.0

package nexthop_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/nexthop"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

func TestTableOnKernel(t *testing.T) {
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) { tc.run(t, &counter{world: newKernel(t)}) })
		})
	}
}

// realKernel is the world made of the kernel.
type realKernel struct{ *nexthop.Kernel }

func newKernel(t *testing.T) realKernel {
	t.Helper()
	for _, v := range []string{"a", "b"} {
		nettest.Cmd(t, "ip", "link", "add", "v"+v, "type", "veth", "peer", "name", "p"+v)
		nettest.Cmd(t, "ip", "link", "set", "p"+v, "up")
		nettest.Cmd(t, "ip", "link", "set", "v"+v, "up")
	}
	conn, err := kernel.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return realKernel{nexthop.NewKernel(conn)}
}

func (realKernel) foreign(t *testing.T, id desired.NexthopID) {
	t.Helper()
	nettest.Cmd(t, "ip", "nexthop", "add", "id", fmt.Sprint(id), "via", "169.254.9.9", "dev", "va", "onlink", "proto", "4")
}

func (realKernel) remove(t *testing.T, id desired.NexthopID) {
	t.Helper()
	nettest.Cmd(t, "ip", "nexthop", "del", "id", fmt.Sprint(id))
}

func (realKernel) weigh(t *testing.T, id, member desired.NexthopID) {
	t.Helper()
	nettest.Cmd(t, "ip", "nexthop", "replace", "id", fmt.Sprint(id), "group", fmt.Sprintf("%d,5", member), "proto", "80")
}

func (realKernel) flap(t *testing.T, device string) {
	t.Helper()
	nettest.Cmd(t, "ip", "link", "set", device, "down")
	nettest.Cmd(t, "ip", "link", "set", device, "up")
}

// Routes that refer to a group move with it, and go with it: what the order of the phases is for.
func TestRoutesFollowTheGroup(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		c := &counter{world: newKernel(t)}
		tab := table(t, c, []desired.Nexthop{single(1, "169.254.1.1", "va"), single(2, "169.254.1.2", "vb"), group(10, 1)})
		nettest.Cmd(t, "ip", "route", "add", "10.1.0.0/26", "nhid", fmt.Sprint(uint32(first+10)))
		tab.SetDesired([]desired.Nexthop{single(2, "169.254.1.2", "vb"), group(10, 2)})
		apply(t, tab)
		if got := nettest.Cmd(t, "ip", "route", "get", "10.1.0.1"); !strings.Contains(got, "via 169.254.1.2 dev vb") {
			t.Errorf("route get = %q; want it to have moved to vb", got)
		}
		tab.SetDesired(nil)
		apply(t, tab)
		if got := nettest.Cmd(t, "ip", "route", "show"); got != "" {
			t.Errorf("routes = %q; want them gone with the group", got)
		}
	})
}
