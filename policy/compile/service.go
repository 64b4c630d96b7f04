// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"

	"github.com/heliograph-dev/heliograph/labels"
	"github.com/heliograph-dev/heliograph/policy"
)

// serviceLabel says on a slice of endpoints whose they are.
const serviceLabel = discoveryv1.LabelServiceName

// SetService makes a service known. Only its name is read: where it leads is what its slices say. Whoever
// asks for no Problems need not call it.
func (c *Compiler) SetService(obj *corev1.Service) {
	c.services[policy.EndpointID{Namespace: obj.Namespace, Name: obj.Name}] = struct{}{}
}

// RemoveService removes a service.
func (c *Compiler) RemoveService(id policy.EndpointID) { delete(c.services, id) }

// SetEndpointSlice adds or replaces a slice of a service's endpoints. It reads name, namespace, the label
// with the service's name, addresses and ports.
func (c *Compiler) SetEndpointSlice(obj *discoveryv1.EndpointSlice) {
	key := entityKey{endpointSlices, policy.EndpointID{Namespace: obj.Namespace, Name: obj.Name}}
	c.countSlice(key, -1)
	c.setEntity(key, readEndpointSlice(obj))
	c.countSlice(key, 1)
}

// RemoveEndpointSlice removes a slice.
func (c *Compiler) RemoveEndpointSlice(namespace, name string) {
	key := entityKey{endpointSlices, policy.EndpointID{Namespace: namespace, Name: name}}
	c.countSlice(key, -1)
	c.removeEntity(key)
}

func (c *Compiler) countSlice(key entityKey, by int) {
	e := c.entities[key]
	if e == nil || e.labels[serviceLabel] == "" {
		return
	}
	id := policy.EndpointID{Namespace: key.Namespace, Name: e.labels[serviceLabel]}
	if c.slices[id] += by; c.slices[id] == 0 {
		delete(c.slices, id)
	}
}

// readEndpointSlice takes all endpoints, ready or not: whether to send is not decided here, and a
// connection to an endpoint that is leaving may go on.
func readEndpointSlice(obj *discoveryv1.EndpointSlice) facts {
	f := facts{labels: map[string]string{serviceLabel: obj.Labels[serviceLabel]}}
	seen := map[string]bool{}
	for i := range obj.Endpoints {
		for _, text := range obj.Endpoints[i].Addresses {
			// Slices of names (FQDN) hold no address.
			if !seen[text] {
				seen[text] = true
				f.prefixes = appendIP(f.prefixes, text)
			}
		}
	}
	for _, p := range obj.Ports {
		// Without names, so that a port that has two is there once.
		f.ports = appendPort(f.ports, "", ptr.Deref(p.Protocol, ""), ptr.Deref(p.Port, 0))
	}
	return f
}

// EndpointsOf returns the addresses of a service's endpoints.
func (c *Compiler) EndpointsOf(id policy.EndpointID) (addrs []netip.Addr) {
	for e := range c.byLabel[label{serviceLabel, id.Name}] {
		if e.key.kind == endpointSlices && e.key.Namespace == id.Namespace {
			for _, p := range e.prefixes {
				addrs = append(addrs, p.Addr())
			}
		}
	}
	return addrs
}

// endpointsOf selects the slices of a service.
func endpointsOf(id policy.EndpointID) selector {
	return selector{kinds: endpointSlices, namespaces: labels.In(nameLabel, id.Namespace), labels: labels.In(serviceLabel, id.Name)}
}
