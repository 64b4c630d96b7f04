// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

// ErrNoUplink says that no device holds the address.
var ErrNoUplink = errors.New("no device holds the address")

// Uplink reads which device holds a node's address, with its MTU and the subnet that the address is
// in; ErrNoUplink if none does.
func (t *Tunnels) Uplink(addr netip.Addr) (device string, mtu int, subnet netip.Prefix, err error) {
	addrs, err := t.handle.Addresses()
	if err != nil {
		return "", 0, netip.Prefix{}, fmt.Errorf("list addresses: %w", err)
	}
	devices, err := t.handle.Devices()
	if err != nil {
		return "", 0, netip.Prefix{}, fmt.Errorf("list devices: %w", err)
	}
	for _, a := range addrs {
		// The address may be there twice: the shorter prefix is the subnet, a /32 beside it is a VIP.
		d, ok := find(devices, a.Device)
		if ok && a.Prefix.Addr() == addr.Unmap() && (device == "" || a.Prefix.Bits() < subnet.Bits()) {
			device, mtu, subnet = d.Name, d.MTU, a.Prefix.Masked()
		}
	}
	if device == "" {
		return "", 0, netip.Prefix{}, fmt.Errorf("find uplink of %s: %w", addr, ErrNoUplink)
	}
	return device, mtu, subnet, nil
}

// IPIPOthers are the remote ends of the IPIP tunnels, among the devices of this host, that are not ours:
// their packets have our local address as their destination too. Tunnels without a remote end have none
// to tell.
func IPIPOthers(devices []Device) []netip.Addr {
	var out []netip.Addr
	for _, d := range devices {
		if d.Kind == kindIPIP && !ours(d) && d.Tunnel.Remote.IsValid() {
			out = append(out, d.Tunnel.Remote)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// ListWorkloads reads the host ends of pod veths.
func (t *Tunnels) ListWorkloads(context.Context) ([]Device, error) {
	devices, err := t.handle.Devices()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var out []Device
	for _, d := range devices {
		if IsWorkload(d) {
			out = append(out, d)
		}
	}
	return out, nil
}

// DeleteWorkload deletes a pod's veth pair by the name of its host end. It refuses what is none;
// one that is gone already is a success.
func (t *Tunnels) DeleteWorkload(name string) error {
	devices, err := t.handle.Devices()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	d, ok := find(devices, name)
	if !ok {
		return nil
	}
	if !IsWorkload(d) {
		return fmt.Errorf("delete workload %s: a device of kind %q is no pod's veth", name, d.Kind)
	}
	if err := t.handle.Delete(d.Index); err != nil && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("delete workload %s: %w", name, err)
	}
	return nil
}

// IsWorkload says whether a device is the host end of a pod's veth: of this kind, and named "hel" and
// 11 hex digits.
func IsWorkload(d Device) bool {
	const digits = 11
	if d.Kind != "veth" || len(d.Name) != len(desired.WorkloadPrefix)+digits || d.Name[:len(desired.WorkloadPrefix)] != desired.WorkloadPrefix {
		return false
	}
	for _, c := range d.Name[len(desired.WorkloadPrefix):] {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
