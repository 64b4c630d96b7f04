// SPDX-License-Identifier: Apache-2.0

// Package rule keeps heliograph's routing policy rules (ip-rule(8)) equal to the desired set, IPv4 and
// IPv6 alike. Ours are those with protocol 80 (FRA_PROTOCOL); it never changes another's.
//
// A rule cannot be changed, only added and deleted. The kernel tells rules apart by all that they say,
// the protocol with it: a foreign rule that says just what ours does stands beside it, and is not what
// a deletion of ours hits.
package rule

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"syscall"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

// Entry is a rule as the kernel holds it.
type Entry struct {
	Rule     desired.Rule
	Protocol uint8
	// Extra is what the rule says beside what ours do: "from 10.0.0.0/8", "mask 0xff"; empty if nothing.
	Extra string
}

// Handle is the part of the kernel that Table uses. *Kernel satisfies it.
type Handle interface {
	// List reads the rules of both families, ours and foreign.
	List() ([]Entry, error)
	// Add adds a rule with our protocol; EEXIST if it is there already.
	Add(r desired.Rule) error
	// Delete deletes one rule that is just like the entry; ENOENT if there is none.
	Delete(e Entry) error
}

// Table owns the rules with our protocol. It belongs to the goroutine that applies.
type Table struct {
	handle  Handle
	log     *slog.Logger
	desired []desired.Rule
	ready   bool // SetDesired was called: nothing is written before
	stale   bool
	failed  map[string]error // by object
}

// New makes a driver that owns nothing until SetDesired.
func New(h Handle, log *slog.Logger) *Table {
	return &Table{handle: h, log: log, stale: true}
}

// SetDesired replaces the whole set. Memory only.
func (t *Table) SetDesired(rules []desired.Rule) {
	next := slices.Clone(rules)
	slices.SortFunc(next, compare)
	next = slices.Compact(next)
	t.stale = t.stale || !slices.Equal(next, t.desired)
	t.ready, t.desired = true, next
}

// QueueResync makes the next Apply read the kernel.
func (t *Table) QueueResync() { t.stale = true }

// Apply makes the kernel's rules equal to the desired ones. Rules are few, so whatever changed, it
// reads them all. It adds before it deletes. What fails is tried again by the next Apply.
func (t *Table) Apply(ctx context.Context) error {
	if !t.ready || !t.stale {
		return nil
	}
	entries, err := t.handle.List()
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	t.failed = map[string]error{}
	var errs []error
	missing, extra := t.compare(entries)
	for _, r := range missing {
		errs = append(errs, t.note(object(r), t.add(ctx, r)))
	}
	for _, e := range extra {
		errs = append(errs, t.note(object(e.Rule)+" (delete)", t.delete(ctx, e)))
	}
	err = errors.Join(errs...)
	t.stale = err != nil
	return err
}

// Status tells of each rule, and of those that would not go.
func (t *Table) Status() []desired.Status {
	var out []desired.Status
	failed := map[string]bool{}
	for _, r := range t.desired {
		s := desired.Status{Object: object(r), Phase: desired.Done}
		if err := t.failed[s.Object]; err != nil {
			s.Phase, s.Error = desired.Failed, err.Error()
			failed[s.Object] = true
		} else if t.stale {
			s.Phase = desired.Pending
		}
		out = append(out, s)
	}
	for name, err := range t.failed {
		if !failed[name] {
			out = append(out, desired.Status{Object: name, Phase: desired.Failed, Error: err.Error()})
		}
	}
	slices.SortStableFunc(out[len(t.desired):], func(a, b desired.Status) int { return cmp.Compare(a.Object, b.Object) })
	return out
}

// compare tells which desired rules the kernel lacks, and which of ours it has too many: what is not
// desired, and the second of two that are the same.
func (t *Table) compare(entries []Entry) (missing []desired.Rule, extra []Entry) {
	have := map[desired.Rule]bool{}
	for _, e := range entries {
		switch _, wanted := slices.BinarySearchFunc(t.desired, e.Rule, compare); {
		case e.Protocol != desired.Protocol:
		case !wanted || e.Extra != "" || have[e.Rule]:
			extra = append(extra, e)
		default:
			have[e.Rule] = true
		}
	}
	for _, r := range t.desired {
		if !have[r] {
			missing = append(missing, r)
		}
	}
	return missing, extra
}

// add adds a rule; one that is there already, of a process before us that is not yet gone, is a success.
func (t *Table) add(ctx context.Context, r desired.Rule) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := t.handle.Add(r); err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("add %s: %w", object(r), err)
	}
	t.log.Info("rule added", "rule", object(r))
	return nil
}

// delete deletes a rule; one that is gone already is a success.
func (t *Table) delete(ctx context.Context, e Entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := t.handle.Delete(e); err != nil && !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("delete %s: %w", object(e.Rule), err)
	}
	t.log.Info("rule deleted", "rule", object(e.Rule), "beside", e.Extra)
	return nil
}

func (t *Table) note(name string, err error) error {
	if err != nil {
		t.failed[name] = err
	}
	return err
}

// object is the printable identity of a rule, in the words of ip-rule(8).
func object(r desired.Rule) string {
	return fmt.Sprintf("IPv%d rule %d fwmark %#x table %d", r.Family, r.Priority, r.Mark, r.Table)
}

func compare(a, b desired.Rule) int {
	return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Mark, b.Mark), cmp.Compare(a.Table, b.Table))
}
