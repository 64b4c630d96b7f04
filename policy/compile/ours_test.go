// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/policy"
)

// ourWorld is the part of a world that Kubernetes' own NetworkPolicies know nothing of.
type ourWorld struct {
	policies map[policy.EndpointID]*v1alpha1.NetworkPolicy
	globals  map[string]*v1alpha1.GlobalNetworkPolicy
	tiers    map[string]*v1alpha1.Tier
	sets     map[policy.EndpointID]*v1alpha1.NetworkSet
	global   map[string]*v1alpha1.GlobalNetworkSet
	accounts map[policy.EndpointID]*corev1.ServiceAccount
	services map[policy.EndpointID]*corev1.Service
	slices   map[policy.EndpointID]*discoveryv1.EndpointSlice
	clusters map[string]*policyv1alpha2.ClusterNetworkPolicy
	nodes    map[string]*corev1.Node
	domains  map[string][]netip.Addr
}

func newOurWorld() ourWorld {
	return ourWorld{
		policies: map[policy.EndpointID]*v1alpha1.NetworkPolicy{}, globals: map[string]*v1alpha1.GlobalNetworkPolicy{},
		tiers: map[string]*v1alpha1.Tier{}, sets: map[policy.EndpointID]*v1alpha1.NetworkSet{}, global: map[string]*v1alpha1.GlobalNetworkSet{},
		accounts: map[policy.EndpointID]*corev1.ServiceAccount{}, services: map[policy.EndpointID]*corev1.Service{},
		slices: map[policy.EndpointID]*discoveryv1.EndpointSlice{}, clusters: map[string]*policyv1alpha2.ClusterNetworkPolicy{},
		nodes: map[string]*corev1.Node{}, domains: map[string][]netip.Addr{},
	}
}

func (o *ourWorld) compile(c *Compiler) {
	each(o.policies, c.SetPolicy)
	each(o.globals, c.SetGlobalPolicy)
	each(o.slices, c.SetEndpointSlice)
	each(o.services, c.SetService)
	each(o.sets, c.SetNetworkSet)
	each(o.global, c.SetGlobalNetworkSet)
	each(o.accounts, c.SetServiceAccount)
	each(o.tiers, c.SetTier)
	each(o.nodes, func(n *corev1.Node) { c.SetNode(n) })
	for name, at := range o.domains {
		c.SetDomain(name, at)
	}
	each(o.clusters, c.SetClusterNetworkPolicy)
}

func each[K comparable, V any](m map[K]V, f func(V)) {
	for _, v := range m {
		f(v)
	}
}

func (o *ourWorld) remove(c *Compiler) {
	for id := range o.policies {
		c.RemovePolicy(id.Namespace, id.Name)
	}
	for name := range o.globals {
		c.RemoveGlobalPolicy(name)
	}
	for name := range o.tiers {
		c.RemoveTier(name)
	}
	for id := range o.sets {
		c.RemoveNetworkSet(id.Namespace, id.Name)
	}
	for name := range o.global {
		c.RemoveGlobalNetworkSet(name)
	}
	for id := range o.accounts {
		c.RemoveServiceAccount(id.Namespace, id.Name)
	}
	for id := range o.services {
		c.RemoveService(id)
	}
	for id := range o.slices {
		c.RemoveEndpointSlice(id.Namespace, id.Name)
	}
	for name := range o.clusters {
		c.RemoveClusterNetworkPolicy(name)
	}
	for name := range o.nodes {
		c.RemoveNode(name)
	}
	for name := range o.domains {
		c.RemoveDomain(name)
	}
}

