// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/policy"
)

func ours(t *testing.T, spec string) *v1alpha1.NetworkPolicy {
	t.Helper()
	p := &v1alpha1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "p"}}
	if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
		t.Fatal(err)
	}
	return p
}

func global(t *testing.T, spec string) *v1alpha1.GlobalNetworkPolicy {
	t.Helper()
	p := &v1alpha1.GlobalNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
	if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
		t.Fatal(err)
	}
	return p
}

// read translates a spec as that of a policy of namespace prod, or of the cluster.
func read(t *testing.T, spec string, cluster bool) translation {
	t.Helper()
	if cluster {
		p := global(t, spec)
		return translateOrdered(policy.PolicyID{Kind: policy.GlobalNetworkPolicy, Name: "p"}, &p.Spec.PolicySpec, p.Spec.NamespaceSelector)
	}
	return translateOrdered(policy.PolicyID{Kind: policy.HeliographNetworkPolicy, Namespace: "prod", Name: "p"}, &ours(t, spec).Spec, "")
}

func sets(ids ...policy.SetID) []policy.Addresses { return []policy.Addresses{{Sets: ids}} }

func net(cidr string) policy.Net { return policy.Net{CIDR: netip.MustParsePrefix(cidr)} }

func ports(p ...uint16) policy.Ports {
	var list policy.Ports
	for _, n := range p {
		list.Ranges = append(list.Ranges, policy.PortRange{First: n, Last: n})
	}
	return list
}

