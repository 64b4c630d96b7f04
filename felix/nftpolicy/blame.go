// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"errors"
	"maps"
	"slices"

	"github.com/heliograph-dev/heliograph/policy"
)

// blame finds the policies that make the kernel refuse a transaction, and says whether there are any that
// were not known.
func (t *Table) blame(tx Transaction, refused *RefusedError) bool {
	found := false
	accuse := func(id policy.PolicyID) {
		if t.state.Policies[id] != nil && t.refused[id] == nil {
			t.refuse(id, refused.Err)
			found = true
		}
	}
	for _, i := range refused.Ops {
		for _, id := range t.owners(tx.Ops[i]) {
			accuse(id)
		}
	}
	if found {
		return true
	}
	for _, id := range t.search() {
		accuse(id)
	}
	return found
}

// owners are the policies that an operation is made for.
func (t *Table) owners(op Op) []policy.PolicyID {
	if op.Rule.Owner != (policy.PolicyID{}) {
		return []policy.PolicyID{op.Rule.Owner}
	}
	if s := t.objects.sets[op.Set.Name]; s != nil && s.owner != (policy.PolicyID{}) {
		return []policy.PolicyID{s.owner}
	}
	var out []policy.PolicyID
	for id, s := range t.sets {
		if s.has(op.Set.Name) {
			for _, p := range t.state.Policies {
				p.Sets(func(set policy.SetID) bool {
					if set == id {
						out = append(out, p.ID)
					}
					return set != id
				})
			}
		}
	}
	for k := range t.units.all {
		if k.kind == policyUnit && k.name() == op.Chain.Name {
			out = append(out, k.policy)
		}
	}
	return out
}

// search finds, by asking, the policies without which the kernel would take the table; none if it would
// not take it without any policy.
func (t *Table) search() []policy.PolicyID {
	known := maps.Clone(t.refused)
	suspects := slices.SortedFunc(maps.Keys(t.state.Policies), policy.PolicyID.Compare)
	suspects = slices.DeleteFunc(suspects, func(id policy.PolicyID) bool { return known[id] != nil })
	defer func() {
		t.suppose(suspects, nil)
		maps.Copy(t.refused, known)
	}()
	untried := errors.New("not tried yet")
	t.suppose(suspects, untried)
	if !t.taken() {
		return nil
	}
	return split(suspects, func(some []policy.PolicyID) bool {
		if t.suppose(some, nil); t.taken() {
			return true
		}
		t.suppose(some, untried)
		return false
	})
}

// suppose renders policies as if they were refused, or were not.
func (t *Table) suppose(ids []policy.PolicyID, refused error) {
	for _, id := range ids {
		delete(t.refused, id)
		if refused != nil {
			t.refused[id] = refused
		}
		t.units.policyChanged(id, false)
	}
}

// taken asks whether the kernel would take the table.
func (t *Table) taken() bool {
	t.render()
	tx := t.plan()
	tx.DryRun = true
	return t.handle.Commit(tx) == nil
}

// split returns those that are not taken, by halving groups that are not.
func split(group []policy.PolicyID, taken func([]policy.PolicyID) bool) []policy.PolicyID {
	switch {
	case len(group) == 0 || taken(group):
		return nil
	case len(group) == 1:
		return group
	}
	half := len(group) / 2
	return append(split(group[:half], taken), split(group[half:], taken)...)
}
