// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"syscall"

	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/policy"
)

// sets is the ipsets: what they should hold, and what the kernel lacks of it.
type sets struct {
	want  map[string]*set
	gone  map[string]*set // perhaps in the kernel, and not wanted
	dirty map[string]bool // of want: the kernel may lack something
}

// set is an ipset of one family.
type set struct {
	kind    policy.SetKind
	family  policy.Family
	created bool
	members map[policy.Member]int  // how many members of ours are, or need, this one
	pending map[policy.Member]bool // whether it joins or leaves the kernel's
}

func newSets() *sets { return &sets{map[string]*set{}, map[string]*set{}, map[string]bool{}} }

// declare wants a set, with these members alone.
func (s *sets) declare(name string, kind policy.SetKind, f policy.Family, members []policy.Member) {
	x := s.want[name]
	if x == nil {
		x = s.gone[name]
		delete(s.gone, name)
	}
	if x == nil {
		x = &set{kind: kind, family: f, members: map[policy.Member]int{}, pending: map[policy.Member]bool{}}
	}
	s.want[name], s.dirty[name] = x, true
	keep := map[policy.Member]int{}
	for _, m := range members {
		for _, e := range x.elements(m) {
			keep[e]++
		}
	}
	for e := range x.members {
		if keep[e] == 0 {
			x.mark(e, false)
		}
	}
	for e := range keep {
		if x.members[e] == 0 {
			x.mark(e, true)
		}
	}
	x.members = keep
}

// change lets members join and leave.
func (s *sets) change(name string, add, remove []policy.Member) {
	x := s.want[name]
	if x == nil {
		return
	}
	s.dirty[name] = true
	for _, m := range add {
		for _, e := range x.elements(m) {
			if x.members[e]++; x.members[e] == 1 {
				x.mark(e, true)
			}
		}
	}
	for _, m := range remove {
		for _, e := range x.elements(m) {
			switch x.members[e] {
			case 0:
			case 1:
				delete(x.members, e)
				x.mark(e, false)
			default:
				x.members[e]--
			}
		}
	}
}

// drop no longer wants a set.
func (s *sets) drop(name string) {
	if x := s.want[name]; x != nil {
		s.gone[name] = x
		delete(s.want, name)
		delete(s.dirty, name)
	}
}

// rename wants a set under another name: one that is filled anew, while the old one stays as it is for as
// long as it is needed.
func (s *sets) rename(from, to string) {
	old := s.want[from]
	if old == nil {
		return
	}
	x := &set{kind: old.kind, family: old.family, members: old.members, pending: map[policy.Member]bool{}}
	for e := range x.members {
		x.pending[e] = true
	}
	s.drop(from)
	s.gone[from] = &set{kind: old.kind, family: old.family, created: old.created, members: map[policy.Member]int{}, pending: map[policy.Member]bool{}}
	s.want[to], s.dirty[to] = x, true
}

// elements are what a member is in an ipset: nothing in the other family's, and since an ipset takes no
// network of all addresses, two halves.
func (x *set) elements(m policy.Member) []policy.Member {
	m.Prefix = m.Prefix.Masked()
	if !m.Prefix.IsValid() || policy.FamilyOf(m.Prefix.Addr()) != x.family || x.kind == policy.AddressPortSet && !looksUpPorts(m.Protocol) {
		return nil
	}
	if x.kind == policy.AddressSet && m.Protocol != policy.AnyProtocol {
		return nil
	}
	if m.Prefix.Bits() > 0 {
		return []policy.Member{m}
	}
	low, high := m, m
	low.Prefix, high.Prefix = policy.Halves(m.Prefix)
	return []policy.Member{low, high}
}

// looksUpPorts says whether ipset knows ports of a protocol.
func looksUpPorts(p policy.Protocol) bool { return p.HasPorts() || p == policy.ICMPv6 }

// mark notes that the kernel has to add or remove an element, unless it takes back what was noted before.
func (x *set) mark(e policy.Member, add bool) {
	if was, ok := x.pending[e]; ok && was != add {
		delete(x.pending, e)
		return
	}
	x.pending[e] = add
}

