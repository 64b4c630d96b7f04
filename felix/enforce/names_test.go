// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heliograph-dev/heliograph/felix/conntrack"
	"github.com/heliograph-dev/heliograph/felix/dnsgate"
	"github.com/heliograph-dev/heliograph/felix/domains"
	"github.com/heliograph-dev/heliograph/felix/feed"
	"github.com/heliograph-dev/heliograph/felix/watch"
	"github.com/heliograph-dev/heliograph/policy"
)

// fakeGate is a kernel that holds answers.
type fakeGate struct {
	mu      sync.Mutex
	pending dnsgate.Desired
	actual  dnsgate.Desired
}

func (f *fakeGate) SetDesired(d dnsgate.Desired) { f.pending = d }
func (f *fakeGate) QueueResync()                 {}
func (f *fakeGate) Apply(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.actual = f.pending
	return nil
}

func (f *fakeGate) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprint(f.actual.Devices, f.actual.Resolvers)
}

func journalTypes() map[feed.Kind]func() client.Object {
	kinds := watch.FeedTypes()
	kinds[domains.Records] = func() client.Object { return &domains.Record{} }
	return kinds
}

// named lets pods reach a name, and nothing else.
func named(pattern policyv1alpha2.DomainName) *policyv1alpha2.ClusterNetworkPolicy {
	return &policyv1alpha2.ClusterNetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "named"},
		Spec: policyv1alpha2.ClusterNetworkPolicySpec{
			Tier: policyv1alpha2.AdminTier, Subject: policyv1alpha2.ClusterNetworkPolicySubject{Namespaces: &metav1.LabelSelector{}},
			Egress: []policyv1alpha2.ClusterNetworkPolicyEgressRule{
				{Action: policyv1alpha2.ClusterNetworkPolicyRuleActionAccept, To: []policyv1alpha2.ClusterNetworkPolicyEgressPeer{{DomainNames: []policyv1alpha2.DomainName{pattern}}}},
				{Action: policyv1alpha2.ClusterNetworkPolicyRuleActionDeny, To: []policyv1alpha2.ClusterNetworkPolicyEgressPeer{{Networks: []policyv1alpha2.CIDR{"0.0.0.0/0", "::/0"}}}},
			},
		},
	}
}

// says is an answer of DNS.
func says(t *testing.T, name string, ips ...string) []byte {
	t.Helper()
	n := dnsmessage.MustNewName(name)
	m := dnsmessage.Message{Header: dnsmessage.Header{Response: true}, Questions: []dnsmessage.Question{{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	for _, text := range ips {
		h := dnsmessage.ResourceHeader{Name: n, Class: dnsmessage.ClassINET, TTL: 5}
		if ip := netip.MustParseAddr(text); ip.Is4() {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: ip.As4()}})
		} else {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: ip.As16()}})
		}
	}
	out, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// naming is a node whose pod may reach names below example.com.
func naming(t *testing.T) (n *node, stop func()) {
	t.Helper()
	n = newNode(t)
	stop = n.start()
	n.put(watch.EndpointSlices, &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-dns-1", Labels: map[string]string{discoveryv1.LabelServiceName: "kube-dns"}},
		Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"10.244.7.7"}}},
	})
	n.put(watch.ClusterNetworkPolicies, named("*.example.com"))
	n.serve(lets("client", 1))
	return n, stop
}

// TestNamesAreInForceBeforeTheAnswer: when an answer is let go, the pod reaches what is in it, and no more.
func TestNamesAreInForceBeforeTheAnswer(t *testing.T) {
	n, _ := naming(t)
	if got, want := n.gate.String(), "[hel1] [10.244.7.7 192.0.2.53]"; got != want {
		t.Errorf("answers are held to %s, want %s", got, want)
	}
	for i := range 200 {
		ip4, ip6 := fmt.Sprintf("198.51.100.%d", i), fmt.Sprintf("2001:db8::%x", i+1)
		n.learner.Heard(t.Context(), says(t, fmt.Sprintf("n%d.example.com.", i), ip4, ip6))
		for _, ip := range []string{ip4, ip6} {
			if !n.kernel.allows(n.from(ip), ip) {
				t.Fatalf("the pod has the answer, and may not reach %s", ip)
			}
		}
	}
	n.learner.Heard(t.Context(), says(t, "example.org.", "203.0.113.1"))
	if n.kernel.allows("10.244.0.5", "203.0.113.1") {
		t.Error("a name that no policy asks for is reached")
	}
}

