// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Dataplane is by what network policy is enforced.
// +kubebuilder:validation:Enum=Auto;NFTables;IPTables
type Dataplane string

// Dataplanes.
const (
	DataplaneAuto     Dataplane = "Auto"
	DataplaneNFTables Dataplane = "NFTables"
	DataplaneIPTables Dataplane = "IPTables"
)

// ProtoPort is a port of a protocol, of whoever or of addresses of a network.
type ProtoPort struct {
	// protocol of the port.
	// +required
	// +kubebuilder:validation:Enum=TCP;UDP;SCTP
	Protocol corev1.Protocol `json:"protocol"`
	// port is its number.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`
	// net limits it to the other end's addresses: a network in CIDR notation, or an address.
	// +optional
	// +kubebuilder:validation:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="isCIDR(self) || isIP(self)",message="net must be a network in CIDR notation, or an address"
	Net string `json:"net,omitempty"`
}

// FelixConfigurationSpec sets the dataplane of the agents.
type FelixConfigurationSpec struct {
	// mtu of the pods' interfaces, in bytes. Default: that of the interface that holds the node's
	// address. The tunnel devices are smaller by the size of their headers.
	// +optional
	// +kubebuilder:validation:Minimum=1280
	// +kubebuilder:validation:Maximum=65535
	MTU *int32 `json:"mtu,omitempty"`

	// vxlanPort is the UDP port of VXLAN (RFC 7348). Must be the same on all nodes.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	VXLANPort *int32 `json:"vxlanPort,omitempty"`

	// vxlanVNI is the VXLAN network identifier. Must be the same on all nodes.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=16777215
	VXLANVNI *int32 `json:"vxlanVNI,omitempty"`

	// probePort is the UDP port of the probes by which agents find out which ways to other nodes work. Must
	// be the same on all nodes. Default 4793.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	ProbePort *int32 `json:"probePort,omitempty"`

	// routeRefreshInterval is how often the agent reads back all that it programmed in the kernel
	// and repairs what differs; what the kernel reports is repaired at once in any case. Default 90s.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('5s')",message="routeRefreshInterval must be at least 5s"
	RouteRefreshInterval *metav1.Duration `json:"routeRefreshInterval,omitempty"`

	// dataplane is by what network policy is enforced: NFTables, IPTables (with ipset; the variant, nft or
	// legacy, is the one that the node's other rules use), or Auto, the first of these that the node has.
	// A change takes effect at once, and without a moment in which policy is not enforced. Default Auto.
	// +optional
	Dataplane Dataplane `json:"dataplane,omitempty"`

	// failsafeInboundHostPorts are what no policy may take from a node that a HostEndpoint is of, beside what
	// the agents need: ports of the node itself. Default: TCP 22, 179, 2379, 2380, 5473, 6443, 6666, 6667,
	// UDP 68. An empty list is none.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	FailsafeInboundHostPorts *[]ProtoPort `json:"failsafeInboundHostPorts,omitempty"`

	// failsafeOutboundHostPorts are the same of what the node sends: ports of others. Default: UDP 53, 67, TCP
	// 179, 2379, 2380, 5473, 6443, 6666, 6667. An empty list is none.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	FailsafeOutboundHostPorts *[]ProtoPort `json:"failsafeOutboundHostPorts,omitempty"`

	// dnsTrustedServers are the resolvers that names of domains in policies are known from: each an IP
	// address, or "k8s-service:NAMESPACE/NAME" for the endpoints of a service, "k8s-service:NAME" for one of
	// kube-system. Only what they answer to the pods themselves, at port 53, is believed. Default
	// k8s-service:kube-system/kube-dns.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=340
	// +kubebuilder:validation:items:XValidation:rule="isIP(self) || self.matches('^k8s-service:([a-z0-9-]+/)?[a-z0-9-]+$')",message="must be an IP address, or k8s-service:NAMESPACE/NAME"
	DNSTrustedServers []string `json:"dnsTrustedServers,omitempty"`

	// ipamCooldown is how long a released address rests before it is given to another pod. Default 30s.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('0s') && duration(self) <= duration('1h')",message="ipamCooldown must be 0s to 1h"
	IPAMCooldown *metav1.Duration `json:"ipamCooldown,omitempty"`
}

// FelixConfigurationStatus is written by the controller.
type FelixConfigurationStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// conditions: Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// FelixConfiguration sets the dataplane of the agents: the object "default" that of all nodes, an
// object "node.NAME" overrides single fields of it for the node NAME.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=heliograph
// +kubebuilder:printcolumn:name="MTU",type=integer,JSONPath=`.spec.mtu`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default' || self.metadata.name.startsWith('node.')",message="a FelixConfiguration is named 'default' or 'node.NAME'"
type FelixConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec   FelixConfigurationSpec   `json:"spec,omitempty"`
	Status FelixConfigurationStatus `json:"status,omitempty"`
}

// FelixConfigurationList is a list of FelixConfigurations.
// +kubebuilder:object:root=true
type FelixConfigurationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []FelixConfiguration `json:"items"`
}
