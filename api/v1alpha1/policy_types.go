// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Selector is an expression over labels: ==, !=, in {…}, not in {…}, has(…), contains, starts with,
// ends with, &&, ||, !, ( ), all(). In a selector of namespaces also global().
//
// The rule below knows the order of the words, and counts the parentheses; that is as much of the grammar
// as CEL can say. What it lets pass, and cannot be read, closes the policy and stands in its status.
// +kubebuilder:validation:MaxLength=1024
// +kubebuilder:validation:XValidation:rule=`self.matches(r'^\s*$') || self.matches(r'^[\s(!]*((all|global)\s*\(\s*\)|has\s*\(\s*[\w./-]+\s*\)|[\w./-]+\s*(==|!=|contains\b|starts\s+with\b|ends\s+with\b)\s*(\x27[^\x27()]*\x27|\x22[^\x22()]*\x22)|[\w./-]+\s+(not\s+)?in\s*\{(\s*(\x27[^\x27()]*\x27|\x22[^\x22()]*\x22)\s*,?)*\s*\})[\s)]*((&&|\|\|)[\s(!]*((all|global)\s*\(\s*\)|has\s*\(\s*[\w./-]+\s*\)|[\w./-]+\s*(==|!=|contains\b|starts\s+with\b|ends\s+with\b)\s*(\x27[^\x27()]*\x27|\x22[^\x22()]*\x22)|[\w./-]+\s+(not\s+)?in\s*\{(\s*(\x27[^\x27()]*\x27|\x22[^\x22()]*\x22)\s*,?)*\s*\})[\s)]*)*$') && self.split('(').size() == self.split(')').size()`,message="is no selector, such as: app == 'web' && env in {'test', 'prod'} && !has(edge)"
type Selector string

// RuleAction is what a rule does with the packets that it matches.
// +kubebuilder:validation:Enum=Allow;Deny;Pass;Log
type RuleAction string

// Actions. Allow and Deny decide; Pass leaves the decision to the next tier; Log has the packet logged, and
// goes on to the next rule.
const (
	RuleAllow RuleAction = "Allow"
	RuleDeny  RuleAction = "Deny"
	RulePass  RuleAction = "Pass"
	RuleLog   RuleAction = "Log"
)

// PolicyType is a direction, as seen from the selected pods.
// +kubebuilder:validation:Enum=Ingress;Egress
type PolicyType string

// Directions.
const (
	PolicyTypeIngress PolicyType = "Ingress"
	PolicyTypeEgress  PolicyType = "Egress"
)

// Enforcement says whether a policy acts.
// +kubebuilder:validation:Enum=Enforce;Audit
type Enforcement string

const (
	// Enforce obeys the policy.
	Enforce Enforcement = "Enforce"
	// Audit counts and explains what the policy would decide, and decides nothing.
	Audit Enforcement = "Audit"
)

// ICMPFields are the type and the code of an ICMP or ICMPv6 message.
// +kubebuilder:validation:XValidation:rule="has(self.type) || !has(self.code)",message="an ICMP code needs a type",fieldPath=".code"
type ICMPFields struct {
	// type of the message, such as 8, the echo request of ICMP, or 128, that of ICMPv6.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=255
	Type *int32 `json:"type,omitempty"`
	// code of the message.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=255
	Code *int32 `json:"code,omitempty"`
}

// ServiceMatch names a Service of Kubernetes.
type ServiceMatch struct {
	// name of the Service.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// namespace of the Service. Default: the policy's own.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Namespace string `json:"namespace,omitempty"`
}

// ServiceAccountMatch selects pods by the ServiceAccount that they run as. Names and selector must both
// hold.
type ServiceAccountMatch struct {
	// names of ServiceAccounts, any of which will do.
	// +optional
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=253
	// +listType=set
	Names []string `json:"names,omitempty"`
	// selector of the labels of the ServiceAccount.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Selector string `json:"selector,omitempty"`
}

