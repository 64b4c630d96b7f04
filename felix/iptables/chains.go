// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/policy"
)

const (
	established = "-m conntrack --ctstate RELATED,ESTABLISHED"
	// midStream is a segment of a connection that conntrack has not seen begin.
	midStream = "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW"
)

// static are the chains that do not depend on the state.
//
//	FORWARD ─▶ HEL-FORWARD ┬▶ HEL-FROM ─▶ HEL-F… ─▶ an endpoint's egress chain
//	INPUT ───▶ HEL-INPUT ──┘                                   both ─▶ policies' chains
//	           HEL-INPUT ───▶ HEL-HOST-i ─▶ HEL-H-i ─▶ a host's ingress chain; HEL-OUTPUT the same with -e
//	           HEL-FORWARD ┬▶ HEL-TO ───▶ HEL-T… ─▶ an endpoint's ingress chain
//	OUTPUT ──▶ HEL-OUTPUT ─┴▶ HEL-NODE ─▶ HEL-T…
//
// To return from HEL-FROM or HEL-TO is to be allowed by it. What comes back from all is not accepted: other
// people's rules are asked next.
func static(f policy.Family) chains {
	from, to := "-i "+desired.WorkloadPrefix+"+", "-o "+desired.WorkloadPrefix+"+"
	fromOurs, toOurs := "-i "+desired.WorkloadPrefix+"-+", "-o "+desired.WorkloadPrefix+"-+" // tunnels
	node := line{match: byNode, target: "-j RETURN"}
	drop := line{target: "-j DROP"}
	c := chains{
		chainForward:  {{match: established, target: "-j RETURN"}, {match: from, target: "-j " + chainFrom}, {match: to, target: "-j " + chainTo}},
		chainInput:    {{match: established, target: "-j RETURN"}},
		chainOutput:   {{match: established, target: "-j RETURN"}, {match: to, target: "-j " + chainNode}},
		chainFrom:     {{match: fromOurs, target: "-j RETURN"}, {target: clearMark}, {target: "-j " + treeFrom}, {target: clearMark}},
		chainTo:       {{match: toOurs, target: "-j RETURN"}, {target: clearMark}, {target: "-j " + treeTo}, {target: clearMark}},
		chainNode:     {{match: toOurs, target: "-j RETURN"}, {target: setPass}, {target: "-j " + treeTo}, {target: clearMark}},
		chainAllow:    {{target: setAllow}},
		chainPass:     {{target: setPass}},
		chainStranger: {drop},
		chainUnknownE: {logs(policy.Deny, policy.UnknownCause(policy.Egress)), drop},
		chainUnknownI: {node, logs(policy.Deny, policy.UnknownCause(policy.Ingress)), drop},
	}
	if f == policy.IPv6 {
		// Without neighbour discovery a pod would not find its gateway. It has the hop limit that no
		// router lets through: it is between the pod and us.
		for _, t := range []int{135, 136} {
			match := fmt.Sprintf("%s -p ipv6-icmp -m icmp6 --icmpv6-type %d -m hl --hl-eq 255", from, t)
			c.add(chainInput, line{match: match, target: "-j RETURN"})
		}
	}
	c.add(chainInput, line{match: from, target: "-j " + chainFrom}, line{target: "-j " + chainHostIn})
	c.add(chainOutput, line{target: "-j " + chainHostOut})
	return c
}

// endpoints returns the chains of all endpoints, and the trees of devices that lead to them.
func endpoints(all map[policy.EndpointID]*policy.Endpoint, policies map[policy.PolicyID]*policy.Policy) chains {
	c := chains{}
	from, to := map[string][]line{}, map[string][]line{}
	for id, e := range all {
		if id.Host {
			continue
		}
		closed := isolated(e, policies)
		for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
			devices, flag := to, "-o "
			if d == policy.Egress {
				devices, flag = from, "-i "
			}
			target := c.endpoint(e, d, closed, policies)
			if target != "-j RETURN" {
				devices[e.Device] = append(devices[e.Device], line{match: "-i " + e.Device + " -o " + e.Device, target: "-j RETURN"})
			}
			devices[e.Device] = append(devices[e.Device], line{match: flag + e.Device, target: target})
		}
	}
	c.tree(treeFrom, "-i ", from)
	c.tree(treeTo, "-o ", to)
	c.hosts(policy.Hosts(all), policies)
	return c
}

// hosts adds the chains that lead to the endpoints of the node itself; empty ones if there are none. What is
// on loopback, or goes to the node's own pods, meets none.
func (c chains) hosts(all map[string]*policy.Endpoint, policies map[policy.PolicyID]*policy.Policy) {
	c.add(chainHostIn)
	c.add(chainHostOut)
	if len(all) == 0 {
		return
	}
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		entry, tree, flag := chainHostIn, treeHostIn, "-i "
		c.add(entry)
		if d == policy.Egress {
			entry, tree, flag = chainHostOut, treeHostOut, "-o "
		}
		c.add(entry, line{match: flag + "lo", target: "-j RETURN"})
		c.add(entry, line{target: clearMark}, line{target: "-j " + tree}, line{target: clearMark})
		c.hostDevices(tree, flag, d, all, policies)
	}
}

// hostDevices is the chain that finds the endpoint of a device. What goes to the node's own pods has none.
func (c chains) hostDevices(name, flag string, d policy.Direction, all map[string]*policy.Endpoint, policies map[policy.PolicyID]*policy.Policy) {
	const longest = 15 // of a device's name
	c.add(name)
	for _, device := range slices.Sorted(maps.Keys(all)) {
		if device != policy.AnyDevice && len(device) <= longest {
			c.add(name, line{match: flag + device, target: c.host(all[device], d, policies)})
		}
	}
	e := all[policy.AnyDevice]
	if e == nil {
		return
	}
	target := c.host(e, d, policies)
	if d == policy.Egress {
		const pods, tunnels = "-o " + desired.WorkloadPrefix + "+", "-o " + desired.WorkloadPrefix + "-+"
		c.add(name, line{match: tunnels, target: target}, line{match: pods, target: "-j RETURN"})
	}
	c.add(name, line{target: target})
}

