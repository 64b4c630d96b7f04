// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/compile"
	"github.com/heliograph-dev/heliograph/policy/eval"
)

// nodes of a world: each compiles for its own pods alone.
const nodes = 2

// world is a cluster: valid objects, as an API server lets them pass.
type world struct {
	*rand.Rand
	pods       []*corev1.Pod
	namespaces []*corev1.Namespace
	policies   []*networkingv1.NetworkPolicy
	nodes      []*corev1.Node
	clusters   []*policyv1alpha2.ClusterNetworkPolicy
}

func pick[T any](w *world, from ...T) T { return from[w.IntN(len(from))] }

func newWorld(seed uint64) *world {
	w := &world{Rand: rand.New(rand.NewPCG(seed, 0))}
	for i := range 3 {
		name := fmt.Sprintf("ns%d", i)
		l := w.labels()
		l[corev1.LabelMetadataName] = name
		w.namespaces = append(w.namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: l}})
		for j := range 5 {
			w.pods = append(w.pods, w.pod(name, i, j))
		}
	}
	for i := range 1 + w.IntN(9) {
		w.policies = append(w.policies, w.policy(pick(w, "ns0", "ns1", "ns2"), fmt.Sprintf("p%d", i)))
	}
	for i := range nodes {
		w.nodes = append(w.nodes, w.node(i))
	}
	for i := range w.IntN(6) {
		w.clusters = append(w.clusters, w.cluster(fmt.Sprintf("c%d", i)))
	}
	return w
}

func (w *world) labels() map[string]string {
	l := map[string]string{}
	for _, k := range []string{"app", "tier", "example.com/env"} {
		if w.IntN(3) > 0 {
			l[k] = pick(w, "a", "b", "c", "")
		}
	}
	return l
}

func (w *world) pod(namespace string, i, j int) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("pod%d", j), Labels: w.labels()}}
	p.Spec.NodeName = fmt.Sprintf("node%d", w.IntN(nodes))
	p.Spec.HostNetwork = w.IntN(12) == 0
	// In canonical form: the oracle finds pods by the text of their addresses.
	v4, v6 := corev1.PodIP{IP: fmt.Sprintf("10.244.%d.%d", i, 10+j)}, corev1.PodIP{IP: fmt.Sprintf("fd00:244::%d:%d", i+1, 10+j)}
	p.Status.PodIPs = pick(w, []corev1.PodIP{v4, v6}, []corev1.PodIP{v4, v6}, []corev1.PodIP{v4}, []corev1.PodIP{v6})
	p.Status.PodIP = p.Status.PodIPs[0].IP
	for c := range 2 {
		var ports []corev1.ContainerPort
		for range w.IntN(3) {
			ports = append(ports, corev1.ContainerPort{
				Name: pick(w, "http", "dns", ""), ContainerPort: pick[int32](w, 53, 80, 8080), Protocol: w.protocol(),
			})
		}
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: fmt.Sprintf("c%d", c), Ports: ports})
	}
	return p
}

func (w *world) protocol() corev1.Protocol {
	return pick(w, corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
}

func (w *world) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	if w.IntN(3) == 0 {
		s.MatchLabels = map[string]string{pick(w, "app", "tier"): pick(w, "a", "b", "")}
	}
	for range w.IntN(3) {
		e := metav1.LabelSelectorRequirement{
			Key:      pick(w, "app", "tier", "example.com/env"),
			Operator: pick(w, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist),
		}
		if e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn {
			for range 1 + w.IntN(3) {
				e.Values = append(e.Values, pick(w, "a", "b", "c", ""))
			}
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return s
}

func (w *world) namespaceSelector() *metav1.LabelSelector {
	if w.IntN(3) == 0 {
		return &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: pick(w, "ns0", "ns1", "ns2")}}
	}
	return w.selector()
}

func (w *world) block() *networkingv1.IPBlock {
	return pick(w,
		&networkingv1.IPBlock{CIDR: "10.244.0.0/16"},
		&networkingv1.IPBlock{CIDR: "10.244.0.0/16", Except: []string{"10.244.1.0/24", "10.244.2.12/32", "10.244.1.8/29"}},
		&networkingv1.IPBlock{CIDR: "0.0.0.0/0", Except: []string{"10.244.0.0/23", "203.0.113.0/25"}},
		&networkingv1.IPBlock{CIDR: "0.0.0.0/0", Except: []string{"0.0.0.0/1", "128.0.0.0/1"}},
		&networkingv1.IPBlock{CIDR: "fd00:244::/64", Except: []string{"fd00:244::2:0/112"}},
		&networkingv1.IPBlock{CIDR: "::/0"},
		&networkingv1.IPBlock{CIDR: "203.0.113.77/24"},
	)
}

func (w *world) peers() []networkingv1.NetworkPolicyPeer {
	list := pick(w, nil, []networkingv1.NetworkPolicyPeer{})
	for range w.IntN(4) {
		switch w.IntN(4) {
		case 0:
			list = append(list, networkingv1.NetworkPolicyPeer{IPBlock: w.block()})
		case 1:
			list = append(list, networkingv1.NetworkPolicyPeer{PodSelector: w.selector()})
		case 2:
			list = append(list, networkingv1.NetworkPolicyPeer{NamespaceSelector: w.namespaceSelector()})
		case 3:
			list = append(list, networkingv1.NetworkPolicyPeer{PodSelector: w.selector(), NamespaceSelector: w.namespaceSelector()})
		}
	}
	return list
}

