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
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/heliograph-dev/heliograph/policy"
)

// Set is an ipset of the kernel.
type Set struct {
	Kind    policy.SetKind
	Family  policy.Family
	Members map[policy.Member]struct{}
}

// SetVerb is what a SetStep does.
type SetVerb uint8

// Verbs.
const (
	CreateSet     SetVerb = iota // of the kind and family
	AddMembers                   // some of which the set may have
	RemoveMembers                // some of which the set may lack
	DestroySet
)

// SetStep is one change of an ipset.
type SetStep struct {
	Do      SetVerb
	Name    string
	Kind    policy.SetKind
	Family  policy.Family
	Members []policy.Member
}

// String is "create ipset HEL-a4-…".
func (s SetStep) String() string {
	verb := [...]string{"create ipset", "add members to ipset", "remove members of ipset", "destroy ipset"}[s.Do]
	return verb + " " + s.Name
}

// Handle is what Table needs of the host. *Kernel satisfies it.
type Handle interface {
	// Save prints the table filter of a family, with counters.
	Save(ctx context.Context, f policy.Family) ([]byte, error)
	// Restore changes the table filter of a family, as a whole or not at all.
	Restore(ctx context.Context, f policy.Family, input []byte) error
	// ListSets reads the ipsets whose names begin so.
	ListSets(prefix string) (map[string]Set, error)
	// ChangeSets takes the steps one after the other, whatever becomes of those before. It returns nil, or for
	// each step nil or why it was not taken.
	ChangeSets(ctx context.Context, steps []SetStep) []error
}

// Table is the driver. Its methods must be called from one goroutine.
type Table struct {
	handle Handle
	log    *slog.Logger

	refs      map[policy.SetID]setRef
	policies  map[policy.PolicyID]*policy.Policy
	endpoints map[policy.EndpointID]*policy.Endpoint
	users     map[policy.SetID]map[policy.PolicyID]bool // who refers to a set, whether it is there or not

	changed     map[policy.PolicyID]bool // to be rendered again
	moved       map[policy.SetID]bool    // sets whose members change
	dispatching bool                     // the endpoints are to be rendered again
	refused     map[policy.PolicyID]error

	families []*family
	sets     *sets
	// generation is the last one that a set was given.
	generation int
	told       bool // Update was called: nothing is written before
	stale      bool
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
		refs: map[policy.SetID]setRef{}, moved: map[policy.SetID]bool{}, policies: map[policy.PolicyID]*policy.Policy{},
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
	ref, existed := t.refs[c.ID]
	switch c.Op {
	case policy.Added:
		ref.kind = c.Kind
		t.refs[c.ID] = ref
	case policy.Changed:
		t.moved[c.ID] = true
	case policy.Removed:
		delete(t.refs, c.ID)
	}
	for _, f := range t.families {
		name := ref.name(c.ID, f.family)
		switch {
		case c.Op == policy.Added:
			t.sets.declare(name, ref.kind, f.family, c.Add)
		case c.Op == policy.Removed && existed:
			t.sets.drop(name)
		case existed:
			t.sets.change(name, c.Add, c.Remove)
		}
	}
}

// separate gives sets of which members come or go another name, if policies that refer to them change as
// well: rules and sets change one after the other, and what the old rules allow to the new members, or
// the new ones to the old, may be what neither state allows. The rules go over to the new set as they
// change, all in one transaction.
func (t *Table) separate() {
	var both []policy.SetID
	for id := range t.moved {
		for user := range t.users[id] {
			if t.changed[user] {
				both = append(both, id)
				break
			}
		}
	}
	t.moved = map[policy.SetID]bool{}
	for _, id := range both {
		ref, exists := t.refs[id]
		if !exists {
			continue
		}
		t.generation++
		with := setRef{ref.kind, t.generation}
		for _, f := range t.families {
			t.sets.rename(ref.name(id, f.family), with.name(id, f.family))
		}
		t.refs[id] = with
		for user := range t.users[id] {
			t.changed[user] = true
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

// Refused returns the policies that the kernel did not take: their pods are closed. If it is the failsafes,
// hosts are open.
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
	t.separate()
	t.render()
	defer t.tellRefused(before)
	if t.stale {
		if err := t.learn(ctx); err != nil {
			return err
		}
	}
	refused, err := t.sets.grow(ctx, t.handle)
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
	return t.sets.shrink(ctx, t.handle)
}

// render translates what has changed.
func (t *Table) render() {
	for id := range t.changed {
		delete(t.refused, id)
		for _, f := range t.families {
			with := rendered{}
			if p := t.policies[id]; p != nil {
				with = renderPolicy(p, f.family, t.refs)
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
	for name := range old.sets {
		if _, stays := with.sets[name]; !stays {
			t.sets.drop(name)
		}
	}
	for name, c := range with.sets {
		if was, ok := old.sets[name]; !ok || !slices.Equal(was.members, c.members) {
			t.sets.declare(name, c.kind, f.family, c.members)
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
