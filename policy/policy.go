// SPDX-License-Identifier: Apache-2.0

// Package policy is the intermediate representation of network policy: what every policy language is
// compiled to, and what every renderer and the evaluator read. It is plain values and nothing else.
//
//	Endpoint ─ ingress, egress ─▶ Chain ─▶ Tier … Tier ─▶ default
//	                                         │
//	                                         ├▶ PolicyID ─▶ Policy ─ ingress, egress ─▶ Rule ─▶ Match ─▶ SetID ─▶ Set
//	                                         └▶ default of the tier
//
// A packet meets the egress chain of its source's endpoint, then the ingress chain of its
// destination's. In a chain the tiers are asked in order, in a tier the policies, in a policy the
// rules of that direction. The first rule that matches decides: Allow and Deny end the chain, Pass
// ends the tier, Log ends nothing. A tier whose policies all stay silent gives its default, and a
// chain whose tiers all passed gives its own. A policy with Audit is walked, and never decides.
//
// Three things stand before any chain: a pod may always talk to itself, the node may always talk to
// its own pods, and packets of a flow that was allowed are allowed.
//
// An endpoint may also be the node itself, as far as its processes send and receive through a device, or
// through any. First in its chains stands FailsafeTier: what no policy may take from a node.
//
// Values that were handed over are not changed afterwards: who holds two pointers that are equal
// holds two policies that are equal.
package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Names of the tiers that need no Tier object, in the order in which they are asked. Tiers of users
// stand around DefaultTier by their order, between the other two.
const (
	AdminTier    = "kube-admin"
	DefaultTier  = "default"
	BaselineTier = "kube-baseline"
	// FailsafeTier comes before all, in the chains of hosts alone. No Tier object can have the name.
	FailsafeTier = "Failsafe"
)

// Action is what a rule, a tier or a chain says.
type Action uint8

// Actions. The zero Action is none, so that a forgotten one is no verdict by accident.
const (
	NoAction Action = iota
	Allow
	Deny
	Pass
	Log
)

// String is the name that users write.
func (a Action) String() string { return name(a, "none", "Allow", "Deny", "Pass", "Log") }

// Direction is as seen from the endpoint.
type Direction uint8

// Directions.
const (
	Ingress Direction = iota
	Egress
)

// String is "ingress" or "egress".
func (d Direction) String() string { return name(d, "ingress", "egress") }

// Kind is the language that a policy was written in.
type Kind uint8

// Kinds of policies.
const (
	NetworkPolicy           Kind = iota // networking.k8s.io
	ClusterNetworkPolicy                // policy.networking.k8s.io
	HeliographNetworkPolicy             // heliograph.dev
	GlobalNetworkPolicy                 // heliograph.dev
	Failsafe                            // no policy of a user's: see FailsafeID
)

// String is the kind as users write it; ours with its group, since Kubernetes has the name too.
func (k Kind) String() string {
	return name(k, "NetworkPolicy", "ClusterNetworkPolicy", "NetworkPolicy.heliograph.dev", "GlobalNetworkPolicy", "Failsafe")
}

// FailsafeID is the policy that stands in FailsafeTier: it allows what a node cannot be without. Who cannot
// have it obeyed leaves the node open.
func FailsafeID() PolicyID { return PolicyID{Kind: Failsafe, Name: "node"} }

func name[T ~uint8](v T, names ...string) string {
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("%d", uint8(v))
}

// PolicyID names the object that a policy was compiled from.
type PolicyID struct {
	Kind      Kind   `json:"kind"`
	Namespace string `json:"namespace,omitempty"` // empty for kinds of the cluster
	Name      string `json:"name"`
}

// String is "NetworkPolicy prod/web".
func (id PolicyID) String() string {
	if id.Namespace == "" {
		return id.Kind.String() + " " + id.Name
	}
	return id.Kind.String() + " " + id.Namespace + "/" + id.Name
}

