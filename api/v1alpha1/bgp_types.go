// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BGPPassword names the Secret key that holds a TCP MD5 password (RFC 2385).
type BGPPassword struct {
	// secretKeyRef selects a key of a Secret in the namespace that heliograph runs in. While the
	// Secret or the key is missing or empty the session is held down.
	// +required
	SecretKeyRef corev1.SecretKeySelector `json:"secretKeyRef"`
}

// GracefulRestart is RFC 4724.
type GracefulRestart struct {
	// enabled advertises the graceful restart capability, so that a restart of the agent loses no route.
	// +optional
	// +kubebuilder:default=true
	Enabled *bool `json:"enabled,omitempty"`
	// restartTime is how long peers keep our routes while our agent is away: whole seconds, 1s to 4095s.
	// +optional
	// +kubebuilder:default="120s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('4095s')",message="restartTime must be 1s to 4095s"
	RestartTime *metav1.Duration `json:"restartTime,omitempty"`
}

// BGPTimers are the timers of a session (RFC 4271 §10).
// +kubebuilder:validation:XValidation:rule="!has(self.holdTime) || !has(self.keepaliveTime) || duration(self.keepaliveTime) < duration(self.holdTime)",message="keepaliveTime must be less than holdTime",fieldPath=".keepaliveTime"
type BGPTimers struct {
	// holdTime that we propose: 3s to 65535s. Default 90s, or what the BGPConfiguration says.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('3s') && duration(self) <= duration('65535s')",message="holdTime must be 3s to 65535s (RFC 4271 §4.2)"
	HoldTime *metav1.Duration `json:"holdTime,omitempty"`
	// keepaliveTime between KEEPALIVE messages. Default a third of holdTime.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s')",message="keepaliveTime must be at least 1s"
	KeepaliveTime *metav1.Duration `json:"keepaliveTime,omitempty"`
	// connectRetryTime between attempts to connect: at least 2s. Default 5s.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('2s') && duration(self) <= duration('65535s')",message="connectRetryTime must be 2s to 65535s"
	ConnectRetryTime *metav1.Duration `json:"connectRetryTime,omitempty"`
}

// BFD is RFC 5880 over one hop (RFC 5881): packets that tell within milliseconds that a peer cannot be
// reached. It needs BFD on both sides; without it on the other side the session works as if it were off.
type BFD struct {
	// enabled turns BFD on. Default false.
	// +optional
	Enabled *bool `json:"enabled,omitempty"`
	// transmitInterval between the packets that we send (Desired Min TX Interval): 10ms to 60s. Default 300ms.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('10ms') && duration(self) <= duration('60s')",message="transmitInterval must be 10ms to 60s"
	TransmitInterval *metav1.Duration `json:"transmitInterval,omitempty"`
	// receiveInterval between the packets that we can receive (Required Min RX Interval): 10ms to 60s. Default 300ms.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('10ms') && duration(self) <= duration('60s')",message="receiveInterval must be 10ms to 60s"
	ReceiveInterval *metav1.Duration `json:"receiveInterval,omitempty"`
	// detectMultiplier is how many packets in a row must be missing before the other side takes us
	// for dead: 2 to 255. Default 3.
	// +optional
	// +kubebuilder:validation:Minimum=2
	// +kubebuilder:validation:Maximum=255
	DetectMultiplier *int32 `json:"detectMultiplier,omitempty"`
}

// RouteReflectionMode says who chooses the route reflectors.
// +kubebuilder:validation:Enum=Auto;Manual;Disabled
type RouteReflectionMode string

const (
	// RouteReflectionAuto makes the controller choose reflectors once the cluster is larger than the mesh
	// should be.
	RouteReflectionAuto RouteReflectionMode = "Auto"
	// RouteReflectionManual takes the reflectors and their clients from node labels.
	RouteReflectionManual RouteReflectionMode = "Manual"
	// RouteReflectionDisabled has no reflectors.
	RouteReflectionDisabled RouteReflectionMode = "Disabled"
)

