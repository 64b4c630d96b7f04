// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/policy"
)

// prefix begins the name of every chain and set of ours: what has it is ours.
const prefix = "HEL-"

// MarkMask is the bits of the packet mark that the chains use among themselves: 0x100000 says that a policy
// has allowed, 0x200000 that one has passed the tier, or at the entry that the node itself is the sender.
// Both are cleared before and after, on packets of pods' devices alone and, where hosts have
// endpoints, on the node's own. Nobody else may use them.
const MarkMask = 0x300000

// Chains that are always there.
const (
	chainForward  = prefix + "FORWARD"
	chainInput    = prefix + "INPUT"
	chainOutput   = prefix + "OUTPUT"
	chainFrom     = prefix + "FROM"      // packets that come from a pod
	chainTo       = prefix + "TO"        // packets to a pod
	chainNode     = prefix + "NODE"      // packets from the node to a pod
	chainAllow    = prefix + "ALLOW"     // sets 0x100000
	chainPass     = prefix + "PASS"      // sets 0x200000
	chainStranger = prefix + "STRANGER"  // drops what is of no endpoint
	chainUnknownE = prefix + "UNKNOWN-e" // drops what is of an endpoint that the API does not know
	chainUnknownI = prefix + "UNKNOWN-i"
	chainHostIn   = prefix + "HOST-i" // packets to the node itself, and from it
	chainHostOut  = prefix + "HOST-e"
	treeHostIn    = prefix + "H-i" // which endpoint of the node's they meet
	treeHostOut   = prefix + "H-e"
	treeFrom      = prefix + "F" // roots of the trees of devices
	treeTo        = prefix + "T"
)

func letter(d policy.Direction) string {
	if d == policy.Egress {
		return "e"
	}
	return "i"
}

// policyChain is what endpoints' chains jump to.
func policyChain(id policy.PolicyID, d policy.Direction) string {
	return prefix + "p" + policy.Hash(id.String()) + "-" + letter(d)
}

// auditChain holds the rules of a policy that only audits: its policyChain forgets what they say.
func auditChain(id policy.PolicyID, d policy.Direction) string {
	return prefix + "q" + policy.Hash(id.String()) + "-" + letter(d)
}

// denyChain logs and drops for a rule, logChain logs.
func denyChain(id policy.RuleID) string { return prefix + "d" + policy.Hash(id.String()) }
func logChain(id policy.RuleID) string  { return prefix + "l" + policy.Hash(id.String()) }

// ruleChain is a step of a rule with more than one line could say.
func ruleChain(id policy.RuleID, step int) string {
	return fmt.Sprintf("%sr%s-%d", prefix, policy.Hash(id.String()), step)
}

// setRef is what a set is in the kernel. The generation is another one after a change that must not meet
// the rules of before.
type setRef struct {
	kind       policy.SetKind
	generation int
}

// name is the name of the ipset for the members of one family. Its type is part of it, so that a set never
// has the name of another type's.
func (r setRef) name(id policy.SetID, f policy.Family) string {
	letter := "a"
	if r.kind == policy.AddressPortSet {
		letter = "p"
	}
	if r.generation > 0 {
		id += policy.SetID(fmt.Sprintf(" generation %d", r.generation))
	}
	return fmt.Sprintf("%s%s%d-%s", prefix, letter, f, policy.Hash(string(id)))
}

// netsName is the name of the ipset for networks that a rule lists: which says where, and what the rule
// says but for its networks. A rule that is otherwise another one must not meet these as well.
func netsName(r policy.Rule, where string, f policy.Family) string {
	m := r.Match
	for _, p := range []*policy.Peer{&m.Source, &m.Destination} {
		p.Within = slices.Clone(p.Within)
		for i := range p.Within {
			p.Within[i].Nets = nil
		}
		p.Outside.Nets = nil
	}
	return fmt.Sprintf("%sn%d-%s", prefix, f, policy.Hash(fmt.Sprint(r.ID, r.Action, m, where)))
}

// maxComment is what both variants keep of a comment, less what we add to it.
const maxComment = 230

// comment is how a rule's lines are known. Of names that are too long it is the beginning and a hash.
func comment(id policy.RuleID) string {
	s := id.String()
	if len(s) <= maxComment {
		return s
	}
	return s[:maxComment-16] + "..." + policy.Hash(s)
}

// isOurs says whether a chain or set is ours.
func isOurs(name string) bool { return strings.HasPrefix(name, prefix) }
