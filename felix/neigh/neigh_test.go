// SPDX-License-Identifier: Apache-2.0

package neigh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

const dev = desired.VXLANDevice

// entries are the desired sets as one value, for the tests' sake.
type entries struct {
	neighbours []desired.Neighbour
	fdb        []desired.FDBEntry
}

// node makes the entries through which remote node n is reached: a neighbour of each family, the FDB's.
func node(n int, remote string) entries {
	m := desired.MAC{0x66, 0xa0, 0, 0, byte(n >> 8), byte(n)}
	return entries{
		[]desired.Neighbour{
			{Device: dev, IP: netip.AddrFrom4([4]byte{169, 254, byte(n >> 8), byte(n)}), MAC: m},
			{Device: dev, IP: netip.MustParseAddr(fmt.Sprintf("fe80::%x", n)), MAC: m},
		},
		[]desired.FDBEntry{{Device: dev, MAC: m, Remote: netip.MustParseAddr(remote)}},
	}
}

func nodes(n int) entries {
	all := make([]entries, n)
	for i := range all {
		all[i] = node(i+1, "192.0.2.1")
	}
	return both(all...)
}

func both(all ...entries) entries {
	var sum entries
	for _, e := range all {
		sum.neighbours = append(sum.neighbours, e.neighbours...)
		sum.fdb = append(sum.fdb, e.fdb...)
	}
	return sum
}

// world is a kernel, real or not, with the device hel-vxlan, and what somebody else may do to it.
type world interface {
	Handle
	neighbour(ip, mac string)
	unneighbour(ip string)
	fdb(mac, remote string)
	remake() // deletes the device and makes it anew
	remove() // deletes the device
}

// cases run on the fake and on the real kernel.
var cases = []struct {
	name string
	run  func(t *testing.T, w world, d *Table)
}{
	{"fills an empty device", func(t *testing.T, w world, d *Table) {
		e := both(node(1, "192.0.2.1"), node(2, "192.0.2.2"))
		apply(t, d, e)
		want(t, w, e)
	}},
	{"a new process adopts and sweeps", func(t *testing.T, w world, d *Table) {
		apply(t, d, both(node(1, "192.0.2.1"), node(2, "192.0.2.2")))
		e := both(node(2, "192.0.2.2"), node(3, "192.0.2.3"))
		apply(t, newTable(w), e)
		want(t, w, e)
	}},
	{"moves a node in place", func(t *testing.T, w world, d *Table) {
		apply(t, d, node(1, "192.0.2.1"))
		moved := node(1, "192.0.2.9")
		moved.neighbours[0].MAC = desired.MAC{0x66, 0xa0, 7, 7, 7, 7}
		apply(t, d, moved)
		want(t, w, moved)
	}},
	{"heals deletions and changes", func(t *testing.T, w world, d *Table) {
		e := node(1, "192.0.2.1")
		apply(t, d, e)
		for _, harm := range []func(){
			func() { w.unneighbour("169.254.0.1") },
			func() { w.neighbour("169.254.0.1", "66:a0:99:99:99:99") },
			func() { w.fdb("66:a0:00:00:00:01", "192.0.2.99") },
			func() { w.fdb("00:00:00:00:00:00", "192.0.2.99") }, // a flood entry
			func() { w.neighbour("169.254.0.77", "66:a0:99:99:99:99") },
			func() { w.fdb("66:a0:99:99:99:99", "192.0.2.99") },
		} {
			harm()
			d.QueueResync()
			apply(t, d, e)
			want(t, w, e)
		}
	}},
	{"fills a device made anew, without being told", func(t *testing.T, w world, d *Table) {
		e := node(1, "192.0.2.1")
		apply(t, d, e)
		w.remake()
		apply(t, d, e)
		want(t, w, e)
	}},
	{"waits for a device, and needs none for nothing", func(t *testing.T, w world, d *Table) {
		w.remove()
		apply(t, d, entries{})
		set(d, node(1, "192.0.2.1"))
		if err := d.Apply(context.Background()); !errors.Is(err, syscall.ENODEV) || !strings.Contains(err.Error(), dev) {
			t.Errorf("Apply = %v, want ENODEV of %s", err, dev)
		}
		if s := d.Status(); len(s) != 1 || s[0].Phase != desired.Failed {
			t.Errorf("Status = %v", s)
		}
		w.remake()
		apply(t, d, node(1, "192.0.2.1"))
		want(t, w, node(1, "192.0.2.1"))
	}},
	{"refuses a device that is not ours", func(t *testing.T, w world, d *Table) {
		e := node(1, "192.0.2.1")
		set(d, both(e, entries{fdb: []desired.FDBEntry{{Device: "flannel.1", Remote: netip.MustParseAddr("192.0.2.1")}}}))
		if err := d.Apply(context.Background()); err == nil || !strings.Contains(err.Error(), "flannel.1") {
			t.Errorf("Apply = %v", err)
		}
		want(t, w, e)
	}},
}

func newTable(h Handle) *Table {
	return New(h, []string{desired.VXLANDevice, desired.VXLANDevice6}, slog.New(slog.DiscardHandler))
}

