// SPDX-License-Identifier: Apache-2.0

// Package path chooses how each remote node is reached: natively, by IPIP or by VXLAN. It is pure: facts
// and the time in, a choice out. Package probe gathers the evidence, felix/calc the candidates and what
// the pools allow; nobody but Machine remembers what was chosen before, and since when.
package path

import (
	"net/netip"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
)

// Method is a way to reach another node. The order is that of preference.
type Method uint8

// The methods.
const (
	Native  Method = iota // plain routing
	IPIP                  // IPv4 in IPv4 (RFC 2003)
	VXLAN                 // RFC 7348
	Methods               // how many there are; as a value: none of them
)

// String is the name as the API has it.
func (m Method) String() string {
	switch m {
	case Native:
		return "Native"
	case IPIP:
		return "IPIP"
	case VXLAN:
		return "VXLAN"
	}
	return "None"
}

// Key names what is decided on: the way to one remote node for one family of pods' addresses.
type Key struct {
	Node   string
	Family bgp.Family
}

// Capabilities are what a node's kernel can do, as bits. They travel in probes.
type Capabilities uint8

// The capabilities.
const (
	CanIPIP Capabilities = 1 << iota
	CanVXLAN
)

// Verdict is what the probes of one method say.
type Verdict uint8

// The verdicts.
const (
	// Unknown: there is no evidence, neither for nor against. So it is while the other node answers by no
	// method at all, for that is no word about any of them.
	Unknown Verdict = iota
	// Answers: the last probe was answered.
	Answers
	// Doubtful: the last probe was lost, but not yet enough of them to call the method broken.
	Doubtful
	// Lost: so many probes in a row were lost, while the same node answered by another method.
	Lost
)

// String names the verdict.
func (v Verdict) String() string {
	return [...]string{"unknown", "answers", "doubtful", "lost"}[v]
}

// Evidence is what the prober knows of one method to one node. It is of one direction's choice and of both
// directions' traffic: an answer comes back by the method that the question went.
type Evidence struct {
	Verdict Verdict
	// Run is how many probes in a row ended as the last one did, and RunSince when the first of them was
	// sent.
	Run      int
	RunSince time.Time
	// LastAnswer is when the last answered probe was sent; zero: none was.
	LastAnswer time.Time
	// Sent and Lost are of the last probes, at most Window.
	Sent, Lost int
	RTT        time.Duration // smoothed (RFC 6298); 0: unknown
	MTU        int           // the largest packet that came through, in bytes of the inner IP packet; 0: unknown
	// Kernel says that the remote kernel answers (ICMP echo) but the remote agent does not.
	Kernel bool
	// Sampled says that the evidence is of other nodes that share the way (see probe.Target.Group).
	Sampled bool
}

// Window is of how many probes Evidence.Lost speaks, and how many lost in a row make a method Lost.
const Window = 5

// Report is all that the prober knows of one key.
type Report struct {
	Methods [Methods]Evidence
	// Silent says that nothing answers at all, by any method that is probed: the node or its agent and
	// kernel are gone, or everything is filtered. It says nothing about any single method.
	Silent bool
	// Remote is what the remote node says it can do; valid if RemoteKnown.
	Remote      Capabilities
	RemoteKnown bool
}

// Need says how much a method is worth knowing.
type Need uint8

// The needs.
const (
	// Off: the method cannot be used, or may not.
	Off Need = iota
	// Standby: it could be used one day, or is the only one there is: nothing depends on knowing soon.
	Standby
	// Active: it is in use while others could be, or is a better one that has to prove itself.
	Active
)

// Target is a path to be probed.
type Target struct {
	Key           Key
	Local, Remote netip.Addr // the two nodes' own addresses in the pod network
	// Group names those that share their ways: same next hops, same subnet. Where there are too many
	// targets to probe each, some of a group speak for all.
	Group string
	Needs [Methods]Need
	MTU   [Methods]int // the largest packet that should come through; 0: it need not be known
}

// Need says how a method should be probed, given what the pools allow.
func (d Decision) Need(m Method, allowed Set, inUse Set) Need {
	possible := 0
	for other := range Methods {
		if allowed.Has(other) && d.Methods[other].Available {
			possible++
		}
	}
	switch {
	case !allowed.Has(m) || !d.Methods[m].Available:
		return Off
	case possible < 2:
		return Standby
	case inUse.Has(m):
		return Active
	}
	for other := range Methods {
		if inUse.Has(other) && m < other {
			return Active
		}
	}
	return Standby
}
