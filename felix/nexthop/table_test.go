// SPDX-License-Identifier: Apache-2.0

package nexthop_test

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/nexthop"
)

// world is a kernel to test against: the fake or the real one. It has devices va and vb, up.
type world interface {
	nexthop.Handle
	// foreign adds an object like somebody else would.
	foreign(t *testing.T, id desired.NexthopID)
	// remove deletes an object behind the driver's back.
	remove(t *testing.T, id desired.NexthopID)
	// weigh makes a group of ours differ by a weight.
	weigh(t *testing.T, id, member desired.NexthopID)
	// flap takes the device down and up: the kernel drops the objects on it.
	flap(t *testing.T, device string)
}

const first desired.NexthopID = 1 << 31

func single(id desired.NexthopID, gateway, device string) desired.Nexthop {
	return desired.Nexthop{ID: first + id, Gateway: netip.MustParseAddr(gateway), Device: device, OnLink: true}
}

func group(id desired.NexthopID, members ...desired.NexthopID) desired.Nexthop {
	for i := range members {
		members[i] += first
	}
	return desired.Nexthop{ID: first + id, Group: desired.EncodeGroup(members)}
}

// all comes in an order in which the kernel could not create it.
var all = []desired.Nexthop{
	group(10, 1), group(11, 1, 2), group(12, 3),
	single(1, "169.254.1.1", "va"), single(2, "169.254.1.2", "vb"), single(3, "fe80::1", "va"),
}

var quiet = slog.New(slog.DiscardHandler)

// counter counts what a table writes.
type counter struct {
	world
	lists, creates, replaces, deletes int
}

func (c *counter) ListNexthops(ctx context.Context) (iter.Seq[nexthop.Entry], error) {
	c.lists++
	return c.world.ListNexthops(ctx)
}

func (c *counter) CreateNexthops(ctx context.Context, n []desired.Nexthop) []error {
	c.creates += len(n)
	return c.world.CreateNexthops(ctx, n)
}

func (c *counter) ReplaceNexthops(ctx context.Context, n []desired.Nexthop) []error {
	c.replaces += len(n)
	return c.world.ReplaceNexthops(ctx, n)
}

func (c *counter) DeleteNexthops(ctx context.Context, ids []desired.NexthopID) []error {
	c.deletes += len(ids)
	return c.world.DeleteNexthops(ctx, ids)
}

func (c *counter) writes() int { return c.creates + c.replaces + c.deletes }

