// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"fmt"
	"math/rand/v2"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// expressions are selectors, each with its meaning. What is in no namespace has nil for the labels of it.
var expressions = map[string]func(l map[string]string) bool{
	"":                          func(map[string]string) bool { return true },
	"app == 'a'":                func(l map[string]string) bool { return l["app"] == "a" },
	"app != 'a'":                func(l map[string]string) bool { return l["app"] != "a" },
	"tier in {'b', 'c'}":        func(l map[string]string) bool { return l["tier"] == "b" || l["tier"] == "c" },
	"tier not in {'b'}":         func(l map[string]string) bool { return l["tier"] != "b" },
	"has(app)":                  func(l map[string]string) bool { _, ok := l["app"]; return ok },
	"!has(tier)":                func(l map[string]string) bool { _, ok := l["tier"]; return !ok },
	"app == 'a' || tier == 'b'": func(l map[string]string) bool { return l["app"] == "a" || l["tier"] == "b" },
	"has(app) && !(tier == 'c')": func(l map[string]string) bool {
		_, ok := l["app"]
		return ok && l["tier"] != "c"
	},
}

// namespaceExpressions exist as selectors of namespaces alone.
var namespaceExpressions = map[string]func(l map[string]string) bool{
	"all()":                                func(l map[string]string) bool { return l != nil },
	"global()":                             func(l map[string]string) bool { return l == nil },
	"kubernetes.io/metadata.name == 'ns1'": func(l map[string]string) bool { return l[corev1.LabelMetadataName] == "ns1" },
	"global() || app == 'a'":               func(l map[string]string) bool { return l == nil || l["app"] == "a" },
}

// naive reads policies as docs/policy.md says, one packet at a time, and remembers nothing.
type naive struct {
	*world
	tiers    []*v1alpha1.Tier
	ours     []*v1alpha1.NetworkPolicy
	globals  []*v1alpha1.GlobalNetworkPolicy
	sets     []*v1alpha1.NetworkSet
	global   []*v1alpha1.GlobalNetworkSet
	accounts []*corev1.ServiceAccount
	slices   []*discoveryv1.EndpointSlice
}

func newNaive(seed uint64) *naive {
	n := &naive{world: newWorld(seed)}
	n.Rand = rand.New(rand.NewPCG(seed, 1))
	n.clusters, n.policies = nil, nil
	for i := range n.IntN(3) {
		n.policies = append(n.policies, n.kubernetes(fmt.Sprintf("k%d", i)))
	}
	for i := range 1 + n.IntN(3) {
		t := &v1alpha1.Tier{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("t%d", i)}}
		t.Spec.Order = pick(n.world, nil, ptr.To[int32](5), ptr.To[int32](2_000_000))
		t.Spec.DefaultAction = pick(n.world, v1alpha1.TierDeny, v1alpha1.TierPass)
		n.tiers = append(n.tiers, t)
	}
	for i := range n.IntN(5) {
		p := &v1alpha1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: pick(n.world, "ns0", "ns1", "ns2"), Name: fmt.Sprintf("o%d", i)}, Spec: n.spec()}
		n.ours = append(n.ours, p)
	}
	for i := range n.IntN(4) {
		p := &v1alpha1.GlobalNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("o%d", i)}}
		p.Spec.PolicySpec, p.Spec.NamespaceSelector = n.spec(), v1alpha1.Selector(n.namespaceExpression())
		n.globals = append(n.globals, p)
	}
	for i, ns := range n.namespaces {
		n.sets = append(n.sets, &v1alpha1.NetworkSet{ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: "s", Labels: n.labels()}, Spec: n.networks()})
		n.accounts = append(n.accounts, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: "client", Labels: n.labels()}})
		n.global = append(n.global, &v1alpha1.GlobalNetworkSet{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("g%d", i), Labels: n.labels()}, Spec: n.networks()})
		n.slices = append(n.slices, n.slice(ns.Name))
	}
	for _, p := range n.pods {
		p.Spec.ServiceAccountName = pick(n.world, "client", "unknown")
	}
	return n
}

func (n *naive) expression() string {
	return pick(n.world, slices.Sorted(keys(expressions))...)
}

func (n *naive) namespaceExpression() string {
	if n.IntN(2) == 0 {
		return n.expression()
	}
	return pick(n.world, slices.Sorted(keys(namespaceExpressions))...)
}

func keys[V any](m map[string]V) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (n *naive) networks() v1alpha1.NetworkSetSpec {
	var s v1alpha1.NetworkSetSpec
	for range n.IntN(3) {
		s.Nets = append(s.Nets, pick(n.world, "203.0.113.0/24", "203.0.113.5", "10.244.1.0/24", "2001:db8::/32", "fd00:244::2:0/112", "0.0.0.0/0"))
	}
	return s
}

