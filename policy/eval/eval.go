// SPDX-License-Identifier: Apache-2.0

// Package eval says what a policy.State does with a packet, and why: it walks tiers, policies and rules
// as the kernel would, and notes for each rule that does not match the first condition that differs.
// It is what explains, and what renderers are tested against. Packets of established flows are out
// of its scope: they follow the verdict on their first packet.
package eval

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/heliograph-dev/heliograph/policy"
)

// Packet is the first packet of a flow, after services were translated to endpoints.
type Packet struct {
	Src, Dst         netip.Addr
	Protocol         policy.Protocol
	SrcPort, DstPort uint16 // if the protocol has ports
	ICMPType         uint8  // of ICMP and ICMPv6
	ICMPCode         uint8
	// FromNode says that the node itself sends it, as kubelet does when it probes. A pod's own node
	// may always reach it.
	FromNode bool
	// ToNode says that it is for the node itself, Device by what device of the node it comes in or, if
	// FromNode, goes out. Both are for hosts' endpoints alone.
	ToNode bool
	Device string
}

// Report is the verdict on a packet.
type Report struct {
	Verdict policy.Action // Allow or Deny
	// Egress is what the source's endpoint says, Ingress what the destination's says; nil if that end
	// is no endpoint of the state, or if the packet does not get there.
	Egress, Ingress *Trace
}

// Trace is one endpoint's part in the verdict.
type Trace struct {
	Endpoint  policy.EndpointID `json:"endpoint"`
	Direction policy.Direction  `json:"direction"`
	Verdict   policy.Action     `json:"verdict"`
	Reason    Reason            `json:"reason"`
	Rule      policy.RuleID     `json:"rule,omitzero"`  // with ByRule
	Tier      string            `json:"tier,omitempty"` // with ByRule and ByTier
	Tiers     []TierTrace       `json:"tiers"`          // as far as they were asked
}

// Reason says what gave a verdict.
type Reason uint8

// Reasons.
const (
	ByRule    Reason = iota // a rule matched
	ByTier                  // policies of a tier apply, and none of their rules matched
	ByChain                 // no tier decided
	ToItself                // a pod talks to itself
	FromNode                // the endpoint's own node talks to it
	IsUnknown               // the API does not know the endpoint (yet)
)

// MarshalText is for JSON.
func (r Reason) MarshalText() ([]byte, error) {
	names := []string{"Rule", "Tier", "Chain", "ToItself", "FromNode", "Unknown"}
	return []byte(names[min(int(r), len(names)-1)]), nil
}

// String is a phrase for people.
func (r Reason) String() string {
	switch r {
	case ByRule:
		return "a rule matches"
	case ByTier:
		return "policies of the tier apply, and no rule matches"
	case ByChain:
		return "no tier decides"
	case ToItself:
		return "a pod may talk to itself"
	case FromNode:
		return "the pod's own node may talk to it"
	}
	return "the API does not know the pod"
}

// TierTrace is the policies of a tier that were asked.
type TierTrace struct {
	Tier     string        `json:"tier"`
	Verdict  policy.Action `json:"verdict"` // Allow, Deny or Pass
	Policies []PolicyTrace `json:"policies"`
}

// PolicyTrace is the rules of a policy that were asked.
type PolicyTrace struct {
	ID      policy.PolicyID `json:"policy"`
	Audit   bool            `json:"audit"`   // the verdict was not acted upon
	Missing bool            `json:"missing"` // the state does not have the policy; its endpoint is closed
	Verdict policy.Action   `json:"verdict"` // NoAction: no rule matched
	Rules   []RuleTrace     `json:"rules"`
}

// RuleTrace is a rule that was asked.
type RuleTrace struct {
	ID      policy.RuleID `json:"rule"`
	Action  policy.Action `json:"action"`
	Matched bool          `json:"matched"`
	Differs Difference    `json:"differs,omitzero"` // if it did not match
}

// Evaluator evaluates packets against a state, which must not change meanwhile. It is used by one goroutine.
type Evaluator struct {
	state   *policy.State
	byIP    map[netip.Addr]*policy.Endpoint
	lengths map[*policy.Set]lengths     // of the sets that were asked
	hosts   map[string]*policy.Endpoint // by device
}

// New returns an evaluator. Of endpoints with the same address, the first in order has it.
func New(s *policy.State) *Evaluator {
	e := &Evaluator{
		state: s, byIP: make(map[netip.Addr]*policy.Endpoint, len(s.Endpoints)), lengths: map[*policy.Set]lengths{}, hosts: policy.Hosts(s.Endpoints),
	}
	for _, ep := range s.Endpoints {
		if ep.ID.Host {
			continue
		}
		for _, ip := range ep.IPs {
			if old := e.byIP[ip]; old == nil || ep.ID.Compare(old.ID) < 0 {
				e.byIP[ip] = ep
			}
		}
	}
	return e
}

// Evaluate gives the verdict on a packet.
func (e *Evaluator) Evaluate(p Packet) Report {
	r := Report{Verdict: policy.Allow}
	if r.Egress = e.Side(p, policy.Egress); r.Egress != nil {
		r.Verdict = r.Egress.Verdict
	}
	if r.Verdict != policy.Allow {
		return r
	}
	if r.Ingress = e.Side(p, policy.Ingress); r.Ingress != nil {
		r.Verdict = r.Ingress.Verdict
	}
	return r
}

