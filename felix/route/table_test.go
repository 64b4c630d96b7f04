// SPDX-License-Identifier: Apache-2.0

package route_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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
	"github.com/heliograph-dev/heliograph/felix/route"
)

// world is a kernel to test against: the fake or the real one. It has devices va and vb, up, with
// 192.0.2.1/24 and 2001:db8::1/64 on va, and the nexthop groups 1<<31|1 via va and 1<<31|2 via vb.
type world interface {
	route.Handle
	// foreign adds a route like somebody else would: via va with that metric and protocol.
	foreign(t *testing.T, prefix string, metric uint32, protocol uint8)
	// mtu changes the MTU of a route of ours to the device va.
	mtu(t *testing.T, prefix string, mtu int)
	// remove deletes a route behind the driver's back.
	remove(t *testing.T, prefix string, metric uint32)
	// down takes the device down, and up again: the kernel drops its routes and nexthops.
	flap(t *testing.T, device string)
	// list prints all routes of the table except for the kernel's own: "prefix proto P metric M".
	list(t *testing.T) []string
}

const (
	nhA desired.NexthopID = 1<<31 | 1
	nhB desired.NexthopID = 1<<31 | 2
)

var quiet = slog.New(slog.DiscardHandler)

func via(prefix string, id desired.NexthopID) desired.Route {
	return desired.Route{Prefix: netip.MustParsePrefix(prefix), Type: desired.RouteNexthop, Nexthop: id}
}

func dev(prefix, device string) desired.Route {
	return desired.Route{Prefix: netip.MustParsePrefix(prefix), Type: desired.RouteDevice, Device: device}
}

func blackhole(prefix string) desired.Route {
	return desired.Route{Prefix: netip.MustParsePrefix(prefix), Type: desired.RouteBlackhole}
}

func sized(r desired.Route, mtu int) desired.Route {
	r.MTU = mtu
	return r
}

func from(r desired.Route, source string) desired.Route {
	r.Source = netip.MustParseAddr(source)
	return r
}

// all is one route of every kind.
var all = []desired.Route{
	via("10.1.0.0/26", nhA),
	from(via("10.1.0.64/26", nhA), "192.0.2.1"),
	dev("10.1.1.1/32", "va"),
	blackhole("10.1.2.0/26"),
	via("2001:db8:1::/122", nhA),
	from(via("2001:db8:1::40/122", nhA), "2001:db8::1"),
	dev("2001:db8:1:1::1/128", "va"),
	blackhole("2001:db8:1:2::/122"),
}

// moved is the same prefixes with everything about them changed.
var moved = []desired.Route{
	via("10.1.0.0/26", nhB),
	via("10.1.0.64/26", nhA),
	dev("10.1.1.1/32", "vb"),
	via("10.1.2.0/26", nhB),
	via("2001:db8:1::/122", nhB),
	via("2001:db8:1::40/122", nhA),
	dev("2001:db8:1:1::1/128", "vb"),
	via("2001:db8:1:2::/122", nhB),
}

// counter counts what a table writes.
type counter struct {
	world
	lists, creates, replaces, deletes int
}

func (c *counter) ListRoutes(ctx context.Context) (iter.Seq[route.Entry], error) {
	c.lists++
	return c.world.ListRoutes(ctx)
}

func (c *counter) CreateRoutes(ctx context.Context, r []desired.Route) []error {
	c.creates += len(r)
	return c.world.CreateRoutes(ctx, r)
}

func (c *counter) ReplaceRoutes(ctx context.Context, r []desired.Route) []error {
	c.replaces += len(r)
	return c.world.ReplaceRoutes(ctx, r)
}

func (c *counter) DeleteRoutes(ctx context.Context, k []route.Key) []error {
	c.deletes += len(k)
	return c.world.DeleteRoutes(ctx, k)
}

func (c *counter) writes() int { return c.creates + c.replaces + c.deletes }

// object is the name of a route in Status.
func (c *counter) object(prefix string) string {
	if n := c.Table(); n != 254 {
		return fmt.Sprintf("route %s table %d", prefix, n)
	}
	return "route " + prefix
}

func (c *counter) reset() { *c = counter{world: c.world} }

