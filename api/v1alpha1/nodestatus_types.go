// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// BGPSessionStatus is one BGP session of a node.
type BGPSessionStatus struct {
	// name is "node/NAME" for a session with another node, "reflector/NAME" for one with the route
	// reflector on a node, "client/NAME" for a reflector's with a node, and "peer/NAME" for one with a BGPPeer.
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
	// bfd is the state of the BFD session (RFC 5880 §6.2): "Down", "Init", "Up" or "AdminDown". Empty
	// without BFD. A session can be established while BFD is down: the peer may not speak it.
	// +optional
	BFD string `json:"bfd,omitempty"`
	// bfdSince is since when BFD has been in this state.
	// +optional
	BFDSince *metav1.Time `json:"bfdSince,omitempty"`
}

// PathMethod is how traffic reaches another node.
// +kubebuilder:validation:Enum=Native;IPIP;VXLAN;None
type PathMethod string

const (
	// PathNative is plain routing, without encapsulation.
	PathNative PathMethod = "Native"
	// PathIPIP is encapsulation of IPv4 in IPv4 (RFC 2003).
	PathIPIP PathMethod = "IPIP"
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
	// changes is how often the method has changed since the agent started.
	// +optional
	Changes int64 `json:"changes,omitempty"`
	// unanswered is true while the other node answers by no method at all: it or all ways to it may be
	// dead. What is in use is then kept as the best guess.
	// +optional
	Unanswered bool `json:"unanswered,omitempty"`
	// methods are those that the pools allow, the best first, and what is known of each. A node with more
	// than 64 paths leaves them out for those that go by the best method and are answered.
	// +optional
	// +listType=map
	// +listMapKey=method
	Methods []PathMethodStatus `json:"methods,omitempty"`
}

// PathMethodStatus is what is known of one method of reaching another node.
type PathMethodStatus struct {
	Method PathMethod `json:"method"`
	// state: Up (used if no better one is), Proving (has to show that it works), Down.
	// +kubebuilder:validation:Enum=Up;Proving;Down
	State string `json:"state"`
	// since when it has been in this state.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
	// reason of the state.
	// +optional
	Reason string `json:"reason,omitempty"`
	// probes says what the probes of this method tell: Answers, Doubtful, Lost or Unknown.
	// +kubebuilder:validation:Enum=Answers;Doubtful;Lost;Unknown
	// +optional
	Probes string `json:"probes,omitempty"`
	// kernelOnly is true if the other node's kernel answers, and its agent does not.
	// +optional
	KernelOnly bool `json:"kernelOnly,omitempty"`
	// rttMicroseconds is the smoothed round-trip time of probes. A new value is written when it differs by
	// a factor of two.
	// +optional
	RTTMicroseconds int64 `json:"rttMicroseconds,omitempty"`
	// loss is how many of the last probes were lost, such as "0/5".
	// +optional
	Loss string `json:"loss,omitempty"`
	// mtu is the size of the largest packet of a pod that was seen to come through, in bytes.
	// +optional
	MTU int32 `json:"mtu,omitempty"`
	// failures is how often it has failed lately; each doubles the time for which it has to prove itself.
	// +optional
	Failures int32 `json:"failures,omitempty"`
}

// Capability is something that the node's kernel can do, or not.
type Capability struct {
	// name: IPIP or VXLAN.
	Name string `json:"name"`
	// supported says whether the kernel was seen to do it when the agent started.
	Supported bool `json:"supported"`
	// reason why not.
	// +optional
	Reason string `json:"reason,omitempty"`
}

// ReflectorStatus is the route reflector on a node.
type ReflectorStatus struct {
	// routerID (BGP Identifier) and clusterID of the reflector: not those of the node's speaker.
	RouterID  string `json:"routerID"`
	ClusterID string `json:"clusterID"`
	// clients is how many sessions there should be with clients, clientsConverged with how many of them
	// the routes have been exchanged (End-of-RIB, RFC 4724 §2).
	Clients          int32 `json:"clients"`
	ClientsConverged int32 `json:"clientsConverged"`
	// routes and paths it knows, of both families.
	Routes int64 `json:"routes"`
	Paths  int64 `json:"paths"`
	// problem is why it does not run as it should.
	// +optional
	Problem string `json:"problem,omitempty"`
	// sessions of the reflector, at most 256: those that are not established first.
	// +optional
	// +listType=map
	// +listMapKey=name
	Sessions []BGPSessionStatus `json:"sessions,omitempty"`
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

// NodePolicyStatus is how far network policy is in force on a node.
type NodePolicyStatus struct {
	// dataplane is by what policy is enforced: NFTables or IPTables.
	// +optional
	Dataplane string `json:"dataplane,omitempty"`
	// endpoints is how many pods of this node policy knows.
	// +optional
	Endpoints int32 `json:"endpoints"`
	// closedEndpoints is how many of them may talk to nobody but the node, since the API has not shown
	// them to the agent.
	// +optional
	ClosedEndpoints int32 `json:"closedEndpoints"`
	// policies is how many policies select pods of this node.
	// +optional
	Policies int32 `json:"policies"`
	// sets is how many sets of addresses those policies refer to.
	// +optional
	Sets int32 `json:"sets"`
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
	// nodesConverged is with how many nodes there is a session of the mesh on which the routes have been
	// exchanged (End-of-RIB, RFC 4724 §2).
	// +optional
	NodesConverged int32 `json:"nodesConverged,omitempty"`
	// reflector is the route reflector on this node, if it is one.
	// +optional
	Reflector *ReflectorStatus `json:"reflector,omitempty"`
	// policy is how far network policy is in force on this node.
	// +optional
	Policy *NodePolicyStatus `json:"policy,omitempty"`
	// pathsNative is how many paths are native.
	// +optional
	PathsNative int32 `json:"pathsNative"`
	// pathsIPIP is how many paths go by IPIP.
	// +optional
	PathsIPIP int32 `json:"pathsIPIP"`
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
	// capabilities of the node's kernel, as seen by trying when the agent started.
	// +optional
	// +listType=map
	// +listMapKey=name
	Capabilities []Capability `json:"capabilities,omitempty"`
	// problems lists what the dataplane could not program, at most 32.
	// +optional
	// +listType=atomic
	Problems []string `json:"problems,omitempty"`
	// conditions: Ready (the dataplane is in sync), PathsProven (a quorum of the other nodes answers), Stale
	// (the agent cannot reach the API server; written when it can again, or by the controller).
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
// +kubebuilder:printcolumn:name="Proven",type=string,JSONPath=`.status.conditions[?(@.type=="PathsProven")].status`
// +kubebuilder:printcolumn:name="Sessions",type=integer,JSONPath=`.status.sessionsTotal`
// +kubebuilder:printcolumn:name="Up",type=integer,JSONPath=`.status.sessionsEstablished`
// +kubebuilder:printcolumn:name="Native",type=integer,JSONPath=`.status.pathsNative`
// +kubebuilder:printcolumn:name="IPIP",type=integer,JSONPath=`.status.pathsIPIP`
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
