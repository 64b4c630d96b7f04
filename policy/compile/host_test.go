// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/policy"
)

func hostEndpoint(name, device string, labels map[string]string, ips ...string) *v1alpha1.HostEndpoint {
	return &v1alpha1.HostEndpoint{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: v1alpha1.HostEndpointSpec{
			Node: "ours", InterfaceName: device, ExpectedIPs: ips,
			Ports: []v1alpha1.HostPort{{Name: "api", Protocol: corev1.ProtocolTCP, Port: 8443}},
		},
	}
}

func globalPolicy(name string, spec v1alpha1.PolicySpec, namespaces v1alpha1.Selector) *v1alpha1.GlobalNetworkPolicy {
	return &v1alpha1.GlobalNetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.GlobalNetworkPolicySpec{PolicySpec: spec, NamespaceSelector: namespaces},
	}
}

// TestWhoSelectsHosts: only policies of the cluster that are not of pods in namespaces or by account.
func TestWhoSelectsHosts(t *testing.T) {
	for _, tt := range []struct {
		name       string
		spec       v1alpha1.PolicySpec
		namespaces v1alpha1.Selector
		want       bool
	}{
		{name: "no selector", want: true},
		{name: "all", spec: v1alpha1.PolicySpec{Selector: "all()"}, want: true},
		{name: "by label", spec: v1alpha1.PolicySpec{Selector: "role == 'node'"}, want: true},
		{name: "by another label", spec: v1alpha1.PolicySpec{Selector: "role == 'pod'"}},
		{name: "of what is in a namespace", namespaces: "all()"},
		{name: "of what is in none", namespaces: "global()", want: true},
		{name: "of a mistaken namespace", namespaces: "("},
		{name: "by service account", spec: v1alpha1.PolicySpec{ServiceAccountSelector: "all()"}},
		{name: "audit", spec: v1alpha1.PolicySpec{Enforcement: v1alpha1.Audit}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := New()
			c.SetFailsafes(Failsafes{VXLAN: 4789, Probe: 4793, BGP: []uint16{179}})
			c.SetHostEndpoint(hostEndpoint("node", policy.AnyDevice, map[string]string{"role": "node"}), true)
			c.SetGlobalPolicy(globalPolicy("p", tt.spec, tt.namespaces))
			s := policy.NewState()
			if err := s.Apply(c.Flush()); err != nil {
				t.Fatal(err)
			}
			var tiers []string
			for _, tier := range s.Endpoints[HostID("node")].Ingress.Tiers {
				tiers = append(tiers, tier.Name)
			}
			var want []string
			if tt.want {
				want = []string{policy.FailsafeTier, policy.DefaultTier}
			}
			if diff := cmp.Diff(want, tiers); diff != "" && tt.spec.Enforcement == "" {
				t.Errorf("tiers (-want +got):\n%s", diff)
			}
			if failsafes := s.Endpoints[HostID("node")].Ingress.Tiers; tt.spec.Enforcement == v1alpha1.Audit && (len(failsafes) != 0) {
				t.Errorf("a host under audit alone has the tiers %v", tiers)
			}
			if err := s.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHostGoes: what was in force because of a host is gone with it, and with its being ours.
func TestHostGoes(t *testing.T) {
	for name, gone := range map[string]func(*Compiler){
		"removed": func(c *Compiler) { c.RemoveHostEndpoint("node") },
		"moved":   func(c *Compiler) { c.SetHostEndpoint(hostEndpoint("node", "eth0", nil), false) },
	} {
		t.Run(name, func(t *testing.T) {
			c, s := New(), policy.NewState()
			c.SetFailsafes(Failsafes{})
			c.SetHostEndpoint(hostEndpoint("node", "eth0", nil), true)
			c.SetGlobalPolicy(globalPolicy("p", v1alpha1.PolicySpec{}, ""))
			if err := s.Apply(c.Flush()); err != nil {
				t.Fatal(err)
			}
			if len(s.Endpoints) != 1 || len(s.Policies) != 2 {
				t.Fatalf("in force: %d endpoints, %d policies", len(s.Endpoints), len(s.Policies))
			}
			gone(c)
			if err := s.Apply(c.Flush()); err != nil {
				t.Fatal(err)
			}
			if len(s.Endpoints) != 0 || len(s.Policies) != 0 || len(s.Sets) != 0 {
				t.Errorf("left: %v %v %v", s.Endpoints, s.Policies, s.Sets)
			}
		})
	}
}

// TestHostsAsPeers: rules find hosts of all nodes by their labels, and their ports by name.
func TestHostsAsPeers(t *testing.T) {
	c, s := New(), policy.NewState()
	c.SetHostEndpoint(hostEndpoint("here", "eth0", map[string]string{"role": "node"}, "192.0.2.1", "2001:db8::1"), true)
	c.SetHostEndpoint(hostEndpoint("there", "eth0", map[string]string{"role": "node"}, "192.0.2.2"), false)
	c.SetGlobalPolicy(globalPolicy("p", v1alpha1.PolicySpec{Ingress: []v1alpha1.Rule{{
		Action: v1alpha1.RuleAllow, Protocol: ptr.To(intstr.FromString("TCP")), Source: v1alpha1.EntityRule{Selector: "role == 'node'"},
		Destination: v1alpha1.EntityRule{Ports: []intstr.IntOrString{intstr.FromString("api")}},
	}}}, ""))
	if err := s.Apply(c.Flush()); err != nil {
		t.Fatal(err)
	}
	got := map[policy.SetID][]string{}
	for _, set := range s.Delta().Sets {
		for _, m := range set.Add {
			got[set.ID] = append(got[set.ID], m.String())
		}
	}
	want := map[policy.SetID][]string{
		"pods and sets(role == 'node')":             {"192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128"},
		"port api/TCP of own pods and hosts(all())": {"192.0.2.1/32 TCP 8443", "2001:db8::1/128 TCP 8443"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sets (-want +got):\n%s", diff)
	}
}

// TestFailsafes: a list that is absent is the default, an empty one is none, and what agents need is in both.
func TestFailsafes(t *testing.T) {
	web := []v1alpha1.ProtoPort{{Protocol: corev1.ProtocolTCP, Port: 8080, Net: "192.0.2.0/24"}, {Protocol: corev1.ProtocolUDP, Port: 53, Net: "2001:db8::1"}}
	for _, tt := range []struct {
		name string
		list *[]v1alpha1.ProtoPort
		more int
	}{{"default", nil, 9}, {"none", &[]v1alpha1.ProtoPort{}, 0}, {"some", &web, 2}} {
		t.Run(tt.name, func(t *testing.T) {
			f := Failsafes{Inbound: tt.list, VXLAN: 4789, Probe: 4793, BGP: []uint16{179}}
			rules := failsafeRules(policy.Ingress, f.Inbound, f.needs(policy.Ingress))
			if got := len(rules) - len(f.needs(policy.Ingress)); got != tt.more {
				t.Errorf("%d rules of the list, want %d", got, tt.more)
			}
		})
	}
}
