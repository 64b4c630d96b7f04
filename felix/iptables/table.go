// SPDX-License-Identifier: Apache-2.0

// Package iptables renders a policy.State as chains of iptables and ip6tables, and ipsets: for hosts whose
// other rules stand there, or that have no nftables. It runs iptables-restore, whose changes are made as a
// whole or not at all, and talks to ipset by netlink.
//
// What begins with HEL- is ours: chains of the table filter, and ipsets. FORWARD, INPUT and OUTPUT each jump to
// one of our chains first; nothing else of other people's is touched, and what we allow is not accepted
// but goes on to their rules. See static for how the chains lead to each other.
//
// A policy has chains of its own, an endpoint's direction one that asks the policies of its tiers, which
// is shared by those that ask the same. To change a policy is to replace its chains; to change who is
// selected is an element of an ipset. Sets are filled before rules refer to them, and emptied and
// destroyed after.
//
// It fails closed. A pod's device that leads to no chain is dropped, all of a change is one
// transaction per family, and a policy that the kernel refuses becomes a chain that drops.
package iptables

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/heliograph-dev/heliograph/policy"
)

// Set is an ipset of the kernel.
type Set struct {
	Kind    policy.SetKind
	Family  policy.Family
	Members map[policy.Member]struct{}
}

// Handle is what Table needs of the host. *Kernel satisfies it.
type Handle interface {
	// Save prints the table filter of a family, with counters.
	Save(ctx context.Context, f policy.Family) ([]byte, error)
	// Restore changes the table filter of a family, as a whole or not at all.
	Restore(ctx context.Context, f policy.Family, input []byte) error
	// ListSets reads the ipsets whose names begin so.
	ListSets(prefix string) (map[string]Set, error)
	CreateSet(name string, kind policy.SetKind, f policy.Family) error
	// AddMembers adds members, some of which the set may have.
	AddMembers(name string, members []policy.Member) error
	// RemoveMembers removes members, some of which the set may lack.
	RemoveMembers(name string, members []policy.Member) error
	DestroySet(name string) error
}

// Table is the driver. Its methods must be called from one goroutine.
type Table struct {
	handle Handle
	log    *slog.Logger

	kinds     map[policy.SetID]policy.SetKind
	policies  map[policy.PolicyID]*policy.Policy
	endpoints map[policy.EndpointID]*policy.Endpoint
	users     map[policy.SetID]map[policy.PolicyID]bool // who refers to a set, whether it is there or not

	changed     map[policy.PolicyID]bool // to be rendered again
	dispatching bool                     // so are the endpoints
	refused     map[policy.PolicyID]error

	families []*family
	sets     *sets
	told     bool // Update was called: nothing is written before
	stale    bool
}

// family is what is the same for IPv4 and IPv6.
type family struct {
	*ruleset
	unread    error // why the kernel's rules are not known
	policies  map[policy.PolicyID]rendered
	endpoints chains
}

// New makes a driver that owns nothing until Update.
func New(h Handle, log *slog.Logger) *Table {
	t := &Table{
		handle: h, log: log, sets: newSets(), stale: true, dispatching: true,
		kinds: map[policy.SetID]policy.SetKind{}, policies: map[policy.PolicyID]*policy.Policy{},
		endpoints: map[policy.EndpointID]*policy.Endpoint{}, users: map[policy.SetID]map[policy.PolicyID]bool{},
		changed: map[policy.PolicyID]bool{}, refused: map[policy.PolicyID]error{},
	}
	for _, f := range []policy.Family{policy.IPv4, policy.IPv6} {
		t.families = append(t.families, &family{ruleset: newRuleset(f), policies: map[policy.PolicyID]rendered{}})
	}
	return t
}

// Update changes what should be in force. Memory only.
func (t *Table) Update(d policy.Delta) {
	t.told = true
	for _, c := range d.Sets {
		t.updateSet(c)
	}
	for _, c := range d.Policies {
		t.updatePolicy(c)
	}
	for _, c := range d.Endpoints {
		t.dispatching = true
		if c.Op == policy.Removed {
			delete(t.endpoints, c.ID)
		} else {
			t.endpoints[c.ID] = c.Endpoint
		}
	}
}

