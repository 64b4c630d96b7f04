// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"maps"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/policy"
)

// Diff returns what leads from one state to another.
func Diff(from, to *policy.State) policy.Delta {
	var d policy.Delta
	for _, id := range union(from.Sets, to.Sets, func(a, b policy.SetID) int { return strings.Compare(string(a), string(b)) }) {
		if c, changed := diffSet(id, from.Sets[id], to.Sets[id]); changed {
			d.Sets = append(d.Sets, c)
		}
	}
	for _, id := range union(from.Policies, to.Policies, policy.PolicyID.Compare) {
		was, is := from.Policies[id], to.Policies[id]
		if !was.Equal(is) {
			d.Policies = append(d.Policies, policy.PolicyChange{ID: id, Op: op(was == nil, is == nil), Policy: is})
		}
	}
	for _, id := range union(from.Endpoints, to.Endpoints, policy.EndpointID.Compare) {
		was, is := from.Endpoints[id], to.Endpoints[id]
		if !was.Equal(is) {
			d.Endpoints = append(d.Endpoints, policy.EndpointChange{ID: id, Op: op(was == nil, is == nil), Endpoint: is})
		}
	}
	return d
}

func op(added, removed bool) policy.Op {
	switch {
	case added:
		return policy.Added
	case removed:
		return policy.Removed
	}
	return policy.Changed
}

func union[K comparable, V any](a, b map[K]V, compare func(K, K) int) []K {
	all := make(map[K]V, len(a)+len(b))
	maps.Copy(all, a)
	maps.Copy(all, b)
	return slices.SortedFunc(maps.Keys(all), compare)
}

func diffSet(id policy.SetID, was, is *policy.Set) (policy.SetChange, bool) {
	c := policy.SetChange{ID: id, Op: op(was == nil, is == nil)}
	if is == nil {
		return c, true
	}
	c.Kind = is.Kind
	if was == nil {
		was = &policy.Set{}
	}
	for _, m := range union(was.Members, is.Members, policy.Member.Compare) {
		_, before := was.Members[m]
		_, after := is.Members[m]
		switch {
		case after && !before:
			c.Add = append(c.Add, m)
		case before && !after:
			c.Remove = append(c.Remove, m)
		}
	}
	return c, c.Op == policy.Added || len(c.Add)+len(c.Remove) > 0
}
