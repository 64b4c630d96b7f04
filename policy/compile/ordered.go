// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"errors"
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/labels"
	"github.com/heliograph-dev/heliograph/policy"
)

// translateOrdered reads a policy of ours, of a namespace or, if id has none, of the cluster.
func translateOrdered(id policy.PolicyID, spec *v1alpha1.PolicySpec, namespaces v1alpha1.Selector) translation {
	path := field.NewPath("spec")
	r := &reader{id: id}
	t := translation{
		policy: &policy.Policy{ID: id, Audit: spec.Enforcement == v1alpha1.Audit}, tier: spec.Tier, order: orderOf(spec.Order),
		sets: map[policy.SetID]setSpec{},
	}
	t.subject = r.orderedSubject(spec, namespaces, path)
	t.applies = r.types(spec, path.Child("types"))
	switch t.tier {
	case "":
		t.tier = policy.DefaultTier
	case policy.AdminTier, policy.BaselineTier:
		r.errs = append(r.errs, field.Forbidden(path.Child("tier"), "it is a tier of ClusterNetworkPolicies"))
		t.tier = policy.DefaultTier
	}
	r.subject = t.subject
	common := r.take()
	t.note(common)
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		if !t.applies[d] {
			continue
		}
		rules, at := spec.Ingress, path.Child("ingress")
		if d == policy.Egress {
			rules, at = spec.Egress, path.Child("egress")
		}
		list := t.ordered(r, d, rules, at)
		if len(common) > 0 {
			list = []policy.Rule{denyAll(id, d, 0)}
		}
		t.put(d, list)
	}
	if len(common) > 0 {
		t.sets, t.services = map[policy.SetID]setSpec{}, nil
	}
	return t
}

func (t *translation) put(d policy.Direction, rules []policy.Rule) {
	if d == policy.Egress {
		t.policy.Egress = rules
	} else {
		t.policy.Ingress = rules
	}
}

// denyAll stands where a rule cannot be read. The rule could have denied, or passed by what denies: so
// nothing that reaches it gets any further, neither to the rules after it nor to the policies.
func denyAll(id policy.PolicyID, d policy.Direction, index int) policy.Rule {
	return policy.Rule{ID: policy.RuleID{Policy: id, Direction: d, Index: index}, Action: policy.Deny}
}

// ordered reads the rules of a direction, up to the first that cannot be read.
func (t *translation) ordered(r *reader, d policy.Direction, rules []v1alpha1.Rule, path *field.Path) []policy.Rule {
	var list []policy.Rule
	for i := range rules {
		at := path.Index(i)
		rule := policy.Rule{ID: policy.RuleID{Policy: r.id, Direction: d, Index: i}, Match: r.match(d, &rules[i], at)}
		rule.Action = r.action(rules[i].Action, at.Child("action"))
		if !t.accept(r) {
			return append(list, denyAll(r.id, d, i))
		}
		list = append(list, rule)
	}
	return list
}

// accept takes over what the reader found in a rule, unless there are mistakes.
func (t *translation) accept(r *reader) bool {
	sets, services := r.sets, r.services // before take clears them
	errs := r.take()
	t.note(errs)
	if len(errs) > 0 {
		return false
	}
	maps.Copy(t.sets, sets)
	t.services = append(t.services, services...)
	return true
}

// orderedSubject leaves out what cannot be read, and so rather selects more: all of it is closed.
func (r *reader) orderedSubject(spec *v1alpha1.PolicySpec, namespaces v1alpha1.Selector, path *field.Path) selector {
	s := selector{kinds: pods, own: true}
	if r.id.Namespace != "" {
		r.home = labels.In(nameLabel, r.id.Namespace)
		s.namespaces = r.home
	} else {
		before := len(r.errs)
		s.namespaces = r.parse(string(namespaces), path.Child("namespaceSelector"), labels.ParseNamespaces)
		// Hosts are in no namespace, and run as nobody. Who meant pods, and miswrote of which, closes none.
		if len(r.errs) == before && spec.ServiceAccountSelector == "" {
			s.kinds |= hosts
		}
	}
	s.labels = r.parse(string(spec.Selector), path.Child("selector"), labels.Parse)
	s.accounts = r.parse(string(spec.ServiceAccountSelector), path.Child("serviceAccountSelector"), labels.Parse)
	s.byAccount = spec.ServiceAccountSelector != ""
	return s
}

