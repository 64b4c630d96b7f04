// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/policy"
)

// Orders of what is there without an object that says so, as in Calico.
const (
	defaultTierOrder   = 1_000_000
	networkPolicyOrder = 1_000 // of Kubernetes' own
	lastOrder          = math.MaxInt64
)

// tier is the place of a tier among all, and what it does with what none of its policies decides.
type tier struct {
	rank   rank
	order  int64
	action policy.Action
}

// rank comes before order.
type rank uint8

const (
	failsafeTier rank = iota
	adminTier
	// missingTier is a tier that nobody knows the place of. Its policies may be there to deny what others
	// allow, so they are asked first, and deny.
	missingTier
	userTier
	baselineTier
)

func (c *Compiler) tierOf(name string) tier {
	switch name {
	case policy.FailsafeTier:
		return tier{rank: failsafeTier, action: policy.Pass}
	case policy.AdminTier:
		return tier{rank: adminTier, action: policy.Pass}
	case policy.DefaultTier:
		return tier{rank: userTier, order: defaultTierOrder, action: policy.Deny}
	case policy.BaselineTier:
		return tier{rank: baselineTier, action: policy.Pass}
	}
	if t, ok := c.tiers[name]; ok {
		return t
	}
	return tier{rank: missingTier, action: policy.Deny}
}

// SetTier adds or replaces a tier.
func (c *Compiler) SetTier(obj *v1alpha1.Tier) {
	t := tier{rank: userTier, order: orderOf(obj.Spec.Order), action: policy.Deny}
	if obj.Spec.DefaultAction == v1alpha1.TierPass {
		t.action = policy.Pass
	}
	if old, ok := c.tiers[obj.Name]; ok && old == t {
		return
	}
	c.tiers[obj.Name] = t
	c.touchTier(obj.Name)
}

// RemoveTier removes a tier. The policies that stand in it still deny everything, until it is back.
func (c *Compiler) RemoveTier(name string) {
	delete(c.tiers, name)
	c.touchTier(name)
}

func (c *Compiler) touchTier(name string) {
	for s := range c.byTier[name] {
		c.touchSubject(s)
	}
}

func orderOf(order *int32) int64 {
	if order == nil {
		return lastOrder
	}
	return int64(*order)
}

// endpoint computes the endpoint of a workload; nil if there is none.
func (c *Compiler) endpoint(id policy.EndpointID) *policy.Endpoint {
	w := c.workloads[id]
	if w == nil {
		return nil
	}
	e := &policy.Endpoint{ID: id, Device: w.Device, IPs: w.IPs}
	p := c.entities[endpointKey(id)]
	if id.Host && p == nil {
		return nil // nothing is closed on a node because of what we do not know
	}
	if p == nil || p.workload != w {
		e.Unknown = true
		e.Ingress.Default, e.Egress.Default = policy.Deny, policy.Deny
		return e
	}
	var applies [2][]*source
	for _, s := range p.selections {
		for src := range s.sources {
			for d := range applies {
				if src.applies[d] {
					applies[d] = append(applies[d], src)
				}
			}
		}
	}
	if id.Host && !restricted(applies) {
		e.Ingress.Default, e.Egress.Default = policy.Allow, policy.Allow
		return e
	}
	e.Ingress, e.Egress = c.chain(applies[policy.Ingress]), c.chain(applies[policy.Egress])
	return e
}

// restricted says whether any policy of users decides. A host of which none does needs no failsafes: it is
// open, and has no chains.
func restricted(applies [2][]*source) bool {
	enforces := func(s *source) bool { return s.tier != policy.FailsafeTier && !s.policy.Audit }
	return slices.ContainsFunc(applies[policy.Ingress], enforces) || slices.ContainsFunc(applies[policy.Egress], enforces)
}

// chain puts the policies that apply into their tiers.
func (c *Compiler) chain(sources []*source) policy.Chain {
	ch := policy.Chain{Default: policy.Allow}
	slices.SortFunc(sources, c.compare)
	for _, s := range sources {
		if n := len(ch.Tiers); n == 0 || ch.Tiers[n-1].Name != s.tier {
			ch.Tiers = append(ch.Tiers, policy.Tier{Name: s.tier, Default: c.tierOf(s.tier).action})
		}
		last := &ch.Tiers[len(ch.Tiers)-1]
		last.Policies = append(last.Policies, s.policy.ID)
	}
	return ch
}

// compare orders policies: tiers by order and name, and policies in one by order and name.
func (c *Compiler) compare(a, b *source) int {
	if a.tier != b.tier {
		ta, tb := c.tierOf(a.tier), c.tierOf(b.tier)
		return cmp.Or(cmp.Compare(ta.rank, tb.rank), cmp.Compare(ta.order, tb.order), strings.Compare(a.tier, b.tier))
	}
	ia, ib := a.policy.ID, b.policy.ID
	return cmp.Or(cmp.Compare(a.order, b.order), strings.Compare(ia.Name, ib.Name), ia.Compare(ib))
}
