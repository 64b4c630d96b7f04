// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"encoding/binary"
	"slices"
)

// EncodeGroup packs member ids, in ascending order and without repetition, into a comparable string.
func EncodeGroup(ids []NexthopID) string {
	sorted := slices.Clone(ids)
	slices.Sort(sorted)
	sorted = slices.Compact(sorted)
	b := make([]byte, 0, 4*len(sorted))
	for _, id := range sorted {
		b = binary.BigEndian.AppendUint32(b, uint32(id))
	}
	return string(b)
}

// Members unpacks the group; nil for an object that is not a group.
func (n Nexthop) Members() []NexthopID {
	var ids []NexthopID
	for b := []byte(n.Group); len(b) >= 4; b = b[4:] {
		ids = append(ids, NexthopID(binary.BigEndian.Uint32(b)))
	}
	return ids
}
