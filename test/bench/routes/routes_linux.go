// SPDX-License-Identifier: Apache-2.0

// Package routes measures the programming of kernel routes: heliograph's drivers beside bare
// netlink, vishvananda/netlink, `ip -batch`, and kube-router's way of writing everything again.
package routes

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/nexthop"
	"github.com/heliograph-dev/heliograph/felix/route"
	"github.com/heliograph-dev/heliograph/test/bench/raw"
	"github.com/heliograph-dev/heliograph/test/bench/sandbox"
	"github.com/heliograph-dev/heliograph/test/bench/table"
)

const (
	rounds       = 3
	gateways     = 250
	bits         = 26
	protocol     = desired.Protocol
	device       = "v0"
	rtaNexthopID = 30
	singleIDs    = 1<<31 | 1<<16 // ids of the gateways' nexthop objects
	groupIDs     = 1<<31 | 1<<17 // ids of the groups of one that routes refer to
)

func address(i int) netip.Addr {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 10<<24|uint32(i)<<6)
	return netip.AddrFrom4(a)
}

func gateway(g int) netip.Addr { return netip.AddrFrom4([4]byte{172, 31, 1, byte(1 + g)}) }

// nexthops are the objects of the drivers: a single one and a group for each gateway.
func nexthops() (all []desired.Nexthop) {
	for g := range gateways {
		single := desired.NexthopID(singleIDs + g)
		all = append(all, desired.Nexthop{ID: single, Gateway: gateway(g), Device: device},
			desired.Nexthop{ID: desired.NexthopID(groupIDs + g), Group: desired.EncodeGroup([]desired.NexthopID{single})})
	}
	return all
}

func routesTo(n int) []desired.Route {
	all := make([]desired.Route, n)
	for i := range all {
		all[i] = desired.Route{
			Prefix:  netip.PrefixFrom(address(i), bits),
			Type:    desired.RouteNexthop,
			Nexthop: desired.NexthopID(groupIDs + i/4%gateways),
		}
	}
	return all
}

