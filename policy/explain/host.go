// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/compile"
	"github.com/heliograph-dev/heliograph/policy/eval"
)

// host is what a node's agent makes of the node's HostEndpoints. It is compiled apart from the pods: failsafes
// are each node's own, and so is what a device's name means.
type host struct {
	state *policy.State
	eval  *eval.Evaluator
}

// hostOf compiles a node's HostEndpoints when they are first asked for; nil: it has none.
func (v *View) hostOf(node string) (*host, error) {
	if h, ok := v.hosts[node]; ok {
		return h, nil
	}
	var own []*v1alpha1.HostEndpoint
	for _, o := range of[*v1alpha1.HostEndpoint](v.cluster, "HostEndpoint") {
		if node != "" && o.Spec.Node == node {
			own = append(own, o)
		}
	}
	if len(own) == 0 {
		v.hosts[node] = nil
		return nil, nil
	}
	compiler := compile.New()
	v.cluster.feed(compiler)
	compiler.SetFailsafes(v.cluster.failsafes(node))
	for _, o := range own {
		compiler.SetHostEndpoint(o, true)
	}
	h := &host{state: policy.NewState()}
	if err := h.state.Apply(compiler.Flush()); err != nil {
		return nil, fmt.Errorf("compile the policies of node %s: %w", node, err)
	}
	h.eval = eval.New(h.state)
	v.hosts[node] = h
	return h, nil
}

// failsafes are a node's: its own configuration is laid over the default one.
func (c *Cluster) failsafes(node string) compile.Failsafes {
	f := compile.Failsafes{BGP: c.bgpPorts(), VXLAN: v1alpha1.DefaultVXLANPort, Probe: v1alpha1.DefaultProbePort}
	for _, name := range []string{v1alpha1.DefaultName, v1alpha1.NodeNamePrefix + node} {
		o, ok := c.objects["FelixConfiguration"][Ref{Kind: "FelixConfiguration", Name: name}].(*v1alpha1.FelixConfiguration)
		if !ok {
			continue
		}
		f.Inbound, f.Outbound = cmp.Or(o.Spec.FailsafeInboundHostPorts, f.Inbound), cmp.Or(o.Spec.FailsafeOutboundHostPorts, f.Outbound)
		f.VXLAN = uint16(ptr.Deref(o.Spec.VXLANPort, int32(f.VXLAN))) //nolint:gosec // 1 to 65535 by validation
		f.Probe = uint16(ptr.Deref(o.Spec.ProbePort, int32(f.Probe))) //nolint:gosec // 1 to 65535 by validation
	}
	return f
}

func (c *Cluster) bgpPorts() []uint16 {
	var config v1alpha1.BGPConfigurationSpec
	if o, ok := c.objects["BGPConfiguration"][Ref{Kind: "BGPConfiguration", Name: v1alpha1.DefaultName}].(*v1alpha1.BGPConfiguration); ok {
		config = o.Spec
	}
	var peers []v1alpha1.BGPPeer
	for _, o := range of[*v1alpha1.BGPPeer](c, "BGPPeer") {
		peers = append(peers, *o)
	}
	return compile.BGPPorts(config, peers)
}

// device is the one that packets of a node's address are taken to pass: that of the HostEndpoint which expects
// the address, else any, else the first. Which it is in truth, the node's routes say.
func (h *host) device(local netip.Addr) string {
	for _, id := range slices.SortedFunc(maps.Keys(h.state.Endpoints), policy.EndpointID.Compare) {
		if e := h.state.Endpoints[id]; e.Device != policy.AnyDevice && slices.Contains(e.IPs, local) {
			return e.Device
		}
	}
	devices := h.eval.Devices()
	if slices.Contains(devices, policy.AnyDevice) {
		return policy.AnyDevice
	}
	return devices[0]
}

// path is a packet with what tells a node's own traffic from that of pods.
type path struct {
	eval.Packet
	from, to End
}

// within says that the packet does not leave the node's processes: loopback is free.
func (p path) within() bool { return p.from.onNode() && p.to.onNode() && p.from.Node == p.to.Node }

// hostSide is what an end says that is no pod, but a node with HostEndpoints; nil if it is not, or not asked.
func (v *View) hostSide(p path, d policy.Direction) (*Side, error) {
	e, local := p.to, p.Dst
	if d == policy.Egress {
		e, local = p.from, p.Src
	}
	// A node always reaches its own pods: FromNode.
	if !e.onNode() || p.within() || d == policy.Egress && p.FromNode {
		return nil, nil
	}
	h, err := v.hostOf(e.Node)
	if h == nil || err != nil {
		return nil, err
	}
	packet := p.Packet
	packet.FromNode, packet.ToNode = d == policy.Egress, d == policy.Ingress
	if p.from.onNode() || p.from.Node != e.Node { // of a pod's device only HostEndpoints for any know
		packet.Device = h.device(local)
	}
	return v.read(h.state, h.eval.Side(packet, d), e), nil
}

// nodeEnd finds a node, as what packets are sent to.
func (v *View) nodeEnd(node string) (End, error) {
	if _, ok := v.nodes[node]; !ok {
		return End{}, fmt.Errorf("there is no node %s", node)
	}
	return End{Node: node, IPs: v.nodeIPs(node)}, nil
}

// nodeIPs are a node's addresses outside of the pod network, IPv4 first; in the order of its status, whose first of
// a family is the node's.
func (v *View) nodeIPs(node string) []netip.Addr {
	var out []netip.Addr
	for _, n := range of[*corev1.Node](v.cluster, "Node") {
		for _, a := range n.Status.Addresses {
			if n.Name == node && a.Type == corev1.NodeInternalIP {
				out = append(out, parseIPs([]string{a.Address})...)
			}
		}
	}
	if len(out) == 0 {
		return v.nodes[node]
	}
	return out
}

// noteHosts says through which devices packets were taken to pass, where that matters.
func (v *View) noteHosts(a *Answer) {
	said := map[string]bool{}
	for _, f := range a.Flows {
		for _, s := range []*Side{f.Egress, f.Ingress} {
			if s == nil || !s.Endpoint.Host || said[s.Node] {
				continue
			}
			said[s.Node] = true
			h := v.hosts[s.Node]
			if devices := h.eval.Devices(); len(devices) > 1 || devices[0] != policy.AnyDevice {
				a.Notes = append(a.Notes, fmt.Sprintf("node %s has HostEndpoints for %s: packets are taken to pass %s", s.Node, strings.Join(devices, ", "), h.state.Endpoints[s.Endpoint].Device))
			}
		}
	}
}
