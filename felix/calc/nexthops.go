// SPDX-License-Identifier: Apache-2.0

package calc

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

// nexthopTable collects the nexthop objects that routes refer to and gives them ids.
//
// An id is a hash of what the object is for, so that a new process finds the ids of the old one
// without a memory of its own. Where two hash alike, the one that sorts first keeps the id and the
// other takes its next hash.
//
//	route 10.244.7.0/26 ─▶ group "node/b/IPv4" ─▶ single "via/192.168.11.1/eth0"
//	route 10.244.9.0/26 ─▶        │                        (shared by all nodes behind that router)
//	                              └ replaced in one message when the path to node b changes
//
// Routes for traffic refer to groups only, if need be to groups of one: the kernel cannot replace a single
// object by a group. Those of probes through a tunnel, which never change, refer to the single one.
type nexthopTable struct {
	entries []nexthopEntry
	singles map[hop]nexthopRef
	sets    map[desired.NexthopKey]nexthopRef // groups that are named by their content
	last    map[bgp.Family]lastSet
}

// nexthopRef is the index of an entry. Until resolve, it stands in place of the id in a route.
type nexthopRef desired.NexthopID

// nexthopEntry is an object that has no id yet.
type nexthopEntry struct {
	name   desired.NexthopKey
	object desired.Nexthop
	group  []nexthopRef // its members; nil: it is a single one
}

// lastSet is the group that was asked for last: nodes of one rack, which come one after the other, share it.
type lastSet struct {
	hops []hop
	ref  nexthopRef
}

// newNexthopTable returns a table for so many nodes: each has a group for each family, and up to three ways
// through tunnels.
func newNexthopTable(nodes int) *nexthopTable {
	return &nexthopTable{
		entries: make([]nexthopEntry, 0, 5*nodes),
		singles: make(map[hop]nexthopRef, 3*nodes),
		sets:    map[desired.NexthopKey]nexthopRef{},
		last:    map[bgp.Family]lastSet{},
	}
}

// hop is one way out: a gateway on a device.
type hop struct {
	gateway netip.Addr
	device  string
	onLink  bool
}

func (h hop) key() desired.NexthopKey {
	return desired.NexthopKey("via/" + h.gateway.String() + "/" + h.device)
}

func (t *nexthopTable) add(e nexthopEntry) nexthopRef {
	t.entries = append(t.entries, e)
	return nexthopRef(len(t.entries) - 1) //nolint:gosec // some thousands
}

// group defines a group of a name that no other has, in terms of hops.
func (t *nexthopTable) group(name desired.NexthopKey, hops []hop) nexthopRef {
	members := make([]nexthopRef, len(hops))
	for i, h := range hops {
		members[i] = t.single(h)
	}
	return t.add(nexthopEntry{name: name, group: members})
}

// single defines a hop of its own.
func (t *nexthopTable) single(h hop) nexthopRef {
	ref, ok := t.singles[h]
	if !ok {
		ref = t.add(nexthopEntry{name: h.key(), object: desired.Nexthop{Gateway: h.gateway, Device: h.device, OnLink: h.onLink}})
		t.singles[h] = ref
	}
	return ref
}

// contentGroup defines a group named by its content, for a block that goes another way than the
// rest of its node.
func (t *nexthopTable) contentGroup(f bgp.Family, hops []hop) nexthopRef {
	if last := t.last[f]; slices.Equal(last.hops, hops) {
		return last.ref
	}
	keys := make([]string, len(hops))
	for i, h := range hops {
		keys[i] = string(t.entries[t.single(h)].name)
	}
	slices.Sort(keys)
	name := desired.NexthopKey("set/" + f.String() + "/" + strings.Join(keys, ","))
	ref, ok := t.sets[name]
	if !ok {
		ref = t.group(name, hops)
		t.sets[name] = ref
	}
	t.last[f] = lastSet{hops, ref}
	return ref
}

func nodeGroup(n *snapshot.Node, f bgp.Family) desired.NexthopKey {
	return desired.NexthopKey("node/" + n.Name + "/" + f.String())
}

// ids gives every object its id, in the order of the entries.
func (t *nexthopTable) ids() []desired.NexthopID {
	ids := make([]desired.NexthopID, len(t.entries))
	for i := range t.entries {
		ids[i] = hashID(t.entries[i].name, 0)
	}
	sorted := slices.Sorted(slices.Values(ids))
	if len(slices.Compact(sorted)) < len(ids) {
		t.setApart(ids)
	}
	return ids
}

// setApart gives ids anew, since some names hash alike: single ones come first, and then the order of names.
func (t *nexthopTable) setApart(ids []desired.NexthopID) {
	order := make([]int, len(ids))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		x, y := &t.entries[a], &t.entries[b]
		if (x.group == nil) != (y.group == nil) {
			return map[bool]int{true: -1, false: 1}[x.group == nil]
		}
		return cmp.Compare(x.name, y.name)
	})
	taken := make(map[desired.NexthopID]bool, len(ids))
	for _, i := range order {
		salt := uint32(0)
		for ids[i] = hashID(t.entries[i].name, salt); taken[ids[i]]; ids[i] = hashID(t.entries[i].name, salt) {
			salt++
		}
		taken[ids[i]] = true
	}
}

// hashID has the highest bit set, which keeps us clear of ids that others count up from 1. It is FNV-1a, as
// of hash/fnv, which would cost two allocations for each.
func hashID(k desired.NexthopKey, salt uint32) desired.NexthopID {
	h := uint32(2166136261)
	add := func(b byte) { h = (h ^ uint32(b)) * 16777619 }
	for i := range len(k) {
		add(k[i])
	}
	if salt != 0 {
		for _, b := range binary.BigEndian.AppendUint32(nil, salt) {
			add(b)
		}
	}
	return desired.NexthopID(h | 1<<31)
}

// resolve returns the nexthop objects, sorted by id, and the ids in the order of the entries.
func (t *nexthopTable) resolve() ([]desired.Nexthop, []desired.NexthopID) {
	ids := t.ids()
	order := make([]int, len(ids)) // sorting the objects themselves would move ten times as much
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(ids[a], ids[b]) })
	objects := make([]desired.Nexthop, len(ids))
	var members []desired.NexthopID
	for at, i := range order {
		e := &t.entries[i]
		objects[at] = e.object
		objects[at].ID = ids[i]
		if e.group == nil {
			continue
		}
		members = members[:0]
		for _, ref := range e.group {
			members = append(members, ids[ref])
		}
		objects[at].Group = desired.EncodeGroup(members)
	}
	return objects, ids
}