// Side is what one end says of a packet, whatever the other says: the source's endpoint for Egress, the
// destination's for Ingress; nil if that is no endpoint of the state.
func (e *Evaluator) Side(p Packet, d policy.Direction) *Trace {
	p.Src, p.Dst = p.Src.Unmap().WithZone(""), p.Dst.Unmap().WithZone("")
	src, dst := e.byIP[p.Src], e.byIP[p.Dst]
	if h := e.host(p, d, src, dst); h != nil {
		t := &Trace{Endpoint: h.ID, Direction: d}
		e.walk(t, h.Chain(d), p)
		return t
	}
	self := src == dst && !p.FromNode
	switch {
	case d == policy.Egress && src != nil && !p.FromNode:
		return e.trace(src, d, p, self)
	case d == policy.Ingress && dst != nil:
		return e.trace(dst, d, p, self)
	}
	return nil
}

// Devices are those that hosts' endpoints are for, AnyDevice among them.
func (e *Evaluator) Devices() []string { return slices.Sorted(maps.Keys(e.hosts)) }

// host is the node's endpoint that a packet meets; nil: none.
func (e *Evaluator) host(p Packet, d policy.Direction, src, dst *policy.Endpoint) *policy.Endpoint {
	const loopback = "lo"
	switch {
	case p.Device == loopback, d == policy.Egress && (!p.FromNode || dst != nil), d == policy.Ingress && !p.ToNode:
		return nil
	case d == policy.Ingress && src != nil: // a pod's device is none of the node's
		return e.hosts[policy.AnyDevice]
	}
	if h := e.hosts[p.Device]; h != nil {
		return h
	}
	return e.hosts[policy.AnyDevice]
}

func (e *Evaluator) trace(ep *policy.Endpoint, d policy.Direction, p Packet, self bool) *Trace {
	t := &Trace{Endpoint: ep.ID, Direction: d, Verdict: policy.Allow}
	switch {
	case self:
		t.Reason = ToItself
	case p.FromNode:
		t.Reason = FromNode
	case ep.Unknown:
		t.Verdict, t.Reason = policy.Deny, IsUnknown
	default:
		e.walk(t, ep.Chain(d), p)
	}
	return t
}

func (e *Evaluator) walk(t *Trace, c policy.Chain, p Packet) {
	for _, tier := range c.Tiers {
		tt, rule := e.tier(tier, t.Direction, p)
		t.Tiers = append(t.Tiers, tt)
		if tt.Verdict == policy.Pass {
			continue
		}
		t.Verdict = tt.Verdict
		if rule == nil {
			t.Reason, t.Tier = ByTier, tier.Name
		} else {
			t.Reason, t.Rule, t.Tier = ByRule, *rule, tier.Name
		}
		return
	}
	t.Verdict, t.Reason = c.Default, ByChain
}

// tier asks policies until one decides. A tier of which all policies only audit does not decide.
func (e *Evaluator) tier(tier policy.Tier, d policy.Direction, p Packet) (TierTrace, *policy.RuleID) {
	t := TierTrace{Tier: tier.Name, Verdict: policy.Pass}
	for _, id := range tier.Policies {
		pt := e.policy(id, d, p)
		t.Policies = append(t.Policies, pt)
		switch {
		case pt.Missing:
			t.Verdict = policy.Deny
			return t, nil
		case pt.Audit:
			continue
		}
		t.Verdict = tier.Default
		if pt.Verdict != policy.NoAction {
			t.Verdict = pt.Verdict
			return t, &pt.Rules[len(pt.Rules)-1].ID
		}
	}
	return t, nil
}

func (e *Evaluator) policy(id policy.PolicyID, d policy.Direction, p Packet) PolicyTrace {
	pol := e.state.Policies[id]
	if pol == nil {
		return PolicyTrace{ID: id, Missing: true}
	}
	t := PolicyTrace{ID: id, Audit: pol.Audit}
	rules := pol.Rules(d)
	for i := range rules {
		differs := e.match(&rules[i].Match, p)
		matched := differs.Condition == NoCondition
		t.Rules = append(t.Rules, RuleTrace{ID: rules[i].ID, Action: rules[i].Action, Matched: matched, Differs: differs})
		if matched && rules[i].Action != policy.Log {
			t.Verdict = rules[i].Action
			return t
		}
	}
	return t
}

// lengths are those of a set's prefixes, by family: most sets are of single addresses, and have one.
type lengths [2][]int

func lengthsOf(s *policy.Set) lengths {
	var occurs [2][129]bool
	for m := range s.Members {
		if m.Prefix.IsValid() {
			occurs[familyIndex(m.Prefix.Addr())][m.Prefix.Bits()] = true
		}
	}
	var out lengths
	for f := range occurs {
		for bits := len(occurs[f]) - 1; bits >= 0; bits-- {
			if occurs[f][bits] {
				out[f] = append(out[f], bits)
			}
		}
	}
	return out
}

func familyIndex(ip netip.Addr) int {
	if ip.Is4() {
		return 0
	}
	return 1
}

// contains looks an address up in a set of addresses, whose members may be networks.
func (e *Evaluator) contains(s *policy.Set, ip netip.Addr, protocol policy.Protocol, port uint16) bool {
	known, ok := e.lengths[s]
	if !ok {
		known = lengthsOf(s)
		e.lengths[s] = known
	}
	m := policy.Member{Protocol: protocol, Port: port}
	for _, bits := range known[familyIndex(ip)] {
		m.Prefix, _ = ip.Prefix(bits)
		if _, ok := s.Members[m]; ok {
			return true
		}
	}
	return false
}

// holds says whether the address is in one of the sets and nets; which set is missing, if one is.
func (e *Evaluator) holds(a policy.Addresses, ip netip.Addr) (found bool, missing policy.SetID) {
	for _, id := range a.Sets {
		s := e.state.Sets[id]
		if s == nil {
			missing = id
			continue
		}
		if e.contains(s, ip, 0, 0) {
			found = true
		}
	}
	return found || slices.ContainsFunc(a.Nets, func(n policy.Net) bool { return n.Contains(ip) }), missing
}
