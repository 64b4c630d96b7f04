// SPDX-License-Identifier: Apache-2.0

package calc

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/path"
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
	singles map[desired.NexthopKey]desired.Nexthop
	groups  map[desired.NexthopKey][]desired.NexthopKey
	names   map[hop]desired.NexthopKey // of singles: the same few hops are named thousands of times
	users   []routeRef
}

// routeRef is a route whose nexthop object has no id yet.
type routeRef struct {
	route   desired.Route
	nexthop desired.NexthopKey
	table   path.Method // whose probes' table it is of; Methods: the main one
}

// newNexthopTable returns a table for so many nodes: each has a group and a way through a tunnel per family.
func newNexthopTable(nodes int) *nexthopTable {
	return &nexthopTable{
		singles: make(map[desired.NexthopKey]desired.Nexthop, 2*nodes),
		groups:  make(map[desired.NexthopKey][]desired.NexthopKey, 2*nodes),
		names:   make(map[hop]desired.NexthopKey, 2*nodes),
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

// group defines the group of a name, in terms of hops.
func (t *nexthopTable) group(name desired.NexthopKey, hops []hop) {
	members := make([]desired.NexthopKey, 0, len(hops))
	for _, h := range hops {
		members = append(members, t.single(h))
	}
	slices.Sort(members)
	t.groups[name] = slices.Compact(members)
}

// single defines a hop of its own, and returns its name.
func (t *nexthopTable) single(h hop) desired.NexthopKey {
	k, ok := t.names[h]
	if !ok {
		k = h.key()
		t.names[h] = k
		t.singles[k] = desired.Nexthop{Gateway: h.gateway, Device: h.device, OnLink: h.onLink}
	}
	return k
}

// contentGroup defines a group named by its content, for a block that goes another way than the
// rest of its node.
func (t *nexthopTable) contentGroup(f bgp.Family, hops []hop) desired.NexthopKey {
	keys := make([]string, len(hops))
	for i, h := range hops {
		keys[i] = string(t.single(h))
	}
	slices.Sort(keys)
	name := desired.NexthopKey("set/" + f.String() + "/" + strings.Join(keys, ","))
	if _, ok := t.groups[name]; !ok {
		t.group(name, hops)
	}
	return name
}

func nodeGroup(n snapshot.Node, f bgp.Family) desired.NexthopKey {
	return desired.NexthopKey("node/" + n.Name + "/" + f.String())
}

// ids gives every object its id.
func (t *nexthopTable) ids() map[desired.NexthopKey]desired.NexthopID {
	keys := slices.Sorted(maps.Keys(t.singles))
	keys = append(keys, slices.Sorted(maps.Keys(t.groups))...)
	ids := make(map[desired.NexthopKey]desired.NexthopID, len(keys))
	taken := make(map[desired.NexthopID]bool, len(keys))
	for _, k := range keys {
		for salt := uint32(0); ; salt++ {
			if id := hashID(k, salt); !taken[id] {
				ids[k], taken[id] = id, true
				break
			}
		}
	}
	return ids
}

// hashID has the highest bit set, which keeps us clear of ids that others count up from 1.
func hashID(k desired.NexthopKey, salt uint32) desired.NexthopID {
	h := fnv.New32a()
	_, _ = h.Write([]byte(k))
	if salt != 0 {
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, salt))
	}
	return desired.NexthopID(h.Sum32() | 1<<31)
}

// resolve returns the nexthop objects, and the ids by which routes refer to them.
func (t *nexthopTable) resolve() ([]desired.Nexthop, map[desired.NexthopKey]desired.NexthopID) {
	ids := t.ids()
	objects := make([]desired.Nexthop, 0, len(ids))
	for k, n := range t.singles {
		n.ID = ids[k]
		objects = append(objects, n)
	}
	for k, members := range t.groups {
		var m []desired.NexthopID
		for _, member := range members {
			m = append(m, ids[member])
		}
		objects = append(objects, desired.Nexthop{ID: ids[k], Group: desired.EncodeGroup(m)})
	}
	slices.SortFunc(objects, func(a, b desired.Nexthop) int { return cmp.Compare(a.ID, b.ID) })
	return objects, ids
}