// from is the pod's address of a family; it has one of IPv4 only, and another may stand for IPv6.
func (n *node) from(to string) string {
	if netip.MustParseAddr(to).Is4() {
		return "10.244.0.5"
	}
	return "fd00::5"
}

// TestNamesWaitForTheKernel: as long as the kernel refuses, an answer is held for as long as the caller says.
func TestNamesWaitForTheKernel(t *testing.T) {
	n, _ := naming(t)
	refused := fmt.Errorf("no")
	n.kernel.set(func() { n.kernel.err = refused })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { n.learner.Heard(ctx, says(t, "a.example.com.", "198.51.100.1")); close(done) }()
	eventually(t, func() string {
		if n.enforcer.Status().InForce {
			return "the answer has made no run"
		}
		return ""
	})
	select {
	case <-done:
		t.Error("the answer was let go, and nothing is in force")
	default:
	}
	n.kernel.set(func() { n.kernel.err = nil })
	<-done
	if !n.kernel.allows("10.244.0.5", "198.51.100.1") {
		t.Error("the answer was let go, and its address is not in force")
	}
	n.kernel.set(func() { n.kernel.err = refused })
	cancel()
	n.learner.Heard(ctx, says(t, "b.example.com.", "198.51.100.2")) // returns
}

// TestNamesSurviveARestart: what is known stays in force, whether the API server answers again or not.
func TestNamesSurviveARestart(t *testing.T) {
	n, stop := naming(t)
	n.learner.Heard(t.Context(), says(t, "a.example.com.", "198.51.100.1"))
	stop()
	n.kernel = &fakeKernel{state: policy.NewState()}
	n.start()
	n.put(watch.ClusterNetworkPolicies, named("*.example.com"))
	n.serve(lets("client", 1))
	if !n.kernel.allows("10.244.0.5", "198.51.100.1") {
		t.Error("after a restart the pod may not go on to where it was told")
	}
	n.put(watch.ClusterNetworkPolicies, named("www.example.org"))
	eventually(t, func() string {
		if n.kernel.allows("10.244.0.5", "198.51.100.1") {
			return "the pod may still reach a name that the policy has no more"
		}
		return ""
	})
	n.feed.Delete(feed.Key{Kind: watch.ClusterNetworkPolicies, Name: "named"})
	eventually(t, func() string {
		if got := n.gate.String(); got != "[] []" {
			return "answers are held to " + got
		}
		return ""
	})
}

// TestUsed finds addresses that have connections.
func TestUsed(t *testing.T) {
	n := newNode(t)
	n.start()
	a, b, c := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("198.51.100.2")
	n.flows.flows = []conntrack.Flow{{Src: c, Dst: a}, {Src: c, Dst: b}}
	used, err := n.enforcer.Used(t.Context(), map[netip.Addr]bool{a: true, b: true, c: true})
	if err != nil || len(used) != 2 || !used[a] || !used[b] || len(n.flows.flows) != 2 {
		t.Errorf("Used = %v, %v, and %d flows are left", used, err, len(n.flows.flows))
	}
}

// TestNamedDevices: only pods' devices whose egress meets a rule with a name.
func TestNamedDevices(t *testing.T) {
	byName := policy.PolicyID{Kind: policy.ClusterNetworkPolicy, Name: "a"}
	other := policy.PolicyID{Kind: policy.NetworkPolicy, Namespace: "n", Name: "b"}
	to := func(sets ...policy.SetID) []policy.Rule {
		return []policy.Rule{{Match: policy.Match{Destination: policy.Peer{Within: []policy.Addresses{{Sets: sets}}}}}}
	}
	chain := func(ids ...policy.PolicyID) policy.Chain { return policy.Chain{Tiers: []policy.Tier{{Policies: ids}}} }
	s := policy.NewState()
	s.Policies[byName] = &policy.Policy{ID: byName, Egress: to("pods(all())", policy.DomainSet("a.b"))}
	s.Policies[other] = &policy.Policy{ID: other, Egress: to("pods(all())")}
	for name, ep := range map[string]*policy.Endpoint{
		"1": {Device: "hel1", Egress: chain(other, byName)}, "2": {Device: "hel2", Egress: chain(other)}, "3": {Device: "hel3", Ingress: chain(byName)},
	} {
		s.Endpoints[policy.EndpointID{Namespace: "n", Name: name}] = ep
	}
	s.Endpoints[policy.EndpointID{Name: "node", Host: true}] = &policy.Endpoint{Device: policy.AnyDevice, Egress: chain(byName)}
	if got := namedDevices(s); !slices.Equal(got, []string{"hel1"}) {
		t.Errorf("got %v, want hel1", got)
	}
}
