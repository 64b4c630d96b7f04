// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8slabels "k8s.io/apimachinery/pkg/labels"
	k8sselection "k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
	"k8s.io/utils/ptr"

	"github.com/heliograph-dev/heliograph/labels"
	"github.com/heliograph-dev/heliograph/policy"
)

// protocolOf reads a protocol as the API server defaults it.
func protocolOf(p corev1.Protocol) (policy.Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return policy.TCP, true
	case corev1.ProtocolUDP:
		return policy.UDP, true
	case corev1.ProtocolSCTP:
		return policy.SCTP, true
	}
	return 0, false
}

// translation is a policy by itself: it does not depend on any other object.
type translation struct {
	policy   *policy.Policy
	tier     string
	order    int64
	subject  selector
	applies  [2]bool // by policy.Direction
	sets     map[policy.SetID]setSpec
	services []serviceRef
	problems []Problem
}

// serviceRef is where a policy names a service.
type serviceRef struct {
	id    policy.EndpointID
	field string
}

// translate reads a NetworkPolicy. A mistake in a direction leaves that direction without rules, so
// that it allows nothing.
func translate(obj *networkingv1.NetworkPolicy) translation {
	id := policy.PolicyID{Kind: policy.NetworkPolicy, Namespace: obj.Namespace, Name: obj.Name}
	spec := field.NewPath("spec")
	r := &reader{id: id, home: labels.In(nameLabel, obj.Namespace)}
	selected := r.selector(&obj.Spec.PodSelector, spec.Child("podSelector"))
	t := translation{
		policy: &policy.Policy{ID: id}, tier: policy.DefaultTier, order: networkPolicyOrder,
		subject: selector{kinds: pods, namespaces: r.home, labels: selected, own: true}, sets: map[policy.SetID]setSpec{},
	}
	t.applies = r.directions(&obj.Spec, spec.Child("policyTypes"))
	r.subject = t.subject
	common := r.take()
	if t.applies[policy.Ingress] {
		t.policy.Ingress = r.ingress(obj.Spec.Ingress, spec.Child("ingress"))
		t.keep(r, policy.Ingress, len(common) > 0)
	}
	if t.applies[policy.Egress] {
		t.policy.Egress = r.egress(obj.Spec.Egress, spec.Child("egress"))
		t.keep(r, policy.Egress, len(common) > 0)
	}
	t.note(common)
	return t
}

func (t *translation) note(errs field.ErrorList) {
	for _, e := range errs {
		t.problems = append(t.problems, Problem{Policy: t.policy.ID, Field: e.Field, Reason: e.ErrorBody()})
	}
}

// keep takes over what the reader found in a direction, unless there are mistakes.
func (t *translation) keep(r *reader, d policy.Direction, broken bool) {
	sets := r.sets // before take clears them
	errs := r.take()
	t.note(errs)
	if !broken && len(errs) == 0 {
		maps.Copy(t.sets, sets)
		return
	}
	if d == policy.Egress {
		t.policy.Egress = nil
	} else {
		t.policy.Ingress = nil
	}
}

// reader reads the parts of one policy, and collects mistakes and the sets that are needed.
type reader struct {
	id      policy.PolicyID
	home    labels.Selector // the policy's own namespace; of a policy of the cluster, all
	subject selector
	sets    map[policy.SetID]setSpec
	errs    field.ErrorList
	// services that are named, in our own language.
	services []serviceRef
}

// take returns the mistakes so far, and starts anew.
func (r *reader) take() field.ErrorList {
	errs := r.errs
	r.errs, r.sets, r.services = nil, map[policy.SetID]setSpec{}, nil
	return errs
}

func (r *reader) invalid(path *field.Path, value any, format string, args ...any) {
	r.errs = append(r.errs, field.Invalid(path, value, fmt.Sprintf(format, args...)))
}

func (r *reader) set(s setSpec) policy.SetID {
	id := s.id()
	r.sets[id] = s
	return id
}

// directions fills in the API server's default, for objects that it has not seen.
func (r *reader) directions(spec *networkingv1.NetworkPolicySpec, path *field.Path) [2]bool {
	if len(spec.PolicyTypes) == 0 {
		return [2]bool{policy.Ingress: true, policy.Egress: len(spec.Egress) > 0}
	}
	var applies [2]bool
	for i, t := range spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			applies[policy.Ingress] = true
		case networkingv1.PolicyTypeEgress:
			applies[policy.Egress] = true
		default:
			r.invalid(path.Index(i), t, "is neither Ingress nor Egress; both are closed")
			applies = [2]bool{true, true}
		}
	}
	return applies
}

func (r *reader) ingress(rules []networkingv1.NetworkPolicyIngressRule, path *field.Path) []policy.Rule {
	list := make([]policy.Rule, 0, len(rules))
	for i := range rules {
		at := path.Index(i)
		m := policy.Match{Source: policy.Peer{Within: r.peers(rules[i].From, at.Child("from"))}}
		// The ports are the selected pods' own.
		m.Transport = r.ports(rules[i].Ports, at.Child("ports"), []selector{r.subject})
		list = append(list, r.rule(policy.Ingress, i, m))
	}
	return list
}

