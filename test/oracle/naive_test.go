// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/compile"
	"github.com/heliograph-dev/heliograph/policy/eval"
)

// candidate is a policy that applies to a pod, or one of Kubernetes.
type candidate struct {
	tier, name, namespace string
	order                 int64
	spec                  *v1alpha1.PolicySpec
	kind                  policy.Kind
}

// decide walks the tiers for one pod.
func (n *naive) decide(pod *corev1.Pod, d policy.Direction, p eval.Packet) bool {
	list := n.candidates(pod, d)
	for len(list) > 0 {
		end := 0
		for end < len(list) && list[end].tier == list[0].tier {
			end++
		}
		if action := n.ask(list[:end], d, p); action != v1alpha1.RulePass {
			return action == v1alpha1.RuleAllow
		}
		list = list[end:]
	}
	return true
}

func (n *naive) ask(policies []candidate, d policy.Direction, p eval.Packet) v1alpha1.RuleAction {
	enforced := false
	for _, c := range policies {
		if c.spec == nil {
			enforced = true
			if p.Protocol == policy.TCP && p.DstPort == 80 {
				return v1alpha1.RuleAllow
			}
			continue
		}
		if c.spec.Enforcement == v1alpha1.Audit {
			continue
		}
		enforced = true
		rules := c.spec.Ingress
		if d == policy.Egress {
			rules = c.spec.Egress
		}
		for i := range rules {
			if rules[i].Action != v1alpha1.RuleLog && n.matches(c, &rules[i], d, p) {
				return rules[i].Action
			}
		}
	}
	if _, action := n.tier(policies[0].tier); enforced && action == v1alpha1.TierDeny {
		return v1alpha1.RuleDeny
	}
	return v1alpha1.RulePass
}

func (n *naive) tier(name string) (order int64, action v1alpha1.TierAction) {
	for _, t := range n.tiers {
		if t.Name == name {
			return orderOf(t.Spec.Order), t.Spec.DefaultAction
		}
	}
	if name == policy.DefaultTier {
		return 1_000_000, v1alpha1.TierDeny
	}
	return math.MinInt64, v1alpha1.TierDeny
}

func orderOf(o *int32) int64 {
	if o == nil {
		return math.MaxInt64
	}
	return int64(*o)
}

func (n *naive) candidates(pod *corev1.Pod, d policy.Direction) []candidate {
	var list []candidate
	for _, p := range n.policies {
		if p.Namespace == pod.Namespace && d == policy.Ingress {
			list = append(list, candidate{tier: policy.DefaultTier, name: p.Name, namespace: p.Namespace, order: 1000})
		}
	}
	add := func(name, namespace string, spec *v1alpha1.PolicySpec, kind policy.Kind) {
		if n.subject(pod, spec) && slices.Contains(types(spec), map[policy.Direction]v1alpha1.PolicyType{policy.Ingress: "Ingress", policy.Egress: "Egress"}[d]) {
			list = append(list, candidate{tier: spec.Tier, name: name, namespace: namespace, order: orderOf(spec.Order), spec: spec, kind: kind})
		}
	}
	for _, p := range n.ours {
		if p.Namespace == pod.Namespace {
			add(p.Name, p.Namespace, &p.Spec, policy.HeliographNetworkPolicy)
		}
	}
	for _, p := range n.globals {
		if selects(string(p.Spec.NamespaceSelector), n.namespaceLabels(pod.Namespace)) {
			add(p.Name, "", &p.Spec.PolicySpec, policy.GlobalNetworkPolicy)
		}
	}
	slices.SortFunc(list, func(a, b candidate) int {
		oa, _ := n.tier(a.tier)
		ob, _ := n.tier(b.tier)
		return cmp.Or(cmp.Compare(oa, ob), strings.Compare(a.tier, b.tier), cmp.Compare(a.order, b.order),
			strings.Compare(a.name, b.name), cmp.Compare(a.kind, b.kind))
	})
	return list
}

func types(s *v1alpha1.PolicySpec) []v1alpha1.PolicyType {
	switch {
	case len(s.Types) > 0:
		return s.Types
	case len(s.Egress) == 0:
		return []v1alpha1.PolicyType{"Ingress"}
	case len(s.Ingress) == 0:
		return []v1alpha1.PolicyType{"Egress"}
	}
	return []v1alpha1.PolicyType{"Ingress", "Egress"}
}

func selects(text string, l map[string]string) bool {
	if f, ok := expressions[text]; ok {
		return f(l)
	}
	return namespaceExpressions[text](l)
}

func (n *naive) namespaceLabels(name string) map[string]string {
	for _, ns := range n.namespaces {
		if ns.Name == name {
			return ns.Labels
		}
	}
	return nil
}

func (n *naive) subject(pod *corev1.Pod, s *v1alpha1.PolicySpec) bool {
	return selects(string(s.Selector), pod.Labels) && (s.ServiceAccountSelector == "" || n.runsAs(pod, nil, string(s.ServiceAccountSelector)))
}

