// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/eval"
)

// base has a web and two databases on two nodes, all dual-stack, behind services.
const base = `
apiVersion: v1
kind: Namespace
metadata: {name: prod, labels: {team: a}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: dev}}
---
{apiVersion: v1, kind: Node, metadata: {name: node1}, status: {addresses: [{type: Hostname, address: node1}, {type: InternalIP, address: 192.168.11.11}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: node2}, status: {addresses: [{type: InternalIP, address: 192.168.11.12}]}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: prod, name: web, labels: {app: web}}
spec: {nodeName: node1, containers: [{name: c, image: i}]}
status: {podIP: 10.244.1.5, podIPs: [{ip: 10.244.1.5}, {ip: "fd00:244::15"}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: prod, name: db-0, labels: {app: db, shard: "0"}}
spec: {nodeName: node2, containers: [{name: c, image: i, ports: [{name: pg, containerPort: 5432}]}]}
status: {podIP: 10.244.2.7, podIPs: [{ip: 10.244.2.7}, {ip: "fd00:244::27"}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: prod, name: db-1, labels: {app: db, shard: "1"}}
spec: {nodeName: node1, containers: [{name: c, image: i, ports: [{name: pg, containerPort: 15432}]}]}
status: {podIP: 10.244.1.8, podIPs: [{ip: 10.244.1.8}, {ip: "fd00:244::18"}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: dev, name: old, labels: {app: web}}
spec: {nodeName: node2, containers: [{name: c, image: i}]}
status: {podIP: 10.244.2.9}
---
apiVersion: v1
kind: Pod
metadata: {namespace: dev, name: six}
spec: {nodeName: node2, containers: [{name: c, image: i}]}
status: {podIP: "fd00:244::29"}
---
apiVersion: v1
kind: Pod
metadata: {namespace: dev, name: host}
spec: {nodeName: node2, hostNetwork: true, containers: [{name: c, image: i}]}
status: {podIP: 192.168.11.12}
---
apiVersion: v1
kind: Pod
metadata: {namespace: dev, name: young}
spec: {nodeName: node1, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: dev, name: done}
spec: {nodeName: node1, containers: [{name: c, image: i}]}
status: {phase: Succeeded, podIP: 10.244.1.5}
---
apiVersion: v1
kind: Service
metadata: {namespace: prod, name: db}
spec:
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7, "fd00:96::7"]
  ports: [{name: pg, port: 5432, targetPort: pg}, {name: metrics, port: 9187, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: prod, name: db-a, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: pg, port: 5432}]
endpoints: [{addresses: [10.244.2.7], nodeName: node2}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: prod, name: db-b, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: pg, port: 15432}]
endpoints: [{addresses: [10.244.1.8], nodeName: node1}, {addresses: [10.244.1.99], conditions: {ready: false}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: prod, name: db-c, labels: {kubernetes.io/service-name: db}}
addressType: IPv6
ports: [{name: pg, port: 5432}]
endpoints: [{addresses: ["fd00:244::27"], nodeName: node2}]
---
apiVersion: v1
kind: Service
metadata: {namespace: prod, name: headless}
spec: {clusterIP: None, ports: [{name: pg, port: 5432, targetPort: pg}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: prod, name: elsewhere}
spec: {type: ExternalName, externalName: example.org}
---
apiVersion: v1
kind: Service
metadata: {namespace: prod, name: empty}
spec: {clusterIP: 10.96.0.8, ports: [{port: 80}]}
`

// The policies of the cases.
const (
	closed = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: prod, name: closed}
spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}
`
	fromWeb = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: prod, name: from-web}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: pg}]}]
`
	shard0 = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: prod, name: shard0}
spec: {podSelector: {matchLabels: {shard: "0"}}, policyTypes: [Ingress]}
`
	office = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: prod, name: office}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}, {ipBlock: {cidr: 10.244.1.0/24}}]}]
`
	noEgress = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: prod, name: no-egress}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 53}]}]}
