// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/heliograph-dev/heliograph/policy"
)

const (
	allInProd = "pods(all()) namespaces(kubernetes.io/metadata.name == 'prod')"
	webInProd = "pods(app == 'web') namespaces(kubernetes.io/metadata.name == 'prod')"
)

// parse reads a NetworkPolicySpec into a policy prod/p.
func parse(t *testing.T, spec string) *networkingv1.NetworkPolicy {
	t.Helper()
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "p"}}
	if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
		t.Fatal(err)
	}
	return p
}

func within(sets []policy.SetID, nets ...policy.Net) policy.Peer {
	return policy.Peer{Within: []policy.Addresses{{Sets: sets, Nets: nets}}}
}

func TestTranslate(t *testing.T) {
	type directions struct{ Ingress, Egress bool }
	for _, tt := range []struct {
		name    string
		in      string
		applies directions
		ingress []policy.Match
		egress  []policy.Match
	}{
		{name: "nothing: all pods, closed for ingress", in: `{}`, applies: directions{true, false}},
		{name: "egress rules imply egress too", in: `{egress: [{}]}`, applies: directions{true, true}, egress: []policy.Match{{}}},
		{name: "types as written", in: `{policyTypes: [Egress]}`, applies: directions{false, true}},
		{name: "rules of a direction that is no type are not looked at", in: `{policyTypes: [Egress], ingress: [{from: [{}]}]}`, applies: directions{false, true}},
		{name: "an empty rule matches everything", in: `{ingress: [{}]}`, applies: directions{true, false}, ingress: []policy.Match{{}}},
		{name: "empty lists are everybody and every port", in: `{ingress: [{from: [], ports: []}]}`, applies: directions{true, false}, ingress: []policy.Match{{}}},
		{
			name: "selectors", applies: directions{true, false},
			in: `{ingress: [{from: [
				{podSelector: {}}, {namespaceSelector: {}}, {namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchExpressions: [{key: x, operator: Exists}]}},
				{podSelector: {}}]}]}`,
			ingress: []policy.Match{{Source: within([]policy.SetID{
				allInProd, "pods(all()) namespaces(all())", "pods(has(x)) namespaces(team == 'a')",
			})}},
		},
		{
			name: "one canonical form: order, repetition and the namespace's name do not matter", applies: directions{true, false},
			in: `{ingress: [
				{from: [{podSelector: {matchExpressions: [{key: b, operator: NotIn, values: [v, u, v]}, {key: c, operator: DoesNotExist}], matchLabels: {a: "1"}}}]},
				{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: prod}}, podSelector: {matchExpressions: [{key: a, operator: In, values: ["1"]}, {key: c, operator: DoesNotExist}, {key: b, operator: NotIn, values: [u, v]}]}}]}]}`,
			ingress: []policy.Match{
				{Source: within([]policy.SetID{"pods(!has(c) && a == '1' && b not in {'u', 'v'}) namespaces(kubernetes.io/metadata.name == 'prod')"})},
				{Source: within([]policy.SetID{"pods(!has(c) && a == '1' && b not in {'u', 'v'}) namespaces(kubernetes.io/metadata.name == 'prod')"})},
			},
		},
		{
			name: "networks: host bits go, exceptions of elsewhere go, IPv4 in IPv6 is IPv4, zeros lead", applies: directions{false, true},
			in: `{policyTypes: [Egress], egress: [{to: [
				{ipBlock: {cidr: 10.1.2.3/8, except: [10.1.0.0/16, 192.0.2.0/24, "fd00::/8"]}}, {ipBlock: {cidr: "fd00::/8", except: ["fd00:1::/32"]}},
				{ipBlock: {cidr: "::ffff:192.0.2.0/120"}}, {ipBlock: {cidr: 010.000.0.0/08}}]}]}`,
			egress: []policy.Match{{Destination: within(nil,
				policy.Net{CIDR: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}},
				policy.Net{CIDR: netip.MustParsePrefix("fd00::/8"), Except: []netip.Prefix{netip.MustParsePrefix("fd00:1::/32")}},
				policy.Net{CIDR: netip.MustParsePrefix("192.0.2.0/24")}, policy.Net{CIDR: netip.MustParsePrefix("10.0.0.0/8")},
			)}},
		},
		{
			name: "ports: TCP by default, ranges joined, one entry per protocol", applies: directions{true, false},
			in: `{ingress: [{ports: [{port: 80}, {port: 53, protocol: UDP}, {port: 81, endPort: 90}, {port: 85, endPort: 86}, {protocol: SCTP}, {protocol: SCTP, port: 7}, {port: 65535}]}]}`,
			ingress: []policy.Match{{Transport: []policy.Transport{
				{Protocol: policy.TCP, DestinationPorts: policy.Ports{Ranges: []policy.PortRange{{First: 80, Last: 90}, {First: 65535, Last: 65535}}}},
				{Protocol: policy.UDP, DestinationPorts: policy.Ports{Ranges: []policy.PortRange{{First: 53, Last: 53}}}},
				{Protocol: policy.SCTP},
			}}},
		},
		{
			name: "named ports: of the policy's own pods on this node, or of the peers", applies: directions{true, true},
			in: `{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: http}]}],
				egress: [{ports: [{port: dns, protocol: UDP}], to: [{podSelector: {}}]}, {ports: [{port: dns}], to: [{podSelector: {}}, {ipBlock: {cidr: "::/0"}}]}, {ports: [{port: dns}]}]}`,
			ingress: []policy.Match{{Transport: named(policy.TCP, "port http/TCP of own "+webInProd)}},
			egress: []policy.Match{
				{Destination: within([]policy.SetID{allInProd}), Transport: named(policy.UDP, "port dns/UDP of "+allInProd)},
				{Destination: within([]policy.SetID{allInProd}, policy.Net{CIDR: netip.MustParsePrefix("::/0")}), Transport: named(policy.TCP, "port dns/TCP of pods(all()) namespaces(all())")},
				{Transport: named(policy.TCP, "port dns/TCP of pods(all()) namespaces(all())")},
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := translate(parse(t, tt.in))
			if diff := cmp.Diff(tt.applies, directions{got.applies[policy.Ingress], got.applies[policy.Egress]}); diff != "" {
				t.Errorf("applies (-want +got):\n%s", diff)
			}
			if len(got.problems) > 0 {
				t.Errorf("problems: %v", got.problems)
			}
			want := &policy.Policy{
				ID: got.policy.ID, Ingress: rulesOf(got.policy.ID, policy.Ingress, tt.ingress), Egress: rulesOf(got.policy.ID, policy.Egress, tt.egress),
			}
			if diff := cmp.Diff(want, got.policy, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			checkSets(t, got)
		})
	}
}

