// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
)

// Net is a network without parts of it.
type Net struct {
	CIDR   netip.Prefix
	Except []netip.Prefix // of the same family; they may overlap, and cover CIDR
}

// Contains says whether the address is in the network and in none of the exceptions.
func (n Net) Contains(ip netip.Addr) bool {
	return n.CIDR.Contains(ip) && !slices.ContainsFunc(n.Except, func(e netip.Prefix) bool { return e.Contains(ip) })
}

// Equal says whether two nets are written alike.
func (n Net) Equal(o Net) bool { return n.CIDR == o.CIDR && slices.Equal(n.Except, o.Except) }

// String is "10.0.0.0/8 except [10.1.0.0/16]".
func (n Net) String() string {
	if len(n.Except) == 0 {
		return n.CIDR.String()
	}
	return fmt.Sprintf("%s except %s", n.CIDR, n.Except)
}

// Parts calls visit with the networks, masked and disjoint, that together are the network without its
// exceptions: what kernels can hold that know no exceptions.
func (n Net) Parts(visit func(netip.Prefix)) { subtract(n.CIDR.Masked(), n.Except, visit) }

func subtract(p netip.Prefix, excepts []netip.Prefix, visit func(netip.Prefix)) {
	var inside []netip.Prefix
	for _, e := range excepts {
		switch {
		case !e.Overlaps(p):
		case e.Bits() <= p.Bits():
			return
		default:
			inside = append(inside, e)
		}
	}
	if len(inside) == 0 {
		visit(p)
		return
	}
	low, high := Halves(p)
	subtract(low, inside, visit)
	subtract(high, inside, visit)
}

// Halves splits a masked network that is larger than one address.
func Halves(p netip.Prefix) (low, high netip.Prefix) {
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	second, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(second, p.Bits()+1)
}

// FamilyOf is the IP version of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}
