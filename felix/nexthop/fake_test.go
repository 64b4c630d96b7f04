// SPDX-License-Identifier: Apache-2.0

package nexthop_test

import (
	"context"
	"errors"
	"iter"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/nexthop"
)

// fake holds nexthop objects with the kernel's rules.
type fake struct {
	objects map[desired.NexthopID]nexthop.Entry
	fault   func() error // asked for each write; an error means that it is not carried out
}

func newFake() *fake { return &fake{objects: map[desired.NexthopID]nexthop.Entry{}} }

func (f *fake) ListNexthops(context.Context) (iter.Seq[nexthop.Entry], error) {
	var all []nexthop.Entry
	for _, id := range slices.Sorted(maps.Keys(f.objects)) {
		all = append(all, f.objects[id])
	}
	return slices.Values(all), nil
}

func (f *fake) CreateNexthops(_ context.Context, nhs []desired.Nexthop) []error {
	return each(f, nhs, func(n desired.Nexthop) error {
		if _, ok := f.objects[n.ID]; ok {
			return syscall.EEXIST
		}
		return f.put(n)
	})
}

func (f *fake) ReplaceNexthops(_ context.Context, nhs []desired.Nexthop) []error {
	return each(f, nhs, func(n desired.Nexthop) error {
		if old, ok := f.objects[n.ID]; ok && (old.Nexthop.Group == "") != (n.Group == "") {
			return syscall.EINVAL
		}
		return f.put(n)
	})
}

func (f *fake) DeleteNexthops(_ context.Context, ids []desired.NexthopID) []error {
	return each(f, ids, func(id desired.NexthopID) error {
		if _, ok := f.objects[id]; !ok {
			return syscall.ENOENT
		}
		f.drop(id)
		return nil
	})
}

func (f *fake) put(n desired.Nexthop) error {
	switch {
	case n.Group == "" && !n.Gateway.IsValid():
		return syscall.EINVAL
	case n.Group == "" && n.Device != "va" && n.Device != "vb":
		return syscall.ENODEV
	}
	for _, m := range n.Members() {
		if _, ok := f.objects[m]; !ok {
			return syscall.EINVAL
		}
	}
	f.objects[n.ID] = nexthop.Entry{Nexthop: n, Protocol: desired.Protocol}
	return nil
}

// drop deletes an object; groups lose it, and go with their last member.
func (f *fake) drop(id desired.NexthopID) {
	delete(f.objects, id)
	for gid, g := range f.objects {
		members := g.Nexthop.Members()
		left := slices.DeleteFunc(slices.Clone(members), func(m desired.NexthopID) bool { return m == id })
		switch {
		case len(left) == len(members):
		case len(left) == 0:
			delete(f.objects, gid)
		default:
			g.Nexthop.Group = desired.EncodeGroup(left)
			f.objects[gid] = g
		}
	}
}

func each[T any](f *fake, args []T, do func(T) error) []error {
	errs := make([]error, len(args))
	for i, a := range args {
		if f.fault != nil {
			errs[i] = f.fault()
		}
		if errs[i] == nil {
			errs[i] = do(a)
		}
	}
	return errs
}

func (f *fake) foreign(_ *testing.T, id desired.NexthopID) {
	f.objects[id] = nexthop.Entry{Nexthop: desired.Nexthop{ID: id, Gateway: netip.MustParseAddr("169.254.9.9")}, Protocol: 4}
}

func (f *fake) remove(_ *testing.T, id desired.NexthopID) { f.drop(id) }

func (f *fake) weigh(_ *testing.T, id, _ desired.NexthopID) {
	e := f.objects[id]
	e.Nexthop.Group += "w"
	f.objects[id] = e
}

func (f *fake) flap(_ *testing.T, device string) {
	for id, e := range f.objects {
		if e.Nexthop.Device == device {
			f.drop(id)
		}
	}
}

func TestTableOnFake(t *testing.T) {
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, &counter{world: newFake()}) })
	}
}

// Whatever fails on the way: once it is over the kernel holds what is desired.
func TestConverges(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 4))
		f := newFake()
		tab := nexthop.New(f, quiet)
		var want []desired.Nexthop
		for range 20 {
			f.fault = func() error {
				if r.IntN(4) == 0 {
					return []error{syscall.ENETDOWN, kernel.ErrNoAnswer}[r.IntN(2)]
				}
				return nil
			}
			if r.IntN(4) == 0 {
				f.flap(t, []string{"va", "vb"}[r.IntN(2)])
				tab.QueueResync()
			}
			want = random(r)
			tab.SetDesired(want)
			_ = errors.Join(tab.Apply(t.Context()), tab.ApplyDeletes(t.Context()))
		}
		f.fault = nil
		apply(t, tab)
		apply(t, tab) // a group that lost a member by a deletion is seen by the next
		holds(t, &counter{world: f}, want)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// random makes single ones and groups of them.
func random(r *rand.Rand) (all []desired.Nexthop) {
	var ids []desired.NexthopID
	for id := range desired.NexthopID(6) {
		if r.IntN(2) == 0 {
			all = append(all, single(id+1, []string{"169.254.1.1", "169.254.1.2"}[r.IntN(2)], []string{"va", "vb"}[r.IntN(2)]))
			ids = append(ids, id+1)
		}
	}
	for id := range desired.NexthopID(4) {
		if len(ids) > 0 && r.IntN(2) == 0 {
			r.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
			all = append(all, group(10+id, slices.Clone(ids[:1+r.IntN(len(ids))])...))
		}
	}
	return all
}
