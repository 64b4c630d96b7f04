// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/heliograph-dev/heliograph/policy"
)

// match is a policy.Match in one family, as far as one line of iptables can say it, and the rest.
type match struct {
	never bool
	all   []string   // conditions that one line has together
	any   [][]string // of each list one must hold
	not   []string   // none may hold
	nets  map[string][]netip.Prefix
}

// matcher translates matches of one rule.
type matcher struct {
	kinds  map[policy.SetID]policy.SetKind // the sets that exist
	family policy.Family
	rule   policy.RuleID
}

// translate returns what a packet must fulfil.
func (c matcher) translate(m policy.Match) match {
	out := match{nets: map[string][]netip.Prefix{}}
	if m.Family != policy.AnyFamily && m.Family != c.family {
		return match{never: true}
	}
	c.peer(&out, m.Source, "src", "-s")
	c.peer(&out, m.Destination, "dst", "-d")
	if len(m.Transport) > 0 {
		var list []string
		for _, t := range m.Transport {
			list = append(list, c.transport(t)...)
		}
		out.oneOf(list)
	}
	for _, t := range m.NotTransport {
		list := c.transport(t)
		if c.missing(t.SourcePorts) || c.missing(t.DestinationPorts) || len(list) > 0 && list[0] == "" {
			out.never = true
		}
		out.not = append(out.not, list...)
	}
	if out.never {
		return match{never: true}
	}
	return out
}

// oneOf adds alternatives. An empty one is always fulfilled.
func (m *match) oneOf(list []string) {
	for _, one := range list {
		if one == "" {
			return
		}
	}
	switch len(list) {
	case 0:
		m.never = true
	case 1:
		m.all = append(m.all, list[0])
	default:
		m.any = append(m.any, list)
	}
}

// peer adds the conditions on one end. A line can have one network inline: it is the first list's.
func (c matcher) peer(m *match, p policy.Peer, side, flag string) {
	for i, a := range p.Within {
		list := c.sets(a.Sets, side, "")
		nets := prefixes(a.Nets, c.family)
		switch {
		case len(nets) > 0 && nets[0].Bits() == 0:
			continue
		case len(nets) == 1 && i == 0:
			list = append(list, flag+" "+nets[0].String())
		case len(nets) > 0:
			list = append(list, c.netSet(m, nets, side, fmt.Sprint(i), ""))
		}
		m.oneOf(list)
	}
	for _, id := range p.Outside.Sets {
		if _, exists := c.kinds[id]; !exists {
			m.never = true
		}
	}
	m.all = append(m.all, c.sets(p.Outside.Sets, side, "! ")...)
	nets := prefixes(p.Outside.Nets, c.family)
	if len(nets) > 0 && nets[0].Bits() == 0 {
		m.never = true
	} else if len(nets) > 0 {
		m.all = append(m.all, c.netSet(m, nets, side, "not", "! "))
	}
}

// sets are conditions on sets of addresses that exist. A set of another kind holds no address.
func (c matcher) sets(ids []policy.SetID, side, not string) []string {
	var list []string
	for _, id := range ids {
		if kind, exists := c.kinds[id]; exists && kind == policy.AddressSet {
			list = append(list, fmt.Sprintf("-m set %s--match-set %s %s", not, setName(id, kind, c.family), side))
		}
	}
	return list
}

func (c matcher) netSet(m *match, nets []netip.Prefix, side, where, not string) string {
	name := netsName(c.rule, side+" "+where, c.family)
	m.nets[name] = nets
	return fmt.Sprintf("-m set %s--match-set %s %s", not, name, side)
}

func (c matcher) missing(p policy.Ports) bool {
	for _, id := range p.Named {
		if _, exists := c.kinds[id]; !exists {
			return true
		}
	}
	return false
}

// transport returns alternatives, none of which may hold if nothing fulfils it.
func (c matcher) transport(t policy.Transport) []string {
	withPorts := !t.SourcePorts.Any() || !t.DestinationPorts.Any()
	if t.ICMP.HasType || t.ICMP.HasCode {
		if withPorts {
			return nil
		}
		return c.icmp(t)
	}
	if !withPorts {
		if t.Protocol == policy.AnyProtocol {
			return []string{""}
		}
		return []string{"-p " + protocol(t.Protocol)}
	}
	if t.Protocol != policy.AnyProtocol && !t.Protocol.HasPorts() {
		return nil
	}
	var out []string
	for _, s := range c.ports(t.SourcePorts, "src", "--sports") {
		for _, d := range c.ports(t.DestinationPorts, "dst", "--dports") {
			out = append(out, ofProtocol(t.Protocol, strings.TrimSpace(s+" "+d))...)
		}
	}
	return out
}

