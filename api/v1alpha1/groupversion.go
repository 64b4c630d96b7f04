// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 holds the types of the API group heliograph.dev/v1alpha1.
// It is what users write and read; it imports nothing of heliograph.
//
// +kubebuilder:object:generate=true
// +groupName=heliograph.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the group and version of every type of this package.
var GroupVersion = schema.GroupVersion{Group: "heliograph.dev", Version: "v1alpha1"}

// AddToScheme adds the types of this package to a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&BGPConfiguration{}, &BGPConfigurationList{},
		&BGPPeer{}, &BGPPeerList{},
		&FelixConfiguration{}, &FelixConfigurationList{},
		&GlobalNetworkPolicy{}, &GlobalNetworkPolicyList{},
		&GlobalNetworkSet{}, &GlobalNetworkSetList{},
		&HostEndpoint{}, &HostEndpointList{},
		&IPBlock{}, &IPBlockList{},
		&IPPool{}, &IPPoolList{},
		&NetworkPolicy{}, &NetworkPolicyList{},
		&NetworkSet{}, &NetworkSetList{},
		&NodeStatus{}, &NodeStatusList{},
		&Tier{}, &TierList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// Names and labels that heliograph itself puts on objects or reads from them.
const (
	// DefaultName is the name of the one BGPConfiguration and of the cluster-wide FelixConfiguration.
	DefaultName = "default"
	// NodeNamePrefix begins the name of a FelixConfiguration that overrides the default for one node.
	NodeNamePrefix = "node."
	// LabelPool and LabelNode stand on every IPBlock, so that kubectl -l finds the blocks of a pool or node.
	LabelPool = "heliograph.dev/pool"
	LabelNode = "heliograph.dev/node"
	// ProbeSecret is the Secret, in heliograph's namespace, that holds the key of the probes. The controller
	// makes it; delete it to get another key.
	ProbeSecret    = "heliograph-probe"
	ProbeSecretKey = "key"
	// TaintNotReady keeps pods from a new node until its network has been seen to work.
	TaintNotReady = "heliograph.dev/agent-not-ready"
)

// Condition types and reasons, shared by the kinds.
const (
	// ConditionReady says whether the object is in force as it is written.
	ConditionReady = "Ready"
	// ConditionPathsProven says whether a quorum of the other nodes answers.
	ConditionPathsProven = "PathsProven"

	ReasonAccepted        = "Accepted"
	ReasonOverlap         = "Overlap"
	ReasonInvalid         = "Invalid"
	ReasonExhausted       = "Exhausted"
	ReasonDisabled        = "Disabled"
	ReasonSecretMissing   = "SecretMissing"
	ReasonNoNodeSelected  = "NoNodeSelected"
	ReasonSessionsDown    = "SessionsDown"
	ReasonSessionsUp      = "SessionsUp"
	ReasonSessionsUnknown = "SessionsUnknown"
	// ReasonMissing is that of a policy that refers to what does not exist (yet).
	ReasonMissing = "Missing"
)
