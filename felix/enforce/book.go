// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"time"

	"github.com/heliograph-dev/heliograph/felix/feed"
	"github.com/heliograph-dev/heliograph/felix/watch"
	"github.com/heliograph-dev/heliograph/policy"
)

// kinds are the policies among what the feed brings.
var kinds = map[feed.Kind]policy.Kind{
	watch.NetworkPolicies: policy.NetworkPolicy, watch.ClusterNetworkPolicies: policy.ClusterNetworkPolicy,
	watch.OwnPolicies: policy.HeliographNetworkPolicy, watch.GlobalPolicies: policy.GlobalNetworkPolicy,
}

// book remembers of each policy which generation was heard of when, and since when it is in force.
type book struct {
	pages map[policy.PolicyID]*page
	fresh []policy.PolicyID // heard of, and not in force yet
}

type page struct {
	generation int64
	heard      time.Time
	inForce    time.Time // zero: not yet
}

// heard notes changes, and says whether any is of a policy.
func (b *book) heard(changes []feed.Change, now time.Time) (any bool) {
	for _, c := range changes {
		kind, ok := kinds[c.Key.Kind]
		if !ok {
			continue
		}
		any = true
		id := policy.PolicyID{Kind: kind, Namespace: c.Key.Namespace, Name: c.Key.Name}
		if c.Object == nil {
			delete(b.pages, id)
			continue
		}
		if old := b.pages[id]; old == nil || old.generation != c.Object.GetGeneration() {
			b.pages[id] = &page{generation: c.Object.GetGeneration(), heard: now}
			b.fresh = append(b.fresh, id)
		}
	}
	return any
}

// enforced notes that all that was heard of is in force now, and tells how long it took those that select
// pods of this node.
func (b *book) enforced(now time.Time, s *policy.State, took func(time.Duration)) {
	for _, id := range b.fresh {
		p := b.pages[id]
		if p == nil || !p.inForce.IsZero() {
			continue
		}
		p.inForce = now
		if s.Policies[id] != nil {
			took(now.Sub(p.heard))
		}
	}
	b.fresh = nil
}