func TestFake(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := newFake()
			c.run(t, f, newTable(f))
		})
	}
}

func TestFaults(t *testing.T) {
	for method, fault := range map[string]error{"Index": syscall.EINTR, "List": syscall.ENOBUFS, "Set": syscall.ENOBUFS, "Delete": syscall.EBUSY} {
		t.Run(method, func(t *testing.T) {
			f := newFake()
			f.neighbour("169.254.0.77", "66:a0:99:99:99:99")
			f.fail = map[string]error{method: fault}
			d := newTable(f)
			e := both(node(1, "192.0.2.1"), node(2, "192.0.2.2"))
			set(d, e)
			if err := d.Apply(context.Background()); !errors.Is(err, fault) {
				t.Errorf("Apply = %v, want %v", err, fault)
			}
			apply(t, d, e)
			want(t, f, e)
		})
	}
}

func TestDeltaOnly(t *testing.T) {
	f := newFake()
	d := newTable(f)
	all := nodes(5000)
	apply(t, d, all)
	f.calls = map[string]int{}
	apply(t, d, both(all, node(6000, "192.0.2.2")))
	if diff := cmp.Diff(map[string]int{"Index": 2, "Set": 3}, f.calls); diff != "" {
		t.Errorf("calls for one node more (-want +got):\n%s", diff)
	}
}

func set(d *Table, e entries) { d.SetDesired(e.neighbours, e.fdb) }

func apply(t *testing.T, d *Table, e entries) {
	t.Helper()
	set(d, e)
	if err := d.Apply(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, s := range d.Status() {
		if s.Phase != desired.Done {
			t.Errorf("Status = %v", s)
		}
	}
}

// want checks the permanent entries of the device.
func want(t *testing.T, w world, e entries) {
	t.Helper()
	index, err := w.Index(dev)
	if err != nil {
		t.Fatal(err)
	}
	list, err := w.List(index)
	if err != nil {
		t.Fatal(err)
	}
	var got, expect []string
	for _, g := range list {
		got = append(got, fmt.Sprint(g))
	}
	for _, n := range e.neighbours {
		expect = append(expect, fmt.Sprint(Entry{IP: n.IP, MAC: n.MAC}))
	}
	for _, f := range e.fdb {
		expect = append(expect, fmt.Sprint(Entry{MAC: f.MAC, Remote: f.Remote}))
	}
	slices.Sort(got)
	slices.Sort(expect)
	if diff := cmp.Diff(expect, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

// fake is a kernel with one tunnel device: one remote per MAC, except of the flood entry.
type fake struct {
	index   int
	entries []Entry
	fail    map[string]error // the error of the next call of a method
	calls   map[string]int
}

func newFake() *fake { return &fake{index: 7, calls: map[string]int{}} }

func (f *fake) call(name string) error {
	f.calls[name]++
	err := f.fail[name]
	delete(f.fail, name)
	return err
}

func (f *fake) Index(device string) (int, error) {
	if err := f.call("Index"); err != nil {
		return 0, err
	}
	if device != dev || f.index == 0 {
		return 0, syscall.ENODEV
	}
	return f.index, nil
}

func (f *fake) List(int) ([]Entry, error) {
	return slices.Clone(f.entries), f.call("List")
}

func (f *fake) Set(index int, e Entry) error {
	if err := f.call("Set"); err != nil {
		return err
	}
	if index != f.index {
		return syscall.ENODEV
	}
	f.put(e)
	return nil
}

func (f *fake) Delete(index int, e Entry) error {
	if err := f.call("Delete"); err != nil {
		return err
	}
	if index != f.index {
		return syscall.ENODEV
	}
	i := slices.Index(f.entries, e)
	if i < 0 {
		return syscall.ENOENT
	}
	f.entries = slices.Delete(f.entries, i, i+1)
	return nil
}

func (f *fake) put(e Entry) {
	k, _ := e.split()
	if k != (key{}) {
		f.entries = slices.DeleteFunc(f.entries, func(o Entry) bool { ok, _ := o.split(); return ok == k })
	}
	f.entries = append(f.entries, e)
}

func (f *fake) neighbour(ip, mac string) {
	f.put(Entry{IP: netip.MustParseAddr(ip), MAC: parseMAC(mac)})
}

func (f *fake) unneighbour(ip string) {
	f.entries = slices.DeleteFunc(f.entries, func(e Entry) bool { return e.IP == netip.MustParseAddr(ip) })
}

func (f *fake) fdb(mac, remote string) {
	f.put(Entry{MAC: parseMAC(mac), Remote: netip.MustParseAddr(remote)})
}

func (f *fake) remake() { f.index, f.entries = f.index+10, nil }
func (f *fake) remove() { f.index, f.entries = 0, nil }

func parseMAC(s string) (m desired.MAC) {
	_, err := fmt.Sscanf(s, "%x:%x:%x:%x:%x:%x", &m[0], &m[1], &m[2], &m[3], &m[4], &m[5])
	if err != nil {
		panic(err)
	}
	return m
}
