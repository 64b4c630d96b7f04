// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"net/netip"

	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/eval"
)

// packets draws packets of which no two belong to one flow.
func (d *dice) packets(n int) []Packet {
	var out []Packet
	flows := map[tuple]bool{}
	for range 20 * n { // some tries are in vain: conntrack would take them for answers
		if len(out) == n {
			break
		}
		if p := d.packet(); !flows[p.tuple()] {
			flows[p.tuple()] = true
			out = append(out, p)
		}
	}
	return out
}

func (d *dice) packet() Packet {
	p := Packet{From: d.end(), To: d.end()}
	switch {
	case p.From < 0 && p.To < 0 && d.chance(10): // we have no say in it
		p.From, p.To = Outside, Outside
	case p.From == Node && p.To == Node: // on loopback
		p.From, p.To = pick(d, End(Outside), Node), Outside
		if p.From == Outside {
			p.To = Node
		}
	case p.From == Outside && p.To == Outside:
		p.To = End(d.IntN(len(d.pods)))
	}
	is4 := d.chance(50)
	p.Src, p.Dst, p.FromNode = d.address(p.From, is4), d.address(p.To, is4), p.From == Node
	p.ToNode, p.Device = p.To == Node, d.device(p)
	if p.From == p.To && p.From == Outside && p.Src == p.Dst {
		return d.packet() // the world outside does not need us to talk to itself
	}
	d.transportOf(&p, is4)
	return p
}

// device is what the node's own packets pass.
func (d *dice) device(p Packet) string {
	other := p.From
	if other == Node {
		other = p.To
	}
	if other == Outside {
		return "out0"
	}
	return d.pods[other].Device
}

func (d *dice) end() End {
	switch {
	case d.chance(20):
		return Outside
	case d.chance(15):
		return Node
	}
	return End(d.IntN(len(d.pods)))
}

func (d *dice) address(e End, is4 bool) netip.Addr {
	list := d.outside
	switch {
	case e == Node:
		list = d.node
	case e >= 0:
		list = d.pods[e].IPs
	}
	for {
		if ip := pick(d, list...); ip.Is4() == is4 {
			return ip
		}
	}
}

// transportOf draws what a packet carries. ICMP messages are those that conntrack takes for a flow's
// first, and answers without a question, which it calls invalid.
func (d *dice) transportOf(p *Packet, is4 bool) {
	icmp, types := policy.ICMP, []uint8{8, 8, 8, 13, 0, 255}
	if !is4 {
		icmp, types = policy.ICMPv6, []uint8{128, 128, 128, 129, 255}
	}
	p.Protocol = pick(d, policy.TCP, policy.TCP, policy.TCP, policy.UDP, policy.UDP, icmp, icmp, policy.SCTP, policy.UDPLite, unassigned)
	if p.Protocol.HasPorts() {
		p.SrcPort, p.DstPort = pick(d, ports...), pick(d, ports...)
	}
	if p.Protocol == icmp {
		p.ICMPType = pick(d, types...)
		p.ICMPCode = uint8(d.IntN(2))
	}
	p.MidStream = p.Protocol == policy.TCP && d.chance(8)
	if p.Neighbour = p.Protocol == policy.ICMPv6 && p.From >= 0 && p.To == Node && d.chance(40); p.Neighbour {
		p.ICMPType, p.ICMPCode = pick[uint8](d, 135, 136), 0
	}
}

// byEval is why a packet has the verdict that it has, as a rule.
const byEval = "policy/eval"

// judge says what becomes of packets.
type judge struct {
	state *policy.State
	eval  *eval.Evaluator
	byPod map[End]*policy.Endpoint // of the pods that are endpoints
}

func newJudge(s *policy.State, l []Pod) judge {
	j := judge{s, eval.New(s), map[End]*policy.Endpoint{}}
	for i, pod := range l {
		for _, e := range s.Endpoints {
			if e.Device == pod.Device {
				j.byPod[End(i)] = e
			}
		}
	}
	return j
}

// verdict is policy/eval's, but for what renderers have to do beyond it. doubtful: nobody says which, or
// how far the packet gets.
func (j judge) verdict(p Packet) (v policy.Action, why string, doubtful bool) {
	stream := p.MidStream && p.From != p.To && p.From != Node
	for _, e := range []End{p.From, p.To} {
		if e >= 0 && stream && j.byPod[e] != nil {
			_, maybe := j.isolated(j.byPod[e])
			doubtful = doubtful || maybe
		}
	}
	if p.Neighbour {
		return policy.Allow, "a pod finds its node", j.byPod[p.From] == nil
	}
	for _, e := range []End{p.From, p.To} {
		if e >= 0 && j.byPod[e] == nil {
			return policy.Deny, e.String() + " is no endpoint", doubtful
		}
	}
	for _, e := range []End{p.From, p.To} {
		if e >= 0 && stream {
			if j.closed(e) {
				return policy.Deny, e.String() + " is isolated, and this is the middle of a stream", doubtful
			}
		}
	}
	if p.MidStream && j.atHost(p) {
		return policy.Deny, "it is the middle of a stream, and no failsafe", doubtful
	}
	return j.eval.Evaluate(p.Packet).Verdict, byEval, doubtful
}

// atHost says whether a packet gets beyond the failsafes of a host.
func (j judge) atHost(p Packet) bool {
	r := j.eval.Evaluate(p.Packet)
	for _, t := range []*eval.Trace{r.Egress, r.Ingress} {
		if t != nil && t.Endpoint.Host && len(t.Tiers) > 0 && t.Tiers[0].Tier == policy.FailsafeTier && t.Tiers[0].Verdict == policy.Pass {
			return true
		}
	}
	return false
}

func (j judge) closed(e End) bool {
	isolated, _ := j.isolated(j.byPod[e])
	return isolated
}

// isolated says whether policies restrict a pod; maybe: only such that decide nothing.
func (j judge) isolated(e *policy.Endpoint) (isolated, maybe bool) {
	if e.Unknown {
		return true, false
	}
	for _, c := range []policy.Chain{e.Ingress, e.Egress} {
		if c.Default == policy.Deny {
			return true, false
		}
		for _, t := range c.Tiers {
			maybe = true
			for _, id := range t.Policies {
				if p := j.state.Policies[id]; p == nil || !p.Audit {
					return true, false
				}
			}
		}
	}
	return false, maybe
}

// walks counts how often each rule matches a packet.
func (j judge) walks(p Packet, counts map[policy.RuleID]uint64) {
	_, why, _ := j.verdict(p)
	r := j.eval.Evaluate(p.Packet)
	switch {
	case p.From >= 0 && j.byPod[p.From] == nil, p.Neighbour:
		return
	case p.To >= 0 && j.byPod[p.To] == nil: // it gets as far as that, if it is not cut off before
		if p.From >= 0 && p.MidStream && j.closed(p.From) {
			return
		}
		if r.Ingress = nil; p.From == Node { // its device is a pod's all the same
			r.Egress = nil
		}
	case why != byEval:
		return
	}
	for _, t := range []*eval.Trace{r.Egress, r.Ingress} {
		if t == nil {
			continue
		}
		for _, tier := range t.Tiers {
			for _, pol := range tier.Policies {
				for _, rule := range pol.Rules {
					if rule.Matched {
						counts[rule.ID]++
					}
				}
			}
		}
	}
}
