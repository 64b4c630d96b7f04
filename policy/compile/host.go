// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/policy"
)

// HostID is the endpoint of a HostEndpoint.
func HostID(name string) policy.EndpointID { return policy.EndpointID{Name: name, Host: true} }

// SetHostEndpoint adds or replaces a HostEndpoint of any node. It becomes an endpoint if it is of the
// compiler's own node: ours.
func (c *Compiler) SetHostEndpoint(obj *v1alpha1.HostEndpoint, ours bool) {
	f, id := readHost(obj), HostID(obj.Name)
	old := c.workloads[id]
	switch {
	case !ours && old != nil:
		c.RemoveWorkload(id)
	case ours:
		w := Workload{ID: id, Device: obj.Spec.InterfaceName}
		for _, p := range f.prefixes {
			w.IPs = append(w.IPs, p.Addr())
		}
		if old == nil || old.Device != w.Device || !slices.Equal(old.IPs, w.IPs) {
			c.SetWorkload(w)
		}
	}
	c.setEntity(endpointKey(id), f)
}

// RemoveHostEndpoint removes a HostEndpoint. Its node is open then, where no other stands.
func (c *Compiler) RemoveHostEndpoint(name string) {
	id := HostID(name)
	c.removeEntity(endpointKey(id))
	if c.workloads[id] != nil {
		c.RemoveWorkload(id)
	}
}

func readHost(obj *v1alpha1.HostEndpoint) facts {
	f := facts{labels: obj.Labels}
	for _, ip := range obj.Spec.ExpectedIPs {
		f.prefixes = appendIP(f.prefixes, ip)
	}
	for _, p := range obj.Spec.Ports {
		f.ports = appendPort(f.ports, p.Name, p.Protocol, p.Port)
	}
	return f
}

// Failsafes are what no policy may take from a node that it concerns.
type Failsafes struct {
	// Inbound and Outbound are the lists of a FelixConfiguration; nil: the defaults.
	Inbound, Outbound *[]v1alpha1.ProtoPort
	// BGP, VXLAN and Probe are the ports by which agents talk to each other.
	BGP          []uint16
	VXLAN, Probe uint16
}

// DefaultFailsafes are the lists of who has not written any: Calico's.
func DefaultFailsafes(d policy.Direction) []v1alpha1.ProtoPort {
	list := []v1alpha1.ProtoPort{{Protocol: corev1.ProtocolUDP, Port: 68}}
	ports := []int32{22, 179, 2379, 2380, 5473, 6443, 6666, 6667}
	if d == policy.Egress {
		list = []v1alpha1.ProtoPort{{Protocol: corev1.ProtocolUDP, Port: 53}, {Protocol: corev1.ProtocolUDP, Port: 67}}
		ports = ports[1:]
	}
	for _, p := range ports {
		list = append(list, v1alpha1.ProtoPort{Protocol: corev1.ProtocolTCP, Port: p})
	}
	return list
}

// BGPPorts are those of all sessions that a configuration asks for, at either end.
func BGPPorts(config v1alpha1.BGPConfigurationSpec, peers []v1alpha1.BGPPeer) []uint16 {
	ports := []int32{v1alpha1.DefaultBGPPort, v1alpha1.DefaultReflectorPort, ptr.Deref(config.ListenPort, 0)}
	if r := config.RouteReflection; r != nil {
		ports = append(ports, ptr.Deref(r.Port, 0))
	}
	for i := range peers {
		ports = append(ports, ptr.Deref(peers[i].Spec.Port, 0))
	}
	slices.Sort(ports)
	var out []uint16
	for _, p := range slices.Compact(ports) {
		if p > 0 {
			out = append(out, uint16(p)) //nolint:gosec // up to 65535 by validation
		}
	}
	return out
}

// SetFailsafes says what no policy may take from this node. It is in force wherever a policy is.
func (c *Compiler) SetFailsafes(f Failsafes) {
	p := &policy.Policy{ID: policy.FailsafeID()}
	p.Ingress = failsafeRules(policy.Ingress, f.Inbound, f.needs(policy.Ingress))
	p.Egress = failsafeRules(policy.Egress, f.Outbound, f.needs(policy.Egress))
	if old := c.sources[p.ID]; old != nil && old.policy.Equal(p) {
		return
	}
	c.setSource(translation{
		policy: p, tier: policy.FailsafeTier, subject: selector{kinds: hosts, own: true}, applies: [2]bool{true, true},
	})
}