func named(p policy.Protocol, id policy.SetID) []policy.Transport {
	return []policy.Transport{{Protocol: p, DestinationPorts: policy.Ports{Named: []policy.SetID{id}}}}
}

func rulesOf(id policy.PolicyID, d policy.Direction, matches []policy.Match) []policy.Rule {
	var rules []policy.Rule
	for i, m := range matches {
		rules = append(rules, policy.Rule{ID: policy.RuleID{Policy: id, Direction: d, Index: i}, Action: policy.Allow, Match: m})
	}
	return rules
}

// checkSets wants exactly the sets that the policy refers to, each once.
func checkSets(t *testing.T, got translation) {
	t.Helper()
	count := map[policy.SetID]int{}
	for id, s := range got.sets {
		if s.id() != id {
			t.Errorf("set %s stands as %s", s.id(), id)
		}
		count[id]++
	}
	want := map[policy.SetID]int{}
	for id := range got.policy.Sets {
		want[id] = 1
	}
	if diff := cmp.Diff(want, count); diff != "" {
		t.Errorf("sets (-want +got):\n%s", diff)
	}
}

// TestTranslateMistakes holds that a mistake closes its direction, and no other, and says where it is.
func TestTranslateMistakes(t *testing.T) {
	for _, tt := range []struct {
		in      string // of ingress, beside an egress rule without mistakes
		field   string
		closed  []policy.Direction
		subject string
	}{
		{in: `ingress: [{}, {from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]`, field: "spec.ingress[1].from[0].ipBlock.cidr"},
		{in: `ingress: [{from: [{ipBlock: {cidr: ""}}]}]`, field: "spec.ingress[0].from[0].ipBlock.cidr"},
		{in: `ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 10.0.0.1]}}]}]`, field: "spec.ingress[0].from[0].ipBlock.except[1]"},
		{in: `ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]`, field: "spec.ingress[0].from[0]"},
		{in: `ingress: [{from: [{}]}]`, field: "spec.ingress[0].from[0]"},
		{in: `ingress: [{from: [{podSelector: {matchLabels: {"a b": c}}}]}]`, field: "spec.ingress[0].from[0].podSelector.matchLabels"},
		{in: `ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: a, operator: In}]}}]}]`, field: "spec.ingress[0].from[0].namespaceSelector.matchExpressions[0]"},
		{in: `ingress: [{from: [{podSelector: {matchExpressions: [{key: a, operator: Gt, values: ["1"]}]}}]}]`, field: "spec.ingress[0].from[0].podSelector.matchExpressions[0].operator"},
		{in: `ingress: [{ports: [{port: 0}]}]`, field: "spec.ingress[0].ports[0].port"},
		{in: `ingress: [{ports: [{port: 65536}]}]`, field: "spec.ingress[0].ports[0].port"},
		{in: `ingress: [{ports: [{port: 90, endPort: 80}]}]`, field: "spec.ingress[0].ports[0].endPort"},
		{in: `ingress: [{ports: [{port: 90, endPort: 65536}]}]`, field: "spec.ingress[0].ports[0].endPort"},
		{in: `ingress: [{ports: [{endPort: 80}]}]`, field: "spec.ingress[0].ports[0].endPort"},
		{in: `ingress: [{ports: [{port: http, endPort: 80}]}]`, field: "spec.ingress[0].ports[0].endPort"},
		{in: `ingress: [{ports: [{port: "80"}]}]`, field: "spec.ingress[0].ports[0].port"},
		{in: `ingress: [{ports: [{port: 80, protocol: ICMP}]}]`, field: "spec.ingress[0].ports[0].protocol"},
		{
			in: `{ingress: [{}], podSelector: {matchLabels: {app: web}, matchExpressions: [{key: a, operator: Is}]}}`, field: "spec.podSelector.matchExpressions[0].operator",
			closed: []policy.Direction{policy.Ingress, policy.Egress}, subject: "own " + webInProd,
		},
		{in: `{ingress: [{}], policyTypes: [Egress, Sideways]}`, field: "spec.policyTypes[1]", closed: []policy.Direction{policy.Ingress, policy.Egress}},
	} {
		t.Run(tt.field+" "+tt.in, func(t *testing.T) {
			obj := parse(t, tt.in)
			obj.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}}}
			if len(obj.Spec.PolicyTypes) == 0 {
				obj.Spec.PolicyTypes = []networkingv1.PolicyType{"Ingress", "Egress"}
			}
			if tt.closed == nil {
				tt.closed = []policy.Direction{policy.Ingress}
			}
			got := translate(obj)
			if len(got.problems) != 1 || got.problems[0].Field != tt.field || got.problems[0].Reason == "" {
				t.Errorf("problems: got %v, want one of %s", got.problems, tt.field)
			}
			if !got.applies[policy.Ingress] || !got.applies[policy.Egress] {
				t.Error("it does not apply in both directions any more")
			}
			for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
				want := 1
				if slices.Contains(tt.closed, d) {
					want = 0
				}
				if got := len(got.policy.Rules(d)); got != want {
					t.Errorf("%s: got %d rules, want %d", d, got, want)
				}
			}
			if tt.subject != "" && got.subject.String() != tt.subject {
				t.Errorf("subject: got %s, want %s: what can be read of it", got.subject, tt.subject)
			}
			checkSets(t, got)
		})
	}
}

