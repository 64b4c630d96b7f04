// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/eval"
)

// Impact is what a change of the cluster's objects changes for pods. Its form as JSON is what
// `policy impact -o json` prints: fields are added, and never change.
type Impact struct {
	// Affected is how many pods have other policies in force, or the same with other rules or members.
	Affected int `json:"affected"`
	// Changes of what may talk to what, sorted.
	Changes []PairChange `json:"changes"`
	// NotCompared is how many pairs of kinds of pods were left out, since there are too many.
	NotCompared int `json:"notCompared"`
	// Problems that policies have after the change, and did not have before.
	Problems []string `json:"problems,omitempty"`
	Notes    []string `json:"notes,omitempty"`
}

// PairChange is pods, each of which is treated otherwise when it sends to each of others.
type PairChange struct {
	From []Group `json:"from"`
	To   []Group `json:"to"`
	// Traffic that changes.
	Traffic []TrafficChange `json:"traffic"`
}

// TrafficChange is packets that are treated otherwise.
type TrafficChange struct {
	// Family is empty if the packets of all families that both ends have change alike.
	Family string  `json:"family,omitempty"`
	What   string  `json:"what"` // "TCP 5432", "any other TCP port", "ICMP echo"
	Before Verdict `json:"before"`
	After  Verdict `json:"after"`
}

// maxCompared is how many packets are compared at most: some seconds of work.
const maxCompared = 2_000_000

// NewImpact compares two views of one cluster.
func NewImpact(before, after *View) *Impact {
	c := newComparison(before, after)
	c.findPods()
	out := &Impact{Affected: c.findAffected(), Changes: []PairChange{}, Problems: newProblems(before, after)}
	if c.comeOrGo > 0 {
		out.Notes = append(out.Notes, fmt.Sprintf("pods that come, go or change their addresses are not compared: %d", c.comeOrGo))
	}
	if out.Affected == 0 {
		return out
	}
	c.findParties()
	if c.outsideLeftOut > 0 {
		out.Notes = append(out.Notes, fmt.Sprintf("%d more networks outside the cluster are not looked at", c.outsideLeftOut))
	}
	out.Changes = c.rectangles(c.compare())
	out.NotCompared = c.notCompared
	if c.portsLeftOut > 0 {
		out.Notes = append(out.Notes, fmt.Sprintf("rules name too many ports: up to %d more ranges of them are not looked at", c.portsLeftOut))
	}
	return out
}

func newComparison(before, after *View) *comparison {
	return &comparison{before: before, after: after, left: maxCompared, divided: map[string][]piece{}, ofNamespace: map[string]int{}, ofGroup: map[string]int{}}
}

func newProblems(before, after *View) []string {
	var out []string
	for _, id := range slices.SortedFunc(maps.Keys(after.problems), policy.PolicyID.Compare) {
		for _, p := range after.problems[id] {
			if !slices.Contains(before.problems[id], p) {
				out = append(out, id.String()+": "+p)
			}
		}
	}
	return out
}

// comparison is the work on an Impact.
type comparison struct {
	before, after *View
	pods          []podIn // that both have, sorted
	parties       []*party
	comeOrGo      int
	// How many pods there are.
	ofNamespace, ofGroup map[string]int

	divided map[string][]piece
	left    int // packets that may still be compared

	notCompared, outsideLeftOut, portsLeftOut int
}

// podIn is a pod that both views have, with equal addresses.
type podIn struct {
	id            policy.EndpointID
	group         string
	before, after *policy.Endpoint
	affected      [2]bool // by direction
	ports         []pieceKey
}

func (c *comparison) findPods() {
	for id, e := range c.before.state.Endpoints {
		now := c.after.state.Endpoints[id]
		switch {
		case now == nil || !slices.Equal(e.IPs, now.IPs):
			c.comeOrGo++
			continue
		case len(now.IPs) == 0: // it sends nothing yet
			continue
		}
		pod := c.after.pods[id]
		in := podIn{id: id, group: groupOf(pod), before: e, after: now}
		for _, p := range containerPorts(pod) {
			if p.ContainerPort > 0 && p.ContainerPort <= 65535 {
				in.ports = append(in.ports, pieceKey{protocolOf(p.Protocol), policy.PortRange{First: uint16(p.ContainerPort), Last: uint16(p.ContainerPort)}})
			}
		}
		slices.SortFunc(in.ports, pieceKey.compare)
		c.pods = append(c.pods, in)
		c.ofNamespace[id.Namespace]++
		c.ofGroup[in.group]++
	}
	for id := range c.after.state.Endpoints {
		if c.before.state.Endpoints[id] == nil {
			c.comeOrGo++
		}
	}
	slices.SortFunc(c.pods, func(a, b podIn) int { return a.id.Compare(b.id) })
}

// findAffected marks the pods for which something changes in a direction, and counts them.
func (c *comparison) findAffected() int {
	changed := c.changedPolicies()
	n := 0
	for i := range c.pods {
		p := &c.pods[i]
		for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
			p.affected[d] = p.before.Unknown != p.after.Unknown || !p.before.Chain(d).Equal(p.after.Chain(d)) || has(p.after.Chain(d), changed)
		}
		if p.affected[policy.Ingress] || p.affected[policy.Egress] {
			n++
		}
	}
	return n
}

func has(ch policy.Chain, changed map[policy.PolicyID]bool) bool {
	for _, t := range ch.Tiers {
		if slices.ContainsFunc(t.Policies, func(id policy.PolicyID) bool { return changed[id] }) {
			return true
		}
	}
	return false
}