// EntityRule is the conditions on one end of a packet. All that are given must hold.
// +kubebuilder:validation:XValidation:rule="!has(self.services) || !(has(self.selector) || has(self.notSelector) || has(self.namespaceSelector) || has(self.serviceAccounts) || has(self.nets) || has(self.notNets) || has(self.ports) || has(self.notPorts))",message="services exclude all other conditions on the same end",fieldPath=".services"
// +kubebuilder:validation:XValidation:rule="!has(self.domains) || !(has(self.selector) || has(self.notSelector) || has(self.namespaceSelector) || has(self.serviceAccounts) || has(self.services) || has(self.nets) || has(self.notNets))",message="domains exclude all other conditions on the same end but ports",fieldPath=".domains"
type EntityRule struct {
	// nets are networks, any of which may hold the address: in CIDR notation, or single addresses.
	// +optional
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="self.all(n, isCIDR(n) || isIP(n))",message="nets must be networks in CIDR notation, or addresses"
	// +listType=set
	Nets []string `json:"nets,omitempty"`

	// notNets are networks that must not hold the address.
	// +optional
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="self.all(n, isCIDR(n) || isIP(n))",message="notNets must be networks in CIDR notation, or addresses"
	// +listType=set
	NotNets []string `json:"notNets,omitempty"`

	// selector of pods, network sets and HostEndpoints by their labels. In a NetworkPolicy it selects in the policy's
	// namespace, unless there is a namespaceSelector; in a GlobalNetworkPolicy everywhere.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Selector string `json:"selector,omitempty"`

	// notSelector of pods and network sets, of whatever namespace, whose address it must not be. Addresses
	// of none of these fulfil it too, unless there is another condition.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	NotSelector string `json:"notSelector,omitempty"`

	// namespaceSelector selects the namespaces of pods and network sets by the labels of the namespace.
	// global() selects GlobalNetworkSets and HostEndpoints.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	NamespaceSelector string `json:"namespaceSelector,omitempty"`

	// serviceAccounts selects pods by what they run as.
	// +optional
	ServiceAccounts *ServiceAccountMatch `json:"serviceAccounts,omitempty"`

	// services is the endpoints of a Service: as the destination of an egress rule with their ports, as the
	// source of an ingress rule with all.
	// +optional
	Services *ServiceMatch `json:"services,omitempty"`

	// domains are names, any of which DNS may have told the address of, or "*." and a domain, for all names
	// below it: of destinations of egress rules that allow, beside no condition but ports. What counts is what
	// the FelixConfiguration's dnsTrustedServers answered to pods of the same node.
	// +optional
	// +kubebuilder:validation:MaxItems=25
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=255
	// +kubebuilder:validation:items:Pattern=`^(\*\.)?([a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?$`
	// +listType=set
	Domains []string `json:"domains,omitempty"`

	// ports, any of which will do: numbers, ranges such as "8080:8090", or names of ports of pods.
	// +optional
	// +kubebuilder:validation:MaxItems=50
	// +kubebuilder:validation:items:XIntOrString
	// +kubebuilder:validation:XValidation:rule="self.all(p, type(p) == string || p >= 0 && p <= 65535)",message="a port is a number from 0 to 65535, a range such as '8080:8090', or a name"
	// +kubebuilder:validation:items:Pattern=`^([0-9]{1,5}(:[0-9]{1,5})?|[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?)$`
	// +listType=atomic
	Ports []intstr.IntOrString `json:"ports,omitempty"`

	// notPorts are ports that it must not be.
	// +optional
	// +kubebuilder:validation:MaxItems=50
	// +kubebuilder:validation:items:XIntOrString
	// +kubebuilder:validation:XValidation:rule="self.all(p, type(p) == string || p >= 0 && p <= 65535)",message="a port is a number from 0 to 65535, a range such as '8080:8090', or a name"
	// +kubebuilder:validation:items:Pattern=`^([0-9]{1,5}(:[0-9]{1,5})?|[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?)$`
	// +listType=atomic
	NotPorts []intstr.IntOrString `json:"notPorts,omitempty"`
}

