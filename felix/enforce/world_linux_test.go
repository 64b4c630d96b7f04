// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/policytest"
	"github.com/heliograph-dev/heliograph/policy/explain"
)

// world draws clusters of one node and its lab's pods, as people write them: each object is a line of YAML.
// Another node is one of the addresses outside.
type world struct {
	*rand.Rand
	lab     *policytest.Lab
	objects map[string]string // by the name of their slot
}

func newWorld(lab *policytest.Lab, seed uint64) *world {
	return &world{Rand: rand.New(rand.NewPCG(seed, 0)), lab: lab, objects: map[string]string{}} //nolint:gosec // repeatable on purpose
}

func (w *world) chance(percent int) bool { return w.IntN(100) < percent }

func (w *world) pick(from ...string) string { return from[w.IntN(len(from))] }

// list is fewer than n, in YAML.
func (w *world) list(n int, draw func() string) string {
	var out []string
	for range w.IntN(n) {
		out = append(out, draw())
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// fields are those of a YAML object that have a value.
func fields(list ...string) string {
	list = slices.DeleteFunc(list, func(s string) bool { return s == "" })
	return "{" + strings.Join(list, ", ") + "}"
}

// maybe is a field that is there so often.
func (w *world) maybe(percent int, name string, value func() string) string {
	if !w.chance(percent) {
		return ""
	}
	return name + ": " + value()
}

// slot is a place for an object that each world has, or may have.
type slot struct {
	name string
	must bool
	draw func() string
}

const namespaces = 3

func namespace(i int) string { return fmt.Sprintf("n%d", i%namespaces) }

func (w *world) slots() []slot {
	out := []slot{{"hosts", true, w.hosts}}
	add := func(n int, kind string, must bool, draw func(i int) string) {
		for i := range n {
			out = append(out, slot{fmt.Sprint(kind, i), must, func() string { return draw(i) }})
		}
	}
	add(namespaces, "namespace", true, w.namespace)
	add(len(w.lab.Pods), "pod", true, w.pod)
	add(namespaces, "account", false, w.account)
	add(2, "service", true, w.service)
	add(2, "tier", false, w.tier)
	add(namespaces, "set", false, w.set)
	add(2, "global set", false, w.globalSet)
	add(4, "Kubernetes policy", false, w.k8sPolicy)
	add(4, "cluster policy", false, w.clusterPolicy)
	add(4, "policy", false, w.policy)
	add(3, "global policy", false, w.globalPolicy)
	return out
}

// next draws the next world, which has much in common with the last.
func (w *world) next() {
	for _, s := range w.slots() {
		switch {
		case !s.must && w.chance(25):
			delete(w.objects, s.name)
		case w.objects[s.name] == "" || w.chance(35):
			w.objects[s.name] = s.draw()
		}
	}
}

func (w *world) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(w.objects)) {
		b.WriteString("---\n" + strings.TrimSpace(w.objects[name]) + "\n")
	}
	return b.String()
}

// read is what kubectl would make of it.
func (w *world) read(t *testing.T) []explain.Typed {
	t.Helper()
	out, err := explain.Decode(strings.NewReader(w.String()), "")
	if err != nil {
		t.Fatalf("%v\n%s", err, w)
	}
	return out
}

// hosts are the node, with a pod that uses its network, and another node.
func (w *world) hosts() string {
	own, other := w.lab.Node, w.lab.Outside
	return fmt.Sprintf(`{apiVersion: v1, kind: Node, metadata: {name: node1, labels: %s}, status: {addresses: [{type: InternalIP, address: %s}, {type: InternalIP, address: "%s"}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: node2, labels: %s}, status: {addresses: [{type: InternalIP, address: %s}, {type: InternalIP, address: "%s"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: n0, name: host, labels: %s}, spec: {nodeName: node1, hostNetwork: true, containers: [{name: c, image: i}]}, status: {podIPs: [{ip: %s}, {ip: "%s"}]}}`,
		w.labels(), own[0], own[1], w.labels(), other[0], other[3], w.labels(), own[0], own[1])
}

func (w *world) labels() string {
	return fields(w.maybe(70, "app", func() string { return w.pick("a", "b", "c") }), w.maybe(70, "tier", func() string { return w.pick("a", "b", `""`) }))
}

