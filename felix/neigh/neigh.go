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
	"net/netip"
	"slices"
	"syscall"

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
	handle  Handle
	log     *slog.Logger
	devices map[string]*device
	refused []string // devices of desired entries that are none of ours
	ready   bool     // SetDesired was called: nothing is written before
}

// device is one tunnel device and its entries.
type device struct {
	name    string
	index   int // as of the last read; a device made anew has another, and no entries
	desired map[key]value
	actual  map[key]value
	extra   []Entry // second remotes of a MAC, and flood entries: never wanted
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
		t.devices[name] = &device{name: name, stale: true}
	}
	return t
}

// SetDesired replaces both sets. Memory only. Entries for devices that New was not told of fail.
func (t *Table) SetDesired(neighbours []desired.Neighbour, fdb []desired.FDBEntry) {
	t.ready, t.refused = true, nil
	for _, d := range t.devices {
		d.desired = map[key]value{}
	}
	for _, n := range neighbours {
		t.want(n.Device, Entry{IP: n.IP, MAC: n.MAC})
	}
	for _, f := range fdb {
		t.want(f.Device, Entry{MAC: f.MAC, Remote: f.Remote})
	}
}

func (t *Table) want(name string, e Entry) {
	d := t.devices[name]
	if d == nil {
		// On a device of somebody else the sweep would delete what is not ours.
		if !slices.Contains(t.refused, name) {
			t.refused = append(t.refused, name)
		}
		return
	}
	k, v := e.split()
	d.desired[k] = v
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
		if len(d.desired) == 0 && len(d.failed) == 0 && d.err == nil {
			continue
		}
		s := desired.Status{Object: fmt.Sprintf("neighbours of %s (%d)", name, len(d.desired)), Phase: desired.Pending}
		switch {
		case d.err != nil:
			s.Phase, s.Error = desired.Failed, d.err.Error()
		case !d.stale && maps.Equal(d.desired, d.actual):
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
	if errors.Is(err, syscall.ENODEV) && len(d.desired) == 0 {
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

// read learns what a device has. Of a MAC with several remotes the wanted one counts, the others go.
func (t *Table) read(d *device, index int) error {
	entries, err := t.handle.List(index)
	if err != nil {
		d.stale = true
		return fmt.Errorf("list entries of %s: %w", d.name, err)
	}
	d.actual, d.extra = make(map[key]value, len(entries)), nil
	for _, e := range entries {
		k, v := e.split()
		old, twice := d.actual[k]
		switch {
		case !twice:
			d.actual[k] = v
		case v == d.desired[k]:
			d.actual[k] = v
			d.extra = append(d.extra, join(k, old))
		default:
			d.extra = append(d.extra, e)
		}
	}
	d.index, d.stale = index, false
	return nil
}

func (t *Table) setMissing(ctx context.Context, d *device) int {
	n := 0
	for k, v := range d.desired {
		if have, ok := d.actual[k]; ok && have == v {
			continue
		}
		if ctx.Err() != nil {
			break
		}
		if err := t.handle.Set(d.index, join(k, v)); err != nil {
			d.fail(k, fmt.Errorf("set %s: %w", k.on(d.name), err))
			continue
		}
		d.actual[k] = v
		n++
	}
	return n
}

func (t *Table) deleteExtra(ctx context.Context, d *device) int {
	n := 0
	extra := d.extra
	for k, v := range d.actual {
		if _, wanted := d.desired[k]; !wanted {
			extra = append(extra, join(k, v))
		}
	}
	d.extra = nil
	for _, e := range extra {
		if ctx.Err() != nil {
			d.stale = true // what is left of extra is in no map
			break
		}
		k, v := e.split()
		// Deleting what is gone is a success.
		if err := t.handle.Delete(d.index, e); err != nil && !errors.Is(err, syscall.ENOENT) {
			d.fail(k, fmt.Errorf("delete %s: %w", k.on(d.name), err))
			continue
		}
		if d.actual[k] == v {
			delete(d.actual, k)
		}
		n++
	}
	return n
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
	return fmt.Sprintf("fdb %x:%x:%x:%x:%x:%x on %s", k.mac[0], k.mac[1], k.mac[2], k.mac[3], k.mac[4], k.mac[5], device)
}

func compareKeys(a, b key) int {
	if c := a.ip.Compare(b.ip); c != 0 {
		return c
	}
	return slices.Compare(a.mac[:], b.mac[:])
}