// Rule is an action for the packets that fulfil all of its conditions.
// +kubebuilder:validation:XValidation:rule="!(has(self.icmp) || has(self.notICMP)) || has(self.protocol) && (self.protocol == 'ICMP' || self.protocol == 'ICMPv6' || self.protocol == 1 || self.protocol == 58)",message="icmp and notICMP need the protocol ICMP or ICMPv6",fieldPath=".protocol"
// +kubebuilder:validation:XValidation:rule="!has(self.protocol) || !has(self.ipVersion) || !(self.protocol == 'ICMP' || self.protocol == 1) || self.ipVersion == 4",message="ICMP is of IPv4; that of IPv6 is ICMPv6",fieldPath=".ipVersion"
// +kubebuilder:validation:XValidation:rule="!has(self.protocol) || !has(self.ipVersion) || !(self.protocol == 'ICMPv6' || self.protocol == 58) || self.ipVersion == 6",message="ICMPv6 is of IPv6",fieldPath=".ipVersion"
// +kubebuilder:validation:XValidation:rule="has(self.protocol) && (self.protocol == 'TCP' || self.protocol == 'UDP' || self.protocol == 'SCTP' || self.protocol == 'UDPLite' || self.protocol == 6 || self.protocol == 17 || self.protocol == 132 || self.protocol == 136) || !(has(self.source) && (has(self.source.ports) || has(self.source.notPorts)) || has(self.destination) && (has(self.destination.ports) || has(self.destination.notPorts)))",message="ports need a protocol that has ports: TCP, UDP, SCTP or UDPLite",fieldPath=".protocol"
// +kubebuilder:validation:XValidation:rule="!has(self.source) || !has(self.source.domains)",message="only destinations have domains",fieldPath=".source"
// +kubebuilder:validation:XValidation:rule="self.action == 'Allow' || !has(self.destination) || !has(self.destination.domains)",message="only rules that allow have domains: what DNS has not told (yet) would not match",fieldPath=".destination"
type Rule struct {
	// action of the rule.
	// +required
	Action RuleAction `json:"action"`

	// ipVersion of the packet.
	// +optional
	// +kubebuilder:validation:Enum=4;6
	IPVersion *int32 `json:"ipVersion,omitempty"`

	// protocol of the packet: TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite, or a number from 1 to 255.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:Pattern=`^(TCP|UDP|ICMP|ICMPv6|SCTP|UDPLite)$`
	Protocol *intstr.IntOrString `json:"protocol,omitempty"`

	// notProtocol that the packet must not be of.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:Pattern=`^(TCP|UDP|ICMP|ICMPv6|SCTP|UDPLite)$`
	NotProtocol *intstr.IntOrString `json:"notProtocol,omitempty"`

	// icmp type and code of the packet.
	// +optional
	ICMP *ICMPFields `json:"icmp,omitempty"`

	// notICMP is a type and code that the packet must not have.
	// +optional
	NotICMP *ICMPFields `json:"notICMP,omitempty"`

	// source of the packet.
	// +optional
	Source EntityRule `json:"source,omitzero"`

	// destination of the packet, after services were translated to pods.
	// +optional
	Destination EntityRule `json:"destination,omitzero"`
}

// PolicySpec is what the policies of a namespace and of the cluster have in common.
type PolicySpec struct {
	// tier that the policy stands in. Tiers are asked in their order, until one decides.
	// +optional
	// +kubebuilder:default=default
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="!(self in ['kube-admin', 'kube-baseline'])",message="kube-admin and kube-baseline are the tiers of ClusterNetworkPolicies"
	Tier string `json:"tier,omitempty"`

	// order in the tier: lower ones are asked first, then those of the same order by name, those without
	// one last. Kubernetes' NetworkPolicies stand in the tier default with order 1000.
	// +optional
	Order *int32 `json:"order,omitempty"`

	// selector of the pods that the policy applies to. Default: all.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!self.contains('global(')",message="global() stands in a namespaceSelector only"
	Selector Selector `json:"selector,omitempty"`

	// serviceAccountSelector limits these to pods that run as ServiceAccounts with such labels.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!self.contains('global(')",message="global() stands in a namespaceSelector only"
	ServiceAccountSelector Selector `json:"serviceAccountSelector,omitempty"`

	// types are the directions that the policy applies to. Default: Ingress, unless there are egress rules
	// only; and Egress, if there are egress rules.
	// +optional
	// +kubebuilder:validation:MaxItems=2
	// +listType=set
	Types []PolicyType `json:"types,omitempty"`

	// ingress rules, the first that matches decides. If none does, the next policy of the tier is asked;
	// after the last, the tier's defaultAction is taken.
	// +optional
	// +kubebuilder:validation:MaxItems=512
	// +kubebuilder:validation:XValidation:rule="self.all(r, !has(r.destination) || !has(r.destination.domains))",message="only egress rules have domains"
	// +listType=atomic
	Ingress []Rule `json:"ingress,omitempty"`

	// egress rules, as ingress.
	// +optional
	// +kubebuilder:validation:MaxItems=512
	// +listType=atomic
	Egress []Rule `json:"egress,omitempty"`

	// enforcement says whether the policy acts. Audit counts and explains what it would decide, and
	// decides nothing.
	// +optional
	// +kubebuilder:default=Enforce
	Enforcement Enforcement `json:"enforcement,omitempty"`
}

// PolicyStatus is written by the controller.
type PolicyStatus struct {
	// observedGeneration is the generation that this status describes.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// conditions: Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// NetworkPolicy says what the pods of its namespace may send and receive, by rules in an order, with
// Calico's fields. Kubernetes has a kind of the same name: this one is networkpolicies.heliograph.dev.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,shortName=hnp,categories=heliograph
// +kubebuilder:printcolumn:name="Tier",type=string,JSONPath=`.spec.tier`
// +kubebuilder:printcolumn:name="Order",type=integer,JSONPath=`.spec.order`
// +kubebuilder:printcolumn:name="Selector",type=string,JSONPath=`.spec.selector`
// +kubebuilder:printcolumn:name="Enforcement",type=string,JSONPath=`.spec.enforcement`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type NetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec   PolicySpec   `json:"spec,omitempty"`
	Status PolicyStatus `json:"status,omitempty"`
}