// RouteReflectorCluster is a set of reflectors with their clients (RFC 4456 §7).
type RouteReflectorCluster struct {
	// clusterID of the reflectors (CLUSTER_ID), written as an IPv4 address.
	// +required
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:XValidation:rule="isIP(self) && ip(self).family() == 4 && self != '0.0.0.0'",message="clusterID must be written as an IPv4 address other than 0.0.0.0"
	ClusterID string `json:"clusterID"`
	// reflectorSelector selects the nodes that reflect.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	ReflectorSelector string `json:"reflectorSelector"`
	// clientSelector selects the nodes that are clients; without it all nodes are that do not reflect.
	// Reflectors of another cluster that it selects become clients with what they reflect: that makes a
	// second level.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	ClientSelector string `json:"clientSelector,omitempty"`
}

// RouteReflection is RFC 4456 between the nodes: instead of with every other node, nodes peer with a few
// that pass routes on. Next hops are left alone.
// +kubebuilder:validation:XValidation:rule="(has(self.mode) && self.mode == 'Manual') == has(self.clusters)",message="clusters are needed by mode Manual, and by no other",fieldPath=".clusters"
type RouteReflection struct {
	// mode says who chooses the reflectors. Auto has any only where nodeToNodeMeshEnabled is true, as they
	// replace the mesh.
	// +optional
	// +kubebuilder:default=Auto
	Mode RouteReflectionMode `json:"mode,omitempty"`
	// meshThreshold is up to how many nodes Auto leaves to the full mesh. It comes back to the mesh with a
	// fifth fewer.
	// +optional
	// +kubebuilder:default=50
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=500
	MeshThreshold *int32 `json:"meshThreshold,omitempty"`
	// count is how many reflectors Auto keeps.
	// +optional
	// +kubebuilder:default=3
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=16
	Count *int32 `json:"count,omitempty"`
	// topologyKey is the node label over whose values Auto spreads the reflectors.
	// +optional
	// +kubebuilder:default="topology.kubernetes.io/zone"
	// +kubebuilder:validation:MaxLength=317
	TopologyKey string `json:"topologyKey,omitempty"`
	// nodeSelector selects the nodes that Auto may choose from. Without it, all nodes.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	NodeSelector string `json:"nodeSelector,omitempty"`
	// port that the reflectors listen on, beside the speaker of their node.
	// +optional
	// +kubebuilder:default=1179
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port *int32 `json:"port,omitempty"`
	// clusters of mode Manual. A node that more than one selects belongs to the first. Clusters can have
	// two levels: the reflectors of one may be clients of another, which may not be clients again.
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +listType=map
	// +listMapKey=clusterID
	Clusters []RouteReflectorCluster `json:"clusters,omitempty"`
}

// BGPConfigurationSpec holds what is common to all BGP speakers of the cluster.
type BGPConfigurationSpec struct {
	// asNumber of the cluster (RFC 6793). Every node speaks with this AS number.
	// +optional
	// +kubebuilder:default=64512
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967294
	ASNumber *int64 `json:"asNumber,omitempty"`

	// listenPort of the speakers.
	// +optional
	// +kubebuilder:default=179
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	ListenPort *int32 `json:"listenPort,omitempty"`

	// nodeToNodeMeshEnabled makes every node peer with every other node (iBGP), or with the reflectors that
	// stand for them: see routeReflection.
	// +optional
	// +kubebuilder:default=true
	NodeToNodeMeshEnabled *bool `json:"nodeToNodeMeshEnabled,omitempty"`

	// nodeMeshPassword is the TCP MD5 password of all sessions between nodes.
	// +optional
	NodeMeshPassword *BGPPassword `json:"nodeMeshPassword,omitempty"`

	// BGPTimers of the sessions between nodes, and the defaults of BGPPeers.
	BGPTimers `json:",inline"`

	// gracefulRestart of the sessions between nodes, and the default of BGPPeers.
	// +optional
	GracefulRestart *GracefulRestart `json:"gracefulRestart,omitempty"`

	// bfd of the sessions between nodes of one subnet, and the default of BGPPeers that are directly
	// connected. Off without it.
	// +optional
	BFD *BFD `json:"bfd,omitempty"`

	// routeReflection between the nodes (RFC 4456). Default: mode Auto.
	// +optional
	RouteReflection *RouteReflection `json:"routeReflection,omitempty"`
}

