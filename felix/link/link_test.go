// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

var (
	v4 = desired.VXLAN{
		Name: desired.VXLANDevice, VNI: 4096, Port: 4789, Local: netip.MustParseAddr("192.0.2.1"),
		MAC: desired.MAC{0x66, 0xa0, 1, 2, 3, 4}, MTU: 1450,
	}
	ipip = desired.IPIP{Name: desired.IPIPDevice, Local: netip.MustParseAddr("192.0.2.1"), MTU: 1480}

	v6 = desired.VXLAN{
		Name: desired.VXLANDevice6, VNI: 4096, Port: 4789, Local: netip.MustParseAddr("2001:db8::1"),
		MAC: desired.MAC{0x66, 0xa0, 1, 2, 3, 5}, MTU: 1430,
	}
)

// world is a kernel, real or not, and what somebody else may do to it.
type world interface {
	Handle
	vxlan(name string, vni uint32)
	ipip(name, local, remote string) // "any" for none
	veth(name, peer string)
	address(device, prefix string)
	down(name string)
	mtu(name string, mtu int)
	remove(name string)
}

// cases run on the fake and on the real kernel.
var cases = []struct {
	name string
	run  func(t *testing.T, w world, d *Tunnels)
}{
	{"makes both families' devices", func(t *testing.T, w world, d *Tunnels) {
		apply(t, d, v4, v6)
		want(t, w, v4, v6)
	}},
	{"adopts what is right", func(t *testing.T, w world, d *Tunnels) {
		apply(t, d, v4)
		before := index(t, w, v4.Name)
		apply(t, New(w, slog.New(slog.DiscardHandler)), v4)
		want(t, w, v4)
		if after := index(t, w, v4.Name); after != before {
			t.Errorf("index = %d after a restart, was %d: the device was made anew", after, before)
		}
	}},
	{"changes MTU and MAC in place", func(t *testing.T, w world, d *Tunnels) {
		apply(t, d, v4)
		before := index(t, w, v4.Name)
		changed := v4
		changed.MTU, changed.MAC = 1400, desired.MAC{0x66, 0xa0, 9, 9, 9, 9}
		apply(t, d, changed)
		want(t, w, changed)
		if after := index(t, w, v4.Name); after != before {
			t.Errorf("index = %d, was %d: the device was made anew", after, before)
		}
	}},
	{"makes anew what the kernel cannot change", func(t *testing.T, w world, d *Tunnels) {
		apply(t, d, v4)
		for _, change := range []func(*desired.VXLAN){
			func(v *desired.VXLAN) { v.VNI = 5000 },
			func(v *desired.VXLAN) { v.Port = 8472 },
			func(v *desired.VXLAN) { v.Local = netip.MustParseAddr("192.0.2.2") },
		} {
			changed := v4
			change(&changed)
			apply(t, d, changed)
			want(t, w, changed)
		}
	}},
	{"repairs a device that learns", func(t *testing.T, w world, d *Tunnels) {
		w.vxlan(v4.Name, v4.VNI)
		apply(t, d, v4)
		want(t, w, v4)
	}},
	{"heals down, wrong MTU and deletion", func(t *testing.T, w world, d *Tunnels) {
		apply(t, d, v4)
		for _, harm := range []func(){
			func() { w.down(v4.Name) },
			func() { w.mtu(v4.Name, 1300) },
			func() { w.address(v4.Name, "fe80::bad/64") },
			func() { w.remove(v4.Name) },
		} {
			harm()
			d.QueueResync()
			apply(t, d, v4)
			want(t, w, v4)
		}
	}},
	{"sweeps orphans, and only its own", func(t *testing.T, w world, d *Tunnels) {
		w.vxlan("hel-old", 77)
		w.vxlan("flannel.1", 78)
		w.veth("hel0123456789a", "peer0")
		apply(t, d)
		want(t, w)
		devices, err := w.Devices()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"flannel.1", "hel0123456789a"} {
			if _, ok := find(devices, name); !ok {
				t.Errorf("%s is gone", name)
			}
		}
	}},
	{"names a device of another kind in the way", func(t *testing.T, w world, d *Tunnels) {
		w.veth(v4.Name, "peer0")
		fails(t, d, `hel-vxlan: a device of this name and of kind "veth" is in the way`, v4)
		w.remove(v4.Name)
		apply(t, d, v4) // without a resync being asked for: a failure keeps it pending
		want(t, w, v4)
	}},
	{"names the device that has our VNI", func(t *testing.T, w world, d *Tunnels) {
		w.vxlan("flannel.1", v4.VNI)
		fails(t, d, "device flannel.1 already has VNI 4096 and port 4789", v4)
		w.remove("flannel.1")
		apply(t, d, v4)
		want(t, w, v4)
	}},
	{"lists and deletes workloads", func(t *testing.T, w world, d *Tunnels) {
		w.veth("hel0123456789a", "peer0")
		w.veth("helicopter", "peer1")
		got, err := d.ListWorkloads(context.Background())
		if err != nil || len(got) != 1 || got[0].Name != "hel0123456789a" {
			t.Fatalf("ListWorkloads = %v, %v; want hel0123456789a", got, err)
		}
		if err := d.DeleteWorkload("helicopter"); err == nil {
			t.Error("deleted a device that is no workload")
		}
		for range 2 {
			if err := d.DeleteWorkload("hel0123456789a"); err != nil {
				t.Error(err)
			}
		}
		if got, err := d.ListWorkloads(context.Background()); err != nil || len(got) != 0 {
			t.Errorf("ListWorkloads = %v, %v; want none", got, err)
		}
	}},
	{"finds the uplink", func(t *testing.T, w world, d *Tunnels) {
		w.veth("eth0", "peer0")
		w.address("eth0", "192.0.2.7/32")
		w.address("eth0", "192.0.2.7/24")
		w.address("eth0", "2001:db8:1::7/64")
		for addr, subnet := range map[string]string{"192.0.2.7": "192.0.2.0/24", "2001:db8:1::7": "2001:db8:1::/64"} {
			device, mtu, got, err := d.Uplink(netip.MustParseAddr(addr))
			if err != nil || device != "eth0" || mtu != 1500 || got.String() != subnet {
				t.Errorf("Uplink(%s) = %s, %d, %s, %v", addr, device, mtu, got, err)
			}
		}
		if _, _, _, err := d.Uplink(netip.MustParseAddr("192.0.2.8")); !errors.Is(err, ErrNoUplink) {
			t.Errorf("Uplink of a foreign address: %v", err)
		}
	}},
}