func (r *reader) parse(text string, path *field.Path, parse func(string) (labels.Selector, error)) labels.Selector {
	s, err := parse(text)
	if err != nil {
		r.invalid(path, text, "%s", err)
	}
	return s
}

// types fills in the default: Ingress, unless there are egress rules only, and Egress, if there are any.
func (r *reader) types(spec *v1alpha1.PolicySpec, path *field.Path) [2]bool {
	if len(spec.Types) == 0 {
		egress := len(spec.Egress) > 0
		return [2]bool{policy.Ingress: len(spec.Ingress) > 0 || !egress, policy.Egress: egress}
	}
	var applies [2]bool
	for i, t := range spec.Types {
		switch t {
		case v1alpha1.PolicyTypeIngress:
			applies[policy.Ingress] = true
		case v1alpha1.PolicyTypeEgress:
			applies[policy.Egress] = true
		default:
			r.invalid(path.Index(i), t, "is neither Ingress nor Egress; both are closed")
			applies = [2]bool{true, true}
		}
	}
	return applies
}

func (r *reader) action(a v1alpha1.RuleAction, path *field.Path) policy.Action {
	switch a {
	case v1alpha1.RuleAllow:
		return policy.Allow
	case v1alpha1.RuleDeny:
		return policy.Deny
	case v1alpha1.RulePass:
		return policy.Pass
	case v1alpha1.RuleLog:
		return policy.Log
	}
	r.invalid(path, a, "is none of Allow, Deny, Pass, Log")
	return policy.NoAction
}

func (r *reader) match(d policy.Direction, rule *v1alpha1.Rule, path *field.Path) policy.Match {
	source, destination := path.Child("source"), path.Child("destination")
	var m policy.Match
	var owners [2]selector
	m.Source, owners[0] = r.end(&rule.Source, d == policy.Egress, source)
	m.Destination, owners[1] = r.end(&rule.Destination, d == policy.Ingress, destination)
	m.Family = r.family(rule.IPVersion, path.Child("ipVersion"))
	t := policy.Transport{Protocol: r.protocol(rule.Protocol, path.Child("protocol"))}
	t.ICMP = r.icmp(rule.ICMP, t.Protocol, path.Child("icmp"))
	t.SourcePorts = r.portList(rule.Source.Ports, t.Protocol, owners[0], source.Child("ports"))
	t.DestinationPorts = r.portList(rule.Destination.Ports, t.Protocol, owners[1], destination.Child("ports"))
	r.service(d, rule, &m, &t, path)
	r.domains(d, rule, &m, path)
	if !t.Equal(policy.Transport{}) {
		m.Transport = []policy.Transport{t}
	}
	m.NotTransport = r.not(rule, t.Protocol, owners, path)
	if of := familyOfProtocol(t.Protocol); of != policy.AnyFamily && m.Family != policy.AnyFamily && of != m.Family {
		r.invalid(path.Child("ipVersion"), int(m.Family), "%s is of %s", t.Protocol, of)
	}
	return m
}

// not collects what must not match, each by itself. Ports and types of ICMP need a protocol in the rule, so
// to exclude them of that protocol is to exclude them.
func (r *reader) not(rule *v1alpha1.Rule, protocol policy.Protocol, owners [2]selector, path *field.Path) []policy.Transport {
	var list []policy.Transport
	if p := r.protocol(rule.NotProtocol, path.Child("notProtocol")); p != policy.AnyProtocol {
		list = append(list, policy.Transport{Protocol: p})
	}
	if icmp := r.icmp(rule.NotICMP, protocol, path.Child("notICMP")); icmp != (policy.ICMPMatch{}) {
		list = append(list, policy.Transport{Protocol: protocol, ICMP: icmp})
	}
	if p := r.portList(rule.Source.NotPorts, protocol, owners[0], path.Child("source", "notPorts")); !p.Any() {
		list = append(list, policy.Transport{Protocol: protocol, SourcePorts: p})
	}
	if p := r.portList(rule.Destination.NotPorts, protocol, owners[1], path.Child("destination", "notPorts")); !p.Any() {
		list = append(list, policy.Transport{Protocol: protocol, DestinationPorts: p})
	}
	return list
}

