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

// sends are a node's addresses in the pod network.
func (n *nodes) sends(name string) []netip.Addr {
	return slices.SortedFunc(maps.Values(n.podIPs[name]), netip.Addr.Compare)
}

// takeNode hands the compiler a node as it is now; object is nil if it is gone.
func (e *Enforcer) takeNode(name string, object *corev1.Node) {
	if object == nil {
		delete(e.nodes.objects, name)
		e.compiler.RemoveNode(name)
		return
	}
	e.nodes.objects[name] = object
	e.compiler.SetNode(object, e.nodes.sends(name)...)
}

// takeBlock does the same for the nodes that a block concerns.
func (e *Enforcer) takeBlock(name string, b *v1alpha1.IPBlock) {
	for _, node := range e.nodes.setBlock(name, b) {
		if object := e.nodes.objects[node]; object != nil {
			e.compiler.SetNode(object, e.nodes.sends(node)...)
		}
	}
}
