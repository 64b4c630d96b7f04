// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

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
}

func newOurWorld() ourWorld {
	return ourWorld{
		policies: map[policy.EndpointID]*v1alpha1.NetworkPolicy{}, globals: map[string]*v1alpha1.GlobalNetworkPolicy{},
		tiers: map[string]*v1alpha1.Tier{}, sets: map[policy.EndpointID]*v1alpha1.NetworkSet{}, global: map[string]*v1alpha1.GlobalNetworkSet{},
		accounts: map[policy.EndpointID]*corev1.ServiceAccount{}, services: map[policy.EndpointID]*corev1.Service{},
		slices: map[policy.EndpointID]*discoveryv1.EndpointSlice{},
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
}

// stepOurs changes one object, in the world and in the compiler.
func (w *world) stepOurs(c *Compiler) {
	o := &w.ours
	meta := metav1.ObjectMeta{Namespace: pick(w, "ns0", "ns1", "ns2"), Name: fmt.Sprintf("p%d", w.IntN(3)), Labels: w.labels()}
	id := policy.EndpointID{Namespace: meta.Namespace, Name: meta.Name}
	gone := w.IntN(4) == 0
	switch w.IntN(9) {
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
