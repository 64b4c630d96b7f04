// SPDX-License-Identifier: Apache-2.0

// Package compile turns Kubernetes objects into the policy representation of one node, step by step:
// an event costs what it touches, and Flush returns the difference that all events since the last
// one make. The result follows from the present objects alone, in whatever order they came.
//
//	pod, namespace ─▶ which selections does it belong to now? (index) ─▶ join, leave ─▶ members of sets
//	endpoint (ours) ─▶ the same for the subjects of policies ─▶ its chains; the first pod that a policy
//	                   selects brings the policy and its sets into force, the last takes them out
//
// A selection is a distinct pair of selectors, of namespaces and of pods. All that ask for the same pair
// share it, and its sets. A node has the policies that select its own pods, the sets that those refer
// to, and nothing else.
//
// What cannot be read closes: a policy with a mistake selects its pods and allows nothing in the
// direction of the mistake, and a pod of ours that the API does not know is denied everything.
package compile

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/heliograph-dev/heliograph/policy"
)

// Workload is a pod of this node, as the CNI plugin knows it.
type Workload struct {
	ID policy.EndpointID
	// UID tells the pod from its predecessor of the same name, whose labels the API may still show.
	// Empty: any will do.
	UID    string
	Device string
	// IPs are in force at once; the API learns them only when the plugin has returned.
	IPs []netip.Addr
}

// Problem is a part of a policy that is not obeyed.
type Problem struct {
	Policy policy.PolicyID
	Field  string // "spec.ingress[0].from[1].ipBlock.cidr"
	Reason string
}

// String is one line for status and logs.
func (p Problem) String() string { return p.Policy.String() + ": " + p.Field + ": " + p.Reason }

// Compiler holds the objects and what follows from them. It keeps parts of the objects that it is
// given, so they must not be changed afterwards. It is not safe for concurrent use.
type Compiler struct {
	pods       map[policy.EndpointID]*pod
	namespaces map[string]*namespace
	workloads  map[policy.EndpointID]*Workload
	sources    map[policy.PolicyID]*source

	selections map[selectorKey]*selection
	index      index
	byLabel    map[label]map[*pod]struct{}
	byIP       map[netip.Addr][]*pod
	sets       map[policy.SetID]*set
	round      uint64

	// What the last Flush said.
	policies  map[policy.PolicyID]inForce
	endpoints map[policy.EndpointID]*policy.Endpoint
	// What the next one has to look at.
	dirtyPolicies  map[policy.PolicyID]struct{}
	dirtyEndpoints map[policy.EndpointID]struct{}
	dirtySets      map[*set]struct{}
	idle           map[*selection]struct{}
}

// source is a policy as it was compiled, whether it is in force or not.
type source struct {
	translation
	subject *selection
}

// inForce is a policy that Flush announced, with the sets that it holds.
type inForce struct {
	policy *policy.Policy
	sets   []*set
}

// New returns a compiler that knows of nothing.
func New() *Compiler {
	return &Compiler{
		pods:           map[policy.EndpointID]*pod{},
		namespaces:     map[string]*namespace{},
		workloads:      map[policy.EndpointID]*Workload{},
		sources:        map[policy.PolicyID]*source{},
		selections:     map[selectorKey]*selection{},
		index:          index{},
		byLabel:        map[label]map[*pod]struct{}{},
		byIP:           map[netip.Addr][]*pod{},
		sets:           map[policy.SetID]*set{},
		policies:       map[policy.PolicyID]inForce{},
		endpoints:      map[policy.EndpointID]*policy.Endpoint{},
		dirtyPolicies:  map[policy.PolicyID]struct{}{},
		dirtyEndpoints: map[policy.EndpointID]struct{}{},
		dirtySets:      map[*set]struct{}{},
		idle:           map[*selection]struct{}{},
	}
}

