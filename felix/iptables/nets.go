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
		if policy.FamilyOf(n.CIDR.Addr()) == f {
			n.Parts(func(p netip.Prefix) { out = append(out, p) })
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}
