// SPDX-License-Identifier: Apache-2.0

// Package compile turns Kubernetes objects into the policy representation of one node, step by step:
// an event costs what it touches, and Flush returns the difference that all events since the last
// one make. The result follows from the present objects alone, in whatever order they came.
//
//	entity (pod, network ─▶ which selections does it belong to now? (index) ─▶ join, leave ─▶ members of sets
//	  set, node, service),
//	  namespace, account
//	endpoint (ours) ─▶ the same for the subjects of policies ─▶ its chains; the first pod that a policy
//	                   selects brings the policy and its sets into force, the last takes them out
//	tier ─▶ the chains of all that its policies select
//
// A selection is a distinct selector, of namespaces, labels and service accounts. All that ask for the
// same share it, and its sets. A node has the policies that select its own pods, the sets that those
// refer to, and nothing else.
//
// What cannot be read closes. A policy of Kubernetes with a mistake selects its pods and allows nothing in
// the direction of the mistake. Policies whose rules have an order may deny, so there a rule that cannot
// be read denies all that reaches it. A pod of ours that the API does not know is denied everything.
package compile

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/policy"
)

// Workload is a pod of this node, as the CNI plugin knows it, or (SetHostEndpoint) this node itself.
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
	// Missing says that the policy refers to what does not exist (yet): nothing is wrong with it by itself.
	Missing bool
}

// String is one line for status and logs.
func (p Problem) String() string { return p.Policy.String() + ": " + p.Field + ": " + p.Reason }

// Compiler holds the objects and what follows from them. It keeps parts of the objects that it is
// given, so they must not be changed afterwards. It is not safe for concurrent use.
type Compiler struct {
	entities   map[entityKey]*entity
	namespaces map[string]*namespace
	services   map[policy.EndpointID]struct{}
	slices     map[policy.EndpointID]int // of how many slices there are endpoints of a service
	workloads  map[policy.EndpointID]*workload
	sources    map[policy.PolicyID]*source
	tiers      map[string]tier // those that have an object
	byTier     map[string]map[*source]struct{}

	selections map[selectorKey]*selection
	index      index
	byLabel    map[label]map[*entity]struct{}
	byPrefix   map[netip.Prefix][]*entity
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
		entities:       map[entityKey]*entity{},
		namespaces:     map[string]*namespace{},
		services:       map[policy.EndpointID]struct{}{},
		slices:         map[policy.EndpointID]int{},
		workloads:      map[policy.EndpointID]*workload{},
		sources:        map[policy.PolicyID]*source{},
		tiers:          map[string]tier{},
		byTier:         map[string]map[*source]struct{}{},
		selections:     map[selectorKey]*selection{},
		index:          index{},
		byLabel:        map[label]map[*entity]struct{}{},
		byPrefix:       map[netip.Prefix][]*entity{},
		sets:           map[policy.SetID]*set{},
		policies:       map[policy.PolicyID]inForce{},
		endpoints:      map[policy.EndpointID]*policy.Endpoint{},
		dirtyPolicies:  map[policy.PolicyID]struct{}{},
		dirtyEndpoints: map[policy.EndpointID]struct{}{},
		dirtySets:      map[*set]struct{}{},
		idle:           map[*selection]struct{}{},
	}
}

// SetPod adds or replaces a pod of any node. It reads name, namespace, UID, labels, hostNetwork, the name
// of the service account, phase, addresses and the ports of containers, so all else may be trimmed.
func (c *Compiler) SetPod(obj *corev1.Pod) {
	c.setEntity(podKey(policy.EndpointID{Namespace: obj.Namespace, Name: obj.Name}), readPod(obj))
}

// RemovePod removes a pod. Its endpoint, if it is ours, stays, closed, until RemoveWorkload.
func (c *Compiler) RemovePod(id policy.EndpointID) {
	c.removeEntity(podKey(id))
	c.touchEndpoint(id)
}

// SetWorkload adds or replaces a pod of this node.
func (c *Compiler) SetWorkload(w Workload) {
	w.IPs = slices.Clone(w.IPs)
	own := &workload{Workload: w}
	for _, ip := range w.IPs {
		own.prefixes = append(own.prefixes, host(ip))
	}
	c.changeWorkload(w.ID, own)
}

// RemoveWorkload removes a pod of this node.
func (c *Compiler) RemoveWorkload(id policy.EndpointID) { c.changeWorkload(id, nil) }

func (c *Compiler) changeWorkload(id policy.EndpointID, w *workload) {
	e := c.entities[endpointKey(id)]
	if e != nil {
		c.withdraw(e)
	}
	if w == nil {
		delete(c.workloads, id)
	} else {
		c.workloads[id] = w
	}
	if e != nil {
		c.introduce(e)
	}
	c.touchEndpoint(id)
}

// SetNamespace adds or replaces a namespace. It reads name and labels.
func (c *Compiler) SetNamespace(obj *corev1.Namespace) {
	c.changeNamespace(obj.Name, withName(obj.Name, obj.Labels), true)
}

// RemoveNamespace removes a namespace. Until its pods are gone too, they are in it by name only.
func (c *Compiler) RemoveNamespace(name string) {
	c.changeNamespace(name, withName(name, nil), false)
}

func (c *Compiler) changeNamespace(name string, labels map[string]string, known bool) {
	n := c.namespace(name)
	if n.known != known || !equalLabels(n.labels, labels) {
		n.known, n.labels = known, labels
		for e := range n.entities {
			c.reselect(e)
		}
	}
	c.dropIfUnused(n)
}

