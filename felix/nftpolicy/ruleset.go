// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"iter"
	"slices"

	"github.com/heliograph-dev/heliograph/policy"
)

// Field is what of a packet a condition looks at.
type Field uint8

// Fields. What is loaded for a lookup in a set of tuples is one field, too.
const (
	Family   Field = iota // IP version, as the NFPROTO_ number
	InDevice              // name of the device by which the packet came
	OutDevice
	InOutDevice  // both, for a set of pairs
	InInDevice   // the former twice, for the same set
	OutOutDevice // the latter twice
	State        // of conntrack, as bits
	Protocol     // after IPv6's extension headers
	Source4
	Destination4
	Source6
	Destination6
	SourcePort
	DestinationPort
	SourceService4 // address, protocol and port
	DestinationService4
	SourceService6
	DestinationService6
	ICMPType
	ICMPCode
	TCPFlags
)

// Operator is how a condition looks at it.
type Operator uint8

// Operators.
const (
	Equal      Operator = iota // to Value, all of it or under Mask
	NotEqual                   // reverse
	HasAny                     // of the bits of Value
	Within                     // Value to Last
	NotWithin                  // reverse
	In                         // the set
	NotIn                      // reverse; a set is named that exists
	VerdictOf                  // the set is a map, which has the verdict
	BeginsWith                 // Value: of the device's name
	BeginsNot                  // reverse
)

// Condition is one condition of a rule. Its values are in network order, devices' names are padded.
type Condition struct {
	Field Field
	Op    Operator
	Value string
	Last  string
	Mask  string
	Set   string
	Tag   string // of a lookup in a set that many share: which of them
}

// VerdictKind is what happens to a packet. The zero one is nothing: on to the next rule.
type VerdictKind uint8

// Kinds of verdicts.
const (
	Continue VerdictKind = iota
	Accept               // ends the base chain, not the packet's way
	Drop
	Return
	Jump
	Goto
)

// Verdict is a kind, and the chain of Jump and Goto.
type Verdict struct {
	Kind  VerdictKind
	Chain string
}

// Rule is a rule of a chain: if all conditions hold it counts, logs (some of the packets), and gives its
// verdict. A rule that logs has no verdict, for beyond the limit the kernel skips the rest of the rule.
type Rule struct {
	Comment string
	When    []Condition
	Count   bool
	Log     string // prefix; empty: does not log
	Verdict Verdict
	// Owner is the policy that it is of, if it is one's alone: who is to blame if the kernel refuses it.
	Owner policy.PolicyID
}

// Equal says whether two rules are the same.
func (r Rule) Equal(o Rule) bool {
	return r.Comment == o.Comment && r.Count == o.Count && r.Log == o.Log && r.Verdict == o.Verdict &&
		r.Owner == o.Owner && slices.Equal(r.When, o.When)
}

// Hook is where a base chain stands; the zero one is none.
type Hook uint8

// Hooks of base chains. All have the priority filter and what Chain.After says.
const (
	NoHook Hook = iota
	Input
	Forward
	Output
)

// Chain is a chain with its rules.
type Chain struct {
	Name  string
	Hook  Hook
	After int // how far behind priority filter
	Rules []Rule
}

// Equal says whether two chains are the same.
func (c Chain) Equal(o Chain) bool {
	return c.Name == o.Name && c.Hook == o.Hook && c.After == o.After && slices.EqualFunc(c.Rules, o.Rules, Rule.Equal)
}

// Key is what the elements of a set are.
type Key uint8

// Keys of sets.
const (
	Address4 Key = iota
	Address6
	Service4 // address, protocol, port
	Service6
	TaggedAddress4 // the same, behind the tag of who put it there
	TaggedAddress6
	TaggedService4
	TaggedService6
	Port
	ProtocolNumber
	Device
	DevicePair
)

// Set is a set, or a map to verdicts.
type Set struct {
	Name     string
	Key      Key
	Interval bool // elements are ranges, which do not overlap
	Map      bool
}

// Element of a set. Key and Last are in network order; the parts of tuples are padded to 4 bytes.
type Element struct {
	Key     string
	Last    string // of an interval: included
	Verdict Verdict
}

// OpKind is what an Op does.
type OpKind uint8

// Kinds of operations.
const (
	AddSet OpKind = iota
	AddChain
	RemoveElements
	AddElements
	FlushChain
	AddRule
	DeleteChain
	DeleteSet
)

// Op is one step of a transaction.
type Op struct {
	Kind     OpKind
	Set      Set       // of the first and last kinds, and of those on elements
	Chain    Chain     // name and hook
	Elements []Element // of those on elements
	Rule     Rule      // of AddRule
	// Inert says that no packet meets it: it adds something to which nothing refers before the others
	// are done.
	Inert bool
}

// Transaction is a change that the kernel makes as a whole, or not at all.
type Transaction struct {
	Replace bool // first delete the table with all that is in it
	Delete  bool // only delete the table
	DryRun  bool // ask whether the kernel would take it
	Ops     []Op
}

// Content is a set with its elements.
type Content struct {
	Set
	Elements iter.Seq[Element]
}

// Ruleset is what the table should hold.
type Ruleset struct {
	Sets   []Content
	Chains []Chain
}

// Actual is what the kernel holds of the table, seen from what it should hold.
type Actual struct {
	Exists bool
	Odd    string                          // what has the name of a thing of ours and is another; empty if nothing
	Sets   map[string]map[Element]struct{} // nil: not one of those that should be
	Chains map[string]bool                 // whether it has the rules that it should
}
