// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"fmt"
	"maps"
	"slices"
	"syscall"

	"github.com/heliograph-dev/heliograph/policy"
)

// fake is a kernel that keeps a ruleset, and refuses what the real one does: references to what is not there,
// names that are taken, deletion of what is in use, ranges that overlap.
type fake struct {
	table  model
	exists bool
	txs    []Transaction
	fail   func(Transaction) error // asked first
	limit  int                     // of operations and elements in a transaction; 0: none
}

type model struct {
	sets   map[string]modelSet
	chains map[string]Chain
}

type modelSet struct {
	Set
	elements map[string]Element // by key
}

func newFake() *fake { return &fake{table: newModel()} }

func newModel() model { return model{map[string]modelSet{}, map[string]Chain{}} }

func (m model) clone() model {
	out := model{maps.Clone(m.sets), maps.Clone(m.chains)}
	for name, s := range out.sets {
		s.elements = maps.Clone(s.elements)
		out.sets[name] = s
	}
	return out
}

func (f *fake) Commit(tx Transaction) error {
	f.txs = append(f.txs, tx)
	if f.fail != nil {
		if err := f.fail(tx); err != nil {
			return err
		}
	}
	size := len(tx.Ops)
	for _, op := range tx.Ops {
		size += len(op.Elements)
	}
	if f.limit > 0 && size > f.limit {
		return syscall.EMSGSIZE
	}
	if tx.Delete {
		if !f.exists {
			return &RefusedError{Err: syscall.ENOENT}
		}
		f.exists, f.table = false, newModel()
		return nil
	}
	next := f.table.clone()
	switch {
	case tx.Replace:
		next = newModel()
	case !f.exists:
		return &RefusedError{Err: syscall.ENOENT}
	}
	for i, op := range tx.Ops {
		if err := next.do(op); err != nil {
			return &RefusedError{Ops: []int{i}, Err: err}
		}
	}
	if err := next.check(); err != nil {
		return &RefusedError{Err: err}
	}
	if !tx.DryRun {
		f.table, f.exists = next, true
	}
	return nil
}

func (m model) do(op Op) error {
	set, haveSet := m.sets[op.Set.Name]
	chain, haveChain := m.chains[op.Chain.Name]
	switch op.Kind {
	case AddSet:
		if haveSet {
			return syscall.EEXIST
		}
		m.sets[op.Set.Name] = modelSet{op.Set, map[string]Element{}}
	case AddElements, RemoveElements:
		if !haveSet || set.Set != op.Set {
			return syscall.ENOENT
		}
		return set.do(op)
	case AddChain:
		if haveChain {
			return syscall.EEXIST
		}
		m.chains[op.Chain.Name] = op.Chain
	case FlushChain, AddRule:
		if !haveChain {
			return syscall.ENOENT
		}
		if chain.Rules = slices.Clone(chain.Rules); op.Kind == FlushChain {
			chain.Rules = nil
		} else {
			chain.Rules = append(chain.Rules, *op.Rule)
		}
		m.chains[op.Chain.Name] = chain
	case DeleteChain:
		if !haveChain || len(chain.Rules) > 0 {
			return syscall.EBUSY
		}
		delete(m.chains, op.Chain.Name)
	case DeleteSet:
		if !haveSet {
			return syscall.ENOENT
		}
		delete(m.sets, op.Set.Name)
	}
	return nil
}

func (s modelSet) do(op Op) error {
	for _, e := range op.Elements {
		_, have := s.elements[e.Key]
		switch {
		case have == (op.Kind == AddElements):
			return fmt.Errorf("element %x of %s: %w", e.Key, s.Name, syscall.EEXIST)
		case have:
			delete(s.elements, e.Key)
		default:
			s.elements[e.Key] = e
		}
	}
	return nil
}

// check looks for what a finished table must not have.
func (m model) check() error {
	jumps := func(v Verdict) error {
		if _, ok := m.chains[v.Chain]; v.Chain != "" && !ok {
			return fmt.Errorf("chain %s: %w", v.Chain, syscall.ENOENT)
		}
		return nil
	}
	for _, c := range m.chains {
		for _, r := range c.Rules {
			if err := jumps(r.Verdict); err != nil {
				return err
			}
			for _, w := range r.When {
				if _, ok := m.sets[w.Set]; w.Set != "" && !ok {
					return fmt.Errorf("set %s in chain %s: %w", w.Set, c.Name, syscall.ENOENT)
				}
			}
		}
	}
	for _, s := range m.sets {
		last := Element{}
		for _, key := range slices.Sorted(maps.Keys(s.elements)) {
			e := s.elements[key]
			if s.Interval && s.Key != Service4 && s.Key != Service6 && last.Last != "" && last.Last >= e.Key {
				return fmt.Errorf("ranges overlap in %s: %w", s.Name, syscall.EEXIST)
			}
			if err := jumps(e.Verdict); err != nil {
				return err
			}
			last = e
		}
	}
	return nil
}

func modelOf(r Ruleset) model {
	m := newModel()
	for _, s := range r.Sets {
		elements := map[string]Element{}
		for e := range s.Elements {
			elements[e.Key] = e
		}
		m.sets[s.Name] = modelSet{s.Set, elements}
	}
	for _, c := range r.Chains {
		m.chains[c.Name] = c
	}
	return m
}

// text is the table in order.
func (m model) text() (lines []string) {
	for _, name := range slices.Sorted(maps.Keys(m.sets)) {
		s := m.sets[name]
		lines = append(lines, fmt.Sprintf("%+v", s.Set))
		for _, k := range slices.Sorted(maps.Keys(s.elements)) {
			lines = append(lines, fmt.Sprintf("  %x-%x %v", k, s.elements[k].Last, s.elements[k].Verdict))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.chains)) {
		c := m.chains[name]
		lines = append(lines, fmt.Sprintf("chain %s %d %d", name, c.Hook, c.After))
		for _, r := range c.Rules {
			lines = append(lines, fmt.Sprintf("  %+v", r))
		}
	}
	return lines
}

func (f *fake) Read(want Ruleset) (Actual, error) {
	a := Actual{Exists: f.exists, Sets: map[string]map[Element]struct{}{}, Chains: map[string]bool{}}
	wanted := modelOf(want)
	for name, s := range f.table.sets {
		a.Sets[name] = nil
		if w, ok := wanted.sets[name]; ok {
			if w.Set != s.Set {
				a.Odd = "set " + name
			}
			a.Sets[name] = map[Element]struct{}{}
			for _, e := range s.elements {
				a.Sets[name][e] = struct{}{}
			}
		}
	}
	for name, c := range f.table.chains {
		a.Chains[name] = wanted.chains[name].Equal(c)
	}
	return a, nil
}

func (f *fake) Counters() (map[string]policy.Count, error) {
	return map[string]policy.Count{"NetworkPolicy prod/web ingress[0]": {Packets: 7, Bytes: 420}}, nil
}
