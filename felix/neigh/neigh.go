// SPDX-License-Identifier: Apache-2.0

// Package neigh keeps the permanent neighbour and forwarding (FDB) entries of heliograph's tunnel
// devices equal to the desired sets. Every permanent entry on these devices is ours, those of other
// devices are never touched, and neither is what the kernel keeps for itself (NOARP, multicast).
//
// A tunnel has no learning and no flood entry, so the two tables are all it knows:
//
//	route 10.244.2.0/26 via 169.254.1.9 dev hel-vxlan
//	  └─ neighbour 169.254.1.9 is at 66:a0:…        inner destination MAC
//	       └─ FDB 66:a0:… is behind 192.168.12.2    outer destination address
package neigh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/heliograph-dev/heliograph/felix/delta"
	"github.com/heliograph-dev/heliograph/felix/desired"
)

// Handle is what Table needs from the kernel. *Kernel satisfies it.
type Handle interface {
	// Index returns the index of a device; an error that is syscall.ENODEV if there is none.
	Index(device string) (int, error)
	// List reads the permanent entries of a device.
	List(index int) ([]Entry, error)
	// Set adds an entry or changes what it points to.
	Set(index int, e Entry) error
	Delete(index int, e Entry) error
}

// Entry is a permanent entry: of the neighbour table with IP and MAC, of the FDB with MAC and Remote.
type Entry struct {
	IP     netip.Addr // invalid for an FDB entry
	MAC    desired.MAC
	Remote netip.Addr // invalid for a neighbour
}

// Table is the driver of both tables. Its methods must be called from one goroutine.
type Table struct {
	handle     Handle
	log        *slog.Logger
	devices    map[string]*device
	neighbours []desired.Neighbour // as last desired
	fdb        []desired.FDBEntry
	refused    []string // devices of desired entries that are none of ours
	ready      bool     // SetDesired was called: nothing is written before
}

// device is one tunnel device and its entries.
type device struct {
	name    string
	index   int // as of the last read; a device made anew has another, and no entries
	tracker *delta.Tracker[key, value]
	parts   *delta.Parts[key, value, Entry]
	extra   []Entry // second remotes of a MAC, such as flood entries have: never wanted
	stale   bool
	failed  map[key]error
	err     error // of the device as a whole
}

// key is what the kernel tells entries apart by: the IP address of a neighbour, the MAC of an FDB entry.
type key struct {
	ip  netip.Addr
	mac desired.MAC
}

// value is what an entry points to: the MAC of a neighbour, the remote of an FDB entry.
type value struct {
	mac    desired.MAC
	remote netip.Addr
}

// New makes a driver for the entries of these devices.
func New(h Handle, devices []string, log *slog.Logger) *Table {
	t := &Table{handle: h, log: log, devices: map[string]*device{}}
	for _, name := range devices {
		tracker := delta.New[key, value]()
		t.devices[name] = &device{name: name, tracker: tracker, parts: delta.NewParts(tracker, Entry.split), stale: true}
	}
	return t
}

// SetDesired replaces both sets. Memory only. The lists are kept, so the caller must not change them
// afterwards. Entries for devices that New was not told of are refused: there the sweep would delete
// what is not ours.
func (t *Table) SetDesired(neighbours []desired.Neighbour, fdb []desired.FDBEntry) {
	if t.ready && slices.Equal(neighbours, t.neighbours) && slices.Equal(fdb, t.fdb) {
		return
	}
	t.ready, t.neighbours, t.fdb = true, neighbours, fdb
	lists := map[string][]Entry{}
	for _, n := range neighbours {
		lists[n.Device] = append(lists[n.Device], Entry{IP: n.IP, MAC: n.MAC})
	}
	for name, d := range t.devices {
		d.parts.Set("neighbours", lists[name])
	}
	refused := maps.Clone(lists)
	clear(lists)
	for _, f := range fdb {
		lists[f.Device] = append(lists[f.Device], Entry{MAC: f.MAC, Remote: f.Remote})
	}
	for name, d := range t.devices {
		d.parts.Set("fdb", lists[name])
	}
	maps.Copy(refused, lists)
	maps.DeleteFunc(refused, func(name string, _ []Entry) bool { return t.devices[name] != nil })
	t.refused = slices.Sorted(maps.Keys(refused))
}

// QueueResync makes the next Apply read the kernel.
func (t *Table) QueueResync() {
	for _, d := range t.devices {
		d.stale = true
	}
}

// Apply makes the entries of all devices equal to the desired ones. What fails is tried again by the
// next.
func (t *Table) Apply(ctx context.Context) error {
	if !t.ready {
		return nil
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(t.devices)) {
		if err := t.applyDevice(ctx, t.devices[name]); err != nil {
			errs = append(errs, err)
		}
	}
	for _, name := range t.refused {
		errs = append(errs, fmt.Errorf("neighbours of %s: not a tunnel device of ours", name))
	}
	return errors.Join(errs...)
}

