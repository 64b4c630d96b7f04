// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"slices"

	"github.com/heliograph-dev/heliograph/policy"
)

// Flush returns what the events since the last Flush changed, and nothing that only went back and forth.
func (c *Compiler) Flush() policy.Delta {
	d := policy.Delta{Policies: c.flushPolicies(), Endpoints: c.flushEndpoints()}
	d.Sets = c.flushSets()
	c.dropIdle()
	slices.SortFunc(d.Sets, func(a, b policy.SetChange) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(d.Policies, func(a, b policy.PolicyChange) int { return a.ID.Compare(b.ID) })
	slices.SortFunc(d.Endpoints, func(a, b policy.EndpointChange) int { return a.ID.Compare(b.ID) })
	return d
}

// flushPolicies brings policies into force and out of it, with their sets.
func (c *Compiler) flushPolicies() []policy.PolicyChange {
	var changes []policy.PolicyChange
	// Released last, so that a set which goes from one policy to another is not built anew.
	var release []*set
	for id := range c.dirtyPolicies {
		old := c.policies[id]
		var now inForce
		if s := c.sources[id]; s != nil && len(s.subject.members) > 0 {
			now.policy = s.policy
		}
		if old.policy == now.policy {
			continue
		}
		release = append(release, old.sets...)
		if now.policy == nil {
			delete(c.policies, id)
		} else {
			for _, spec := range c.sources[id].sets {
				now.sets = append(now.sets, c.acquire(spec))
			}
			c.policies[id] = now
		}
		if !old.policy.Equal(now.policy) {
			changes = append(changes, policy.PolicyChange{ID: id, Op: opOf(old.policy, now.policy), Policy: now.policy})
		}
	}
	for _, t := range release {
		c.release(t)
	}
	reset(&c.dirtyPolicies)
	return changes
}

// flushEndpoints computes the chains of endpoints that something may have changed for.
func (c *Compiler) flushEndpoints() []policy.EndpointChange {
	var changes []policy.EndpointChange
	for id := range c.dirtyEndpoints {
		old, now := c.endpoints[id], c.endpoint(id)
		if old.Equal(now) {
			continue
		}
		changes = append(changes, policy.EndpointChange{ID: id, Op: opOf(old, now), Endpoint: now})
		if now == nil {
			delete(c.endpoints, id)
		} else {
			c.endpoints[id] = now
		}
	}
	reset(&c.dirtyEndpoints)
	return changes
}

// reset empties a map. clear would take as long as the map was ever large, at each event after a snapshot.
func reset[K comparable](m *map[K]struct{}) {
	if len(*m) > 0 {
		*m = map[K]struct{}{}
	}
}

func opOf[T any](old, now *T) policy.Op {
	switch {
	case old == nil:
		return policy.Added
	case now == nil:
		return policy.Removed
	}
	return policy.Changed
}
