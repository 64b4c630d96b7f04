// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	netutils "k8s.io/utils/net"

	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/compile"
	"github.com/heliograph-dev/heliograph/policy/eval"
)

// View is a cluster with the policy that follows from it, as if all pods were of one node.
type View struct {
	cluster  *Cluster
	state    *policy.State
	eval     *eval.Evaluator
	problems map[policy.PolicyID][]string
	pods     map[policy.EndpointID]*corev1.Pod
	byIP     map[netip.Addr]*corev1.Pod // pods that have addresses of their own
	nodes    map[string][]netip.Addr
	nodeOf   map[netip.Addr]string
	hosts    map[string]*host // by node, as far as they were asked for
}

// NewView compiles a cluster, which must not change afterwards.
func NewView(c *Cluster) (*View, error) {
	v := &View{
		cluster: c, state: policy.NewState(), problems: map[policy.PolicyID][]string{}, pods: map[policy.EndpointID]*corev1.Pod{},
		byIP: map[netip.Addr]*corev1.Pod{}, nodeOf: map[netip.Addr]string{}, hosts: map[string]*host{},
	}
	compiler := compile.New()
	c.feed(compiler)
	for _, p := range of[*corev1.Pod](c, "Pod") {
		v.addPod(compiler, p)
	}
	if err := v.state.Apply(compiler.Flush()); err != nil {
		return nil, fmt.Errorf("compile the cluster's policies: %w", err)
	}
	for _, p := range compiler.Problems() {
		v.problems[p.Policy] = append(v.problems[p.Policy], p.Field+": "+p.Reason)
	}
	v.nodes = c.nodeAddresses()
	for name, ips := range v.nodes {
		for _, ip := range ips {
			v.nodeOf[ip] = name
		}
	}
	v.eval = eval.New(v.state)
	return v, nil
}

func (c *Cluster) feed(to *compile.Compiler) {
	for _, k := range Kinds() {
		for _, o := range c.Objects(k) {
			k.set(to, o)
		}
	}
	for _, n := range of[*corev1.Node](c, "Node") {
		if sends := c.sends[n.Name]; len(sends) > 0 {
			to.SetNode(n, sends...)
		}
	}
}

// Mistakes are what cannot be read in a cluster's policies, whatever else there is in it.
func Mistakes(c *Cluster) map[policy.PolicyID][]string {
	compiler := compile.New()
	c.feed(compiler)
	out := map[policy.PolicyID][]string{}
	for _, p := range compiler.Problems() {
		if !p.Missing {
			out[p.Policy] = append(out[p.Policy], p.Field+": "+p.Reason)
		}
	}
	return out
}

// addPod makes the pod an endpoint, as the CNI plugin of its node does.
func (v *View) addPod(c *compile.Compiler, p *corev1.Pod) {
	id := idOf(p)
	v.pods[id] = p
	if p.Spec.HostNetwork || ended(p) {
		return
	}
	w := compile.Workload{ID: id, IPs: podIPs(p)}
	for _, ip := range w.IPs {
		if v.byIP[ip] == nil { // in the order of names, as eval.New
			v.byIP[ip] = p
		}
	}
	c.SetWorkload(w)
}

func idOf(p *corev1.Pod) policy.EndpointID {
	return policy.EndpointID{Namespace: p.Namespace, Name: p.Name}
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// podIPs are a pod's addresses, IPv4 first.
func podIPs(p *corev1.Pod) []netip.Addr {
	texts := make([]string, 0, 2)
	for _, ip := range p.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	if len(texts) == 0 && p.Status.PodIP != "" {
		texts = append(texts, p.Status.PodIP)
	}
	return parseIPs(texts)
}

// parseIPs reads addresses as the compiler does, and sorts them.
func parseIPs(texts []string) []netip.Addr {
	var ips []netip.Addr
	for _, text := range texts {
		if ip, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(text)); ok {
			ips = append(ips, ip.Unmap())
		}
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	return slices.Compact(ips)
}

// End is one end of a flow.
type End struct {
	// Pod is nil if it is none.
	Pod *policy.EndpointID `json:"pod,omitempty"`
	// Node that the pod runs on, or that it is.
	Node string `json:"node,omitempty"`
	// HostNetwork says that the pod uses its node's addresses, and is subject to no policy.
	HostNetwork bool         `json:"hostNetwork,omitempty"`
	IPs         []netip.Addr `json:"ips"`
}

// String is "prod/web-1", "node node1" or an address.
func (e End) String() string {
	switch {
	case e.Pod != nil:
		return e.Pod.String()
	case e.Node != "":
		return "node " + e.Node
	case len(e.IPs) == 1:
		return e.IPs[0].String()
	}
	return fmt.Sprint(e.IPs)
}

// ip is the end's address of a family; invalid if it has none.
func (e End) ip(f policy.Family) netip.Addr {
	for _, ip := range e.IPs {
		if ip.Is4() == (f == policy.IPv4) {
			return ip
		}
	}
	return netip.Addr{}
}

// onNode says whether the end's packets are a node's own.
func (e End) onNode() bool { return e.HostNetwork || e.Pod == nil && e.Node != "" }

// podEnd finds a pod.
func (v *View) podEnd(id policy.EndpointID) (End, error) {
	p := v.pods[id]
	switch {
	case p == nil:
		return End{}, fmt.Errorf("there is no pod %s", id)
	case ended(p):
		return End{}, fmt.Errorf("pod %s has ended (%s): it has no address any more", id, p.Status.Phase)
	}
	return v.endOf(p, podIPs(p)...), nil
}

func (v *View) endOf(p *corev1.Pod, ips ...netip.Addr) End {
	id := idOf(p)
	return End{Pod: &id, Node: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork, IPs: ips}
}

// ipEnd says whose an address is.
func (v *View) ipEnd(ip netip.Addr) End {
	if p := v.byIP[ip]; p != nil {
		return v.endOf(p, ip)
	}
	return End{Node: v.nodeOf[ip], IPs: []netip.Addr{ip}}
}

// source finds where a packet comes from.
func (v *View) source(s Source) (End, error) {
	switch {
	case s.IP.IsValid():
		if svc := v.serviceAt(s.IP); svc != nil {
			return End{}, fmt.Errorf("%s is an address of service %s/%s, from which no packet comes", s.IP, svc.Namespace, svc.Name)
		}
		return v.ipEnd(s.IP), nil
	case s.Node != "":
		if _, ok := v.nodes[s.Node]; !ok {
			return End{}, fmt.Errorf("there is no node %s", s.Node)
		}
		return End{Node: s.Node, IPs: v.sendsWith(s.Node)}, nil
	}
	e, err := v.podEnd(s.Pod)
	if e.HostNetwork {
		e.IPs = v.sendsWith(e.Node)
	}
	return e, err
}

// sendsWith are the addresses of a node's packets to other nodes' pods: those in the pod network, if they are
// known.
func (v *View) sendsWith(node string) []netip.Addr {
	if ips := v.cluster.sends[node]; len(ips) > 0 {
		return ips
	}
	return v.nodes[node]
}