// cases are what any kernel has to show.
var cases = []struct {
	name string
	run  func(t *testing.T, c *counter)
}{
	{"every kind is created once", func(t *testing.T, c *counter) {
		tab := route.New(c, quiet)
		tab.SetDesired(all)
		apply(t, tab)
		holds(t, c, all)
		if c.lists != 1 || c.writes() != len(all) {
			t.Errorf("lists, writes = %d, %d; want 1, %d", c.lists, c.writes(), len(all))
		}
	}},
	{"unchanged routes are not written", func(t *testing.T, c *counter) {
		tab := route.New(c, quiet)
		tab.SetDesired(all)
		apply(t, tab)
		c.reset()
		tab.SetDesired(slices.Clone(all))
		tab.QueueResync()
		apply(t, tab)
		if c.lists != 1 || c.writes() != 0 {
			t.Errorf("lists, writes = %d, %d; want 1, 0", c.lists, c.writes())
		}
	}},
	{"a new process adopts what it finds", func(t *testing.T, c *counter) {
		old := route.New(c, quiet)
		old.SetDesired(append(slices.Clone(all), blackhole("10.9.0.0/26")))
		apply(t, old)
		c.reset()
		tab := route.New(c, quiet)
		actual, err := tab.Actual(t.Context())
		if err != nil || len(actual) != len(all)+1 {
			t.Fatalf("Actual() = %d routes, %v", len(actual), err)
		}
		tab.SetDesired(all)
		apply(t, tab)
		holds(t, c, all)
		if c.writes() != 1 || c.deletes != 1 {
			t.Errorf("writes, deletes = %d, %d; want the orphan's deletion alone", c.writes(), c.deletes)
		}
	}},
	{"a change is one replace", func(t *testing.T, c *counter) {
		tab := route.New(c, quiet)
		tab.SetDesired(all)
		apply(t, tab)
		c.reset()
		tab.SetDesired(moved)
		apply(t, tab)
		holds(t, c, moved)
		if c.writes() != len(all) || c.replaces != len(all) {
			t.Errorf("writes, replaces = %d, %d; want %d, all of them replaces", c.writes(), c.replaces, len(all))
		}
		tab.SetDesired(all)
		apply(t, tab)
		holds(t, c, all)
	}},
	{"what is not desired is deleted", func(t *testing.T, c *counter) {
		tab := route.New(c, quiet)
		tab.SetDesired(all)
		apply(t, tab)
		tab.SetDesired(all[:1])
		apply(t, tab)
		holds(t, c, all[:1])
		tab.SetDesired(nil)
		apply(t, tab)
		holds(t, c, nil)
	}},
	{"parts are independent", func(t *testing.T, c *counter) {
		tab := route.New(c, quiet)
		tab.SetDesiredPart("local", all[2:4])
		tab.SetDesiredPart("remote", all[:2])
		apply(t, tab)
		holds(t, c, all[:4])
		tab.SetDesiredPart("local", all[3:4])
		apply(t, tab)
		holds(t, c, append(slices.Clone(all[:2]), all[3]))
		tab.SetDesired(all[4:])
		apply(t, tab)
		holds(t, c, all[4:])
	}},
	{"a route arriving alone costs one message", func(t *testing.T, c *counter) {
		tab := route.New(c, quiet)
		for i := range all {
			tab.SetDesired(slices.Clone(all[:i+1]))
			apply(t, tab)
		}
		holds(t, c, all)
		if c.lists != 1 || c.writes() != len(all) {
			t.Errorf("lists, writes = %d, %d; want 1, %d", c.lists, c.writes(), len(all))
		}
	}},
	{"deleting what is gone is success", func(t *testing.T, c *counter) {
		tab := route.New(c, quiet)
		tab.SetDesired(all)
		apply(t, tab)
		for _, r := range all {
			c.remove(t, r.Prefix.String(), desired.RouteMetric)
		}
		tab.SetDesired(nil)
		apply(t, tab)
		holds(t, c, nil)
	}},
	{"drift heals after a resync", func(t *testing.T, c *counter) {
		tab := route.New(c, quiet)
		tab.SetDesired(all)
		apply(t, tab)
		c.remove(t, "10.1.0.0/26", desired.RouteMetric)
		c.remove(t, "2001:db8:1::/122", desired.RouteMetric)
		c.foreign(t, "10.7.0.0/26", desired.RouteMetric, desired.Protocol) // an orphan of ours
		c.reset()
		tab.QueueResync()
		apply(t, tab)
		holds(t, c, all)
		if c.creates != 2 || c.writes() != 3 {
			t.Errorf("creates, writes = %d, %d; want 2, 3", c.creates, c.writes())
		}
	}},
	{"a stale view is noticed by the create that fails", func(t *testing.T, c *counter) {
		tab := route.New(c, quiet)
		apply(t, tab)
		other := route.New(c, quiet) // the process before us, not yet gone
		other.SetDesired(moved)
		apply(t, other)
		tab.SetDesired(all)
		apply(t, tab)
		holds(t, c, all)
	}},
	{"a foreign route in our place is never replaced", foreignInOurPlace},
	{"a foreign route beside ours is kept", func(t *testing.T, c *counter) {
		for _, p := range []string{"10.1.0.0/26", "2001:db8:1::/122"} {
			c.foreign(t, p, 200, 4)
		}
		tab := route.New(c, quiet)
		tab.SetDesired(all)
		apply(t, tab)
		tab.SetDesired(moved)
		apply(t, tab)
		holds(t, c, moved)
		if got := tab.Shadowed(); len(got) != 0 {
			t.Errorf("Shadowed() = %v; want none, ours has the better metric", got)
		}
		tab.SetDesired(nil)
		apply(t, tab)
		want := []string{"10.1.0.0/26 proto 4 metric 200", "2001:db8:1::/122 proto 4 metric 200"}
		if diff := gocmp.Diff(want, c.list(t)); diff != "" {
			t.Errorf("routes left (-want +got):\n%s", diff)
		}
	}},
	{"a foreign route with a better metric is reported", func(t *testing.T, c *counter) {
		c.foreign(t, "10.1.0.0/26", 10, 4)
		c.foreign(t, "2001:db8:1::/122", 10, 4)
		c.foreign(t, "10.200.0.0/26", 10, 4) // none of our business
		tab := route.New(c, quiet)
		tab.SetDesired(all)
		apply(t, tab)
		var got []string
		for _, e := range tab.Shadowed() {
			got = append(got, e.Route.Prefix.String())
		}
		if diff := gocmp.Diff([]string{"10.1.0.0/26", "2001:db8:1::/122"}, got); diff != "" {
			t.Errorf("Shadowed() (-want +got):\n%s", diff)
		}
		want := desired.Status{Object: c.object("10.1.0.0/26"), Phase: desired.Failed, Error: "foreign route with metric 10 (protocol 4) wins"}
		if got := tab.Status()[0]; got != want {
			t.Errorf("Status()[0] = %v; want %v", got, want)
		}
	}},
	{"routes of ours with another metric are swept", func(t *testing.T, c *counter) {
		c.foreign(t, "10.1.0.0/26", 77, desired.Protocol)
		c.foreign(t, "2001:db8:1::/122", 77, desired.Protocol)
		tab := route.New(c, quiet)
		tab.SetDesired(all)
		apply(t, tab)
		holds(t, c, all)
	}},
	{"a missing device fails alone and heals", func(t *testing.T, c *counter) {
		tab := route.New(c, quiet)
		routes := append(slices.Clone(all), dev("10.1.1.2/32", "none"))
		tab.SetDesired(routes)
		err := tab.Apply(t.Context())
		if !errors.Is(err, syscall.ENODEV) || !strings.Contains(err.Error(), "create route 10.1.1.2/32") {
			t.Errorf("Apply() = %v; want ENODEV for 10.1.1.2/32", err)
		}
		holds(t, c, all)
		if got := tab.Status()[len(all)]; got.Phase != desired.Failed || got.Object != c.object("10.1.1.2/32") {
			t.Errorf("Status() = %v; want failed", got)
		}
		routes = append(slices.Clone(all), dev("10.1.1.2/32", "vb"))
		tab.SetDesired(routes)
		apply(t, tab)
		holds(t, c, routes)
	}},
	{"a missing nexthop fails alone", func(t *testing.T, c *counter) {
		tab := route.New(c, quiet)
		tab.SetDesired(append(slices.Clone(all), via("10.1.3.0/26", 1<<31|9)))
		if err := tab.Apply(t.Context()); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("Apply() = %v; want EINVAL", err)
		}
		holds(t, c, all)
	}},
	{"a device that flaps loses its routes, a resync finds them", func(t *testing.T, c *counter) {
		tab := route.New(c, quiet)
		tab.SetDesired(moved)
		apply(t, tab)
		c.flap(t, "vb")
		if len(c.list(t)) == len(moved) {
			t.Fatal("the flap removed nothing")
		}
		tab.QueueResync()
		apply(t, tab)
		holds(t, c, moved)
	}},
	{"an MTU is set, changed, taken away and healed", func(t *testing.T, c *counter) {
		tab := route.New(c, quiet)
		for _, mtu := range []int{1450, 1400, 0, 65520, 1450} {
			var routes []desired.Route
			for _, r := range all {
				routes = append(routes, sized(r, mtu))
			}
			tab.SetDesired(routes)
			apply(t, tab)
			holds(t, c, routes)
			c.reset()
			tab.QueueResync()
			apply(t, tab)
			if c.writes() != 0 {
				t.Errorf("%d writes for what is there", c.writes())
			}
		}
		c.mtu(t, "10.1.1.1/32", 1300)
		c.mtu(t, "2001:db8:1:1::1/128", 1300)
		c.reset()
		tab.QueueResync()
		apply(t, tab)
		if c.replaces != 2 || c.writes() != 2 {
			t.Errorf("replaces, writes = %d, %d; want 2, 2", c.replaces, c.writes())
		}
		c.mtu(t, "10.1.1.1/32", 0)
		tab.QueueResync()
		apply(t, tab)
		if c.replaces != 3 {
			t.Errorf("replaces = %d; want 3", c.replaces)
		}
	}},
	{"a default blackhole beside host routes", func(t *testing.T, c *counter) {
		routes := []desired.Route{
			blackhole("0.0.0.0/0"), via("10.1.0.7/32", nhA), from(via("10.1.0.8/32", nhB), "192.0.2.1"),
			blackhole("::/0"), via("2001:db8:1::7/128", nhA), from(via("2001:db8:1::8/128", nhB), "2001:db8::1"),
		}
		tab := route.New(c, quiet)
		tab.SetDesired(routes)
		apply(t, tab)
		holds(t, c, routes)
		c.reset()
		next := route.New(c, quiet)
		next.SetDesired(routes)
		apply(t, next)
		if c.writes() != 0 {
			t.Errorf("%d writes for what is there", c.writes())
		}
		next.SetDesired(nil)
		apply(t, next)
		holds(t, c, nil)
	}},
	{"many failures make a short error", func(t *testing.T, c *counter) {
		var routes []desired.Route
		for i := range 1000 {
			a := netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})
			routes = append(routes, desired.Route{Prefix: netip.PrefixFrom(a, 32), Type: desired.RouteNexthop, Nexthop: 1<<31 | 9})
		}
		tab := route.New(c, quiet)
		tab.SetDesired(append(routes, all...))
		err := tab.Apply(t.Context())
		if err == nil || !strings.Contains(err.Error(), "and 995 more") || len(err.Error()) > 1000 {
			t.Errorf("Apply() = %v; want five failures and a count", err)
		}
		holds(t, c, all)
	}},
}