`
	fromTeam = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: prod, name: from-team}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}}], ports: [{port: 5432, endPort: 5440}, {protocol: SCTP}]}]
`
	tiers = `
apiVersion: heliograph.dev/v1alpha1
kind: Tier
metadata: {name: security}
spec: {order: 10, defaultAction: Pass}
---
apiVersion: heliograph.dev/v1alpha1
kind: GlobalNetworkPolicy
metadata: {name: watch}
spec:
  tier: security
  selector: app == 'db'
  enforcement: Audit
  ingress: [{action: Deny}]
---
apiVersion: heliograph.dev/v1alpha1
kind: GlobalNetworkPolicy
metadata: {name: friends}
spec:
  tier: security
  order: 5
  selector: app == 'db'
  ingress: [{action: Pass, protocol: TCP, source: {selector: app == 'web'}}, {action: Deny, source: {selector: friend == 'no', namespaceSelector: global()}}]
---
apiVersion: heliograph.dev/v1alpha1
kind: GlobalNetworkSet
metadata: {name: foes, labels: {friend: "no"}}
spec: {nets: [192.0.2.0/24, "2001:db8::/32"]}
---
apiVersion: heliograph.dev/v1alpha1
kind: NetworkPolicy
metadata: {namespace: prod, name: ping}
spec: {selector: app == 'db', ingress: [{action: Allow, protocol: ICMP}, {action: Allow, protocol: ICMPv6}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: base}
spec:
  tier: Baseline
  priority: 1
  subject: {namespaces: {}}
  ingress: [{action: Deny, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: dev}}}]}]
`
	broken = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: prod, name: broken}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/99}}]}]
