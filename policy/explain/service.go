// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"

	"github.com/heliograph-dev/heliograph/policy"
)

// Translation is what becomes of a packet for a service before it meets a policy.
type Translation struct {
	Service policy.EndpointID `json:"service"`
	// IPs of the service that the packet can be for.
	IPs      []netip.Addr `json:"ips"`
	Port     int32        `json:"port"`
	PortName string       `json:"portName,omitempty"`
	// Headless services have no address: it is DNS that names the endpoints, and ports stay as they are.
	Headless bool `json:"headless,omitempty"`
	// Ready endpoints get packets, NotReady ones do not.
	Ready    int `json:"ready"`
	NotReady int `json:"notReady"`
}

// backend is an endpoint of a service.
type backend struct {
	end  End
	port uint16
}

// serviceAt finds the service that an address is one of.
func (v *View) serviceAt(ip netip.Addr) *corev1.Service {
	for _, s := range of[*corev1.Service](v.cluster, "Service") {
		if slices.Contains(serviceIPs(s), ip) {
			return s
		}
	}
	return nil
}

// serviceIPs are all that are translated: those of the cluster, external ones and load balancers'.
func serviceIPs(s *corev1.Service) []netip.Addr {
	texts := slices.Concat(clusterIPs(s), s.Spec.ExternalIPs)
	for _, i := range s.Status.LoadBalancer.Ingress {
		if ptr.Deref(i.IPMode, corev1.LoadBalancerIPModeVIP) == corev1.LoadBalancerIPModeVIP {
			texts = append(texts, i.IP)
		}
	}
	return parseIPs(texts)
}

func clusterIPs(s *corev1.Service) []string {
	if len(s.Spec.ClusterIPs) > 0 {
		return s.Spec.ClusterIPs
	}
	return []string{s.Spec.ClusterIP}
}

func (v *View) service(id policy.EndpointID) (*corev1.Service, error) {
	o := v.cluster.objects["Service"][Ref{Kind: "Service", Namespace: id.Namespace, Name: id.Name}]
	s, ok := o.(*corev1.Service)
	if !ok {
		return nil, fmt.Errorf("there is no service %s", id)
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil, fmt.Errorf("service %s is another name of %s: what address that has is DNS's to say", id, s.Spec.ExternalName)
	}
	return s, nil
}

// translate finds a service's endpoints, in the order of their names. ip is the address of it that the packet
// is for, if one was named.
func (v *View) translate(s *corev1.Service, t Target, ip netip.Addr, from End) (*Translation, []backend, error) {
	port, err := servicePort(s, t)
	if err != nil {
		return nil, nil, err
	}
	out := &Translation{
		Service: policy.EndpointID{Namespace: s.Namespace, Name: s.Name}, Port: port.Port, PortName: port.Name,
		IPs: serviceIPs(s), Headless: s.Spec.ClusterIP == corev1.ClusterIPNone,
	}
	if ip.IsValid() {
		out.IPs = []netip.Addr{ip}
	}
	var found backends
	for _, slice := range v.slices(s, out) {
		number, ok := slicePort(slice, port)
		if out.Headless && t.PortName == "" {
			number, ok = t.Port, true
		}
		if !ok {
			continue
		}
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if !ptr.Deref(e.Conditions.Ready, true) {
				out.NotReady++
				continue
			}
			if local(s, t) && from.Node != "" && ptr.Deref(e.NodeName, "") != from.Node {
				continue
			}
			found.add(v.endpointEnd(e), number)
		}
	}
	out.Ready = len(found)
	return out, found, nil
}

// backends are endpoints, sorted.
type backends []backend

// add puts the addresses of a pod together: each family has its own slices.
func (b *backends) add(end End, port uint16) {
	at, found := slices.BinarySearchFunc(*b, end, func(b backend, end End) int {
		return cmp.Or(cmp.Compare(b.end.name(), end.name()), cmp.Compare(b.port, port))
	})
	if !found {
		*b = slices.Insert(*b, at, backend{end: end, port: port})
		return
	}
	ips := append(slices.Clip((*b)[at].end.IPs), end.IPs...)
	slices.SortFunc(ips, netip.Addr.Compare)
	(*b)[at].end.IPs = ips
}

