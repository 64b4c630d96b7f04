// SPDX-License-Identifier: Apache-2.0

package reflector

// Reason says which rule made a path the best.
type Reason string

// The rules in the order in which they apply (RFC 4271 §9.1.2.2, RFC 4456 §9). Interior cost is not
// among them: a reflector that forwards nothing has no distance to a next hop.
const (
	ReasonOnly        Reason = "only path"
	ReasonLocalPref   Reason = "higher local preference"
	ReasonASPath      Reason = "shorter AS path"
	ReasonOrigin      Reason = "lower origin"
	ReasonMED         Reason = "lower MED from the same neighbour AS"
	ReasonOriginator  Reason = "lower originator ID"
	ReasonClusterList Reason = "shorter cluster list"
	ReasonAddress     Reason = "lower peer address"
)

// decide returns the best of the paths and the rule that left no other. Each rule removes from those
// that the rules before it left: a pairwise comparison would depend on the order of arrival, since
// MED compares only some pairs.
func decide(first *path) (*path, Reason) {
	if first == nil {
		return nil, ""
	}
	if first.next == nil {
		return first, ReasonOnly
	}
	var left []*path
	for x := first; x != nil; x = x.next {
		left = append(left, x)
	}
	for _, r := range []struct {
		reason Reason
		value  func(*path) uint64 // the lowest stays
	}{
		{ReasonLocalPref, func(x *path) uint64 { return uint64(^x.attrs.localPref) }},
		{ReasonASPath, func(x *path) uint64 { return uint64(x.attrs.pathLen) }},
		{ReasonOrigin, func(x *path) uint64 { return uint64(x.attrs.origin) }},
	} {
		if left = lowest(left, r.value); len(left) == 1 {
			return left[0], r.reason
		}
	}
	if left = lowestMED(left); len(left) == 1 {
		return left[0], ReasonMED
	}
	if left = lowest(left, func(x *path) uint64 { return uint64(x.attrs.originator) }); len(left) == 1 {
		return left[0], ReasonOriginator
	}
	if left = lowest(left, func(x *path) uint64 { return uint64(x.attrs.clusterLen) }); len(left) == 1 {
		return left[0], ReasonClusterList
	}
	best := left[0]
	for _, x := range left[1:] {
		if x.from.addr.Compare(best.from.addr) < 0 {
			best = x
		}
	}
	return best, ReasonAddress
}

func lowest(paths []*path, value func(*path) uint64) []*path {
	least := value(paths[0])
	for _, x := range paths[1:] {
		least = min(least, value(x))
	}
	kept := paths[:0]
	for _, x := range paths {
		if value(x) == least {
			kept = append(kept, x)
		}
	}
	return kept
}

// lowestMED removes each path that has a higher MED than another of the same neighbour AS.
func lowestMED(paths []*path) []*path {
	least := make(map[uint32]uint32, len(paths))
	for _, x := range paths {
		if m, ok := least[x.attrs.neighborAS]; !ok || x.attrs.med < m {
			least[x.attrs.neighborAS] = x.attrs.med
		}
	}
	kept := paths[:0]
	for _, x := range paths {
		if x.attrs.med == least[x.attrs.neighborAS] {
			kept = append(kept, x)
		}
	}
	return kept
}
