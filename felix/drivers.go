// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/heliograph-dev/heliograph/felix/address"
	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/capability"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/link"
	"github.com/heliograph-dev/heliograph/felix/neigh"
	"github.com/heliograph-dev/heliograph/felix/nexthop"
	"github.com/heliograph-dev/heliograph/felix/nft"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/route"
	"github.com/heliograph-dev/heliograph/felix/rule"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
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
	probes  probeRoutes
	nft     *nft.Table
	rules   *nft.Kernel
	sysctl  *sysctl.Table

	nftPokes chan struct{}
}

// probeRoutes are the drivers of the tables that probes go by, one for each method.
type probeRoutes [path.Methods]*route.Table

var _ Driver = probeRoutes{}

// QueueResync implements Driver.
func (p probeRoutes) QueueResync() {
	for _, t := range p {
		t.QueueResync()
	}
}

// Apply implements Driver.
func (p probeRoutes) Apply(ctx context.Context) error {
	var errs []error
	for m, t := range p {
		if err := t.Apply(ctx); err != nil {
			errs = append(errs, fmt.Errorf("table of %s: %w", path.Method(m), err))
		}
	}
	return errors.Join(errs...)
}

// Status implements Driver.
func (p probeRoutes) Status() []desired.Status {
	var all []desired.Status
	for m, t := range p {
		for _, s := range t.Status() {
			s.Object = fmt.Sprintf("probe %s by %s", s.Object, path.Method(m))
			all = append(all, s)
		}
	}
	return all
}

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
	for m, table := range calc.ProbeTables {
		d.probes[m] = route.New(route.NewKernel(d.conn, table), log)
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
	err := d.rule.Apply(ctx)
	for _, t := range d.probes {
		t.SetDesired(nil)
	}
	d.probes.QueueResync()
	return errors.Join(err, d.probes.Apply(ctx))
}

// linkName is the name of a device, or empty if it is gone.
func (d drivers) linkName(index int) string {
	name, _ := d.conn.LinkName(index)
	return name
}

// probeCapabilities finds out what this node's kernel can do. What cannot be found out is not offered to
// other nodes, but for VXLAN, without which there may be no way at all: its driver will tell what is wrong.
func probeCapabilities(ctx context.Context, log *slog.Logger) snapshot.Capabilities {
	r, err := capability.Probe(ctx, log)
	if err != nil {
		log.Warn("not all that the kernel can do is known", "error", err)
	}
	c := snapshot.Capabilities{Why: map[path.Capabilities]string{
		path.CanIPIP: r.Reasons[capability.IPIP], path.CanVXLAN: r.Reasons[capability.VXLAN],
	}}
	if r.IPIP {
		c.Can |= path.CanIPIP
	}
	if r.VXLAN || err != nil {
		c.Can |= path.CanVXLAN
	}
	return c
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
