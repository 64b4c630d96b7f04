// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// IPBlockSpec says which node holds which block. Only the controller writes it.
// +kubebuilder:validation:XValidation:rule="self.cidr == oldSelf.cidr && self.pool == oldSelf.pool && self.node == oldSelf.node && (has(self.primary) && self.primary) == (has(oldSelf.primary) && oldSelf.primary)",message="a block cannot change hands: only releasing may change"
type IPBlockSpec struct {
	// cidr is the range of the block.
	// +required
	// +kubebuilder:validation:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="isCIDR(self) && cidr(self) == cidr(self).masked()",message="cidr must be a network in CIDR notation without host bits"
	CIDR string `json:"cidr"`
	// pool is the name of the IPPool that the block was cut from.
	// +required
	Pool string `json:"pool"`
	// node is the name of the node that holds the block, and alone may give out its addresses.
	// +required
	Node string `json:"node"`
	// primary marks the one block per node and address family whose first usable address (the
	// second of the block) is the node's own in the pod network. It stays as long as the node.
	// +optional
	Primary bool `json:"primary"`
	// releasing asks the node to give the block back: it hands out no new address of it, and
	// leaves the block out of its NodeStatus once no address is in use. Then the controller deletes
	// the block. (Not a finalizer: one would hang `kubectl delete` of the CRDs.)
	// +optional
	Releasing bool `json:"releasing,omitempty"`
}

// IPBlock is a range of addresses that one node holds and gives to its pods.
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,categories=heliograph
// +kubebuilder:printcolumn:name="CIDR",type=string,JSONPath=`.spec.cidr`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Pool",type=string,JSONPath=`.spec.pool`
// +kubebuilder:printcolumn:name="Primary",type=boolean,JSONPath=`.spec.primary`
// +kubebuilder:printcolumn:name="Releasing",type=boolean,JSONPath=`.spec.releasing`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:selectablefield:JSONPath=`.spec.node`
type IPBlock struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec IPBlockSpec `json:"spec"`
}

// IPBlockList is a list of IPBlocks.
// +kubebuilder:object:root=true
type IPBlockList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []IPBlock `json:"items"`
}
