// SPDX-License-Identifier: Apache-2.0

package neigh

import (
	"strings"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// real is the kernel of a namespace with a tunnel device, harmed by commands.
type real struct {
	*Kernel
	t *testing.T
}

func newReal(t *testing.T) real {
	k, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	r := real{k, t}
	r.create()
	return r
}

func (r real) create() {
	nettest.Cmd(r.t, "ip", "link", "add", dev, "type", "vxlan", "id", "1", "dstport", "4789", "nolearning")
	nettest.Cmd(r.t, "ip", "link", "set", dev, "up")
}

func (r real) neighbour(ip, mac string) {
	nettest.Cmd(r.t, "ip", "neigh", "replace", ip, "lladdr", mac, "dev", dev, "nud", "permanent")
}

func (r real) unneighbour(ip string) { nettest.Cmd(r.t, "ip", "neigh", "del", ip, "dev", dev) }

func (r real) fdb(mac, remote string) {
	verb := "replace"
	if mac == "00:00:00:00:00:00" {
		verb = "append"
	}
	nettest.Cmd(r.t, "bridge", "fdb", verb, mac, "dev", dev, "dst", remote, "self", "permanent")
}

func (r real) remake() {
	_ = r.tryRemove()
	r.create()
}

func (r real) remove() {
	if err := r.tryRemove(); err != nil {
		r.t.Fatal(err)
	}
}

func (r real) tryRemove() error {
	link, err := r.nl.LinkByName(dev)
	if err != nil {
		return err
	}
	return r.nl.LinkDel(link)
}

func TestKernel(t *testing.T) {
	for _, c := range cases {
		t.Run(strings.NewReplacer(" ", "_", ",", "").Replace(c.name), func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) {
				r := newReal(t)
				c.run(t, r, newTable(r))
			})
		})
	}
}

// TestKernelLarge: the nodes of a large cluster come and go, and a new process adopts them.
func TestKernelLarge(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		r := newReal(t)
		n := 5000
		if testing.Short() {
			n = 500
		}
		all := nodes(n)
		start := time.Now()
		apply(t, newTable(r), all)
		t.Logf("%d entries set in %v", 3*n, time.Since(start))
		want(t, r, all)
		start = time.Now()
		d := newTable(r)
		apply(t, d, all)
		t.Logf("adopted in %v", time.Since(start))
		start = time.Now()
		apply(t, d, both(all, node(6000, "192.0.2.2")))
		t.Logf("one node more in %v", time.Since(start))
		apply(t, d, entries{})
		want(t, r, entries{})
	})
}

// TestKernelLeavesStrangersAlone: other devices' entries, and entries that are not permanent.
func TestKernelLeavesStrangersAlone(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		r := newReal(t)
		nettest.Cmd(t, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
		nettest.Cmd(t, "ip", "link", "set", "v0", "up")
		nettest.Cmd(t, "ip", "neigh", "add", "192.0.2.9", "lladdr", "02:00:00:00:00:09", "dev", "v0", "nud", "permanent")
		nettest.Cmd(t, "ip", "neigh", "add", "192.0.2.8", "lladdr", "02:00:00:00:00:08", "dev", dev, "nud", "reachable")
		apply(t, newTable(r), entries{})
		out := nettest.Cmd(t, "ip", "neigh", "show")
		for _, ip := range []string{"192.0.2.9", "192.0.2.8"} {
			if !strings.Contains(out, ip) {
				t.Errorf("%s is gone:\n%s", ip, out)
			}
		}
	})
}
