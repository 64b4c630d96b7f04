// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/policy"
)

// world is the objects that exist, and random changes of them.
type world struct {
	*rand.Rand
	pods       map[policy.EndpointID]*corev1.Pod
	namespaces map[string]*corev1.Namespace
	policies   map[policy.PolicyID]*networkingv1.NetworkPolicy
	workloads  map[policy.EndpointID]Workload
	ours       ourWorld
	hosts      map[string]*v1alpha1.HostEndpoint
	failsafes  *Failsafes
}

func newWorld(seed uint64) *world {
	return &world{
		Rand: rand.New(rand.NewPCG(seed, 0)), pods: map[policy.EndpointID]*corev1.Pod{}, namespaces: map[string]*corev1.Namespace{},
		policies: map[policy.PolicyID]*networkingv1.NetworkPolicy{}, workloads: map[policy.EndpointID]Workload{},
		ours: newOurWorld(), hosts: map[string]*v1alpha1.HostEndpoint{},
	}
}

func pick[T any](w *world, from ...T) T { return from[w.IntN(len(from))] }

func (w *world) labels() map[string]string {
	l := map[string]string{}
	for _, k := range []string{"app", "tier", "env"} {
		if w.IntN(3) > 0 {
			l[k] = pick(w, "a", "b", "c")
		}
	}
	return l
}

// selector makes a few distinct ones, empty, positive, negative and, if bad, wrong ones.
func (w *world) selector(bad bool) *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	if w.IntN(3) == 0 {
		s.MatchLabels = map[string]string{pick(w, "app", "tier", "env"): pick(w, "a", "b")}
	}
	for range w.IntN(3) {
		e := metav1.LabelSelectorRequirement{
			Key:      pick(w, "app", "tier", "env"),
			Operator: pick(w, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist),
		}
		if e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn {
			e.Values = []string{pick(w, "a", "b"), pick(w, "b", "c")}
		}
		if bad && w.IntN(20) == 0 {
			e.Values = []string{"not a value", ""}
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return s
}

func (w *world) peers() []networkingv1.NetworkPolicyPeer {
	var list []networkingv1.NetworkPolicyPeer
	for range w.IntN(3) {
		var p networkingv1.NetworkPolicyPeer
		switch w.IntN(4) {
		case 0:
			p.IPBlock = &networkingv1.IPBlock{CIDR: pick(w, "10.0.0.0/8", "0.0.0.0/0", "fd00::/16", "10.0.0.0/33"), Except: []string{pick(w, "10.0.0.4/30", "fd00::/120")}}
		case 1:
			p.PodSelector = w.selector(true)
		case 2:
			p.NamespaceSelector = w.selector(true)
			if w.IntN(4) == 0 {
				p.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{nameLabel: pick(w, "ns0", "ns1")}}
			}
		case 3:
			p.PodSelector, p.NamespaceSelector = w.selector(true), w.selector(true)
		}
		list = append(list, p)
	}
	return list
}

func (w *world) ports() []networkingv1.NetworkPolicyPort {
	var list []networkingv1.NetworkPolicyPort
	for range w.IntN(3) {
		protocol := pick(w, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		port := pick(w, intstr.FromInt32(80), intstr.FromString("http"), intstr.FromString("dns"), intstr.FromInt32(0))
		list = append(list, networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &port})
	}
	return list
}

func (w *world) policy(namespace, name string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	p.Spec.PodSelector = *w.selector(true)
	p.Spec.PolicyTypes = pick(w, nil, []networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Egress"}, []networkingv1.PolicyType{"Ingress", "Egress"})
	for range w.IntN(3) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: w.peers(), Ports: w.ports()})
	}
	for range w.IntN(2) {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: w.peers(), Ports: w.ports()})
	}
	return p
}

func (w *world) pod(id policy.EndpointID) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: id.Namespace, Name: id.Name, UID: pick(w, types.UID("1"), "1", "1", "2"), Labels: w.labels()}}
	// Few addresses, so that pods share them.
	if w.IntN(5) > 0 {
		n := w.IntN(12)
		p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.0.0.%d", n)}, {IP: fmt.Sprintf("fd00::%x", n)}}
	}
	p.Status.Phase = pick(w, corev1.PodRunning, corev1.PodRunning, corev1.PodRunning, corev1.PodSucceeded)
	p.Spec.HostNetwork = w.IntN(10) == 0
	p.Spec.ServiceAccountName = pick(w, "", "client", "server")
	for range w.IntN(3) {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Ports: []corev1.ContainerPort{
			{Name: pick(w, "http", "dns"), ContainerPort: pick[int32](w, 80, 8080), Protocol: pick(w, corev1.ProtocolTCP, corev1.ProtocolUDP, "")},
		}})
	}
	return p
}

// step changes one object, in the world and in the compiler.
func (w *world) step(c *Compiler) {
	switch w.IntN(20) {
	case 0, 1, 2, 3, 4, 5, 6, 7, 8:
		w.stepOurs(c)
		return
	case 9:
		w.stepHosts(c)
		return
	}
	namespace := pick(w, "ns0", "ns1", "ns2")
	id := policy.EndpointID{Namespace: namespace, Name: fmt.Sprintf("pod%d", w.IntN(5))}
	switch w.IntN(12) {
	case 0, 1, 2:
		w.pods[id] = w.pod(id)
		c.SetPod(w.pods[id])
	case 3:
		if old := w.pods[id]; old != nil {
			p := old.DeepCopy()
			p.Labels = w.labels()
			w.pods[id] = p
			c.SetPod(p)
		}
	case 4:
		delete(w.pods, id)
		c.RemovePod(id)
	case 5:
		w.namespaces[namespace] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: w.labels()}}
		c.SetNamespace(w.namespaces[namespace])
	case 6:
		delete(w.namespaces, namespace)
		c.RemoveNamespace(namespace)
	case 7:
		n := w.IntN(12)
		wl := Workload{ID: id, UID: pick(w, "", "1", "1", "2"), Device: "hel" + id.Name, IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})}}
		w.workloads[id] = wl
		c.SetWorkload(wl)
	case 8:
		delete(w.workloads, id)
		c.RemoveWorkload(id)
	case 9, 10:
		p := w.policy(namespace, fmt.Sprintf("p%d", w.IntN(4)))
		w.policies[policy.PolicyID{Namespace: namespace, Name: p.Name}] = p
		c.SetNetworkPolicy(p)
	case 11:
		pid := policy.PolicyID{Namespace: namespace, Name: fmt.Sprintf("p%d", w.IntN(4))}
		delete(w.policies, pid)
		c.RemoveNetworkPolicy(pid.Namespace, pid.Name)
	}
}