// runsAs: of an account that nobody made, only the name is known.
func (n *naive) runsAs(pod *corev1.Pod, names []string, text string) bool {
	if len(names) > 0 && !slices.Contains(names, pod.Spec.ServiceAccountName) {
		return false
	}
	for _, a := range n.accounts {
		if a.Namespace == pod.Namespace && a.Name == pod.Spec.ServiceAccountName {
			return selects(text, a.Labels)
		}
	}
	return text == ""
}

func (n *naive) matches(c candidate, r *v1alpha1.Rule, d policy.Direction, p eval.Packet) bool {
	if r.IPVersion != nil && (*r.IPVersion == 4) != p.Dst.Is4() {
		return false
	}
	if !n.endMatches(c, &r.Source, p.Src, p, false) || !n.endMatches(c, &r.Destination, p.Dst, p, true) {
		return false
	}
	if r.Protocol != nil && !isProtocol(r.Protocol, p.Protocol) || r.NotProtocol != nil && isProtocol(r.NotProtocol, p.Protocol) {
		return false
	}
	if r.ICMP != nil && !isICMP(r.ICMP, p) || r.NotICMP != nil && isICMP(r.NotICMP, p) {
		return false
	}
	own := map[bool]bool{false: d == policy.Egress, true: d == policy.Ingress} // by whether it is the destination
	for _, e := range []struct {
		rule        *v1alpha1.EntityRule
		ip          netip.Addr
		port        uint16
		destination bool
	}{{&r.Source, p.Src, p.SrcPort, false}, {&r.Destination, p.Dst, p.DstPort, true}} {
		if len(e.rule.Ports) > 0 && !n.isPort(c, e.rule, e.rule.Ports, own[e.destination], e.ip, e.port, p) {
			return false
		}
		if len(e.rule.NotPorts) > 0 && n.isPort(c, e.rule, e.rule.NotPorts, own[e.destination], e.ip, e.port, p) {
			return false
		}
	}
	return true
}

func isProtocol(want *intstr.IntOrString, got policy.Protocol) bool {
	return want.String() == got.String() || want.Type == intstr.Int && int(want.IntVal) == int(got)
}

func isICMP(f *v1alpha1.ICMPFields, p eval.Packet) bool {
	return *f.Type == int32(p.ICMPType) && (f.Code == nil || *f.Code == int32(p.ICMPCode))
}

// isPort looks a name up on the pod at that address, if it is among those that the end is about.
func (n *naive) isPort(c candidate, e *v1alpha1.EntityRule, ports []intstr.IntOrString, own bool, ip netip.Addr, port uint16, p eval.Packet) bool {
	for _, want := range ports {
		first, last, isRange := strings.Cut(want.String(), ":")
		if !isRange {
			last = first
		}
		var a, b int
		if _, err := fmt.Sscan(first, &a); err == nil {
			if _, err := fmt.Sscan(last, &b); err == nil && a <= int(port) && int(port) <= b {
				return true
			}
			continue
		}
		for _, pod := range n.podsAt(ip) {
			among := own && n.subject(pod, c.spec) && (c.namespace == "" || c.namespace == pod.Namespace) || !own
			if given(c, e) {
				among = n.podSelected(c, e, pod)
			}
			if among && hasPort(pod, want.StrVal, p.Protocol, port) {
				return true
			}
		}
	}
	return false
}

func hasPort(pod *corev1.Pod, name string, protocol policy.Protocol, port uint16) bool {
	for _, c := range pod.Spec.Containers {
		for _, cp := range c.Ports {
			if cp.Name == name && string(cp.Protocol) == protocol.String() && cp.ContainerPort == int32(port) {
				return true
			}
		}
	}
	return false
}

func (n *naive) podsAt(ip netip.Addr) []*corev1.Pod {
	var list []*corev1.Pod
	for _, p := range n.pods {
		if !p.Spec.HostNetwork && slices.ContainsFunc(p.Status.PodIPs, func(i corev1.PodIP) bool { return netip.MustParseAddr(i.IP) == ip }) {
			list = append(list, p)
		}
	}
	return list
}

// given says whether an end has a selector, which then limits it to pods and sets.
func given(c candidate, e *v1alpha1.EntityRule) bool {
	a := e.ServiceAccounts
	return e.Selector != "" || e.NamespaceSelector != "" || a != nil && (len(a.Names) > 0 || a.Selector != "") || e.NotSelector != "" && c.namespace != ""
}

func (n *naive) podSelected(c candidate, e *v1alpha1.EntityRule, pod *corev1.Pod) bool {
	if a := e.ServiceAccounts; a != nil && !n.runsAs(pod, a.Names, a.Selector) {
		return false
	}
	return selects(e.Selector, pod.Labels) && n.inNamespace(c, e, pod.Namespace)
}

func (n *naive) setSelected(c candidate, e *v1alpha1.EntityRule, l map[string]string, namespace string) bool {
	a := e.ServiceAccounts
	return (a == nil || len(a.Names) == 0 && a.Selector == "") && selects(e.Selector, l) && n.inNamespace(c, e, namespace)
}