// host adds the chain of one direction of a host, and returns how to get there. Behind the failsafes stands
// what keeps a cut connection cut.
func (c chains) host(e *policy.Endpoint, d policy.Direction, policies map[policy.PolicyID]*policy.Policy) string {
	var list []line
	for _, t := range e.Chain(d).Tiers {
		if t.Name == policy.FailsafeTier {
			list = append(list, failsafes(t, d, policies)...)
			continue
		}
		list = append(list, tier(t, d, policies)...)
	}
	if e.Chain(d).Default != policy.Allow {
		list = append(list, logs(policy.Deny, policy.ChainCause(d)), line{target: "-j DROP"})
	}
	if len(list) == 0 {
		return "-j RETURN"
	}
	name := prefix + "e" + policy.Hash("host "+letter(d)+fmt.Sprint(list))
	c[name] = list
	return "-g " + name
}

// failsafes asks what no policy may take from a node. A node that lacks them is open.
func failsafes(t policy.Tier, d policy.Direction, policies map[policy.PolicyID]*policy.Policy) []line {
	var out []line
	for _, id := range t.Policies {
		p := policies[id]
		if p == nil {
			return []line{{target: "-j RETURN"}}
		}
		if len(p.Rules(d)) > 0 {
			out = append(out, line{target: "-j " + policyChain(id, d)}, line{match: allowed, target: "-j RETURN"})
		}
	}
	return append(out, line{match: midStream, target: "-j DROP"})
}

// isolated says whether a policy restricts an endpoint in any direction.
func isolated(e *policy.Endpoint, policies map[policy.PolicyID]*policy.Policy) bool {
	for _, c := range []policy.Chain{e.Ingress, e.Egress} {
		if c.Default != policy.Allow {
			return true
		}
		for _, t := range c.Tiers {
			for _, id := range t.Policies {
				if p := policies[id]; p == nil || !p.Audit {
					return true
				}
			}
		}
	}
	return false
}

// endpoint adds the chain of one direction of an endpoint, which is named by what it says, so that equal
// ones are one; and returns how to get there.
func (c chains) endpoint(e *policy.Endpoint, d policy.Direction, closed bool, policies map[policy.PolicyID]*policy.Policy) string {
	if e.Unknown {
		return "-g " + map[policy.Direction]string{policy.Ingress: chainUnknownI, policy.Egress: chainUnknownE}[d]
	}
	var list []line
	if closed {
		list = append(list, line{match: midStream, target: "-j DROP"})
	}
	for _, t := range e.Chain(d).Tiers {
		list = append(list, tier(t, d, policies)...)
	}
	if e.Chain(d).Default != policy.Allow {
		list = append(list, logs(policy.Deny, policy.ChainCause(d)), line{target: "-j DROP"})
	}
	if len(list) == 0 {
		return "-j RETURN"
	}
	if d == policy.Ingress {
		list = append([]line{{match: byNode, target: "-j RETURN"}}, list...)
	}
	name := prefix + "e" + policy.Hash(letter(d)+fmt.Sprint(list))
	c[name] = list
	return "-g " + name
}

// tier asks policies until one has decided.
func tier(t policy.Tier, d policy.Direction, policies map[policy.PolicyID]*policy.Policy) []line {
	var out []line
	deny := func(match string) {
		l := logs(policy.Deny, policy.TierCause(t.Name, d))
		l.match = match + " " + l.match
		out = append(out, l, line{match: match, target: "-j DROP"})
	}
	enforced := false
	for _, id := range t.Policies {
		p := policies[id]
		if p == nil {
			deny(undecided)
			break
		}
		enforced = enforced || !p.Audit
		if len(p.Rules(d)) > 0 {
			out = append(out, line{match: undecided, target: "-j " + policyChain(id, d)})
		}
	}
	out = append(out, line{match: allowed, target: "-j RETURN"})
	switch {
	case enforced && t.Default == policy.Allow:
		out = append(out, line{match: notPassed, target: "-j RETURN"})
	case enforced && t.Default != policy.Pass:
		deny(notPassed)
	}
	return append(out, line{target: clearMark})
}

// tree adds chains that find a device by the characters of its name. What is not found is a stranger's.
func (c chains) tree(root, flag string, devices map[string][]line) {
	c.branch(root, root, flag, desired.WorkloadPrefix, slices.Sorted(maps.Keys(devices)), devices)
}

// branch is the chain for the devices whose names have a common beginning: if they are few, it has them
// all, else those that have also their next character in common have a chain of their own.
func (c chains) branch(name, root, flag, begin string, sorted []string, devices map[string][]line) {
	const few = 4
	c.add(name)
	for all := len(sorted); len(sorted) > 0; {
		n := 1
		for n < len(sorted) && len(commonPrefix(sorted[0], sorted[n])) > len(begin) {
			n++
		}
		group := sorted[:n]
		sorted = sorted[n:]
		if n == 1 || all <= few {
			for _, device := range group {
				c.add(name, devices[device]...)
			}
			continue
		}
		common := commonPrefix(group[0], group[n-1])
		next := root + "-" + strings.TrimPrefix(common, desired.WorkloadPrefix)
		c.add(name, line{match: flag + common + "+", target: "-g " + next})
		c.branch(next, root, flag, common, group, devices)
	}
	c.add(name, line{target: "-g " + chainStranger})
}

func commonPrefix(a, b string) string {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return a[:n]
}