// end reads the conditions on an address, and tells whose ports a name is looked up among: those of the
// pods that the conditions select; without any, at the policy's own end, those of its subject.
func (r *reader) end(e *v1alpha1.EntityRule, own bool, path *field.Path) (policy.Peer, selector) {
	var p policy.Peer
	owner := selector{kinds: r.withPorts()}
	if own {
		owner = r.subject
	}
	if s, given := r.entities(e, path); given {
		p.Within = append(p.Within, policy.Addresses{Sets: []policy.SetID{r.set(setSpec{selector: s})}})
		s.kinds, s.own = r.withPorts(), own
		owner = s
	}
	if len(e.Nets) > 0 {
		p.Within = append(p.Within, policy.Addresses{Nets: r.nets(e.Nets, path.Child("nets"))})
	}
	if e.NotSelector != "" {
		s := selector{kinds: pods | networkSets | hosts, labels: r.parse(e.NotSelector, path.Child("notSelector"), labels.Parse)}
		p.Outside.Sets = []policy.SetID{r.set(setSpec{selector: s})}
	}
	p.Outside.Nets = r.nets(e.NotNets, path.Child("notNets"))
	return p, owner
}

// withPorts are the kinds of what has named ports.
func (r *reader) withPorts() kinds {
	if r.id.Namespace == "" {
		return pods | hosts
	}
	return pods
}

// entities reads the selectors of one end. In a policy of a namespace any of them, be it the negated one,
// limits the end to that namespace, unless namespaces are selected.
func (r *reader) entities(e *v1alpha1.EntityRule, path *field.Path) (s selector, given bool) {
	s = selector{kinds: pods | networkSets | hosts, labels: r.parse(e.Selector, path.Child("selector"), labels.Parse)}
	given = e.Selector != "" || e.NamespaceSelector != ""
	if a := e.ServiceAccounts; a != nil && (len(a.Names) > 0 || a.Selector != "") {
		// Network sets run as nobody.
		s.kinds, s.byAccount, given = pods, true, true
		s.accounts = r.accounts(a, path.Child("serviceAccounts"))
	}
	if e.NamespaceSelector != "" {
		s.namespaces = r.parse(e.NamespaceSelector, path.Child("namespaceSelector"), labels.ParseNamespaces)
	} else if r.id.Namespace != "" {
		s.namespaces = r.home
		given = given || e.NotSelector != ""
	}
	return s, given
}

func (r *reader) accounts(a *v1alpha1.ServiceAccountMatch, path *field.Path) labels.Selector {
	s := r.parse(a.Selector, path.Child("selector"), labels.Parse)
	if len(a.Names) > 0 {
		return labels.And(labels.In(nameLabel, a.Names...), s)
	}
	return s
}

func (r *reader) nets(texts []string, path *field.Path) []policy.Net {
	var list []policy.Net
	for i, text := range texts {
		p, err := parseNet(text)
		if err != nil {
			r.invalid(path.Index(i), text, "%s", err)
			continue
		}
		list = append(list, policy.Net{CIDR: p})
	}
	return list
}

// parseNet reads a network, or an address.
func parseNet(text string) (netip.Prefix, error) {
	if p, err := parseCIDR(text); err == nil {
		return p, nil
	}
	if p := appendIP(nil, text); len(p) == 1 {
		return p[0], nil
	}
	return netip.Prefix{}, errors.New("is neither a network nor an address")
}