// ReflectorState is how far a reflector has come.
// +kubebuilder:validation:Enum=Joining;Active;Leaving
type ReflectorState string

const (
	// ReflectorJoining is one that nodes connect to, and that nothing relies on yet.
	ReflectorJoining ReflectorState = "Joining"
	// ReflectorActive is one that has the routes of all nodes.
	ReflectorActive ReflectorState = "Active"
	// ReflectorLeaving is one that goes on until its successor is Active.
	ReflectorLeaving ReflectorState = "Leaving"
)

// Reflector is a node that reflects routes.
type Reflector struct {
	// node is the name of the node.
	Node string `json:"node"`
	// clusterID of mode Manual. Empty: the reflector's own router ID.
	// +optional
	ClusterID string `json:"clusterID,omitempty"`
	// zone is the node's value of topologyKey.
	// +optional
	Zone  string         `json:"zone,omitempty"`
	State ReflectorState `json:"state"`
	// since when it has been in this state.
	Since metav1.Time `json:"since"`
	// reason of the state.
	// +optional
	Reason string `json:"reason,omitempty"`
}

// RouteReflectionStatus says who reflects.
type RouteReflectionStatus struct {
	// mesh says whether the nodes peer with each other as well: while the cluster is small, and until the
	// reflectors are known to have the routes of all nodes.
	Mesh bool `json:"mesh"`
	// meshSince is since when mesh has been so, if it ever changed.
	// +optional
	MeshSince *metav1.Time `json:"meshSince,omitempty"`
	// reason why there is a mesh or reflectors, or why not yet.
	// +optional
	Reason string `json:"reason,omitempty"`
	// reflectors that the nodes peer with.
	// +optional
	// +listType=map
	// +listMapKey=node
	Reflectors []Reflector `json:"reflectors,omitempty"`
}

// BGPConfigurationStatus is written by the controller.
type BGPConfigurationStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// routeReflection is what the controller chose, and what the agents follow.
	// +optional
	RouteReflection *RouteReflectionStatus `json:"routeReflection,omitempty"`
	// conditions: Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// BGPConfiguration holds what is common to all BGP speakers of the cluster. Its one object is
// named "default"; without it the defaults of its fields are in force.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=heliograph
// +kubebuilder:printcolumn:name="AS",type=integer,JSONPath=`.spec.asNumber`
// +kubebuilder:printcolumn:name="Mesh",type=boolean,JSONPath=`.status.routeReflection.mesh`
// +kubebuilder:printcolumn:name="Reflection",type=string,JSONPath=`.status.routeReflection.reason`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="the name of the one BGPConfiguration is 'default'"
type BGPConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec   BGPConfigurationSpec   `json:"spec,omitempty"`
	Status BGPConfigurationStatus `json:"status,omitempty"`
}

// BGPConfigurationList is a list of BGPConfigurations.
// +kubebuilder:object:root=true
type BGPConfigurationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BGPConfiguration `json:"items"`
}