// TestOrderedMatch reads one rule each, of ingress unless it has "egress".
func TestOrderedMatch(t *testing.T) {
	const prod = " namespaces(kubernetes.io/metadata.name == 'prod')"
	icmpType := policy.ICMPMatch{HasType: true, Type: 8}
	for _, tt := range []struct {
		name, rule string
		cluster    bool
		egress     bool
		want       policy.Match
	}{
		{name: "nothing matches everything", rule: `{}`},
		{name: "family", rule: `{ipVersion: 6}`, want: policy.Match{Family: policy.IPv6}},
		{name: "a selector is of the policy's namespace", rule: `{source: {selector: "app == 'web'"}}`, want: policy.Match{Source: policy.Peer{Within: sets("pods and sets(app == 'web')" + prod)}}},
		{name: "or of all, in a policy of the cluster", cluster: true, rule: `{source: {selector: "app == 'web'"}}`, want: policy.Match{Source: policy.Peer{Within: sets("pods and sets(app == 'web')")}}},
		{
			name: "namespaces", rule: `{source: {selector: "app == 'web'", namespaceSelector: "team == 'a'"}, destination: {namespaceSelector: all()}}`,
			want: policy.Match{Source: policy.Peer{Within: sets("pods and sets(app == 'web') namespaces(team == 'a')")}, Destination: policy.Peer{Within: sets("pods and sets(all()) namespaces(all())")}},
		},
		{name: "global sets", rule: `{source: {selector: has(x), namespaceSelector: global()}}`, want: policy.Match{Source: policy.Peer{Within: sets("pods and sets(has(x)) namespaces(global())")}}},
		{
			name: "a negated selector is of all namespaces, and limits the end to the policy's", rule: `{source: {notSelector: "app == 'web'"}}`,
			want: policy.Match{Source: policy.Peer{Within: sets("pods and sets(all())" + prod), Outside: policy.Addresses{Sets: []policy.SetID{"pods and sets(app == 'web')"}}}},
		},
		{name: "but not in a policy of the cluster", cluster: true, rule: `{source: {notSelector: "app == 'web'"}}`, want: policy.Match{Source: policy.Peer{Outside: policy.Addresses{Sets: []policy.SetID{"pods and sets(app == 'web')"}}}}},
		{
			name: "service accounts", rule: `{source: {serviceAccounts: {names: [b, a], selector: has(x)}}}`,
			want: policy.Match{Source: policy.Peer{Within: sets("pods(all()) accounts(has(x) && kubernetes.io/metadata.name in {'a', 'b'})" + prod)}},
		},
		{
			name: "selector and nets both hold", rule: `{source: {selector: all(), nets: [10.0.0.0/8, "fd00::1"], notNets: [10.1.0.0/16]}}`,
			want: policy.Match{Source: policy.Peer{
				Within:  []policy.Addresses{{Sets: []policy.SetID{"pods and sets(all())" + prod}}, {Nets: []policy.Net{net("10.0.0.0/8"), net("fd00::1/128")}}},
				Outside: policy.Addresses{Nets: []policy.Net{net("10.1.0.0/16")}},
			}},
		},
		{
			name: "ports", rule: `{protocol: TCP, destination: {ports: [443, "80:90", "85"], notPorts: [85]}, source: {ports: [0]}}`,
			want: policy.Match{
				Transport: []policy.Transport{{
					Protocol: policy.TCP, SourcePorts: ports(0),
					DestinationPorts: policy.Ports{Ranges: []policy.PortRange{{First: 80, Last: 90}, {First: 443, Last: 443}}},
				}},
				NotTransport: []policy.Transport{{Protocol: policy.TCP, DestinationPorts: ports(85)}},
			},
		},
		{name: "a named port of an ingress rule is the policy's own", rule: `{protocol: UDP, destination: {ports: [dns]}}`, want: policy.Match{Transport: named(policy.UDP, "port dns/UDP of own pods(app == 'db')"+prod)}},
		{
			name: "of an egress rule, that of the peers", egress: true, rule: `{protocol: TCP, destination: {ports: [http], selector: has(x)}}`,
			want: policy.Match{Destination: policy.Peer{Within: sets("pods and sets(has(x))" + prod)}, Transport: named(policy.TCP, "port http/TCP of pods(has(x))"+policy.SetID(prod))},
		},
		{name: "or of anyone", egress: true, rule: `{protocol: TCP, destination: {ports: [http]}}`, want: policy.Match{Transport: named(policy.TCP, "port http/TCP of pods(all()) namespaces(all())")}},
		{
			name: "ICMP", rule: `{protocol: ICMP, icmp: {type: 8}, notICMP: {type: 8, code: 1}}`,
			want: policy.Match{
				Transport:    []policy.Transport{{Protocol: policy.ICMP, ICMP: icmpType}},
				NotTransport: []policy.Transport{{Protocol: policy.ICMP, ICMP: policy.ICMPMatch{HasType: true, HasCode: true, Type: 8, Code: 1}}},
			},
		},
		{name: "not a protocol", rule: `{notProtocol: 6}`, want: policy.Match{NotTransport: []policy.Transport{{Protocol: policy.TCP}}}},
		{
			name: "a service as destination: its endpoints with their ports", egress: true, rule: `{destination: {services: {name: dns, namespace: kube-system}}}`,
			want: policy.Match{Transport: named(policy.AnyProtocol, "ports of endpoints(kubernetes.io/service-name == 'dns') namespaces(kubernetes.io/metadata.name == 'kube-system')")},
		},
		{
			name: "as source: its endpoints, of the policy's namespace", rule: `{source: {services: {name: dns}}}`,
			want: policy.Match{Source: policy.Peer{Within: sets("endpoints(kubernetes.io/service-name == 'dns')" + prod)}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, key := policy.Ingress, "ingress"
			if tt.egress {
				d, key = policy.Egress, "egress"
			}
			got := read(t, `{selector: "app == 'db'", `+key+`: [{action: Allow}, `+withAction(tt.rule)+`]}`, tt.cluster)
			if len(got.problems) > 0 || len(got.policy.Rules(d)) != 2 {
				t.Fatalf("%d rules, problems: %v", len(got.policy.Rules(d)), got.problems)
			}
			rule := got.policy.Rules(d)[1]
			if rule.Action != policy.Pass || rule.ID.Index != 1 || rule.ID.Direction != d {
				t.Errorf("got %s %s", rule.Action, rule.ID)
			}
			if diff := cmp.Diff(tt.want, rule.Match, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			checkSets(t, got)
		})
	}
}

func withAction(rule string) string {
	if rule == "{}" {
		return "{action: Pass}"
	}
	return "{action: Pass, " + rule[1:]
}

// TestOrderedMistakes holds that a rule that cannot be read denies all that reaches it, that the rules
// before it stay, and the other direction too.
func TestOrderedMistakes(t *testing.T) {
	for _, tt := range []struct {
		rule, field string
	}{
		{`{source: {selector: "app = 'web'"}}`, "spec.ingress[1].source.selector"},
		{`{source: {selector: global()}}`, "spec.ingress[1].source.selector"},
		{`{destination: {notSelector: "("}}`, "spec.ingress[1].destination.notSelector"},
		{`{source: {namespaceSelector: x}}`, "spec.ingress[1].source.namespaceSelector"},
		{`{source: {serviceAccounts: {selector: x}}}`, "spec.ingress[1].source.serviceAccounts.selector"},
		{`{source: {nets: [10.0.0.0/8, ten]}}`, "spec.ingress[1].source.nets[1]"},
		{`{source: {notNets: [10.0.0.0/33]}}`, "spec.ingress[1].source.notNets[0]"},
		{`{ipVersion: 5}`, "spec.ingress[1].ipVersion"},
		{`{ipVersion: 6, protocol: ICMP}`, "spec.ingress[1].ipVersion"},
		{`{protocol: tcp}`, "spec.ingress[1].protocol"},
		{`{protocol: 256}`, "spec.ingress[1].protocol"},
		{`{notProtocol: 0}`, "spec.ingress[1].notProtocol"},
		{`{destination: {ports: [80]}}`, "spec.ingress[1].destination.ports"},
		{`{protocol: ICMP, source: {notPorts: [80]}}`, "spec.ingress[1].source.notPorts"},
		{`{protocol: TCP, destination: {ports: [65536]}}`, "spec.ingress[1].destination.ports[0]"},
		{`{protocol: TCP, destination: {ports: ["90:80"]}}`, "spec.ingress[1].destination.ports[0]"},
		{`{protocol: TCP, destination: {ports: ["80:x"]}}`, "spec.ingress[1].destination.ports[0]"},
		{`{protocol: TCP, destination: {ports: ["a:b"]}}`, "spec.ingress[1].destination.ports[0]"},
		{`{protocol: TCP, destination: {ports: ["99999999999"]}}`, "spec.ingress[1].destination.ports[0]"},
		{`{protocol: UDPLite, destination: {ports: [dns]}}`, "spec.ingress[1].destination.ports[0]"},
		{`{protocol: TCP, icmp: {type: 8}}`, "spec.ingress[1].icmp"},
		{`{protocol: ICMP, icmp: {code: 1}}`, "spec.ingress[1].icmp.type"},
		{`{protocol: ICMP, notICMP: {type: 256}}`, "spec.ingress[1].notICMP.type"},
		{`{destination: {services: {name: x}}}`, "spec.ingress[1].destination.services"},
		{`{source: {services: {name: ""}}}`, "spec.ingress[1].source.services.name"},
		{`{source: {services: {name: x}, nets: [10.0.0.0/8]}}`, "spec.ingress[1].source.services"},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			got := read(t, `{ingress: [{action: Allow}, `+withAction(tt.rule)+`, {action: Allow, source: {selector: has(x)}}], egress: [{action: Allow}]}`, false)
			if len(got.problems) != 1 || got.problems[0].Field != tt.field || got.problems[0].Reason == "" {
				t.Errorf("problems: got %v, want one of %s", got.problems, tt.field)
			}
			in := got.policy.Ingress
			if len(in) != 2 || in[0].Action != policy.Allow || !in[1].Equal(denyAll(got.policy.ID, policy.Ingress, 1)) {
				t.Errorf("ingress: %+v", in)
			}
			if len(got.policy.Egress) != 1 || got.policy.Egress[0].Action != policy.Allow {
				t.Errorf("egress: %+v", got.policy.Egress)
			}
			checkSets(t, got)
		})
	}
}

