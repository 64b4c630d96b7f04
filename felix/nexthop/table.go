// SPDX-License-Identifier: Apache-2.0

// Package nexthop keeps heliograph's kernel nexthop objects (ip-nexthop(8), Linux 5.3) equal to the
// desired set. Ours are those with protocol 80; it never touches another's.
//
// Routes refer to objects by id, so that replacing one object moves all routes through it in one
// message. The other side of that: deleting an object silently deletes the routes that still refer
// to it. Hence two phases, with the route driver between them:
//
//	nexthop.Apply         create and replace: single ones, then the groups that name them
//	route.Apply           move routes to the new objects
//	nexthop.ApplyDeletes  delete what nothing refers to any more: groups, then single ones
package nexthop

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"syscall"

	"github.com/heliograph-dev/heliograph/felix/delta"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
)

// Entry is a nexthop object as the kernel holds it.
type Entry struct {
	Nexthop  desired.Nexthop
	Protocol uint8
}

// Handle is the part of the kernel that Table uses. The writing methods carry out what they can; the
// answer is nil if that was all, otherwise it has an entry, nil or not, for each argument.
type Handle interface {
	ListNexthops(ctx context.Context) (iter.Seq[Entry], error)
	CreateNexthops(ctx context.Context, nhs []desired.Nexthop) []error  // fails on an id that exists
	ReplaceNexthops(ctx context.Context, nhs []desired.Nexthop) []error // of the same kind
	DeleteNexthops(ctx context.Context, ids []desired.NexthopID) []error
}

// errForeign is what is wrong with an id that somebody else's object has.
var errForeign = errors.New("foreign nexthop object has this id")

// Table owns the nexthop objects with our protocol. It belongs to the goroutine that applies.
type Table struct {
	handle  Handle
	log     *slog.Logger
	tracker *delta.Tracker[desired.NexthopID, desired.Nexthop]
	parts   *delta.Parts[desired.NexthopID, desired.Nexthop, desired.Nexthop]
	foreign map[desired.NexthopID]uint8 // protocol of objects that are not ours, as last read
	failed  map[desired.NexthopID]error
	stale   bool // the kernel has to be read before the next write
	read    bool // it was read at least once
	lost    bool // see RoutesLost
}

// New returns a table that reads the kernel at its first Apply.
func New(h Handle, log *slog.Logger) *Table {
	t := &Table{
		handle:  h,
		log:     log,
		tracker: delta.New[desired.NexthopID, desired.Nexthop](),
		failed:  map[desired.NexthopID]error{},
		stale:   true,
	}
	t.parts = delta.NewParts(t.tracker, func(n desired.Nexthop) (desired.NexthopID, desired.Nexthop) { return n.ID, n })
	return t
}

// SetDesired replaces the desired set. The list is kept: the caller must not change it.
func (t *Table) SetDesired(nhs []desired.Nexthop) { t.parts.Set("", nhs) }

// QueueResync makes the next Apply read the kernel first.
func (t *Table) QueueResync() { t.stale = true }

// Apply creates and replaces. Failures do not stop the others, are joined, and stay pending.
func (t *Table) Apply(ctx context.Context) error {
	if err := t.resync(ctx); err != nil {
		return err
	}
	for id := range t.failed {
		if _, wanted := t.tracker.Desired(id); !wanted {
			delete(t.failed, id)
		}
	}
	var errs kernel.Errors
	t.update(ctx, false, &errs)
	t.update(ctx, true, &errs) // a group names single ones, which must exist
	return errs.Err()
}

// ApplyDeletes deletes what is not desired any more. It comes after the route driver has moved the
// routes; after an error of that it is better left out, for the kernel would delete the routes that
// could not be moved.
func (t *Table) ApplyDeletes(ctx context.Context) error {
	if err := t.resync(ctx); err != nil {
		return err
	}
	var groups, singles []desired.NexthopID
	for id, n := range t.tracker.PendingDeletes() {
		if n.Group != "" {
			groups = append(groups, id)
		} else {
			singles = append(singles, id)
		}
	}
	var errs kernel.Errors
	t.remove(ctx, groups, &errs)
	t.remove(ctx, singles, &errs)
	return errs.Err()
}

// RoutesLost tells, once, whether objects vanished that routes may have referred to: deleted behind
// our back, or because an id had to change from single to group. Then the route driver has to
// QueueResync, since the kernel says nothing about the routes that vanished with them.
func (t *Table) RoutesLost() bool {
	lost := t.lost
	t.lost = false
	return lost
}

// Actual returns what the kernel holds of ours, reading it if need be: a new process adopts it.
func (t *Table) Actual(ctx context.Context) ([]desired.Nexthop, error) {
	if err := t.resync(ctx); err != nil {
		return nil, err
	}
	var all []desired.Nexthop
	for _, n := range t.tracker.AllActual() {
		all = append(all, n)
	}
	return all, nil
}