// stepOurs changes one object, in the world and in the compiler.
func (w *world) stepOurs(c *Compiler) {
	o := &w.ours
	meta := metav1.ObjectMeta{Namespace: pick(w, "ns0", "ns1", "ns2"), Name: fmt.Sprintf("p%d", w.IntN(3)), Labels: w.labels()}
	id := policy.EndpointID{Namespace: meta.Namespace, Name: meta.Name}
	gone := w.IntN(4) == 0
	switch w.IntN(12) {
	case 0, 1:
		change(o.policies, id, &v1alpha1.NetworkPolicy{ObjectMeta: meta, Spec: w.spec()}, gone, c.SetPolicy, func() { c.RemovePolicy(id.Namespace, id.Name) })
	case 2, 3:
		p := &v1alpha1.GlobalNetworkPolicy{ObjectMeta: meta, Spec: v1alpha1.GlobalNetworkPolicySpec{PolicySpec: w.spec()}}
		p.Namespace, p.Spec.NamespaceSelector = "", v1alpha1.Selector(w.expression("all()", "("))
		change(o.globals, id.Name, p, gone, c.SetGlobalPolicy, func() { c.RemoveGlobalPolicy(id.Name) })
	case 4:
		t := &v1alpha1.Tier{ObjectMeta: metav1.ObjectMeta{Name: pick(w, "t0", "t1")}}
		t.Spec.Order, t.Spec.DefaultAction = w.order(), pick(w, v1alpha1.TierDeny, v1alpha1.TierPass)
		change(o.tiers, t.Name, t, gone, c.SetTier, func() { c.RemoveTier(t.Name) })
	case 5:
		change(o.sets, id, &v1alpha1.NetworkSet{ObjectMeta: meta, Spec: w.networkSet()}, gone, c.SetNetworkSet, func() { c.RemoveNetworkSet(id.Namespace, id.Name) })
	case 6:
		meta.Namespace = ""
		change(o.global, id.Name, &v1alpha1.GlobalNetworkSet{ObjectMeta: meta, Spec: w.networkSet()}, gone, c.SetGlobalNetworkSet, func() { c.RemoveGlobalNetworkSet(id.Name) })
	case 7:
		meta.Name = pick(w, "client", "server")
		id.Name = meta.Name
		change(o.accounts, id, &corev1.ServiceAccount{ObjectMeta: meta}, gone, c.SetServiceAccount, func() { c.RemoveServiceAccount(id.Namespace, id.Name) })
	case 9, 10, 11:
		w.stepCluster(c, gone)
	case 8:
		if w.IntN(3) == 0 {
			meta.Name = "svc0"
			id.Name = meta.Name
			change(o.services, id, &corev1.Service{ObjectMeta: meta}, gone, c.SetService, func() { c.RemoveService(id) })
			return
		}
		change(o.slices, id, w.slice(meta), gone, c.SetEndpointSlice, func() { c.RemoveEndpointSlice(id.Namespace, id.Name) })
	}
}

// stepCluster changes a ClusterNetworkPolicy or a node.
func (w *world) stepCluster(c *Compiler, gone bool) {
	o := &w.ours
	name := fmt.Sprintf("p%d", w.IntN(3))
	switch w.IntN(4) {
	case 0:
		var at []netip.Addr
		for range w.IntN(3) {
			at = append(at, pick(w, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.0.0.3"), netip.MustParseAddr("2001:db8::1")))
		}
		domain := pick(w, "example.com", "www.example.com", "a.www.example.com")
		change(o.domains, domain, at, gone, func(at []netip.Addr) { c.SetDomain(domain, at) }, func() { c.RemoveDomain(domain) })
		return
	case 1:
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: w.labels()}}
		for range w.IntN(3) {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Address: pick(w, "192.0.2.1", "192.0.2.2", "2001:db8::1", "10.0.0.3", "node")})
		}
		change(o.nodes, name, n, gone, func(n *corev1.Node) { c.SetNode(n) }, func() { c.RemoveNode(name) })
		return
	}
	p := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}
	p.Spec.Tier, p.Spec.Priority = pick(w, policyv1alpha2.AdminTier, policyv1alpha2.BaselineTier), int32(w.IntN(2))
	p.Spec.Subject.Namespaces = w.selector(true)
	if w.IntN(2) == 0 {
		p.Spec.Subject = policyv1alpha2.ClusterNetworkPolicySubject{Pods: &policyv1alpha2.NamespacedPod{NamespaceSelector: *w.selector(false), PodSelector: *w.selector(true)}}
	}
	for range w.IntN(3) {
		peer := w.clusterPeer()
		p.Spec.Ingress = append(p.Spec.Ingress, policyv1alpha2.ClusterNetworkPolicyIngressRule{
			Action: w.clusterAction(), From: []policyv1alpha2.ClusterNetworkPolicyIngressPeer{{Namespaces: peer.Namespaces, Pods: peer.Pods}},
			Protocols: w.clusterProtocols(),
		})
	}
	for range w.IntN(3) {
		p.Spec.Egress = append(p.Spec.Egress, policyv1alpha2.ClusterNetworkPolicyEgressRule{
			Action: w.clusterAction(), To: []policyv1alpha2.ClusterNetworkPolicyEgressPeer{w.clusterPeer(), w.clusterPeer()}, Protocols: w.clusterProtocols(),
		})
	}
	change(o.clusters, name, p, gone, c.SetClusterNetworkPolicy, func() { c.RemoveClusterNetworkPolicy(name) })
}

