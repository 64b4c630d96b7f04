// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/heliograph-dev/heliograph/felix/address"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/link"
	"github.com/heliograph-dev/heliograph/felix/neigh"
	"github.com/heliograph-dev/heliograph/felix/nexthop"
	"github.com/heliograph-dev/heliograph/felix/nft"
	"github.com/heliograph-dev/heliograph/felix/route"
	"github.com/heliograph-dev/heliograph/felix/rule"
	"github.com/heliograph-dev/heliograph/felix/sysctl"
)

// drivers are all that write the kernel, on the sockets that they keep.
type drivers struct {
	conn    *kernel.Conn
	links   *link.Kernel
	link    *link.Tunnels
	address *address.Table
	neigh   *neigh.Table
	nexthop *nexthop.Table
	route   *route.Table
	rule    *rule.Table
	probes  []*route.Table // of the tables that probes go by, in the order of probeTables
	nft     *nft.Table
	rules   *nft.Kernel
	sysctl  *sysctl.Table

	nftPokes chan struct{}
}

// probeTables are the routing tables of ours beside the main one.
var probeTables = [...]uint32{desired.TableNative, desired.TableIPIP, desired.TableVXLAN}

// openDrivers opens the sockets. Nothing is written before the first Apply.
func openDrivers(opts Options, log *slog.Logger) (drivers, error) {
	d := drivers{nftPokes: make(chan struct{}, 1)}
	var err error
	if d.conn, err = kernel.Dial(); err != nil {
		return d, fmt.Errorf("open netlink socket: %w", err)
	}
	if d.links, err = link.Open(); err != nil {
		return d, fmt.Errorf("open netlink socket: %w", err)
	}
	addresses, err := address.Open()
	if err != nil {
		return d, fmt.Errorf("open netlink socket: %w", err)
	}
	neighbours, err := neigh.Open()
	if err != nil {
		return d, fmt.Errorf("open netlink socket: %w", err)
	}
	d.link = link.New(d.links, log)
	d.address = address.New(addresses, log)
	d.neigh = neigh.New(neighbours, []string{desired.VXLANDevice, desired.VXLANDevice6}, log)
	d.nexthop = nexthop.New(nexthop.NewKernel(d.conn), log)
	d.route = route.New(route.NewKernel(d.conn, 0), log)
	for _, table := range probeTables {
		d.probes = append(d.probes, route.New(route.NewKernel(d.conn, table), log))
	}
	marks, err := rule.Open()
	if err != nil {
		return d, fmt.Errorf("open netlink socket: %w", err)
	}
	d.rule = rule.New(marks, log)
	d.sysctl = sysctl.New(sysctl.Dir(opts.SysctlRoot), log)
	if d.rules, err = nft.Open(); err != nil {
		return d, fmt.Errorf("open nftables: %w", err)
	}
	d.nft = nft.New(d.rules, log)
	return d, nil
}

// ownsPort says whether a netlink notification was caused by one of our own sockets.
func (d drivers) ownsPort(port uint32) bool { return port == d.conn.PortID() }

// adopt reads what an earlier agent left in the kernel.
func (d drivers) adopt(ctx context.Context) (adoption, error) {
	routes, err := d.route.Actual(ctx)
	if err != nil {
		return adoption{}, fmt.Errorf("read our routes: %w", err)
	}
	nexthops, err := d.nexthop.Actual(ctx)
	if err != nil {
		return adoption{}, fmt.Errorf("read our nexthop objects: %w", err)
	}
	return adopt(routes, nexthops), nil
}

// clearProbes deletes our rules, and then the routes of the tables that they lead to.
func (d drivers) clearProbes(ctx context.Context) error {
	d.rule.SetDesired(nil)
	d.rule.QueueResync()
	errs := []error{d.rule.Apply(ctx)}
	for _, t := range d.probes {
		t.SetDesired(nil)
		t.QueueResync()
		errs = append(errs, t.Apply(ctx))
	}
	return errors.Join(errs...)
}

// monitorNFT pokes when somebody else changes our nft table.
func (d drivers) monitorNFT(ctx context.Context) error {
	return d.rules.Monitor(ctx, func() {
		select {
		case d.nftPokes <- struct{}{}:
		default:
		}
	})
}