func foreignInOurPlace(t *testing.T, c *counter) {
	prefixes := []string{"10.1.0.0/26", "2001:db8:1::/122"}
	tab := route.New(c, quiet)
	for _, p := range prefixes {
		c.foreign(t, p, desired.RouteMetric, 4)
	}
	tab.SetDesired(all)
	for range 2 { // the second Apply knows, and tries again
		c.lists = 0
		err := tab.Apply(t.Context())
		if err == nil || !strings.Contains(err.Error(), "foreign route with our metric is in the way (protocol 4)") {
			t.Fatalf("Apply() = %v; want a foreign route", err)
		}
	}
	if c.lists != 0 {
		t.Errorf("lists = %d; want no further reading for a conflict that is known", c.lists)
	}
	if got, want := len(c.list(t)), len(all); got != want {
		t.Errorf("%d routes; want %d, two of them foreign", got, want)
	}
	c.remove(t, "10.1.0.0/26", desired.RouteMetric)
	c.remove(t, "2001:db8:1::/122", desired.RouteMetric)
	apply(t, tab)
	holds(t, c, all)

	// Ours gone, a foreign one in its place: seen by the resync that the monitor causes.
	for _, p := range prefixes {
		c.remove(t, p, desired.RouteMetric)
		c.foreign(t, p, desired.RouteMetric, 4)
	}
	tab.SetDesired(moved)
	tab.QueueResync()
	if err := tab.Apply(t.Context()); err == nil {
		t.Error("Apply() = nil; want a foreign route")
	}
	for _, p := range prefixes {
		if want := p + " proto 4 metric 80"; !slices.Contains(c.list(t), want) {
			t.Errorf("%q is gone from %q", want, c.list(t))
		}
	}
}

func apply(t *testing.T, tab *route.Table) {
	t.Helper()
	if err := tab.Apply(t.Context()); err != nil {
		t.Fatalf("Apply() = %v", err)
	}
}

// holds compares the kernel's routes with protocol 80 with want.
func holds(t *testing.T, c *counter, want []desired.Route) {
	t.Helper()
	entries, err := c.world.ListRoutes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []desired.Route
	for e := range entries {
		if e.Protocol == desired.Protocol {
			got = append(got, e.Route)
		}
	}
	byPrefix := func(a, b desired.Route) int { return cmp.Compare(a.Prefix.String(), b.Prefix.String()) }
	slices.SortFunc(got, byPrefix)
	want = slices.SortedFunc(slices.Values(want), byPrefix)
	if diff := gocmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("routes in the kernel (-want +got):\n%s", diff)
	}
}
