// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"maps"
	"slices"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/policy"
)

// What is there only while a host has an endpoint, behind the other base chains:
//
//	chain host-input { type filter hook input priority filter + 3
//	    ct state established,related accept
//	    iifname "lo" accept
//	    ... a pod's neighbour discovery passes, as at input-egress
//	    iifname "eth0" goto i-…                         # failsafes first; what they leave, policies decide
//	    goto i-…                                         # of "*"
//	}
//	chain host-output { type filter hook output priority filter + 2
//	    ... and the same with oifname and e-…; what goes to the node's own pods passes
//	}
//
// Devices stand in rules and not in a map, whose elements are those of the present generation: a packet that
// is on its way while endpoints change finds the chains that go with its rules. There is no moment
// in which a failsafe is not met.

// hosts are the endpoints of the node itself.
type hosts struct {
	all   map[policy.EndpointID]*policy.Endpoint
	out   *rendering // nil: none
	dirty bool
}

// updateHost follows a host's endpoint; nil: it is gone.
func (t *Table) updateHost(id policy.EndpointID, e *policy.Endpoint) {
	t.hosts.dirty = true
	if e == nil {
		delete(t.hosts.all, id)
		return
	}
	t.hosts.all[id] = e
}

// renderHosts brings the base chains of hosts up to date. What they newly refer to is acquired before what
// they did is released.
func (t *Table) renderHosts() {
	if !t.hosts.dirty {
		return
	}
	t.hosts.dirty = false
	old := t.hosts.out
	t.hosts.out = nil
	if all := policy.Hosts(t.hosts.all); len(all) > 0 {
		t.hosts.out = t.hostRendering(all)
		t.objects.acquire(t.hosts.out)
	}
	if old == nil {
		return
	}
	t.objects.release(old)
	for _, k := range old.uses {
		t.units.release(t.units.all[k], t.objects.release)
	}
}

// hostRendering acquires the chains of the endpoints, and returns what leads to them.
func (t *Table) hostRendering(all map[string]*policy.Endpoint) *rendering {
	r := &rendering{}
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		base, field := Chain{Name: "host-input", Hook: Input, After: 3}, InDevice
		if d == policy.Egress {
			base, field = Chain{Name: "host-output", Hook: Output, After: 2}, OutDevice
		}
		base.Rules = append(base.Rules, established(), accept(onDevice(field, "lo")))
		if d == policy.Egress {
			base.Rules = append(base.Rules, accept(podDevice(OutDevice)...))
		} else {
			base.Rules = append(base.Rules, neighbourDiscovery())
		}
		for _, device := range slices.Sorted(maps.Keys(all)) {
			if device != policy.AnyDevice && len(device) < kernel.DeviceNameSize {
				base.Rules = append(base.Rules, t.toHost(r, all[device], d, onDevice(field, device)))
			}
		}
		if e := all[policy.AnyDevice]; e != nil {
			base.Rules = append(base.Rules, t.toHost(r, e, d))
		}
		r.chains = append(r.chains, base)
	}
	return r
}

// toHost leads to the chain of an endpoint.
func (t *Table) toHost(r *rendering, e *policy.Endpoint, d policy.Direction, when ...Condition) Rule {
	c := e.Chain(d)
	if allowsAll(c) {
		return accept(when...)
	}
	k := unitKey{kind: endpointUnit, direction: d, text: chainText(c)}
	t.units.acquire(unit{key: k, chain: c})
	r.uses = append(r.uses, k)
	return Rule{When: when, Verdict: Verdict{Goto, k.name()}}
}

func onDevice(f Field, name string) Condition {
	return Condition{Field: f, Op: Equal, Value: kernel.PaddedName(name)}
}

// podDevice holds for the devices of pods, known or not.
func podDevice(f Field) []Condition {
	return []Condition{
		{Field: f, Op: BeginsWith, Value: desired.WorkloadPrefix},
		{Field: f, Op: BeginsNot, Value: desired.LinkPrefix + "-"},
	}
}