// cases are what any kernel has to show.
var cases = []struct {
	name string
	run  func(t *testing.T, c *counter)
}{
	{"created once, single ones before groups", func(t *testing.T, c *counter) {
		tab := table(t, c, all)
		holds(t, c, all)
		if c.lists != 1 || c.creates != len(all) || c.writes() != len(all) {
			t.Errorf("lists, creates, writes = %d, %d, %d", c.lists, c.creates, c.writes())
		}
		tab.SetDesired(slices.Clone(all))
		tab.QueueResync()
		apply(t, tab)
		if c.writes() != len(all) || tab.RoutesLost() {
			t.Error("unchanged objects were written")
		}
	}},
	{"a new process adopts what it finds", func(t *testing.T, c *counter) {
		table(t, c, append(slices.Clone(all), single(4, "169.254.1.4", "va"), group(13, 4)))
		*c = counter{world: c.world}
		tab := nexthop.New(c, quiet)
		if actual, err := tab.Actual(t.Context()); err != nil || len(actual) != len(all)+2 {
			t.Fatalf("Actual() = %v, %v", actual, err)
		}
		tab.SetDesired(all)
		apply(t, tab)
		holds(t, c, all)
		if c.writes() != 2 || c.deletes != 2 {
			t.Errorf("writes, deletes = %d, %d; want the orphans' deletion alone", c.writes(), c.deletes)
		}
	}},
	{"a group that changes is one message", func(t *testing.T, c *counter) {
		tab := table(t, c, all)
		*c = counter{world: c.world}
		want := append(slices.Clone(all[1:]), group(10, 2))
		tab.SetDesired(want)
		apply(t, tab)
		holds(t, c, want)
		if c.replaces != 1 || c.writes() != 1 {
			t.Errorf("replaces, writes = %d, %d; want 1, 1", c.replaces, c.writes())
		}
	}},
	{"a single one that changes is one message", func(t *testing.T, c *counter) {
		tab := table(t, c, all)
		*c = counter{world: c.world}
		want := slices.Clone(all)
		want[3] = single(1, "169.254.1.9", "vb")
		tab.SetDesired(want)
		apply(t, tab)
		holds(t, c, want)
		if c.replaces != 1 || c.writes() != 1 {
			t.Errorf("replaces, writes = %d, %d; want 1, 1", c.replaces, c.writes())
		}
	}},
	{"deletions wait for the second phase", func(t *testing.T, c *counter) {
		tab := table(t, c, all)
		want := []desired.Nexthop{group(10, 1), single(1, "169.254.1.1", "va")}
		tab.SetDesired(want)
		if err := tab.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		holds(t, c, all)
		apply(t, tab)
		holds(t, c, want)
		tab.SetDesired(nil)
		apply(t, tab)
		holds(t, c, nil)
		if tab.RoutesLost() {
			t.Error("RoutesLost() after deletions that were asked for")
		}
	}},
	{"deleting what is gone is success", func(t *testing.T, c *counter) {
		tab := table(t, c, all)
		for _, n := range all[:3] {
			c.remove(t, n.ID)
		}
		tab.SetDesired(nil)
		apply(t, tab)
		holds(t, c, nil)
	}},
	{"a foreign object is never touched", func(t *testing.T, c *counter) {
		c.foreign(t, first+1)
		c.foreign(t, 7)
		tab := nexthop.New(c, quiet)
		tab.SetDesired(all)
		for range 2 {
			err := tab.Apply(t.Context())
			if err == nil || !strings.Contains(err.Error(), "create nexthop 2147483649: foreign nexthop object has this id (protocol 4)") {
				t.Fatalf("Apply() = %v", err)
			}
		}
		// The kernel puts foreign objects into groups of ours as well: it is the id that counts.
		holds(t, c, slices.DeleteFunc(slices.Clone(all), func(n desired.Nexthop) bool { return n.ID == first+1 }))
		if got := status(tab, "nexthop 2147483649"); got.Phase != desired.Failed {
			t.Errorf("status = %v; want failed", got)
		}
		tab.SetDesired(nil)
		apply(t, tab)
		if n := len(entries(t, c)); n != 2 {
			t.Errorf("%d objects left; want the two foreign ones", n)
		}
	}},
	{"what vanished is restored, and routes with it", func(t *testing.T, c *counter) {
		tab := table(t, c, all)
		c.flap(t, "va")
		tab.QueueResync()
		apply(t, tab)
		holds(t, c, all)
		if !tab.RoutesLost() || tab.RoutesLost() {
			t.Error("RoutesLost() must be true once")
		}
	}},
	{"a group that lost a member gets it back", func(t *testing.T, c *counter) {
		tab := table(t, c, all)
		c.remove(t, first+2)
		tab.QueueResync()
		apply(t, tab)
		holds(t, c, all)
	}},
	{"a member that goes leaves its groups", func(t *testing.T, c *counter) {
		tab := table(t, c, all)
		want := slices.DeleteFunc(slices.Clone(all), func(n desired.Nexthop) bool { return n.ID == first+2 })
		tab.SetDesired(want) // a mistake of the calculator: group 11 still names it
		apply(t, tab)
		if err := tab.Apply(t.Context()); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("Apply() = %v; want EINVAL for a group with a member that does not exist", err)
		}
		tab.SetDesired(all)
		apply(t, tab)
		holds(t, c, all)
	}},
	{"weights are not ours", func(t *testing.T, c *counter) {
		tab := table(t, c, all)
		c.weigh(t, first+10, first+1)
		tab.QueueResync()
		apply(t, tab)
		holds(t, c, all)
	}},
	{"an id that changes between single and group", func(t *testing.T, c *counter) {
		tab := table(t, c, all[3:])
		want := []desired.Nexthop{all[3], all[5], group(2, 1)}
		tab.SetDesired(want)
		apply(t, tab)
		holds(t, c, want)
		if !tab.RoutesLost() {
			t.Error("RoutesLost() = false; want true")
		}
		tab.SetDesired(all)
		apply(t, tab)
		holds(t, c, all)
	}},
	{"a missing device fails alone and heals", func(t *testing.T, c *counter) {
		tab := nexthop.New(c, quiet)
		tab.SetDesired(append(slices.Clone(all), single(4, "169.254.1.4", "none")))
		if err := tab.Apply(t.Context()); !errors.Is(err, syscall.ENODEV) || !strings.Contains(err.Error(), "create nexthop 2147483652") {
			t.Errorf("Apply() = %v; want ENODEV", err)
		}
		holds(t, c, all)
		want := append(slices.Clone(all), single(4, "169.254.1.4", "vb"))
		tab.SetDesired(want)
		apply(t, tab)
		holds(t, c, want)
	}},
	{"no gateway is an error", func(t *testing.T, c *counter) {
		tab := nexthop.New(c, quiet)
		tab.SetDesired([]desired.Nexthop{{ID: first + 1, Device: "va"}, single(2, "169.254.1.2", "vb")})
		if err := tab.Apply(t.Context()); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("Apply() = %v; want EINVAL", err)
		}
		holds(t, c, []desired.Nexthop{single(2, "169.254.1.2", "vb")})
	}},
}

func table(t *testing.T, h nexthop.Handle, nhs []desired.Nexthop) *nexthop.Table {
	t.Helper()
	tab := nexthop.New(h, quiet)
	tab.SetDesired(nhs)
	apply(t, tab)
	return tab
}

func apply(t *testing.T, tab *nexthop.Table) {
	t.Helper()
	if err := tab.Apply(t.Context()); err != nil {
		t.Fatalf("Apply() = %v", err)
	}
	if err := tab.ApplyDeletes(t.Context()); err != nil {
		t.Fatalf("ApplyDeletes() = %v", err)
	}
}

func status(tab *nexthop.Table, object string) desired.Status {
	for _, s := range tab.Status() {
		if s.Object == object {
			return s
		}
	}
	return desired.Status{}
}

func entries(t *testing.T, c *counter) []nexthop.Entry {
	t.Helper()
	seq, err := c.world.ListNexthops(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(seq)
}

// holds compares the kernel's objects with protocol 80 with want.
func holds(t *testing.T, c *counter, want []desired.Nexthop) {
	t.Helper()
	var got []desired.Nexthop
	for _, e := range entries(t, c) {
		if e.Protocol == desired.Protocol {
			got = append(got, e.Nexthop)
		}
	}
	byID := func(a, b desired.Nexthop) int { return cmp.Compare(a.ID, b.ID) }
	slices.SortFunc(got, byID)
	want = slices.SortedFunc(slices.Values(want), byID)
	if diff := gocmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("nexthops in the kernel (-want +got):\n%s", diff)
	}
}
