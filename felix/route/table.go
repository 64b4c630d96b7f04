// SPDX-License-Identifier: Apache-2.0

// Package route keeps heliograph's routes of one routing table equal to the desired set, IPv4 and IPv6
// alike: the main table, or one of those that probes go by. Ours are those with protocol 80; it never
// changes another's.
//
// The kernel tells routes apart by prefix, TOS and metric, not by protocol, and a replace hits
// whatever stands there. So a route that is not yet ours is only ever created exclusively, and a
// replace is sent only where our own route was seen or made; our metric is nobody else's by custom.
// Where a foreign route stands in our place all the same it stays, and the conflict is reported.
package route

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"syscall"

	"github.com/heliograph-dev/heliograph/felix/delta"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
)

// Entry is a route of the table as the kernel holds it.
type Entry struct {
	// Route is complete for one of ours; of a foreign one only the prefix is read. A type of 0 is one
	// that we never make.
	Route    desired.Route
	Protocol uint8
	Metric   uint32
}

// Handle is the part of the kernel that Table uses. The writing methods carry out what they can; the
// answer is nil if that was all, otherwise it has an entry, nil or not, for each argument.
type Handle interface {
	// Table tells the number of the routing table.
	Table() uint32
	// ListRoutes reads the table, ours and foreign.
	ListRoutes(ctx context.Context) (iter.Seq[Entry], error)
	// CreateRoutes fails with EEXIST where a route with our metric stands already.
	CreateRoutes(ctx context.Context, routes []desired.Route) []error
	// ReplaceRoutes replaces what stands there with our metric, whoever made it.
	ReplaceRoutes(ctx context.Context, routes []desired.Route) []error
	// DeleteRoutes deletes only what has our protocol and the metric.
	DeleteRoutes(ctx context.Context, keys []Key) []error
}

// Key names a route with our protocol.
type Key struct {
	Prefix netip.Prefix
	Metric uint32
}

// chunk is how many changes are handed to the handle at a time: a datagram's worth, so that the memory
// in use stays small and in the processor's cache.
const chunk = 256

// mainTable is RT_TABLE_MAIN.
const mainTable = 254

var errForeign = errors.New("foreign route with our metric is in the way")

// Table owns the routes with our protocol. It belongs to the goroutine that applies.
type Table struct {
	handle  Handle
	log     *slog.Logger
	suffix  string // " table 80001", of the objects of others than the main table
	packer  packer
	tracker *delta.Tracker[key, target]
	parts   *delta.Parts[key, target, desired.Route]
	failed  map[key]error
	stale   bool // the kernel has to be read before the next write

	// As last read from the kernel:
	foreign  map[key]uint8 // protocol of routes that stand in the place of desired ones
	shadowed map[key]Entry // foreign routes that win over desired ones
	strays   []Key         // routes with our protocol, but not with our metric
}

// New returns a table that reads the kernel at its first Apply.
func New(h Handle, log *slog.Logger) *Table {
	t := &Table{
		handle:  h,
		log:     log,
		tracker: delta.New[key, target](),
		failed:  map[key]error{},
		stale:   true,
	}
	if n := h.Table(); n != mainTable {
		t.suffix = fmt.Sprintf(" table %d", n)
	}
	t.parts = delta.NewParts(t.tracker, t.packer.pack)
	return t
}

// SetDesired replaces the whole desired set, all parts of it. The list is kept: the caller must not
// change it. Routes in the same order as before cost a comparison each.
func (t *Table) SetDesired(routes []desired.Route) {
	for _, name := range t.parts.Names() {
		if name != "" {
			t.parts.Set(name, nil)
		}
	}
	t.parts.Set("", routes)
}

// SetDesiredPart replaces one part of the desired set, such as the local pods' routes, and leaves the
// others alone. Of a prefix in two parts the one whose name sorts last counts.
func (t *Table) SetDesiredPart(part string, routes []desired.Route) { t.parts.Set(part, routes) }

// QueueResync makes the next Apply read the kernel first.
func (t *Table) QueueResync() { t.stale = true }

// Apply makes the kernel's routes equal to the desired set: it adds and replaces before it deletes.
// Failures do not stop the others, are joined, and stay pending for the next Apply.
func (t *Table) Apply(ctx context.Context) error {
	if err := t.resync(ctx); err != nil {
		return err
	}
	errs := t.update(ctx)
	if t.stale { // the kernel was not as we believed: look and try once more
		if err := t.resync(ctx); err != nil {
			return err
		}
		errs = t.update(ctx)
	}
	t.remove(ctx, &errs)
	t.sweep(ctx, &errs)
	return errs.Err()
}