// Compare orders by kind, namespace and name.
func (id PolicyID) Compare(o PolicyID) int {
	if c := int(id.Kind) - int(o.Kind); c != 0 {
		return c
	}
	if c := strings.Compare(id.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(id.Name, o.Name)
}

// RuleID names a rule by where its author finds it. It is what nft comments, counters, logs and
// explanations carry, and stays the same as long as the rules before it do.
type RuleID struct {
	Policy    PolicyID  `json:"policy"`
	Direction Direction `json:"direction"`
	Index     int       `json:"index"`
}

// String is "NetworkPolicy prod/web ingress[0]".
func (id RuleID) String() string {
	return fmt.Sprintf("%s %s[%d]", id.Policy, id.Direction, id.Index)
}

// Policy is the rules that are shared by all endpoints that refer to it.
type Policy struct {
	ID      PolicyID
	Audit   bool // count and report what it would decide, and decide nothing
	Ingress []Rule
	Egress  []Rule
}

// Rules returns the rules of a direction.
func (p *Policy) Rules(d Direction) []Rule {
	if d == Egress {
		return p.Egress
	}
	return p.Ingress
}

// Equal says whether a renderer would render the same.
func (p *Policy) Equal(o *Policy) bool {
	if p == o || p == nil || o == nil {
		return p == o
	}
	return p.ID == o.ID && p.Audit == o.Audit && slices.EqualFunc(p.Ingress, o.Ingress, Rule.Equal) &&
		slices.EqualFunc(p.Egress, o.Egress, Rule.Equal)
}

// Sets calls yield with every set that the policy refers to, some more than once.
func (p *Policy) Sets(yield func(SetID) bool) {
	for _, d := range []Direction{Ingress, Egress} {
		for i := range p.Rules(d) {
			if !p.Rules(d)[i].Match.sets(yield) {
				return
			}
		}
	}
}

// Rule is an action for the packets that match.
type Rule struct {
	ID     RuleID
	Action Action
	Match  Match
}

// Equal says whether two rules are the same.
func (r Rule) Equal(o Rule) bool {
	return r.ID == o.ID && r.Action == o.Action && r.Match.Equal(o.Match)
}

// AnyDevice is the device of a host endpoint that concerns all devices of its node which have none of
// their own.
const AnyDevice = "*"

// Endpoint is something that policies apply to: a pod of this node, or the node's own processes behind one
// of its devices, or behind AnyDevice. Of several for one device of the node, the first in order counts.
type Endpoint struct {
	ID     EndpointID
	Device string // what its packets pass on the node
	IPs    []netip.Addr
	// Unknown says that the API does not know it, or not yet: its chains deny everything.
	Unknown         bool
	Ingress, Egress Chain
}

// EndpointID is a pod's namespace and name, or the name of a HostEndpoint.
type EndpointID struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Host      bool   `json:"host,omitempty"`
}

// String is "prod/web-1", or "HostEndpoint node-a".
func (id EndpointID) String() string {
	if id.Host {
		return "HostEndpoint " + id.Name
	}
	return id.Namespace + "/" + id.Name
}

// Compare orders pods before hosts, then by namespace and name.
func (id EndpointID) Compare(o EndpointID) int {
	if id.Host != o.Host {
		if o.Host {
			return -1
		}
		return 1
	}
	if c := strings.Compare(id.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(id.Name, o.Name)
}

// Chain returns the chain of a direction.
func (e *Endpoint) Chain(d Direction) Chain {
	if d == Egress {
		return e.Egress
	}
	return e.Ingress
}

// Equal says whether two endpoints are the same.
func (e *Endpoint) Equal(o *Endpoint) bool {
	if e == o || e == nil || o == nil {
		return e == o
	}
	return e.ID == o.ID && e.Device == o.Device && e.Unknown == o.Unknown && slices.Equal(e.IPs, o.IPs) &&
		e.Ingress.Equal(o.Ingress) && e.Egress.Equal(o.Egress)
}

// Chain is what one direction of an endpoint is subject to. Many endpoints have equal chains.
type Chain struct {
	Tiers   []Tier
	Default Action // Allow or Deny, after the last tier
}

// Equal says whether two chains are the same.
func (c Chain) Equal(o Chain) bool {
	return c.Default == o.Default && slices.EqualFunc(c.Tiers, o.Tiers, Tier.Equal)
}

// Tier is a tier as it applies to an endpoint: only with policies that select it. A tier without any
// does not stand in a chain.
type Tier struct {
	Name     string
	Policies []PolicyID // in order
	Default  Action     // Allow, Deny or Pass, when no policy that is enforced decided
}

// Equal says whether two tiers are the same.
func (t Tier) Equal(o Tier) bool {
	return t.Name == o.Name && t.Default == o.Default && slices.Equal(t.Policies, o.Policies)
}