func (w *world) clusterAction() policyv1alpha2.ClusterNetworkPolicyRuleAction {
	return pick(w, policyv1alpha2.ClusterNetworkPolicyRuleActionAccept, policyv1alpha2.ClusterNetworkPolicyRuleActionDeny, policyv1alpha2.ClusterNetworkPolicyRuleActionPass)
}

func (w *world) clusterPeer() policyv1alpha2.ClusterNetworkPolicyEgressPeer {
	switch w.IntN(6) {
	case 0:
		return policyv1alpha2.ClusterNetworkPolicyEgressPeer{Nodes: w.selector(false)}
	case 1:
		return policyv1alpha2.ClusterNetworkPolicyEgressPeer{Networks: []policyv1alpha2.CIDR{pick[policyv1alpha2.CIDR](w, "10.0.0.0/8", "fd00::/16", "ten")}}
	case 2:
		return policyv1alpha2.ClusterNetworkPolicyEgressPeer{Pods: &policyv1alpha2.NamespacedPod{NamespaceSelector: *w.selector(true), PodSelector: *w.selector(true)}}
	case 3:
		if w.IntN(3) == 0 {
			return policyv1alpha2.ClusterNetworkPolicyEgressPeer{DomainNames: []policyv1alpha2.DomainName{pick[policyv1alpha2.DomainName](w, "example.com", "*.example.com", "*.WWW.example.com.", "*")}}
		}
	}
	return policyv1alpha2.ClusterNetworkPolicyEgressPeer{Namespaces: w.selector(false)}
}

func (w *world) clusterProtocols() []policyv1alpha2.ClusterNetworkPolicyProtocol {
	return pick(w, nil,
		[]policyv1alpha2.ClusterNetworkPolicyProtocol{{DestinationNamedPort: "http"}},
		[]policyv1alpha2.ClusterNetworkPolicyProtocol{{TCP: &policyv1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: &policyv1alpha2.Port{Number: 80}}}, {DestinationNamedPort: "dns"}},
	)
}

func change[K comparable, V any](in map[K]V, key K, obj V, gone bool, set func(V), remove func()) {
	if gone {
		delete(in, key)
		remove()
		return
	}
	in[key] = obj
	set(obj)
}

func (w *world) order() *int32 {
	return pick(w, nil, ptr.To[int32](-1), ptr.To[int32](1), ptr.To[int32](1000), ptr.To[int32](2_000_000))
}

func (w *world) networkSet() v1alpha1.NetworkSetSpec {
	var s v1alpha1.NetworkSetSpec
	for range w.IntN(4) {
		s.Nets = append(s.Nets, pick(w, "10.0.0.0/8", "10.0.0.3", "10.0.0.3/32", "fd00::/64", "fd00::5", "192.0.2.0/24"))
	}
	return s
}

func (w *world) slice(meta metav1.ObjectMeta) *discoveryv1.EndpointSlice {
	meta.Labels = map[string]string{serviceLabel: pick(w, "svc0", "svc1", "")}
	s := &discoveryv1.EndpointSlice{ObjectMeta: meta}
	for range w.IntN(3) {
		n := w.IntN(12)
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{pick(w, fmt.Sprintf("10.0.0.%d", n), fmt.Sprintf("fd00::%x", n))}})
	}
	for range w.IntN(3) {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: ptr.To(pick(w, "a", "b")), Port: ptr.To(pick[int32](w, 80, 53)), Protocol: ptr.To(pick(w, corev1.ProtocolTCP, corev1.ProtocolUDP))})
	}
	return s
}

