// SPDX-License-Identifier: Apache-2.0

// Package link keeps heliograph's tunnel devices equal to the desired set, and reads the host's
// links for those who need to know them. It owns VXLAN, IPIP and WireGuard devices whose name begins
// with "hel-", and nothing else: a device of another kind in the way is an error that names it, and
// the host ends of pod veths ("hel" + 11 hex digits) belong to the CNI plugin. Loading the kernel's
// ipip module puts a device tunl0 into every namespace: it is nobody's, and never touched.
package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

// tunnelPrefix begins the name of every tunnel device of ours, and of no workload.
const tunnelPrefix = desired.LinkPrefix + "-"

// Kinds of tunnel devices. WireGuard devices are not made here; one that felix/capability left behind
// is swept.
const kindVXLAN, kindIPIP, kindWireGuard = "vxlan", "ipip", "wireguard"

// Device is a network device as the kernel reports it.
type Device struct {
	Index int
	Name  string
	Kind  string // "vxlan", "ipip", "veth"; empty for hardware
	Alias string
	Up    bool
	MTU   int
	MAC   desired.MAC
	// PeerNetns is the id, in this namespace, of the one that holds the other end of a veth; -1 without.
	PeerNetns int
	Tunnel    Tunnel // of kinds vxlan and ipip
}

// Tunnel is the part of a tunnel device that is fixed at its creation.
type Tunnel struct {
	VNI    uint32     // of kind vxlan
	Port   uint16     // of kind vxlan
	Local  netip.Addr // invalid: any
	Remote netip.Addr // of kind ipip; invalid: any. Ours have none
	// Unusual names settings that ours never have: learning, a flood group, external control ...
	Unusual string
}

// Address is an address on a device.
type Address struct {
	Device string
	Prefix netip.Prefix
}

// Handle is what Tunnels needs from the kernel. *Kernel satisfies it.
type Handle interface {
	Devices() ([]Device, error)
	Addresses() ([]Address, error)
	// Add creates the device, down.
	Add(d Device) error
	Delete(index int) error
	// Configure sets MTU, MAC and up, in this order; no MAC of kind ipip, which has none.
	Configure(index int, d Device) error
	// SetLinkLocal gives the device this one link-local address, at once usable, and takes others away.
	SetLinkLocal(index int, addr netip.Addr, others []netip.Addr) error
}

// Tunnels is the driver of the tunnel devices. Its methods must be called from one goroutine.
type Tunnels struct {
	handle  Handle
	log     *slog.Logger
	desired map[string]Device // nil until the first SetDesired: nothing is written before
	stale   bool
	failed  map[string]error
}

// New makes a driver that owns nothing until SetDesired.
func New(h Handle, log *slog.Logger) *Tunnels {
	return &Tunnels{handle: h, log: log, stale: true}
}

// SetDesired replaces the set of tunnel devices. Memory only.
func (t *Tunnels) SetDesired(vxlans []desired.VXLAN, ipips []desired.IPIP) {
	next := make(map[string]Device, len(vxlans)+len(ipips))
	for _, v := range vxlans {
		next[v.Name] = Device{
			Name: v.Name, Kind: kindVXLAN, Up: true, MTU: v.MTU, MAC: v.MAC,
			Tunnel: Tunnel{VNI: v.VNI, Port: v.Port, Local: v.Local},
		}
	}
	for _, i := range ipips {
		next[i.Name] = Device{Name: i.Name, Kind: kindIPIP, Up: true, MTU: i.MTU, Tunnel: Tunnel{Local: i.Local}}
	}
	t.stale = t.stale || !maps.Equal(next, t.desired)
	t.desired = next
}

// QueueResync makes the next Apply read the kernel.
func (t *Tunnels) QueueResync() { t.stale = true }