// BGPPeerSpec is a router outside of the cluster, such as a top-of-rack router, that nodes peer with.
// +kubebuilder:validation:XValidation:rule="!has(self.node) || !has(self.nodeSelector)",message="node and nodeSelector exclude each other",fieldPath=".node"
// +kubebuilder:validation:XValidation:rule="!has(self.reflectorClient) || !self.reflectorClient || !(has(self.ebgpMultihop) || has(self.numAllowedLocalASNumbers) || has(self.bfd))",message="a reflectorClient is an iBGP peer of the reflectors: ebgpMultihop, numAllowedLocalASNumbers and bfd have no meaning for it",fieldPath=".reflectorClient"
type BGPPeerSpec struct {
	// node is the name of the one node that peers.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node,omitempty"`

	// nodeSelector selects the nodes that peer, in the selector language. Without node and
	// nodeSelector all nodes peer.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	NodeSelector string `json:"nodeSelector,omitempty"`

	// peerIP is the address of the router, IPv4 or IPv6.
	// +required
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="peerIP must be an IP address"
	PeerIP string `json:"peerIP"`

	// port of the router's speaker.
	// +optional
	// +kubebuilder:default=179
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port *int32 `json:"port,omitempty"`

	// asNumber of the router.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967294
	ASNumber int64 `json:"asNumber"`

	// numAllowedLocalASNumbers is how often our own AS number may stand in the AS_PATH of a route
	// that the router sends (RFC 4271 §9.1.2 excludes such routes, which is the default, 0). Racks
	// that reach each other through a fabric of other AS numbers need 1, unless the routers
	// rewrite the AS_PATH.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10
	NumAllowedLocalASNumbers *int32 `json:"numAllowedLocalASNumbers,omitempty"`

	// password is the TCP MD5 password of the session (RFC 2385).
	// +optional
	Password *BGPPassword `json:"password,omitempty"`

	BGPTimers `json:",inline"`

	// ebgpMultihop is how many hops away the router may be. Default 1: directly connected.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=255
	EBGPMultihop *int32 `json:"ebgpMultihop,omitempty"`

	// gracefulRestart of the session. Default: that of the BGPConfiguration.
	// +optional
	GracefulRestart *GracefulRestart `json:"gracefulRestart,omitempty"`

	// bfd of the session: the router must be directly connected. Default, field by field: that of
	// the BGPConfiguration.
	// +optional
	BFD *BFD `json:"bfd,omitempty"`

	// reflectorClient makes the router a client of the nodes' route reflectors (RFC 4456), on their
	// port, instead of a peer of the nodes' speakers: one session with each reflector that node or
	// nodeSelector selects tells it all routes of the cluster, with the nodes as next hops. Its asNumber
	// must be the cluster's. Of its own routes only those within acceptPrefixes are taken and reflected.
	// While the cluster is a mesh there is nobody to peer with.
	// +optional
	ReflectorClient bool `json:"reflectorClient,omitempty"`

	// acceptPrefixes are networks that are accepted from this router besides the pools: a route
	// is accepted if one of them contains it. By default only routes within pools are.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="self.all(p, isCIDR(p) && cidr(p) == cidr(p).masked())",message="acceptPrefixes must be networks in CIDR notation without host bits"
	// +listType=set
	AcceptPrefixes []string `json:"acceptPrefixes,omitempty"`
}

// BGPPeerNodeStatus is the session of one node with a router.
type BGPPeerNodeStatus struct {
	// node is the name of the node.
	Node string `json:"node"`
	// state of the session's FSM (RFC 4271 §8.2.2).
	State string `json:"state"`
	// since when the session has been in this state.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
	// prefixesIn is how many routes were accepted from the router, prefixesOut how many were sent.
	PrefixesIn  int64 `json:"prefixesIn"`
	PrefixesOut int64 `json:"prefixesOut"`
	// lastError is why the session last went down.
	// +optional
	LastError string `json:"lastError,omitempty"`
}

// BGPPeerStatus is written by the controller from what the nodes report.
type BGPPeerStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// sessions is how many nodes should peer.
	// +optional
	Sessions int32 `json:"sessions"`
	// established is how many of them do.
	// +optional
	Established int32 `json:"established"`
	// nodes lists the sessions that are not established, at most 64.
	// +optional
	// +listType=map
	// +listMapKey=node
	Nodes []BGPPeerNodeStatus `json:"nodes,omitempty"`
	// conditions: Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// BGPPeer is a router outside of the cluster, such as a top-of-rack router, that nodes peer with.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=heliograph
// +kubebuilder:printcolumn:name="Peer-IP",type=string,JSONPath=`.spec.peerIP`
// +kubebuilder:printcolumn:name="AS",type=integer,JSONPath=`.spec.asNumber`
// +kubebuilder:printcolumn:name="Sessions",type=integer,JSONPath=`.status.sessions`
// +kubebuilder:printcolumn:name="Established",type=integer,JSONPath=`.status.established`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type BGPPeer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec   BGPPeerSpec   `json:"spec"`
	Status BGPPeerStatus `json:"status,omitempty"`
}

// BGPPeerList is a list of BGPPeers.
// +kubebuilder:object:root=true
type BGPPeerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BGPPeer `json:"items"`
}