// expression is a selector; nothing, often, and one of the others now and then.
func (w *world) expression(others ...string) string {
	switch w.IntN(8) {
	case 0, 1:
		return ""
	case 2:
		return pick(w, others...)
	}
	key := pick(w, "app", "tier", "env")
	return pick(w,
		key+" == 'a'", key+" != 'b'", key+" in {'a', 'b'}", key+" not in {'c'}", "has("+key+")", "!has("+key+")", key+" contains 'a'",
		"app == 'a' || tier == 'b'", "app == 'a' && !(env in {'b'})",
	)
}

func (w *world) spec() v1alpha1.PolicySpec {
	s := v1alpha1.PolicySpec{
		Tier: pick(w, "", policy.DefaultTier, "t0", "t1"), Order: w.order(), Selector: v1alpha1.Selector(w.expression("all()", "=")),
		Types: pick(w, nil, []v1alpha1.PolicyType{"Ingress"}, []v1alpha1.PolicyType{"Egress"}, []v1alpha1.PolicyType{"Ingress", "Egress"}),
	}
	if w.IntN(4) == 0 {
		s.ServiceAccountSelector = v1alpha1.Selector(w.expression("all()"))
	}
	if w.IntN(6) == 0 {
		s.Enforcement = v1alpha1.Audit
	}
	for range w.IntN(3) {
		s.Ingress = append(s.Ingress, w.rule())
	}
	for range w.IntN(3) {
		s.Egress = append(s.Egress, w.rule())
	}
	return s
}

func (w *world) rule() v1alpha1.Rule {
	r := v1alpha1.Rule{Action: pick(w, v1alpha1.RuleAllow, v1alpha1.RuleAllow, v1alpha1.RuleDeny, v1alpha1.RulePass, v1alpha1.RuleLog)}
	r.Source, r.Destination = w.end(), w.end()
	if w.IntN(2) == 0 {
		r.Protocol = ptr.To(intstr.FromString("TCP"))
		r.Destination.Ports = w.portList()
		r.Source.NotPorts = w.portList()
	}
	if w.IntN(10) == 0 {
		r.Destination = v1alpha1.EntityRule{Services: &v1alpha1.ServiceMatch{Name: pick(w, "svc0", "svc1"), Namespace: pick(w, "", "ns0")}}
	}
	if w.IntN(8) == 0 {
		r.Destination = v1alpha1.EntityRule{Domains: []string{pick(w, "example.com", "*.example.com", "*.WWW.example.com.", "com")}, Ports: r.Destination.Ports}
	}
	if w.IntN(20) == 0 {
		r.IPVersion = ptr.To[int32](5)
	}
	return r
}

func (w *world) portList() []intstr.IntOrString {
	var list []intstr.IntOrString
	for range w.IntN(3) {
		list = append(list, pick(w, intstr.FromInt32(80), intstr.FromString("http"), intstr.FromString("dns"), intstr.FromString("50:60")))
	}
	return list
}

func (w *world) end() v1alpha1.EntityRule {
	var e v1alpha1.EntityRule
	switch w.IntN(6) {
	case 0:
	case 1, 2:
		e.Selector = w.expression("all()", "(")
	case 3:
		e.Selector, e.NamespaceSelector = w.expression("all()"), w.expression("global()", "all()", "kubernetes.io/metadata.name == 'ns1'")
	case 4:
		e.NotSelector, e.Nets = w.expression("all()"), []string{pick(w, "10.0.0.0/8", "fd00::/8", "10.0.0.3")}
	case 5:
		e.ServiceAccounts = &v1alpha1.ServiceAccountMatch{Names: pick(w, nil, []string{"client"}, []string{"client", "server"}), Selector: w.expression("all()")}
		e.NotNets = pick(w, nil, []string{"10.0.0.1"})
	}
	return e
}
