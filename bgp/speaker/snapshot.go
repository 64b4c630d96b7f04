// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sort"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
)

// snapshot costs one copy of the tables if something changed since the last, and no sorting but of
// what changed.
func (v *view) snapshot() bgp.Snapshot {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.cached != nil {
		return *v.cached
	}
	start := time.Now()
	if len(v.dirty) > 0 {
		v.paths = merge(v.paths, v.dirty, v.path)
		clear(v.dirty)
	}
	if v.order == nil {
		v.order = slices.SortedFunc(maps.Keys(v.sessions), netip.Addr.Compare)
	}
	out := &bgp.Snapshot{Running: v.running, Paths: v.paths, Sessions: make([]bgp.Session, 0, len(v.order))}
	for _, addr := range v.order {
		out.Sessions = append(out.Sessions, v.sessions[addr].status(v.origins))
	}
	v.cached = out
	v.cost = time.Since(start)
	return *out
}

// path is what stands in the tables for a key now.
func (v *view) path(k routeKey) (bgp.Path, bool) {
	s := v.sessions[k.peer]
	if s == nil {
		return bgp.Path{}, false
	}
	r, ok := s.routes[k.prefix]
	if !ok || r.refused != "" {
		return bgp.Path{}, false
	}
	return bgp.Path{
		Prefix:    k.prefix,
		NextHop:   r.nextHop,
		Peer:      k.peer,
		Kind:      s.peer.Kind,
		ASPathLen: r.pathLen, Originator: r.originator, Clusters: r.clusters,
		Stale: r.stale,
	}, true
}

// merge returns the sorted paths of base with those of the dirty keys looked up anew. It leaves base
// alone, because older snapshots share it.
func merge(base []bgp.Path, dirty map[routeKey]struct{}, lookup func(routeKey) (bgp.Path, bool)) []bgp.Path {
	keys := slices.SortedFunc(maps.Keys(dirty), func(a, b routeKey) int { return a.prefix.Compare(b.prefix) })
	out := make([]bgp.Path, 0, len(base)+len(keys))
	for len(keys) > 0 {
		prefix := keys[0].prefix
		start := sort.Search(len(base), func(i int) bool { return base[i].Prefix.Compare(prefix) >= 0 })
		out = append(out, base[:start]...)
		base = base[start:]
		group := len(out)
		for len(base) > 0 && base[0].Prefix == prefix {
			if _, changed := dirty[routeKey{prefix, base[0].Peer}]; !changed {
				out = append(out, base[0])
			}
			base = base[1:]
		}
		for len(keys) > 0 && keys[0].prefix == prefix {
			if p, ok := lookup(keys[0]); ok {
				out = append(out, p)
			}
			keys = keys[1:]
		}
		slices.SortFunc(out[group:], comparePaths)
	}
	return append(out, base...)
}

// comparePaths orders as bgp.Snapshot promises.
func comparePaths(a, b bgp.Path) int {
	return cmp.Or(
		a.Prefix.Compare(b.Prefix),
		cmp.Compare(a.Kind, b.Kind),
		a.NextHop.Compare(b.NextHop),
		a.Peer.Compare(b.Peer),
	)
}