func testPod(namespace, name, uid string, labels map[string]string, ips ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid), Labels: labels}}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return p
}

// TestLargePolicy holds that thousands of peers and networks in one rule cost thousands of steps, not
// their square: it would run for minutes.
func TestLargePolicy(t *testing.T) {
	var from []networkingv1.NetworkPolicyPeer
	for i := range 10_000 {
		l := map[string]string{"app": fmt.Sprint(i)}
		from = append(from,
			networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: l}},
			networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255)}},
		)
	}
	c := New()
	obj := parse(t, `{ingress: [{ports: [{port: http}]}]}`)
	obj.Spec.Ingress[0].From = from
	c.SetNetworkPolicy(obj)
	c.SetWorkload(workloadAt("prod", "web", ""))
	c.SetPod(testPod("prod", "web", "", nil))
	d := c.Flush()
	if len(d.Sets) != 10_001 || len(d.Policies) != 1 || len(d.Policies[0].Policy.Ingress[0].Match.Source.Within[0].Nets) != 10_000 {
		t.Errorf("%d sets, %d policies", len(d.Sets), len(d.Policies))
	}
	c.RemoveNetworkPolicy("prod", "p")
	if d := c.Flush(); len(d.Sets) != 10_001 {
		t.Errorf("%d sets are removed", len(d.Sets))
	}
}