// ofProtocol adds the protocol. Sets of named ports know their members' protocols, ranges of ports need one.
func ofProtocol(p policy.Protocol, conditions string) []string {
	switch {
	case p != policy.AnyProtocol:
		return []string{"-p " + protocol(p) + " " + conditions}
	case !strings.Contains(conditions, "multiport"):
		return []string{conditions}
	}
	var out []string
	for _, p := range []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP, policy.UDPLite} {
		out = append(out, "-p "+protocol(p)+" "+conditions)
	}
	return out
}

// ports returns alternatives: one empty if every port will do.
func (c matcher) ports(p policy.Ports, side, flag string) []string {
	if p.Any() {
		return []string{""}
	}
	var out, list []string
	slots := 0
	flush := func() {
		if len(list) > 0 {
			out = append(out, "-m multiport "+flag+" "+strings.Join(list, ","))
			list, slots = nil, 0
		}
	}
	for _, r := range p.Ranges {
		const most = 15 // of multiport; a range counts twice
		if slots+2 > most {
			flush()
		}
		text := fmt.Sprint(r.First)
		if r.First != r.Last {
			text += fmt.Sprintf(":%d", r.Last)
		}
		if r.First <= r.Last {
			list, slots = append(list, text), slots+2
		}
	}
	flush()
	for _, id := range p.Named {
		if kind, exists := c.kinds[id]; exists && kind == policy.AddressPortSet {
			out = append(out, fmt.Sprintf("-m set --match-set %s %s,%s", setName(id, kind, c.family), side, side))
		}
	}
	return out
}

// icmp returns alternatives.
func (c matcher) icmp(t policy.Transport) []string {
	if c.family == policy.IPv4 {
		return icmp4(t)
	}
	if t.Protocol != policy.AnyProtocol && t.Protocol != policy.ICMPv6 {
		return nil
	}
	types := []int{int(t.ICMP.Type)}
	if !t.ICMP.HasType { // icmp6 has no code without a type, so it is each type with the code
		types = make([]int, 256)
		for i := range types {
			types[i] = i
		}
	}
	var out []string
	for _, i := range types {
		one := fmt.Sprintf("-p ipv6-icmp -m icmp6 --icmpv6-type %d", i)
		if t.ICMP.HasCode {
			one += fmt.Sprintf("/%d", t.ICMP.Code)
		}
		out = append(out, one)
	}
	return out
}

// icmp4 says it by type, and where that cannot by the bytes after the header: to iptables, type 255 is any
// type, and a code is nothing without a type.
func icmp4(t policy.Transport) []string {
	const unsayable = 255
	const bytes = "-p icmp -m u32 --u32 0>>22&0x3C@0>>16&"
	i := t.ICMP
	switch {
	case t.Protocol != policy.AnyProtocol && t.Protocol != policy.ICMP:
		return nil
	case !i.HasType:
		return []string{fmt.Sprintf(bytes+"0xFF=%d", i.Code)}
	case i.Type == unsayable && i.HasCode:
		return []string{fmt.Sprintf(bytes+"0xFFFF=0x%02X%02X", i.Type, i.Code)}
	case i.Type == unsayable:
		return []string{bytes + "0xFF00=0xFF00"}
	case i.HasCode:
		return []string{fmt.Sprintf("-p icmp -m icmp --icmp-type %d/%d", i.Type, i.Code)}
	}
	return []string{fmt.Sprintf("-p icmp -m icmp --icmp-type %d", i.Type)}
}

// protocol is a name that iptables knows without /etc/protocols, or the number.
func protocol(p policy.Protocol) string {
	switch p {
	case policy.TCP, policy.UDP, policy.SCTP, policy.UDPLite, policy.ICMP:
		return strings.ToLower(p.String())
	case policy.ICMPv6:
		return "ipv6-icmp"
	}
	return fmt.Sprint(uint8(p))
}
