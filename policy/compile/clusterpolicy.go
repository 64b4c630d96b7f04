// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heliograph-dev/heliograph/policy"
)

// SetClusterNetworkPolicy adds or replaces a policy of the tiers Admin and Baseline.
func (c *Compiler) SetClusterNetworkPolicy(obj *policyv1alpha2.ClusterNetworkPolicy) {
	c.setSource(translateCluster(obj))
}

// RemoveClusterNetworkPolicy removes a policy of the tiers Admin and Baseline.
func (c *Compiler) RemoveClusterNetworkPolicy(name string) {
	c.removeSource(policy.PolicyID{Kind: policy.ClusterNetworkPolicy, Name: name})
}

// SetNode adds or replaces a node. It reads name, labels and addresses; sends are further addresses that
// the node's own packets come from. Only ClusterNetworkPolicies select nodes.
func (c *Compiler) SetNode(obj *corev1.Node, sends ...netip.Addr) {
	f := facts{labels: obj.Labels}
	for _, ip := range sends {
		f.prefixes = appendPrefix(f.prefixes, host(ip.Unmap()))
	}
	for _, a := range obj.Status.Addresses {
		// Host names are among them.
		f.prefixes = appendIP(f.prefixes, a.Address)
	}
	c.setEntity(entityKey{nodes, policy.EndpointID{Name: obj.Name}}, f)
}

// RemoveNode removes a node.
func (c *Compiler) RemoveNode(name string) {
	c.removeEntity(entityKey{nodes, policy.EndpointID{Name: name}})
}

// translateCluster reads a ClusterNetworkPolicy. What fails closed there is laid down by the API: an Accept
// rule that is not understood matches nothing, any other denies everything.
func translateCluster(obj *policyv1alpha2.ClusterNetworkPolicy) translation {
	id := policy.PolicyID{Kind: policy.ClusterNetworkPolicy, Name: obj.Name}
	spec, path := &obj.Spec, field.NewPath("spec")
	r := &reader{id: id}
	t := translation{policy: &policy.Policy{ID: id}, tier: policy.AdminTier, order: int64(spec.Priority), sets: map[policy.SetID]setSpec{}}
	switch spec.Tier {
	case policyv1alpha2.AdminTier:
	case policyv1alpha2.BaselineTier:
		t.tier = policy.BaselineTier
	default:
		r.invalid(path.Child("tier"), spec.Tier, "is neither Admin nor Baseline; the policy is taken for one of Admin, and denies everything")
	}
	// A policy without rules for a direction says nothing about it.
	t.applies = [2]bool{policy.Ingress: len(spec.Ingress) > 0, policy.Egress: len(spec.Egress) > 0}
	subject, known := r.clusterSubject(&spec.Subject, path.Child("subject"))
	if !known {
		t.applies = [2]bool{}
	}
	t.subject, r.subject = subject, subject
	common := r.take()
	t.note(common)
	t.policy.Ingress = t.clusterIngress(r, spec.Ingress, path.Child("ingress"))
	t.policy.Egress = t.clusterEgress(r, spec.Egress, path.Child("egress"))
	if len(common) > 0 {
		t.policy.Ingress = []policy.Rule{denyAll(id, policy.Ingress, 0)}
		t.policy.Egress = []policy.Rule{denyAll(id, policy.Egress, 0)}
		t.sets = map[policy.SetID]setSpec{}
	}
	return t
}

// clusterSubject reads whom a policy applies to. Of a subject of which no field is known nobody can say that
// it is about pods at all: such a policy selects none.
func (r *reader) clusterSubject(s *policyv1alpha2.ClusterNetworkPolicySubject, path *field.Path) (sel selector, known bool) {
	sel = selector{kinds: pods, own: true}
	if known = r.clusterPods(&sel, s.Namespaces, s.Pods, path); !known {
		r.errs = append(r.errs, field.Required(path, "neither namespaces nor pods are selected; the policy is obeyed nowhere"))
	}
	return sel, known
}

// clusterPods reads the two ways in which pods are selected, and says whether it is one of them.
func (r *reader) clusterPods(sel *selector, namespaces *metav1.LabelSelector, pods *policyv1alpha2.NamespacedPod, path *field.Path) bool {
	switch {
	case namespaces != nil:
		sel.namespaces = r.selector(namespaces, path.Child("namespaces"))
	case pods != nil:
		sel.namespaces = r.selector(&pods.NamespaceSelector, path.Child("pods", "namespaceSelector"))
		sel.labels = r.selector(&pods.PodSelector, path.Child("pods", "podSelector"))
	default:
		return false
	}
	return true
}