func (w *world) namespace(i int) string {
	labels := strings.Replace(w.labels(), "{", fmt.Sprintf("{kubernetes.io/metadata.name: %s, ", namespace(i)), 1)
	return fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: %s}}", namespace(i), labels)
}

func (w *world) pod(i int) string {
	port := func() string {
		return w.pick("{name: http, containerPort: 80}", "{name: http, containerPort: 8080}", "{name: dns, containerPort: 53, protocol: UDP}", "{name: dns, containerPort: 53}")
	}
	ips := w.lab.Pods[i].IPs
	return fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {namespace: %s, name: p%d, uid: u%d, labels: %s}, spec: {nodeName: node1, serviceAccountName: %s, containers: [{name: c, image: i, ports: %s}]}, status: {podIPs: [{ip: %s}, {ip: "%s"}]}}`,
		namespace(i), i, i, w.labels(), w.pick("client", "other"), w.list(3, port), ips[0], ips[1])
}

func (w *world) account(i int) string {
	return fmt.Sprintf("{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: %s, name: client, labels: %s}}", namespace(i), w.labels())
}

// service is one with its endpoints of both families.
func (w *world) service(i int) string {
	var out strings.Builder
	fmt.Fprintf(&out, `{apiVersion: v1, kind: Service, metadata: {namespace: %s, name: svc}, spec: {clusterIPs: [10.96.0.%d, "fd00:96::%d"], clusterIP: 10.96.0.%d, ports: [{name: http, port: 80, protocol: TCP}, {name: dns, port: 53, protocol: UDP}]}}`,
		namespace(i), i+1, i+1, i+1)
	for f, family := range []string{"IPv4", "IPv6"} {
		var endpoints []string
		for _, pod := range w.Perm(len(w.lab.Pods))[:w.IntN(3)] {
			endpoints = append(endpoints, fmt.Sprintf(`{addresses: ["%s"], nodeName: node1}`, w.lab.Pods[pod].IPs[f]))
		}
		fmt.Fprintf(&out, "\n---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: %s, name: svc-%d, labels: {kubernetes.io/service-name: svc}}, addressType: %s, ports: [{name: http, port: %s, protocol: TCP}, {name: dns, port: 53, protocol: UDP}], endpoints: [%s]}",
			namespace(i), f, family, w.pick("80", "8080"), strings.Join(endpoints, ", "))
	}
	return out.String()
}

func (w *world) tier(i int) string {
	return fmt.Sprintf("{apiVersion: heliograph.dev/v1alpha1, kind: Tier, metadata: {name: t%d}, spec: {order: %s, defaultAction: %s}}", i, w.pick("5", "7", "2000000"), w.pick("Deny", "Pass"))
}

func (w *world) set(i int) string {
	return fmt.Sprintf("{apiVersion: heliograph.dev/v1alpha1, kind: NetworkSet, metadata: {namespace: %s, name: s, labels: %s}, spec: {nets: %s}}", namespace(i), w.labels(), w.list(3, w.net))
}

func (w *world) globalSet(i int) string {
	return fmt.Sprintf("{apiVersion: heliograph.dev/v1alpha1, kind: GlobalNetworkSet, metadata: {name: g%d, labels: %s}, spec: {nets: %s}}", i, w.labels(), w.list(3, w.net))
}

func (w *world) net() string {
	return w.pick("192.0.2.0/24", "192.0.2.128/25", "198.51.100.2/32", "10.244.0.0/24", "10.244.0.2/31", "0.0.0.0/0", `"2001:db8::/64"`, `"2001:db8:1::2/128"`, `"fd00:244::/64"`, `"fd00:244::4/126"`, `"::/0"`)
}

// labelSelector is one of Kubernetes.
func (w *world) labelSelector() string {
	return w.pick("{}", "{matchLabels: {app: a}}", "{matchLabels: {app: b, tier: a}}", "{matchExpressions: [{key: tier, operator: NotIn, values: [a, b]}]}",
		"{matchExpressions: [{key: app, operator: In, values: [a, c]}]}", "{matchExpressions: [{key: tier, operator: Exists}]}", "{matchExpressions: [{key: app, operator: DoesNotExist}]}")
}

func (w *world) namespaceSelector() string {
	return w.pick(w.labelSelector(), "{matchLabels: {kubernetes.io/metadata.name: n1}}")
}

func (w *world) types() string { return w.pick("[Ingress]", "[Egress]", "[Ingress, Egress]") }

func (w *world) k8sPolicy(i int) string {
	port := func() string {
		return w.pick("{protocol: TCP, port: 80}", "{protocol: TCP, port: http}", "{protocol: UDP, port: dns}", "{protocol: TCP, port: 50, endPort: 442}", "{protocol: SCTP}", "{protocol: UDP}")
	}
	peer := func() string {
		switch w.IntN(4) {
		case 0:
			return w.pick("{ipBlock: {cidr: 0.0.0.0/0, except: [10.244.0.0/30]}}", `{ipBlock: {cidr: "fd00:244::/64", except: ["fd00:244::4/126"]}}`, "{ipBlock: {cidr: 192.0.2.0/24}}", `{ipBlock: {cidr: "2001:db8::/64"}}`)
		case 1:
			return fmt.Sprintf("{podSelector: %s}", w.labelSelector())
		case 2:
			return fmt.Sprintf("{namespaceSelector: %s}", w.namespaceSelector())
		}
		return fmt.Sprintf("{podSelector: %s, namespaceSelector: %s}", w.labelSelector(), w.namespaceSelector())
	}
	rules := func(peers string) string {
		return w.list(3, func() string { return fmt.Sprintf("{%s: %s, ports: %s}", peers, w.list(3, peer), w.list(3, port)) })
	}
	return fmt.Sprintf("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: %s, name: k%d}, spec: {podSelector: %s, policyTypes: %s, ingress: %s, egress: %s}}",
		namespace(i), i, w.labelSelector(), w.types(), rules("from"), rules("to"))
}

func (w *world) clusterPolicy(i int) string {
	pods := func() string {
		if w.chance(50) {
			return fmt.Sprintf("{namespaces: %s}", w.namespaceSelector())
		}
		return fmt.Sprintf("{pods: {namespaceSelector: %s, podSelector: %s}}", w.namespaceSelector(), w.labelSelector())
	}
	outside := func() string {
		return w.pick(fmt.Sprintf("{nodes: %s}", w.labelSelector()), fmt.Sprintf("{networks: [%s]}", w.net()), pods())
	}
	numbers := []string{"{tcp: {destinationPort: {number: 80}}}", "{udp: {destinationPort: {number: 53}}}", "{tcp: {destinationPort: {range: {start: 50, end: 442}}}}", "{sctp: {destinationPort: {number: 443}}}"}
	rules := func(peers string, peer func() string, ports []string) string {
		return w.list(3, func() string {
			return fmt.Sprintf("{action: %s, %s: [%s], protocols: %s}", w.pick("Accept", "Deny", "Pass"), peers, peer(), w.list(3, func() string { return w.pick(ports...) }))
		})
	}
	return fmt.Sprintf("{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: c%d}, spec: {tier: %s, priority: %s, subject: %s, ingress: %s, egress: %s}}",
		i, w.pick("Admin", "Baseline"), w.pick("1", "5", "1000"), pods(), rules("from", pods, append(numbers, "{destinationNamedPort: http}")), rules("to", outside, numbers))
}

func (w *world) policy(i int) string {
	return fmt.Sprintf("{apiVersion: heliograph.dev/v1alpha1, kind: NetworkPolicy, metadata: {namespace: %s, name: o%d}, spec: %s}", namespace(i), i, w.spec(""))
}

func (w *world) globalPolicy(i int) string {
	namespaces := w.maybe(50, "namespaceSelector", w.namespaceExpression)
	return fmt.Sprintf("{apiVersion: heliograph.dev/v1alpha1, kind: GlobalNetworkPolicy, metadata: {name: o%d}, spec: %s}", i, w.spec(namespaces))
}

func (w *world) expression() string {
	return w.pick(`""`, `"app == 'a'"`, `"app != 'a'"`, `"tier in {'a', 'b'}"`, `"tier not in {'b'}"`, `"has(app)"`, `"!has(tier)"`, `"app == 'a' || tier == 'b'"`, `"has(app) && !(tier == 'a')"`)
}

func (w *world) namespaceExpression() string {
	return w.pick(w.expression(), `"all()"`, `"global()"`, `"kubernetes.io/metadata.name == 'n1'"`)
}

// spec is a policy's of ours. Of the tiers that it names one may not exist.
func (w *world) spec(more string) string {
	return fields(more, "tier: "+w.pick("default", "default", "t0", "t1"), "selector: "+w.expression(), "types: "+w.types(),
		w.maybe(60, "order", func() string { return w.pick("1", "1000", "2000") }),
		w.maybe(20, "serviceAccountSelector", w.expression), w.maybe(12, "enforcement", func() string { return "Audit" }),
		"ingress: "+w.list(4, func() string { return w.rule("source") }), "egress: "+w.list(4, func() string { return w.rule("destination") }))
}

func (w *world) rule(far string) string {
	action := "action: " + w.pick("Allow", "Allow", "Allow", "Deny", "Pass", "Log")
	version := w.maybe(15, "ipVersion", func() string { return w.pick("4", "6") })
	source, destination := "source: "+w.end(), "destination: "+w.end()
	switch w.IntN(6) {
	case 0, 1:
		destination = "destination: " + w.end(w.maybe(80, "ports", w.ports), w.maybe(20, "notPorts", w.ports))
		return fields(action, version, "protocol: "+w.pick("TCP", "UDP"), source, destination)
	case 2:
		return fields(action, version, "notProtocol: "+w.pick("TCP", "UDP"), source, destination)
	case 3:
		return fields(action, "protocol: ICMP", w.maybe(50, "icmp", func() string { return "{type: 8}" }), source, destination)
	case 4:
		return fields(action, fmt.Sprintf("%s: {services: {name: svc, namespace: %s}}", far, namespace(w.IntN(namespaces))))
	}
	return fields(action, version, source, destination)
}

func (w *world) ports() string {
	return "[" + w.pick("80", "http", "dns", `"50:442"`, "443, 53") + "]"
}

// end is that of a rule, with more conditions.
func (w *world) end(more ...string) string {
	nets := func() string { return "[" + w.net() + "]" }
	return fields(append(more, w.maybe(45, "selector", w.expression), w.maybe(20, "namespaceSelector", w.namespaceExpression),
		w.maybe(12, "notSelector", w.expression), w.maybe(15, "nets", nets), w.maybe(12, "notNets", nets),
		w.maybe(10, "serviceAccounts", func() string { return w.pick("{names: [client]}", "{selector: "+w.expression()+"}") }))...)
}

// question is what somebody asks `policy explain`.
func (w *world) question() (from, to string) {
	from = w.place()
	switch w.IntN(6) {
	case 0:
		return from, fmt.Sprintf("service/%s/svc:%s", namespace(w.IntN(2)), w.pick("80", "http", "53/udp"))
	case 1:
		ip := netip.MustParseAddr(fmt.Sprintf(w.pick("10.96.0.%d", "fd00:96::%d"), 1+w.IntN(2)))
		return from, netip.AddrPortFrom(ip, 80).String()
	}
	to = w.place()
	for strings.HasPrefix(to, "node/") {
		to = w.place()
	}
	if w.chance(15) {
		return from, to + "/icmp"
	}
	if ip, err := netip.ParseAddr(to); err == nil && ip.Is6() {
		to = "[" + to + "]"
	}
	return from, to + ":" + w.pick("80", "53/udp", "443", "443/sctp", "8080", "http", "dns/udp", "53")
}

// place is where a packet may come from or go to.
func (w *world) place() string {
	switch w.IntN(12) {
	case 0:
		return w.pick("n0/host", "node/node1", w.lab.Node[w.IntN(2)].String())
	case 1:
		return "node/node2"
	case 2, 3:
		return w.lab.Outside[w.IntN(len(w.lab.Outside))].String()
	case 4:
		return w.lab.Pods[w.IntN(len(w.lab.Pods))].IPs[w.IntN(2)].String()
	}
	i := w.IntN(len(w.lab.Pods))
	return fmt.Sprintf("%s/p%d", namespace(i), i)
}
