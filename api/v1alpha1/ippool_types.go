// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Encapsulation says how traffic to the pods of a pool may travel between nodes.
// +kubebuilder:validation:Enum=Auto;Never;IPIP;IPIPCrossSubnet;VXLAN;VXLANCrossSubnet
type Encapsulation string

const (
	// EncapsulationAuto sends natively while a route with an on-link next hop exists and works, else by IPIP
	// where both nodes can and it works (IPv4 alone), and else by VXLAN.
	EncapsulationAuto Encapsulation = "Auto"
	// EncapsulationNever sends natively or not at all.
	EncapsulationNever Encapsulation = "Never"
	// EncapsulationIPIP always sends by IPIP (RFC 2003). For IPv4 pools only.
	EncapsulationIPIP Encapsulation = "IPIP"
	// EncapsulationIPIPCrossSubnet sends natively to nodes of the same subnet, and by IPIP to all others. For
	// IPv4 pools only.
	EncapsulationIPIPCrossSubnet Encapsulation = "IPIPCrossSubnet"
	// EncapsulationVXLAN always sends by VXLAN.
	EncapsulationVXLAN Encapsulation = "VXLAN"
	// EncapsulationVXLANCrossSubnet sends natively to nodes of the same subnet, and by VXLAN to all others.
	EncapsulationVXLANCrossSubnet Encapsulation = "VXLANCrossSubnet"
)

// IPPoolSpec is a range of addresses for pods.
// +kubebuilder:validation:XValidation:rule="isCIDR(self.cidr) && cidr(self.cidr) == cidr(self.cidr).masked()",message="cidr must be a network in CIDR notation without host bits, such as 10.244.0.0/16",fieldPath=".cidr"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || !has(self.blockSize) || (cidr(self.cidr).ip().family() == 4 ? (self.blockSize >= 20 && self.blockSize <= 31) : (self.blockSize >= 112 && self.blockSize <= 127))",message="blockSize must be 20 to 31 for an IPv4 pool and 112 to 127 for an IPv6 pool",fieldPath=".blockSize"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || (has(self.blockSize) ? self.blockSize : (cidr(self.cidr).ip().family() == 4 ? 26 : 122)) >= cidr(self.cidr).prefixLength()",message="blockSize is larger than the pool: the prefix length of a block must be at least that of cidr",fieldPath=".blockSize"
// +kubebuilder:validation:XValidation:rule="has(self.blockSize) == has(oldSelf.blockSize) && (!has(self.blockSize) || self.blockSize == oldSelf.blockSize)",message="blockSize is immutable",fieldPath=".blockSize"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || cidr(self.cidr).ip().family() == 4 || !has(self.encapsulation) || !self.encapsulation.startsWith('IPIP')",message="IPIP carries IPv4 alone: an IPv6 pool can have the encapsulation Auto, Never, VXLAN or VXLANCrossSubnet",fieldPath=".encapsulation"
type IPPoolSpec struct {
	// cidr is the range of the pool, an IPv4 or IPv6 network. Immutable.
	// +required
	// +kubebuilder:validation:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="cidr is immutable: create another pool and delete this one"
	CIDR string `json:"cidr"`

	// blockSize is the prefix length of the blocks that nodes get from the pool. Immutable.
	// Defaults to 26 (IPv4) and 122 (IPv6): 64 addresses, of which the first is never given out.
	// +optional
	BlockSize *int32 `json:"blockSize,omitempty"`

	// encapsulation says how traffic to the pods of this pool may travel between nodes.
	// +optional
	// +kubebuilder:default=Auto
	Encapsulation Encapsulation `json:"encapsulation,omitempty"`

	// natOutgoing masquerades what pods of this pool send to addresses outside of all pools.
	// +optional
	NATOutgoing bool `json:"natOutgoing,omitempty"`

	// nodeSelector limits the nodes that get blocks of this pool, in the selector language
	// (such as "rack == 'r1' && !has(edge)"). Empty selects all nodes.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	NodeSelector string `json:"nodeSelector,omitempty"`

	// disabled stops new blocks of this pool from being given to nodes, and new addresses from
	// being given to pods. What is in use stays reachable.
	// +optional
	Disabled bool `json:"disabled,omitempty"`

	// disableBGPExport keeps the blocks of this pool from being advertised by BGP.
	// +optional
	DisableBGPExport bool `json:"disableBGPExport,omitempty"`
}

// IPPoolStatus is written by the controller.
type IPPoolStatus struct {
	// observedGeneration is the generation that this status describes.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// blocks is how many blocks of the pool nodes hold.
	// +optional
	Blocks int64 `json:"blocks"`
	// blockCapacity is how many blocks the pool can give out; the largest value is 2^53.
	// +optional
	BlockCapacity int64 `json:"blockCapacity,omitempty"`
	// addressesInUse is how many addresses of the pool pods and nodes hold, as the nodes report.
	// +optional
	AddressesInUse int64 `json:"addressesInUse"`
	// conditions: Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// IPPool is a range of addresses that pods get their addresses from. The controller cuts it into
// blocks and gives these to nodes.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=heliograph
// +kubebuilder:printcolumn:name="CIDR",type=string,JSONPath=`.spec.cidr`
// +kubebuilder:printcolumn:name="Encapsulation",type=string,JSONPath=`.spec.encapsulation`
// +kubebuilder:printcolumn:name="NAT",type=boolean,JSONPath=`.spec.natOutgoing`
// +kubebuilder:printcolumn:name="Blocks",type=integer,JSONPath=`.status.blocks`
// +kubebuilder:printcolumn:name="Of",type=integer,JSONPath=`.status.blockCapacity`
// +kubebuilder:printcolumn:name="In-Use",type=integer,JSONPath=`.status.addressesInUse`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type IPPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec   IPPoolSpec   `json:"spec"`
	Status IPPoolStatus `json:"status,omitempty"`
}

// IPPoolList is a list of IPPools.
// +kubebuilder:object:root=true
type IPPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []IPPool `json:"items"`
}
