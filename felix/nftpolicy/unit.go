// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/policy"
)

// unitKind is what a unit renders.
type unitKind uint8

const (
	endpointUnit unitKind = iota // a policy.Chain
	tierUnit                     // a tier in which a rule passes
	policyUnit                   // a policy
)

// unitKey names a unit by all that it is made from, but for the policies' rules. Equal ones are shared.
type unitKey struct {
	kind      unitKind
	direction policy.Direction
	text      string          // of endpoints' chains and tiers: canonical
	policy    policy.PolicyID // of policies
}

func policyKey(id policy.PolicyID, d policy.Direction) unitKey {
	return unitKey{kind: policyUnit, direction: d, policy: id}
}

// name is that of its chain in the kernel.
func (k unitKey) name() string {
	suffix := [...]string{policy.Ingress: "i", policy.Egress: "e"}[k.direction]
	switch k.kind {
	case endpointUnit:
		return suffix + "-" + digest(k.text)
	case tierUnit:
		return "t-" + digest(k.text) + "-" + suffix
	}
	return "p-" + digest(k.policy.String()) + "-" + suffix
}

// chainText is a chain in one form that only it has.
func chainText(c policy.Chain) string {
	var b strings.Builder
	for _, t := range c.Tiers {
		b.WriteString(tierText(t))
	}
	b.WriteString(c.Default.String())
	return b.String()
}

func tierText(t policy.Tier) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %s", t.Name, t.Default)
	for _, id := range t.Policies {
		fmt.Fprintf(&b, " %d %q %q", id.Kind, id.Namespace, id.Name)
	}
	b.WriteByte('\n')
	return b.String()
}

// unit is something that becomes a chain, for as long as an endpoint or another unit refers to it.
type unit struct {
	key     unitKey
	chain   policy.Chain // of endpoints
	tier    policy.Tier  // of a tier
	refs    int
	out     *rendering // nil: not yet
	devices map[string]struct{}
}

// policies are those that the unit's rendering depends on.
func (u *unit) policies(yield func(policy.PolicyID)) {
	switch u.key.kind {
	case policyUnit:
		yield(u.key.policy)
	case tierUnit:
		for _, id := range u.tier.Policies {
			yield(id)
		}
	case endpointUnit:
		for _, t := range u.chain.Tiers {
			for _, id := range t.Policies {
				yield(id)
			}
		}
	}
}

// units keeps all units, and which must be rendered again when something changes.
type units struct {
	all      map[unitKey]*unit
	byPolicy users[policy.PolicyID]
	bySet    users[policy.SetID]
	dirty    map[*unit]struct{}
}

// users says which units refer to a thing.
type users[K comparable] map[K]map[*unit]struct{}

func (m users[K]) add(k K, u *unit) {
	if m[k] == nil {
		m[k] = map[*unit]struct{}{}
	}
	m[k][u] = struct{}{}
}

func (m users[K]) remove(k K, u *unit) {
	delete(m[k], u)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

func newUnits() *units {
	return &units{all: map[unitKey]*unit{}, byPolicy: users[policy.PolicyID]{}, bySet: users[policy.SetID]{}, dirty: map[*unit]struct{}{}}
}

// acquire returns a unit with one more reference to it.
func (s *units) acquire(u unit) *unit {
	have, ok := s.all[u.key]
	if !ok {
		have = &u
		have.devices = map[string]struct{}{}
		s.all[u.key] = have
		s.dirty[have] = struct{}{}
		have.policies(func(id policy.PolicyID) { s.byPolicy.add(id, have) })
	}
	have.refs++
	return have
}

// release drops a reference, and the unit with the last. gone is told what no longer has to be in the
// kernel.
func (s *units) release(u *unit, gone func(*rendering)) {
	if u.refs--; u.refs > 0 {
		return
	}
	delete(s.all, u.key)
	delete(s.dirty, u)
	u.policies(func(id policy.PolicyID) { s.byPolicy.remove(id, u) })
	if u.out == nil {
		return
	}
	for _, id := range u.out.sets {
		s.bySet.remove(id, u)
	}
	gone(u.out)
	for _, k := range u.out.uses {
		s.release(s.all[k], gone)
	}
}

// policyChanged makes the users of a policy dirty: its own chains, tiers that hold its rules, and if more
// than its rules has changed, all who refer to it.
func (s *units) policyChanged(id policy.PolicyID, rulesOnly bool) {
	for u := range s.byPolicy[id] {
		if !rulesOnly || u.key.kind != endpointUnit {
			s.dirty[u] = struct{}{}
		}
	}
}

func (s *units) setChanged(id policy.SetID) {
	for u := range s.bySet[id] {
		s.dirty[u] = struct{}{}
	}
}

// render renders one unit again. What it newly refers to is acquired before what it did is released.
func (t *Table) renderUnit(u *unit) {
	out := t.rendering(u)
	old := u.out
	for _, k := range out.uses {
		t.units.acquire(t.unitOf(u, k))
	}
	t.objects.acquire(out)
	if old != nil {
		for _, id := range old.sets {
			t.units.bySet.remove(id, u)
		}
		t.objects.release(old)
		for _, k := range old.uses {
			t.units.release(t.units.all[k], t.objects.release)
		}
	}
	for _, id := range out.sets {
		t.units.bySet.add(id, u)
	}
	u.out = out
	if old == nil || old.isolates != out.isolates {
		for device := range u.devices {
			t.dirtyDevices[device] = struct{}{}
		}
	}
}

// unitOf makes the unit of a key that another refers to.
func (t *Table) unitOf(from *unit, k unitKey) unit {
	u := unit{key: k}
	if k.kind == tierUnit {
		i := slices.IndexFunc(from.chain.Tiers, func(t policy.Tier) bool { return tierText(t) == k.text })
		u.tier = from.chain.Tiers[i]
	}
	return u
}

// rendering renders a unit. A policy that cannot be rendered is refused, and its unit rendered as such.
func (t *Table) rendering(u *unit) *rendering {
	for {
		out, err := t.tryRendering(u)
		if err == nil {
			return out
		}
		var refused *tooComplex
		if !errors.As(err, &refused) {
			return out
		}
		t.refuse(refused.rule.Policy, err)
	}
}

func (t *Table) tryRendering(u *unit) (*rendering, error) {
	d, name := u.key.direction, u.key.name()
	switch u.key.kind {
	case policyUnit:
		return renderPolicy(t, name, u.key.policy, d)
	case tierUnit:
		return renderTier(t, name, u.tier, d)
	}
	return renderEndpoint(t, name, u.chain, d), nil
}