func (n *naive) inNamespace(c candidate, e *v1alpha1.EntityRule, namespace string) bool {
	if e.NamespaceSelector != "" {
		return selects(e.NamespaceSelector, n.namespaceLabels(namespace))
	}
	return c.namespace == "" || c.namespace == namespace
}

func (n *naive) endMatches(c candidate, e *v1alpha1.EntityRule, ip netip.Addr, p eval.Packet, destination bool) bool {
	if e.Services != nil {
		return n.inService(e.Services, ip, p, destination)
	}
	if len(e.Nets) > 0 && !within(e.Nets, ip) || within(e.NotNets, ip) {
		return false
	}
	if e.NotSelector != "" && n.anywhere(&v1alpha1.EntityRule{Selector: e.NotSelector}, candidate{}, ip) {
		return false
	}
	return !given(c, e) || n.anywhere(e, c, ip)
}

// anywhere says whether a pod or a set that the end selects has the address.
func (n *naive) anywhere(e *v1alpha1.EntityRule, c candidate, ip netip.Addr) bool {
	for _, p := range n.podsAt(ip) {
		if n.podSelected(c, e, p) {
			return true
		}
	}
	for _, s := range n.sets {
		if within(s.Spec.Nets, ip) && n.setSelected(c, e, s.Labels, s.Namespace) {
			return true
		}
	}
	for _, s := range n.global {
		if within(s.Spec.Nets, ip) && n.setSelected(c, e, s.Labels, "") {
			return true
		}
	}
	return false
}

func (n *naive) inService(s *v1alpha1.ServiceMatch, ip netip.Addr, p eval.Packet, destination bool) bool {
	for _, slice := range n.slices {
		if slice.Namespace != s.Namespace || slice.Labels[discoveryv1.LabelServiceName] != s.Name {
			continue
		}
		for _, e := range slice.Endpoints {
			port := slice.Ports[0]
			if netip.MustParseAddr(e.Addresses[0]) == ip && (!destination || string(*port.Protocol) == p.Protocol.String() && *port.Port == int32(p.DstPort)) {
				return true
			}
		}
	}
	return false
}

func within(nets []string, ip netip.Addr) bool {
	return slices.ContainsFunc(nets, func(text string) bool {
		if n, err := netip.ParsePrefix(text); err == nil {
			return n.Contains(ip)
		}
		return netip.MustParseAddr(text) == ip
	})
}

func (n *naive) allows(p eval.Packet) bool {
	src, dst := n.podsAt(p.Src), n.podsAt(p.Dst)
	if p.Src == p.Dst && len(src) > 0 {
		return true
	}
	for _, pod := range src {
		if !n.decide(pod, policy.Egress, p) {
			return false
		}
	}
	for _, pod := range dst {
		if !n.decide(pod, policy.Ingress, p) {
			return false
		}
	}
	return true
}

// compiled is the same world, through the compiler, for each node.
func (n *naive) compiled(t *testing.T) ours {
	t.Helper()
	return n.world.oursWith(t, func(c *compile.Compiler) {
		for _, o := range n.tiers {
			c.SetTier(o)
		}
		for _, o := range n.ours {
			c.SetPolicy(o)
		}
		for _, o := range n.globals {
			c.SetGlobalPolicy(o)
		}
		for _, o := range n.sets {
			c.SetNetworkSet(o)
		}
		for _, o := range n.global {
			c.SetGlobalNetworkSet(o)
		}
		for _, o := range n.accounts {
			c.SetServiceAccount(o)
		}
		for _, o := range n.slices {
			c.SetEndpointSlice(o)
		}
	})
}

// TestNaive compares our own policies with what docs/policy.md says of them.
func TestNaive(t *testing.T) {
	first := *firstSeed
	if first == 0 {
		first = uint64(time.Now().UnixNano()) >> 10
	}
	var cases, denied int
	for seed := first; seed < first+worlds; seed++ {
		n := newNaive(seed)
		us := n.compiled(t)
		for range packetsPerWorld {
			p := n.packet()
			if p.Protocol == policy.ICMP || p.Protocol == policy.ICMPv6 {
				p.ICMPType, p.ICMPCode = pick[uint8](n.world, 8, 0), pick[uint8](n.world, 0, 1)
			}
			got, want := us.allows(p), n.allows(p)
			if cases++; !want {
				denied++
			}
			if got != want {
				t.Fatalf("seed %d: %+v: we allow it: %v, it should be %v\npolicies: %s\n%s", seed, p, got, want, dump(n.ours), dump(n.globals))
			}
		}
	}
	t.Logf("seeds %d to %d: %d cases, of which %d are denied", first, first+worlds-1, cases, denied)
	if denied < cases/10 || denied > cases*9/10 {
		t.Errorf("%d cases, of which %d are denied, say too little", cases, denied)
	}
}