// part returns what is pending of one sort, in order.
func (x *set) part(add bool) []policy.Member {
	var out []policy.Member
	for e, a := range x.pending {
		if a == add {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, policy.Member.Compare)
	return out
}

func (x *set) done(list []policy.Member) {
	for _, e := range list {
		delete(x.pending, e)
	}
}

// learn compares the kernel's sets with those that are wanted, and returns the first difference.
func (s *sets) learn(actual map[string]Set) (drift string) {
	s.gone = map[string]*set{}
	for _, name := range slices.Sorted(maps.Keys(actual)) {
		if s.want[name] == nil {
			s.gone[name] = &set{created: true, kind: actual[name].Kind, family: actual[name].Family, members: map[policy.Member]int{}, pending: map[policy.Member]bool{}}
			for e := range actual[name].Members {
				s.gone[name].members[e] = 1
			}
			drift = first(drift, "set "+name+" is not wanted")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.want)) {
		x := s.want[name]
		kernel, exists := actual[name]
		x.created, x.pending = exists, map[policy.Member]bool{}
		for e := range x.members {
			if _, ok := kernel.Members[e]; !ok {
				x.pending[e] = true
			}
		}
		for e := range kernel.Members {
			if x.members[e] == 0 {
				x.pending[e] = false
			}
		}
		if !exists || len(x.pending) > 0 {
			s.dirty[name] = true
			drift = first(drift, fmt.Sprintf("set %s lacks, or has too many, %d members", name, len(x.pending)))
		}
	}
	return drift
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// grow creates sets and lets members join: before rules refer to them. Names of sets that the kernel
// refuses are in the map.
func (s *sets) grow(ctx context.Context, h Handle) (refused map[string]error, err error) {
	var steps []SetStep
	for _, name := range slices.Sorted(maps.Keys(s.dirty)) {
		x := s.want[name]
		if !x.created {
			steps = append(steps, SetStep{Do: CreateSet, Name: name, Kind: x.kind, Family: x.family})
		}
		if add := x.part(true); len(add) > 0 {
			steps = append(steps, SetStep{Do: AddMembers, Name: name, Members: add})
		}
	}
	refused = map[string]error{}
	for step, err := range take(ctx, h, steps) {
		x := s.want[step.Name]
		switch {
		case transient(err):
			return refused, err
		case err != nil && refused[step.Name] == nil:
			refused[step.Name] = err
		case err == nil && step.Do == CreateSet:
			x.created = true
		case err == nil:
			x.done(step.Members)
		}
	}
	return refused, nil
}

// take takes steps, and yields each with what became of it.
func take(ctx context.Context, h Handle, steps []SetStep) iter.Seq2[SetStep, error] {
	errs := h.ChangeSets(ctx, steps)
	return func(yield func(SetStep, error) bool) {
		for i, step := range steps {
			var err error
			if errs != nil && errs[i] != nil {
				err = fmt.Errorf("%s: %w", step, errs[i])
			}
			if !yield(step, err) {
				return
			}
		}
	}
}

// shrink lets members leave and destroys sets: after rules no longer need them. A set that the kernel is
// not done with yet waits for the next time.
func (s *sets) shrink(ctx context.Context, h Handle) error {
	var steps []SetStep
	for _, name := range slices.Sorted(maps.Keys(s.dirty)) {
		x := s.want[name]
		if remove := x.part(false); len(remove) > 0 && x.created {
			steps = append(steps, SetStep{Do: RemoveMembers, Name: name, Members: remove})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.gone)) {
		if s.gone[name].created {
			steps = append(steps, SetStep{Do: DestroySet, Name: name})
		} else {
			delete(s.gone, name)
		}
	}
	var errs kernel.Errors
	for step, err := range take(ctx, h, steps) {
		switch {
		case step.Do == RemoveMembers && err == nil:
			s.want[step.Name].done(step.Members)
		case step.Do == DestroySet && (err == nil || errors.Is(err, syscall.ENOENT)):
			delete(s.gone, step.Name)
		case step.Do == RemoveMembers || !errors.Is(err, syscall.EBUSY):
			errs.Add(err)
		}
	}
	for name := range s.dirty {
		if x := s.want[name]; x.created && len(x.pending) == 0 {
			delete(s.dirty, name)
		}
	}
	return errs.Err()
}

func netMembers(nets []netip.Prefix) []policy.Member {
	out := make([]policy.Member, 0, len(nets))
	for _, p := range nets {
		out = append(out, policy.Member{Prefix: p})
	}
	return out
}
