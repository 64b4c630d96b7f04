// SPDX-License-Identifier: Apache-2.0

package route_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/route"
)

// fake is a main table with the kernel's rules.
type fake struct {
	routes   map[route.Key]route.Entry
	nexthops map[desired.NexthopID]string // to the device
	devices  []string

	// fault, if set, is asked for each write: what it returns is the answer, whether the write is
	// carried out or not.
	fault    func() (err error, carriedOut bool)
	failList error
}

func newFake() *fake {
	return &fake{
		routes:   map[route.Key]route.Entry{},
		nexthops: map[desired.NexthopID]string{nhA: "va", nhB: "vb"},
		devices:  []string{"va", "vb"},
	}
}

func (f *fake) Table() uint32 { return 254 }

func (f *fake) ListRoutes(context.Context) (iter.Seq[route.Entry], error) {
	if f.failList != nil && !errors.Is(f.failList, kernel.ErrInterrupted) {
		return nil, f.failList
	}
	var all []route.Entry
	for _, e := range f.routes {
		if e.Protocol != desired.Protocol {
			e.Route = desired.Route{Prefix: e.Route.Prefix}
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b route.Entry) int {
		return cmp.Compare(a.Route.Prefix.String(), b.Route.Prefix.String())
	})
	return slices.Values(all), f.failList
}

func (f *fake) CreateRoutes(_ context.Context, routes []desired.Route) []error {
	return each(f, routes, func(r desired.Route) error { return f.add(r, false) })
}

func (f *fake) ReplaceRoutes(_ context.Context, routes []desired.Route) []error {
	return each(f, routes, func(r desired.Route) error { return f.add(r, true) })
}

func (f *fake) DeleteRoutes(_ context.Context, keys []route.Key) []error {
	return each(f, keys, func(k route.Key) error {
		if f.routes[k].Protocol != desired.Protocol {
			return syscall.ESRCH
		}
		delete(f.routes, k)
		return nil
	})
}

func (f *fake) add(r desired.Route, replace bool) error {
	k := route.Key{Prefix: r.Prefix, Metric: desired.RouteMetric}
	_, exists := f.routes[k]
	_, known := f.nexthops[r.Nexthop]
	switch {
	case r.Type == desired.RouteDevice && !slices.Contains(f.devices, r.Device):
		return syscall.ENODEV
	case exists && !replace:
		return syscall.EEXIST
	case r.Type == desired.RouteNexthop && !known:
		return syscall.EINVAL
	}
	f.routes[k] = route.Entry{Route: r, Protocol: desired.Protocol, Metric: desired.RouteMetric}
	return nil
}

// each carries out a write for every argument.
func each[T any](f *fake, args []T, do func(T) error) []error {
	errs := make([]error, len(args))
	failed := false
	for i, a := range args {
		var err error
		carriedOut := true
		if f.fault != nil {
			err, carriedOut = f.fault()
		}
		if carriedOut {
			if derr := do(a); err == nil {
				err = derr
			}
		}
		errs[i] = err
		failed = failed || err != nil
	}
	if !failed {
		return nil
	}
	return errs
}

func (f *fake) foreign(_ *testing.T, prefix string, metric uint32, protocol uint8) {
	p := netip.MustParsePrefix(prefix)
	f.routes[route.Key{Prefix: p, Metric: metric}] = route.Entry{Route: dev(prefix, "va"), Protocol: protocol, Metric: metric}
}

func (f *fake) mtu(_ *testing.T, prefix string, mtu int) {
	k := route.Key{Prefix: netip.MustParsePrefix(prefix), Metric: desired.RouteMetric}
	e := f.routes[k]
	e.Route.MTU = mtu
	f.routes[k] = e
}

func (f *fake) remove(_ *testing.T, prefix string, metric uint32) {
	delete(f.routes, route.Key{Prefix: netip.MustParsePrefix(prefix), Metric: metric})
}

func (f *fake) flap(_ *testing.T, device string) {
	for k, e := range f.routes {
		if e.Route.Device == device || e.Route.Type == desired.RouteNexthop && f.nexthops[e.Route.Nexthop] == device {
			delete(f.routes, k)
		}
	}
}

func (f *fake) list(*testing.T) []string {
	var all []string
	for k, e := range f.routes {
		all = append(all, fmt.Sprintf("%s proto %d metric %d", k.Prefix, e.Protocol, k.Metric))
	}
	slices.Sort(all)
	return all
}

func TestTableOnFake(t *testing.T) {
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, &counter{world: newFake()}) })
	}
}