func (t *translation) clusterIngress(r *reader, rules []policyv1alpha2.ClusterNetworkPolicyIngressRule, path *field.Path) []policy.Rule {
	var list []policy.Rule
	for i := range rules {
		at := path.Index(i)
		peers := clusterPeers{reader: r}
		for j := range rules[i].From {
			p := &rules[i].From[j]
			peers.add(policyv1alpha2.ClusterNetworkPolicyEgressPeer{Namespaces: p.Namespaces, Pods: p.Pods}, at.Child("from").Index(j))
		}
		m := policy.Match{Source: peers.peer(at.Child("from"))}
		// The ports are the selected pods' own.
		m.Transport = r.clusterProtocols(rules[i].Protocols, []selector{r.subject}, at.Child("protocols"))
		rule := policy.Rule{ID: policy.RuleID{Policy: r.id, Direction: policy.Ingress, Index: i}, Match: m}
		var more bool
		if list, more = t.clusterRule(r, list, rule, rules[i].Action, at); !more {
			break
		}
	}
	return list
}

func (t *translation) clusterEgress(r *reader, rules []policyv1alpha2.ClusterNetworkPolicyEgressRule, path *field.Path) []policy.Rule {
	var list []policy.Rule
	for i := range rules {
		at := path.Index(i)
		peers := clusterPeers{reader: r, accepts: rules[i].Action == policyv1alpha2.ClusterNetworkPolicyRuleActionAccept}
		for j := range rules[i].To {
			peers.add(rules[i].To[j], at.Child("to").Index(j))
		}
		m := policy.Match{Destination: peers.peer(at.Child("to"))}
		m.Transport = r.clusterProtocols(rules[i].Protocols, peers.owners, at.Child("protocols"))
		rule := policy.Rule{ID: policy.RuleID{Policy: r.id, Direction: policy.Egress, Index: i}, Match: m}
		var more bool
		if list, more = t.clusterRule(r, list, rule, rules[i].Action, at); !more {
			break
		}
	}
	return list
}

// clusterRule appends a rule, or what stands for it if it is not understood; and whether rules after it
// are reached.
func (t *translation) clusterRule(r *reader, list []policy.Rule, rule policy.Rule, written policyv1alpha2.ClusterNetworkPolicyRuleAction, path *field.Path) ([]policy.Rule, bool) {
	switch written {
	case policyv1alpha2.ClusterNetworkPolicyRuleActionAccept:
		rule.Action = policy.Allow
	case policyv1alpha2.ClusterNetworkPolicyRuleActionDeny:
		rule.Action = policy.Deny
	case policyv1alpha2.ClusterNetworkPolicyRuleActionPass:
		rule.Action = policy.Pass
	default:
		r.invalid(path.Child("action"), written, "is none of Accept, Deny, Pass")
	}
	switch {
	case t.accept(r):
		return append(list, rule), true
	case rule.Action == policy.Allow:
		return list, true
	}
	return append(list, denyAll(r.id, rule.ID.Direction, rule.ID.Index)), false
}

// clusterPeers collects the alternatives of a rule, and the pods among them, whose ports have names.
type clusterPeers struct {
	*reader
	addresses policy.Addresses
	owners    []selector
	accepts   bool
}

func (p *clusterPeers) add(peer policyv1alpha2.ClusterNetworkPolicyEgressPeer, path *field.Path) {
	s := selector{kinds: pods}
	switch {
	case p.clusterPods(&s, peer.Namespaces, peer.Pods, path):
	case peer.Nodes != nil:
		s.kinds, s.labels = nodes, p.selector(peer.Nodes, path.Child("nodes"))
	case len(peer.Networks) > 0:
		for i, n := range peer.Networks {
			cidr, err := parseCIDR(string(n))
			if err != nil {
				p.invalid(path.Child("networks").Index(i), n, "%s", err)
				continue
			}
			p.addresses.Nets = append(p.addresses.Nets, policy.Net{CIDR: cidr})
		}
		return
	case len(peer.DomainNames) > 0:
		p.addDomains(peer.DomainNames, path.Child("domainNames"))
		return
	default:
		p.errs = append(p.errs, field.Required(path, "a peer of a kind that is not known"))
		return
	}
	p.addresses.Sets = append(p.addresses.Sets, p.set(setSpec{selector: s}))
	if s.kinds == pods {
		p.owners = append(p.owners, s)
	}
}