// Measure runs all of it, in less than two minutes. It must run in a network namespace of its own.
func Measure(ctx context.Context) ([]table.Table, error) {
	for _, args := range [][]string{
		{"link", "add", device, "type", "veth", "peer", "name", "v1"},
		{"link", "set", "v1", "up"},
		{"link", "set", device, "up"},
		{"address", "add", "172.31.0.1/16", "dev", device},
	} {
		if err := sandbox.Run("ip", args...); err != nil {
			return nil, err
		}
	}
	r, err := raw.Open()
	if err != nil {
		return nil, err
	}
	b := &bench{ctx: ctx, raw: r}
	var all []table.Table
	for _, f := range []func() (table.Table, error){
		func() (table.Table, error) { return b.programming(10_000) },
		func() (table.Table, error) { return b.programming(100_000) },
		b.resync, b.arriving,
	} {
		t, err := f()
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

type bench struct {
	ctx  context.Context
	raw  *raw.Socket
	link uint32
}

// drivers are heliograph's, on a connection of their own.
type drivers struct {
	conn     *kernel.Conn
	nexthops *nexthop.Table
	routes   *route.Table
}

func newDrivers() (*drivers, error) {
	conn, err := kernel.Dial()
	if err != nil {
		return nil, err
	}
	quiet := slog.New(slog.DiscardHandler)
	return &drivers{conn, nexthop.New(nexthop.NewKernel(conn), quiet), route.New(route.NewKernel(conn, 0), quiet)}, nil
}

func (d *drivers) apply(ctx context.Context) error {
	if err := d.nexthops.Apply(ctx); err != nil {
		return err
	}
	if err := d.routes.Apply(ctx); err != nil {
		return err
	}
	return d.nexthops.ApplyDeletes(ctx)
}

// clear empties the tables. Deleting a nexthop object deletes its routes, which is the fastest way.
func (b *bench) clear(n int) error {
	for _, first := range []uint32{groupIDs, singleIDs} {
		for g := range uint32(gateways) {
			_ = b.raw.Each(1, func(int) int { // not there, most times
				at := b.raw.Begin(unix.RTM_DELNEXTHOP, 0, 0, 0, 0, 0, 0, 0, 0, 0)
				b.raw.Attr32(unix.NHA_ID, first+g)
				b.raw.End(at)
				return at
			})
		}
	}
	for i := range n {
		if b.raw.Each(1, func(int) int { return b.rawRoute(unix.RTM_DELROUTE, 0, i, 0, 0) }) != nil {
			break
		}
	}
	if left, err := b.dump(); err != nil || left != 0 {
		return fmt.Errorf("%d routes are left: %w", left, err)
	}
	return nil
}

// timed runs f after a garbage collection, so that no one pays for what went before.
func timed(f func() error) (time.Duration, error) {
	runtime.GC()
	start := time.Now()
	err := f()
	return time.Since(start), err
}

// resync compares reading an unchanged table with a bare dump.
func (b *bench) resync() (table.Table, error) {
	const n = 100_000
	d, err := newDrivers()
	if err != nil {
		return table.Table{}, err
	}
	defer func() { _ = d.conn.Close() }()
	d.nexthops.SetDesired(nexthops())
	d.routes.SetDesired(routesTo(n))
	if err := d.apply(b.ctx); err != nil {
		return table.Table{}, err
	}
	var ours, theirs []time.Duration
	var messages uint64
	for range 2*rounds + 1 {
		d.routes.QueueResync()
		before := d.conn.Sent()
		t, err := timed(func() error { return d.routes.Apply(b.ctx) })
		if err != nil {
			return table.Table{}, err
		}
		messages = d.conn.Sent() - before
		ours = append(ours, t)
		t, err = timed(func() error {
			if count, err := b.dump(); err != nil || count != n {
				return fmt.Errorf("raw dump of %d routes: %w", count, err)
			}
			return nil
		})
		if err != nil {
			return table.Table{}, err
		}
		theirs = append(theirs, t)
	}
	us, them := table.Median(ours), table.Median(theirs)
	return table.Table{
		Title: "Resync of 100,000 unchanged routes",
		Note:  "QueueResync and Apply, beside a bare dump that counts destinations. The two requests of a resync are its dumps, one for each family.",
		Rows: []table.Row{
			{What: "time", Ours: table.Millis(us), Beside: "raw dump", Theirs: table.Millis(them), Ratio: us.Seconds() / them.Seconds(), Target: table.AtMost(3)},
			{What: "requests", Ours: fmt.Sprint(messages), Beside: "two dumps, no write", Theirs: "2", Ratio: float64(messages) / 2, Target: table.AtMost(1)},
		},
	}, b.clear(n)
}

// arrive lets n routes arrive one by one beside some that are there, and returns the time and the
// number of messages that took. The new ones come at the end of one list with the old, or as a part
// of their own.
func (b *bench) arrive(n, there int, asPart bool) (time.Duration, uint64, error) {
	d, err := newDrivers()
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = d.conn.Close() }()
	d.nexthops.SetDesired(nexthops())
	all := routesTo(there + n)
	d.routes.SetDesiredPart("remote", all[:there:there])
	if err := d.apply(b.ctx); err != nil {
		return 0, 0, err
	}
	before := d.conn.Sent()
	runtime.GC()
	var total time.Duration
	for i := range n {
		part, list := "remote", all[:there+i+1]
		if asPart {
			part, list = "local", all[there:there+i+1]
		}
		list = slices.Clone(list) // the caller's work
		start := time.Now()
		d.routes.SetDesiredPart(part, list)
		if err := d.apply(b.ctx); err != nil {
			return 0, 0, err
		}
		total += time.Since(start)
	}
	return total, d.conn.Sent() - before, b.clear(0)
}