// readNetworkSet leaves out what is no network; the API server lets none pass.
func readNetworkSet(labels map[string]string, spec *v1alpha1.NetworkSetSpec) facts {
	f := facts{labels: labels}
	for _, text := range spec.Nets {
		if p, err := parseNet(text); err == nil {
			f.prefixes = append(f.prefixes, p)
		}
	}
	slices.SortFunc(f.prefixes, netip.Prefix.Compare)
	f.prefixes = slices.Compact(f.prefixes)
	return f
}

// service reads a service as an end of a packet. As a destination it is addresses with ports; from where
// its endpoints send, no service says.
func (r *reader) service(d policy.Direction, rule *v1alpha1.Rule, m *policy.Match, t *policy.Transport, path *field.Path) {
	if s := rule.Source.Services; s != nil {
		at := path.Child("source", "services")
		if d != policy.Ingress {
			r.errs = append(r.errs, field.Forbidden(at, "the source of an egress rule is the policy's own pods"))
		}
		r.alone(&rule.Source, at)
		id := r.serviceID(s, at)
		m.Source.Within = append(m.Source.Within, policy.Addresses{Sets: []policy.SetID{r.set(setSpec{selector: endpointsOf(id)})}})
	}
	if s := rule.Destination.Services; s != nil {
		at := path.Child("destination", "services")
		if d != policy.Egress {
			r.errs = append(r.errs, field.Forbidden(at, "the destination of an ingress rule is the policy's own pods"))
		}
		r.alone(&rule.Destination, at)
		id := r.serviceID(s, at)
		t.DestinationPorts.Named = append(t.DestinationPorts.Named, r.set(setSpec{selector: endpointsOf(id), withPorts: true}))
	}
}

// domains reads names, which only let through: what denied, passed or logged by them would not where DNS has
// not told (yet).
func (r *reader) domains(d policy.Direction, rule *v1alpha1.Rule, m *policy.Match, path *field.Path) {
	if len(rule.Source.Domains) > 0 {
		r.errs = append(r.errs, field.Forbidden(path.Child("source", "domains"), "only destinations have names of domains"))
	}
	e, at := &rule.Destination, path.Child("destination", "domains")
	if len(e.Domains) == 0 {
		return
	}
	if d != policy.Egress || rule.Action != v1alpha1.RuleAllow {
		r.errs = append(r.errs, field.Forbidden(at, "only egress rules that allow have names of domains"))
	}
	if e.Services != nil || saysWho(e) {
		r.errs = append(r.errs, field.Forbidden(at, "names of domains exclude all other conditions on the same end but ports"))
	}
	var named policy.Addresses
	for i, name := range e.Domains {
		named.Sets = append(named.Sets, r.domain(name, at.Index(i))...)
	}
	named.Sets = distinct(named.Sets)
	m.Destination.Within = append(m.Destination.Within, named)
}

// alone refuses conditions beside a service: its endpoints and other ports would be alternatives.
func (r *reader) alone(e *v1alpha1.EntityRule, path *field.Path) {
	if saysWho(e) || len(e.Ports)+len(e.NotPorts) > 0 {
		r.errs = append(r.errs, field.Forbidden(path, "a service excludes all other conditions on the same end"))
	}
}

// saysWho says whether an end has conditions on whose address it is, other than a service and names.
func saysWho(e *v1alpha1.EntityRule) bool {
	return e.Selector != "" || e.NotSelector != "" || e.NamespaceSelector != "" || e.ServiceAccounts != nil || len(e.Nets)+len(e.NotNets) > 0
}

func (r *reader) serviceID(s *v1alpha1.ServiceMatch, path *field.Path) policy.EndpointID {
	id := policy.EndpointID{Namespace: s.Namespace, Name: s.Name}
	if id.Namespace == "" {
		id.Namespace = r.id.Namespace
	}
	if id.Name == "" {
		r.errs = append(r.errs, field.Required(path.Child("name"), "a service has a name"))
	}
	if id.Namespace == "" {
		r.errs = append(r.errs, field.Required(path.Child("namespace"), "a policy of the cluster has no namespace of its own"))
	}
	r.services = append(r.services, serviceRef{id: id, field: path.String()})
	return id
}
