// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/policy"
)

func impact(t *testing.T, before *Cluster, ch Change) *Impact {
	t.Helper()
	c, err := before.Apply(ch)
	if err != nil {
		t.Fatal(err)
	}
	old, err := NewView(before)
	if err != nil {
		t.Fatal(err)
	}
	now, err := NewView(c)
	if err != nil {
		t.Fatal(err)
	}
	return NewImpact(old, now)
}

func briefChanges(i *Impact) []string {
	var out []string
	for _, c := range i.Changes {
		var from, to, what []string
		for _, g := range c.From {
			from = append(from, g.String())
		}
		for _, g := range c.To {
			to = append(to, g.String())
		}
		for _, w := range c.Traffic {
			what = append(what, strings.TrimSpace(fmt.Sprintf("%s %s: %s → %s", w.Family, w.What, w.Before, w.After)))
		}
		out = append(out, strings.Join(from, ", ")+" → "+strings.Join(to, ", ")+": "+strings.Join(what, "; "))
	}
	return out
}

func TestImpact(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before []string
		put    []string
		remove []string
		want   []string
		notes  []string
	}{
		{name: "nothing", before: []string{closed}, put: []string{closed}},
		{name: "a policy that selects nobody", put: []string{strings.ReplaceAll(closed, "app: db", "app: none")}},
		{name: "closed", put: []string{closed}, want: []string{
			"all pods (5 pods), outside the cluster → prod/db-0, prod/db-1: everything: allowed → denied",
		}},
		{name: "open again", before: []string{closed}, remove: []string{"networkpolicy/prod/closed"}, want: []string{
			"all pods (5 pods), outside the cluster → prod/db-0, prod/db-1: everything: denied → allowed",
		}},
		{name: "one port for some", before: []string{closed}, put: []string{fromWeb}, want: []string{
			"prod/web → prod/db-0: TCP 5432: denied → allowed", "prod/web → prod/db-1: TCP 15432: denied → allowed",
		}},
		{name: "one more that allows nothing", before: []string{fromWeb}, put: []string{closed}},
		{name: "networks, of one family", before: []string{closed}, put: []string{office}, want: []string{
			"all pods of prod (3 pods) → prod/db-0: IPv4 everything: denied → allowed",
			"10.244.1.0/24 (but pods), 192.0.2.0/24 except [192.0.2.128/25] → prod/db-0, prod/db-1: everything: denied → allowed",
			"prod/web → prod/db-1: IPv4 everything: denied → allowed",
		}},
		{name: "egress", put: []string{noEgress}, want: []string{
			"prod/web → all pods of dev (2 pods), prod/db-0, prod/db-1, outside the cluster: TCP: allowed → denied; any other UDP port: allowed → denied; ICMP echo: allowed → denied",
		}},
		{name: "a mistake closes", put: []string{broken}, want: []string{
			"all pods (5 pods), outside the cluster → prod/db-0, prod/db-1: everything: allowed → denied",
		}},
		{name: "labels of a namespace", before: []string{fromTeam}, put: []string{"{apiVersion: v1, kind: Namespace, metadata: {name: dev, labels: {team: a}}}"}, want: []string{
			"all pods of dev (2 pods) → prod/db-0, prod/db-1: TCP 5432-5440: denied → allowed; SCTP: denied → allowed",
		}},
		{name: "the other end denies much anyway", before: []string{noEgress}, put: []string{closed}, want: []string{
			"all pods of dev (2 pods), prod/db-0, prod/db-1, outside the cluster → prod/db-0, prod/db-1: everything: allowed → denied",
			"prod/web → prod/db-0, prod/db-1: UDP 53: allowed → denied",
		}},
		{name: "tiers, a network set, and the baseline", put: []string{tiers}, want: []string{
			"192.0.2.0/24, 2001:db8::/32 → prod/db-0, prod/db-1: everything: allowed → denied",
			"all pods (5 pods), outside the cluster → prod/db-0, prod/db-1: TCP: allowed → denied; UDP: allowed → denied",
			"all pods of dev (2 pods) → prod/web: everything: allowed → denied",
		}},
		{name: "a network joins a set", before: []string{tiers}, put: []string{`{apiVersion: heliograph.dev/v1alpha1, kind: GlobalNetworkSet, metadata: {name: foes, labels: {friend: "no"}}, spec: {nets: [10.244.1.0/24]}}`}, want: []string{
			"all pods of prod (3 pods) → prod/db-0: IPv4 ICMP echo: allowed → denied",
			"10.244.1.0/24 (but pods) → prod/db-0, prod/db-1: ICMP echo: allowed → denied",
			"192.0.2.0/24, 2001:db8::/32 → prod/db-0, prod/db-1: ICMP echo: denied → allowed",
			"prod/web → prod/db-1: IPv4 ICMP echo: allowed → denied",
		}},
		{
			name: "pods that come", put: []string{"{apiVersion: v1, kind: Pod, metadata: {namespace: dev, name: new}, status: {podIP: 10.244.2.77}}"},
			notes: []string{"pods that come, go or change their addresses are not compared: 1"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ch := Change{Put: decode(t, tt.put...)}
			for _, r := range tt.remove {
				ref, err := ParseRef(r)
				if err != nil {
					t.Fatal(err)
				}
				ch.Delete = append(ch.Delete, ref)
			}
			got := impact(t, cluster(t, tt.before...), ch)
			if diff := cmp.Diff(tt.want, briefChanges(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.notes, got.Notes); diff != "" {
				t.Errorf("notes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestImpactTellsProblems(t *testing.T) {
	got := impact(t, cluster(t, closed), Change{Put: decode(t, broken)})
	want := []string{`NetworkPolicy prod/broken: spec.ingress[0].from[0].ipBlock.cidr: Invalid value: "10.0.0.0/99": is not a network`}
	if diff := cmp.Diff(want, got.Problems); diff != "" || got.Affected != 2 {
		t.Errorf("%d affected; problems (-want +got):\n%s", got.Affected, diff)
	}
}

// Pods of one owner are told apart only where policies do.
func TestGroups(t *testing.T) {
	var pods strings.Builder
	for i := range 8 {
		fmt.Fprintf(&pods, `---
apiVersion: v1
kind: Pod
metadata:
  namespace: prod
  name: api-5d9c-%d
  labels: {app: api, pod-template-hash: 5d9c, canary: "%t"}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: api-5d9c, uid: u, controller: true}]
status: {podIP: 10.244.3.%d}
`, i, i > 5, i+1)
	}
	canary := "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: prod, name: c}\nspec: {podSelector: {matchLabels: {canary: \"%t\"}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}"
	for canaries, want := range map[bool]string{
		true:  "prod/api (2 of 8 pods: api-5d9c-6, api-5d9c-7)",
		false: "prod/api (6 of 8 pods: api-5d9c-0, api-5d9c-1, api-5d9c-2, api-5d9c-3, api-5d9c-4, …)",
	} {
		got := briefChanges(impact(t, cluster(t, pods.String()), Change{Put: decode(t, fmt.Sprintf(canary, canaries))}))
		if diff := cmp.Diff([]string{"dev/old, prod/db-0, prod/db-1, prod/web, outside the cluster → " + want + ": everything: allowed → denied"}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

// However pods are put together, what is said of a pair is what the pair's packets meet.
func TestImpactIsWhatPacketsMeet(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // to be repeated
		before := randomCluster(t, r)
		after, err := before.Apply(randomChange(t, r))
		if err != nil {
			t.Fatal(err)
		}
		old, err := NewView(before)
		if err != nil {
			t.Fatal(err)
		}
		now, err := NewView(after)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(pairsByPackets(old, now), pairsByParties(old, now)); diff != "" {
			t.Fatalf("seed %d (-by packets +by parties):\n%s", seed, diff)
		}
	}
}

func randomCluster(t *testing.T, r *rand.Rand) *Cluster {
	c := NewCluster()
	put := func(format string, args ...any) {
		for _, o := range decode(t, fmt.Sprintf(format, args...)) {
			c.Put(o.Kind, o.Object)
		}
	}
	for n := range 3 {
		put("{apiVersion: v1, kind: Namespace, metadata: {name: n%d, labels: {team: t%d}}}", n, r.IntN(2))
	}
	for i := range 12 {
		put(`{apiVersion: v1, kind: Pod, metadata: {namespace: n%d, name: p%d, labels: {app: a%d, x: y%d}}, spec: {containers: [{name: c, image: i, ports: [{name: http, containerPort: %d}]}]}, status: {podIPs: [{ip: 10.0.%d.%d}, {ip: "fd00::%d:%d"}]}}`,
			i%3, i, r.IntN(3), r.IntN(2), 80+r.IntN(2), i%2, i+1, i%2, i+1)
	}
	for i := range r.IntN(5) {
		put("%s", randomPolicy(r, i))
	}
	return c
}

func randomChange(t *testing.T, r *rand.Rand) Change {
	ch := Change{Put: decode(t, randomPolicy(r, r.IntN(5)))}
	if r.IntN(3) == 0 {
		ch.Put = append(ch.Put, decode(t, fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: n%d, labels: {team: t%d}}}", r.IntN(3), r.IntN(2)))...)
	}
	return ch
}

func randomPolicy(r *rand.Rand, i int) string {
	selector := func() string {
		return []string{"{}", "{matchLabels: {app: a0}}", "{matchLabels: {app: a1, x: y0}}", "{matchExpressions: [{key: x, operator: NotIn, values: [y0]}]}"}[r.IntN(4)]
	}
	rule := func(peers string) string {
		peer := []string{
			"podSelector: " + selector(), "namespaceSelector: {matchLabels: {team: t0}}", "ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.4/30]}", `ipBlock: {cidr: "fd00::1:0/112"}`,
		}[r.IntN(4)]
		port := []string{"port: 80", "port: http", "port: 79, endPort: 81", "protocol: UDP", "protocol: SCTP, port: 7"}[r.IntN(5)]
		return fmt.Sprintf("{%s: [{%s}], ports: [{%s}]}", peers, peer, port)
	}
	return fmt.Sprintf("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: n%d, name: q%d}, spec: {podSelector: %s, policyTypes: [%s], ingress: [%s], egress: [%s]}}",
		i%3, i, selector(), []string{"Ingress", "Egress", "Ingress, Egress"}[r.IntN(3)], rule("from"), rule("to"))
}

func pairsByParties(before, after *View) []string {
	c := newComparison(before, after)
	c.findPods()
	c.findAffected()
	c.findParties()
	var out []string
	for _, p := range c.compare() {
		for _, i := range c.parties[p.from].pods {
			for _, j := range c.parties[p.to].pods {
				if i != j {
					out = append(out, fmt.Sprint(c.pods[i].id, c.pods[j].id, p.traffic))
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// pairsByPackets asks for each pair, with nothing put together.
func pairsByPackets(before, after *View) []string {
	c := newComparison(before, after)
	c.findPods()
	c.findAffected()
	named := namedPorts{of: map[string][]pieceKey{}}
	var single []*party
	for i := range c.pods {
		p := &party{pods: []int{i}, first: addressesOf(c.pods[i].after.IPs), affected: [2]bool{true, true}}
		for d := range p.named {
			p.named[d] = named.meet(c, &c.pods[i], policy.Direction(d))
		}
		p.named[policy.Ingress] = append(slices.Clip(p.named[policy.Ingress]), c.pods[i].ports...)
		p.portsKey = [2]string{policy.Egress: fmt.Sprintf("%d to ", i), policy.Ingress: fmt.Sprint(i)}
		single = append(single, p)
	}
	var out []string
	for i, from := range single {
		for j, to := range single {
			if i == j {
				continue
			}
			if t := c.pair(from, to); len(t) > 0 {
				out = append(out, fmt.Sprint(c.pods[i].id, c.pods[j].id, t))
			}
		}
	}
	slices.Sort(out)
	return out
}

// BenchmarkImpact is of 10,000 pods of 1,000 owners with 1,000 policies, and a change of one that selects
// 100 of them: it compiles both, and compares.
func BenchmarkImpact(b *testing.B) {
	c := NewCluster()
	put := func(format string, args ...any) {
		objects, err := Decode(strings.NewReader(fmt.Sprintf(format, args...)), "")
		if err != nil {
			b.Fatal(err)
		}
		for _, o := range objects {
			c.Put(o.Kind, o.Object)
		}
	}
	for n := range 100 {
		put("{apiVersion: v1, kind: Namespace, metadata: {name: n%d, labels: {team: t%d}}}", n, n%10)
		for i := range 100 {
			id := n*100 + i
			put(`{apiVersion: v1, kind: Pod, metadata: {namespace: n%d, name: p%d-%d, labels: {app: a%d}, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: p%d, uid: u, controller: true}]}, spec: {containers: [{name: c, image: i, ports: [{name: http, containerPort: 80}]}]}, status: {podIPs: [{ip: 10.%d.%d.%d}, {ip: "fd00::%x"}]}}`,
				n, i%10, i/10, i%10, i%10, id>>16, id>>8&255, id&255, id+1)
		}
		for i := range 10 {
			put("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: n%d, name: q%d}, spec: {podSelector: {matchLabels: {app: a%d}}, ingress: [{from: [{podSelector: {matchLabels: {app: a%d}}, namespaceSelector: {matchLabels: {team: t%d}}}, {ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}], ports: [{port: http}, {port: %d}]}]}}",
				n, i, i, (i+1)%10, i, 8000+i)
		}
	}
	objects, err := Decode(strings.NewReader("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: n7, name: all}, spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}], egress: [{ports: [{port: 443}]}], policyTypes: [Ingress, Egress]}}"), "")
	if err != nil {
		b.Fatal(err)
	}
	changed, err := c.Apply(Change{Put: objects})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		before, err := NewView(c)
		if err != nil {
			b.Fatal(err)
		}
		after, err := NewView(changed)
		if err != nil {
			b.Fatal(err)
		}
		i := NewImpact(before, after)
		if i.Affected != 100 || len(i.Changes) == 0 || i.NotCompared > 0 {
			b.Fatalf("%+v", i)
		}
		b.ReportMetric(float64(len(i.Changes)), "changes")
	}
}