// SetPod adds or replaces a pod of any node. It reads name, namespace, UID, labels, hostNetwork, phase,
// addresses and the ports of containers, so all else may be trimmed.
func (c *Compiler) SetPod(obj *corev1.Pod) {
	id := policy.EndpointID{Namespace: obj.Namespace, Name: obj.Name}
	facts := readPod(obj)
	p := c.pods[id]
	switch {
	case p == nil:
		p = &pod{id: id, podFacts: facts}
		c.pods[id] = p
		c.introduce(p)
	case !p.contributesLike(facts):
		c.withdraw(p)
		p.podFacts = facts
		c.introduce(p)
	case !equalLabels(p.labels, facts.labels):
		c.relabel(p, facts.labels)
	}
}

// RemovePod removes a pod. Its endpoint, if it is ours, stays, closed, until RemoveWorkload.
func (c *Compiler) RemovePod(id policy.EndpointID) {
	p := c.pods[id]
	if p == nil {
		return
	}
	c.withdraw(p)
	delete(c.pods, id)
	c.touchEndpoint(id)
}

// SetWorkload adds or replaces a pod of this node.
func (c *Compiler) SetWorkload(w Workload) {
	w.IPs = slices.Clone(w.IPs)
	c.changeWorkload(w.ID, &w)
}

// RemoveWorkload removes a pod of this node.
func (c *Compiler) RemoveWorkload(id policy.EndpointID) { c.changeWorkload(id, nil) }

func (c *Compiler) changeWorkload(id policy.EndpointID, w *Workload) {
	p := c.pods[id]
	if p != nil {
		c.withdraw(p)
	}
	if w == nil {
		delete(c.workloads, id)
	} else {
		c.workloads[id] = w
	}
	if p != nil {
		c.introduce(p)
	}
	c.touchEndpoint(id)
}

// SetNamespace adds or replaces a namespace. It reads name and labels.
func (c *Compiler) SetNamespace(obj *corev1.Namespace) {
	c.changeNamespace(obj.Name, namespaceLabels(obj.Name, obj.Labels), true)
}

// RemoveNamespace removes a namespace. Until its pods are gone too, they are in it by name only.
func (c *Compiler) RemoveNamespace(name string) {
	c.changeNamespace(name, namespaceLabels(name, nil), false)
}

func (c *Compiler) changeNamespace(name string, labels map[string]string, known bool) {
	n := c.namespace(name)
	if n.known != known || !equalLabels(n.labels, labels) {
		n.known, n.labels = known, labels
		for p := range n.pods {
			c.reselect(p)
		}
	}
	c.dropIfUnused(n)
}

// SetNetworkPolicy adds or replaces a policy of Kubernetes.
func (c *Compiler) SetNetworkPolicy(obj *networkingv1.NetworkPolicy) {
	c.setSource(translate(obj))
}

// RemoveNetworkPolicy removes a policy of Kubernetes.
func (c *Compiler) RemoveNetworkPolicy(namespace, name string) {
	c.removeSource(policy.PolicyID{Kind: policy.NetworkPolicy, Namespace: namespace, Name: name})
}

func (c *Compiler) setSource(t translation) {
	old := c.sources[t.policy.ID]
	s := &source{translation: t, subject: c.selection(t.subject)}
	s.subject.sources[s] = struct{}{}
	c.sources[t.policy.ID] = s
	c.touchSource(s)
	if old != nil {
		c.detach(old)
	}
}

func (c *Compiler) removeSource(id policy.PolicyID) {
	if s := c.sources[id]; s != nil {
		delete(c.sources, id)
		c.detach(s)
	}
}

func (c *Compiler) detach(s *source) {
	delete(s.subject.sources, s)
	c.touchSource(s)
	c.dropIfIdle(s.subject)
}

// touchSource has the next Flush look at a policy and at all that it selects.
func (c *Compiler) touchSource(s *source) {
	c.dirtyPolicies[s.policy.ID] = struct{}{}
	for p := range s.subject.members {
		c.touchEndpoint(p.id)
	}
}

func (c *Compiler) touchEndpoint(id policy.EndpointID) { c.dirtyEndpoints[id] = struct{}{} }

// Problems returns what is wrong with the policies, sorted, whether they select pods of this node or not.
func (c *Compiler) Problems() []Problem {
	var all []Problem
	for _, s := range c.sources {
		all = append(all, s.problems...)
	}
	slices.SortStableFunc(all, func(a, b Problem) int { return a.Policy.Compare(b.Policy) })
	return all
}
