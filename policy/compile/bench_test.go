// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heliograph-dev/heliograph/policy"
)

// cluster is namespaces of 100 pods with 10 apps each, and policies that let one app reach another, each
// with selectors of its own.
type cluster struct {
	namespaces []*corev1.Namespace
	pods       []*corev1.Pod
	policies   []*networkingv1.NetworkPolicy
	workloads  []Workload
}

const ownPods = 110

func newCluster(pods, policies, apps int) cluster {
	var c cluster
	for i := range max(1, pods/100) {
		name := fmt.Sprintf("ns%d", i)
		c.namespaces = append(c.namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{nameLabel: name, "team": fmt.Sprintf("t%d", i%20)}}})
	}
	for i := range pods {
		p := benchPod(c.namespaces[i%len(c.namespaces)].Name, i)
		c.pods = append(c.pods, p)
		if i%max(1, pods/ownPods) == 0 && len(c.workloads) < ownPods {
			c.workloads = append(c.workloads, workloadOf(p))
		}
	}
	for i := range policies {
		c.policies = append(c.policies, benchPolicy(c.namespaces[i%len(c.namespaces)].Name, i, apps))
	}
	return c
}

func workloadOf(p *corev1.Pod) Workload {
	w := Workload{ID: policy.EndpointID{Namespace: p.Namespace, Name: p.Name}, Device: "hel" + p.Name}
	for _, ip := range p.Status.PodIPs {
		w.IPs = append(w.IPs, netip.MustParseAddr(ip.IP))
	}
	return w
}

func benchPod(namespace string, i int) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("pod-%d", i)}}
	p.Labels = map[string]string{
		"app": fmt.Sprintf("app-%d", i/100%10), "tier": []string{"web", "api", "db"}[i%3],
		"pod-template-hash": fmt.Sprintf("%08x", i/10), "env": "prod",
	}
	p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255)}, {IP: fmt.Sprintf("fd00::%x", i+1)}}
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}
	return p
}

func benchPolicy(namespace string, i, apps int) *networkingv1.NetworkPolicy {
	port := intstr.FromInt32(int32(1000 + i%1000))
	app := func(j int) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("app-%d", j%apps)}}
	}
	one := app(i + 1)
	one.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: fmt.Sprintf("never-%d", i), Operator: metav1.LabelSelectorOpDoesNotExist}}
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("policy-%d", i)},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: *app(i),
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{
					{PodSelector: one},
					{PodSelector: app(i + 2), NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": fmt.Sprintf("t%d", i%20)}}},
					{IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/24", Except: []string{"192.0.2.128/25"}}},
				},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
			}},
		},
	}
}

func (c cluster) compile() *Compiler {
	k := New()
	for _, n := range c.namespaces {
		k.SetNamespace(n)
	}
	for _, p := range c.pods {
		k.SetPod(p)
	}
	for _, w := range c.workloads {
		k.SetWorkload(w)
	}
	for _, p := range c.policies {
		k.SetNetworkPolicy(p)
	}
	return k
}

// BenchmarkSnapshot compiles 10,000 pods and 1,000 policies from nothing. "own" is how many pods are of
// this node: as many as a node has, or all, in which case every policy is in force.
func BenchmarkSnapshot(b *testing.B) {
	for _, own := range []int{ownPods, 10_000} {
		b.Run(fmt.Sprintf("own=%d", own), func(b *testing.B) {
			c := newCluster(10_000, 1_000, 10)
			if own > ownPods {
				c.workloads = nil
				for _, p := range c.pods {
					c.workloads = append(c.workloads, workloadOf(p))
				}
			}
			var k *Compiler
			var d policy.Delta
			before := heap()
			for b.Loop() {
				k = c.compile()
				d = k.Flush()
			}
			b.ReportMetric(float64(heap()-before)/1e6, "MB-held")
			b.ReportMetric(float64(len(d.Sets)), "sets")
			b.ReportMetric(float64(len(d.Policies)), "policies")
			runtime.KeepAlive(k)
			runtime.KeepAlive(c)
		})
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkRelabel changes a label of one pod and back, so that it moves between sets, with more and more
// policies. "spread" has them in 100 namespaces, "crowd" all in the pod's own. Either way the pod is
// concerned by the same few: what it costs that there are others is measured.
func BenchmarkRelabel(b *testing.B) {
	for _, shape := range []string{"spread", "crowd"} {
		for _, whose := range []string{"remote", "own"} {
			for _, n := range []int{100, 1_000, 10_000} {
				b.Run(fmt.Sprintf("%s/%s/policies=%d", shape, whose, n), func(b *testing.B) {
					benchmarkRelabel(b, shape, whose, n)
				})
			}
		}
	}
}

func benchmarkRelabel(b *testing.B, shape, whose string, n int) {
	c := newCluster(10_000, n, n)
	if shape == "crowd" {
		for _, p := range c.policies {
			p.Namespace = "ns0"
		}
	}
	// All that the pod's node has in force must not be nothing.
	for _, p := range c.policies {
		p.Spec.PodSelector.MatchLabels = nil
	}
	k := c.compile()
	pod := c.pods[0] // of ns0, and ours
	if whose == "remote" {
		k.RemoveWorkload(policy.EndpointID{Namespace: pod.Namespace, Name: pod.Name})
	}
	k.Flush()
	other := pod.DeepCopy()
	other.Labels["app"] = "app-1"
	changed := 0
	for i := 0; b.Loop(); i++ {
		if i%2 == 0 {
			k.SetPod(other)
		} else {
			k.SetPod(pod)
		}
		d := k.Flush()
		changed += len(d.Sets) + len(d.Endpoints) + len(d.Policies)
	}
	b.ReportMetric(float64(changed)/float64(b.N), "changes/op")
}
