// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/heliograph-dev/heliograph/policy"
)

const all = "subject: {namespaces: {}}, tier: Admin, priority: 1, "

func clusterPolicy(t *testing.T, name, spec string) *policyv1alpha2.ClusterNetworkPolicy {
	t.Helper()
	p := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestClusterMatch(t *testing.T) {
	tcp := func(first, last uint16) policy.Transport {
		return policy.Transport{Protocol: policy.TCP, DestinationPorts: policy.Ports{Ranges: []policy.PortRange{{First: first, Last: last}}}}
	}
	for _, tt := range []struct {
		name, rule string // of egress, if it has a "to"
		want       policy.Match
	}{
		{"namespaces", `{from: [{namespaces: {matchLabels: {team: a}}}]}`, policy.Match{Source: within([]policy.SetID{"pods(all()) namespaces(team == 'a')"})}},
		{
			"pods, and everything of one kind once", `{from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}, {pods: {podSelector: {matchLabels: {app: web}}}}]}`,
			policy.Match{Source: within([]policy.SetID{"pods(app == 'web') namespaces(all())"})},
		},
		{
			"nodes and networks", `{to: [{nodes: {matchLabels: {role: edge}}}, {networks: [10.0.0.0/8, "fd00::/8"]}, {networks: [192.0.2.0/24]}]}`,
			policy.Match{Destination: within([]policy.SetID{"nodes(role == 'edge')"}, net("10.0.0.0/8"), net("fd00::/8"), net("192.0.2.0/24"))},
		},
		{
			"ports", `{to: [{networks: ["::/0"]}], protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 53, end: 54}}}}, {sctp: {destinationPort: {number: 1}}}]}`,
			policy.Match{Destination: within(nil, net("::/0")), Transport: []policy.Transport{
				tcp(80, 80), {Protocol: policy.UDP, DestinationPorts: policy.Ports{Ranges: []policy.PortRange{{First: 53, Last: 54}}}}, {Protocol: policy.SCTP, DestinationPorts: ports(1)},
			}},
		},
		{
			"a named port is of any protocol, and of the policy's own pods", `{from: [{namespaces: {}}], protocols: [{destinationNamedPort: http}, {tcp: {destinationPort: {number: 80}}}]}`,
			policy.Match{Source: within([]policy.SetID{"pods(all()) namespaces(all())"}), Transport: append(named(policy.AnyProtocol, "port http/any of own pods(all()) namespaces(all())"), tcp(80, 80))},
		},
		{
			"or of the peers", `{to: [{namespaces: {}}, {namespaces: {matchLabels: {a: b}}}], protocols: [{destinationNamedPort: http}]}`,
			policy.Match{
				Destination: within([]policy.SetID{"pods(all()) namespaces(all())", "pods(all()) namespaces(a == 'b')"}),
				Transport:   []policy.Transport{{DestinationPorts: policy.Ports{Named: []policy.SetID{"port http/any of pods(all()) namespaces(all())", "port http/any of pods(all()) namespaces(a == 'b')"}}}},
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, key := policy.Ingress, "ingress"
			if tt.rule[:5] == "{to: " {
				d, key = policy.Egress, "egress"
			}
			got := translateCluster(clusterPolicy(t, "p", "{"+all+key+": [{action: Pass, "+tt.rule[1:]+"]}"))
			if len(got.problems) > 0 || len(got.policy.Rules(d)) != 1 || !got.applies[d] || got.applies[1-d] {
				t.Fatalf("%d rules, applies to %v, problems: %v", len(got.policy.Rules(d)), got.applies, got.problems)
			}
			rule := got.policy.Rules(d)[0]
			if rule.Action != policy.Pass || rule.ID.Direction != d {
				t.Errorf("got %s %s", rule.Action, rule.ID)
			}
			if diff := cmp.Diff(tt.want, rule.Match, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			checkSets(t, got)
		})
	}
}

// TestClusterMistakes: what is not understood matches nothing where it would accept, and denies everything
// else ("fail closed", in the API's words).
func TestClusterMistakes(t *testing.T) {
	const everybody = "to: [{namespaces: {}}]"
	for _, tt := range []struct{ rule, field string }{
		{`to: [{}]`, "spec.egress[1].to[0]"},
		{`to: [{namespaces: {}}, {}]`, "spec.egress[1].to[1]"},
		{`to: []`, "spec.egress[1].to"},
		{`to: [{networks: [10.0.0.0/33]}]`, "spec.egress[1].to[0].networks[0]"},
		{`to: [{namespaces: {matchExpressions: [{key: a, operator: Is}]}}]`, "spec.egress[1].to[0].namespaces.matchExpressions[0].operator"},
		{`to: [{nodes: {matchLabels: {"a b": c}}}]`, "spec.egress[1].to[0].nodes.matchLabels"},
		{everybody + `, protocols: [{}]`, "spec.egress[1].protocols[0]"},
		{everybody + `, protocols: [{tcp: {}}]`, "spec.egress[1].protocols[0].tcp.destinationPort"},
		{everybody + `, protocols: [{udp: {destinationPort: {}}}]`, "spec.egress[1].protocols[0].udp.destinationPort"},
		{everybody + `, protocols: [{sctp: {destinationPort: {range: {start: 2, end: 1}}}}]`, "spec.egress[1].protocols[0].sctp.destinationPort"},
		{everybody + `, protocols: [{destinationNamedPort: "80"}]`, "spec.egress[1].protocols[0].destinationNamedPort"},
		{`to: [{networks: ["::/0"]}], protocols: [{destinationNamedPort: http}]`, "spec.egress[1].protocols[0].destinationNamedPort"},
	} {
		for _, action := range []string{"Accept", "Deny", "Pass"} {
			t.Run(action+" "+tt.rule, func(t *testing.T) {
				got := translateCluster(clusterPolicy(t, "p", "{"+all+"egress: [{action: Pass, "+everybody+"}, {action: "+action+", "+tt.rule+"}, {action: Accept, "+everybody+"}]}"))
				if len(got.problems) != 1 || got.problems[0].Field != tt.field || got.problems[0].Reason == "" {
					t.Errorf("problems: got %v, want one of %s", got.problems, tt.field)
				}
				var rules []int
				for _, r := range got.policy.Egress {
					rules = append(rules, r.ID.Index)
				}
				want := []int{0, 1}
				if action == "Accept" {
					want = []int{0, 2}
				} else if !got.policy.Egress[1].Equal(denyAll(got.policy.ID, policy.Egress, 1)) {
					t.Errorf("got %+v", got.policy.Egress[1])
				}
				if !slices.Equal(rules, want) {
					t.Errorf("got rules %v, want %v", rules, want)
				}
				checkSets(t, got)
			})
		}
	}
}

func TestClusterSubject(t *testing.T) {
	for _, tt := range []struct {
		name, spec, subject, field string
		tier                       string
		applies                    bool
	}{
		{"namespaces", "subject: {namespaces: {matchLabels: {a: b}}}, tier: Admin", "own pods(all()) namespaces(a == 'b')", "", policy.AdminTier, true},
		{"pods", "subject: {pods: {podSelector: {matchLabels: {a: b}}}}, tier: Baseline", "own pods(a == 'b') namespaces(all())", "", policy.BaselineTier, true},
		{"of another API", "subject: {}, tier: Admin", "own pods(all()) namespaces(all())", "spec.subject", policy.AdminTier, false},
		{"a mistake", "subject: {pods: {podSelector: {matchLabels: {a: b}, matchExpressions: [{key: x, operator: Is}]}}}, tier: Admin", "own pods(a == 'b') namespaces(all())", "spec.subject.pods.podSelector.matchExpressions[0].operator", policy.AdminTier, true},
		{"another tier", "subject: {namespaces: {}}, tier: Middle", "own pods(all()) namespaces(all())", "spec.tier", policy.AdminTier, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := translateCluster(clusterPolicy(t, "p", "{priority: 7, "+tt.spec+", ingress: [{action: Accept, from: [{namespaces: {}}]}]}"))
			if got.subject.String() != tt.subject || got.tier != tt.tier || got.order != 7 {
				t.Errorf("got %s in tier %s, order %d", got.subject, got.tier, got.order)
			}
			if got.applies[policy.Ingress] != tt.applies || got.applies[policy.Egress] {
				t.Errorf("applies to %v", got.applies)
			}
			if tt.field == "" {
				if len(got.problems) > 0 {
					t.Errorf("problems: %v", got.problems)
				}
				return
			}
			if len(got.problems) != 1 || got.problems[0].Field != tt.field {
				t.Errorf("problems: got %v, want %s", got.problems, tt.field)
			}
			if r := got.policy.Ingress; len(r) != 1 || r[0].Action != policy.Deny {
				t.Errorf("ingress: %+v", r)
			}
		})
	}
}

// TestClusterTiers: Admin is asked before everything, Baseline after; the lower priority first.
func TestClusterTiers(t *testing.T) {
	c := New()
	c.SetWorkload(workloadAt("prod", "web", "", "10.0.0.1"))
	c.SetPod(testPod("prod", "web", "", nil))
	c.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod"}})
	c.SetNetworkPolicy(parse(t, `{}`))
	const rest = "subject: {namespaces: {}}, ingress: [{action: Pass, from: [{namespaces: {}}]}]}"
	c.SetClusterNetworkPolicy(clusterPolicy(t, "base", "{tier: Baseline, priority: 0, "+rest))
	c.SetClusterNetworkPolicy(clusterPolicy(t, "a", "{tier: Admin, priority: 2, "+rest))
	c.SetClusterNetworkPolicy(clusterPolicy(t, "b", "{tier: Admin, priority: 1, "+rest))
	c.SetClusterNetworkPolicy(clusterPolicy(t, "c", "{tier: Admin, priority: 1, "+rest))
	c.Flush()
	id := func(name string) policy.PolicyID {
		return policy.PolicyID{Kind: policy.ClusterNetworkPolicy, Name: name}
	}
	want := policy.Chain{Default: policy.Allow, Tiers: []policy.Tier{
		{Name: policy.AdminTier, Default: policy.Pass, Policies: []policy.PolicyID{id("b"), id("c"), id("a")}},
		{Name: policy.DefaultTier, Default: policy.Deny, Policies: []policy.PolicyID{{Namespace: "prod", Name: "p"}}},
		{Name: policy.BaselineTier, Default: policy.Pass, Policies: []policy.PolicyID{id("base")}},
	}}
	e := c.endpoints[policy.EndpointID{Namespace: "prod", Name: "web"}]
	if diff := cmp.Diff(want, e.Ingress); diff != "" {
		t.Errorf("ingress (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(policy.Chain{Default: policy.Allow}, e.Egress); diff != "" {
		t.Errorf("egress (-want +got):\n%s", diff)
	}
}

// TestNodes follows a set of nodes' addresses.
func TestNodes(t *testing.T) {
	c := New()
	c.SetWorkload(workloadAt("prod", "web", "", "10.0.0.1"))
	c.SetPod(testPod("prod", "web", "", nil))
	c.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod"}})
	c.SetClusterNetworkPolicy(clusterPolicy(t, "p", "{"+all+"egress: [{action: Deny, to: [{nodes: {matchLabels: {role: edge}}}]}]}"))
	c.Flush()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"role": "edge"}}}
	node.Status.Addresses = []corev1.NodeAddress{{Address: "192.0.2.1"}, {Address: "2001:db8::1"}, {Address: "n.example.com"}}
	c.SetNode(node)
	want := policy.Delta{Sets: []policy.SetChange{{ID: "nodes(role == 'edge')", Op: policy.Changed, Add: members("192.0.2.1", "2001:db8::1")}}}
	if diff := diff(want, c.Flush()); diff != "" {
		t.Errorf("joins (-want +got):\n%s", diff)
	}
	c.SetNode(node, netip.MustParseAddr("10.244.0.1"))
	want = policy.Delta{Sets: []policy.SetChange{{ID: "nodes(role == 'edge')", Op: policy.Changed, Add: members("10.244.0.1")}}}
	if diff := diff(want, c.Flush()); diff != "" {
		t.Errorf("its address in the pod network joins (-want +got):\n%s", diff)
	}
	c.RemoveNode("n")
	want = policy.Delta{Sets: []policy.SetChange{{ID: "nodes(role == 'edge')", Op: policy.Changed, Remove: members("10.244.0.1", "192.0.2.1", "2001:db8::1")}}}
	if diff := diff(want, c.Flush()); diff != "" {
		t.Errorf("leaves (-want +got):\n%s", diff)
	}
}

