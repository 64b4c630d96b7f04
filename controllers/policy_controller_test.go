// SPDX-License-Identifier: Apache-2.0

//go:build linux

package controllers

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/internal/apitest"
	"github.com/heliograph-dev/heliograph/policy"
)

func newPolicy(name string, spec v1alpha1.PolicySpec) *v1alpha1.NetworkPolicy {
	return &v1alpha1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: spec}
}

func toService(name string) []v1alpha1.Rule {
	return []v1alpha1.Rule{{Action: v1alpha1.RuleAllow, Destination: v1alpha1.EntityRule{Services: &v1alpha1.ServiceMatch{Name: name}}}}
}

func testPolicies(t *testing.T, s *suite) {
	s.run(t)
	good := newPolicy("good", v1alpha1.PolicySpec{Order: ptr.To[int32](1000)})
	bad := newPolicy("bad", v1alpha1.PolicySpec{Ingress: []v1alpha1.Rule{{Action: v1alpha1.RuleAllow, Source: v1alpha1.EntityRule{Selector: "app = 'web'"}}}})
	early := newPolicy("early", v1alpha1.PolicySpec{Tier: "security", Egress: toService("dns")})
	audit := &v1alpha1.GlobalNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "audit"}}
	audit.Spec.Enforcement, audit.Spec.Order = v1alpha1.Audit, ptr.To[int32](1000)
	s.create(t, good, bad, early, audit)
	const selector = `spec.ingress[0].source.selector: Invalid value: "app = 'web'": position 5: expected ==, !=, in, not in, contains, starts with or ends with, found "="`
	s.wantReady(t, bad, "False Invalid: "+selector+"; what cannot be read denies everything that reaches it")
	s.wantEvent(t, "NetworkPolicy", "bad", "Warning Invalid")
	s.wantReady(t, good, "True Accepted: in force; GlobalNetworkPolicy audit has the order 1000 too, so that names decide which is asked first")
	s.wantReady(t, audit, "True Accepted: in force as an audit, which decides nothing; NetworkPolicy.heliograph.dev default/good has the order 1000 too, so that names decide which is asked first")
	const tier, service = `spec.tier: there is no Tier "security"; until there is, everything is denied`, "spec.egress[0].destination.services: there is no Service default/dns; until there is, the rule matches nothing"
	s.wantReady(t, early, "False Missing: "+tier+"; "+service)

	// What was missing comes, and what was wrong is put right.
	security := &v1alpha1.Tier{ObjectMeta: metav1.ObjectMeta{Name: "security"}}
	s.create(t, security)
	s.wantReady(t, security, "True Accepted: in force")
	s.wantReady(t, early, "False Missing: "+service)
	s.create(t, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "dns"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 53}}}})
	s.wantReady(t, early, "True Accepted: in force")
	s.wantEvent(t, "NetworkPolicy", "early", "Normal Accepted")
	eventually(t, func() error {
		s.get(t, "security", security)
		if security.Status.Policies != 1 {
			return fmt.Errorf("tier security has %d policies, want 1", security.Status.Policies)
		}
		return nil
	})
	bad.Spec.Ingress[0].Source.Selector = "app == 'web'"
	if err := s.admin.Update(t.Context(), bad); err != nil {
		t.Fatal(err)
	}
	s.wantReady(t, bad, "True Accepted: in force")
	s.delete(t, security)
	s.wantReady(t, early, "False Missing: "+tier)
}

// Policies of Kubernetes that the API server let pass once, and that no node obeys in full.
func TestMistakesOfKubernetes(t *testing.T) {
	zero := intstr.FromInt32(0)
	p := networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}}
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{{Port: &zero}, {Port: &zero}, {Port: &zero}, {Port: &zero}, {Port: &zero}}}}
	v := newPolicyView(&policyLists{k8s: networkingv1.NetworkPolicyList{Items: []networkingv1.NetworkPolicy{p}}})
	const wrong = "Invalid value: 0: is not between 1 and 65535; "
	want := "spec.ingress[0].ports[0].port: " + wrong + "spec.ingress[0].ports[1].port: " + wrong + "spec.ingress[0].ports[2].port: " + wrong + "and 2 more"
	if diff := cmp.Diff(want, v.mistakes(k8sID(&p))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Equal orders matter only among policies that can select the same pods.
func TestNeighbours(t *testing.T) {
	in := func(namespace, name string) policy.PolicyID {
		return policy.PolicyID{Kind: policy.HeliographNetworkPolicy, Namespace: namespace, Name: name}
	}
	global := policy.PolicyID{Kind: policy.GlobalNetworkPolicy, Name: "g"}
	v := newPolicyView(&policyLists{})
	for _, id := range []policy.PolicyID{in("a", "1"), in("a", "2"), in("b", "1")} {
		v.occupy(id, "t", 5)
	}
	const why = "so that names decide which is asked first"
	for _, tt := range []struct {
		id   policy.PolicyID
		want string
	}{
		{in("a", "1"), "; NetworkPolicy.heliograph.dev a/2 has the order 5 too, " + why},
		{in("b", "1"), ""},
		{global, "; NetworkPolicy.heliograph.dev a/1 and 2 more have the order 5 too, " + why},
	} {
		if got := v.neighbours(tt.id, place{"t", 5}); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.id, got, tt.want)
		}
	}
}

// The CRD of ClusterNetworkPolicy may come when the controller runs; nothing else waits for it.
func testClusterPolicies(t *testing.T, s *suite) {
	s.run(t)
	tier := &v1alpha1.Tier{ObjectMeta: metav1.ObjectMeta{Name: "before"}}
	s.create(t, tier)
	s.wantReady(t, tier, "True Accepted: in force")
	_, err := envtest.InstallCRDs(s.rest, envtest.CRDInstallOptions{Paths: []string{filepath.Join(apitest.Root(), "config", "crd", "network-policy-api")}})
	if err != nil {
		t.Fatal(err)
	}
	everybody := policyv1alpha2.ClusterNetworkPolicyEgressPeer{Namespaces: &metav1.LabelSelector{}}
	good := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "good"}}
	good.Spec.Tier, good.Spec.Priority, good.Spec.Subject.Namespaces = policyv1alpha2.AdminTier, 7, &metav1.LabelSelector{}
	good.Spec.Egress = []policyv1alpha2.ClusterNetworkPolicyEgressRule{{
		Action: policyv1alpha2.ClusterNetworkPolicyRuleActionPass, To: []policyv1alpha2.ClusterNetworkPolicyEgressPeer{everybody},
	}}
	names := good.DeepCopy()
	names.Name = "names"
	names.Spec.Egress[0].Action = policyv1alpha2.ClusterNetworkPolicyRuleActionDeny
	names.Spec.Egress[0].To = []policyv1alpha2.ClusterNetworkPolicyEgressPeer{{DomainNames: []policyv1alpha2.DomainName{"example.com"}}}
	s.create(t, good, names)
	s.wantReady(t, good, "True Accepted: in force; ClusterNetworkPolicy names has the order 7 too, so that names decide which is asked first")
	s.wantReady(t, names, "False Invalid: spec.egress[0].to[0].domainNames: Forbidden: only rules that accept have names of domains: what DNS has not told (yet) would not match; "+
		"an Accept rule that is not understood matches nothing, any other denies everything")
	s.wantEvent(t, "ClusterNetworkPolicy", "names", "Warning Invalid")
}