// changedPolicies are those of other rules, or of rules about sets that have other members.
func (c *comparison) changedPolicies() map[policy.PolicyID]bool {
	sets := map[policy.SetID]bool{}
	for id, s := range c.after.state.Sets {
		old := c.before.state.Sets[id]
		sets[id] = old == nil || old.Kind != s.Kind || !maps.Equal(old.Members, s.Members)
	}
	out := map[policy.PolicyID]bool{}
	for id, p := range c.after.state.Policies {
		old := c.before.state.Policies[id]
		changed := old == nil || !old.Equal(p)
		for set := range p.Sets {
			changed = changed || sets[set]
		}
		if changed {
			out[id] = true
		}
	}
	return out
}

// pairResult is what changes between two parties.
type pairResult struct {
	from, to int // parties
	traffic  []TrafficChange
}

// compare asks for each pair of parties that the change can concern.
func (c *comparison) compare() []pairResult {
	var out []pairResult
	for i, from := range c.parties {
		for j, to := range c.parties {
			if !from.affected[policy.Egress] && !to.affected[policy.Ingress] || i == j && from.second == nil {
				continue
			}
			if c.left <= 0 {
				c.notCompared++
				continue
			}
			if t := c.pair(from, to); len(t) > 0 {
				out = append(out, pairResult{i, j, t})
			}
		}
	}
	return out
}

// pair compares the packets from one party to another, of both families.
func (c *comparison) pair(from, to *party) []TrafficChange {
	var changes [2][]TrafficChange
	families := 0
	pieces := c.pieces(from, to)
	for f, family := range []policy.Family{policy.IPv4, policy.IPv6} {
		src, dst := from.first[f], to.first[f]
		if from == to {
			src = from.second[f]
		}
		if !src.IsValid() || !dst.IsValid() {
			continue
		}
		families++
		changes[f] = c.packets(eval.Packet{Src: src, Dst: dst}, family, pieces, from, to)
	}
	switch {
	case families < 2:
		return slices.Concat(changes[0], changes[1])
	case slices.Equal(changes[0], changes[1]):
		return changes[0]
	}
	for f, family := range []policy.Family{policy.IPv4, policy.IPv6} {
		for i := range changes[f] {
			changes[f][i].Family = family.String()
		}
	}
	return slices.Concat(changes[0], changes[1])
}

// decided is a piece with its verdicts.
type decided struct {
	piece
	before, after Verdict
}

func (c *comparison) packets(p eval.Packet, family policy.Family, pieces []piece, from, to *party) []TrafficChange {
	list := make([]decided, 0, len(pieces))
	changed := false
	for _, piece := range pieces {
		p.Protocol, p.SrcPort, p.DstPort, p.ICMPType = piece.protocol, 0, 0, 0
		switch {
		case piece.protocol.HasPorts():
			p.SrcPort, p.DstPort = ephemeral, piece.ports.First
		case family == policy.IPv4:
			p.ICMPType = echo4
		default:
			p.Protocol, p.ICMPType = policy.ICMPv6, echo6
		}
		d := decided{piece: piece}
		d.before, d.after = c.verdicts(p, from, to)
		changed = changed || d.before != d.after
		list = append(list, d)
	}
	if !changed {
		return nil
	}
	return summarize(list)
}

// verdicts are those before and after. The end that the change does not concern is asked only if the other
// changes its mind.
func (c *comparison) verdicts(p eval.Packet, from, to *party) (before, after Verdict) {
	c.left--
	ends := []struct {
		d        policy.Direction
		affected bool
	}{{policy.Egress, from.affected[policy.Egress]}, {policy.Ingress, to.affected[policy.Ingress]}}
	if !ends[0].affected {
		ends[0], ends[1] = ends[1], ends[0]
	}
	a, b := true, true
	for _, e := range ends {
		if !a && !b {
			break
		}
		x := c.before.allows(p, e.d)
		y := x
		if e.affected {
			y = c.after.allows(p, e.d)
		}
		a, b = a && x, b && y
		if a == b && !ends[1].affected {
			break
		}
	}
	return verdict(a), verdict(b)
}

func verdict(allowed bool) Verdict {
	if allowed {
		return Allowed
	}
	return Denied
}

func (v *View) allows(p eval.Packet, d policy.Direction) bool {
	t := v.eval.Side(p, d)
	return t == nil || t.Verdict == policy.Allow
}

// Group is pods that are alike for their owner, or what is outside the cluster.
type Group struct {
	// Name is "prod/web", "all pods of prod", "all pods", "outside the cluster" or a network.
	Name string `json:"name"`
	// Pods is how many of the Of pods of that name are meant; both 0 for what is no pod.
	Pods int `json:"pods"`
	Of   int `json:"of"`
	// Names of those pods, if they are not all; no more than a few.
	Names []string `json:"names,omitempty"`
}

// String is "prod/web (2 of 3 pods: a, b)".
func (g Group) String() string {
	switch {
	case g.Of == 0 || g.Of == 1 && strings.HasSuffix(g.Name, "/"+strings.Join(g.Names, "")):
		return g.Name
	case g.Pods == g.Of && g.Pods == 1:
		return g.Name + " (1 pod)"
	case g.Pods == g.Of:
		return fmt.Sprintf("%s (%d pods)", g.Name, g.Pods)
	}
	names := strings.Join(g.Names, ", ")
	if g.Pods > len(g.Names) {
		names += ", …"
	}
	return fmt.Sprintf("%s (%d of %d pods: %s)", g.Name, g.Pods, g.Of, names)
}

func compareGroups(a, b Group) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), slices.Compare(a.Names, b.Names))
}

// firstAddresses of the two families.
type firstAddresses [2]netip.Addr

func addressesOf(ips []netip.Addr) (out firstAddresses) {
	for _, ip := range ips {
		f := 0
		if ip.Is6() {
			f = 1
		}
		if !out[f].IsValid() {
			out[f] = ip
		}
	}
	return out
}
