// SPDX-License-Identifier: Apache-2.0

// Package explain answers questions about network policy from the API's objects alone: what would become of
// a packet, and why; and what a change of objects would change. It asks no node: it compiles the policy of
// all nodes at once, as if every pod were here, and evaluates it.
//
//	objects (API, files) ─▶ Cluster ─▶ View ─┬─ Explain(query) ─▶ Answer
//	                                         └─ Impact(before, after) ─▶ Changes
//
// What it says is what a node enforces that has heard of these objects, and no more than that: how far the
// nodes are it cannot know.
package explain

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/policy/compile"
)

// Object is an object of the API.
type Object interface {
	metav1.Object
	runtime.Object
}

// List is a list of such.
type List interface {
	metav1.ListInterface
	runtime.Object
}

// Kind is a kind of objects that policy, or its explanation, follows from.
type Kind struct {
	schema.GroupVersionKind
	// Resource as rights name it: "networkpolicies.networking.k8s.io".
	Resource string
	// Cluster says that its objects are in no namespace.
	Cluster bool
	// Optional says that a cluster may do without the kind: its definition is not part of Kubernetes.
	Optional bool
	// Dispensable says that few policies refer to the kind: without the right to it, an answer is still worth
	// having, with a note.
	Dispensable bool
	// New and List make empty ones.
	New  func() Object
	List func() List
	// set hands an object to the compiler.
	set func(*compile.Compiler, Object)
}

// String is the kind as users write it: with its group where Kubernetes has the name too.
func (k Kind) String() string {
	if k.Group == v1alpha1.GroupVersion.Group && k.Kind == "NetworkPolicy" {
		return k.Kind + "." + k.Group
	}
	return k.Kind
}

// Kinds lists them all. Whoever adds one to the compiler adds a line here.
func Kinds() []Kind {
	core, net, ours, cluster := corev1.SchemeGroupVersion, networkingv1.SchemeGroupVersion, v1alpha1.GroupVersion, schema.GroupVersion(policyv1alpha2.GroupVersion)
	return []Kind{
		kind(core, "Namespace", "namespaces", func() List { return &corev1.NamespaceList{} }, (*compile.Compiler).SetNamespace).ofCluster(),
		kind(core, "Node", "nodes", func() List { return &corev1.NodeList{} }, func(c *compile.Compiler, n *corev1.Node) { c.SetNode(n) }).ofCluster().dispensable(),
		kind(core, "ServiceAccount", "serviceaccounts", func() List { return &corev1.ServiceAccountList{} }, (*compile.Compiler).SetServiceAccount).dispensable(),
		kind(core, "Service", "services", func() List { return &corev1.ServiceList{} }, (*compile.Compiler).SetService),
		kind(discoveryv1.SchemeGroupVersion, "EndpointSlice", "endpointslices", func() List { return &discoveryv1.EndpointSliceList{} }, (*compile.Compiler).SetEndpointSlice),
		kind(core, "Pod", "pods", func() List { return &corev1.PodList{} }, (*compile.Compiler).SetPod),
		kind(net, "NetworkPolicy", "networkpolicies", func() List { return &networkingv1.NetworkPolicyList{} }, (*compile.Compiler).SetNetworkPolicy),
		kind(ours, "NetworkPolicy", "networkpolicies", func() List { return &v1alpha1.NetworkPolicyList{} }, (*compile.Compiler).SetPolicy).optional(),
		kind(ours, "GlobalNetworkPolicy", "globalnetworkpolicies", func() List { return &v1alpha1.GlobalNetworkPolicyList{} }, (*compile.Compiler).SetGlobalPolicy).ofCluster().optional(),
		kind(ours, "Tier", "tiers", func() List { return &v1alpha1.TierList{} }, (*compile.Compiler).SetTier).ofCluster().optional(),
		kind(ours, "NetworkSet", "networksets", func() List { return &v1alpha1.NetworkSetList{} }, (*compile.Compiler).SetNetworkSet).optional(),
		kind(ours, "GlobalNetworkSet", "globalnetworksets", func() List { return &v1alpha1.GlobalNetworkSetList{} }, (*compile.Compiler).SetGlobalNetworkSet).ofCluster().optional(),
		kind(ours, "HostEndpoint", "hostendpoints", func() List { return &v1alpha1.HostEndpointList{} }, func(c *compile.Compiler, h *v1alpha1.HostEndpoint) { c.SetHostEndpoint(h, false) }).ofCluster().optional(),
		kind(ours, "FelixConfiguration", "felixconfigurations", func() List { return &v1alpha1.FelixConfigurationList{} }, func(*compile.Compiler, *v1alpha1.FelixConfiguration) {}).ofCluster().optional().dispensable(),
		kind(ours, "BGPConfiguration", "bgpconfigurations", func() List { return &v1alpha1.BGPConfigurationList{} }, func(*compile.Compiler, *v1alpha1.BGPConfiguration) {}).ofCluster().optional().dispensable(),
		kind(ours, "BGPPeer", "bgppeers", func() List { return &v1alpha1.BGPPeerList{} }, func(*compile.Compiler, *v1alpha1.BGPPeer) {}).ofCluster().optional().dispensable(),
		kind(cluster, "ClusterNetworkPolicy", "clusternetworkpolicies", func() List { return &policyv1alpha2.ClusterNetworkPolicyList{} }, (*compile.Compiler).SetClusterNetworkPolicy).ofCluster().optional(),
	}
}

// kind ties a type to the compiler's method for it.
func kind[T any, P interface {
	*T
	Object
}](gv schema.GroupVersion, name, resource string, list func() List, set func(*compile.Compiler, P)) Kind {
	k := Kind{GroupVersionKind: gv.WithKind(name), Resource: resource, New: func() Object { return P(new(T)) }, List: list}
	if gv.Group != "" {
		k.Resource += "." + gv.Group
	}
	k.set = func(c *compile.Compiler, o Object) {
		if typed, ok := o.(P); ok {
			set(c, typed)
		}
	}
	return k
}

func (k Kind) ofCluster() Kind {
	k.Cluster = true
	return k
}

func (k Kind) optional() Kind {
	k.Optional = true
	return k
}

func (k Kind) dispensable() Kind {
	k.Dispensable = true
	return k
}

// kindOf finds a kind by group and name; the version is the only one that is served.
func kindOf(gvk schema.GroupVersionKind) (Kind, error) {
	for _, k := range Kinds() {
		if k.GroupVersionKind == gvk {
			return k, nil
		}
	}
	return Kind{}, fmt.Errorf("%s of %s is no kind that policy follows from: there are %s", gvk.Kind, orNothing(gvk.GroupVersion().String()), kindNames())
}

// kindNamed finds a kind by the name that a user gives it: the kind's, or its resource's.
func kindNamed(name string) (Kind, error) {
	for _, k := range Kinds() {
		resource, _, _ := strings.Cut(k.Resource, ".")
		for _, known := range []string{k.String(), k.Resource, resource} {
			if strings.EqualFold(name, known) {
				return k, nil
			}
		}
	}
	return Kind{}, fmt.Errorf("%q is no kind that policy follows from: there are %s", name, kindNames())
}

func kindNames() string {
	all := Kinds()
	names := make([]string, 0, len(all))
	for _, k := range all {
		names = append(names, k.String())
	}
	return strings.Join(names, ", ")
}

func orNothing(s string) string {
	if s == "" {
		return "no API group"
	}
	return s
}
