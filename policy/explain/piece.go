// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/policy"
)

// pieceKey is a range of ports that a rule names or a container declares.
type pieceKey struct {
	protocol policy.Protocol
	ports    policy.PortRange
}

func (k pieceKey) compare(o pieceKey) int {
	return cmp.Or(cmp.Compare(k.protocol, o.protocol), cmp.Compare(k.ports.First, o.ports.First), cmp.Compare(k.ports.Last, o.ports.Last))
}

// piece is packets that no rule at hand tells apart: one of them is asked for.
type piece struct {
	protocol policy.Protocol
	ports    policy.PortRange // of other: the first will do
	other    bool             // all ports that no rule at hand names
}

func (p piece) name() string {
	switch {
	case !p.protocol.HasPorts():
		return p.protocol.String() + " echo"
	case p.other:
		return fmt.Sprintf("any other %s port", p.protocol)
	}
	return fmt.Sprintf("%s %s", p.protocol, p.ports)
}

// summarize says of pieces which change, in few words: of a protocol whose pieces all change alike its name.
func summarize(all []decided) []TrafficChange {
	var out []TrafficChange
	alike := func(list []decided) bool {
		return !slices.ContainsFunc(list, func(d decided) bool { return d.before != list[0].before || d.after != list[0].after })
	}
	if alike(all) {
		return []TrafficChange{{What: "everything", Before: all[0].before, After: all[0].after}}
	}
	for len(all) > 0 {
		n := slices.IndexFunc(all, func(d decided) bool { return d.protocol != all[0].protocol })
		if n < 0 {
			n = len(all)
		}
		of := all[:n]
		all = all[n:]
		if of[0].protocol.HasPorts() && alike(of) {
			out = appendChange(out, of[0], of[0].protocol.String())
			continue
		}
		for i := 0; i < len(of); i++ {
			d := of[i]
			for i+1 < len(of) && !of[i+1].other && of[i+1].ports.First == d.ports.Last+1 && alike([]decided{d, of[i+1]}) {
				i++
				d.ports.Last = of[i].ports.Last
			}
			out = appendChange(out, d, d.name())
		}
	}
	return out
}

func appendChange(out []TrafficChange, d decided, what string) []TrafficChange {
	if d.before == d.after {
		return out
	}
	return append(out, TrafficChange{What: what, Before: d.before, After: d.after})
}

// namedPorts finds the ports that the rules of a chain name, once for each chain.
type namedPorts struct{ of map[string][]pieceKey }

func (n namedPorts) meet(c *comparison, p *podIn, d policy.Direction) []pieceKey {
	key := d.String() + chainKey(p.before.Chain(d)) + chainKey(p.after.Chain(d))
	if known, ok := n.of[key]; ok {
		return known
	}
	var out []pieceKey
	for _, v := range []*View{c.before, c.after} {
		for _, t := range v.endpointChain(p.id, d).Tiers {
			for _, id := range t.Policies {
				out = append(out, v.portsOf(id, d)...)
			}
		}
	}
	slices.SortFunc(out, pieceKey.compare)
	out = slices.Compact(out)
	n.of[key] = out
	return out
}

// chainKey tells chains apart.
func chainKey(ch policy.Chain) string {
	var b strings.Builder
	for _, t := range ch.Tiers {
		b.WriteString(t.Name)
		for _, id := range t.Policies {
			b.WriteString("\x01" + string(rune(id.Kind)) + id.Namespace + "/" + id.Name)
		}
		b.WriteString("\x02" + t.Default.String())
	}
	return b.String() + "\x03" + ch.Default.String()
}

// portsOf are the ports that a policy's rules name: a named port is what it is for any of the pods.
func (v *View) portsOf(id policy.PolicyID, d policy.Direction) []pieceKey {
	var out []pieceKey
	pol := v.state.Policies[id]
	if pol == nil {
		return nil
	}
	for i := range pol.Rules(d) {
		m := &pol.Rules(d)[i].Match
		for _, t := range slices.Concat(m.Transport, m.NotTransport) {
			protocols := []policy.Protocol{t.Protocol}
			if t.Protocol == policy.AnyProtocol {
				protocols = []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP}
			}
			for _, p := range protocols {
				for _, r := range t.DestinationPorts.Ranges {
					out = append(out, pieceKey{p, r})
				}
			}
			if t.Protocol == policy.SCTP {
				out = append(out, pieceKey{policy.SCTP, everyPort()}) // it appears
			}
			for _, set := range t.DestinationPorts.Named {
				out = append(out, v.namedIn(set)...)
			}
		}
	}
	return out
}

func (v *View) namedIn(id policy.SetID) []pieceKey {
	s := v.state.Sets[id]
	if s == nil {
		return nil
	}
	seen := map[pieceKey]struct{}{}
	var out []pieceKey
	for m := range s.Members {
		k := pieceKey{m.Protocol, policy.PortRange{First: m.Port, Last: m.Port}}
		if _, ok := seen[k]; !ok {
			seen[k] = struct{}{}
			out = append(out, k)
		}
	}
	return out
}

// pieces divides what one party can send to another: by the ports that rules name at either end, and those
// that the receiver declares.
func (c *comparison) pieces(from, to *party) []piece {
	key := from.portsKey[policy.Egress] + to.portsKey[policy.Ingress]
	if known, ok := c.divided[key]; ok {
		return known
	}
	keys := slices.Concat(from.named[policy.Egress], to.named[policy.Ingress])
	var out []piece
	for _, p := range []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP} {
		var of []policy.PortRange
		for _, k := range keys {
			if k.protocol == p {
				of = append(of, k.ports)
			}
		}
		if len(of) == 0 && p == policy.SCTP {
			continue
		}
		some, leftOut := divide(p, of)
		out = append(out, some...)
		c.portsLeftOut = max(c.portsLeftOut, leftOut)
	}
	out = append(out, piece{protocol: policy.ICMP})
	c.divided[key] = out
	return out
}

// maxPieces of a protocol: a rule may name thousands of ports.
const maxPieces = 64

// everyPort is a range that tells no port from another.
func everyPort() policy.PortRange { return policy.PortRange{First: 1, Last: 65535} }

// divide cuts the ports where a range begins or ends, so that each piece is inside or outside of each range.
// What is in none is one piece: any other port.
func divide(p policy.Protocol, ranges []policy.PortRange) (out []piece, leftOut int) {
	cuts := []int{1, 65536}
	for _, r := range ranges {
		cuts = append(cuts, max(1, int(r.First)), int(r.Last)+1)
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	other := piece{protocol: p, other: true}
	for i := 0; i+1 < len(cuts); i++ {
		first, last := uint16(cuts[i]), uint16(cuts[i+1]-1)
		named := slices.ContainsFunc(ranges, func(r policy.PortRange) bool { return r != everyPort() && r.Contains(first) })
		switch {
		case !named:
			other.ports.First = last // the last one: low ports are more likely to mean something
		case len(out) < maxPieces:
			out = append(out, piece{protocol: p, ports: policy.PortRange{First: first, Last: last}})
		default:
			leftOut++
		}
	}
	if other.ports.First > 0 {
		out = append(out, other)
	}
	return out, leftOut
}
