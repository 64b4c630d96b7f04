// SPDX-License-Identifier: Apache-2.0

package kernel

import "net/netip"

// LastAddr is the last address of a network: nf_tables holds networks as ranges.
func LastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}