func (r *reader) egress(rules []networkingv1.NetworkPolicyEgressRule, path *field.Path) []policy.Rule {
	list := make([]policy.Rule, 0, len(rules))
	for i := range rules {
		at := path.Index(i)
		m := policy.Match{Destination: policy.Peer{Within: r.peers(rules[i].To, at.Child("to"))}}
		m.Transport = r.ports(rules[i].Ports, at.Child("ports"), r.owners(rules[i].To))
		list = append(list, r.rule(policy.Egress, i, m))
	}
	return list
}

func (r *reader) rule(d policy.Direction, i int, m policy.Match) policy.Rule {
	return policy.Rule{ID: policy.RuleID{Policy: r.id, Direction: d, Index: i}, Action: policy.Allow, Match: m}
}

// peers reads alternatives. None at all is everybody.
func (r *reader) peers(peers []networkingv1.NetworkPolicyPeer, path *field.Path) []policy.Addresses {
	if len(peers) == 0 {
		return nil
	}
	var a policy.Addresses
	for i := range peers {
		p, at := &peers[i], path.Index(i)
		switch {
		case p.IPBlock == nil && p.PodSelector == nil && p.NamespaceSelector == nil:
			r.errs = append(r.errs, field.Required(at, "a peer must have a podSelector, a namespaceSelector or an ipBlock"))
		case p.IPBlock == nil:
			a.Sets = append(a.Sets, r.set(setSpec{selector: r.peer(p, at)}))
		case p.PodSelector != nil || p.NamespaceSelector != nil:
			r.errs = append(r.errs, field.Forbidden(at, "a peer with an ipBlock may have no selector"))
		default:
			a.Nets = append(a.Nets, r.net(p.IPBlock, at.Child("ipBlock")))
		}
	}
	a.Sets = distinct(a.Sets)
	return []policy.Addresses{a}
}

func (r *reader) peer(p *networkingv1.NetworkPolicyPeer, path *field.Path) selector {
	s := selector{kinds: pods, namespaces: r.home}
	if p.NamespaceSelector != nil {
		s.namespaces = r.selector(p.NamespaceSelector, path.Child("namespaceSelector"))
	}
	if p.PodSelector != nil {
		s.labels = r.selector(p.PodSelector, path.Child("podSelector"))
	}
	return s
}

// owners are the pods of which a named port of an egress rule can be: those of the peers; where a peer
// is a network, or all, any pod may be in it.
func (r *reader) owners(peers []networkingv1.NetworkPolicyPeer) []selector {
	var list []selector
	for i := range peers {
		if peers[i].IPBlock != nil {
			return []selector{{kinds: pods}}
		}
		// Mistakes in it were noted where the peers were read.
		quiet := &reader{home: r.home}
		list = append(list, quiet.peer(&peers[i], nil))
	}
	if len(list) == 0 {
		return []selector{{kinds: pods}}
	}
	return list
}

// ports reads alternatives, and puts together those of one protocol. None at all is everything.
func (r *reader) ports(ports []networkingv1.NetworkPolicyPort, path *field.Path, owners []selector) []policy.Transport {
	var list []policy.Transport
	all := map[policy.Protocol]bool{}
	for i := range ports {
		p, at := &ports[i], path.Index(i)
		written := ptr.Deref(p.Protocol, "")
		protocol, ok := protocolOf(written)
		if !ok {
			r.invalid(at.Child("protocol"), written, "is none of TCP, UDP, SCTP")
			continue
		}
		j := slices.IndexFunc(list, func(t policy.Transport) bool { return t.Protocol == protocol })
		if j < 0 {
			j = len(list)
			list = append(list, policy.Transport{Protocol: protocol})
		}
		if p.Port == nil && p.EndPort == nil {
			all[protocol] = true
			continue
		}
		r.port(&list[j].DestinationPorts, p, at, protocol, owners)
	}
	for i := range list {
		if all[list[i].Protocol] {
			list[i].DestinationPorts = policy.Ports{}
		}
		list[i].DestinationPorts.Ranges = mergeRanges(list[i].DestinationPorts.Ranges)
		list[i].DestinationPorts.Named = distinct(list[i].DestinationPorts.Named)
	}
	return list
}

