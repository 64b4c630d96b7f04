// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/felix/domains"
	"github.com/heliograph-dev/heliograph/felix/feed"
	"github.com/heliograph-dev/heliograph/felix/watch"
	"github.com/heliograph-dev/heliograph/policy"
)

// take hands a change to the compiler.
func (e *Enforcer) take(c feed.Change) {
	switch o := c.Object.(type) {
	case *corev1.Pod:
		e.compiler.SetPod(o)
	case *corev1.Namespace:
		e.compiler.SetNamespace(o)
	case *corev1.Node:
		e.takeNode(o.Name, o)
	case *v1alpha1.IPBlock:
		e.takeBlock(o.Name, o)
	case *corev1.ServiceAccount:
		e.compiler.SetServiceAccount(o)
	case *discoveryv1.EndpointSlice:
		e.compiler.SetEndpointSlice(o)
	case *networkingv1.NetworkPolicy:
		e.compiler.SetNetworkPolicy(o)
	case *policyv1alpha2.ClusterNetworkPolicy:
		e.compiler.SetClusterNetworkPolicy(o)
	case *v1alpha1.NetworkPolicy:
		e.compiler.SetPolicy(o)
	case *v1alpha1.GlobalNetworkPolicy:
		e.compiler.SetGlobalPolicy(o)
	case *v1alpha1.Tier:
		e.compiler.SetTier(o)
	case *v1alpha1.NetworkSet:
		e.compiler.SetNetworkSet(o)
	case *v1alpha1.GlobalNetworkSet:
		e.compiler.SetGlobalNetworkSet(o)
	case *v1alpha1.HostEndpoint:
		e.compiler.SetHostEndpoint(o, o.Spec.Node == e.opts.Node)
	case *domains.Record:
		e.compiler.SetDomain(o.Name, o.Addresses())
	case nil:
		e.forget(c.Key)
	}
}

// forget takes what is gone from the compiler.
func (e *Enforcer) forget(k feed.Key) {
	switch k.Kind {
	case watch.Pods:
		e.compiler.RemovePod(policy.EndpointID{Namespace: k.Namespace, Name: k.Name})
	case watch.Namespaces:
		e.compiler.RemoveNamespace(k.Name)
	case watch.Nodes:
		e.takeNode(k.Name, nil)
	case watch.IPBlocks:
		e.takeBlock(k.Name, nil)
	case watch.ServiceAccounts:
		e.compiler.RemoveServiceAccount(k.Namespace, k.Name)
	case watch.EndpointSlices:
		e.compiler.RemoveEndpointSlice(k.Namespace, k.Name)
	case watch.NetworkPolicies:
		e.compiler.RemoveNetworkPolicy(k.Namespace, k.Name)
	case watch.ClusterNetworkPolicies:
		e.compiler.RemoveClusterNetworkPolicy(k.Name)
	case watch.OwnPolicies:
		e.compiler.RemovePolicy(k.Namespace, k.Name)
	case watch.GlobalPolicies:
		e.compiler.RemoveGlobalPolicy(k.Name)
	case watch.Tiers:
		e.compiler.RemoveTier(k.Name)
	case watch.NetworkSets:
		e.compiler.RemoveNetworkSet(k.Namespace, k.Name)
	case watch.GlobalNetworkSets:
		e.compiler.RemoveGlobalNetworkSet(k.Name)
	case watch.HostEndpoints:
		e.compiler.RemoveHostEndpoint(k.Name)
	case domains.Records:
		e.compiler.RemoveDomain(k.Name)
	}
}