// TestOrderedSubject is whom a policy applies to. With a mistake in that, everything is denied for
// whatever the rest of it selects.
func TestOrderedSubject(t *testing.T) {
	const prod = " namespaces(kubernetes.io/metadata.name == 'prod')"
	type directions struct{ Ingress, Egress bool }
	for _, tt := range []struct {
		spec    string
		cluster bool
		subject string
		applies directions
		field   string // of the mistake
	}{
		{spec: `{}`, subject: "own pods(all())" + prod, applies: directions{true, false}},
		{spec: `{}`, cluster: true, subject: "own pods and hosts(all())", applies: directions{true, false}},
		{spec: `{egress: [{action: Allow}]}`, subject: "own pods(all())" + prod, applies: directions{false, true}},
		{spec: `{ingress: [{action: Allow}], egress: [{action: Allow}]}`, subject: "own pods(all())" + prod, applies: directions{true, true}},
		{spec: `{types: [Egress], ingress: [{action: Allow}]}`, subject: "own pods(all())" + prod, applies: directions{false, true}},
		{spec: `{selector: has(a), serviceAccountSelector: has(b), namespaceSelector: has(c)}`, cluster: true, subject: "own pods(has(a)) accounts(has(b)) namespaces(has(c))", applies: directions{true, false}},
		{spec: `{selector: "a =", ingress: [{action: Allow}]}`, subject: "own pods(all())" + prod, applies: directions{true, false}, field: "spec.selector"},
		{spec: `{selector: has(a), serviceAccountSelector: "("}`, subject: "own pods(has(a)) accounts(all())" + prod, applies: directions{true, false}, field: "spec.serviceAccountSelector"},
		{spec: `{selector: has(a), namespaceSelector: "("}`, cluster: true, subject: "own pods(has(a)) namespaces(all())", applies: directions{true, false}, field: "spec.namespaceSelector"},
		{spec: `{types: [Sideways]}`, subject: "own pods(all())" + prod, applies: directions{true, true}, field: "spec.types[0]"},
		{spec: `{tier: kube-admin}`, subject: "own pods(all())" + prod, applies: directions{true, false}, field: "spec.tier"},
	} {
		t.Run(tt.spec, func(t *testing.T) {
			got := read(t, tt.spec, tt.cluster)
			if got.subject.String() != tt.subject {
				t.Errorf("subject: got %s, want %s", got.subject, tt.subject)
			}
			if diff := cmp.Diff(tt.applies, directions{got.applies[policy.Ingress], got.applies[policy.Egress]}); diff != "" {
				t.Errorf("applies (-want +got):\n%s", diff)
			}
			switch {
			case tt.field == "" && len(got.problems) > 0:
				t.Errorf("problems: %v", got.problems)
			case tt.field != "":
				if len(got.problems) != 1 || got.problems[0].Field != tt.field {
					t.Errorf("problems: got %v, want %s", got.problems, tt.field)
				}
				if r := got.policy.Ingress; len(r) != 1 || !r[0].Equal(denyAll(got.policy.ID, policy.Ingress, 0)) {
					t.Errorf("ingress: %+v", r)
				}
			}
			checkSets(t, got)
		})
	}
}

