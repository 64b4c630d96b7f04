// SPDX-License-Identifier: Apache-2.0

package eval

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/policy"
)

// Condition is a part of a rule's match.
type Condition uint8

// Conditions, in the order in which they are looked at.
const (
	NoCondition Condition = iota // the rule matches
	FamilyCondition
	SourceCondition
	DestinationCondition
	ProtocolCondition
	SourcePortCondition
	DestinationPortCondition
	ICMPCondition
	NotTransportCondition
)

// String is what the condition is on.
func (c Condition) String() string {
	names := []string{
		"none", "family", "source", "destination", "protocol", "source port", "destination port", "ICMP", "excluded protocol or port",
	}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("%d", uint8(c))
}

// Difference is the first condition of a rule that a packet does not fulfil.
type Difference struct {
	Condition Condition `json:"condition"`
	Want      string    `json:"want"` // of the rule, in short
	Got       string    `json:"got"`  // of the packet
}

// MarshalText is for JSON.
func (c Condition) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// String is "destination port: got 443, want 80 or 8080-8090".
func (d Difference) String() string {
	return fmt.Sprintf("%s: got %s, want %s", d.Condition, d.Got, d.Want)
}

// match returns the first condition that differs; the zero Difference if none does.
func (e *Evaluator) match(m *policy.Match, p Packet) Difference {
	if m.Family != policy.AnyFamily && m.Family != policy.FamilyOf(p.Dst) {
		return Difference{FamilyCondition, m.Family.String(), policy.FamilyOf(p.Dst).String()}
	}
	if want, ok := e.peer(m.Source, p.Src); !ok {
		return Difference{SourceCondition, want, p.Src.String()}
	}
	if want, ok := e.peer(m.Destination, p.Dst); !ok {
		return Difference{DestinationCondition, want, p.Dst.String()}
	}
	if d := e.transports(m.Transport, p); d.Condition != NoCondition {
		return d
	}
	for _, t := range m.NotTransport {
		// A set that is missing fulfils no condition, so it does not exclude what else is allowed:
		// the rule as a whole does not match.
		if e.missing(t) || e.transport(t, p).Condition == NoCondition {
			return Difference{NotTransportCondition, "not " + describe(t), got(p)}
		}
	}
	return Difference{}
}

// peer returns what is wanted in vain.
func (e *Evaluator) peer(p policy.Peer, ip netip.Addr) (want string, ok bool) {
	for _, a := range p.Within {
		if found, _ := e.holds(a, ip); !found {
			return e.describeAddresses(a), false
		}
	}
	if p.Outside.Empty() {
		return "", true
	}
	found, missing := e.holds(p.Outside, ip)
	return "not " + e.describeAddresses(p.Outside), !found && missing == ""
}

// transports returns the difference of the alternative that comes closest.
func (e *Evaluator) transports(list []policy.Transport, p Packet) Difference {
	var closest Difference
	var wants []string
	for _, t := range list {
		d := e.transport(t, p)
		if d.Condition == NoCondition {
			return d
		}
		if d.Condition > closest.Condition {
			closest, wants = d, nil
		}
		if d.Condition == closest.Condition {
			wants = append(wants, d.Want)
		}
	}
	closest.Want = strings.Join(wants, " or ")
	return closest
}

func (e *Evaluator) transport(t policy.Transport, p Packet) Difference {
	if t.Protocol != policy.AnyProtocol && t.Protocol != p.Protocol {
		return Difference{ProtocolCondition, t.Protocol.String(), p.Protocol.String()}
	}
	if !e.port(t.SourcePorts, p.Protocol, p.Src, p.SrcPort) {
		return Difference{SourcePortCondition, describePorts(t.SourcePorts), fmt.Sprint(p.SrcPort)}
	}
	if !e.port(t.DestinationPorts, p.Protocol, p.Dst, p.DstPort) {
		return Difference{DestinationPortCondition, describePorts(t.DestinationPorts), fmt.Sprint(p.DstPort)}
	}
	if (t.ICMP.HasType || t.ICMP.HasCode) && !icmp(t.ICMP, p) {
		return Difference{ICMPCondition, describeICMP(t.ICMP), got(p)}
	}
	return Difference{}
}