// Status tells of each object whether it is in the kernel as desired.
func (t *Table) Status() []desired.Status {
	var all []desired.Status
	for id, want := range t.tracker.AllDesired() {
		s := desired.Status{Object: Name(id), Phase: desired.Pending}
		have, held := t.tracker.Actual(id)
		if held && have == want {
			s.Phase = desired.Done
		} else if err := t.failed[id]; err != nil {
			s.Phase, s.Error = desired.Failed, err.Error()
		}
		all = append(all, s)
	}
	for id := range t.tracker.PendingDeletes() {
		all = append(all, desired.Status{Object: Name(id) + " (delete)", Phase: desired.Pending})
	}
	return all
}

// Name prints an id as ip(8) takes it.
func Name(id desired.NexthopID) string { return fmt.Sprintf("nexthop %d", id) }

func (t *Table) resync(ctx context.Context) error {
	if !t.stale {
		return nil
	}
	entries, err := t.handle.ListNexthops(ctx)
	interrupted := errors.Is(err, kernel.ErrInterrupted)
	if err != nil && !interrupted {
		return fmt.Errorf("list nexthops: %w", err)
	}
	t.foreign = map[desired.NexthopID]uint8{}
	before, held := t.tracker.Len()
	found := 0
	t.tracker.ReplaceActual(func(yield func(desired.NexthopID, desired.Nexthop) bool) {
		for e := range entries {
			if e.Protocol != desired.Protocol {
				t.foreign[e.Nexthop.ID] = e.Protocol
				continue
			}
			if _, known := t.tracker.Actual(e.Nexthop.ID); known {
				found++
			}
			yield(e.Nexthop.ID, e.Nexthop)
		}
	})
	if t.read && found < held {
		t.log.Info("nexthop objects vanished from the kernel", "missing", held-found, "desired", before)
		t.lost = true
	}
	t.read, t.stale = true, interrupted
	return nil
}

// update creates and replaces the single ones or the groups.
func (t *Table) update(ctx context.Context, groups bool, errs *kernel.Errors) {
	var create, replace []desired.Nexthop
	var wrongKind []desired.NexthopID
	for u := range t.tracker.PendingUpdates() {
		switch isGroup := u.Desired.Group != ""; {
		case isGroup != groups:
		case u.Create:
			create = append(create, u.Desired)
		case isGroup != (u.Actual.Group != ""):
			wrongKind = append(wrongKind, u.Key)
			create = append(create, u.Desired)
		default:
			replace = append(replace, u.Desired)
		}
	}
	if len(wrongKind) > 0 { // the kernel cannot replace a single one by a group, nor the reverse
		t.log.Info("nexthop objects change between single and group, routes are rewritten", "objects", len(wrongKind))
		t.remove(ctx, wrongKind, errs)
		t.lost = true
	}
	if len(create) > 0 {
		t.settle("create", create, t.handle.CreateNexthops(ctx, create), errs)
	}
	if len(replace) > 0 {
		t.settle("replace", replace, t.handle.ReplaceNexthops(ctx, replace), errs)
	}
}

// settle notes what became of a write.
func (t *Table) settle(verb string, nhs []desired.Nexthop, results []error, errs *kernel.Errors) {
	for i, n := range nhs {
		var err error
		if results != nil {
			err = results[i]
		}
		if err == nil {
			t.tracker.SetActual(n.ID, n)
			delete(t.failed, n.ID)
			continue
		}
		if protocol, ok := t.foreign[n.ID]; ok && errors.Is(err, syscall.EEXIST) {
			err = fmt.Errorf("%w (protocol %d)", errForeign, protocol)
		} else if errors.Is(err, syscall.EEXIST) || errors.Is(err, syscall.ENOENT) || errors.Is(err, kernel.ErrNoAnswer) {
			t.stale = true // what we believe of the kernel is wrong
		}
		t.failed[n.ID] = err
		errs.Add(fmt.Errorf("%s %s: %w", verb, Name(n.ID), err))
	}
}

func (t *Table) remove(ctx context.Context, ids []desired.NexthopID, errs *kernel.Errors) {
	if len(ids) == 0 {
		return
	}
	results := t.handle.DeleteNexthops(ctx, ids)
	for i, id := range ids {
		var err error
		if results != nil {
			err = results[i]
		}
		if err != nil && !kernel.Gone(err) {
			errs.Add(fmt.Errorf("delete %s: %w", Name(id), err))
			t.stale = t.stale || errors.Is(err, kernel.ErrNoAnswer)
			continue
		}
		t.tracker.DeleteActual(id)
		t.shrink(id)
	}
}

// shrink notes that the kernel took a deleted object out of the groups that still named it, and
// deleted those that became empty.
func (t *Table) shrink(gone desired.NexthopID) {
	for id, g := range t.tracker.AllActual() {
		for _, member := range g.Members() {
			if member != gone {
				continue
			}
			t.log.Info("nexthop group loses a member", "group", uint32(id), "member", uint32(gone))
			t.stale = true
			return
		}
	}
}