// NetworkPolicyList is a list of NetworkPolicies.
// +kubebuilder:object:root=true
type NetworkPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NetworkPolicy `json:"items"`
}

// GlobalNetworkPolicySpec is a policy for pods of all namespaces, and for HostEndpoints.
type GlobalNetworkPolicySpec struct {
	PolicySpec `json:",inline"`

	// namespaceSelector limits what the policy applies to, by the labels of namespaces: all() to pods,
	// global() to HostEndpoints, which are in none.
	// +optional
	NamespaceSelector Selector `json:"namespaceSelector,omitempty"`
}

// GlobalNetworkPolicy says what pods of all namespaces, and nodes that have HostEndpoints, may send and
// receive, by rules in an order, with Calico's fields.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=hgnp,categories=heliograph
// +kubebuilder:printcolumn:name="Tier",type=string,JSONPath=`.spec.tier`
// +kubebuilder:printcolumn:name="Order",type=integer,JSONPath=`.spec.order`
// +kubebuilder:printcolumn:name="Selector",type=string,JSONPath=`.spec.selector`
// +kubebuilder:printcolumn:name="Enforcement",type=string,JSONPath=`.spec.enforcement`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type GlobalNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec   GlobalNetworkPolicySpec `json:"spec,omitempty"`
	Status PolicyStatus            `json:"status,omitempty"`
}

// GlobalNetworkPolicyList is a list of GlobalNetworkPolicies.
// +kubebuilder:object:root=true
type GlobalNetworkPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []GlobalNetworkPolicy `json:"items"`
}

// TierAction is what a tier does with packets on which none of its policies decides.
// +kubebuilder:validation:Enum=Deny;Pass
type TierAction string

// Actions of a tier.
const (
	TierDeny TierAction = "Deny"
	TierPass TierAction = "Pass"
)

// TierSpec is a tier's place, and its default.
type TierSpec struct {
	// order among the tiers: lower ones are asked first, then those of the same order by name, those without
	// one last. The tier default, in which Kubernetes' NetworkPolicies stand, has 1000000. ClusterNetworkPolicies
	// of tier Admin come before all tiers, those of tier Baseline after.
	// +optional
	Order *int32 `json:"order,omitempty"`

	// defaultAction is taken on the packets of pods that a policy of the tier selects, if none decides.
	// +optional
	// +kubebuilder:default=Deny
	DefaultAction TierAction `json:"defaultAction,omitempty"`
}

// Tier is policies that are asked together. Policies of a tier that does not exist close their pods: make
// the tier first, and delete it last.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=heliograph
// +kubebuilder:printcolumn:name="Order",type=integer,JSONPath=`.spec.order`
// +kubebuilder:printcolumn:name="Default",type=string,JSONPath=`.spec.defaultAction`
// +kubebuilder:printcolumn:name="Policies",type=integer,JSONPath=`.status.policies`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="!(self.metadata.name in ['default', 'kube-admin', 'kube-baseline'])",message="the tiers default, kube-admin and kube-baseline are there without an object"
type Tier struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec   TierSpec   `json:"spec,omitempty"`
	Status TierStatus `json:"status,omitempty"`
}

// TierStatus is written by the controller.
type TierStatus struct {
	// observedGeneration is the generation that this status describes.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// policies is how many policies stand in the tier.
	// +optional
	Policies int32 `json:"policies"`
	// conditions: Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// TierList is a list of Tiers.
// +kubebuilder:object:root=true
type TierList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Tier `json:"items"`
}

// NetworkSetSpec is networks that policies select by the labels of their set.
type NetworkSetSpec struct {
	// nets of the set, in CIDR notation, or single addresses. They may overlap.
	// +optional
	// +kubebuilder:validation:MaxItems=20000
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="self.all(n, isCIDR(n) || isIP(n))",message="nets must be networks in CIDR notation, or addresses"
	// +listType=set
	Nets []string `json:"nets,omitempty"`
}

// NetworkSet is networks that the policies of its namespace select by its labels, as they select pods;
// those of other namespaces by a namespaceSelector. It has no status: there is nothing that can keep it
// from being in force.
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,categories=heliograph
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type NetworkSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec NetworkSetSpec `json:"spec,omitempty"`
}

// NetworkSetList is a list of NetworkSets.
// +kubebuilder:object:root=true
type NetworkSetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NetworkSet `json:"items"`
}

// GlobalNetworkSet is networks that policies select by its labels: GlobalNetworkPolicies as they select
// pods, NetworkPolicies with the namespaceSelector global().
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,categories=heliograph
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type GlobalNetworkSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec NetworkSetSpec `json:"spec,omitempty"`
}

// GlobalNetworkSetList is a list of GlobalNetworkSets.
// +kubebuilder:object:root=true
type GlobalNetworkSetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []GlobalNetworkSet `json:"items"`
}
