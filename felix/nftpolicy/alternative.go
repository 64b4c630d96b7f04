// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/heliograph-dev/heliograph/policy"
)

// protocols is a set of IP protocols, one bit each.
type protocols [4]uint64

func everyProtocol() protocols {
	all := ^uint64(0)
	return protocols{all, all, all, all}
}

func only(list ...policy.Protocol) protocols {
	var s protocols
	for _, p := range list {
		s[p/64] |= 1 << (p % 64)
	}
	return s
}

func withPorts() protocols { return only(policy.TCP, policy.UDP, policy.SCTP, policy.UDPLite) }

func (s protocols) and(o protocols) protocols {
	for i := range s {
		s[i] &= o[i]
	}
	return s
}

func (s protocols) not() protocols {
	for i := range s {
		s[i] = ^s[i]
	}
	return s
}

func (s protocols) list() (out []byte) {
	for p := range 256 {
		if s[p/64]>>(p%64)&1 == 1 {
			out = append(out, byte(p))
		}
	}
	return out
}

// alternative is a conjunction: what one rule of the kernel can ask.
type alternative struct {
	protocols protocols
	addresses []Condition
	transport []Condition // looked at when the protocol is known to be one of protocols
}

func (a alternative) and(b alternative) (alternative, bool) {
	out := alternative{
		protocols: a.protocols.and(b.protocols),
		addresses: slices.Concat(a.addresses, b.addresses),
		transport: slices.Concat(a.transport, b.transport),
	}
	return out, out.protocols != protocols{}
}

// always is the condition that all packets fulfil.
func always() []alternative { return []alternative{{protocols: everyProtocol()}} }

// maxAlternatives bounds what one rule may become. Nobody writes such a rule by hand: 64 selectors to
// 64 others.
const maxAlternatives = 4096

// tooComplex is why a policy is refused that the kernel was not even asked for.
type tooComplex struct {
	rule policy.RuleID
	err  error
}

func (e *tooComplex) Error() string { return fmt.Sprintf("render %s: %v", e.rule, e.err) }
func (e *tooComplex) Unwrap() error { return e.err }

// product are the alternatives of all conditions at once. Without any no packet fulfils them.
func product(factors ...[]alternative) ([]alternative, error) {
	out := always()
	for _, f := range factors {
		if len(out)*len(f) > maxAlternatives {
			return nil, fmt.Errorf("a rule has more than %d combinations of conditions", maxAlternatives)
		}
		var next []alternative
		for _, a := range out {
			for _, b := range f {
				if c, ok := a.and(b); ok {
					next = append(next, c)
				}
			}
		}
		out = next
	}
	return out, nil
}

// matcher turns a rule's match into alternatives, and notes which sets they need.
type matcher struct {
	family policy.Family // the one looked at; AnyFamily where no address is
	rule   policy.RuleID
	sets   resolver
	out    *rendering
}

// resolver says which of the kernel's sets holds a set's members of a family, and by which tag; false if
// there is no such set.
type resolver interface {
	resolve(id policy.SetID, k policy.SetKind, f policy.Family) (name, tag string, ok bool)
}

// conditions returns the rule's conditions for the kernel, one list per alternative.
func (r *rendering) conditions(rule *policy.Rule, sets resolver) ([][]Condition, error) {
	families := []policy.Family{rule.Match.Family}
	if rule.Match.Family == policy.AnyFamily && needsFamily(&rule.Match) {
		families = []policy.Family{policy.IPv4, policy.IPv6}
	}
	r.note(&rule.Match)
	var out [][]Condition
	for _, f := range families {
		m := matcher{f, rule.ID, sets, r}
		alternatives, err := m.match(&rule.Match)
		if err != nil {
			return nil, &tooComplex{rule.ID, err}
		}
		for _, a := range alternatives {
			out = append(out, m.write(a))
		}
	}
	return out, nil
}

// needsFamily says whether a match has conditions which the kernel has to be asked per family.
func needsFamily(m *policy.Match) bool {
	named := func(t policy.Transport) bool { return len(t.SourcePorts.Named)+len(t.DestinationPorts.Named) > 0 }
	return !m.Source.Any() || !m.Destination.Any() ||
		slices.ContainsFunc(m.Transport, named) || slices.ContainsFunc(m.NotTransport, named)
}

func (m *matcher) match(match *policy.Match) ([]alternative, error) {
	factors := append(m.peer(match.Source, source), m.peer(match.Destination, destination)...)
	if len(match.Transport) > 0 {
		var f []alternative
		for _, t := range merged(match.Transport) {
			f = append(f, m.transport(t)...)
		}
		factors = append(factors, f)
	}
	for _, t := range match.NotTransport {
		factors = append(factors, m.notTransport(t))
	}
	return product(factors...)
}