// stepHosts changes a host of this node or of another, or what no policy may take from one.
func (w *world) stepHosts(c *Compiler) {
	name := fmt.Sprintf("host%d", w.IntN(4))
	switch w.IntN(6) {
	case 0:
		delete(w.hosts, name)
		c.RemoveHostEndpoint(name)
	case 1:
		w.failsafes = &Failsafes{VXLAN: 4789, Probe: pick[uint16](w, 4793, 4794)}
		c.SetFailsafes(*w.failsafes)
	default:
		h := hostEndpoint(name, pick(w, policy.AnyDevice, "eth0"), w.labels(), fmt.Sprintf("10.0.0.%d", w.IntN(12)))
		h.Spec.Node = pick(w, "ours", "ours", "other")
		h.Spec.Ports[0].Name = pick(w, "http", "dns")
		w.hosts[name] = h
		c.SetHostEndpoint(h, h.Spec.Node == "ours")
	}
}

// scratch compiles what exists now by a compiler that has seen nothing else.
func (w *world) scratch() *Compiler {
	c := New()
	for _, p := range w.policies {
		c.SetNetworkPolicy(p)
	}
	for _, p := range w.pods {
		c.SetPod(p)
	}
	for _, wl := range w.workloads {
		c.SetWorkload(wl)
	}
	for _, n := range w.namespaces {
		c.SetNamespace(n)
	}
	w.ours.compile(c)
	for _, h := range w.hosts {
		c.SetHostEndpoint(h, h.Spec.Node == "ours")
	}
	if w.failsafes != nil {
		c.SetFailsafes(*w.failsafes)
	}
	return c
}

func apply(t *testing.T, s *policy.State, d policy.Delta) {
	t.Helper()
	if err := s.Apply(d); err != nil {
		t.Fatalf("the delta does not fit: %v", err)
	}
	if err := s.Check(); err != nil {
		t.Fatalf("the state does not hold together: %v", err)
	}
}

// TestIncrementalIsFromScratch holds the compiler's promise: whatever happened, in whatever order, with
// whatever flushed in between, the state is that of the present objects, and deltas are minimal.
func TestIncrementalIsFromScratch(t *testing.T) {
	seeds := 150
	if testing.Short() {
		seeds = 20
	}
	for seed := range uint64(seeds) {
		w, c, state := newWorld(seed), New(), policy.NewState()
		for step := range 120 {
			for range 1 + w.IntN(4) {
				w.step(c)
			}
			apply(t, state, c.Flush())
			if d := c.Flush(); !d.Empty() {
				t.Fatalf("seed %d step %d: a second flush says something: %v", seed, step, d)
			}
			if step%5 > 0 {
				continue
			}
			fresh, want := w.scratch(), policy.NewState()
			apply(t, want, fresh.Flush())
			if diff := cmp.Diff(want, state, comparers()); diff != "" {
				t.Fatalf("seed %d step %d: (-scratch +incremental):\n%s", seed, step, diff)
			}
			if diff := cmp.Diff(fresh.Problems(), c.Problems()); diff != "" {
				t.Fatalf("seed %d step %d: problems (-scratch +incremental):\n%s", seed, step, diff)
			}
		}
		checkNoLeak(t, seed, w, c, state)
	}
}

// checkNoLeak removes everything, after which nothing must be left.
func checkNoLeak(t *testing.T, seed uint64, w *world, c *Compiler, state *policy.State) {
	t.Helper()
	for _, p := range w.policies {
		c.RemoveNetworkPolicy(p.Namespace, p.Name)
	}
	w.ours.remove(c)
	for name := range w.hosts {
		c.RemoveHostEndpoint(name)
	}
	c.removeSource(policy.FailsafeID())
	for id := range w.pods {
		c.RemovePod(id)
	}
	for name := range w.namespaces {
		c.RemoveNamespace(name)
	}
	for id := range w.workloads {
		c.RemoveWorkload(id)
	}
	apply(t, state, c.Flush())
	if diff := cmp.Diff(policy.NewState(), state, comparers()); diff != "" {
		t.Fatalf("seed %d: left in the state (-want +got):\n%s", seed, diff)
	}
	left := len(c.entities) + len(c.namespaces) + len(c.workloads) + len(c.sources) + len(c.selections) + len(c.index) + len(c.byLabel) +
		len(c.byPrefix) + len(c.sets) + len(c.policies) + len(c.endpoints) + len(c.idle) +
		len(c.tiers) + len(c.byTier) + len(c.services) + len(c.slices)
	if left > 0 {
		t.Fatalf("seed %d: the compiler keeps %d things", seed, left)
	}
}

func comparers() cmp.Option {
	return cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmp.Comparer(func(a, b *policy.Policy) bool { return a.Equal(b) }),
		cmp.Comparer(func(a, b *policy.Endpoint) bool { return a.Equal(b) }),
	}
}
