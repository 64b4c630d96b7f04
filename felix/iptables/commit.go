// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/policy"
)

// closeUsers makes stubs of the policies whose sets the kernel refuses.
func (t *Table) closeUsers(refused map[string]error) {
	if len(refused) == 0 {
		return
	}
	for _, f := range t.families {
		for id, r := range f.policies {
			for name := range r.sets {
				t.refuse(id, refused[name])
			}
		}
	}
	for set, users := range t.users {
		for _, f := range t.families {
			for id := range users {
				t.refuse(id, refused[t.refs[set].name(set, f.family)])
			}
		}
	}
}

// refuse makes a stub of a policy.
func (t *Table) refuse(id policy.PolicyID, err error) {
	if err == nil || t.refused[id] != nil {
		return
	}
	t.refused[id] = err
	for _, f := range t.families {
		t.put(f, id, stub(id))
	}
}

// tellRefused logs which policies are refused, and were not before.
func (t *Table) tellRefused(before map[policy.PolicyID]error) {
	for id, err := range t.refused {
		switch {
		case before[id] != nil:
		case id == policy.FailsafeID():
			t.log.Error("the kernel refuses the failsafes: hosts' endpoints are open", "err", err)
		default:
			t.log.Error("the kernel refuses a policy: what it selects is closed", "policy", id.String(), "err", err)
		}
	}
}

// commit makes the rules of a family those that are wanted. If the kernel refuses it, policies go first
// and in parts, so that those at fault are found, and all others applied; unless it refuses all that we
// ask for, which is no policy's fault.
func (t *Table) commit(ctx context.Context, f *family) error {
	if !f.pending() {
		return nil
	}
	err := t.restore(ctx, f)
	if err == nil || transient(err) {
		return err
	}
	if t.handle.Restore(ctx, f.family, f.part([]string{chainAllow})) != nil {
		return err
	}
	for _, step := range []func(context.Context, *family) error{t.policiesInParts, t.inOrder} {
		if err := step(ctx, f); err != nil {
			return err
		}
		if err = t.restore(ctx, f); err == nil || transient(err) {
			return err
		}
	}
	return err
}

// restore makes all that is pending in one transaction.
func (t *Table) restore(ctx context.Context, f *family) error {
	if err := t.handle.Restore(ctx, f.family, f.input()); err != nil {
		return err
	}
	f.committed()
	return nil
}

// inOrder applies the chains of endpoints in parts, each after those that it leads to, for a change that
// is too large otherwise: without the right to it, iptables does not get as large a buffer as it asks for.
func (t *Table) inOrder(ctx context.Context, f *family) error {
	const part = 8
	var names []string
	for name := range f.endpoints {
		if f.dirty[name] {
			names = append(names, name)
		}
	}
	isTree := func(name string) int {
		switch name {
		case treeHostIn, treeHostOut:
			return 1
		case chainHostIn, chainHostOut:
			return 2
		}
		if strings.HasPrefix(name, treeFrom) || strings.HasPrefix(name, treeTo) {
			return 1
		}
		return 0
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(isTree(a)-isTree(b), len(b)-len(a), cmp.Compare(a, b)) // of a tree, the branches first
	})
	for some := range slices.Chunk(names, part) {
		some = append(some, leaves(f)...)
		if err := t.handle.Restore(ctx, f.family, f.part(some)); err != nil {
			return err
		}
		for _, name := range some {
			delete(f.dirty, name)
		}
	}
	return nil
}

// policiesInParts applies the policies of which the kernel lacks chains.
func (t *Table) policiesInParts(ctx context.Context, f *family) error {
	var ids []policy.PolicyID
	for id, r := range f.policies {
		for name := range r.chains {
			if f.dirty[name] && t.refused[id] == nil {
				ids = append(ids, id)
				break
			}
		}
	}
	slices.SortFunc(ids, policy.PolicyID.Compare)
	return t.inParts(ctx, f, ids)
}

// inParts applies policies for themselves, since their chains need no others, by halves until each was
// taken or stands alone. It is for what the kernel refuses as a whole, be it for one of them or for its
// size.
func (t *Table) inParts(ctx context.Context, f *family, ids []policy.PolicyID) error {
	if len(ids) == 0 {
		return nil
	}
	names := leaves(f)
	for _, id := range ids {
		for name := range f.policies[id].chains {
			if f.dirty[name] {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	err := t.handle.Restore(ctx, f.family, f.part(names))
	switch {
	case err == nil:
		for _, name := range names {
			delete(f.dirty, name)
		}
		return nil
	case transient(err):
		return err
	case len(ids) == 1:
		t.refuse(ids[0], err)
		return nil
	}
	if err := t.inParts(ctx, f, ids[:len(ids)/2]); err != nil {
		return err
	}
	return t.inParts(ctx, f, ids[len(ids)/2:])
}

// leaves are the chains that others lead to and which lead nowhere, if the kernel lacks them.
func leaves(f *family) []string {
	var out []string
	for _, name := range []string{chainAllow, chainPass, chainStranger, chainUnknownE, chainUnknownI} {
		if f.dirty[name] {
			out = append(out, name)
		}
	}
	return out
}