// Apply makes the kernel's tunnel devices equal to the desired ones. Devices are few, so whatever
// changed, it reads them all. What fails is tried again by the next Apply.
func (t *Tunnels) Apply(ctx context.Context) error {
	if t.desired == nil || !t.stale {
		return nil
	}
	devices, err := t.handle.Devices()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	addrs, err := t.handle.Addresses()
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	t.failed = map[string]error{}
	// Orphans go first: a renamed tunnel could not be made while the old one holds its VNI.
	for _, d := range devices {
		if _, wanted := t.desired[d.Name]; ours(d) && !wanted {
			t.note(d.Name, t.remove(d, "no longer wanted"))
		}
	}
	for _, name := range sortedKeys(t.desired) {
		if err := ctx.Err(); err != nil {
			return err
		}
		t.note(name, t.ensure(t.desired[name], devices, addrs))
	}
	t.stale = len(t.failed) > 0
	var errs []error
	for _, name := range sortedKeys(t.failed) {
		errs = append(errs, t.failed[name])
	}
	return errors.Join(errs...)
}

// Status tells of each desired device, and of orphans that would not go.
func (t *Tunnels) Status() []desired.Status {
	var out []desired.Status
	for _, name := range sortedKeys(t.desired) {
		s := desired.Status{Object: "link " + name, Phase: desired.Done}
		if err := t.failed[name]; err != nil {
			s.Phase, s.Error = desired.Failed, err.Error()
		} else if t.stale {
			s.Phase = desired.Pending
		}
		out = append(out, s)
	}
	for _, name := range sortedKeys(t.failed) {
		if _, wanted := t.desired[name]; !wanted {
			out = append(out, desired.Status{Object: "link " + name, Phase: desired.Failed, Error: t.failed[name].Error()})
		}
	}
	return out
}

// note keeps the outcome of one device's change.
func (t *Tunnels) note(name string, err error) {
	if err != nil {
		t.failed[name] = err
	}
}

// ensure makes one device what it should be.
func (t *Tunnels) ensure(want Device, devices []Device, addrs []Address) error {
	if !strings.HasPrefix(want.Name, tunnelPrefix) {
		return fmt.Errorf("link %s: a tunnel's name must begin with %s", want.Name, tunnelPrefix)
	}
	d, exists := find(devices, want.Name)
	if exists && !ours(d) {
		return fmt.Errorf("link %s: a device of this name and of kind %q is in the way", want.Name, d.Kind)
	}
	if why := difference(want, d); exists && why != "" {
		// The kernel cannot change these on a living device. Traffic on the tunnel pauses until the
		// drivers after this one have filled the new device.
		if err := t.remove(d, why); err != nil {
			return err
		}
		exists = false
	}
	if !exists {
		var err error
		if d, err = t.create(want, devices); err != nil {
			return err
		}
		addrs = nil
	}
	if d.MTU != want.MTU || d.MAC != want.MAC || !d.Up {
		if err := t.handle.Configure(d.Index, want); err != nil {
			return explain(fmt.Errorf("configure link %s: %w", want.Name, err), want)
		}
		t.log.Info("tunnel device configured", "device", want.Name, "mtu", want.MTU)
	}
	if want.Kind != kindVXLAN {
		return nil // carries no IPv6, and has no neighbours
	}
	return t.ensureLinkLocal(d.Index, want, addrs)
}

// create adds the device and returns it as the kernel made it.
func (t *Tunnels) create(want Device, devices []Device) (Device, error) {
	if err := t.handle.Add(want); err != nil {
		if errors.Is(err, syscall.EOPNOTSUPP) {
			return Device{}, fmt.Errorf("create link %s: this kernel has no %s devices, or may not load the module: %w", want.Name, want.Kind, err)
		}
		if errors.Is(err, syscall.EEXIST) {
			if other, ok := same(devices, want); ok {
				return Device{}, fmt.Errorf("create link %s: device %s already has %s: %w", want.Name, other, want.identity(), err)
			}
		}
		return Device{}, fmt.Errorf("create link %s: %w", want.Name, err)
	}
	now, err := t.handle.Devices()
	if err != nil {
		return Device{}, fmt.Errorf("list devices: %w", err)
	}
	d, ok := find(now, want.Name)
	if !ok {
		return Device{}, fmt.Errorf("create link %s: gone right after it was made", want.Name)
	}
	t.log.Info("tunnel device created", "device", want.Name, "kind", want.Kind, "is", want.identity(), "local", want.Tunnel.Local)
	return d, nil
}

