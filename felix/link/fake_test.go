// SPDX-License-Identifier: Apache-2.0

package link

import (
	"net/netip"
	"slices"
	"syscall"
	"testing"
)

// fake is a kernel as far as Handle goes: names and VNIs are unique, a device that goes down loses its
// IPv6 addresses. fail holds the errors that the next calls of a method return.
type fake struct {
	t       *testing.T
	devices []Device
	addrs   []Address
	next    int
	calls   []string
	fail    map[string][]error
}

func newFake(t *testing.T) *fake {
	return &fake{t: t, next: 1, fail: map[string][]error{}}
}

func (f *fake) call(name string) error {
	f.calls = append(f.calls, name)
	if errs := f.fail[name]; len(errs) > 0 {
		f.fail[name] = errs[1:]
		return errs[0]
	}
	return nil
}

func (f *fake) Devices() ([]Device, error) {
	return slices.Clone(f.devices), f.call("Devices")
}

func (f *fake) Addresses() ([]Address, error) {
	return slices.Clone(f.addrs), f.call("Addresses")
}

func (f *fake) Add(d Device) error {
	if err := f.call("Add"); err != nil {
		return err
	}
	if _, ok := same(f.devices, d); ok {
		return syscall.EEXIST
	}
	if _, ok := find(f.devices, d.Name); ok {
		return syscall.EEXIST
	}
	f.next++
	d.Index, d.Up, d.PeerNetns = f.next, false, -1
	f.devices = append(f.devices, d)
	return nil
}

func (f *fake) Delete(index int) error {
	if err := f.call("Delete"); err != nil {
		return err
	}
	d, i := f.byIndex(index)
	if d == nil {
		return syscall.ENODEV
	}
	f.forget(d.Name)
	f.devices = slices.Delete(f.devices, i, i+1)
	return nil
}

func (f *fake) Configure(index int, v Device) error {
	if err := f.call("Configure"); err != nil {
		return err
	}
	d, _ := f.byIndex(index)
	if d == nil {
		return syscall.ENODEV
	}
	d.MTU, d.MAC, d.Up = v.MTU, v.MAC, true
	return nil
}

func (f *fake) SetLinkLocal(index int, addr netip.Addr, others []netip.Addr) error {
	if err := f.call("SetLinkLocal"); err != nil {
		return err
	}
	d, _ := f.byIndex(index)
	if d == nil {
		return syscall.ENODEV
	}
	f.addrs = slices.DeleteFunc(f.addrs, func(a Address) bool {
		return a.Device == d.Name && (a.Prefix.Addr() == addr || slices.Contains(others, a.Prefix.Addr()))
	})
	f.addrs = append(f.addrs, Address{Device: d.Name, Prefix: netip.PrefixFrom(addr, 64)})
	return nil
}

func (f *fake) byIndex(index int) (*Device, int) {
	i := slices.IndexFunc(f.devices, func(d Device) bool { return d.Index == index })
	if i < 0 {
		return nil, -1
	}
	return &f.devices[i], i
}

func (f *fake) forget(device string) {
	f.addrs = slices.DeleteFunc(f.addrs, func(a Address) bool { return a.Device == device })
}

// What somebody else may do to the kernel: the same verbs as of the real one in link_test.go.

func (f *fake) vxlan(name string, vni uint32) {
	f.next++
	f.devices = append(f.devices, Device{
		Index: f.next, Name: name, Kind: kindVXLAN, MTU: 1500, PeerNetns: -1,
		Tunnel: Tunnel{VNI: vni, Port: 4789, Local: netip.MustParseAddr("192.0.2.1"), Unusual: "learning"},
	})
}

func (f *fake) ipip(name, local, remote string) {
	f.next++
	d := Device{Index: f.next, Name: name, Kind: kindIPIP, MTU: 1480, PeerNetns: -1}
	d.Tunnel.Local, _ = netip.ParseAddr(local)
	d.Tunnel.Remote, _ = netip.ParseAddr(remote)
	f.devices = append(f.devices, d)
}

func (f *fake) veth(name, peer string) {
	for _, n := range []string{name, peer} {
		f.next++
		f.devices = append(f.devices, Device{Index: f.next, Name: n, Kind: "veth", MTU: 1500, PeerNetns: -1})
	}
}

func (f *fake) address(device, prefix string) {
	f.addrs = append(f.addrs, Address{Device: device, Prefix: netip.MustParsePrefix(prefix)})
}

func (f *fake) down(name string) {
	for i := range f.devices {
		if f.devices[i].Name == name {
			f.devices[i].Up = false
		}
	}
	f.forget(name)
}

func (f *fake) mtu(name string, mtu int) {
	for i := range f.devices {
		if f.devices[i].Name == name {
			f.devices[i].MTU = mtu
		}
	}
}

func (f *fake) remove(name string) {
	d, ok := find(f.devices, name)
	if !ok {
		f.t.Fatalf("no device %s", name)
	}
	_, i := f.byIndex(d.Index)
	f.forget(name)
	f.devices = slices.Delete(f.devices, i, i+1)
}
