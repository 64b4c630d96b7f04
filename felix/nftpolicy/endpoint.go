// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"fmt"
	"maps"
	"slices"

	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/policy"
)

// Names of the sets and maps of devices.
const (
	setSelf     = "self"     // pairs of a device and itself: what goes out where it came in; also, who is known
	setIsolated = "isolated" // devices of which a chain does not allow all
	mapEgress   = "egress"
	mapIngress  = "ingress"
)

// endpoints follows which device leads to which chains.
type endpoints struct {
	ofDevice     map[string]map[policy.EndpointID]*policy.Endpoint // more than one only for a moment
	deviceOf     map[policy.EndpointID]string
	bad          map[policy.EndpointID]error
	devices      map[string]*device
	dirtyDevices map[string]struct{}
	elements     map[string]*setObject
}

// device is what the sets of devices hold of one.
type device struct {
	endpoint *policy.Endpoint // nil: none
	units    [2]*unit         // nil: no chain
	elements map[string]Element
}

func newEndpoints() endpoints {
	e := endpoints{
		ofDevice: map[string]map[policy.EndpointID]*policy.Endpoint{}, deviceOf: map[policy.EndpointID]string{},
		bad: map[policy.EndpointID]error{}, devices: map[string]*device{}, dirtyDevices: map[string]struct{}{},
		elements: map[string]*setObject{},
	}
	for _, s := range []Set{
		{Name: setSelf, Key: DevicePair}, {Name: setIsolated, Key: Device},
		{Name: mapEgress, Key: Device, Map: true}, {Name: mapIngress, Key: Device, Map: true},
	} {
		e.elements[s.Name] = &setObject{Set: s, all: func(yield func(Element) bool) {
			for _, d := range e.devices {
				if el, ok := d.elements[s.Name]; ok && !yield(el) {
					return
				}
			}
		}}
	}
	return e
}

func (e *endpoints) sets() []*setObject { return slices.Collect(maps.Values(e.elements)) }

// unusable are the endpoints that have no device which could be known by its name.
func (e *endpoints) unusable() []error {
	var out []error
	for _, id := range slices.SortedFunc(maps.Keys(e.bad), policy.EndpointID.Compare) {
		out = append(out, e.bad[id])
	}
	return out
}

// updateEndpoint follows an endpoint; nil: it is gone.
func (t *Table) updateEndpoint(id policy.EndpointID, e *policy.Endpoint) {
	if old, ok := t.deviceOf[id]; ok && (e == nil || e.Device != old) {
		delete(t.deviceOf, id)
		delete(t.ofDevice[old], id)
		t.refreshDevice(old)
	}
	delete(t.bad, id)
	if e == nil {
		return
	}
	if e.Device == "" || len(e.Device) >= kernel.DeviceNameSize {
		t.bad[id] = fmt.Errorf("endpoint %s: no device can have the name %q", id, e.Device)
		return
	}
	if t.ofDevice[e.Device] == nil {
		t.ofDevice[e.Device] = map[policy.EndpointID]*policy.Endpoint{}
	}
	t.deviceOf[id], t.ofDevice[e.Device][id] = e.Device, e
	t.refreshDevice(e.Device)
}

// refreshDevice gives a device the chains of its endpoint; of several that claim it, the first in order.
func (t *Table) refreshDevice(name string) {
	claims := t.ofDevice[name]
	if len(claims) == 0 {
		delete(t.ofDevice, name)
	}
	d := t.devices[name]
	if d == nil {
		d = &device{elements: map[string]Element{}}
		t.devices[name] = d
	}
	old := d.units
	d.endpoint, d.units = nil, [2]*unit{}
	if len(claims) > 0 {
		d.endpoint = claims[slices.MinFunc(slices.Collect(maps.Keys(claims)), policy.EndpointID.Compare)]
		for _, dir := range []policy.Direction{policy.Ingress, policy.Egress} {
			if c := d.endpoint.Chain(dir); !d.endpoint.Unknown && !allowsAll(c) {
				k := unitKey{kind: endpointUnit, direction: dir, text: chainText(c)}
				d.units[dir] = t.units.acquire(unit{key: k, chain: c})
				d.units[dir].devices[name] = struct{}{}
			}
		}
	}
	for dir, u := range old {
		if u == nil {
			continue
		}
		if u != d.units[dir] {
			delete(u.devices, name)
		}
		t.units.release(u, t.objects.release)
	}
	t.dirtyDevices[name] = struct{}{}
}

// allowsAll says whether a chain needs no chain in the kernel.
func allowsAll(c policy.Chain) bool { return len(c.Tiers) == 0 && c.Default == policy.Allow }

// renderDevices brings the elements of devices up to date. Chains were rendered before, so it is known
// which isolate.
func (t *Table) renderDevices() {
	for name := range t.dirtyDevices {
		d := t.devices[name]
		want := d.want(name)
		for _, set := range []string{setSelf, setIsolated, mapEgress, mapIngress} {
			old, had := d.elements[set]
			e, has := want[set]
			if had && (!has || old != e) {
				t.elements[set].change(old, false)
			}
			if has && (!had || old != e) {
				t.elements[set].change(e, true)
			}
			t.objects.touch(t.elements[set])
		}
		if d.elements = want; d.endpoint == nil {
			delete(t.devices, name)
		}
	}
	clear(t.dirtyDevices)
}

// want returns the elements that a device should have.
func (d *device) want(name string) map[string]Element {
	out := map[string]Element{}
	if d.endpoint == nil {
		return out
	}
	key := kernel.PaddedName(name)
	out[setSelf] = Element{Key: key + key}
	isolated := d.endpoint.Unknown
	for dir, set := range map[policy.Direction]string{policy.Egress: mapEgress, policy.Ingress: mapIngress} {
		v := Verdict{Kind: Accept}
		switch u := d.units[dir]; {
		case d.endpoint.Unknown:
			v = Verdict{Jump, unknownChain(dir)}
		case u != nil:
			v = Verdict{Jump, u.key.name()}
			isolated = isolated || u.out.isolates
		}
		out[set] = Element{Key: key, Verdict: v}
	}
	if isolated {
		out[setIsolated] = Element{Key: key}
	}
	return out
}