// ensureLinkLocal gives the device the address that its peers derive from its MAC: they use it as
// the gateway of IPv6 routes. The kernel would make it too, but as its sysctls of the moment say
// (stable-privacy, DAD), so we make it ourselves. It goes when the device goes down.
func (t *Tunnels) ensureLinkLocal(index int, v Device, addrs []Address) error {
	want := linkLocal(v.MAC)
	var have bool
	var others []netip.Addr
	for _, a := range addrs {
		switch {
		case a.Device != v.Name || !a.Prefix.Addr().Is6() || !a.Prefix.Addr().IsLinkLocalUnicast():
		case a.Prefix.Addr() == want:
			have = true
		default:
			others = append(others, a.Prefix.Addr())
		}
	}
	if have && len(others) == 0 {
		return nil
	}
	if err := t.handle.SetLinkLocal(index, want, others); err != nil {
		return fmt.Errorf("set link-local address %s of link %s: %w", want, v.Name, err)
	}
	return nil
}

// remove deletes a device; one that is gone already is a success.
func (t *Tunnels) remove(d Device, why string) error {
	if err := t.handle.Delete(d.Index); err != nil && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("delete link %s: %w", d.Name, err)
	}
	t.log.Info("tunnel device deleted", "device", d.Name, "why", why)
	return nil
}

// explain adds the cause that an operator can act on, where the kernel's word is too short.
func explain(err error, want Device) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("UDP port %d is held by another socket or by a VXLAN device with other flags: %w", want.Tunnel.Port, err)
	}
	return err
}

// ours says whether a device is one that this driver made, in this process or an earlier one, or that
// felix/capability did.
func ours(d Device) bool {
	switch d.Kind {
	case kindVXLAN, kindIPIP, kindWireGuard:
		return strings.HasPrefix(d.Name, tunnelPrefix)
	}
	return false
}

// difference names what of the device cannot be changed and is wrong; empty if nothing is.
func difference(want, have Device) string {
	w, h := want.Tunnel, have.Tunnel
	switch {
	case have.Kind != want.Kind:
		return fmt.Sprintf("kind is %s, not %s", have.Kind, want.Kind)
	case h.VNI != w.VNI:
		return fmt.Sprintf("VNI is %d, not %d", h.VNI, w.VNI)
	case h.Port != w.Port:
		return fmt.Sprintf("port is %d, not %d", h.Port, w.Port)
	case h.Local != w.Local:
		return fmt.Sprintf("local address is %s, not %s", h.Local, w.Local)
	case h.Remote != w.Remote:
		return fmt.Sprintf("has the remote end %s", h.Remote)
	case h.Unusual != "":
		return "has " + h.Unusual
	}
	return ""
}

// identity is what the kernel tells tunnel devices of a kind apart by.
func (d Device) identity() string {
	if d.Kind == kindIPIP {
		return fmt.Sprintf("local address %s and any remote end", d.Tunnel.Local)
	}
	return fmt.Sprintf("VNI %d and port %d", d.Tunnel.VNI, d.Tunnel.Port)
}

// same finds the device that makes the kernel refuse a tunnel. The families do not clash.
func same(devices []Device, want Device) (string, bool) {
	w := want.Tunnel
	i := slices.IndexFunc(devices, func(d Device) bool {
		h := d.Tunnel
		switch {
		case d.Kind != want.Kind || d.Name == want.Name:
			return false
		case d.Kind == kindIPIP:
			return h.Local == w.Local && h.Remote == w.Remote
		}
		return h.VNI == w.VNI && h.Port == w.Port && h.Local.Is6() == w.Local.Is6()
	})
	if i < 0 {
		return "", false
	}
	return devices[i].Name, true
}

func find(devices []Device, name string) (Device, bool) {
	i := slices.IndexFunc(devices, func(d Device) bool { return d.Name == name })
	if i < 0 {
		return Device{}, false
	}
	return devices[i], true
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}

// linkLocal is the EUI-64 link-local address of a MAC (RFC 4291, appendix A).
func linkLocal(m desired.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{
		0: 0xfe, 1: 0x80,
		8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5],
	})
}

func hardware(m desired.MAC) net.HardwareAddr { return m[:] }
