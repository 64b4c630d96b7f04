// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/cni/ipam"
)

// nodes puts together what a node sends from: the addresses of its Node, and those of its own in the pod
// network, which its kernel prefers as the source of what it sends to pods of other nodes.
type nodes struct {
	objects map[string]*corev1.Node
	owners  map[string]string                // of primary blocks, by the block's name
	podIPs  map[string]map[string]netip.Addr // by node and block
}

func newNodes() *nodes {
	return &nodes{objects: map[string]*corev1.Node{}, owners: map[string]string{}, podIPs: map[string]map[string]netip.Addr{}}
}

// setBlock notes a block, and returns the nodes that it concerns, before and after.
func (n *nodes) setBlock(name string, b *v1alpha1.IPBlock) (changed []string) {
	if owner, ok := n.owners[name]; ok {
		delete(n.owners, name)
		delete(n.podIPs[owner], name)
		changed = append(changed, owner)
	}
	if b == nil || !b.Spec.Primary || b.Spec.Node == "" {
		return changed
	}
	cidr, err := netip.ParsePrefix(b.Spec.CIDR)
	if err != nil {
		return changed
	}
	ip := ipam.NodeAddress(cidr)
	if !ip.IsValid() {
		return changed
	}
	if n.podIPs[b.Spec.Node] == nil {
		n.podIPs[b.Spec.Node] = map[string]netip.Addr{}
	}
	n.owners[name], n.podIPs[b.Spec.Node][name] = b.Spec.Node, ip
	if !slices.Contains(changed, b.Spec.Node) {
		changed = append(changed, b.Spec.Node)
	}
	return changed
}

// node is a Node with all its addresses; nil if there is none of the name.
func (n *nodes) node(name string) *corev1.Node {
	object := n.objects[name]
	if object == nil || len(n.podIPs[name]) == 0 {
		return object
	}
	out := &corev1.Node{ObjectMeta: object.ObjectMeta}
	out.Status.Addresses = slices.Clone(object.Status.Addresses)
	for _, block := range slices.Sorted(maps.Keys(n.podIPs[name])) {
		out.Status.Addresses = append(out.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: n.podIPs[name][block].String()})
	}
	return out
}

// takeNode hands the compiler a node as it is now; object is nil if it is gone.
func (e *Enforcer) takeNode(name string, object *corev1.Node) {
	if object == nil {
		delete(e.nodes.objects, name)
		e.compiler.RemoveNode(name)
		return
	}
	e.nodes.objects[name] = object
	e.compiler.SetNode(e.nodes.node(name))
}

// takeBlock does the same for the nodes that a block concerns.
func (e *Enforcer) takeBlock(name string, b *v1alpha1.IPBlock) {
	for _, node := range e.nodes.setBlock(name, b) {
		if object := e.nodes.node(node); object != nil {
			e.compiler.SetNode(object)
		}
	}
}