// ipipCases run on the fake, and on a kernel that has ipip.
var ipipCases = []struct {
	name string
	run  func(t *testing.T, w world, d *Tunnels)
}{
	{"makes the IPIP device beside the others", func(t *testing.T, w world, d *Tunnels) {
		applyAll(t, d, []desired.VXLAN{v4, v6}, ipip)
		wantAll(t, w, []desired.VXLAN{v4, v6}, ipip)
	}},
	{"adopts it, and changes its MTU in place", func(t *testing.T, w world, d *Tunnels) {
		applyAll(t, d, nil, ipip)
		before := index(t, w, ipip.Name)
		changed := ipip
		changed.MTU = 1400
		applyAll(t, New(w, slog.New(slog.DiscardHandler)), nil, changed)
		wantAll(t, w, nil, changed)
		if after := index(t, w, ipip.Name); after != before {
			t.Errorf("index = %d, was %d: the device was made anew", after, before)
		}
	}},
	{"makes it anew with another local address", func(t *testing.T, w world, d *Tunnels) {
		applyAll(t, d, nil, ipip)
		changed := ipip
		changed.Local = netip.MustParseAddr("192.0.2.2")
		applyAll(t, d, nil, changed)
		wantAll(t, w, nil, changed)
	}},
	{"heals one with a remote end, down, wrong MTU and deletion", func(t *testing.T, w world, d *Tunnels) {
		w.ipip(ipip.Name, "192.0.2.1", "192.0.2.7")
		applyAll(t, d, nil, ipip)
		wantAll(t, w, nil, ipip)
		for _, harm := range []func(){
			func() { w.down(ipip.Name) },
			func() { w.mtu(ipip.Name, 1300) },
			func() { w.remove(ipip.Name) },
		} {
			harm()
			d.QueueResync()
			applyAll(t, d, nil, ipip)
			wantAll(t, w, nil, ipip)
		}
	}},
	{"sweeps orphans, and leaves tunl0 and other tunnels alone", func(t *testing.T, w world, d *Tunnels) {
		w.ipip("hel-old", "192.0.2.1", "any")
		w.ipip("theirs", "192.0.2.1", "198.51.100.7")
		w.ipip("hel-cap-1f2e", "192.0.2.8", "192.0.2.9")
		apply(t, d)
		want(t, w)
		devices, err := w.Devices()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"tunl0", "theirs"} {
			if _, ok := find(devices, name); !ok {
				t.Errorf("%s is gone", name)
			}
		}
		if others := IPIPOthers(devices); len(others) != 1 || others[0].String() != "198.51.100.7" {
			t.Errorf("IPIPOthers() = %v; want the remote end of theirs", others)
		}
	}},
	{"names a device of another kind in the way", func(t *testing.T, w world, d *Tunnels) {
		w.veth(ipip.Name, "peer0")
		d.SetDesired(nil, []desired.IPIP{ipip})
		if err := d.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), `hel-ipip: a device of this name and of kind "veth" is in the way`) {
			t.Errorf("Apply = %v", err)
		}
		w.remove(ipip.Name)
		w.vxlan(ipip.Name, 5) // ours, of an odd version
		applyAll(t, d, nil, ipip)
		wantAll(t, w, nil, ipip)
	}},
	{"names the tunnel that has our ends", func(t *testing.T, w world, d *Tunnels) {
		w.ipip("theirs", "192.0.2.1", "any")
		d.SetDesired(nil, []desired.IPIP{ipip})
		if err := d.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "device theirs already has local address 192.0.2.1 and any remote end") {
			t.Errorf("Apply = %v", err)
		}
		w.remove("theirs")
		applyAll(t, d, nil, ipip)
		wantAll(t, w, nil, ipip)
	}},
}

