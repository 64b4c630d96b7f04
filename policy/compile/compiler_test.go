// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/policy"
)

func workloadAt(namespace, name, uid string, ips ...string) Workload {
	w := Workload{ID: policy.EndpointID{Namespace: namespace, Name: name}, UID: uid, Device: "hel-" + name}
	for _, ip := range ips {
		w.IPs = append(w.IPs, netip.MustParseAddr(ip))
	}
	return w
}

func members(ips ...string) []policy.Member {
	var list []policy.Member
	for _, ip := range ips {
		a := netip.MustParseAddr(ip)
		list = append(list, policy.Member{Prefix: netip.PrefixFrom(a, a.BitLen())})
	}
	return list
}

func port(ip string, protocol policy.Protocol, port uint16) policy.Member {
	m := members(ip)[0]
	m.Protocol, m.Port = protocol, port
	return m
}

func diff(want, got any) string {
	return cmp.Diff(want, got, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }))
}

var closedChain = policy.Chain{Default: policy.Deny}

// TestWorkload follows a pod of this node from the plugin's ADD to its successor of the same name.
func TestWorkload(t *testing.T) {
	c := New()
	c.SetNetworkPolicy(parse(t, `{podSelector: {matchLabels: {app: web}}}`))
	id := policy.EndpointID{Namespace: "prod", Name: "web"}
	web, other := map[string]string{"app": "web"}, map[string]string{"app": "other"}
	open := policy.Chain{Default: policy.Allow}
	isolated := policy.Chain{Default: policy.Allow, Tiers: []policy.Tier{{
		Name: policy.DefaultTier, Default: policy.Deny, Policies: []policy.PolicyID{{Namespace: "prod", Name: "p"}},
	}}}
	for _, tt := range []struct {
		name    string
		event   func()
		unknown bool
		ingress policy.Chain
		egress  policy.Chain
	}{
		{"the plugin is before the API: closed", func() { c.SetWorkload(workloadAt("prod", "web", "2", "10.0.0.1", "fd00::1")) }, true, closedChain, closedChain},
		{"the API shows the predecessor still: closed", func() { c.SetPod(testPod("prod", "web", "1", other)) }, true, closedChain, closedChain},
		{"the API shows it: its policies", func() { c.SetPod(testPod("prod", "web", "2", web)) }, false, isolated, open},
		{"no policy selects it: open", func() { c.SetPod(testPod("prod", "web", "2", other)) }, false, open, open},
		{"it has ended, and has its device still", func() {
			p := testPod("prod", "web", "2", web)
			p.Status.Phase = corev1.PodFailed
			c.SetPod(p)
		}, false, isolated, open},
		{"the API forgot it: closed", func() { c.RemovePod(id) }, true, closedChain, closedChain},
	} {
		tt.event()
		d := c.Flush()
		if len(d.Endpoints) > 1 {
			t.Errorf("%s: %d endpoints changed", tt.name, len(d.Endpoints))
		}
		want := &policy.Endpoint{
			ID: id, Device: "hel-web", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
			Unknown: tt.unknown, Ingress: tt.ingress, Egress: tt.egress,
		}
		if diff := diff(want, c.endpoints[id]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	c.RemoveWorkload(id)
	want := policy.Delta{Endpoints: []policy.EndpointChange{{ID: id, Op: policy.Removed}}}
	if diff := diff(want, c.Flush()); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
}

// TestSets follows one set's members: minimal deltas, addresses that two pods have for a while, both families.
func TestSets(t *testing.T) {
	c := New()
	c.SetNetworkPolicy(parse(t, `{ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}`))
	c.SetWorkload(workloadAt("prod", "server", "", "10.0.0.9"))
	c.SetPod(testPod("prod", "server", "", nil, "10.0.0.9"))
	c.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod"}})
	web := map[string]string{"app": "web"}
	a, b := policy.EndpointID{Namespace: "prod", Name: "a"}, policy.EndpointID{Namespace: "prod", Name: "b"}
	if d := c.Flush(); len(d.Sets) != 1 || d.Sets[0].Op != policy.Added || len(d.Sets[0].Add) > 0 || len(d.Policies) != 1 || len(d.Endpoints) != 1 {
		t.Fatalf("at first: %+v", d)
	}
	for _, tt := range []struct {
		name        string
		event       func()
		add, remove []policy.Member
	}{
		{"a pod joins with both families", func() { c.SetPod(testPod("prod", "a", "", web, "10.0.0.1", "fd00::1")) }, members("10.0.0.1", "fd00::1"), nil},
		{"the same again", func() { c.SetPod(testPod("prod", "a", "", web, "10.0.0.1", "fd00::1")) }, nil, nil},
		{"it gets another label", func() {
			c.SetPod(testPod("prod", "a", "", map[string]string{"app": "web", "x": "y"}, "10.0.0.1", "fd00::1"))
		}, nil, nil},
		{"it leaves and comes back", func() { c.RemovePod(a); c.SetPod(testPod("prod", "a", "", web, "10.0.0.1", "fd00::1")) }, nil, nil},
		{"another has its address already", func() { c.SetPod(testPod("prod", "b", "", web, "10.0.0.1")) }, nil, nil},
		{"the first ends", func() {
			p := testPod("prod", "a", "", web, "10.0.0.1", "fd00::1")
			p.Status.Phase = corev1.PodSucceeded
			c.SetPod(p)
		}, nil, members("fd00::1")},
		{"the second changes its address", func() { c.SetPod(testPod("prod", "b", "", web, "10.0.0.2")) }, members("10.0.0.2"), members("10.0.0.1")},
		{"the namespace goes and comes; it is asked for by name", func() {
			c.RemoveNamespace("prod")
			c.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod", Labels: map[string]string{"x": "y"}}})
		}, nil, nil},
		{"it uses the node's address", func() {
			p := testPod("prod", "b", "", web, "10.0.0.2")
			p.Spec.HostNetwork = true
			c.SetPod(p)
		}, nil, members("10.0.0.2")},
		{"all gone", func() { c.RemovePod(a); c.RemovePod(b) }, nil, nil},
	} {
		tt.event()
		var want policy.Delta
		if tt.add != nil || tt.remove != nil {
			want.Sets = []policy.SetChange{{ID: webInProd, Op: policy.Changed, Add: tt.add, Remove: tt.remove}}
		}
		if diff := diff(want, c.Flush()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestOnlyWhatOwnPodsNeed: neither policies that select pods of other nodes, nor their sets, nor the
// named ports of pods elsewhere that an ingress rule could mean.
func TestOnlyWhatOwnPodsNeed(t *testing.T) {
	c := New()
	c.SetNetworkPolicy(parse(t, `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}], ports: [{port: http}]}]}`))
	ports := []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolUDP}}}}
	for i, name := range []string{"here", "there"} {
		p := testPod("prod", name, "", map[string]string{"app": "web"}, fmt.Sprintf("10.0.0.%d", i+1))
		p.Spec.Containers = ports
		c.SetPod(p)
	}
	if d := c.Flush(); !d.Empty() {
		t.Fatalf("without pods of this node: %+v", d)
	}
	c.SetWorkload(workloadAt("prod", "here", "", "10.0.0.1"))
	d := c.Flush()
	want := []policy.SetChange{
		{ID: allInProd, Op: policy.Added, Add: members("10.0.0.1", "10.0.0.2")},
		{ID: "port http/TCP of own " + webInProd, Op: policy.Added, Kind: policy.AddressPortSet, Add: []policy.Member{port("10.0.0.1", policy.TCP, 8080)}},
	}
	if diff := diff(want, d.Sets); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	c.RemoveWorkload(policy.EndpointID{Namespace: "prod", Name: "here"})
	if d := c.Flush(); len(d.Sets) != 2 || d.Sets[0].Op != policy.Removed || len(d.Policies) != 1 || d.Policies[0].Op != policy.Removed {
		t.Errorf("without pods again: %+v", d)
	}
}

// TestUnknownNamespace: nobody knows which labels it lacks.
func TestUnknownNamespace(t *testing.T) {
	c := New()
	c.SetNetworkPolicy(parse(t, `{ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: untrusted, operator: DoesNotExist}]}}]}]}`))
	c.SetWorkload(workloadAt("prod", "server", "", "10.0.0.9"))
	c.SetPod(testPod("prod", "server", "", nil))
	c.SetPod(testPod("new", "client", "", nil, "10.0.0.1"))
	d := c.Flush()
	if len(d.Sets) != 1 || len(d.Sets[0].Add) != 0 {
		t.Errorf("before the namespace is known: %+v", d.Sets)
	}
	c.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "new"}})
	d = c.Flush()
	if len(d.Sets) != 1 || len(d.Sets[0].Add) != 1 {
		t.Errorf("when it is known: %+v", d.Sets)
	}
}