func (n *naive) slice(namespace string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "svc-1", Labels: map[string]string{discoveryv1.LabelServiceName: "svc"}}}
	for range n.IntN(4) {
		ip := pick(n.world, pick(n.world, n.pods...).Status.PodIPs...).IP
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}})
	}
	protocol := n.protocol()
	s.Ports = []discoveryv1.EndpointPort{{Port: ptr.To(pick[int32](n.world, 53, 80)), Protocol: &protocol}}
	return s
}

// kubernetes is a policy so simple that its meaning is a line: a port of TCP, or nothing.
func (n *naive) kubernetes(name string) *networkingv1.NetworkPolicy {
	port := intstr.FromInt32(80)
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: pick(n.world, "ns0", "ns1"), Name: name}}
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{{Port: &port}}}}
	return p
}

func (n *naive) spec() v1alpha1.PolicySpec {
	s := v1alpha1.PolicySpec{
		Tier: pick(n.world, "default", "default", "t0", "t1"), Selector: v1alpha1.Selector(n.expression()),
		Order: pick(n.world, nil, ptr.To[int32](-1), ptr.To[int32](1000), ptr.To[int32](1000), ptr.To[int32](2000)),
		Types: pick(n.world, nil, []v1alpha1.PolicyType{"Ingress"}, []v1alpha1.PolicyType{"Egress"}, []v1alpha1.PolicyType{"Ingress", "Egress"}),
	}
	if n.IntN(4) == 0 {
		s.ServiceAccountSelector = v1alpha1.Selector(n.expression())
	}
	if n.IntN(8) == 0 {
		s.Enforcement = v1alpha1.Audit
	}
	for range n.IntN(4) {
		s.Ingress = append(s.Ingress, n.rule(false))
	}
	for range n.IntN(4) {
		s.Egress = append(s.Egress, n.rule(true))
	}
	return s
}

func (n *naive) rule(egress bool) v1alpha1.Rule {
	r := v1alpha1.Rule{Action: pick(n.world, v1alpha1.RuleAllow, v1alpha1.RuleAllow, v1alpha1.RuleDeny, v1alpha1.RulePass, v1alpha1.RuleLog)}
	r.Source, r.Destination = n.end(), n.end()
	if n.IntN(3) == 0 {
		r.IPVersion = ptr.To(pick[int32](n.world, 4, 6))
	}
	switch n.IntN(5) {
	case 0, 1:
		r.Protocol = ptr.To(intstr.FromString(pick(n.world, "TCP", "UDP")))
		r.Destination.Ports, r.Destination.NotPorts, r.Source.NotPorts = n.portList(), n.portList(), n.portList()
	case 2:
		r.NotProtocol = ptr.To(pick(n.world, intstr.FromString("TCP"), intstr.FromInt32(17)))
	case 3:
		r.Protocol = ptr.To(intstr.FromString("ICMP"))
		r.IPVersion = nil
		r.ICMP = pick(n.world, nil, &v1alpha1.ICMPFields{Type: ptr.To[int32](8)})
		r.NotICMP = pick(n.world, nil, &v1alpha1.ICMPFields{Type: ptr.To[int32](8), Code: ptr.To[int32](1)})
	case 4:
		service := v1alpha1.EntityRule{Services: &v1alpha1.ServiceMatch{Name: pick(n.world, "svc", "none"), Namespace: pick(n.world, "ns0", "ns1")}}
		if egress {
			r.Destination = service
		} else {
			r.Source = service
		}
	}
	return r
}

func (n *naive) portList() []intstr.IntOrString {
	var list []intstr.IntOrString
	for range n.IntN(3) {
		list = append(list, pick(n.world, intstr.FromInt32(80), intstr.FromString("http"), intstr.FromString("dns"), intstr.FromString("50:81"), intstr.FromInt32(443)))
	}
	return list
}

func (n *naive) end() v1alpha1.EntityRule {
	var e v1alpha1.EntityRule
	if n.IntN(2) == 0 {
		e.Selector = n.expression()
	}
	if n.IntN(4) == 0 {
		e.NamespaceSelector = n.namespaceExpression()
	}
	if n.IntN(6) == 0 {
		e.NotSelector = n.expression()
	}
	if n.IntN(6) == 0 {
		e.ServiceAccounts = &v1alpha1.ServiceAccountMatch{Names: pick(n.world, nil, []string{"client"}, []string{"unknown", "client"}), Selector: n.expression()}
	}
	if n.IntN(5) == 0 {
		e.Nets = []string{pick(n.world, "10.244.0.0/16", "::/0", "203.0.113.5")}
	}
	if n.IntN(5) == 0 {
		e.NotNets = []string{pick(n.world, "10.244.1.0/24", "fd00:244::2:0/112")}
	}
	return e
}
