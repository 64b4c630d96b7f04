// SPDX-License-Identifier: Apache-2.0

package address

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

var (
	a4 = desired.Address{Device: "lo", Prefix: netip.MustParsePrefix("10.244.1.0/32")}
	a6 = desired.Address{Device: "lo", Prefix: netip.MustParsePrefix("fd00:244::100/128")}
	b4 = desired.Address{Device: "lo", Prefix: netip.MustParsePrefix("10.244.2.0/32")}
)

// world is a kernel, real or not, and what somebody else may do to it.
type world interface {
	Handle
	address(a desired.Address)
	remove(a desired.Address)
}

// cases run on the fake and on the real kernel.
var cases = []struct {
	name string
	run  func(t *testing.T, w world, d *Table)
}{
	{"adds both families", func(t *testing.T, w world, d *Table) {
		apply(t, d, a4, a6)
		want(t, w, a4, a6)
	}},
	{"a new process adopts and sweeps", func(t *testing.T, w world, d *Table) {
		apply(t, d, a4, a6)
		apply(t, New(w, slog.New(slog.DiscardHandler)), a6, b4)
		want(t, w, b4, a6)
	}},
	{"heals a deletion", func(t *testing.T, w world, d *Table) {
		apply(t, d, a4, a6)
		w.remove(a4)
		w.remove(a6)
		d.QueueResync()
		apply(t, d, a4, a6)
		want(t, w, a4, a6)
	}},
	{"leaves a stranger's address alone", func(t *testing.T, w world, d *Table) {
		w.address(a4)
		w.address(b4)
		apply(t, d, a4) // there already: serves
		apply(t, d)
		want(t, w)
		if !has(t, w, a4) || !has(t, w, b4) {
			t.Error("a stranger's address is gone")
		}
	}},
	{"names a device that is missing", func(t *testing.T, _ world, d *Table) {
		d.SetDesired([]desired.Address{{Device: "hel-none", Prefix: a4.Prefix}, a4})
		err := d.Apply(context.Background())
		if !errors.Is(err, syscall.ENODEV) || !strings.Contains(err.Error(), "10.244.1.0/32 on hel-none") {
			t.Errorf("Apply = %v", err)
		}
		wantStatus := []desired.Status{
			{Object: "address 10.244.1.0/32 on hel-none", Phase: desired.Failed, Error: err.Error()},
			{Object: "address 10.244.1.0/32 on lo", Phase: desired.Done},
		}
		if diff := cmp.Diff(wantStatus, d.Status()); diff != "" {
			t.Errorf("Status (-want +got):\n%s", diff)
		}
	}},
}

func TestFake(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := newFake()
			c.run(t, f, New(f, slog.New(slog.DiscardHandler)))
		})
	}
}

func TestFaults(t *testing.T) {
	for method, fault := range map[string]error{"List": syscall.ENOBUFS, "Add": syscall.EBUSY, "Delete": syscall.ENOBUFS} {
		t.Run(method, func(t *testing.T) {
			f := newFake()
			f.entries[b4] = desired.Protocol
			f.fail = map[string]error{method: fault}
			d := New(f, slog.New(slog.DiscardHandler))
			d.SetDesired([]desired.Address{a4, a6})
			if err := d.Apply(context.Background()); !errors.Is(err, fault) {
				t.Errorf("Apply = %v, want %v", err, fault)
			}
			apply(t, d, a4, a6)
			want(t, f, a4, a6)
		})
	}
}

func TestDeleteOfTheGoneSucceeds(t *testing.T) {
	f := newFake()
	f.entries[b4] = desired.Protocol
	f.fail = map[string]error{"Delete": syscall.EADDRNOTAVAIL}
	apply(t, New(f, slog.New(slog.DiscardHandler)))
}

// TestOldKernel: without IFA_PROTO, what is ours is told by place and prefix.
func TestOldKernel(t *testing.T) {
	f := newFake()
	f.old = true
	foreign := desired.Address{Device: "lo", Prefix: netip.MustParsePrefix("192.0.2.1/32")}
	uplink := desired.Address{Device: "eth0", Prefix: netip.MustParsePrefix("10.244.9.1/32")}
	wide := desired.Address{Device: "lo", Prefix: netip.MustParsePrefix("10.244.9.1/24")}
	for _, a := range []desired.Address{a4, b4, foreign, uplink, wide} {
		f.entries[a] = 0
	}
	d := New(f, slog.New(slog.DiscardHandler))
	d.SetOwned([]netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")})
	apply(t, d, a4)
	for a, keep := range map[desired.Address]bool{a4: true, b4: false, foreign: true, uplink: true, wide: true} {
		if _, have := f.entries[a]; have != keep {
			t.Errorf("%v there = %v, want %v", a, have, keep)
		}
	}
}

func TestSteadyApplyDoesNothing(t *testing.T) {
	f := newFake()
	d := New(f, slog.New(slog.DiscardHandler))
	if err := d.Apply(context.Background()); err != nil || f.calls > 0 {
		t.Errorf("before SetDesired: Apply = %v, %d calls", err, f.calls)
	}
	apply(t, d, a4)
	f.calls = 0
	apply(t, d, a4)
	if f.calls > 0 {
		t.Errorf("%d calls", f.calls)
	}
}

func apply(t *testing.T, d *Table, addrs ...desired.Address) {
	t.Helper()
	d.SetDesired(addrs)
	if err := d.Apply(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, s := range d.Status() {
		if s.Phase != desired.Done {
			t.Errorf("Status = %v", s)
		}
	}
}

// want checks which addresses of ours the kernel holds.
func want(t *testing.T, w world, addrs ...desired.Address) {
	t.Helper()
	entries, err := w.List()
	if err != nil {
		t.Fatal(err)
	}
	var got []desired.Address
	for _, e := range entries {
		if e.Protocol == desired.Protocol {
			got = append(got, e.Address)
		}
	}
	slices.SortFunc(got, compare)
	if !slices.Equal(got, addrs) {
		t.Errorf("addresses = %v, want %v", got, addrs)
	}
}

func has(t *testing.T, w world, a desired.Address) bool {
	t.Helper()
	entries, err := w.List()
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(entries, func(e Entry) bool { return e.Address == a })
}

// fake is a kernel as far as Handle goes.
type fake struct {
	entries map[desired.Address]uint8
	old     bool
	fail    map[string]error // the error of the next call of a method
	calls   int
}

func newFake() *fake {
	return &fake{entries: map[desired.Address]uint8{}}
}

func (f *fake) call(name string) error {
	f.calls++
	err := f.fail[name]
	delete(f.fail, name)
	return err
}

func (f *fake) List() ([]Entry, error) {
	var out []Entry
	for a, p := range f.entries {
		out = append(out, Entry{a, p})
	}
	return out, f.call("List")
}

func (f *fake) Add(a desired.Address) error {
	if err := f.call("Add"); err != nil {
		return err
	}
	if a.Device != "lo" {
		return syscall.ENODEV
	}
	if _, have := f.entries[a]; !have { // a replace does not change who made it
		f.entries[a] = desired.Protocol
	}
	return nil
}

func (f *fake) Delete(a desired.Address) error {
	if err := f.call("Delete"); err != nil {
		return err
	}
	if _, have := f.entries[a]; !have {
		return syscall.EADDRNOTAVAIL
	}
	delete(f.entries, a)
	return nil
}

func (f *fake) KeepsProtocol() bool       { return !f.old }
func (f *fake) address(a desired.Address) { f.entries[a] = 0 }
func (f *fake) remove(a desired.Address)  { delete(f.entries, a) }