func tierOf(name string, order *int32, action v1alpha1.TierAction) *v1alpha1.Tier {
	return &v1alpha1.Tier{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.TierSpec{Order: order, DefaultAction: action}}
}

// TestTiers holds the order of tiers, and of policies in them, and what becomes of it.
func TestTiers(t *testing.T) {
	c := New()
	c.SetWorkload(workloadAt("prod", "web", "", "10.0.0.1", "fd00::1"))
	c.SetPod(testPod("prod", "web", "", nil))
	id := policy.EndpointID{Namespace: "prod", Name: "web"}
	ours := func(name, tier string, order *int32) policy.PolicyID {
		c.SetGlobalPolicy(&v1alpha1.GlobalNetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.GlobalNetworkPolicySpec{PolicySpec: v1alpha1.PolicySpec{Tier: tier, Order: order}},
		})
		return policy.PolicyID{Kind: policy.GlobalNetworkPolicy, Name: name}
	}
	k8s := policy.PolicyID{Namespace: "prod", Name: "p"}
	c.SetNetworkPolicy(parse(t, `{}`))
	before, same, after := ours("before", "", ptr.To[int32](999)), ours("q", "default", ptr.To[int32](1000)), ours("a", "", nil)
	first, late, last := ours("first", "security", nil), ours("late", "late", nil), ours("last", "unordered", nil)
	c.SetTier(tierOf("security", ptr.To[int32](1), v1alpha1.TierPass))
	c.SetTier(tierOf("late", ptr.To[int32](2_000_000), ""))
	security := policy.Tier{Name: "security", Default: policy.Pass, Policies: []policy.PolicyID{first}}
	missing := policy.Tier{Name: "unordered", Default: policy.Deny, Policies: []policy.PolicyID{last}}
	common := policy.Tier{Name: "default", Default: policy.Deny, Policies: []policy.PolicyID{before, k8s, same, after}}
	end := policy.Tier{Name: "late", Default: policy.Deny, Policies: []policy.PolicyID{late}}
	for _, tt := range []struct {
		name  string
		event func()
		want  []policy.Tier
	}{
		{"a tier that does not exist is first, and denies", func() {}, []policy.Tier{missing, security, common, end}},
		{"one without an order is last", func() { c.SetTier(tierOf("unordered", nil, v1alpha1.TierDeny)) }, []policy.Tier{security, common, end, missing}},
		{"a tier moves", func() { c.SetTier(tierOf("late", ptr.To[int32](0), v1alpha1.TierDeny)) }, []policy.Tier{end, security, common, missing}},
		{"a tier is removed under its policy", func() { c.RemoveTier("late") }, []policy.Tier{end, security, common, missing}},
		{"a policy leaves its tier", func() { ours("late", "security", ptr.To[int32](1)) }, []policy.Tier{{Name: "security", Default: policy.Pass, Policies: []policy.PolicyID{late, first}}, common, missing}},
		{"a policy is removed", func() { c.RemoveGlobalPolicy("late"); c.RemoveGlobalPolicy("last") }, []policy.Tier{security, common}},
	} {
		tt.event()
		c.Flush()
		if diff := cmp.Diff(policy.Chain{Default: policy.Allow, Tiers: tt.want}, c.endpoints[id].Ingress); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestMissing: what a policy refers to may come later, and what is wrong until then is no mistake of its own.
func TestMissing(t *testing.T) {
	c := New()
	p := ours(t, `{tier: security, egress: [{action: Allow, destination: {services: {name: dns}}}]}`)
	c.SetPolicy(p)
	want := []Problem{
		{Policy: policy.PolicyID{Kind: policy.HeliographNetworkPolicy, Namespace: "prod", Name: "p"}, Field: "spec.tier", Missing: true, Reason: `there is no Tier "security"; until there is, everything is denied`},
		{Policy: policy.PolicyID{Kind: policy.HeliographNetworkPolicy, Namespace: "prod", Name: "p"}, Field: "spec.egress[0].destination.services", Missing: true, Reason: `there is no Service prod/dns; until there is, the rule matches nothing`},
	}
	if diff := cmp.Diff(want, c.Problems()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	c.SetTier(tierOf("security", nil, ""))
	c.SetService(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "dns"}})
	if p := c.Problems(); len(p) > 0 {
		t.Errorf("when they are there: %v", p)
	}
}

