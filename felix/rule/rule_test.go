// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"errors"
	"log/slog"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

var quiet = slog.New(slog.DiscardHandler)

func mark(family uint8, mark, table uint32) desired.Rule {
	return desired.Rule{Family: family, Priority: desired.RulePriority, Mark: mark, Table: table}
}

// all is what a node has: a rule for each method, in both families.
var all = []desired.Rule{
	mark(4, desired.MarkNative, desired.TableNative),
	mark(4, desired.MarkIPIP, desired.TableIPIP),
	mark(4, desired.MarkVXLAN, desired.TableVXLAN),
	mark(6, desired.MarkNative, desired.TableNative),
	mark(6, desired.MarkVXLAN, desired.TableVXLAN),
}

// world is a kernel, real or not, and what somebody may do to it.
type world interface {
	Handle
	// rule adds one like `ip rule add`: family, priority, mark, table, protocol, and perhaps more words.
	rule(r desired.Rule, protocol uint8, extra string)
	remove(r desired.Rule)
}

// cases run on the fake and on the real kernel.
var cases = []struct {
	name string
	run  func(t *testing.T, w world, d *Table)
}{
	{"adds both families' rules", func(t *testing.T, w world, d *Table) {
		apply(t, d, all)
		want(t, w, all)
	}},
	{"a new process adopts, and deletes the orphan", func(t *testing.T, w world, d *Table) {
		apply(t, d, all)
		spy := &counting{Handle: w}
		apply(t, New(spy, quiet), all[1:])
		want(t, w, all[1:])
		if spy.adds != 0 || spy.deletes != 1 {
			t.Errorf("adds, deletes = %d, %d; want 0, 1", spy.adds, spy.deletes)
		}
	}},
	{"changes table and priority", func(t *testing.T, w world, d *Table) {
		apply(t, d, all)
		changed := slices.Clone(all)
		for i := range changed {
			changed[i].Table, changed[i].Priority = 1000+changed[i].Table, 90
		}
		apply(t, d, changed)
		want(t, w, changed)
		apply(t, d, nil)
		want(t, w, nil)
	}},
	{"heals deletions, additions and doubles", func(t *testing.T, w world, d *Table) {
		apply(t, d, all)
		for _, harm := range []func(){
			func() { w.remove(all[0]); w.remove(all[3]) },
			func() { w.rule(mark(4, 7, 99), desired.Protocol, ""); w.rule(mark(6, 7, 99), desired.Protocol, "") },
			func() { w.rule(mark(4, 7, 99), desired.Protocol, "from 10.0.0.0/8") },
			func() { w.rule(all[4], desired.Protocol, "iif lo") }, // ours, but for what it says more
		} {
			harm()
			d.QueueResync()
			apply(t, d, all)
			want(t, w, all)
		}
	}},
	{"leaves foreign rules alone", func(t *testing.T, w world, d *Table) {
		w.rule(mark(4, desired.MarkIPIP, 99), 4, "")
		w.rule(mark(6, desired.MarkIPIP, 99), 4, "")
		before := foreign(t, w)
		apply(t, d, all)
		apply(t, d, nil)
		want(t, w, nil)
		if diff := cmp.Diff(before, foreign(t, w)); diff != "" {
			t.Errorf("foreign rules (-before +after):\n%s", diff)
		}
	}},
	{"a foreign rule that says the same stays beside ours", func(t *testing.T, w world, d *Table) {
		w.rule(all[0], 4, "")
		w.rule(all[3], 4, "")
		before := foreign(t, w)
		apply(t, d, all)
		want(t, w, all)
		apply(t, d, nil)
		want(t, w, nil)
		if diff := cmp.Diff(before, foreign(t, w)); diff != "" {
			t.Errorf("foreign rules (-before +after):\n%s", diff)
		}
	}},
	{"two processes at a time", func(t *testing.T, w world, d *Table) {
		apply(t, d, nil)
		apply(t, New(w, quiet), all)
		apply(t, New(blind{w}, quiet), all)
		want(t, w, all)
	}},
}

// blind does not see what there is.
type blind struct{ Handle }

func (blind) List() ([]Entry, error) { return nil, nil }

func TestFake(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := newFake()
			c.run(t, f, New(f, quiet))
		})
	}
}

