// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/heliograph-dev/heliograph/felix/delta"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
)

// Names of the sets. Those of addresses come in two, for IPv4 and IPv6.
const (
	setWorkloads = "workloads"   // devices of workloads
	setTunnels   = "tunnels"     // tunnel devices
	setPorts     = "vxlan_ports" // UDP ports of tunnels

	setEndpoints4, setEndpoints6 = "endpoints4", "endpoints6"     // device . address that it may use
	setNodes4, setNodes6         = "nodes4", "nodes6"             // who may send us VXLAN and IPIP
	setIPIPLocal4                = "ipip_local4"                  // our ends of IPIP tunnels
	setIPIPOthers4               = "ipip_others4"                 // remote ends of others' IPIP tunnels
	setSources4, setSources6     = "nat_sources4", "nat_sources6" // what comes from here ...
	setNoNAT4, setNoNAT6         = "no_nat4", "no_nat6"           // ... and does not go here is masqueraded
)

// intervalSets are the sets of ranges of addresses.
var intervalSets = []string{setSources4, setSources6, setNoNAT4, setNoNAT6}

func isInterval(set string) bool { return slices.Contains(intervalSets, set) }

// content turns the lists of a desired.NFT into elements, each when it has changed.
type content struct {
	parts   *delta.Parts[item, struct{}, item]
	last    desired.NFT
	refused error // what cannot be an element
}

func newContent(tracker *delta.Tracker[item, struct{}]) *content {
	return &content{parts: delta.NewParts(tracker, func(i item) (item, struct{}) { return i, struct{}{} })}
}

func (c *content) set(n desired.NFT) {
	var badWorkload, badTunnel error
	// Workloads and tunnels are few: they are made anew each time, for the sake of their errors.
	c.parts.Set("workloads", workloadItems(n.Workloads, &badWorkload))
	c.parts.Set("tunnels", deviceItems(setTunnels, n.Tunnels, &badTunnel))
	c.refused = errors.Join(badWorkload, badTunnel)
	if !slices.Equal(n.Nodes, c.last.Nodes) {
		c.parts.Set("nodes", nodeItems(n.Nodes))
	}
	if !slices.Equal(n.IPIPLocal, c.last.IPIPLocal) {
		c.parts.Set("ipip local", addrItems4(setIPIPLocal4, n.IPIPLocal))
	}
	if !slices.Equal(n.IPIPOthers, c.last.IPIPOthers) {
		c.parts.Set("ipip others", addrItems4(setIPIPOthers4, n.IPIPOthers))
	}
	if !slices.Equal(n.VXLANPorts, c.last.VXLANPorts) {
		c.parts.Set("ports", portItems(n.VXLANPorts))
	}
	if !slices.Equal(n.NATSources, c.last.NATSources) {
		c.parts.Set("nat sources", rangeItems(setSources4, setSources6, n.NATSources))
	}
	if !slices.Equal(n.NoNAT, c.last.NoNAT) {
		c.parts.Set("no nat", rangeItems(setNoNAT4, setNoNAT6, n.NoNAT))
	}
	c.last = n
}

func deviceItems(set string, devices []string, refused *error) []item {
	var out []item
	for _, device := range devices {
		if device == "" || len(device) >= kernel.DeviceNameSize {
			*refused = errors.Join(*refused, fmt.Errorf("nft set %s: no device can have the name %q", set, device))
			continue
		}
		out = append(out, item{set, Element{Key: kernel.PaddedName(device)}})
	}
	return out
}

// workloadItems makes the devices known, and says which addresses each may use.
func workloadItems(workloads []desired.Workload, refused *error) []item {
	var out []item
	for _, w := range workloads {
		device := deviceItems(setWorkloads, []string{w.Device}, refused)
		if len(device) == 0 {
			continue
		}
		out = append(out, device...)
		for _, ip := range w.IPs {
			if ip.IsValid() {
				out = append(out, addrItem(setEndpoints4, setEndpoints6, device[0].Key, ip))
			}
		}
	}
	return out
}

func nodeItems(nodes []netip.Addr) []item {
	var out []item
	for _, ip := range nodes {
		if ip.IsValid() {
			out = append(out, addrItem(setNodes4, setNodes6, "", ip))
		}
	}
	return out
}

// addrItems4 are IPv4 addresses; others do not belong into the set.
func addrItems4(set string, addrs []netip.Addr) []item {
	var out []item
	for _, ip := range addrs {
		if ip.Unmap().Is4() {
			out = append(out, addrItem(set, "", "", ip))
		}
	}
	return out
}

func portItems(ports []uint16) []item {
	var out []item
	for _, port := range ports {
		out = append(out, item{setPorts, Element{Key: string(binary.BigEndian.AppendUint16(nil, port))}})
	}
	return out
}

// addrItem is an address, behind what else is in its key, in the set of its family.
func addrItem(set4, set6, prefix string, ip netip.Addr) item {
	ip = ip.Unmap()
	return item{pick(ip, set4, set6), Element{Key: prefix + string(ip.AsSlice())}}
}

func rangeItems(set4, set6 string, prefixes []netip.Prefix) []item {
	var out []item
	for _, r := range merge(prefixes) {
		out = append(out, item{pick(r.first, set4, set6), Element{Key: string(r.first.AsSlice()), Last: string(r.last.AsSlice())}})
	}
	return out
}

func pick(ip netip.Addr, set4, set6 string) string {
	if ip.Is4() {
		return set4
	}
	return set6
}

// span is a range of addresses of one family.
type span struct{ first, last netip.Addr }

// merge turns prefixes into ranges that neither overlap nor touch: the kernel refuses overlaps.
func merge(prefixes []netip.Prefix) []span {
	var in []span
	for _, p := range prefixes {
		if p.IsValid() {
			in = append(in, span{p.Masked().Addr(), kernel.LastAddr(p)})
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
