// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

// Names of the sets. Those of addresses come in two, for IPv4 and IPv6.
const (
	setWorkloads = "workloads"   // devices of workloads
	setTunnels   = "tunnels"     // tunnel devices
	setPorts     = "vxlan_ports" // UDP ports of tunnels

	setEndpoints4, setEndpoints6 = "endpoints4", "endpoints6"     // device . address that it may use
	setNodes4, setNodes6         = "nodes4", "nodes6"             // who may send us VXLAN
	setSources4, setSources6     = "nat_sources4", "nat_sources6" // what comes from here ...
	setNoNAT4, setNoNAT6         = "no_nat4", "no_nat6"           // ... and does not go here is masqueraded
)

// isInterval says whether a set holds ranges of addresses.
func isInterval(set string) bool { return strings.Contains(set, "nat") }

// ifNameSize is IFNAMSIZ: a name is shorter, and padded to it with zeros.
const ifNameSize = 16

// content is the sets while they are computed.
type content map[string]Set

// elements computes what each set holds, and an error for what cannot be in one.
func elements(n desired.NFT) (map[string]Set, error) {
	c := content{}
	for _, name := range []string{
		setWorkloads, setTunnels, setPorts, setEndpoints4, setEndpoints6, setNodes4, setNodes6,
		setSources4, setSources6, setNoNAT4, setNoNAT6,
	} {
		c[name] = Set{}
	}
	var errs []error
	for _, w := range n.Workloads {
		errs = append(errs, c.addWorkload(w))
	}
	for _, device := range n.Tunnels {
		errs = append(errs, c.addDevice(setTunnels, device))
	}
	for _, node := range n.Nodes {
		c.addAddr(setNodes4, setNodes6, "", node)
	}
	for _, port := range n.VXLANPorts {
		c.add(setPorts, string(binary.BigEndian.AppendUint16(nil, port)))
	}
	c.addRanges(setSources4, setSources6, n.NATSources)
	c.addRanges(setNoNAT4, setNoNAT6, n.NoNAT)
	return c, errors.Join(errs...)
}

func (c content) add(set, key string) { c[set][Element{Key: key}] = struct{}{} }

func (c content) addDevice(set, device string) error {
	if device == "" || len(device) >= ifNameSize {
		return fmt.Errorf("nft set %s: no device can have the name %q", set, device)
	}
	c.add(set, padded(device))
	return nil
}

func (c content) addWorkload(w desired.Workload) error {
	if err := c.addDevice(setWorkloads, w.Device); err != nil {
		return err
	}
	for _, ip := range w.IPs {
		c.addAddr(setEndpoints4, setEndpoints6, padded(w.Device), ip)
	}
	return nil
}

// addAddr adds an address behind a prefix of the key to the set of its family; none if it is invalid.
func (c content) addAddr(set4, set6, prefix string, ip netip.Addr) {
	switch ip = ip.Unmap(); {
	case ip.Is4():
		c.add(set4, prefix+string(ip.AsSlice()))
	case ip.Is6():
		c.add(set6, prefix+string(ip.AsSlice()))
	}
}

func (c content) addRanges(set4, set6 string, prefixes []netip.Prefix) {
	for _, r := range merge(prefixes) {
		name := set4
		if r.first.Is6() {
			name = set6
		}
		c[name][Element{Key: string(r.first.AsSlice()), Last: string(r.last.AsSlice())}] = struct{}{}
	}
}

// span is a range of addresses of one family.
type span struct{ first, last netip.Addr }

// merge turns prefixes into ranges that neither overlap nor touch: the kernel refuses overlaps.
func merge(prefixes []netip.Prefix) []span {
	var in []span
	for _, p := range prefixes {
		if p.IsValid() {
			in = append(in, span{p.Masked().Addr(), lastOf(p)})
		}
	}
	slices.SortFunc(in, func(a, b span) int { return a.first.Compare(b.first) })
	var out []span
	for _, s := range in {
		n := len(out) - 1
		if n < 0 || out[n].last.Is4() != s.first.Is4() || out[n].last.Next().IsValid() && out[n].last.Next().Less(s.first) {
			out = append(out, s)
		} else if out[n].last.Less(s.last) {
			out[n].last = s.last
		}
	}
	return out
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

func padded(device string) string {
	return device + strings.Repeat("\x00", ifNameSize-len(device))
}
