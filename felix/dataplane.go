// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/heliograph-dev/heliograph/cni/podnet"
	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/route"
)

// Driver keeps one kernel subsystem equal to its desired values.
type Driver interface {
	QueueResync()
	Apply(ctx context.Context) error
	Status() []desired.Status
}

// step is one driver in the order of Apply.
type step struct {
	name   string
	driver Driver
	kinds  kernel.Kind // pokes that make it read the kernel again
	apply  func(context.Context) error
}

// dataplane applies all drivers in order.
type dataplane struct {
	drivers
	steps   []step
	metrics *metrics
	heart   *heart
	remote  calc.RemoteState
	local   calc.LocalState
	failed  map[string]error            // of the last apply, by step
	undone  map[string][]desired.Status // of the steps that failed: what is not as desired

	shadowed []route.Entry
	lookFor  bool // the routes that shadow ours may be others now

	leaving leaving
}

func newDataplane(d drivers, m *metrics, h *heart) *dataplane {
	dp := &dataplane{drivers: d, metrics: m, heart: h, lookFor: true, leaving: leaving{linger: tunnelLinger}}
	dp.steps = []step{
		// The base chains drop what comes from or goes to a device that nobody knows: first of all,
		// fail closed. A pod's device is let in by the same transaction that knows its addresses.
		{name: "nft", driver: d.nft},
		// Tunnels stand before they are needed, ...
		{name: "link", driver: d.link, kinds: kernel.Link},
		// ... forwarding, and what a device needs, as soon as the device is there, ...
		{name: "sysctl", driver: d.sysctl, kinds: kernel.Link},
		// ... the node's own addresses before the routes that prefer them as their source, ...
		{name: "address", driver: d.address, kinds: kernel.Address},
		// ... and neighbours before the routes that lead to them.
		{name: "neigh", driver: d.neigh, kinds: kernel.Neighbour | kernel.Link},
		// A change of path happens here, in one message per node and family.
		{name: "nexthop", driver: d.nexthop, kinds: kernel.Nexthop, apply: dp.applyNexthops},
		{name: "route", driver: d.route, kinds: kernel.Route, apply: dp.applyRoutes},
		// Probes come last: the rules before what they lead to would let them go nowhere.
		{name: "probe routes", driver: d.probes, kinds: kernel.Route},
		{name: "rule", driver: d.rule, kinds: kernel.Rule},
		// What nothing refers to any more goes when all routes have left it.
		{name: "unused nexthops", driver: d.nexthop, apply: dp.applyUnused},
	}
	return dp
}

// setRemote and setLocal store; they touch no kernel. Tunnels that a state has no more go before all that
// relies on them: follow is for who minds.
func (d *dataplane) setRemote(s calc.RemoteState) {
	d.remote, d.lookFor = s, true
	d.link.SetDesired(s.VXLANs, s.IPIPs)
	d.address.SetOwned(s.NFT.NoNAT)
	d.address.SetDesired(s.Addresses)
	d.neigh.SetDesired(s.Neighbours, s.FDB)
	d.nexthop.SetDesired(s.Nexthops)
	d.route.SetDesiredPart("remote", s.Routes)
	d.rule.SetDesired(s.Rules)
	for m, table := range d.probes {
		table.SetDesired(s.ProbeRoutes[m])
	}
	d.setShared()
}

func (d *dataplane) setLocal(s calc.LocalState) {
	d.local = s
	d.route.SetDesiredPart("local", s.Routes)
	d.setShared()
}

// setShared stores what follows from both halves.
func (d *dataplane) setShared() {
	f := d.remote.NFT
	f.Workloads = d.local.Workloads
	d.nft.SetDesired(f)
	sysctls := slices.Clone(d.remote.Sysctls)
	for _, w := range d.local.Workloads {
		sysctls = append(sysctls, podnet.Sysctls(w.Device)...)
	}
	d.sysctl.SetDesired(sysctls)
}