// name tells ends apart: pods by their names, whatever addresses they have.
func (e End) name() string {
	if e.Pod != nil {
		return e.Pod.String()
	}
	return fmt.Sprint(e.IPs)
}

// local says whether only endpoints of the sender's node get its packets.
func local(s *corev1.Service, t Target) bool {
	inside := !t.IP.IsValid() || slices.Contains(parseIPs(clusterIPs(s)), t.IP)
	return inside && ptr.Deref(s.Spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster) == corev1.ServiceInternalTrafficPolicyLocal
}

// slices are the service's, of the families in which it can be reached.
func (v *View) slices(s *corev1.Service, t *Translation) []*discoveryv1.EndpointSlice {
	has := func(family discoveryv1.AddressType) bool {
		return t.Headless || slices.ContainsFunc(t.IPs, func(ip netip.Addr) bool { return ip.Is4() == (family == discoveryv1.AddressTypeIPv4) })
	}
	var out []*discoveryv1.EndpointSlice
	for _, slice := range of[*discoveryv1.EndpointSlice](v.cluster, "EndpointSlice") {
		if slice.Namespace == s.Namespace && slice.Labels[discoveryv1.LabelServiceName] == s.Name && slice.AddressType != discoveryv1.AddressTypeFQDN && has(slice.AddressType) {
			out = append(out, slice)
		}
	}
	return out
}

// endpointEnd is the pod that an endpoint names, with the endpoint's first address, which is the only one that counts.
func (v *View) endpointEnd(e *discoveryv1.Endpoint) End {
	ips := parseIPs(e.Addresses[:min(1, len(e.Addresses))])
	if len(ips) == 0 {
		return End{}
	}
	end := v.ipEnd(ips[0])
	if end.Pod == nil && e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
		// A pod that uses its node's network.
		if p := v.pods[policy.EndpointID{Namespace: e.TargetRef.Namespace, Name: e.TargetRef.Name}]; p != nil && p.Spec.HostNetwork {
			id := idOf(p)
			end = End{Pod: &id, Node: p.Spec.NodeName, HostNetwork: true, IPs: ips}
		}
	}
	end.Node = cmp.Or(end.Node, ptr.Deref(e.NodeName, ""))
	return end
}

// servicePort finds the port that the packet is for.
func servicePort(s *corev1.Service, t Target) (corev1.ServicePort, error) {
	var there []string
	for _, p := range s.Spec.Ports {
		protocol := protocolOf(p.Protocol)
		if protocol == t.Protocol && (p.Port == int32(t.Port) || t.PortName != "" && p.Name == t.PortName) {
			return p, nil
		}
		there = append(there, strings.TrimSpace(fmt.Sprintf("%d/%s %s", p.Port, protocol, p.Name)))
	}
	if s.Spec.ClusterIP == corev1.ClusterIPNone && t.PortName == "" {
		return corev1.ServicePort{Port: int32(t.Port)}, nil
	}
	return corev1.ServicePort{}, fmt.Errorf("service %s/%s has no %s: it has %s", s.Namespace, s.Name, t.port(), cmp.Or(strings.Join(there, ", "), "no port"))
}

// slicePort is the port of the endpoints, which may differ from slice to slice.
func slicePort(slice *discoveryv1.EndpointSlice, port corev1.ServicePort) (uint16, bool) {
	for _, p := range slice.Ports {
		n := ptr.Deref(p.Port, 0)
		if ptr.Deref(p.Name, "") == port.Name && protocolOf(ptr.Deref(p.Protocol, "")) == protocolOf(port.Protocol) && n > 0 && n <= 65535 {
			return uint16(n), true
		}
	}
	return 0, false
}

// protocolOf reads a protocol as the API server defaults it.
func protocolOf(p corev1.Protocol) policy.Protocol {
	switch p {
	case corev1.ProtocolUDP:
		return policy.UDP
	case corev1.ProtocolSCTP:
		return policy.SCTP
	}
	return policy.TCP
}
