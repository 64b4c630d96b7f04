// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"
	"slices"

	"github.com/heliograph-dev/heliograph/policy"
)

// prefixes returns what networks hold in a family. They may nest.
func prefixes(nets []policy.Net, f policy.Family) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range nets {
		if familyOf(n.CIDR.Addr()) == f {
			out = append(out, subtract(n.CIDR.Masked(), n.Except)...)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// subtract cuts the exceptions out of a network, by halves.
func subtract(p netip.Prefix, except []netip.Prefix) []netip.Prefix {
	var inside []netip.Prefix
	for _, e := range except {
		if !e.Overlaps(p) {
			continue
		}
		if e.Bits() <= p.Bits() {
			return nil
		}
		inside = append(inside, e)
	}
	if len(inside) == 0 {
		return []netip.Prefix{p}
	}
	low, high := halves(p)
	return append(subtract(low, inside), subtract(high, inside)...)
}

// halves splits a network that is larger than an address.
func halves(p netip.Prefix) (low, high netip.Prefix) {
	bits := p.Bits() + 1
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	second, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(p.Addr(), bits), netip.PrefixFrom(second, bits)
}

func familyOf(a netip.Addr) policy.Family {
	if a.Is4() {
		return policy.IPv4
	}
	return policy.IPv6
}