`
)

func decode(t *testing.T, docs ...string) []Typed {
	t.Helper()
	var out []Typed
	for _, d := range docs {
		list, err := Decode(strings.NewReader(d), "default")
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, list...)
	}
	return out
}

func cluster(t *testing.T, docs ...string) *Cluster {
	t.Helper()
	c, err := NewCluster().Apply(Change{Put: decode(t, append([]string{base}, docs...)...)})
	if err != nil {
		t.Fatal(err)
	}
	c.SetNode("node1", parseIPs([]string{"10.244.1.1", "fd00:244::11"}))
	c.SetNode("node2", parseIPs([]string{"10.244.2.1", "fd00:244::21"}))
	return c
}

func query(t *testing.T, from, to string) Query {
	t.Helper()
	s, err := ParseSource(from)
	if err != nil {
		t.Fatal(err)
	}
	target, err := ParseTarget(to)
	if err != nil {
		t.Fatal(err)
	}
	return Query{From: s, To: target}
}

// brief writes an answer on few lines.
func brief(a *Answer) []string {
	out := []string{string(a.Verdict)}
	for _, f := range a.Flows {
		out = append(out, fmt.Sprintf("%s %s %s/%d: %s; egress %s; ingress %s", strings.Join(f.Families, "+"), f.To, f.Protocol, f.Port, f.Verdict, briefSide(f.Egress), briefSide(f.Ingress)))
	}
	return out
}

func briefSide(s *Side) string {
	switch {
	case s == nil:
		return "-"
	case s.Reason == eval.ByRule:
		return s.Verdict.String() + " by " + s.Rule.String()
	case s.Reason == eval.ByTier:
		return s.Verdict.String() + " by tier " + s.Tier
	case s.Reason == eval.ByChain:
		return s.Verdict.String()
	}
	return s.Verdict.String() + ", " + s.Reason.String()
}

func TestExplain(t *testing.T) {
	for _, tt := range []struct {
		name, from, to string
		policies       []string
		want           []string
		notes          []string
	}{
		{"no policy", "prod/web", "prod/db-0:5432", nil, []string{
			"allowed", "IPv4+IPv6 prod/db-0 TCP/5432: allowed; egress Allow; ingress Allow",
		}, nil},
		{"isolated", "prod/web", "prod/db-0:5432", []string{closed}, []string{
			"denied", "IPv4+IPv6 prod/db-0 TCP/5432: denied; egress Allow; ingress Deny by tier default",
		}, nil},
		{"a named port, from selected pods", "prod/web", "prod/db-0:pg", []string{closed, fromWeb}, []string{
			"allowed", "IPv4+IPv6 prod/db-0 TCP/5432: allowed; egress Allow; ingress Allow by NetworkPolicy prod/from-web ingress[0]",
		}, nil},
		{"a named port, whose number is another's", "prod/web", "prod/db-1:5432", []string{fromWeb}, []string{
			"denied", "IPv4+IPv6 prod/db-1 TCP/5432: denied; egress Allow; ingress Deny by tier default",
		}, nil},
		{"the same labels in another namespace, one family", "dev/old", "prod/db-0:5432", []string{fromWeb}, []string{
			"denied", "IPv4 prod/db-0 TCP/5432: denied; egress Allow; ingress Deny by tier default",
		}, nil},
		{"both ends deny, and both say so", "prod/web", "prod/db-0:5432", []string{closed, noEgress}, []string{
			"denied", "IPv4+IPv6 prod/db-0 TCP/5432: denied; egress Deny by tier default; ingress Deny by tier default",
		}, nil},
		{"a block of addresses", "192.0.2.7", "prod/db-0:5432", []string{office}, []string{
			"allowed", "IPv4 prod/db-0 TCP/5432: allowed; egress -; ingress Allow by NetworkPolicy prod/office ingress[0]",
		}, nil},
		{"an exception of it", "192.0.2.200", "prod/db-0:5432", []string{office}, []string{
			"denied", "IPv4 prod/db-0 TCP/5432: denied; egress -; ingress Deny by tier default",
		}, nil},
		{"dual-stack, and the families differ", "prod/web", "prod/db-0:5432", []string{office}, []string{
			"mixed",
			"IPv4 prod/db-0 TCP/5432: allowed; egress Allow; ingress Allow by NetworkPolicy prod/office ingress[0]",
			"IPv6 prod/db-0 TCP/5432: denied; egress Allow; ingress Deny by tier default",
		}, nil},
		{"a service, one of whose endpoints denies", "prod/web", "service/prod/db:5432", []string{shard0}, []string{
			"mixed",
			"IPv4+IPv6 prod/db-0 TCP/5432: denied; egress Allow; ingress Deny by tier default",
			"IPv4 prod/db-1 TCP/15432: allowed; egress Allow; ingress Allow",
		}, nil},
		{"its address", "prod/web", "[fd00:96::7]:5432/tcp", []string{shard0}, []string{
			"denied", "IPv6 prod/db-0 TCP/5432: denied; egress Allow; ingress Deny by tier default",
		}, nil},
		{"its port by name", "prod/web", "service/prod/db:pg", nil, []string{
			"allowed",
			"IPv4+IPv6 prod/db-0 TCP/5432: allowed; egress Allow; ingress Allow",
			"IPv4 prod/db-1 TCP/15432: allowed; egress Allow; ingress Allow",
		}, nil},
		{"a service without endpoints", "prod/web", "service/prod/empty:80", nil, []string{"unknown"}, []string{
			"the service has no ready endpoint for the port: packets go nowhere",
		}},
		{"to itself", "prod/db-0", "prod/db-0:1", []string{closed}, []string{
			"allowed", "IPv4+IPv6 prod/db-0 TCP/1: allowed; egress Allow, a pod may talk to itself; ingress Allow, a pod may talk to itself",
		}, nil},
		{"a node to its own pod", "node/node2", "prod/db-0:5432", []string{closed}, []string{
			"allowed", "IPv4+IPv6 prod/db-0 TCP/5432: allowed; egress -; ingress Allow, the pod's own node may talk to it",
		}, nil},
		{"a node to another's pod", "node/node1", "prod/db-0:5432", []string{office}, []string{
			"mixed",
			"IPv4 prod/db-0 TCP/5432: allowed; egress -; ingress Allow by NetworkPolicy prod/office ingress[0]",
			"IPv6 prod/db-0 TCP/5432: denied; egress -; ingress Deny by tier default",
		}, nil},
		{"a node's address is the node", "192.168.11.12", "prod/db-0:5432", []string{closed}, []string{
			"allowed", "IPv4+IPv6 prod/db-0 TCP/5432: allowed; egress -; ingress Allow, the pod's own node may talk to it",
		}, nil},
		{"a pod of the node's network", "dev/host", "prod/db-1:15432", []string{closed}, []string{
			"denied", "IPv4+IPv6 prod/db-1 TCP/15432: denied; egress -; ingress Deny by tier default",
		}, []string{"dev/host uses the network of its node, node2: no policy applies where its packets leave, and other pods see the node's address"}},
		{"to a pod of the node's network", "prod/web", "dev/host:22", []string{noEgress}, []string{
			"denied", "IPv4 dev/host TCP/22: denied; egress Deny by tier default; ingress -",
		}, []string{"dev/host uses the network of its node, node2: no policy applies where packets arrive"}},
		{"a pod without address", "dev/young", "prod/db-0:5432", nil, []string{
			"unknown", " prod/db-0 TCP/5432: unknown; egress -; ingress -",
		}, []string{"dev/young has no address yet"}},
		{"no family in common", "dev/old", "dev/six:80", nil, []string{
			"unknown", " dev/six TCP/80: unknown; egress -; ingress -",
		}, []string{"dev/old and dev/six have no addresses of one family"}},
		{"ICMP is subject to policy", "prod/web", "prod/db-0/icmp", []string{fromWeb}, []string{
			"denied", "IPv4+IPv6 prod/db-0 ICMP/0: denied; egress Allow; ingress Deny by tier default",
		}, nil},
		{"out of the cluster", "prod/web", "192.0.2.1:53/udp", []string{noEgress}, []string{
			"allowed", "IPv4 192.0.2.1 UDP/53: allowed; egress Allow by NetworkPolicy prod/no-egress egress[0]; ingress -",
		}, nil},
		{"neither end is a pod", "192.0.2.1", "192.0.2.2:80", nil, []string{
			"allowed", "IPv4 192.0.2.2 TCP/80: allowed; egress -; ingress -",
		}, []string{"neither 192.0.2.1 nor 192.0.2.2 is a pod with an address of its own: no policy applies"}},
		{"a mistake closes", "prod/web", "prod/db-0:5432", []string{broken}, []string{
			"denied", "IPv4+IPv6 prod/db-0 TCP/5432: denied; egress Allow; ingress Deny by tier default",
		}, nil},
		{"tiers: audit, pass, deny by default", "prod/web", "prod/db-0:5432", []string{tiers}, []string{
			"denied", "IPv4+IPv6 prod/db-0 TCP/5432: denied; egress Allow; ingress Deny by tier default",
		}, nil},
		{"tiers: a network set", "2001:db8::1", "prod/db-0:5432", []string{tiers}, []string{
			"denied", "IPv6 prod/db-0 TCP/5432: denied; egress -; ingress Deny by GlobalNetworkPolicy friends ingress[1]",
		}, nil},
		{"tiers: ICMP of both families", "dev/old", "prod/db-0/icmp", []string{tiers}, []string{
			"allowed", "IPv4 prod/db-0 ICMP/0: allowed; egress Allow; ingress Allow by NetworkPolicy.heliograph.dev prod/ping ingress[0]",
		}, nil},
		{"tiers: the baseline", "dev/old", "prod/web:80", []string{tiers}, []string{
			"denied", "IPv4 prod/web TCP/80: denied; egress Allow; ingress Deny by ClusterNetworkPolicy base ingress[0]",
		}, nil},
		{"headless: the port stays", "prod/web", "service/prod/headless:5432", nil, []string{"unknown"}, []string{
			"the service has no ready endpoint for the port: packets go nowhere",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, err := NewView(cluster(t, tt.policies...))
			if err != nil {
				t.Fatal(err)
			}
			a, err := v.Explain(query(t, tt.from, tt.to))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, brief(a)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.notes, a.Notes); diff != "" {
				t.Errorf("notes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExplainSaysWhatIsMissing(t *testing.T) {
	v, err := NewView(cluster(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ from, to, want string }{
		{"prod/nobody", "prod/db-0:80", "there is no pod prod/nobody"},
		{"prod/web", "prod/nobody:80", "there is no pod prod/nobody"},
		{"dev/done", "prod/db-0:80", "pod dev/done has ended (Succeeded)"},
		{"node/node9", "prod/db-0:80", "there is no node node9"},
		{"10.96.0.7", "prod/db-0:80", "10.96.0.7 is an address of service prod/db, from which no packet comes"},
		{"prod/web", "service/prod/nothing:80", "there is no service prod/nothing"},
		{"prod/web", "service/prod/db:81", "service prod/db has no TCP port 81: it has 5432/TCP pg, 9187/UDP metrics"},
		{"prod/web", "service/prod/db:9187", "service prod/db has no TCP port 9187"},
		{"prod/web", "service/prod/elsewhere:80", "is another name of example.org"},
		{"prod/web", "10.96.0.7/icmp", "which answers on its ports only"},
		{"prod/web", "prod/db-0:http", "no container of prod/db-0 has a TCP port http"},
		{"prod/web", "192.0.2.1:http", "192.0.2.1 is no pod whose ports had names"},
	} {
		_, err := v.Explain(query(t, tt.from, tt.to))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s to %s: error = %v; want %q in it", tt.from, tt.to, err, tt.want)
		}
	}
}

// What an answer tells besides the verdict: conditions that differ, of both families at once, and problems.
func TestExplainTells(t *testing.T) {
	v, err := NewView(cluster(t, fromWeb, broken))
	if err != nil {
		t.Fatal(err)
	}
	a, err := v.Explain(query(t, "prod/db-1", "prod/db-0:5432"))
	if err != nil {
		t.Fatal(err)
	}
	in := a.Flows[0].Ingress
	var differs []string
	for _, p := range in.Tiers[0].Policies {
		for _, r := range p.Rules {
			differs = append(differs, r.ID.String()+": "+r.Differs.String())
		}
	}
	want := []string{"NetworkPolicy prod/from-web ingress[0]: source: got 10.244.1.8 and fd00:244::18, want pods(app == 'web') namespaces(kubernetes.io/metadata.name == 'prod')"}
	if diff := cmp.Diff(want, differs); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(in.Problems) != 1 || !strings.HasPrefix(in.Problems[0], "NetworkPolicy prod/broken: spec.ingress[0].from[0].ipBlock.cidr: ") || in.Node != "node2" {
		t.Errorf("problems %q, node %q", in.Problems, in.Node)
	}
}

func TestBackendsAreBounded(t *testing.T) {
	v, err := NewView(cluster(t))
	if err != nil {
		t.Fatal(err)
	}
	q := query(t, "prod/web", "service/prod/db:5432")
	q.MaxBackends = 1
	a, err := v.Explain(q)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Flows) != 1 || a.BackendsLeftOut != 1 || a.Service.Ready != 2 || a.Service.NotReady != 1 {
		t.Errorf("%d flows, %d left out, %+v", len(a.Flows), a.BackendsLeftOut, a.Service)
	}
}

// A dry run puts objects over those that there are, and takes others away.
func TestDryRun(t *testing.T) {
	before := cluster(t, closed)
	ref, err := ParseRef("networkpolicies/prod/closed")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change Change
		want   Verdict
	}{
		{"nothing", Change{}, Denied},
		{"one more", Change{Put: decode(t, fromWeb)}, Allowed},
		{"another of the name", Change{Put: decode(t, strings.ReplaceAll(fromWeb, "from-web", "closed"))}, Allowed},
		{"one less", Change{Delete: []Ref{ref}}, Allowed},
		{"a pod of other labels", Change{Put: decode(t, "{apiVersion: v1, kind: Pod, metadata: {namespace: prod, name: db-0}, status: {podIP: 10.244.2.7}}")}, Allowed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := before.Apply(tt.change)
			if err != nil {
				t.Fatal(err)
			}
			v, err := NewView(c)
			if err != nil {
				t.Fatal(err)
			}
			a, err := v.Explain(query(t, "prod/web", "prod/db-0:5432"))
			if err != nil || a.Verdict != tt.want {
				t.Errorf("verdict = %v, %v; want %s", a.Verdict, err, tt.want)
			}
		})
	}
	ref.Name = "gone"
	if _, err := before.Apply(Change{Delete: []Ref{ref}}); err == nil || !strings.Contains(err.Error(), "there is no NetworkPolicy prod/gone") {
		t.Errorf("error = %v", err)
	}
}

func TestParseTarget(t *testing.T) {
	pod := policy.EndpointID{Namespace: "prod", Name: "db-0"}
	for in, want := range map[string]Target{
		"prod/db-0:5432":       {Pod: pod, Protocol: policy.TCP, Port: 5432},
		"prod/db-0:5432/TCP":   {Pod: pod, Protocol: policy.TCP, Port: 5432},
		"pod/prod/db-0:53/udp": {Pod: pod, Protocol: policy.UDP, Port: 53},
		"prod/db-0:pg/sctp":    {Pod: pod, Protocol: policy.SCTP, PortName: "pg"},
		"prod/db-0/icmp":       {Pod: pod, Protocol: policy.ICMP},
		"prod/db-0:icmp":       {Pod: pod, Protocol: policy.ICMP},
		"10.0.0.1:80":          {IP: addr("10.0.0.1"), Protocol: policy.TCP, Port: 80},
		"[fd00::1]:80/tcp":     {IP: addr("fd00::1"), Protocol: policy.TCP, Port: 80},
		"fd00::1/icmp":         {IP: addr("fd00::1"), Protocol: policy.ICMP},
		"[fd00::1]/icmp":       {IP: addr("fd00::1"), Protocol: policy.ICMP},
		"[::ffff:10.0.0.1]:80": {IP: addr("10.0.0.1"), Protocol: policy.TCP, Port: 80},
		"service/prod/db-0:80": {Service: pod, Protocol: policy.TCP, Port: 80},
		"svc/prod/db-0:web":    {Service: pod, Protocol: policy.TCP, PortName: "web"},
		"node/n1:22":           {Node: "n1", Protocol: policy.TCP, Port: 22},
		"node/n1/icmp":         {Node: "n1", Protocol: policy.ICMP},
		"pod/node/n1:22":       {Pod: policy.EndpointID{Namespace: "node", Name: "n1"}, Protocol: policy.TCP, Port: 22},
		"service/db-0:80":      {Pod: policy.EndpointID{Namespace: "service", Name: "db-0"}, Protocol: policy.TCP, Port: 80},
		"pod/service/db-0:80":  {Pod: policy.EndpointID{Namespace: "service", Name: "db-0"}, Protocol: policy.TCP, Port: 80},
	} {
		got, err := ParseTarget(in)
		if err != nil || got != want {
			t.Errorf("%q = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"prod/db-0":            "a port is needed",
		"prod/db-0/tcp":        "a port is needed",
		"fd00::1":              "a port is needed",
		"prod/db-0:0":          `"0" is neither a port`,
		"prod/db-0:65536":      `"65536" is neither a port`,
		"prod/db-0:":           `"" is neither a port`,
		"db-0:80":              "is neither NAMESPACE/POD",
		"a/b/c:80":             "is neither NAMESPACE/POD",
		"service/prod/db/icmp": "a service answers on its ports only",
		"":                     "a port is needed",
	} {
		if got, err := ParseTarget(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q = %+v, %v; want %q", in, got, err, want)
		}
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"prod/db-0:5432/tcp", "[fd00::1]:80", "fd00::1/icmp", "service/a/b:c", "[", "]:1", "::1:80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		target, err := ParseTarget(s)
		if err != nil {
			return
		}
		if hasPort := target.Port > 0 || target.PortName != ""; hasPort == (target.Protocol == policy.ICMP) {
			t.Errorf("%q is %+v", s, target)
		}
		if target.IP.IsValid() == (target.Pod.Name+target.Service.Name != "") {
			t.Errorf("%q is %+v", s, target)
		}
	})
}

func TestParseSource(t *testing.T) {
	for in, want := range map[string]Source{
		"prod/web":     {Pod: policy.EndpointID{Namespace: "prod", Name: "web"}},
		"pod/node/web": {Pod: policy.EndpointID{Namespace: "node", Name: "web"}},
		"node/node1":   {Node: "node1"},
		"fd00::1":      {IP: addr("fd00::1")},
	} {
		if got, err := ParseSource(in); err != nil || got != want {
			t.Errorf("%q = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "web", "a/b/c", "prod/", "/web", "node/"} {
		if got, err := ParseSource(in); err == nil {
			t.Errorf("%q = %+v", in, got)
		}
	}
}

func TestDecode(t *testing.T) {
	for _, tt := range []struct{ name, in, want, wantErr string }{
		{"two, and comments", "# a\n---\n" + closed + "---\n# b\n---" + office + "---\n", "[NetworkPolicy prod/closed NetworkPolicy prod/office]", ""},
		{"a list", `{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}}]}`, "[Pod default/a Namespace b]", ""},
		{"nothing", "", "[]", ""},
		{"another kind", closed + "---\n{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}}", "", "document 2: Deployment of apps/v1 is no kind that policy follows from: there are Namespace, Node,"},
		{"another version", "{apiVersion: v2, kind: Pod, metadata: {name: x}}", "", "document 1: Pod of v2 is no kind"},
		{"no kind", "a: b", "", "document 1: it has no apiVersion and kind"},
		{"no object", "- a", "", "document 1: it is no object"},
		{"no YAML", "a: [", "", "document 1: yaml:"},
		{"a field misspelt", strings.ReplaceAll(fromWeb, "ports:", "prots:"), "", `document 1: NetworkPolicy: `},
		{"no name", "{apiVersion: v1, kind: Pod}", "", "document 1: a Pod without a name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list, err := Decode(strings.NewReader(tt.in), "default")
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("error = %v; want %q", err, tt.wantErr)
				}
				return
			}
			refs := []Ref{}
			for _, typed := range list {
				refs = append(refs, typed.Ref())
			}
			if got := fmt.Sprint(refs); err != nil || got != tt.want {
				t.Errorf("got %s, %v; want %s", got, err, tt.want)
			}
		})
	}
}

func TestParseRef(t *testing.T) {
	for in, want := range map[string]string{
		"networkpolicies.heliograph.dev/prod/web": "NetworkPolicy.heliograph.dev prod/web", "Tier/a": "Tier a", "clusternetworkpolicies/a": "ClusterNetworkPolicy a",
		"networkpolicy/prod/web": "NetworkPolicy prod/web", "networkpolicies.networking.k8s.io/prod/web": "NetworkPolicy prod/web",
		"Namespace/prod": "Namespace prod", "pods/prod/a": "Pod prod/a",
		"deployment/a/b": `"deployment" is no kind`, "Pod/a": "is not of the form KIND/NAMESPACE/NAME",
		"Namespace/a/b": "is not of the form KIND/NAME", "pod/a/": "is not of the form", "": `"" is no kind`,
	} {
		r, err := ParseRef(in)
		if got := r.String(); err == nil && got != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q = %s, %v; want %s", in, got, err, want)
		}
	}
}