func TestFaults(t *testing.T) {
	refused := func() (error, bool) { return syscall.ENETDOWN, false }
	tests := []struct {
		name  string
		fault func() (error, bool)
		want  error
		lists int // readings by the next, healthy Apply
	}{
		{"refused", refused, syscall.ENETDOWN, 0},
		{"answer lost, not carried out", func() (error, bool) { return kernel.ErrNoAnswer, false }, kernel.ErrNoAnswer, 1},
		{"answer lost, carried out: the same Apply looks", func() (error, bool) { return kernel.ErrNoAnswer, true }, nil, 0},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake()
			c := &counter{world: f}
			tab := route.New(c, quiet)
			n := 0
			f.fault = func() (error, bool) {
				if n++; n%3 == 0 {
					return tc.fault()
				}
				return nil, true
			}
			tab.SetDesired(all)
			if err := tab.Apply(t.Context()); !errors.Is(err, tc.want) {
				t.Fatalf("Apply() = %v; want %v", err, tc.want)
			}
			f.fault = nil
			c.reset()
			apply(t, tab)
			holds(t, c, all)
			if c.lists != tc.lists {
				t.Errorf("%d lists; want %d", c.lists, tc.lists)
			}
			for _, s := range tab.Status() {
				if s.Phase != desired.Done {
					t.Errorf("%v is not done", s)
				}
			}
		})
	}
}

func TestReadingFails(t *testing.T) {
	f := newFake()
	c := &counter{world: f}
	tab := route.New(c, quiet)
	tab.SetDesired(all)
	f.failList = syscall.ENOBUFS
	if err := tab.Apply(t.Context()); !errors.Is(err, syscall.ENOBUFS) || !strings.HasPrefix(err.Error(), "list routes: ") {
		t.Errorf("Apply() = %v", err)
	}
	if c.writes() != 0 {
		t.Errorf("%d writes without knowing the kernel", c.writes())
	}
	if got := tab.Status()[0].Phase; got != desired.Pending {
		t.Errorf("Status()[0].Phase = %v; want pending", got)
	}
	f.failList = kernel.ErrInterrupted // good enough, but to be read again
	apply(t, tab)
	holds(t, &counter{world: &fake{routes: f.routes}}, all)
	f.failList = nil
	c.reset()
	apply(t, tab)
	if c.lists != 1 || c.writes() != 0 {
		t.Errorf("lists, writes = %d, %d; want 1, 0", c.lists, c.writes())
	}
}

// Whatever fails, drifts and conflicts on the way: once it is over the kernel holds what is desired,
// and no foreign route was touched.
func TestConverges(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 3))
		f := newFake()
		for i := range 5 {
			f.foreign(t, prefix(i), uint32(r.IntN(3)*40+40), 4)
		}
		theirs := foreigners(f)
		tab := route.New(f, quiet)
		for range 30 {
			f.fault = func() (error, bool) {
				if r.IntN(4) == 0 {
					return []error{syscall.ENETDOWN, kernel.ErrNoAnswer}[r.IntN(2)], r.IntN(2) == 0
				}
				return nil, true
			}
			tab.SetDesiredPart("local", randomRoutes(r, 0, 12))
			tab.SetDesiredPart("remote", randomRoutes(r, 8, 20))
			if r.IntN(3) == 0 {
				f.flap(t, []string{"va", "vb"}[r.IntN(2)])
				restore(f, theirs) // the foreigner mends his own
				tab.QueueResync()
			}
			_ = tab.Apply(t.Context())
		}
		f.fault = nil
		tab.QueueResync()
		want := randomRoutes(r, 5, 20) // where no foreigner is
		tab.SetDesired(want)
		apply(t, tab)
		holds(t, &counter{world: f}, want)
		if !slices.Equal(slices.Sorted(slices.Values(theirs)), slices.Sorted(slices.Values(foreigners(f)))) || t.Failed() {
			t.Fatalf("seed %d: foreign routes %v; want %v", seed, foreigners(f), theirs)
		}
	}
}

func prefix(i int) string { return fmt.Sprintf("10.0.%d.0/24", i) }

func randomRoutes(r *rand.Rand, from, to int) (all []desired.Route) {
	for i := from; i < to; i++ {
		switch r.IntN(4) {
		case 0:
			all = append(all, via(prefix(i), []desired.NexthopID{nhA, nhB}[r.IntN(2)]))
		case 1:
			all = append(all, dev(prefix(i), []string{"va", "vb"}[r.IntN(2)]))
		case 2:
			all = append(all, blackhole(prefix(i)))
		}
	}
	return all
}

func foreigners(f *fake) (all []string) {
	for _, s := range f.list(nil) {
		if !strings.Contains(s, "proto 80 ") {
			all = append(all, s)
		}
	}
	return all
}

func restore(f *fake, theirs []string) {
	for _, s := range theirs {
		var p string
		var protocol uint8
		var metric uint32
		if _, err := fmt.Sscanf(s, "%s proto %d metric %d", &p, &protocol, &metric); err == nil {
			if _, taken := f.routes[route.Key{Prefix: netip.MustParsePrefix(p), Metric: metric}]; !taken {
				f.foreign(nil, p, metric, protocol)
			}
		}
	}
}
