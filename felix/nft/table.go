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
	"syscall"

	"github.com/heliograph-dev/heliograph/felix/delta"
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

// item is an element with the name of its set: what the tracker keeps account of.
type item struct {
	set string
	Element
}

// Table is the driver of the table. Its methods must be called from one goroutine.
type Table struct {
	handle  Handle
	log     *slog.Logger
	tracker *delta.Tracker[item, struct{}]
	content *content
	ready   bool   // SetDesired was called: nothing is written before
	drift   string // why the table must be replaced
	stale   bool
	err     error
}

// New makes a driver that owns nothing until SetDesired.
func New(h Handle, log *slog.Logger) *Table {
	tracker := delta.New[item, struct{}]()
	return &Table{handle: h, log: log, tracker: tracker, content: newContent(tracker), stale: true}
}

// SetDesired replaces what the sets should hold. Memory only. The lists are kept, so the caller must
// not change them afterwards; those that are equal to the last cost a comparison.
func (t *Table) SetDesired(n desired.NFT) {
	t.ready = true
	t.content.set(n)
}

// QueueResync makes the next Apply read the kernel.
func (t *Table) QueueResync() { t.stale = true }

// Apply makes the table equal to the desired one. If it fails the next Apply reads the kernel again.
func (t *Table) Apply(ctx context.Context) error {
	if !t.ready {
		return nil
	}
	t.err = errors.Join(t.apply(ctx), t.content.refused)
	return t.err
}

// Status tells of the table by one line.
func (t *Table) Status() []desired.Status {
	if !t.ready {
		return nil
	}
	n, _ := t.tracker.Len()
	s := desired.Status{Object: fmt.Sprintf("nft table inet %s (%d elements)", desired.NFTTable, n), Phase: desired.Done}
	switch {
	case t.err != nil:
		s.Phase, s.Error = desired.Failed, t.err.Error()
	case t.stale || t.drift != "" || !t.tracker.InSync():
		s.Phase = desired.Pending
	}
	return []desired.Status{s}
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

// read learns what the kernel holds. A table that must be replaced counts as an empty one.
func (t *Table) read() error {
	state, err := t.handle.Read()
	if err != nil {
		return fmt.Errorf("read nft table inet %s: %w", desired.NFTTable, err)
	}
	t.drift, t.stale = state.Drift, false
	if !state.Exists {
		t.drift = "there is no table"
	}
	t.tracker.ReplaceActual(func(yield func(item, struct{}) bool) {
		for name, set := range state.Sets {
			for e := range set {
				if t.drift == "" && !yield(item{name, e}, struct{}{}) {
					return
				}
			}
		}
	})
	return nil
}

// plan returns the transactions that lead from the actual to the desired state: none, as a rule one.
func (t *Table) plan() []Transaction {
	if t.drift == "" && t.tracker.InSync() {
		return nil
	}
	tx := newTransaction()
	tx.Replace = t.drift != ""
	for u := range t.tracker.PendingUpdates() {
		tx.Add[u.Key.set] = append(tx.Add[u.Key.set], u.Key.Element)
	}
	for k := range t.tracker.PendingDeletes() {
		tx.Remove[k.set] = append(tx.Remove[k.set], k.Element)
	}
	return split(tx, t.handle.Limit())
}

// commit learns what a transaction has done.
func (t *Table) commit(tx Transaction) {
	if tx.Replace {
		t.log.Info("nft table laid out", "why", t.drift)
		t.drift = ""
	}
	for name, es := range tx.Remove {
		for _, e := range es {
			t.tracker.DeleteActual(item{name, e})
		}
	}
	for name, es := range tx.Add {
		for _, e := range es {
			t.tracker.SetActual(item{name, e}, struct{}{})
		}
	}
}

func newTransaction() Transaction {
	return Transaction{Add: map[string][]Element{}, Remove: map[string][]Element{}}
}

// split cuts a transaction that is too large for a socket's send buffer. Intervals stay together, and
// in the first one: between two of their elements the set would mean something else. What is added
// comes before what is removed, so nobody is cut off meanwhile.
func split(tx Transaction, limit int) []Transaction {
	out := []Transaction{newTransaction()}
	out[0].Replace = tx.Replace
	room := limit
	for _, set := range intervalSets {
		out[0].Add[set], out[0].Remove[set] = tx.Add[set], tx.Remove[set]
		room -= len(tx.Add[set]) + len(tx.Remove[set])
	}
	for _, removing := range []bool{false, true} {
		from := tx.Add
		if removing {
			from = tx.Remove
		}
		for set, es := range from {
			for len(es) > 0 && !isInterval(set) {
				if room <= 0 {
					out, room = append(out, newTransaction()), limit
				}
				to := out[len(out)-1].Add
				if removing {
					to = out[len(out)-1].Remove
				}
				n := min(room, len(es))
				to[set] = es[:n]
				es, room = es[n:], room-n
			}
		}
	}
	return out
}
