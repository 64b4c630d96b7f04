// SPDX-License-Identifier: Apache-2.0

// Package dataplane puts what felix/calc computes into the kernel by the real drivers, in the agent's
// order.
package dataplane

import (
	"context"
	"errors"
	"log/slog"

	"github.com/heliograph-dev/heliograph/cni/podnet"
	"github.com/heliograph-dev/heliograph/felix/address"
	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/link"
	"github.com/heliograph-dev/heliograph/felix/neigh"
	"github.com/heliograph-dev/heliograph/felix/nexthop"
	"github.com/heliograph-dev/heliograph/felix/nft"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/route"
	"github.com/heliograph-dev/heliograph/felix/rule"
	"github.com/heliograph-dev/heliograph/felix/sysctl"
)

// Plane is the drivers of one network namespace.
type Plane struct {
	Nexthops *nexthop.Table
	Routes   *route.Table

	conn      *kernel.Conn
	links     *link.Kernel
	filters   *nft.Kernel
	tunnels   *link.Tunnels
	addresses *address.Table
	neigh     *neigh.Table
	probes    [path.Methods]*route.Table
	rules     *rule.Table
	nft       *nft.Table
	sysctl    *sysctl.Table
}

// Open opens the drivers of the calling thread's network namespace. Set and Apply must be called there too,
// since /proc/sys/net is the thread's.
func Open() (*Plane, error) {
	log := slog.New(slog.DiscardHandler)
	conn, err := kernel.Dial()
	links, linkErr := link.Open()
	addresses, addressErr := address.Open()
	neighbours, neighErr := neigh.Open()
	rules, ruleErr := rule.Open()
	filters, nftErr := nft.Open()
	if err := errors.Join(err, linkErr, addressErr, neighErr, ruleErr, nftErr); err != nil {
		return nil, err
	}
	p := &Plane{
		Nexthops: nexthop.New(nexthop.NewKernel(conn), log), Routes: route.New(route.NewKernel(conn, 0), log),
		conn: conn, links: links, filters: filters,
		tunnels: link.New(links, log), addresses: address.New(addresses, log),
		neigh: neigh.New(neighbours, []string{desired.VXLANDevice, desired.VXLANDevice6}, log),
		rules: rule.New(rules, log), nft: nft.New(filters, log), sysctl: sysctl.New(sysctl.Dir(sysctl.DefaultRoot), log),
	}
	for m, table := range [path.Methods]uint32{desired.TableNative, desired.TableIPIP, desired.TableVXLAN} {
		p.probes[m] = route.New(route.NewKernel(conn, table), log)
	}
	return p, nil
}

// Close closes the sockets that it opened and that can be. What is in the kernel stays.
func (p *Plane) Close() {
	_ = p.conn.Close()
	p.links.Close()
	_ = p.filters.Close()
}

// Sent is how many messages about nexthop objects and routes were sent, those for reading included.
func (p *Plane) Sent() uint64 { return p.conn.Sent() }

// Set tells the drivers what there should be. It touches memory only.
func (p *Plane) Set(s calc.RemoteState, l calc.LocalState) {
	p.tunnels.SetDesired(s.VXLANs, s.IPIPs)
	p.addresses.SetOwned(s.NFT.NoNAT)
	p.addresses.SetDesired(s.Addresses)
	p.neigh.SetDesired(s.Neighbours, s.FDB)
	p.Nexthops.SetDesired(s.Nexthops)
	p.Routes.SetDesiredPart("remote", s.Routes)
	p.Routes.SetDesiredPart("local", l.Routes)
	for m, t := range p.probes {
		t.SetDesired(s.ProbeRoutes[m])
	}
	p.rules.SetDesired(s.Rules)
	filter, sysctls := s.NFT, s.Sysctls
	filter.Workloads = l.Workloads
	for _, w := range l.Workloads {
		sysctls = append(sysctls, podnet.Sysctls(w.Device)...)
	}
	p.nft.SetDesired(filter)
	p.sysctl.SetDesired(sysctls)
}

// QueueResync makes the next Apply read nexthop objects and routes again.
func (p *Plane) QueueResync() {
	p.Nexthops.QueueResync()
	p.Routes.QueueResync()
	for _, t := range p.probes {
		t.QueueResync()
	}
}

// Apply makes the kernel so.
func (p *Plane) Apply(ctx context.Context) error {
	steps := []func(context.Context) error{
		p.nft.Apply, p.tunnels.Apply, p.sysctl.Apply, p.addresses.Apply, p.neigh.Apply, p.Nexthops.Apply, p.Routes.Apply,
	}
	for _, t := range p.probes {
		steps = append(steps, t.Apply)
	}
	for _, step := range append(steps, p.rules.Apply, p.Nexthops.ApplyDeletes) {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}