// TestDomains: names and patterns are sets, of names that DNS has told.
func TestDomains(t *testing.T) {
	const rule = `egress: [{action: Accept, to: [{domainNames: [Example.com, "*.example.com."]}, {networks: [10.0.0.0/8]}]}]`
	got := translateCluster(clusterPolicy(t, "p", "{"+all+rule+"}"))
	want := policy.Addresses{
		Sets: []policy.SetID{policy.DomainSet("example.com"), policy.DomainSet("*.example.com")},
		Nets: []policy.Net{{CIDR: netip.MustParsePrefix("10.0.0.0/8")}},
	}
	if len(got.problems) > 0 || len(got.policy.Egress) != 1 || !got.policy.Egress[0].Match.Destination.Within[0].Equal(want) {
		t.Fatalf("got %+v, problems %v; want %+v", got.policy.Egress, got.problems, want)
	}
	checkSets(t, got)

	c := New()
	c.SetClusterNetworkPolicy(clusterPolicy(t, "p", "{"+all+rule+"}"))
	c.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
	c.SetPod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "a"}})
	c.SetWorkload(Workload{ID: policy.EndpointID{Namespace: "n", Name: "a"}, Device: "hel0a", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}})
	for name, ip := range map[string]string{"example.com": "192.0.2.1", "www.example.com": "2001:db8::1", "a.www.example.com": "192.0.2.3", "myexample.com": "192.0.2.4", "com": "192.0.2.5"} {
		c.SetDomain(name, []netip.Addr{netip.MustParseAddr(ip)})
	}
	members := map[policy.SetID][]string{}
	for _, s := range c.Flush().Sets {
		for _, m := range s.Add {
			members[s.ID] = append(members[s.ID], m.String())
		}
	}
	if diff := cmp.Diff(map[policy.SetID][]string{
		"domains(example.com)": {"192.0.2.1/32"}, "domains(*.example.com)": {"192.0.2.3/32", "2001:db8::1/128"},
	}, members); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	c.SetDomain("www.example.com", nil)
	c.RemoveDomain("example.com")
	if d := c.Flush(); len(d.Sets) != 2 || len(d.Sets[0].Remove) != 1 || len(d.Sets[1].Remove) != 1 {
		t.Errorf("got %+v, want one address less in each set", d.Sets)
	}
}

