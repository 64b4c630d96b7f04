// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/felix/conntrack"
	"github.com/heliograph-dev/heliograph/felix/dnsgate"
	"github.com/heliograph-dev/heliograph/policy"
)

// Gate has the kernel hold answers of DNS: dnsgate.Gate.
type Gate interface {
	SetDesired(d dnsgate.Desired)
	QueueResync()
	Apply(ctx context.Context) error
}

// Names is what the rest of the agent knows of names of domains.
type Names struct {
	Gate Gate
	// Resolvers are those whose answers are believed, as FelixConfiguration's dnsTrustedServers has them.
	Resolvers func() []string
	// Want hears, in order, which names and patterns are asked for now.
	Want func(patterns []string)
}

// namesPart is what the loop keeps of them.
type namesPart struct {
	Names
	patterns map[string]struct{} // nil: Want has not been told anything yet
	devices  []string
}

// take follows a change of the state: which names are asked for, and by which pods.
func (n *namesPart) take(d policy.Delta, s *policy.State) {
	changed := n.patterns == nil
	if changed {
		n.patterns = map[string]struct{}{}
	}
	for _, c := range d.Sets {
		pattern, ok := c.ID.Domain()
		switch {
		case ok && c.Op == policy.Added:
			n.patterns[pattern] = struct{}{}
			changed = true
		case ok && c.Op == policy.Removed:
			delete(n.patterns, pattern)
			changed = true
		}
	}
	if changed {
		n.Want(slices.Sorted(maps.Keys(n.patterns)))
	}
	if changed || len(n.patterns) > 0 && len(d.Policies)+len(d.Endpoints) > 0 {
		n.devices = namedDevices(s)
	}
}

// namedDevices are the devices of the pods that a policy lets reach names. What the node itself asks passes no
// hook of the gate: for it names stand for what pods were told.
func namedDevices(s *policy.State) (devices []string) {
	byName := map[policy.PolicyID]bool{}
	for id, p := range s.Policies {
		byName[id] = slices.ContainsFunc(p.Egress, asksForName)
	}
	for of, ep := range s.Endpoints {
		if !of.Host && slices.ContainsFunc(ep.Egress.Tiers, func(t policy.Tier) bool {
			return slices.ContainsFunc(t.Policies, func(id policy.PolicyID) bool { return byName[id] })
		}) {
			devices = append(devices, ep.Device)
		}
	}
	return devices
}

func asksForName(r policy.Rule) bool {
	return slices.ContainsFunc(r.Match.Destination.Within, func(a policy.Addresses) bool {
		return slices.ContainsFunc(a.Sets, func(id policy.SetID) bool { _, ok := id.Domain(); return ok })
	})
}

// serviceServer begins the name of a service among the resolvers.
const serviceServer = "k8s-service:"

// defaultServerNamespace is that of services without one.
const defaultServerNamespace = "kube-system"

// applyNames has the kernel hold the answers to pods before policy about names is in force for them.
func (e *Enforcer) applyNames(ctx context.Context, d policy.Delta) error {
	e.names.take(d, e.state)
	desired := dnsgate.Desired{Devices: e.names.devices}
	if len(desired.Devices) > 0 {
		desired.Resolvers = e.resolvers()
	}
	e.names.Gate.SetDesired(desired)
	return e.names.Gate.Apply(ctx)
}

func (e *Enforcer) resolvers() (addrs []netip.Addr) {
	for _, text := range e.names.Resolvers() {
		service, ok := strings.CutPrefix(text, serviceServer)
		if !ok {
			if ip, err := netip.ParseAddr(text); err == nil { // the API takes no other
				addrs = append(addrs, ip.Unmap())
			}
			continue
		}
		id := policy.EndpointID{Namespace: defaultServerNamespace, Name: service}
		if namespace, name, found := strings.Cut(service, "/"); found {
			id = policy.EndpointID{Namespace: namespace, Name: name}
		}
		addrs = append(addrs, e.compiler.EndpointsOf(id)...)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// Obeyed returns when the kernel obeys all that the feed had when it was called, or ctx ends.
func (e *Enforcer) Obeyed(ctx context.Context) error {
	e.mu.RLock()
	want := e.started + 1 // the run under way may have taken from the feed before
	e.mu.RUnlock()
	for {
		e.mu.RLock()
		moved, obeyed, err := e.moved, e.obeyed, e.lastErr
		e.mu.RUnlock()
		if obeyed >= want {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			if err == nil {
				err = ctx.Err()
			}
			return err
		}
	}
}

// Used returns those of the addresses to which this node has connections.
func (e *Enforcer) Used(ctx context.Context, addrs map[netip.Addr]bool) (map[netip.Addr]bool, error) {
	used := map[netip.Addr]bool{}
	// Nothing is deleted: it is the one walk through the connections that there is.
	_, err := e.opts.Flows.DeleteIf(ctx, func(f conntrack.Flow) bool {
		if addrs[f.Dst] {
			used[f.Dst] = true
		}
		return false
	})
	return used, err
}