// Status tells of each device by one line, and of each entry that failed. Entries that are done are
// thousands, and say nothing.
func (t *Table) Status() []desired.Status {
	var out []desired.Status
	for _, name := range slices.Sorted(maps.Keys(t.devices)) {
		d := t.devices[name]
		n, _ := d.tracker.Len()
		if n == 0 && len(d.failed) == 0 && d.err == nil {
			continue
		}
		s := desired.Status{Object: fmt.Sprintf("neighbours of %s (%d)", name, n), Phase: desired.Pending}
		switch {
		case d.err != nil:
			s.Phase, s.Error = desired.Failed, d.err.Error()
		case !d.stale && d.tracker.InSync():
			s.Phase = desired.Done
		}
		out = append(out, s)
		for _, k := range slices.SortedFunc(maps.Keys(d.failed), compareKeys) {
			out = append(out, desired.Status{Object: k.on(name), Phase: desired.Failed, Error: d.failed[k].Error()})
		}
	}
	for _, name := range t.refused {
		out = append(out, desired.Status{Object: "neighbours of " + name, Phase: desired.Failed, Error: "not a tunnel device of ours"})
	}
	return out
}

func (t *Table) applyDevice(ctx context.Context, d *device) error {
	index, err := t.handle.Index(d.name)
	if n, _ := d.tracker.Len(); n == 0 && errors.Is(err, syscall.ENODEV) {
		d.err, d.failed, d.stale = nil, nil, true
		return nil
	}
	if err != nil {
		d.err, d.stale = fmt.Errorf("find device %s: %w", d.name, err), true
		return d.err
	}
	if index != d.index || d.stale {
		if d.err = t.read(d, index); d.err != nil {
			return d.err
		}
	}
	d.err, d.failed = nil, map[key]error{}
	added := t.setMissing(ctx, d)
	deleted := t.deleteExtra(ctx, d)
	if added+deleted > 0 {
		t.log.Info("neighbour entries changed", "device", d.name, "set", added, "deleted", deleted)
	}
	return errors.Join(summary(d), ctx.Err())
}

// read learns what a device has. Of several entries of one MAC the first counts, the others go.
func (t *Table) read(d *device, index int) error {
	entries, err := t.handle.List(index)
	if err != nil {
		d.stale = true
		return fmt.Errorf("list entries of %s: %w", d.name, err)
	}
	actual := make(map[key]value, len(entries))
	d.extra = nil
	for _, e := range entries {
		k, v := e.split()
		if _, twice := actual[k]; twice {
			d.extra = append(d.extra, e)
		} else {
			actual[k] = v
		}
	}
	d.tracker.ReplaceActual(maps.All(actual))
	d.index, d.stale = index, false
	return nil
}

func (t *Table) setMissing(ctx context.Context, d *device) int {
	n := 0
	for u := range d.tracker.PendingUpdates() {
		if ctx.Err() != nil {
			break
		}
		if err := t.handle.Set(d.index, join(u.Key, u.Desired)); err != nil {
			d.fail(u.Key, fmt.Errorf("set %s: %w", u.Key.on(d.name), err))
			continue
		}
		d.tracker.Written(u)
		n++
	}
	return n
}

func (t *Table) deleteExtra(ctx context.Context, d *device) int {
	n := 0
	for k, v := range d.tracker.PendingDeletes() {
		if ctx.Err() != nil {
			break
		}
		if t.delete(d, join(k, v)) {
			d.tracker.DeleteActual(k)
			n++
		}
	}
	for _, e := range d.extra {
		if ctx.Err() != nil {
			d.stale = true // the rest of them is found again by the next read
			break
		}
		if t.delete(d, e) {
			n++
		}
	}
	d.extra = nil
	return n
}

// delete deletes one entry; one that is gone already is a success.
func (t *Table) delete(d *device, e Entry) bool {
	if err := t.handle.Delete(d.index, e); err != nil && !errors.Is(err, syscall.ENOENT) {
		k, _ := e.split()
		d.fail(k, fmt.Errorf("delete %s: %w", k.on(d.name), err))
		return false
	}
	return true
}

// fail notes an error. What the kernel holds is in doubt then, so the next Apply reads it.
func (d *device) fail(k key, err error) {
	d.failed[k] = err
	d.stale = true
}

// summary is one error for all that failed on a device: 5,000 lines would hide the cause.
func summary(d *device) error {
	if len(d.failed) == 0 {
		return nil
	}
	keys := slices.SortedFunc(maps.Keys(d.failed), compareKeys)
	if len(keys) == 1 {
		return d.failed[keys[0]]
	}
	return fmt.Errorf("%d entries of %s failed, the first: %w", len(keys), d.name, d.failed[keys[0]])
}

func (e Entry) split() (key, value) {
	if e.IP.IsValid() {
		return key{ip: e.IP}, value{mac: e.MAC}
	}
	return key{mac: e.MAC}, value{remote: e.Remote}
}

func join(k key, v value) Entry {
	if k.ip.IsValid() {
		return Entry{IP: k.ip, MAC: v.mac}
	}
	return Entry{MAC: k.mac, Remote: v.remote}
}

func (k key) on(device string) string {
	if k.ip.IsValid() {
		return fmt.Sprintf("neighbour %s on %s", k.ip, device)
	}
	return fmt.Sprintf("fdb %s on %s", net.HardwareAddr(k.mac[:]), device)
}

func compareKeys(a, b key) int {
	if c := a.ip.Compare(b.ip); c != 0 {
		return c
	}
	return slices.Compare(a.mac[:], b.mac[:])
}