func (r *reader) port(to *policy.Ports, p *networkingv1.NetworkPolicyPort, path *field.Path, protocol policy.Protocol, owners []selector) {
	switch {
	case p.Port == nil:
		r.invalid(path.Child("endPort"), *p.EndPort, "there is no port for it to be the end of")
	case p.Port.Type == intstr.String && p.EndPort != nil:
		r.invalid(path.Child("endPort"), *p.EndPort, "a port with a name is no range")
	case p.Port.Type == intstr.String:
		if why := validation.IsValidPortName(p.Port.StrVal); len(why) > 0 {
			r.invalid(path.Child("port"), p.Port.StrVal, "%s", why[0])
			return
		}
		for _, o := range owners {
			to.Named = append(to.Named, r.set(setSpec{selector: o, withPorts: true, port: p.Port.StrVal, protocol: protocol}))
		}
	case p.Port.IntVal < 1 || p.Port.IntVal > 65535:
		r.invalid(path.Child("port"), p.Port.IntVal, "is not between 1 and 65535")
	case p.EndPort == nil:
		to.Ranges = append(to.Ranges, policy.PortRange{First: uint16(p.Port.IntVal), Last: uint16(p.Port.IntVal)})
	case *p.EndPort < p.Port.IntVal || *p.EndPort > 65535:
		r.invalid(path.Child("endPort"), *p.EndPort, "is not between port, %d, and 65535", p.Port.IntVal)
	default:
		to.Ranges = append(to.Ranges, policy.PortRange{First: uint16(p.Port.IntVal), Last: uint16(*p.EndPort)})
	}
}

// distinct keeps the first of each. A policy may have tens of thousands.
func distinct(ids []policy.SetID) []policy.SetID {
	seen := make(map[policy.SetID]struct{}, len(ids))
	return slices.DeleteFunc(ids, func(id policy.SetID) bool {
		_, twice := seen[id]
		seen[id] = struct{}{}
		return twice
	})
}

// mergeRanges sorts ranges and joins those that overlap or touch, as sets in the kernel want them.
func mergeRanges(in []policy.PortRange) []policy.PortRange {
	slices.SortFunc(in, func(a, b policy.PortRange) int { return cmp.Compare(a.First, b.First) })
	var out []policy.PortRange
	for _, r := range in {
		if last := len(out) - 1; last >= 0 && int(r.First) <= int(out[last].Last)+1 {
			out[last].Last = max(out[last].Last, r.Last)
		} else {
			out = append(out, r)
		}
	}
	return out
}

func (r *reader) net(b *networkingv1.IPBlock, path *field.Path) policy.Net {
	cidr, err := parseCIDR(b.CIDR)
	if err != nil {
		r.invalid(path.Child("cidr"), b.CIDR, "%s", err)
		return policy.Net{}
	}
	n := policy.Net{CIDR: cidr}
	for i, text := range b.Except {
		e, err := parseCIDR(text)
		if err != nil {
			r.invalid(path.Child("except").Index(i), text, "%s", err)
			continue
		}
		// What lies elsewhere takes nothing away.
		if e.Overlaps(cidr) {
			n.Except = append(n.Except, e)
		}
	}
	return n
}

// parseCIDR reads what API servers accept, or once accepted: host bits, leading zeros and IPv4 in IPv6
// are in objects that are stored.
func parseCIDR(text string) (netip.Prefix, error) {
	_, n, err := netutils.ParseCIDRSloppy(text)
	if err != nil {
		return netip.Prefix{}, errors.New("is not a network")
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	if !ok {
		return netip.Prefix{}, errors.New("is not a network")
	}
	if ip.Is4In6() && bits >= 96 {
		ip, bits = ip.Unmap(), bits-96
	}
	return netip.PrefixFrom(ip, bits).Masked(), nil
}

// selector reads a LabelSelector. What is wrong with it is left out, so that it rather selects more:
// it is used only for what is then closed.
func (r *reader) selector(s *metav1.LabelSelector, path *field.Path) labels.Selector {
	var parts []labels.Selector
	for _, k := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		v := s.MatchLabels[k]
		if r.valid(k, k8sselection.Equals, []string{v}, path.Child("matchLabels")) {
			parts = append(parts, labels.In(k, v))
		}
	}
	for i := range s.MatchExpressions {
		e, at := &s.MatchExpressions[i], path.Child("matchExpressions").Index(i)
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			if r.valid(e.Key, k8sselection.In, e.Values, at) {
				parts = append(parts, labels.In(e.Key, e.Values...))
			}
		case metav1.LabelSelectorOpNotIn:
			if r.valid(e.Key, k8sselection.NotIn, e.Values, at) {
				parts = append(parts, labels.NotIn(e.Key, e.Values...))
			}
		case metav1.LabelSelectorOpExists:
			if r.valid(e.Key, k8sselection.Exists, e.Values, at) {
				parts = append(parts, labels.Has(e.Key))
			}
		case metav1.LabelSelectorOpDoesNotExist:
			if r.valid(e.Key, k8sselection.DoesNotExist, e.Values, at) {
				parts = append(parts, labels.Lacks(e.Key))
			}
		default:
			r.invalid(at.Child("operator"), e.Operator, "is none of In, NotIn, Exists, DoesNotExist")
		}
	}
	return labels.And(parts...)
}

// valid holds keys and values to the same rules as the API server, and thereby to the grammar of labels.
func (r *reader) valid(key string, op k8sselection.Operator, values []string, path *field.Path) bool {
	if _, err := k8slabels.NewRequirement(key, op, values); err != nil {
		r.invalid(path, key, "%s", err)
		return false
	}
	return true
}