// queueResync makes the drivers that a poke concerns read the kernel again.
func (d *dataplane) queueResync(kinds kernel.Kind) {
	d.lookFor = d.lookFor || kinds&kernel.Route != 0
	for _, s := range d.steps {
		if kinds == kernel.All || s.kinds&kinds != 0 {
			s.driver.QueueResync()
		}
	}
}

// apply makes the kernel as desired. One driver's failure does not stop the others: what they can
// do, they do, and the failure is tried again.
func (d *dataplane) apply(ctx context.Context) error {
	var errs []error
	d.failed, d.undone = map[string]error{}, map[string][]desired.Status{}
	for _, s := range d.steps {
		run := s.driver.Apply
		if s.apply != nil {
			run = s.apply
		}
		start := time.Now()
		d.heart.Begin(s.name, start)
		err := run(ctx)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
			d.failed[s.name], d.undone[s.name] = err, undone(s.driver)
		}
		d.metrics.observeApply(s.name, time.Since(start), err, len(d.undone[s.name]))
	}
	return errors.Join(errs...)
}

// applyNexthops tells the routes if objects vanished: the kernel deletes the routes with them, and
// says nothing.
func (d *dataplane) applyNexthops(ctx context.Context) error {
	err := d.nexthop.Apply(ctx)
	if d.nexthop.RoutesLost() {
		d.route.QueueResync()
		d.probes.QueueResync()
		d.lookFor = true
	}
	return err
}

func (d *dataplane) applyRoutes(ctx context.Context) error {
	err := d.route.Apply(ctx)
	if d.lookFor || err != nil {
		d.shadowed, d.lookFor = d.route.Shadowed(), err != nil
	}
	return err
}

// applyUnused deletes unused nexthop objects after the routes have left them; not after a failure, since
// the kernel would delete the routes that could not leave.
func (d *dataplane) applyUnused(ctx context.Context) error {
	if d.failed["route"] != nil || d.failed["probe routes"] != nil {
		return nil
	}
	return d.nexthop.ApplyDeletes(ctx)
}

// problems lists what is not as it should be, for status.
func (d *dataplane) problems() []string {
	var out []string
	for _, s := range d.steps {
		if d.failed[s.name] == nil {
			continue
		}
		before := len(out)
		for _, o := range d.undone[s.name] {
			if o.Phase == desired.Failed && len(out) < maxProblems {
				out = append(out, fmt.Sprintf("%s: %s", o.Object, o.Error))
			}
		}
		if len(out) == before {
			out = append(out, fmt.Sprintf("%s: %v", s.name, d.failed[s.name]))
		}
	}
	return out
}

// podErrors are failures that concern single pods, by device.
type podErrors map[string]error

// Error implements error.
func (e podErrors) Error() string { return errors.Join(e.Unwrap()...).Error() }

// Unwrap lists the failures in the order of the devices.
func (e podErrors) Unwrap() []error {
	var errs []error
	for _, device := range slices.Sorted(maps.Keys(e)) {
		errs = append(errs, e[device])
	}
	return errs
}

// podError is what the filter failed with, or podErrors: the routes to pods whose devices are there.
func (d *dataplane) podError(there map[string]bool) error {
	if err := d.failed["nft"]; err != nil {
		return err
	}
	if d.failed["route"] == nil {
		return nil
	}
	device := map[string]string{}
	for _, r := range d.local.Routes {
		if there[r.Device] {
			device["route "+r.Prefix.String()] = r.Device
		}
	}
	failed := podErrors{}
	for _, s := range d.undone["route"] {
		if dev, ok := device[s.Object]; ok {
			failed[dev] = fmt.Errorf("%s: %w", s.Object, d.failed["route"])
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return failed
}

// undone returns what a driver has not brought about.
func undone(d Driver) []desired.Status {
	return slices.DeleteFunc(d.Status(), func(s desired.Status) bool { return s.Phase == desired.Done })
}