// TestMistakeLeavesOthersAlone: two policies select a pod, one is wrong; what the other allows stays.
func TestMistakeLeavesOthersAlone(t *testing.T) {
	c := New()
	good, bad := parse(t, `{ingress: [{ports: [{port: 80}]}]}`), parse(t, `{ingress: [{}, {ports: [{port: 0}]}]}`)
	good.Name, bad.Name = "good", "bad"
	c.SetNetworkPolicy(good)
	c.SetNetworkPolicy(bad)
	c.SetWorkload(workloadAt("prod", "web", ""))
	c.SetPod(testPod("prod", "web", "", nil))
	d := c.Flush()
	if len(d.Policies) != 2 || len(d.Policies[0].Policy.Ingress) != 0 || len(d.Policies[1].Policy.Ingress) != 1 {
		t.Errorf("policies: %+v", d.Policies)
	}
	want := []Problem{{Policy: policy.PolicyID{Namespace: "prod", Name: "bad"}, Field: "spec.ingress[1].ports[0].port", Reason: "Invalid value: 0: is not between 1 and 65535"}}
	if diff := cmp.Diff(want, c.Problems()); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	c.SetNetworkPolicy(parse(t, `{}`))
	c.RemoveNetworkPolicy("prod", "bad")
	if p := c.Problems(); len(p) > 0 {
		t.Errorf("problems of what is gone: %v", p)
	}
}