// SetServiceAccount adds or replaces a service account. It reads name, namespace and labels.
func (c *Compiler) SetServiceAccount(obj *corev1.ServiceAccount) {
	c.changeAccount(obj.Namespace, obj.Name, withName(obj.Name, obj.Labels), true)
}

// RemoveServiceAccount removes a service account. Pods that still run as it do so by name only.
func (c *Compiler) RemoveServiceAccount(namespace, name string) {
	c.changeAccount(namespace, name, withName(name, nil), false)
}

// SetNetworkSet adds or replaces networks that the policies of a namespace select by labels.
func (c *Compiler) SetNetworkSet(obj *v1alpha1.NetworkSet) {
	c.setEntity(entityKey{networkSets, policy.EndpointID{Namespace: obj.Namespace, Name: obj.Name}}, readNetworkSet(obj.Labels, &obj.Spec))
}

// RemoveNetworkSet removes a network set.
func (c *Compiler) RemoveNetworkSet(namespace, name string) {
	c.removeEntity(entityKey{networkSets, policy.EndpointID{Namespace: namespace, Name: name}})
}

// SetGlobalNetworkSet adds or replaces networks that are in no namespace.
func (c *Compiler) SetGlobalNetworkSet(obj *v1alpha1.GlobalNetworkSet) {
	c.setEntity(entityKey{networkSets, policy.EndpointID{Name: obj.Name}}, readNetworkSet(obj.Labels, &obj.Spec))
}

// RemoveGlobalNetworkSet removes a global network set.
func (c *Compiler) RemoveGlobalNetworkSet(name string) { c.RemoveNetworkSet("", name) }

// SetNetworkPolicy adds or replaces a policy of Kubernetes.
func (c *Compiler) SetNetworkPolicy(obj *networkingv1.NetworkPolicy) {
	c.setSource(translate(obj))
}

// RemoveNetworkPolicy removes a policy of Kubernetes.
func (c *Compiler) RemoveNetworkPolicy(namespace, name string) {
	c.removeSource(policy.PolicyID{Kind: policy.NetworkPolicy, Namespace: namespace, Name: name})
}

// SetPolicy adds or replaces a policy of a namespace, in our language.
func (c *Compiler) SetPolicy(obj *v1alpha1.NetworkPolicy) {
	id := policy.PolicyID{Kind: policy.HeliographNetworkPolicy, Namespace: obj.Namespace, Name: obj.Name}
	c.setSource(translateOrdered(id, &obj.Spec, ""))
}

// RemovePolicy removes a policy of a namespace, in our language.
func (c *Compiler) RemovePolicy(namespace, name string) {
	c.removeSource(policy.PolicyID{Kind: policy.HeliographNetworkPolicy, Namespace: namespace, Name: name})
}

// SetGlobalPolicy adds or replaces a policy of the cluster, in our language.
func (c *Compiler) SetGlobalPolicy(obj *v1alpha1.GlobalNetworkPolicy) {
	id := policy.PolicyID{Kind: policy.GlobalNetworkPolicy, Name: obj.Name}
	c.setSource(translateOrdered(id, &obj.Spec.PolicySpec, obj.Spec.NamespaceSelector))
}

// RemoveGlobalPolicy removes a policy of the cluster, in our language.
func (c *Compiler) RemoveGlobalPolicy(name string) {
	c.removeSource(policy.PolicyID{Kind: policy.GlobalNetworkPolicy, Name: name})
}

func (c *Compiler) setSource(t translation) {
	old := c.sources[t.policy.ID]
	s := &source{translation: t, subject: c.selection(t.subject)}
	s.subject.sources[s] = struct{}{}
	if c.byTier[s.tier] == nil {
		c.byTier[s.tier] = map[*source]struct{}{}
	}
	c.byTier[s.tier][s] = struct{}{}
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
	delete(c.byTier[s.tier], s)
	if len(c.byTier[s.tier]) == 0 {
		delete(c.byTier, s.tier)
	}
	c.touchSource(s)
	c.dropIfIdle(s.subject)
}

// touchSource has the next Flush look at a policy and at all that it selects.
func (c *Compiler) touchSource(s *source) {
	c.dirtyPolicies[s.policy.ID] = struct{}{}
	c.touchSubject(s)
}

func (c *Compiler) touchSubject(s *source) {
	for e := range s.subject.members {
		c.touchEndpoint(e.key.EndpointID)
	}
}

func (c *Compiler) touchEndpoint(id policy.EndpointID) { c.dirtyEndpoints[id] = struct{}{} }

// Problems returns what is wrong with the policies, sorted, whether they select pods of this node or not.
func (c *Compiler) Problems() []Problem {
	var all []Problem
	for _, s := range c.sources {
		all = append(all, s.problems...)
		all = append(all, c.missing(s)...)
	}
	slices.SortStableFunc(all, func(a, b Problem) int { return a.Policy.Compare(b.Policy) })
	return all
}

// missing is what a policy refers to in vain.
func (c *Compiler) missing(s *source) []Problem {
	var list []Problem
	if c.tierOf(s.tier).rank == missingTier {
		list = append(list, Problem{
			Policy: s.policy.ID, Field: "spec.tier", Missing: true,
			Reason: fmt.Sprintf("there is no Tier %q; until there is, everything is denied", s.tier),
		})
	}
	for _, r := range s.services {
		if _, known := c.services[r.id]; !known && c.slices[r.id] == 0 {
			list = append(list, Problem{
				Policy: s.policy.ID, Field: r.field, Missing: true,
				Reason: fmt.Sprintf("there is no Service %s; until there is, the rule matches nothing", r.id),
			})
		}
	}
	return list
}
