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
	// New and List make empty ones.
	New  func() Object
	List func() List
	// set hands an object to the compiler; nil: the compiler does not ask for it.
	set func(*compile.Compiler, Object)
}

// String is the kind as users write it: with its group where Kubernetes has the name too.
func (k Kind) String() string {
	if k.Group == heliographGroup && k.Kind == "NetworkPolicy" {
		return k.Kind + "." + k.Group
	}
	return k.Kind
}

const heliographGroup = "heliograph.dev"

// Kinds lists them all. Whoever adds one to the compiler adds a line here.
func Kinds() []Kind {
	return []Kind{
		kind(corev1.SchemeGroupVersion, "Namespace", "namespaces", func() List { return &corev1.NamespaceList{} }, (*compile.Compiler).SetNamespace).ofCluster(),
		kind(corev1.SchemeGroupVersion, "Pod", "pods", func() List { return &corev1.PodList{} }, (*compile.Compiler).SetPod),
		kind[corev1.Service](corev1.SchemeGroupVersion, "Service", "services", func() List { return &corev1.ServiceList{} }, nil),
		kind[discoveryv1.EndpointSlice](discoveryv1.SchemeGroupVersion, "EndpointSlice", "endpointslices", func() List { return &discoveryv1.EndpointSliceList{} }, nil),
		kind(networkingv1.SchemeGroupVersion, "NetworkPolicy", "networkpolicies", func() List { return &networkingv1.NetworkPolicyList{} }, (*compile.Compiler).SetNetworkPolicy),
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
	if set != nil {
		k.set = func(c *compile.Compiler, o Object) {
			if typed, ok := o.(P); ok {
				set(c, typed)
			}
		}
	}
	return k
}

func (k Kind) ofCluster() Kind {
	k.Cluster = true
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
