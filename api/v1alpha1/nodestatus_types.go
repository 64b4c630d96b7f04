// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// BGPSessionStatus is one BGP session of a node.
type BGPSessionStatus struct {
	// name is "node/NAME" for a session with another node and "peer/NAME" for one with a BGPPeer.
	Name string `json:"name"`
	// peerIP and asNumber of the other side.
	PeerIP   string `json:"peerIP"`
	ASNumber int64  `json:"asNumber"`
	// state of the session's FSM (RFC 4271 §8.2.2), or "Held" if it may not start: see lastError.
	State string `json:"state"`
	// since when the session has been in this state.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
	// prefixesIn is how many routes were accepted from the peer, prefixesOut how many were sent,
	// rejected how many of its routes were refused by the import filter.
	PrefixesIn  int64 `json:"prefixesIn"`
	PrefixesOut int64 `json:"prefixesOut"`
	Rejected    int64 `json:"rejected"`
	// flaps is how often the session went down since the agent started.
	Flaps int64 `json:"flaps"`
	// lastError is why the session last went down, or may not start.
	// +optional
	LastError string `json:"lastError,omitempty"`
}

// PathMethod is how traffic reaches another node.
// +kubebuilder:validation:Enum=Native;VXLAN;None
type PathMethod string

const (
	// PathNative is plain routing, without encapsulation.
	PathNative PathMethod = "Native"
	// PathVXLAN is encapsulation in VXLAN (RFC 7348).
	PathVXLAN PathMethod = "VXLAN"
	// PathNone means that no allowed method works.
	PathNone PathMethod = "None"
)

// PathStatus is the way to one other node, for one address family.
type PathStatus struct {
	// node is the name of the other node.
	Node string `json:"node"`
	// family is IPv4 or IPv6: that of the pods' addresses.
	// +kubebuilder:validation:Enum=IPv4;IPv6
	Family string `json:"family"`
	// method in use.
	Method PathMethod `json:"method"`
	// nextHops in use: the routers' or the node's addresses.
	// +optional
	// +listType=atomic
	NextHops []string `json:"nextHops,omitempty"`
	// reason why this method and not a better one.
	Reason string `json:"reason"`
	// since when the method has been in use.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
}

// BlockStatus is the use of one block of this node.
type BlockStatus struct {
	// name of the IPBlock.
	Name string `json:"name"`
	// cidr of the block.
	CIDR string `json:"cidr"`
	// pool of the block.
	Pool string `json:"pool"`
	// inUse is how many addresses pods and the node itself hold, and those that cool down.
	InUse int64 `json:"inUse"`
}

// NodeStatusStatus is what the agent of a node reports.
type NodeStatusStatus struct {
	// version of the agent.
	// +optional
	Version string `json:"version,omitempty"`
	// nodeIPs are the node's addresses that the agent uses.
	// +optional
	// +listType=atomic
	NodeIPs []string `json:"nodeIPs,omitempty"`
	// podNetworkIPs are the node's own addresses in the pod network.
	// +optional
	// +listType=atomic
	PodNetworkIPs []string `json:"podNetworkIPs,omitempty"`
	// blocks that the node holds. A block that is being released is left out once nothing uses it.
	// +optional
	// +listType=map
	// +listMapKey=name
	Blocks []BlockStatus `json:"blocks,omitempty"`
	// sessionsEstablished is how many BGP sessions are established.
	// +optional
	SessionsEstablished int32 `json:"sessionsEstablished"`
	// sessionsTotal is how many BGP sessions there should be.
	// +optional
	SessionsTotal int32 `json:"sessionsTotal"`
	// sessions are the BGP sessions of the node, at most 256: those that are not established first.
	// +optional
	// +listType=map
	// +listMapKey=name
	Sessions []BGPSessionStatus `json:"sessions,omitempty"`
	// pathsNative is how many paths are native.
	// +optional
	PathsNative int32 `json:"pathsNative"`
	// pathsVXLAN is how many paths go by VXLAN.
	// +optional
	PathsVXLAN int32 `json:"pathsVXLAN"`
	// pathsNone is how many paths do not work.
	// +optional
	PathsNone int32 `json:"pathsNone"`
	// paths to every other node, at most 512: those that are not native first.
	// +optional
	// +listType=map
	// +listMapKey=node
	// +listMapKey=family
	Paths []PathStatus `json:"paths,omitempty"`
	// problems lists what the dataplane could not program, at most 32.
	// +optional
	// +listType=atomic
	Problems []string `json:"problems,omitempty"`
	// conditions: Ready (the dataplane is in sync), Stale (the agent cannot reach the API server;
	// written when it can again, or by the controller).
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// NodeStatus is what the agent of a node reports. It is named as the node, written by its agent
// alone, and has no spec.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,path=nodestatuses,singular=nodestatus,categories=heliograph
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Sessions",type=integer,JSONPath=`.status.sessionsTotal`
// +kubebuilder:printcolumn:name="Up",type=integer,JSONPath=`.status.sessionsEstablished`
// +kubebuilder:printcolumn:name="Native",type=integer,JSONPath=`.status.pathsNative`
// +kubebuilder:printcolumn:name="VXLAN",type=integer,JSONPath=`.status.pathsVXLAN`
// +kubebuilder:printcolumn:name="None",type=integer,JSONPath=`.status.pathsNone`
// +kubebuilder:printcolumn:name="Pod-Network-IPs",type=string,JSONPath=`.status.podNetworkIPs`,priority=1
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.status.version`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type NodeStatus struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Status NodeStatusStatus `json:"status,omitempty"`
}

// NodeStatusList is a list of NodeStatuses.
// +kubebuilder:object:root=true
type NodeStatusList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodeStatus `json:"items"`
}