// TestDomainsOfOurs: alternatives on an egress rule that allows, and nowhere else.
func TestDomainsOfOurs(t *testing.T) {
	for _, tt := range []struct {
		name, spec, field string
	}{
		{name: "alternatives", spec: `{egress: [{action: Allow, protocol: TCP, destination: {domains: [Example.com, "*.example.com.", example.com], ports: [443]}}]}`},
		{name: "no name", spec: `{egress: [{action: Allow, destination: {domains: [example.com, com]}}]}`, field: "spec.egress[0].destination.domains[1]"},
		{name: "a source", spec: `{egress: [{action: Allow, source: {domains: [example.com]}}]}`, field: "spec.egress[0].source.domains"},
		{name: "a denial", spec: `{egress: [{action: Deny, destination: {domains: [example.com]}}]}`, field: "spec.egress[0].destination.domains"},
		{name: "a log", spec: `{egress: [{action: Log, destination: {domains: [example.com]}}]}`, field: "spec.egress[0].destination.domains"},
		{name: "of ingress", spec: `{ingress: [{action: Allow, destination: {domains: [example.com]}}]}`, field: "spec.ingress[0].destination.domains"},
		{name: "beside networks", spec: `{egress: [{action: Allow, destination: {domains: [example.com], nets: [10.0.0.0/8]}}]}`, field: "spec.egress[0].destination.domains"},
		{name: "beside a selector", spec: `{egress: [{action: Allow, destination: {domains: [example.com], selector: all()}}]}`, field: "spec.egress[0].destination.domains"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := read(t, tt.spec, true)
			rules := slices.Concat(got.policy.Ingress, got.policy.Egress)
			if tt.field != "" {
				if len(got.problems) != 1 || got.problems[0].Field != tt.field || len(rules) != 1 || rules[0].Action != policy.Deny {
					t.Errorf("got %v and %+v, want a denial because of %s", got.problems, rules, tt.field)
				}
				return
			}
			want := policy.Match{
				Destination: policy.Peer{Within: sets("domains(example.com)", "domains(*.example.com)")},
				Transport:   []policy.Transport{{Protocol: policy.TCP, DestinationPorts: ports(443)}},
			}
			if len(got.problems) > 0 || !rules[0].Match.Equal(want) {
				t.Errorf("got %+v, %v", rules, got.problems)
			}
			checkSets(t, got)
		})
	}
}