func failsafeRules(d policy.Direction, list *[]v1alpha1.ProtoPort, matches []policy.Match) []policy.Rule {
	chosen := DefaultFailsafes(d)
	if list != nil {
		chosen = *list
	}
	for _, p := range chosen {
		if m, ok := failsafe(d, p); ok {
			matches = append(matches, m)
		}
	}
	rules := make([]policy.Rule, 0, len(matches))
	for i, m := range matches {
		id := policy.RuleID{Policy: policy.FailsafeID(), Direction: d, Index: i}
		rules = append(rules, policy.Rule{ID: id, Action: policy.Allow, Match: m})
	}
	return rules
}

// failsafe reads an entry of a list. The API server lets none pass that cannot be read.
func failsafe(d policy.Direction, p v1alpha1.ProtoPort) (policy.Match, bool) {
	protocol, ok := protocolOf(p.Protocol)
	if !ok || p.Port < 1 || p.Port > 65535 {
		return policy.Match{}, false
	}
	m := policy.Match{Transport: []policy.Transport{to(protocol, uint16(p.Port))}}
	if p.Net == "" {
		return m, true
	}
	n, err := parseNet(p.Net)
	if err != nil {
		return policy.Match{}, false
	}
	peer := policy.Peer{Within: []policy.Addresses{{Nets: []policy.Net{{CIDR: n}}}}}
	if d == policy.Ingress {
		m.Source = peer
	} else {
		m.Destination = peer
	}
	return m, true
}

func to(p policy.Protocol, ports ...uint16) policy.Transport {
	t := policy.Transport{Protocol: p}
	for _, port := range ports {
		t.DestinationPorts.Ranges = append(t.DestinationPorts.Ranges, policy.PortRange{First: port, Last: port})
	}
	return t
}

func icmpType(p policy.Protocol, kind uint8) policy.Transport {
	return policy.Transport{Protocol: p, ICMP: policy.ICMPMatch{HasType: true, Type: kind}}
}

// What a node needs whatever the lists say.
const (
	portBFD                          = 3784 // RFC 5881
	portDHCPServer, portDHCPClient   = 67, 68
	portDHCP6Server, portDHCP6Client = 547, 546 // RFC 8415
	protocolIPIP                     = policy.Protocol(4)
)

// needs are what holds the pod network together, and keeps the node its addresses: without, a policy could
// cut off the agent that is to take it back.
func (f Failsafes) needs(d policy.Direction) []policy.Match {
	dhcp, dhcp6 := uint16(portDHCPClient), uint16(portDHCP6Client)
	if d == policy.Egress {
		dhcp, dhcp6 = portDHCPServer, portDHCP6Server
	}
	matches := []policy.Match{
		{Transport: []policy.Transport{to(policy.UDP, f.VXLAN, f.Probe, portBFD)}},
		{Family: policy.IPv4, Transport: []policy.Transport{{Protocol: protocolIPIP}}},
		{Family: policy.IPv4, Transport: []policy.Transport{to(policy.UDP, dhcp)}},
		{Family: policy.IPv6, Transport: []policy.Transport{to(policy.UDP, dhcp6)}},
		{Family: policy.IPv4, Transport: []policy.Transport{icmpType(policy.ICMP, 8)}}, // agents probe by echo, too
	}
	if len(f.BGP) > 0 {
		matches = append(matches, policy.Match{Transport: []policy.Transport{to(policy.TCP, f.BGP...)}})
	}
	// Echo; neighbour discovery (RFC 4861), and the reports of multicast listeners (RFC 2710, 3810) without
	// which a switch that snoops does not let it through.
	for _, kind := range []uint8{128, 130, 131, 132, 133, 134, 135, 136, 137, 143} {
		matches = append(matches, policy.Match{Family: policy.IPv6, Transport: []policy.Transport{icmpType(policy.ICMPv6, kind)}})
	}
	return matches
}