func TestFaults(t *testing.T) {
	for method, fault := range map[string]error{"List": syscall.ENOBUFS, "Add": syscall.ENOBUFS, "Delete": syscall.EBUSY} {
		t.Run(method, func(t *testing.T) {
			f := newFake()
			f.rule(mark(4, 7, 99), desired.Protocol, "")
			f.fail = map[string]error{method: fault}
			d := New(f, quiet)
			d.SetDesired(all)
			if err := d.Apply(t.Context()); !errors.Is(err, fault) {
				t.Errorf("Apply() = %v; want %v", err, fault)
			}
			if slices.IndexFunc(d.Status(), func(s desired.Status) bool { return s.Phase != desired.Done }) < 0 {
				t.Errorf("Status() = %v after a failure", d.Status())
			}
			apply(t, d, all)
			want(t, f, all)
		})
	}
}

func TestWritesNothingBeforeSetDesired(t *testing.T) {
	f := newFake()
	f.rule(mark(4, 7, 99), desired.Protocol, "")
	d := New(f, quiet)
	d.QueueResync()
	if err := d.Apply(t.Context()); err != nil || f.calls > 0 {
		t.Errorf("Apply() = %v, %d calls", err, f.calls)
	}
}

func TestSteadyApplyDoesNothing(t *testing.T) {
	f := newFake()
	d := New(f, quiet)
	apply(t, d, all)
	f.calls = 0
	shuffled := slices.Clone(all)
	slices.Reverse(shuffled)
	apply(t, d, shuffled)
	if f.calls > 0 {
		t.Errorf("%d calls", f.calls)
	}
}

func apply(t *testing.T, d *Table, rules []desired.Rule) {
	t.Helper()
	d.SetDesired(rules)
	if err := d.Apply(t.Context()); err != nil {
		t.Fatalf("Apply() = %v", err)
	}
	if s := d.Status(); len(s) != len(rules) || slices.ContainsFunc(s, func(s desired.Status) bool { return s.Phase != desired.Done }) {
		t.Errorf("Status() = %v", s)
	}
}

// want compares the kernel's rules of ours.
func want(t *testing.T, w world, rules []desired.Rule) {
	t.Helper()
	entries, err := w.List()
	if err != nil {
		t.Fatal(err)
	}
	var got, expect []Entry
	for _, e := range entries {
		if e.Protocol == desired.Protocol {
			got = append(got, e)
		}
	}
	for _, r := range rules {
		expect = append(expect, Entry{Rule: r, Protocol: desired.Protocol})
	}
	less := func(a, b Entry) bool { return compare(a.Rule, b.Rule) < 0 }
	if diff := cmp.Diff(expect, got, cmpopts.SortSlices(less), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("rules of ours (-want +got):\n%s", diff)
	}
}

func foreign(t *testing.T, w world) []Entry {
	t.Helper()
	entries, err := w.List()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(entries, func(e Entry) bool { return e.Protocol == desired.Protocol })
}

// counting counts what is written.
type counting struct {
	Handle
	adds, deletes int
}

func (c *counting) Add(r desired.Rule) error {
	c.adds++
	return c.Handle.Add(r)
}

func (c *counting) Delete(e Entry) error {
	c.deletes++
	return c.Handle.Delete(e)
}

// fake is the kernel's list of rules: no two are the same, protocol included.
type fake struct {
	entries []Entry
	fail    map[string]error // the error of the next call of a method
	calls   int
}

func newFake() *fake {
	return &fake{entries: []Entry{{Rule: desired.Rule{Family: 4, Priority: 32766, Table: 254}, Protocol: 2}}}
}

func (f *fake) call(name string) error {
	f.calls++
	err := f.fail[name]
	delete(f.fail, name)
	return err
}

func (f *fake) List() ([]Entry, error) { return slices.Clone(f.entries), f.call("List") }

func (f *fake) Add(r desired.Rule) error {
	if err := f.call("Add"); err != nil {
		return err
	}
	if slices.ContainsFunc(f.entries, func(e Entry) bool { return e == Entry{Rule: r, Protocol: desired.Protocol} }) {
		return syscall.EEXIST
	}
	f.entries = append(f.entries, Entry{Rule: r, Protocol: desired.Protocol})
	return nil
}

func (f *fake) Delete(e Entry) error {
	if err := f.call("Delete"); err != nil {
		return err
	}
	i := slices.Index(f.entries, e)
	if i < 0 {
		return syscall.ENOENT
	}
	f.entries = slices.Delete(f.entries, i, i+1)
	return nil
}

func (f *fake) rule(r desired.Rule, protocol uint8, extra string) {
	f.entries = append(f.entries, Entry{r, protocol, extra})
}

func (f *fake) remove(r desired.Rule) {
	f.entries = slices.DeleteFunc(f.entries, func(e Entry) bool { return e.Rule == r })
}