func TestFakeIPIP(t *testing.T) {
	for _, c := range ipipCases {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			f.ipip("tunl0", "any", "any")
			c.run(t, f, New(f, slog.New(slog.DiscardHandler)))
		})
	}
}

func TestKernelWithoutIPIP(t *testing.T) {
	f := newFake(t)
	f.fail["Add"] = []error{syscall.EOPNOTSUPP}
	d := New(f, slog.New(slog.DiscardHandler))
	d.SetDesired(nil, []desired.IPIP{ipip})
	if err := d.Apply(t.Context()); !errors.Is(err, syscall.EOPNOTSUPP) || !strings.Contains(err.Error(), "this kernel has no ipip devices") {
		t.Errorf("Apply = %v", err)
	}
}

func TestFake(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			c.run(t, f, New(f, slog.New(slog.DiscardHandler)))
		})
	}
}

func TestFaults(t *testing.T) {
	for method, errs := range map[string][]error{
		"Devices":      {syscall.ENOBUFS},
		"Addresses":    {syscall.EINTR},
		"Add":          {syscall.EBUSY, syscall.ENOBUFS},
		"Configure":    {syscall.EADDRINUSE},
		"SetLinkLocal": {syscall.ENOBUFS},
	} {
		t.Run(method, func(t *testing.T) {
			f := newFake(t)
			f.fail[method] = errs
			d := New(f, slog.New(slog.DiscardHandler))
			d.SetDesired([]desired.VXLAN{v4}, nil)
			for _, err := range errs {
				if got := d.Apply(context.Background()); !errors.Is(got, err) {
					t.Errorf("Apply = %v, want %v", got, err)
				}
				if done(d) == 1 {
					t.Errorf("Status = %v after a failure", d.Status())
				}
			}
			apply(t, d, v4)
			want(t, f, v4)
		})
	}
}

func TestDeleteOfTheGoneSucceeds(t *testing.T) {
	f := newFake(t)
	f.vxlan("hel-old", 77)
	f.fail["Delete"] = []error{syscall.ENODEV}
	apply(t, New(f, slog.New(slog.DiscardHandler)))
}