// TestDomainMistakes: what is no name, and a name where it could only let through what DNS has not told.
func TestDomainMistakes(t *testing.T) {
	for _, tt := range []struct{ action, name, field string }{
		{"Deny", "example.com", "spec.egress[0].to[0].domainNames"},
		{"Pass", "example.com", "spec.egress[0].to[0].domainNames"},
		{"Accept", "*.*.com", "spec.egress[0].to[0].domainNames[0]"},
		{"Accept", "a.*.com", "spec.egress[0].to[0].domainNames[0]"},
		{"Accept", "com", "spec.egress[0].to[0].domainNames[0]"},
		{"Accept", "*.com", "spec.egress[0].to[0].domainNames[0]"},
		{"Accept", "a..com", "spec.egress[0].to[0].domainNames[0]"},
		{"Accept", strings.Repeat("a", 64) + ".com", "spec.egress[0].to[0].domainNames[0]"},
		{"Accept", strings.Repeat("a.", 127) + "com", "spec.egress[0].to[0].domainNames[0]"},
	} {
		got := translateCluster(clusterPolicy(t, "p", "{"+all+"egress: [{action: "+tt.action+", to: [{domainNames: ["+strconv.Quote(tt.name)+"]}]}]}"))
		if len(got.problems) != 1 || got.problems[0].Field != tt.field {
			t.Errorf("%s %s: problems %v, want one of %s", tt.action, tt.name, got.problems, tt.field)
		}
		if open := slices.ContainsFunc(got.policy.Egress, func(r policy.Rule) bool { return r.Action != policy.Deny }); open {
			t.Errorf("%s %s: got %+v, want nothing that lets through", tt.action, tt.name, got.policy.Egress)
		}
	}
}
