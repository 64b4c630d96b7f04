// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// real is the kernel of a namespace, harmed by commands.
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
	return real{k, t}
}

func (r real) ip(args ...string) {
	r.t.Helper()
	nettest.Cmd(r.t, "ip", args...)
}

func (r real) vxlan(name string, vni uint32) {
	r.ip("link", "add", name, "type", "vxlan", "id", strconv.Itoa(int(vni)), "dstport", "4789", "local", "192.0.2.1", "learning")
}
func (r real) ipip(name, local, remote string) {
	r.ip("link", "add", name, "type", "ipip", "local", local, "remote", remote)
}
func (r real) veth(name, peer string) {
	r.ip("link", "add", name, "type", "veth", "peer", "name", peer)
}
func (r real) address(device, prefix string) { r.ip("addr", "add", prefix, "dev", device, "nodad") }
func (r real) down(name string)              { r.ip("link", "set", name, "down") }
func (r real) mtu(name string, mtu int)      { r.ip("link", "set", name, "mtu", strconv.Itoa(mtu)) }
func (r real) remove(name string)            { r.ip("link", "del", name) }

func TestKernel(t *testing.T) {
	for _, c := range cases {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) {
				r := newReal(t)
				c.run(t, r, New(r, slog.New(slog.DiscardHandler)))
			})
		})
	}
}

func TestKernelIPIP(t *testing.T) {
	for _, c := range ipipCases {
		t.Run(strings.NewReplacer(" ", "_", ",", "").Replace(c.name), func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) {
				nettest.NeedLink(t, "ipip")
				r := newReal(t)
				c.run(t, r, New(r, slog.New(slog.DiscardHandler)))
			})
		})
	}
}

// TestKernelLinkLocal checks what the peers rely on: the EUI-64 address answers at once, without DAD,
// whatever the host's sysctls say about making addresses.
func TestKernelLinkLocal(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		r := newReal(t)
		nettest.Cmd(t, "sh", "-c", "echo 3 >/proc/sys/net/ipv6/conf/default/addr_gen_mode")
		apply(t, New(r, slog.New(slog.DiscardHandler)), v4)
		out := nettest.Cmd(t, "ip", "-6", "addr", "show", "dev", v4.Name)
		if strings.Contains(out, "tentative") || !strings.Contains(out, "inet6 fe80::64a0:1ff:fe02:304/64 scope link nodad") {
			t.Errorf("addresses:\n%s", out)
		}
		nettest.Cmd(t, "ip", "-6", "route", "get", "fe80::64a0:1ff:fe02:304", "oif", v4.Name)
	})
}

// TestKernelPortTaken checks the error of a port that another program holds.
func TestKernelPortTaken(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		r := newReal(t)
		closeUDP := listenUDP(t, 4789)
		d := New(r, slog.New(slog.DiscardHandler))
		fails(t, d, "UDP port 4789 is held by another socket", v4)
		closeUDP()
		apply(t, d, v4)
		want(t, r, v4)
	})
}

// TestKernelWithoutIPv6 checks that a node with IPv6 turned off gets its IPv4 tunnel.
func TestKernelWithoutIPv6(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		r := newReal(t)
		nettest.Cmd(t, "sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6; echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")
		d := New(r, slog.New(slog.DiscardHandler))
		d.SetDesired([]desired.VXLAN{v4}, nil)
		if err := d.Apply(context.Background()); err != nil {
			t.Fatal(err)
		}
		devices, err := r.Devices()
		if d, ok := find(devices, v4.Name); !ok || !d.Up {
			t.Errorf("devices = %v, %v", devices, err)
		}
	})
}

// listenUDP holds a port until the returned function is called.
func listenUDP(t *testing.T, port int) func() {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
	if err != nil {
		t.Fatal(err)
	}
	return func() { _ = conn.Close() }
}