// TestRelabelTouchesFew: however many policies there are, the index offers a pod only those that may
// concern it.
func TestRelabelTouchesFew(t *testing.T) {
	for _, shape := range []string{"spread", "crowd"} {
		for _, n := range []int{100, 5_000} {
			cl := newCluster(200, n, n)
			for _, p := range cl.policies {
				if shape == "crowd" {
					p.Namespace = "ns0"
				}
			}
			c := cl.compile()
			c.Flush()
			tried := 0
			c.index.each(c.entities[podKey(cl.workloads[0].ID)], func(*selection) { tried++ })
			if tried > 10 {
				t.Errorf("%s, %d policies: %d of %d selections are tried for one pod", shape, n, tried, len(c.selections))
			}
		}
	}
}

// FuzzParseCIDR holds that what is accepted is a masked prefix that stands for itself.
func FuzzParseCIDR(f *testing.F) {
	for _, s := range []string{"10.0.0.0/8", "10.1.2.3/08", "::/0", "::ffff:10.0.0.0/104", "::ffff:0:0/90", "fe80::1%eth0/64", "1.2.3.4", "/", "010.0.0.1/32"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parseCIDR(text)
		if err != nil {
			return
		}
		if !p.IsValid() || p != p.Masked() || p.Addr().Zone() != "" {
			t.Fatalf("%q is %s", text, p)
		}
		again, err := parseCIDR(p.String())
		// The part of IPv6 that holds IPv4 has no canonical text of its own beyond /96.
		if err != nil || again != p && !p.Addr().Is4In6() {
			t.Fatalf("%q is %s, which is %s (%v)", text, p, again, err)
		}
	})
}
