// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"net/netip"
	"slices"
)

// acceptor is a compiled Peer.Accept. A lookup costs one map access per distinct prefix length, so
// that long lists (every block of a cluster) stay cheap. The zero value accepts nothing.
type acceptor struct {
	lengths  []int // distinct, ascending
	prefixes map[netip.Prefix]struct{}
}

func newAcceptor(accept []netip.Prefix) acceptor {
	a := acceptor{prefixes: make(map[netip.Prefix]struct{}, len(accept))}
	for _, p := range accept {
		if !p.IsValid() {
			continue
		}
		a.prefixes[p.Masked()] = struct{}{}
		a.lengths = append(a.lengths, p.Bits())
	}
	slices.Sort(a.lengths)
	a.lengths = slices.Compact(a.lengths)
	return a
}

// accepts tells whether one of the prefixes contains all of p.
func (a acceptor) accepts(p netip.Prefix) bool {
	for _, bits := range a.lengths {
		if bits > p.Bits() {
			return false
		}
		parent, err := p.Addr().Prefix(bits)
		if err != nil {
			return false
		}
		if _, ok := a.prefixes[parent]; ok {
			return true
		}
	}
	return false
}