func (t *Table) updateSet(c policy.SetChange) {
	if c.Op != policy.Changed {
		for id := range t.users[c.ID] {
			t.changed[id] = true
		}
	}
	kind, existed := t.kinds[c.ID]
	switch c.Op {
	case policy.Added:
		kind = c.Kind
		t.kinds[c.ID] = kind
	case policy.Removed:
		delete(t.kinds, c.ID)
	}
	for _, f := range t.families {
		name := setName(c.ID, kind, f.family)
		switch {
		case c.Op == policy.Added:
			t.sets.declare(name, kind, f.family, c.Add)
		case c.Op == policy.Removed && existed:
			t.sets.drop(name)
		case existed:
			t.sets.change(name, c.Add, c.Remove)
		}
	}
}

func (t *Table) updatePolicy(c policy.PolicyChange) {
	old := t.policies[c.ID]
	if old != nil {
		for id := range old.Sets {
			delete(t.users[id], c.ID)
			if len(t.users[id]) == 0 {
				delete(t.users, id)
			}
		}
	}
	t.changed[c.ID] = true
	if c.Op == policy.Removed {
		delete(t.policies, c.ID)
		t.dispatching = true
		return
	}
	t.policies[c.ID] = c.Policy
	t.dispatching = t.dispatching || !sameToEndpoints(old, c.Policy)
	for id := range c.Policy.Sets {
		if t.users[id] == nil {
			t.users[id] = map[policy.PolicyID]bool{}
		}
		t.users[id][c.ID] = true
	}
}

// sameToEndpoints says whether two versions of a policy stand alike in the chains of endpoints.
func sameToEndpoints(a, b *policy.Policy) bool {
	return a != nil && a.Audit == b.Audit && (len(a.Ingress) == 0) == (len(b.Ingress) == 0) && (len(a.Egress) == 0) == (len(b.Egress) == 0)
}

// QueueResync makes the next Apply read the kernel, and repair what differs.
func (t *Table) QueueResync() { t.stale = true }

// Refused returns the policies that the kernel did not take: their pods are closed.
func (t *Table) Refused() map[policy.PolicyID]error { return maps.Clone(t.refused) }

// Apply makes the kernel equal to what should be in force. If it fails the next Apply reads the kernel
// again.
func (t *Table) Apply(ctx context.Context) error {
	if !t.told {
		return nil
	}
	if err := t.apply(ctx); err != nil {
		t.stale = true
		return err
	}
	return nil
}

func (t *Table) apply(ctx context.Context) error {
	before := maps.Clone(t.refused)
	if t.stale { // what was refused is tried again
		for id := range t.refused {
			t.changed[id] = true
		}
	}
	t.render()
	defer t.tellRefused(before)
	if t.stale {
		if err := t.learn(ctx); err != nil {
			return err
		}
	}
	refused, err := t.sets.grow(t.handle)
	if err != nil {
		return err
	}
	t.closeUsers(refused)
	for range 2 { // what one family refuses changes the other's rules as well
		var errs []error
		for _, f := range t.families {
			if f.unread != nil {
				errs = append(errs, fmt.Errorf("read %s rules: %w", f.family, f.unread))
			} else if err := t.commit(ctx, f); err != nil {
				errs = append(errs, fmt.Errorf("change %s rules: %w", f.family, err))
			}
		}
		if err := errors.Join(errs...); err != nil {
			return err // and keep the sets that the rules may refer to
		}
	}
	return t.sets.shrink(t.handle)
}

// render translates what has changed.
func (t *Table) render() {
	for id := range t.changed {
		delete(t.refused, id)
		for _, f := range t.families {
			with := rendered{}
			if p := t.policies[id]; p != nil {
				with = renderPolicy(p, f.family, t.kinds)
			}
			t.put(f, id, with)
		}
	}
	t.changed = map[policy.PolicyID]bool{}
	if !t.dispatching {
		return
	}
	with := endpoints(t.endpoints, t.policies)
	for _, f := range t.families {
		f.replace(f.endpoints, with)
		f.endpoints = with
	}
	t.dispatching = false
}