func (p *clusterPeers) addDomains(names []policyv1alpha2.DomainName, path *field.Path) {
	if !p.accepts {
		p.errs = append(p.errs, field.Forbidden(path, "only rules that accept have names of domains: what DNS has not told (yet) would not match"))
		return
	}
	for i, n := range names {
		p.addresses.Sets = append(p.addresses.Sets, p.domain(string(n), path.Index(i))...)
	}
}

// domain reads a name; none is a mistake.
func (r *reader) domain(pattern string, path *field.Path) []policy.SetID {
	s, err := domainSelector(pattern)
	if err != nil {
		r.invalid(path, pattern, "%s", err)
		return nil
	}
	return []policy.SetID{r.set(setSpec{selector: s})}
}

func (p *clusterPeers) peer(path *field.Path) policy.Peer {
	if p.addresses.Empty() && len(p.errs) == 0 {
		p.errs = append(p.errs, field.Required(path, "a rule has peers"))
	}
	p.addresses.Sets = distinct(p.addresses.Sets)
	return policy.Peer{Within: []policy.Addresses{p.addresses}}
}

// clusterProtocols reads alternatives. None at all is everything.
func (r *reader) clusterProtocols(list []policyv1alpha2.ClusterNetworkPolicyProtocol, owners []selector, path *field.Path) []policy.Transport {
	var out []policy.Transport
	for i := range list {
		p, at := &list[i], path.Index(i)
		switch {
		case p.TCP != nil:
			out = append(out, r.clusterPort(policy.TCP, p.TCP.DestinationPort, at.Child("tcp")))
		case p.UDP != nil:
			out = append(out, r.clusterPort(policy.UDP, p.UDP.DestinationPort, at.Child("udp")))
		case p.SCTP != nil:
			out = append(out, r.clusterPort(policy.SCTP, p.SCTP.DestinationPort, at.Child("sctp")))
		case p.DestinationNamedPort != "":
			out = append(out, r.clusterNamedPort(p.DestinationNamedPort, owners, at.Child("destinationNamedPort")))
		default:
			r.errs = append(r.errs, field.Required(at, "a protocol of a kind that is not known"))
		}
	}
	return out
}

// clusterPort wants a port: a protocol without one may have a condition that is not known here.
func (r *reader) clusterPort(protocol policy.Protocol, p *policyv1alpha2.Port, path *field.Path) policy.Transport {
	path = path.Child("destinationPort")
	var rng policyv1alpha2.PortRange
	switch {
	case p != nil && p.Range != nil:
		rng = *p.Range
	case p != nil && p.Number != 0:
		rng = policyv1alpha2.PortRange{Start: p.Number, End: p.Number}
	default:
		r.errs = append(r.errs, field.Required(path, "neither a number nor a range"))
		return policy.Transport{}
	}
	if rng.Start < 1 || rng.End < rng.Start || rng.End > 65535 {
		r.invalid(path, fmt.Sprintf("%d-%d", rng.Start, rng.End), "is no range between 1 and 65535")
	}
	ports := []policy.PortRange{{First: uint16(rng.Start), Last: uint16(rng.End)}}
	return policy.Transport{Protocol: protocol, DestinationPorts: policy.Ports{Ranges: ports}}
}

// clusterNamedPort looks a name up in all protocols.
func (r *reader) clusterNamedPort(name string, owners []selector, path *field.Path) policy.Transport {
	var t policy.Transport
	if why := validation.IsValidPortName(name); len(why) > 0 {
		r.invalid(path, name, "%s", why[0])
	}
	if len(owners) == 0 {
		r.errs = append(r.errs, field.Forbidden(path, "only ports of pods have names, and no peer is one"))
	}
	for _, o := range owners {
		t.DestinationPorts.Named = append(t.DestinationPorts.Named, r.set(setSpec{selector: o, withPorts: true, port: name}))
	}
	t.DestinationPorts.Named = distinct(t.DestinationPorts.Named)
	return t
}
