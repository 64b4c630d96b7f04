// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/felix/delta"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
)

func pod(n int) desired.Workload {
	return desired.Workload{
		Device: fmt.Sprintf("hel%011x", n),
		IPs: [2]netip.Addr{
			netip.AddrFrom4([4]byte{10, 244, byte(n >> 8), byte(n)}),
			netip.MustParseAddr(fmt.Sprintf("fd00:244::%x", n)),
		},
	}
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// usual is what a node has.
func usual() desired.NFT {
	return desired.NFT{
		Workloads:  []desired.Workload{pod(1), pod(2)},
		Tunnels:    []string{desired.VXLANDevice, desired.VXLANDevice6, desired.IPIPDevice},
		NATSources: prefixes("10.244.0.0/16", "fd00:244::/56"),
		NoNAT:      prefixes("10.244.0.0/16", "192.168.11.0/24", "192.168.12.0/24", "fd00:244::/56"),
		Nodes:      addrs("192.168.11.1", "192.168.12.1", "fd00:11::1"),
		VXLANPorts: []uint16{4789},
		IPIPLocal:  addrs("192.168.11.2"),
		IPIPOthers: addrs("198.51.100.7"),
	}
}

// world is a kernel, real or not, and what somebody else may do to it.
type world interface {
	Handle
	deleteTable()
	addDevice(device string)    // to the set of workloads
	deleteDevice(device string) // from the set of workloads
	drift()                     // changes a rule
}

// cases run on the fake and on the real kernel.
var cases = []struct {
	name string
	run  func(t *testing.T, w world, d *Table)
}{
	{"lays out an empty table", func(t *testing.T, w world, d *Table) {
		apply(t, d, desired.NFT{})
		want(t, w, desired.NFT{})
	}},
	{"fills the sets", func(t *testing.T, w world, d *Table) {
		apply(t, d, usual())
		want(t, w, usual())
	}},
	{"a new process adopts", func(t *testing.T, w world, d *Table) {
		apply(t, d, usual())
		spy := &counting{Handle: w}
		next := usual()
		next.Workloads = append(next.Workloads[1:], pod(3))
		apply(t, New(spy, slog.New(slog.DiscardHandler)), next)
		want(t, w, next)
		if spy.replaced {
			t.Error("the table was replaced")
		}
	}},
	{"ranges grow, shrink, merge and part", func(t *testing.T, w world, d *Table) {
		for _, p := range [][]netip.Prefix{
			prefixes("10.0.0.0/8"), prefixes("10.0.0.0/9"), prefixes("10.0.0.0/9", "10.128.0.0/9"),
			prefixes("10.1.0.0/16", "10.3.0.0/16"), prefixes("10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "10.2.1.0/24"),
			prefixes("0.0.0.0/0", "::/0"), prefixes("255.255.255.255/32", "0.0.0.0/32", "ffff::/16", "::/128"), nil,
		} {
			n := desired.NFT{NATSources: p, NoNAT: p}
			apply(t, d, n)
			want(t, w, n)
			apply(t, New(w, slog.New(slog.DiscardHandler)), n)
			want(t, w, n)
		}
	}},
	{"heals deletions and additions", func(t *testing.T, w world, d *Table) {
		apply(t, d, usual())
		for _, harm := range []func(){
			w.deleteTable,
			func() { w.deleteDevice(pod(1).Device) },
			func() { w.addDevice("helstranger") },
			w.drift,
		} {
			harm()
			d.QueueResync()
			apply(t, d, usual())
			want(t, w, usual())
		}
	}},
	{"heals, untold, what makes a change fail", func(t *testing.T, w world, d *Table) {
		apply(t, d, usual())
		w.deleteTable()
		d.SetDesired(desired.NFT{})
		if err := d.Apply(context.Background()); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("Apply = %v, want ENOENT", err)
		}
		apply(t, d, desired.NFT{})
		want(t, w, desired.NFT{})
	}},
	{"deletes the table", func(t *testing.T, w world, d *Table) {
		apply(t, d, usual())
		for range 2 {
			if err := d.DeleteTable(context.Background()); err != nil {
				t.Error(err)
			}
		}
		if s, err := w.Read(); err != nil || s.Exists {
			t.Errorf("Read = %v, %v", s, err)
		}
	}},
	{"refuses a name that no device can have, and takes the rest", func(t *testing.T, w world, d *Table) {
		n := usual()
		n.Workloads = append(n.Workloads, desired.Workload{Device: "hel-much-too-long-for-a-device"})
		d.SetDesired(n)
		if err := d.Apply(context.Background()); err == nil || !strings.Contains(err.Error(), "hel-much-too-long") {
			t.Errorf("Apply = %v", err)
		}
		want(t, w, usual())
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
	for method, fault := range map[string]error{"Read": syscall.ENOBUFS, "Commit": syscall.EBUSY} {
		t.Run(method, func(t *testing.T) {
			f := newFake()
			f.fail = map[string]error{method: fault}
			d := New(f, slog.New(slog.DiscardHandler))
			d.SetDesired(usual())
			if err := d.Apply(context.Background()); !errors.Is(err, fault) {
				t.Errorf("Apply = %v, want %v", err, fault)
			}
			if s := d.Status(); s[0].Phase != desired.Failed {
				t.Errorf("Status = %v", s)
			}
			apply(t, d, usual())
			want(t, f, usual())
		})
	}
}

func TestOneWorkloadMoreIsItsElements(t *testing.T) {
	f := newFake()
	d := New(f, slog.New(slog.DiscardHandler))
	apply(t, d, usual())
	n := usual()
	n.Workloads = append(n.Workloads, pod(3))
	f.txs = nil
	apply(t, d, n)
	if len(f.txs) != 1 || f.txs[0].Replace || count(f.txs[0].Add) != 3 || count(f.txs[0].Remove) != 0 {
		t.Errorf("transactions = %v", f.txs)
	}
	apply(t, d, n)
	if len(f.txs) != 1 {
		t.Errorf("a steady Apply makes a transaction: %v", f.txs)
	}
}

// TestSplit: a change too large for one transaction keeps ranges whole, and adds before it removes.
func TestSplit(t *testing.T) {
	f := newFake()
	f.limit = 100
	d := New(f, slog.New(slog.DiscardHandler))
	large := usual()
	for n := range 200 {
		large.Workloads = append(large.Workloads, pod(n+3))
	}
	apply(t, d, large)
	if !f.txs[0].Replace || len(f.txs[0].Add[setSources4]) != 1 || f.txs[1].Replace {
		t.Errorf("the first transaction is %v", f.txs[0])
	}
	apply(t, d, usual())
	want(t, f, usual())
	for _, tx := range f.txs {
		if n := count(tx.Add) + count(tx.Remove); n > f.limit {
			t.Errorf("a transaction of %d elements", n)
		}
	}
}

func TestWritesNothingBeforeSetDesired(t *testing.T) {
	f := newFake()
	d := New(f, slog.New(slog.DiscardHandler))
	d.QueueResync()
	if err := d.Apply(context.Background()); err != nil || f.calls > 0 || d.Status() != nil {
		t.Errorf("Apply = %v, %d calls", err, f.calls)
	}
}

func TestMerge(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []netip.Prefix
		want string
	}{
		{"sorts, and keeps families apart", prefixes("fd00::/64", "10.0.0.0/24"), "10.0.0.0-10.0.0.255 fd00::-fd00::ffff:ffff:ffff:ffff"},
		{"joins neighbours", prefixes("10.0.1.0/24", "10.0.0.0/24"), "10.0.0.0-10.0.1.255"},
		{"swallows what is inside", prefixes("10.0.0.0/8", "10.3.0.0/16", "11.0.0.0/32"), "10.0.0.0-11.0.0.0"},
		{"masks", prefixes("10.0.0.7/24"), "10.0.0.0-10.0.0.255"},
		{"ends at the last address", prefixes("255.0.0.0/8", "255.255.255.255/32", "::/0"), "255.0.0.0-255.255.255.255 ::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
		{"passes over the invalid", []netip.Prefix{{}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, s := range merge(c.in) {
				got = append(got, s.first.String()+"-"+s.last.String())
			}
			if diff := cmp.Diff(c.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func apply(t *testing.T, d *Table, n desired.NFT) {
	t.Helper()
	d.SetDesired(n)
	if err := d.Apply(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, s := range d.Status() {
		if s.Phase != desired.Done {
			t.Errorf("Status = %v", s)
		}
	}
}

// want checks that the table is laid out, and what is in its sets.
func want(t *testing.T, w world, n desired.NFT) {
	t.Helper()
	state, err := w.Read()
	if err != nil || !state.Exists || state.Drift != "" {
		t.Fatalf("Read = %v, %v", state, err)
	}
	if diff := cmp.Diff(sets(n), nonEmpty(state.Sets)); diff != "" {
		t.Errorf("sets (-want +got):\n%s", diff)
	}
}

// sets is what the sets should hold.
func sets(n desired.NFT) map[string]Set {
	tracker := delta.New[item, struct{}]()
	newContent(tracker).set(n)
	out := map[string]Set{}
	for i := range tracker.AllDesired() {
		if out[i.set] == nil {
			out[i.set] = Set{}
		}
		out[i.set][i.Element] = struct{}{}
	}
	return out
}

func nonEmpty(in map[string]Set) map[string]Set {
	out := maps.Clone(in)
	maps.DeleteFunc(out, func(_ string, s Set) bool { return len(s) == 0 })
	return out
}

func count(m map[string][]Element) int {
	n := 0
	for _, es := range m {
		n += len(es)
	}
	return n
}

// counting is a handle that notices a replacement of the table.
type counting struct {
	Handle
	replaced bool
}

func (c *counting) Commit(tx Transaction) error {
	c.replaced = c.replaced || tx.Replace
	return c.Handle.Commit(tx)
}

// fake is a kernel with one table: a transaction happens as a whole, or fails as a whole.
type fake struct {
	state State
	txs   []Transaction
	limit int
	fail  map[string]error // the error of the next call of a method
	calls int
}

func newFake() *fake { return &fake{limit: 10000} }

func (f *fake) Limit() int { return f.limit }

func (f *fake) Read() (State, error) {
	f.calls++
	err := f.fail["Read"]
	delete(f.fail, "Read")
	out := f.state
	out.Sets = copySets(f.state.Sets)
	return out, err
}

func (f *fake) Commit(tx Transaction) error {
	f.calls++
	if err := f.fail["Commit"]; err != nil {
		delete(f.fail, "Commit")
		return err
	}
	next := f.state
	next.Sets = copySets(f.state.Sets)
	if tx.Replace {
		next = State{Exists: true, Sets: map[string]Set{}}
	}
	if !next.Exists {
		return syscall.ENOENT
	}
	if tx.Delete {
		f.state = State{}
		return nil
	}
	for name, es := range tx.Remove {
		for _, e := range es {
			if _, ok := next.Sets[name][e]; !ok {
				return syscall.ENOENT
			}
			delete(next.Sets[name], e)
		}
	}
	for name, es := range tx.Add {
		if next.Sets[name] == nil && len(es) > 0 {
			next.Sets[name] = Set{}
		}
		for _, e := range es {
			next.Sets[name][e] = struct{}{}
		}
	}
	f.state = next
	f.txs = append(f.txs, tx)
	return nil
}

func (f *fake) deleteTable() { f.state = State{} }
func (f *fake) drift()       { f.state.Drift = "a rule is gone" }

func (f *fake) addDevice(device string) {
	f.state.Sets[setWorkloads][Element{Key: kernel.PaddedName(device)}] = struct{}{}
}

func (f *fake) deleteDevice(device string) {
	delete(f.state.Sets[setWorkloads], Element{Key: kernel.PaddedName(device)})
}

func copySets(in map[string]Set) map[string]Set {
	out := make(map[string]Set, len(in))
	for name, s := range in {
		out[name] = maps.Clone(s)
	}
	return out
}