// Actual returns the routes of ours that the kernel holds, reading them if need be: a new process
// adopts them.
func (t *Table) Actual(ctx context.Context) ([]desired.Route, error) {
	if err := t.resync(ctx); err != nil {
		return nil, err
	}
	var all []desired.Route
	for k, v := range t.tracker.AllActual() {
		all = append(all, unpack(k, v))
	}
	t.stale = true // which foreign routes matter can be seen only once it is known what is desired
	return all, nil
}

// Shadowed returns the foreign routes that win over desired ones, by a lower metric for exactly the
// same prefix, as last read from the kernel.
func (t *Table) Shadowed() []Entry {
	if len(t.shadowed) == 0 {
		return nil // as nearly always: do not walk over all routes to find out
	}
	var all []Entry
	for k := range t.tracker.AllDesired() {
		if e, ok := t.shadowed[k]; ok {
			all = append(all, e)
		}
	}
	return all
}

// Status tells of each route whether it is in the kernel as desired. A shadowed route counts as
// failed: it is there, but carries nothing.
func (t *Table) Status() []desired.Status {
	var all []desired.Status
	for k, want := range t.tracker.AllDesired() {
		s := desired.Status{Object: t.object(k.prefix()), Phase: desired.Pending}
		have, held := t.tracker.Actual(k)
		err := t.failed[k]
		shadow, shadowed := t.shadowed[k]
		switch {
		case held && have == want && shadowed:
			s.Phase, s.Error = desired.Failed, shadow.describe()
		case held && have == want:
			s.Phase = desired.Done
		case err != nil:
			s.Phase, s.Error = desired.Failed, err.Error()
		}
		all = append(all, s)
	}
	for k := range t.tracker.PendingDeletes() {
		s := desired.Status{Object: t.object(k.prefix()) + " (delete)", Phase: desired.Pending}
		if err := t.failed[k]; err != nil {
			s.Phase, s.Error = desired.Failed, err.Error()
		}
		all = append(all, s)
	}
	return all
}

// resync reads the kernel if the last reading is stale. An interrupted dump is used, but does not
// count: what it lacks is created exclusively, what it holds too much is found by the next one.
func (t *Table) resync(ctx context.Context) error {
	if !t.stale {
		return nil
	}
	entries, err := t.handle.ListRoutes(ctx)
	interrupted := errors.Is(err, kernel.ErrInterrupted)
	if err != nil && !interrupted {
		return fmt.Errorf("list routes: %w", err)
	}
	t.foreign, t.shadowed, t.strays = map[key]uint8{}, map[key]Entry{}, nil
	t.tracker.ReplaceActual(func(yield func(key, target) bool) {
		for e := range entries {
			switch {
			case e.Protocol != desired.Protocol:
				t.meet(e)
			case e.Metric != desired.RouteMetric:
				t.strays = append(t.strays, Key{e.Route.Prefix, e.Metric})
			default:
				yield(t.packer.pack(e.Route))
			}
		}
	})
	t.stale = interrupted
	return nil
}

// meet notes a foreign route if it concerns a desired one.
func (t *Table) meet(e Entry) {
	k := packPrefix(e.Route.Prefix)
	if _, wanted := t.tracker.Desired(k); !wanted {
		return
	}
	switch {
	case e.Metric == desired.RouteMetric:
		t.foreign[k] = e.Protocol
	case e.Metric < desired.RouteMetric:
		t.shadowed[k] = e
	}
}

// update creates and replaces what is pending.
func (t *Table) update(ctx context.Context) (errs kernel.Errors) {
	create := writes{verb: "create", send: t.handle.CreateRoutes}
	replace := writes{verb: "replace", send: t.handle.ReplaceRoutes}
	n, _ := t.tracker.Pending()
	for u := range t.tracker.PendingUpdates() {
		w := &replace
		if u.Create {
			w = &create
		} else if protocol, ok := t.foreign[u.Key]; ok { // beside ours: a replace might hit it
			t.fail("replace", u.Key, foreignError(protocol), &errs)
			continue
		}
		if w.updates == nil {
			w.updates, w.routes = make([]delta.Update[key, target], 0, min(n, chunk)), make([]desired.Route, 0, min(n, chunk))
		}
		w.updates = append(w.updates, u)
		w.routes = append(w.routes, unpack(u.Key, u.Desired))
		if len(w.routes) == chunk {
			t.write(ctx, w, &errs)
		}
	}
	t.write(ctx, &create, &errs)
	t.write(ctx, &replace, &errs)
	return errs
}