func slice(namespace, name, service string, port int32, ips ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{serviceLabel: service}}}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}})
	}
	s.Ports = []discoveryv1.EndpointPort{{Name: ptr.To("a"), Port: &port}, {Name: ptr.To("b"), Port: &port}}
	return s
}

// TestEntities follows the members that come from elsewhere than pods: network sets, services, accounts.
func TestEntities(t *testing.T) {
	c := New()
	c.SetWorkload(workloadAt("prod", "server", "", "10.0.0.9"))
	c.SetPod(testPod("prod", "server", "", nil))
	c.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod"}})
	c.SetPolicy(ours(t, `{egress: [
		{action: Allow, destination: {selector: "feed == 'x'"}},
		{action: Allow, destination: {selector: "feed == 'x'", namespaceSelector: global()}},
		{action: Allow, destination: {services: {name: dns}}},
		{action: Allow, destination: {serviceAccounts: {selector: has(trusted)}}}]}`))
	if d := c.Flush(); len(d.Sets) != 4 {
		t.Fatalf("%d sets", len(d.Sets))
	}
	client := testPod("prod", "client", "", nil, "10.0.0.1", "fd00::1")
	client.Spec.ServiceAccountName = "client"
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "client"}}
	meta := metav1.ObjectMeta{Namespace: "prod", Name: "x", Labels: map[string]string{"feed": "x"}}
	const (
		home     = "pods and sets(feed == 'x') namespaces(kubernetes.io/metadata.name == 'prod')"
		cluster  = "pods and sets(feed == 'x') namespaces(global())"
		service  = "ports of endpoints(kubernetes.io/service-name == 'dns') namespaces(kubernetes.io/metadata.name == 'prod')"
		accounts = "pods(all()) accounts(has(trusted)) namespaces(kubernetes.io/metadata.name == 'prod')"
	)
	prefix := func(p string) policy.Member { return policy.Member{Prefix: netip.MustParsePrefix(p)} }
	for _, tt := range []struct {
		name        string
		event       func()
		set         policy.SetID
		add, remove []policy.Member
	}{
		{"a network set", func() {
			c.SetNetworkSet(&v1alpha1.NetworkSet{ObjectMeta: meta, Spec: v1alpha1.NetworkSetSpec{Nets: []string{"10.0.0.0/8", "10.1.0.0/16", "fd00::2"}}})
		}, home, []policy.Member{prefix("10.0.0.0/8"), prefix("10.1.0.0/16"), prefix("fd00::2/128")}, nil},
		{"changes", func() {
			c.SetNetworkSet(&v1alpha1.NetworkSet{ObjectMeta: meta, Spec: v1alpha1.NetworkSetSpec{Nets: []string{"10.0.0.0/8"}}})
		}, home, nil, []policy.Member{prefix("10.1.0.0/16"), prefix("fd00::2/128")}},
		{"another has the same", func() {
			other := meta
			other.Name = "y"
			c.SetNetworkSet(&v1alpha1.NetworkSet{ObjectMeta: other, Spec: v1alpha1.NetworkSetSpec{Nets: []string{"10.0.0.0/8"}}})
			c.RemoveNetworkSet("prod", "x")
		}, home, nil, nil},
		{"a global one", func() {
			other := meta
			other.Namespace = ""
			c.SetGlobalNetworkSet(&v1alpha1.GlobalNetworkSet{ObjectMeta: other, Spec: v1alpha1.NetworkSetSpec{Nets: []string{"192.0.2.1"}}})
		}, cluster, members("192.0.2.1"), nil},
		{"is gone", func() { c.RemoveGlobalNetworkSet("x") }, cluster, nil, members("192.0.2.1")},
		{"endpoints, whose port has two names", func() { c.SetEndpointSlice(slice("prod", "dns-1", "dns", 53, "10.0.0.5", "10.0.0.6")) }, service, []policy.Member{port("10.0.0.5", policy.TCP, 53), port("10.0.0.6", policy.TCP, 53)}, nil},
		{"one moves to another slice", func() {
			c.SetEndpointSlice(slice("prod", "dns-2", "dns", 53, "10.0.0.6"))
			c.SetEndpointSlice(slice("prod", "dns-1", "dns", 53, "10.0.0.5"))
		}, service, nil, nil},
		{"a slice becomes another service's", func() { c.SetEndpointSlice(slice("prod", "dns-2", "web", 53, "10.0.0.6")) }, service, nil, []policy.Member{port("10.0.0.6", policy.TCP, 53)}},
		{"a pod whose account is not known", func() { c.SetPod(client) }, accounts, nil, nil},
		{"is known", func() { c.SetServiceAccount(account) }, accounts, nil, nil},
		{"is trusted", func() {
			account = account.DeepCopy()
			account.Labels = map[string]string{"trusted": ""}
			c.SetServiceAccount(account)
		}, accounts, members("10.0.0.1", "fd00::1"), nil},
		{"the pod runs as another", func() {
			p := client.DeepCopy()
			p.Spec.ServiceAccountName = "other"
			c.SetPod(p)
		}, accounts, nil, members("10.0.0.1", "fd00::1")},
		{"and back, while the account goes", func() { c.SetPod(client); c.RemoveServiceAccount("prod", "client") }, accounts, nil, nil},
	} {
		tt.event()
		var want policy.Delta
		if tt.add != nil || tt.remove != nil {
			change := policy.SetChange{ID: tt.set, Op: policy.Changed, Add: tt.add, Remove: tt.remove}
			if tt.set == service {
				change.Kind = policy.AddressPortSet
			}
			want.Sets = []policy.SetChange{change}
		}
		if diff := diff(want, c.Flush()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// FuzzPolicies holds that no spec of whatever language does harm: what comes of it is consistent, a mistake
// denies, and after its removal nothing is left.
func FuzzPolicies(f *testing.F) {
	for _, s := range []string{
		`{"ingress": [{"action": "Allow", "protocol": "TCP", "source": {"selector": "a == 'b'", "nets": ["10.0.0.0/8"]}, "destination": {"ports": [80, "http", "1:2"]}}]}`,
		`{"tier": "t", "order": 1, "types": ["Egress"], "egress": [{"action": "Deny", "destination": {"services": {"name": "x"}}}, {"action": "Log", "icmp": {"type": 8}}]}`,
		`{"selector": "(", "namespaceSelector": "global()", "ingress": [{"action": "Pass", "notProtocol": 300, "source": {"notSelector": "has(a)", "serviceAccounts": {"names": ["b"]}}}]}`,
		`{"tier": "Admin", "subject": {"namespaces": {}}, "egress": [{"action": "Accept", "to": [{"networks": ["::/0"]}, {"nodes": {}}], "protocols": [{"destinationNamedPort": "http"}, {"tcp": {"destinationPort": {"range": {"start": 1}}}}]}]}`,
		`{"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}, "egress": [{"to": [{"ipBlock": {"cidr": "x"}}], "ports": [{"port": "http", "endPort": 1}]}]}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, state := New(), policy.NewState()
		c.SetWorkload(workloadAt("prod", "web", "", "10.0.0.1", "fd00::1"))
		c.SetPod(testPod("prod", "web", "", map[string]string{"a": "b"}))
		c.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod"}})
		own := &v1alpha1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "p"}}
		cluster := &v1alpha1.GlobalNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
		admin := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
		k8s := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "p"}}
		for _, spec := range []any{&own.Spec, &cluster.Spec, &admin.Spec, &k8s.Spec} {
			if err := json.Unmarshal([]byte(text), spec); err != nil {
				return
			}
		}
		c.SetPolicy(own)
		c.SetGlobalPolicy(cluster)
		c.SetClusterNetworkPolicy(admin)
		c.SetNetworkPolicy(k8s)
		apply(t, state, c.Flush())
		for _, p := range c.Problems() {
			if src := c.sources[p.Policy]; !p.Missing && p.Policy.Kind != policy.NetworkPolicy && p.Policy.Kind != policy.ClusterNetworkPolicy && !denies(src) {
				t.Errorf("%s, and it denies nothing", p)
			}
		}
		c.RemovePolicy("prod", "p")
		c.RemoveGlobalPolicy("p")
		c.RemoveClusterNetworkPolicy("p")
		c.RemoveNetworkPolicy("prod", "p")
		apply(t, state, c.Flush())
		if len(state.Policies)+len(state.Sets) > 0 {
			t.Errorf("left: %d policies, %d sets", len(state.Policies), len(state.Sets))
		}
	})
}

// denies says whether a policy ends a direction by denying all.
func denies(s *source) bool {
	for d := range policy.Direction(2) {
		rules := s.policy.Rules(d)
		if n := len(rules); n > 0 && rules[n-1].Equal(denyAll(s.policy.ID, d, rules[n-1].ID.Index)) {
			return true
		}
	}
	return false
}