func TestWritesNothingBeforeSetDesired(t *testing.T) {
	f := newFake(t)
	f.vxlan("hel-old", 77)
	if err := New(f, slog.New(slog.DiscardHandler)).Apply(context.Background()); err != nil || len(f.calls) > 0 {
		t.Errorf("Apply = %v, calls %v; want nothing done", err, f.calls)
	}
}

func TestSteadyApplyDoesNothing(t *testing.T) {
	f := newFake(t)
	d := New(f, slog.New(slog.DiscardHandler))
	apply(t, d, v4)
	f.calls = nil
	apply(t, d, v4)
	if len(f.calls) > 0 {
		t.Errorf("calls = %v", f.calls)
	}
}

func TestIsWorkload(t *testing.T) {
	for name, want := range map[string]bool{
		"hel0123456789a": true, "hel0123456789": false, "hel0123456789ab": false, "hel-vxlan": false, "hel0123456789g": false, "eth0": false,
	} {
		if got := IsWorkload(Device{Name: name, Kind: "veth"}); got != want {
			t.Errorf("IsWorkload(%s) = %v", name, got)
		}
	}
	if IsWorkload(Device{Name: "hel0123456789a", Kind: "bridge"}) {
		t.Error("a bridge is a workload")
	}
}

func apply(t *testing.T, d *Tunnels, vxlans ...desired.VXLAN) {
	t.Helper()
	applyAll(t, d, vxlans)
}

func applyAll(t *testing.T, d *Tunnels, vxlans []desired.VXLAN, ipips ...desired.IPIP) {
	t.Helper()
	d.SetDesired(vxlans, ipips)
	if err := d.Apply(context.Background()); err != nil {
		t.Fatal(err)
	}
	if done(d) != len(vxlans)+len(ipips) {
		t.Fatalf("Status = %v", d.Status())
	}
}

func fails(t *testing.T, d *Tunnels, why string, vxlans ...desired.VXLAN) {
	t.Helper()
	d.SetDesired(vxlans, nil)
	if err := d.Apply(context.Background()); err == nil || !strings.Contains(err.Error(), why) {
		t.Fatalf("Apply = %v, want %q", err, why)
	}
	if s := d.Status(); len(s) != len(vxlans) || s[0].Phase != desired.Failed || !strings.Contains(s[0].Error, why) {
		t.Fatalf("Status = %v", s)
	}
}

func done(d *Tunnels) int {
	n := 0
	for _, s := range d.Status() {
		if s.Phase == desired.Done {
			n++
		}
	}
	return n
}

// want checks that the kernel holds these tunnel devices of ours, ready for use, and no others.
func want(t *testing.T, w world, vxlans ...desired.VXLAN) {
	t.Helper()
	wantAll(t, w, vxlans)
}

func wantAll(t *testing.T, w world, vxlans []desired.VXLAN, ipips ...desired.IPIP) {
	t.Helper()
	devices, err := w.Devices()
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := w.Addresses()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]any{}
	for _, d := range devices {
		if ours(d) {
			d.Index = 0
			got[d.Name] = []any{d, onDevice(addrs, d.Name)}
		}
	}
	expect := map[string]any{}
	for _, v := range vxlans {
		expect[v.Name] = []any{
			Device{Name: v.Name, Kind: kindVXLAN, Up: true, MTU: v.MTU, MAC: v.MAC, PeerNetns: -1, Tunnel: Tunnel{VNI: v.VNI, Port: v.Port, Local: v.Local}},
			[]netip.Prefix{netip.PrefixFrom(linkLocal(v.MAC), 64)},
		}
	}
	for _, i := range ipips {
		expect[i.Name] = []any{
			Device{Name: i.Name, Kind: kindIPIP, Up: true, MTU: i.MTU, PeerNetns: -1, Tunnel: Tunnel{Local: i.Local}}, []netip.Prefix(nil),
		}
	}
	if diff := cmp.Diff(expect, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("tunnel devices (-want +got):\n%s", diff)
	}
}

func onDevice(addrs []Address, name string) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addrs {
		if a.Device == name {
			out = append(out, a.Prefix)
		}
	}
	return out
}

func index(t *testing.T, w world, name string) int {
	t.Helper()
	devices, err := w.Devices()
	if err != nil {
		t.Fatal(err)
	}
	d, _ := find(devices, name)
	return d.Index
}