// write puts an alternative into the kernel's order: the family before addresses, the protocol before
// what is behind its header.
func (m *matcher) write(a alternative) []Condition {
	var out []Condition
	if m.family != policy.AnyFamily {
		out = append(out, familyIs(m.family))
	}
	out = append(out, a.addresses...)
	if c, ok := m.protocol(a.protocols); ok {
		out = append(out, c)
	}
	return append(out, a.transport...)
}

func (m *matcher) protocol(s protocols) (Condition, bool) {
	if s == everyProtocol() {
		return Condition{}, false
	}
	list, is, in := s.list(), Equal, In
	if len(list) > 128 {
		list, is, in = s.not().list(), NotEqual, NotIn
	}
	if len(list) == 1 {
		return Condition{Field: Protocol, Op: is, Value: string(list)}, true
	}
	elements := make([]Element, len(list))
	for i, p := range list {
		elements[i].Key = string([]byte{p})
	}
	return Condition{Field: Protocol, Op: in, Set: m.out.constant(ProtocolNumber, false, elements)}, true
}

// merged joins transports that differ in destination ports alone, so that they become one lookup.
func merged(list []policy.Transport) []policy.Transport {
	var out []policy.Transport
	at := map[policy.Protocol]int{}
	for _, t := range list {
		if !t.SourcePorts.Any() || t.ICMP != (policy.ICMPMatch{}) {
			out = append(out, t)
			continue
		}
		i, ok := at[t.Protocol]
		if !ok {
			at[t.Protocol] = len(out)
			out = append(out, t)
			continue
		}
		p := &out[i].DestinationPorts
		if p.Any() || t.DestinationPorts.Any() {
			*p = policy.Ports{}
			continue
		}
		p.Ranges = slices.Concat(p.Ranges, t.DestinationPorts.Ranges)
		p.Named = slices.Concat(p.Named, t.DestinationPorts.Named)
	}
	return out
}

// carriers are the protocols that can fulfil the conditions of a transport.
func carriers(t policy.Transport) protocols {
	s := everyProtocol()
	if t.Protocol != policy.AnyProtocol {
		s = only(t.Protocol)
	}
	if !t.SourcePorts.Any() || !t.DestinationPorts.Any() {
		s = s.and(withPorts())
	}
	if t.ICMP.HasType || t.ICMP.HasCode {
		s = s.and(only(policy.ICMP, policy.ICMPv6))
	}
	return s
}

// transport are the alternatives of one transport.
func (m *matcher) transport(t policy.Transport) []alternative {
	whole := alternative{protocols: carriers(t), transport: icmp(t.ICMP, Equal)}
	if whole.protocols == (protocols{}) {
		return nil
	}
	var out []alternative
	for _, s := range m.ports(t.SourcePorts, source) {
		for _, d := range m.ports(t.DestinationPorts, destination) {
			a := whole
			a.transport = slices.Concat(s, d, a.transport)
			out = append(out, a)
		}
	}
	return out
}

// notTransport are the alternatives of which one holds where a transport does not: another protocol, or
// that protocol and something else in its header.
func (m *matcher) notTransport(t policy.Transport) []alternative {
	carriers := carriers(t)
	var out []alternative
	if others := carriers.not(); others != (protocols{}) {
		out = append(out, alternative{protocols: others})
	}
	for _, e := range []struct {
		ports policy.Ports
		end   end
	}{{t.SourcePorts, source}, {t.DestinationPorts, destination}} {
		if m.missing(e.ports) {
			return nil
		}
		if conditions, ok := m.notPorts(e.ports, e.end); ok {
			out = append(out, alternative{protocols: carriers, transport: conditions})
		}
	}
	for _, c := range icmp(t.ICMP, NotEqual) {
		out = append(out, alternative{protocols: carriers, transport: []Condition{c}})
	}
	return out
}

func icmp(m policy.ICMPMatch, op Operator) (out []Condition) {
	if m.HasType {
		out = append(out, Condition{Field: ICMPType, Op: op, Value: string([]byte{m.Type})})
	}
	if m.HasCode {
		out = append(out, Condition{Field: ICMPCode, Op: op, Value: string([]byte{m.Code})})
	}
	return out
}

// end is which of a packet's ends is looked at.
type end uint8

const (
	source end = iota
	destination
)

func (e end) String() string {
	if e == source {
		return "source"
	}
	return "destination"
}

func (e end) port() Field { return [...]Field{SourcePort, DestinationPort}[e] }

