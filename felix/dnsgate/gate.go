// SPDX-License-Identifier: Apache-2.0

// Package dnsgate has the kernel hold the DNS answers to some pods until they have been read, so that
// policy about names of domains is in force before a pod knows where a name is. It owns the nftables
// table `inet heliograph-dns`, and NFQUEUE 0x6865.
//
//	table inet heliograph-dns {
//	    set pods        { type ifname }     # of pods that policy lets reach names
//	    set resolvers-4 { type ipv4_addr }  # whose answers are believed
//	    set resolvers-6 { type ipv6_addr }
//	    chain forward { type filter hook forward priority filter - 1
//	        ct direction reply ct original proto-dst 53 oifname @pods ip saddr @resolvers-4 queue flags bypass to 26725
//	        ... and ip6 saddr @resolvers-6
//	    }
//	    chain output { type filter hook output priority filter - 1; the same, for resolvers on the node itself }
//	}
//
// An answer is what conntrack knows to be one: the pod has asked that resolver, at port 53. At the forward
// hook the source of what a service's endpoint answers is the endpoint, so resolvers are endpoints. Without an
// agent that listens the kernel lets answers pass (bypass): DNS works, and nothing new is learnt.
package dnsgate

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
)

// Desired is who is listened to. Without a device or a resolver there is no table.
type Desired struct {
	Devices   []string
	Resolvers []netip.Addr
}

func (d Desired) empty() bool { return len(d.Devices) == 0 || len(d.Resolvers) == 0 }

func (d Desired) equal(o Desired) bool {
	return d.empty() && o.empty() || slices.Equal(d.Devices, o.Devices) && slices.Equal(d.Resolvers, o.Resolvers)
}

// Handle is the part of the kernel that Gate uses.
type Handle interface {
	// Read returns what the table holds; false if there is none, or it is not as it should be.
	Read() (Desired, bool, error)
	// Write makes the table anew.
	Write(d Desired) error
	// Change adds and removes elements of the table.
	Change(add, remove Desired) error
	// Delete removes the table; one that is gone is no error.
	Delete() error
}

// Gate keeps the table. It is used by one goroutine.
type Gate struct {
	handle  Handle
	desired Desired
	actual  Desired
	known   bool // actual is what the kernel has
	whole   bool // the table is as it should be, but for elements
}

// New makes a Gate. It knows nothing of what is in the kernel before its first Apply.
func New(h Handle) *Gate { return &Gate{handle: h} }

// SetDesired stores what Apply is to make true.
func (g *Gate) SetDesired(d Desired) {
	slices.Sort(d.Devices)
	slices.SortFunc(d.Resolvers, netip.Addr.Compare)
	g.desired = d
}

// QueueResync has the next Apply read the kernel.
func (g *Gate) QueueResync() { g.known = false }

// Apply makes it true. Only what differs is changed: an answer that passes meanwhile is still held.
func (g *Gate) Apply(context.Context) error {
	if g.known && g.actual.equal(g.desired) {
		return nil
	}
	if !g.known {
		var err error
		if g.actual, g.whole, err = g.handle.Read(); err != nil {
			return fmt.Errorf("read the table of DNS: %w", err)
		}
	}
	g.known = false
	if err := g.write(); err != nil {
		return fmt.Errorf("write the table of DNS: %w", err)
	}
	g.actual, g.known, g.whole = g.desired, true, !g.desired.empty()
	return nil
}

func (g *Gate) write() error {
	switch {
	case g.desired.empty():
		return g.handle.Delete()
	case !g.whole:
		return g.handle.Write(g.desired)
	case g.actual.equal(g.desired):
		return nil
	}
	return g.handle.Change(missing(g.desired, g.actual), missing(g.actual, g.desired))
}

// missing is what a has and b does not.
func missing(a, b Desired) Desired {
	var d Desired
	for _, device := range a.Devices {
		if !slices.Contains(b.Devices, device) {
			d.Devices = append(d.Devices, device)
		}
	}
	for _, ip := range a.Resolvers {
		if !slices.Contains(b.Resolvers, ip) {
			d.Resolvers = append(d.Resolvers, ip)
		}
	}
	return d
}