// put replaces what a policy is rendered as.
func (t *Table) put(f *family, id policy.PolicyID, with rendered) {
	old := f.policies[id]
	f.replace(old.chains, with.chains)
	for name := range old.nets {
		if _, stays := with.nets[name]; !stays {
			t.sets.drop(name)
		}
	}
	for name, nets := range with.nets {
		if was, ok := old.nets[name]; !ok || !slices.Equal(was, nets) {
			t.sets.declare(name, policy.AddressSet, f.family, netMembers(nets))
		}
	}
	if with.chains == nil {
		delete(f.policies, id)
	} else {
		f.policies[id] = with
	}
}

// learn reads the kernel. What one family cannot say does not keep the other's rules out.
func (t *Table) learn(ctx context.Context) error {
	actual, err := t.handle.ListSets(prefix)
	if err != nil {
		return fmt.Errorf("list ipsets: %w", err)
	}
	drift := t.sets.learn(actual)
	for _, f := range t.families {
		saved, err := t.handle.Save(ctx, f.family)
		if f.unread = err; err != nil {
			continue
		}
		if d := f.learn(saved); d != "" {
			drift = first(drift, f.family.String()+": "+d)
		}
	}
	t.stale = false
	if drift != "" {
		t.log.Info("iptables rules laid out", "why", drift)
	}
	return nil
}

// closeUsers makes stubs of the policies whose sets the kernel refuses.
func (t *Table) closeUsers(refused map[string]error) {
	if len(refused) == 0 {
		return
	}
	for _, f := range t.families {
		for id, r := range f.policies {
			for name := range r.nets {
				t.refuse(id, refused[name])
			}
		}
	}
	for set, users := range t.users {
		for _, f := range t.families {
			for id := range users {
				t.refuse(id, refused[setName(set, t.kinds[set], f.family)])
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
		if before[id] == nil {
			t.log.Error("the kernel refuses a policy: its pods are closed", "policy", id.String(), "err", err)
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

// Counters returns what the rules have seen.
func (t *Table) Counters(ctx context.Context) (map[policy.RuleID]policy.Count, error) {
	rules := map[string]policy.RuleID{}
	for _, p := range t.policies {
		for _, r := range slices.Concat(p.Ingress, p.Egress) {
			rules[comment(r.ID)] = r.ID
		}
	}
	out := map[policy.RuleID]policy.Count{}
	for _, f := range t.families {
		saved, err := t.handle.Save(ctx, f.family)
		if err != nil {
			return nil, fmt.Errorf("read %s counters: %w", f.family, err)
		}
		for text, n := range parse(saved).counts {
			if id, ok := rules[text]; ok {
				sum := out[id]
				out[id] = policy.Count{Packets: sum.Packets + n.Packets, Bytes: sum.Bytes + n.Bytes}
			}
		}
	}
	return out, nil
}

// Delete removes all that is ours. What was in force ends.
func (t *Table) Delete(ctx context.Context) error {
	if err := t.DeleteRules(ctx); err != nil {
		return err // sets are in use
	}
	if err := t.deleteSets(ctx); err != nil {
		return err
	}
	t.log.Info("iptables rules and ipsets deleted")
	return nil
}

// DeleteRules is Delete for the rules alone, as for what an earlier process has left with the other variant:
// the sets are those of this one, too.
func (t *Table) DeleteRules(ctx context.Context) error {
	t.stale = true
	var errs []error
	for _, f := range t.families {
		saved, err := t.handle.Save(ctx, f.family)
		if err == nil && strings.Contains(string(saved), prefix) {
			err = t.handle.Restore(ctx, f.family, removal(saved))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove %s rules: %w", f.family, err))
		}
	}
	return errors.Join(errs...)
}

// deleteSets destroys the sets that no rule refers to. The kernel lets go of the rules' sets some time
// after the rules are gone.
func (t *Table) deleteSets(ctx context.Context) error {
	const attempts, pause = 50, 20 * time.Millisecond
	for attempt := 1; ; attempt++ {
		actual, err := t.handle.ListSets(prefix)
		if err != nil {
			return fmt.Errorf("list ipsets: %w", err)
		}
		var errs []error
		for _, name := range slices.Sorted(maps.Keys(actual)) {
			if err := t.handle.DestroySet(name); err != nil {
				errs = append(errs, fmt.Errorf("destroy ipset %s: %w", name, err))
			}
		}
		err = errors.Join(errs...)
		if !errors.Is(err, syscall.EBUSY) || attempt == attempts {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}