// writes are routes to be created, or to be replaced.
type writes struct {
	verb    string
	send    func(context.Context, []desired.Route) []error
	updates []delta.Update[key, target]
	routes  []desired.Route
}

// write sends w, notes what became of it, and empties it.
func (t *Table) write(ctx context.Context, w *writes, errs *kernel.Errors) {
	if len(w.routes) == 0 {
		return
	}
	results := w.send(ctx, w.routes)
	for i, u := range w.updates {
		err := at(results, i)
		if err == nil {
			t.tracker.Written(u)
			if u.Create {
				delete(t.foreign, u.Key) // it would have been in the way
			}
			if len(t.failed) > 0 {
				delete(t.failed, u.Key)
			}
			continue
		}
		if protocol, known := t.foreign[u.Key]; known && errors.Is(err, syscall.EEXIST) {
			err = foreignError(protocol)
		} else if errors.Is(err, syscall.EEXIST) {
			t.stale = true
		}
		t.fail(w.verb, u.Key, err, errs)
	}
	w.updates, w.routes = w.updates[:0], w.routes[:0]
}

func foreignError(protocol uint8) error { return fmt.Errorf("%w (protocol %d)", errForeign, protocol) }

// remove deletes what is not desired any more.
func (t *Table) remove(ctx context.Context, errs *kernel.Errors) {
	var pending []key
	var keys []Key
	flush := func() {
		if len(keys) == 0 {
			return
		}
		results := t.handle.DeleteRoutes(ctx, keys)
		for i, k := range pending {
			if err := at(results, i); err != nil && !kernel.Gone(err) {
				t.fail("delete", k, err, errs)
				continue
			}
			t.tracker.DeleteActual(k)
			delete(t.failed, k)
		}
		pending, keys = pending[:0], keys[:0]
	}
	for k := range t.tracker.PendingDeletes() {
		pending = append(pending, k)
		if keys = append(keys, Key{k.prefix(), desired.RouteMetric}); len(keys) == chunk {
			flush()
		}
	}
	flush()
	for k := range t.failed { // of routes that were never made and are not desired any more
		_, wanted := t.tracker.Desired(k)
		_, held := t.tracker.Actual(k)
		if !wanted && !held {
			delete(t.failed, k)
		}
	}
}

// sweep deletes routes that carry our protocol, but another metric than ours: of another version.
func (t *Table) sweep(ctx context.Context, errs *kernel.Errors) {
	if len(t.strays) == 0 {
		return
	}
	t.log.Info("routes of ours with another metric are deleted", "routes", len(t.strays))
	results := t.handle.DeleteRoutes(ctx, t.strays)
	var left []Key
	for i, k := range t.strays {
		if err := at(results, i); err != nil && !kernel.Gone(err) {
			left = append(left, k)
			errs.Add(fmt.Errorf("delete %s metric %d: %w", t.object(k.Prefix), k.Metric, err))
		}
	}
	t.strays = left
}

// fail notes a failure. The route stays pending.
func (t *Table) fail(verb string, k key, err error, errs *kernel.Errors) {
	t.stale = t.stale || errors.Is(err, kernel.ErrNoAnswer)
	if t.failed[k] == nil && errors.Is(err, errForeign) {
		t.log.Warn("foreign route is in the way of ours", "prefix", k.prefix(), "err", err)
	}
	t.failed[k] = err
	errs.Add(fmt.Errorf("%s %s: %w", verb, t.object(k.prefix()), err))
}

// object is the printable identity of a route.
func (t *Table) object(p netip.Prefix) string { return "route " + p.String() + t.suffix }

func (e Entry) describe() string {
	return fmt.Sprintf("foreign route with metric %d (protocol %d) wins", e.Metric, e.Protocol)
}

// at is the i-th result of a write; no results at all mean success throughout.
func at(results []error, i int) error {
	if results == nil {
		return nil
	}
	return results[i]
}
