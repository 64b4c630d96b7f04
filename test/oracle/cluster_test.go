// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// node has addresses that few packets go to, and a name, which is no address.
func (w *world) node(i int) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node%d", i), Labels: w.labels()}}
	n.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.168.11.%d", i+1)},
		{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("fd00:11::%d", i+1)},
		{Type: corev1.NodeHostName, Address: n.Name},
	}
	return n
}

// cluster makes a ClusterNetworkPolicy. Priorities are few, so that names must decide.
func (w *world) cluster(name string) *policyv1alpha2.ClusterNetworkPolicy {
	p := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}
	p.Spec.Tier = pick(w, policyv1alpha2.AdminTier, policyv1alpha2.BaselineTier)
	p.Spec.Priority = pick[int32](w, 0, 5, 1000)
	p.Spec.Subject.Namespaces = w.namespaceSelector()
	if w.IntN(2) == 0 {
		p.Spec.Subject = policyv1alpha2.ClusterNetworkPolicySubject{Pods: w.namespacedPod()}
	}
	for range w.IntN(4) {
		r := policyv1alpha2.ClusterNetworkPolicyIngressRule{Action: w.action(), Protocols: w.protocols(true)}
		for range 1 + w.IntN(3) {
			peer := w.clusterPeer(false)
			r.From = append(r.From, policyv1alpha2.ClusterNetworkPolicyIngressPeer{Namespaces: peer.Namespaces, Pods: peer.Pods})
		}
		p.Spec.Ingress = append(p.Spec.Ingress, r)
	}
	for range w.IntN(4) {
		// Names of ports go with pods only: the CRD refuses them beside nodes and networks.
		outside := w.IntN(2) == 0
		r := policyv1alpha2.ClusterNetworkPolicyEgressRule{Action: w.action(), Protocols: w.protocols(!outside)}
		for range 1 + w.IntN(3) {
			r.To = append(r.To, w.clusterPeer(outside))
		}
		p.Spec.Egress = append(p.Spec.Egress, r)
	}
	return p
}

func (w *world) action() policyv1alpha2.ClusterNetworkPolicyRuleAction {
	return pick(w, policyv1alpha2.ClusterNetworkPolicyRuleActionAccept, policyv1alpha2.ClusterNetworkPolicyRuleActionDeny, policyv1alpha2.ClusterNetworkPolicyRuleActionPass)
}

func (w *world) namespacedPod() *policyv1alpha2.NamespacedPod {
	return &policyv1alpha2.NamespacedPod{NamespaceSelector: *w.namespaceSelector(), PodSelector: *w.selector()}
}

func (w *world) clusterPeer(outside bool) policyv1alpha2.ClusterNetworkPolicyEgressPeer {
	if outside && w.IntN(3) == 0 {
		return policyv1alpha2.ClusterNetworkPolicyEgressPeer{Nodes: w.selector()}
	}
	if outside && w.IntN(2) == 0 {
		return policyv1alpha2.ClusterNetworkPolicyEgressPeer{Networks: []policyv1alpha2.CIDR{
			pick[policyv1alpha2.CIDR](w, "0.0.0.0/0", "10.244.0.0/16", "10.244.1.10/31"), pick[policyv1alpha2.CIDR](w, "::/0", "fd00:244::2:0/112", "203.0.113.0/24"),
		}}
	}
	if w.IntN(2) == 0 {
		return policyv1alpha2.ClusterNetworkPolicyEgressPeer{Namespaces: w.namespaceSelector()}
	}
	return policyv1alpha2.ClusterNetworkPolicyEgressPeer{Pods: w.namespacedPod()}
}

func (w *world) protocols(names bool) []policyv1alpha2.ClusterNetworkPolicyProtocol {
	var list []policyv1alpha2.ClusterNetworkPolicyProtocol
	for range w.IntN(3) {
		port := &policyv1alpha2.Port{Number: pick[int32](w, 53, 80, 443)}
		if w.IntN(2) == 0 {
			port = &policyv1alpha2.Port{Range: &policyv1alpha2.PortRange{Start: pick[int32](w, 1, 50, 80), End: pick[int32](w, 81, 443, 65535)}}
		}
		var p policyv1alpha2.ClusterNetworkPolicyProtocol
		switch w.IntN(4) {
		case 0:
			p.TCP = &policyv1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}
		case 1:
			p.UDP = &policyv1alpha2.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}
		case 2:
			p.SCTP = &policyv1alpha2.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}
		case 3:
			p.DestinationNamedPort = pick(w, "http", "dns")
			if !names {
				continue
			}
		}
		list = append(list, p)
	}
	return list
}
