// SPDX-License-Identifier: Apache-2.0

// Package address keeps heliograph's addresses equal to the desired set: the node's own pod-network
// addresses on lo, as a rule. It owns the addresses that carry our protocol number (IFA_PROTO), and
// on kernels that do not keep it (before Linux 5.18) the /32 and /128 on lo inside of the prefixes
// given to SetOwned. An address of somebody else that is equal to a desired one serves as well, and is
// never deleted.
package address

import (
	"cmp"
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

const loopback = "lo"

// Entry is an address as the kernel reports it.
type Entry struct {
	desired.Address
	Protocol uint8 // who made it; 0 if unknown
}

// Handle is what Table needs from the kernel. *Kernel satisfies it.
type Handle interface {
	List() ([]Entry, error)
	// Add adds the address with our protocol, without DAD; one that is there already is a success.
	Add(a desired.Address) error
	Delete(a desired.Address) error
	// KeepsProtocol says whether the kernel remembers who made an address.
	KeepsProtocol() bool
}

// Table is the driver of the addresses. Its methods must be called from one goroutine.
type Table struct {
	handle  Handle
	log     *slog.Logger
	owned   []netip.Prefix
	desired map[desired.Address]bool // nil until the first SetDesired: nothing is written before
	actual  map[desired.Address]bool // what the kernel holds → whether it is ours
	stale   bool
	failed  map[desired.Address]error
}

// New makes a driver that owns nothing until SetDesired.
func New(h Handle, log *slog.Logger) *Table {
	return &Table{handle: h, log: log, stale: true}
}

// SetDesired replaces the set of addresses. Memory only.
func (t *Table) SetDesired(addrs []desired.Address) {
	t.desired = make(map[desired.Address]bool, len(addrs))
	for _, a := range addrs {
		t.desired[a] = true
	}
}

// SetOwned tells which prefixes only heliograph hands out addresses from. It matters on old kernels.
func (t *Table) SetOwned(prefixes []netip.Prefix) {
	if !slices.Equal(t.owned, prefixes) {
		t.owned, t.stale = slices.Clone(prefixes), true
	}
}

// QueueResync makes the next Apply read the kernel.
func (t *Table) QueueResync() { t.stale = true }

// Apply makes the kernel's addresses equal to the desired ones. What fails is tried again by the next.
func (t *Table) Apply(ctx context.Context) error {
	if t.desired == nil {
		return nil
	}
	if t.stale {
		if err := t.read(); err != nil {
			return err
		}
	}
	t.failed = map[desired.Address]error{}
	for _, a := range sorted(t.desired) {
		if _, have := t.actual[a]; !have && ctx.Err() == nil {
			t.add(a)
		}
	}
	for _, a := range sorted(t.actual) {
		if t.actual[a] && !t.desired[a] && ctx.Err() == nil {
			t.remove(a)
		}
	}
	return errors.Join(append(t.errors(), ctx.Err())...)
}

// Status tells of each desired address, and of orphans that would not go.
func (t *Table) Status() []desired.Status {
	all := maps.Clone(t.desired)
	for a := range t.failed {
		all[a] = true
	}
	var out []desired.Status
	for _, a := range sorted(all) {
		s := desired.Status{Object: object(a), Phase: desired.Pending}
		if err := t.failed[a]; err != nil {
			s.Phase, s.Error = desired.Failed, err.Error()
		} else if _, have := t.actual[a]; have {
			s.Phase = desired.Done
		}
		out = append(out, s)
	}
	return out
}

func (t *Table) read() error {
	entries, err := t.handle.List()
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	t.actual = make(map[desired.Address]bool, len(entries))
	for _, e := range entries {
		t.actual[e.Address] = t.ours(e)
	}
	t.stale = false
	return nil
}

func (t *Table) add(a desired.Address) {
	if err := t.handle.Add(a); err != nil {
		t.fail(a, fmt.Errorf("add %s: %w", object(a), err))
		return
	}
	t.actual[a] = true
	t.log.Info("address added", "device", a.Device, "prefix", a.Prefix)
}

// remove deletes an address; one that is gone already is a success.
func (t *Table) remove(a desired.Address) {
	err := t.handle.Delete(a)
	if err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.ENODEV) {
		t.fail(a, fmt.Errorf("delete %s: %w", object(a), err))
		return
	}
	delete(t.actual, a)
	t.log.Info("address deleted", "device", a.Device, "prefix", a.Prefix)
}

// fail notes an error. What the kernel holds is in doubt then, so the next Apply reads it.
func (t *Table) fail(a desired.Address, err error) {
	t.failed[a] = err
	t.stale = true
}

func (t *Table) errors() []error {
	var errs []error
	for _, a := range slices.SortedFunc(maps.Keys(t.failed), compare) {
		errs = append(errs, t.failed[a])
	}
	return errs
}

// ours says whether an address was made by this driver, in this process or an earlier one.
func (t *Table) ours(e Entry) bool {
	if t.handle.KeepsProtocol() {
		return e.Protocol == desired.Protocol
	}
	return e.Device == loopback && e.Prefix.IsSingleIP() &&
		slices.ContainsFunc(t.owned, func(p netip.Prefix) bool { return p.Contains(e.Prefix.Addr()) })
}

func object(a desired.Address) string {
	return fmt.Sprintf("address %s on %s", a.Prefix, a.Device)
}

func sorted(m map[desired.Address]bool) []desired.Address {
	return slices.SortedFunc(maps.Keys(m), compare)
}

func compare(a, b desired.Address) int {
	return cmp.Or(cmp.Compare(a.Device, b.Device), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
}
