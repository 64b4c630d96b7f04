// SPDX-License-Identifier: Apache-2.0

// Package nft keeps heliograph's nftables table, `inet heliograph`. Chains and rules are constant (see
// layout_linux.go): they say what holds for every device whose name begins with "hel", and all that
// changes is in sets. So one workload more is a few set elements, sent by netlink in one transaction.
// In our table means ours; other tables are never touched.
//
// It fails closed. Without elements, nothing passes to or from a "hel" device, and replacing the table
// is one transaction, so there is no moment without it.
package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"syscall"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

// Element is an element of a set, as its bytes. Last is the end of an interval, and empty otherwise.
type Element struct {
	Key, Last string
}

// Set is the elements of a set.
type Set map[Element]struct{}

// State is what the kernel holds of the table.
type State struct {
	Exists bool
	Drift  string // the first thing that is not as this version lays out chains, rules and set types
	Sets   map[string]Set
}

// Transaction is a change that the kernel makes as a whole, or not at all.
type Transaction struct {
	Replace bool // first delete the table with all that is in it, and lay it out anew
	Delete  bool // only delete the table
	Add     map[string][]Element
	Remove  map[string][]Element
}

// Handle is what Table needs from the kernel. *Kernel satisfies it.
type Handle interface {
	Read() (State, error)
	Commit(tx Transaction) error
	// Limit is about how many elements go into one transaction.
	Limit() int
}

// Table is the driver of the table. Its methods must be called from one goroutine.
type Table struct {
	handle  Handle
	log     *slog.Logger
	desired map[string]Set // nil until the first SetDesired: nothing is written before
	actual  map[string]Set
	drift   string // why the table must be replaced
	stale   bool
	err     error
	refused error // of what SetDesired could not take
}

// New makes a driver that owns nothing until SetDesired.
func New(h Handle, log *slog.Logger) *Table {
	return &Table{handle: h, log: log, stale: true}
}

// SetDesired replaces what the sets should hold. Memory only.
func (t *Table) SetDesired(n desired.NFT) {
	t.desired, t.refused = elements(n)
}

// QueueResync makes the next Apply read the kernel.
func (t *Table) QueueResync() { t.stale = true }

// Apply makes the table equal to the desired one. If it fails the next Apply reads the kernel again.
func (t *Table) Apply(ctx context.Context) error {
	if t.desired == nil {
		return nil
	}
	t.err = t.apply(ctx)
	return errors.Join(t.err, t.refused)
}

// Status tells of the table and of each set.
func (t *Table) Status() []desired.Status {
	if t.desired == nil {
		return nil
	}
	phase, msg := desired.Done, ""
	switch err := errors.Join(t.err, t.refused); {
	case err != nil:
		phase, msg = desired.Failed, err.Error()
	case t.stale || t.drift != "":
		phase = desired.Pending
	}
	out := []desired.Status{{Object: "nft table inet " + desired.NFTTable, Phase: phase, Error: msg}}
	for _, name := range slices.Sorted(maps.Keys(t.desired)) {
		s := desired.Status{Object: fmt.Sprintf("nft set %s (%d)", name, len(t.desired[name])), Phase: desired.Pending}
		if !t.stale && maps.Equal(t.desired[name], t.actual[name]) {
			s.Phase = desired.Done
		}
		out = append(out, s)
	}
	return out
}

// DeleteTable deletes the table, for an uninstall; one that is gone already is a success.
func (t *Table) DeleteTable(context.Context) error {
	t.stale = true
	if err := t.handle.Commit(Transaction{Delete: true}); err != nil && !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("delete nft table inet %s: %w", desired.NFTTable, err)
	}
	t.log.Info("nft table deleted")
	return nil
}

func (t *Table) apply(ctx context.Context) error {
	if t.stale {
		if err := t.read(); err != nil {
			return err
		}
	}
	for _, tx := range t.plan() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.handle.Commit(tx); err != nil {
			t.stale = true // whatever it was, the kernel is not what we think
			return fmt.Errorf("change nft table inet %s: %w", desired.NFTTable, err)
		}
		t.commit(tx)
	}
	return nil
}

func (t *Table) read() error {
	state, err := t.handle.Read()
	if err != nil {
		return fmt.Errorf("read nft table inet %s: %w", desired.NFTTable, err)
	}
	t.actual, t.drift, t.stale = state.Sets, state.Drift, false
	if !state.Exists {
		t.drift = "there is no table"
	}
	return nil
}

// plan returns the transactions that lead from the actual to the desired state: none, as a rule one.
func (t *Table) plan() []Transaction {
	tx := Transaction{Replace: t.drift != "", Add: map[string][]Element{}, Remove: map[string][]Element{}}
	have := t.actual
	if tx.Replace {
		have = nil
	}
	changed := tx.Replace
	for name, want := range t.desired {
		add, remove := missing(want, have[name]), missing(have[name], want)
		changed = changed || len(add)+len(remove) > 0
		tx.Add[name], tx.Remove[name] = add, remove
	}
	if !changed {
		return nil
	}
	return split(tx, t.handle.Limit())
}

// commit learns what a transaction has done.
func (t *Table) commit(tx Transaction) {
	if tx.Replace {
		t.log.Info("nft table laid out", "why", t.drift)
		t.drift, t.actual = "", map[string]Set{}
	}
	for name, es := range tx.Remove {
		for _, e := range es {
			delete(t.actual[name], e)
		}
	}
	for name, es := range tx.Add {
		if t.actual[name] == nil {
			t.actual[name] = Set{}
		}
		for _, e := range es {
			t.actual[name][e] = struct{}{}
		}
	}
}

// missing returns what is in a and not in b.
func missing(a, b Set) []Element {
	var out []Element
	for e := range a {
		if _, ok := b[e]; !ok {
			out = append(out, e)
		}
	}
	return out
}

// split cuts a transaction that is too large for a socket's send buffer. Intervals stay together, and
// in the first one: between two of their elements the set would mean something else. What is added
// comes before what is removed, so nobody is cut off meanwhile.
func split(tx Transaction, limit int) []Transaction {
	out := []Transaction{{Replace: tx.Replace, Add: map[string][]Element{}, Remove: map[string][]Element{}}}
	room := limit
	for name := range tx.Add {
		if isInterval(name) {
			out[0].Add[name], out[0].Remove[name] = tx.Add[name], tx.Remove[name]
			room -= len(tx.Add[name]) + len(tx.Remove[name])
		}
	}
	for _, part := range []struct {
		from map[string][]Element
		to   func(*Transaction) map[string][]Element
	}{
		{tx.Add, func(tx *Transaction) map[string][]Element { return tx.Add }},
		{tx.Remove, func(tx *Transaction) map[string][]Element { return tx.Remove }},
	} {
		for _, name := range slices.Sorted(maps.Keys(part.from)) {
			es := part.from[name]
			for len(es) > 0 && !isInterval(name) {
				if room <= 0 {
					out = append(out, Transaction{Add: map[string][]Element{}, Remove: map[string][]Element{}})
					room = limit
				}
				n := min(room, len(es))
				part.to(&out[len(out)-1])[name] = es[:n]
				es, room = es[n:], room-n
			}
		}
	}
	return out
}