func (e end) address(f policy.Family) Field {
	if f == policy.IPv4 {
		return [...]Field{Source4, Destination4}[e]
	}
	return [...]Field{Source6, Destination6}[e]
}

func (e end) service(f policy.Family) Field {
	if f == policy.IPv4 {
		return [...]Field{SourceService4, DestinationService4}[e]
	}
	return [...]Field{SourceService6, DestinationService6}[e]
}

// ports are the alternatives that ports leave, each as conditions that must all hold.
func (m *matcher) ports(p policy.Ports, e end) [][]Condition {
	if p.Any() {
		return [][]Condition{nil}
	}
	var out [][]Condition
	if ranges := mergedRanges(p.Ranges); len(ranges) > 0 {
		if c, ok := m.portsIn(ranges, e, false); ok {
			out = append(out, []Condition{c})
		} else {
			out = append(out, nil) // every port
		}
	}
	for _, id := range p.Named {
		if c, ok := m.in(id, policy.AddressPortSet, e.service(m.family), In); ok {
			out = append(out, []Condition{c})
		}
	}
	return out
}

// notPorts are the conditions under which a port is none of these; false if there is no such port.
func (m *matcher) notPorts(p policy.Ports, e end) ([]Condition, bool) {
	if p.Any() {
		return nil, false
	}
	var out []Condition
	if ranges := mergedRanges(p.Ranges); len(ranges) > 0 {
		c, ok := m.portsIn(ranges, e, true)
		if !ok {
			return nil, false
		}
		out = append(out, c)
	}
	for _, id := range p.Named {
		c, _ := m.in(id, policy.AddressPortSet, e.service(m.family), NotIn)
		out = append(out, c)
	}
	return out, true
}

func (m *matcher) missing(p policy.Ports) bool {
	return slices.ContainsFunc(p.Named, func(id policy.SetID) bool {
		_, ok := m.in(id, policy.AddressPortSet, DestinationPort, In)
		return !ok
	})
}

// in is a lookup in a set; false if there is none.
func (m *matcher) in(id policy.SetID, k policy.SetKind, f Field, op Operator) (Condition, bool) {
	name, tag, ok := m.sets.resolve(id, k, m.family)
	return Condition{Field: f, Op: op, Set: name, Tag: tag}, ok
}

// portsIn is a condition that a port is in one of the ranges, or in none; false if they hold every port.
func (m *matcher) portsIn(ranges []policy.PortRange, e end, not bool) (Condition, bool) {
	pick := func(is, isNot Operator) Operator {
		if not {
			return isNot
		}
		return is
	}
	first, last := ranges[0].First, ranges[0].Last
	switch {
	case first == 0 && last == 65535:
		return Condition{}, false
	case len(ranges) > 1:
		elements, interval := portElements(ranges)
		return Condition{Field: e.port(), Op: pick(In, NotIn), Set: m.out.constant(Port, interval, elements)}, true
	case first == last:
		return Condition{Field: e.port(), Op: pick(Equal, NotEqual), Value: number(first)}, true
	}
	return Condition{Field: e.port(), Op: pick(Within, NotWithin), Value: number(first), Last: number(last)}, true
}

func portElements(ranges []policy.PortRange) (elements []Element, interval bool) {
	interval = slices.ContainsFunc(ranges, func(r policy.PortRange) bool { return r.First != r.Last })
	for _, r := range ranges {
		e := Element{Key: number(r.First)}
		if interval {
			e.Last = number(r.Last)
		}
		elements = append(elements, e)
	}
	return elements, interval
}

func number(port uint16) string { return string(binary.BigEndian.AppendUint16(nil, port)) }

// mergedRanges are the same ports in ranges that neither overlap nor touch, in order.
func mergedRanges(ranges []policy.PortRange) []policy.PortRange {
	sorted := slices.DeleteFunc(slices.Clone(ranges), func(r policy.PortRange) bool { return r.First > r.Last })
	slices.SortFunc(sorted, func(a, b policy.PortRange) int { return int(a.First) - int(b.First) })
	var out []policy.PortRange
	for _, r := range sorted {
		if n := len(out) - 1; n >= 0 && int(r.First) <= int(out[n].Last)+1 {
			out[n].Last = max(out[n].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}

func familyIs(f policy.Family) Condition {
	const ipv4, ipv6 = 2, 10 // NFPROTO_IPV4, NFPROTO_IPV6
	value := byte(ipv4)
	if f == policy.IPv6 {
		value = ipv6
	}
	return Condition{Field: Family, Op: Equal, Value: string([]byte{value})}
}
