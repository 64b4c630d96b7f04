// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// HostPort gives a port of a node a name.
type HostPort struct {
	// name by which rules may ask for it.
	// +required
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?$`
	Name string `json:"name"`
	// protocol of the port.
	// +required
	// +kubebuilder:validation:Enum=TCP;UDP;SCTP
	Protocol corev1.Protocol `json:"protocol"`
	// port is its number.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`
}

// HostEndpointSpec says which traffic of which node.
type HostEndpointSpec struct {
	// node is the name of the Node.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`

	// interfaceName is a network device of the node; "*" is all that have no HostEndpoint of their own, but
	// for loopback, and what its pods send to the node. Of two for the same device the first by name counts.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:XValidation:rule="self == '*' || self.matches('^[A-Za-z0-9_.:@-]+$')",message="must be the name of a device, or '*'"
	// +kubebuilder:validation:XValidation:rule="self != 'lo' && !self.matches('^hel[^-]')",message="must not be loopback, nor the device of a pod"
	InterfaceName string `json:"interfaceName"`

	// expectedIPs are the addresses that selectors in rules of policies stand for when they select this
	// HostEndpoint, and at which its named ports are looked up.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=39
	// +kubebuilder:validation:XValidation:rule="self.all(ip, isIP(ip))",message="expectedIPs must be addresses"
	// +listType=set
	ExpectedIPs []string `json:"expectedIPs,omitempty"`

	// ports that have names.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	Ports []HostPort `json:"ports,omitempty"`
}

// HostEndpointStatus is written by the controller.
type HostEndpointStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// conditions: Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// HostEndpoint is a node as GlobalNetworkPolicies see it, by its labels: what ends or begins in the
// processes of the node itself and passes a device, or any. What the node forwards is not its business.
// Where no policy selects it all is allowed; what stands in the failsafe lists of FelixConfiguration always
// is.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=hep,categories=heliograph
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Interface",type=string,JSONPath=`.spec.interfaceName`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type HostEndpoint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec   HostEndpointSpec   `json:"spec"`
	Status HostEndpointStatus `json:"status,omitempty"`
}

// HostEndpointList is a list of HostEndpoints.
// +kubebuilder:object:root=true
type HostEndpointList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []HostEndpoint `json:"items"`
}
