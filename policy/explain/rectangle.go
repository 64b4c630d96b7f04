// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"fmt"
	"slices"
)

// partySet is parties by their indices, sorted.
type partySet []int

func (s partySet) key() string { return fmt.Sprint([]int(s)) }

func (s partySet) with(i int) partySet {
	at, found := slices.BinarySearch(s, i)
	if found {
		return s
	}
	return slices.Insert(slices.Clone(s), at, i)
}

// rectangle is parties of which each changes alike towards each of others.
type rectangle struct {
	from, to partySet
	traffic  []TrafficChange
}

// rectangles put pairs together: all that change alike towards the same, then all whom the same change towards.
func (c *comparison) rectangles(pairs []pairResult) []PairChange {
	all := make([]rectangle, 0, len(pairs))
	for _, p := range pairs {
		all = append(all, rectangle{partySet{p.from}, partySet{p.to}, p.traffic})
	}
	all = join(all, func(r rectangle) string { return r.to.key() }, func(into *rectangle, r rectangle) { into.from = append(into.from, r.from...) })
	c.roundOff(all)
	all = join(all, func(r rectangle) string { return r.from.key() }, func(into *rectangle, r rectangle) { into.to = append(into.to, r.to...) })
	out := []PairChange{}
	for _, r := range all {
		out = append(out, PairChange{From: c.groups(r.from), To: c.groups(r.to), Traffic: r.traffic})
	}
	slices.SortStableFunc(out, func(a, b PairChange) int {
		return cmp.Or(slices.CompareFunc(a.To, b.To, compareGroups), slices.CompareFunc(a.From, b.From, compareGroups))
	})
	return out
}

// join merges the rectangles of one key and the same traffic.
func join(in []rectangle, key func(rectangle) string, merge func(into *rectangle, r rectangle)) []rectangle {
	at := map[string]int{}
	var out []rectangle
	for _, r := range in {
		k := key(r) + fmt.Sprint(r.traffic)
		if i, ok := at[k]; ok {
			merge(&out[i], r)
			continue
		}
		at[k] = len(out)
		out = append(out, r)
	}
	return out
}

// roundOff lets a single pod be among its own senders where that makes the set simpler. It talks to itself
// whatever policies say, but to leave it out would give each pod a line of its own: all but a to a, all but b
// to b.
func (c *comparison) roundOff(all []rectangle) {
	full := func(r rectangle) string { return r.from.with(r.to[0]).key() + fmt.Sprint(r.traffic) }
	same := map[string]int{}
	for _, r := range all {
		same[full(r)]++
	}
	for i, r := range all {
		p := c.parties[r.to[0]]
		if p.outside == "" && p.second == nil && (same[full(r)] > 1 || c.holdsNamespaceOf(r.from, r.to[0])) {
			all[i].from = r.from.with(r.to[0])
		}
	}
}

// holdsNamespaceOf says whether a set has all others of a party's namespace, and any.
func (c *comparison) holdsNamespaceOf(s partySet, of int) bool {
	namespace := func(i int) string { return c.pods[c.parties[i].pods[0]].id.Namespace }
	n := 0
	for i, p := range c.parties {
		if p.outside != "" || i == of || namespace(i) != namespace(of) {
			continue
		}
		if _, found := slices.BinarySearch(s, i); !found {
			return false
		}
		n++
	}
	return n > 0
}