func (w *world) ports() []networkingv1.NetworkPolicyPort {
	var list []networkingv1.NetworkPolicyPort
	for range w.IntN(4) {
		protocol := w.protocol()
		p := networkingv1.NetworkPolicyPort{Protocol: &protocol}
		switch w.IntN(5) {
		case 0: // every port
		case 1, 2:
			port := intstr.FromString(pick(w, "http", "dns"))
			p.Port = &port
		case 3:
			port := intstr.FromInt32(pick[int32](w, 53, 80, 443))
			p.Port = &port
		case 4:
			port, end := intstr.FromInt32(pick[int32](w, 50, 80, 1)), pick[int32](w, 80, 442, 65535)
			p.Port, p.EndPort = &port, &end
		}
		list = append(list, p)
	}
	return list
}

func (w *world) policy(namespace, name string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	p.Spec.PodSelector = *w.selector()
	in, out := networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress
	p.Spec.PolicyTypes = pick(w, nil, []networkingv1.PolicyType{in}, []networkingv1.PolicyType{out}, []networkingv1.PolicyType{in, out})
	if w.IntN(8) == 0 {
		p.Spec.Ingress, p.Spec.Egress = []networkingv1.NetworkPolicyIngressRule{}, []networkingv1.NetworkPolicyEgressRule{}
	}
	for range w.IntN(4) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: w.peers(), Ports: w.ports()})
	}
	for range w.IntN(4) {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: w.peers(), Ports: w.ports()})
	}
	return p
}

// packet goes between two addresses of a family: of pods, or of the outside.
func (w *world) packet() eval.Packet {
	v6 := w.IntN(2) == 0
	p := eval.Packet{Src: w.address(v6), Dst: w.address(v6), SrcPort: uint16(1024 + w.IntN(60000))}
	p.Protocol = pick(w, policy.TCP, policy.TCP, policy.TCP, policy.UDP, policy.UDP, policy.SCTP, policy.ICMP, policy.Protocol(47))
	if p.Protocol.HasPorts() {
		p.DstPort = pick[uint16](w, 53, 80, 81, 443, 8080, 65535, 1)
	} else {
		p.SrcPort = 0
	}
	if p.Protocol == policy.ICMP && v6 {
		p.Protocol = policy.ICMPv6
	}
	return p
}

func (w *world) address(v6 bool) netip.Addr {
	for w.IntN(6) > 0 {
		ips := pick(w, w.pods...).Status.PodIPs
		if ip := netip.MustParseAddr(pick(w, ips...).IP); ip.Is6() == v6 {
			return ip
		}
	}
	if v6 {
		return netip.MustParseAddr(pick(w, "2001:db8::1", "fd00:244::2:ff", "fd00:11::1"))
	}
	return netip.MustParseAddr(pick(w, "203.0.113.5", "203.0.113.200", "10.244.1.200", "192.0.2.1", "192.168.11.1"))
}

// ours is an evaluator per node, of which each knows the endpoints of that node alone.
type ours [nodes]*eval.Evaluator

func (w *world) ours(t *testing.T) ours {
	t.Helper()
	return w.oursWith(t, func(*compile.Compiler) {})
}

// oursWith hands each compiler over, to be given more than the world has.
func (w *world) oursWith(t *testing.T, more func(*compile.Compiler)) ours {
	t.Helper()
	var o ours
	for i := range o {
		c := compile.New()
		for _, n := range w.namespaces {
			c.SetNamespace(n)
		}
		for _, p := range w.policies {
			c.SetNetworkPolicy(p)
		}
		for _, n := range w.nodes {
			c.SetNode(n)
		}
		for _, p := range w.clusters {
			c.SetClusterNetworkPolicy(p)
		}
		for _, p := range w.pods {
			c.SetPod(p)
			if !p.Spec.HostNetwork && p.Spec.NodeName == fmt.Sprintf("node%d", i) {
				c.SetWorkload(workload(p))
			}
		}
		more(c)
		for _, p := range c.Problems() {
			if !p.Missing {
				t.Fatalf("valid policies are refused: %s", p)
			}
		}
		s := policy.NewState()
		if err := s.Apply(c.Flush()); err != nil {
			t.Fatal(err)
		}
		o[i] = eval.New(s)
	}
	return o
}

func workload(p *corev1.Pod) compile.Workload {
	w := compile.Workload{ID: policy.EndpointID{Namespace: p.Namespace, Name: p.Name}}
	for _, ip := range p.Status.PodIPs {
		w.IPs = append(w.IPs, netip.MustParseAddr(ip.IP))
	}
	return w
}

// allows asks every node, of which those that have neither end allow.
func (o ours) allows(p eval.Packet) bool {
	for _, e := range o {
		if e.Evaluate(p).Verdict != policy.Allow {
			return false
		}
	}
	return true
}