func (e *Evaluator) port(ports policy.Ports, protocol policy.Protocol, ip netip.Addr, port uint16) bool {
	if ports.Any() {
		return true
	}
	if !protocol.HasPorts() {
		return false
	}
	if slices.ContainsFunc(ports.Ranges, func(r policy.PortRange) bool { return r.Contains(port) }) {
		return true
	}
	return slices.ContainsFunc(ports.Named, func(id policy.SetID) bool {
		s := e.state.Sets[id]
		return s != nil && e.contains(s, ip, protocol, port)
	})
}

func (e *Evaluator) missing(t policy.Transport) bool {
	absent := func(id policy.SetID) bool { return e.state.Sets[id] == nil }
	return slices.ContainsFunc(t.SourcePorts.Named, absent) || slices.ContainsFunc(t.DestinationPorts.Named, absent)
}

func icmp(m policy.ICMPMatch, p Packet) bool {
	if p.Protocol != policy.ICMP && p.Protocol != policy.ICMPv6 {
		return false
	}
	return (!m.HasType || m.Type == p.ICMPType) && (!m.HasCode || m.Code == p.ICMPCode)
}

// got is a packet's transport.
func got(p Packet) string {
	switch {
	case p.Protocol.HasPorts():
		return fmt.Sprintf("%s %d to %d", p.Protocol, p.SrcPort, p.DstPort)
	case p.Protocol == policy.ICMP || p.Protocol == policy.ICMPv6:
		return fmt.Sprintf("%s type %d code %d", p.Protocol, p.ICMPType, p.ICMPCode)
	}
	return p.Protocol.String()
}

// few bounds what a rule with 10,000 networks would print.
const few = 4

func join(list []string) string {
	switch {
	case len(list) == 0:
		return "nothing"
	case len(list) > few:
		return fmt.Sprintf("%s or %d more", strings.Join(list[:few], " or "), len(list)-few)
	}
	return strings.Join(list, " or ")
}

func (e *Evaluator) describeAddresses(a policy.Addresses) string {
	list := make([]string, 0, min(len(a.Sets)+len(a.Nets), few+1))
	for _, id := range a.Sets {
		s := e.state.Sets[id]
		if _, ok := id.Domain(); ok && s != nil && len(s.Members) == 0 {
			// Whoever explains from the API's objects alone does not know what DNS has said.
			list = append(list, string(id)+" (whose addresses only the pod's node knows, from answers of DNS)")
		} else if s == nil {
			list = append(list, string(id)+" (which does not exist)")
		} else if len(s.Members) == 0 {
			list = append(list, string(id)+" (which is empty)")
		} else {
			list = append(list, string(id))
		}
	}
	for _, n := range a.Nets {
		list = append(list, n.String())
	}
	return join(list)
}

func describePorts(p policy.Ports) string {
	var list []string
	for _, r := range p.Ranges {
		list = append(list, r.String())
	}
	for _, id := range p.Named {
		list = append(list, string(id))
	}
	return join(list)
}

func describeICMP(m policy.ICMPMatch) string {
	switch {
	case m.HasType && m.HasCode:
		return fmt.Sprintf("type %d code %d", m.Type, m.Code)
	case m.HasType:
		return fmt.Sprintf("type %d", m.Type)
	}
	return fmt.Sprintf("code %d", m.Code)
}

func describe(t policy.Transport) string {
	text := t.Protocol.String()
	if !t.SourcePorts.Any() {
		text += " from port " + describePorts(t.SourcePorts)
	}
	if !t.DestinationPorts.Any() {
		text += " to port " + describePorts(t.DestinationPorts)
	}
	if t.ICMP.HasType || t.ICMP.HasCode {
		text += " " + describeICMP(t.ICMP)
	}
	return text
}
