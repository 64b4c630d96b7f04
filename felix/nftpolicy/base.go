// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"encoding/binary"

	"github.com/heliograph-dev/heliograph/policy"
)

// What `nft list table inet heliograph-policy` shows of what is always there:
//
//	chain forward-egress { type filter hook forward priority filter + 1
//	    ct state established,related accept              # who changes policy deletes what became denied
//	    iifname . oifname @self accept                   # a pod may talk to itself
//	    meta l4proto tcp tcp flags & (fin|syn|rst|ack) != syn ct state new iifname @isolated drop
//	    meta l4proto tcp tcp flags & (fin|syn|rst|ack) != syn ct state new oifname @isolated drop
//	    iifname vmap @egress                             # accept, or jump to the chain of the endpoint, which decides
//	    iifname "hel*" iifname != "hel-*" drop           # a pod that we do not know
//	}
//	chain forward-ingress { type filter hook forward priority filter + 2
//	    ... and the same with oifname and @ingress
//	}
//	chain input-egress { type filter hook input priority filter + 1
//	    ... what pods send to the node; neighbour discovery passes
//	}
//	chain output { type filter hook output priority filter + 1
//	    oifname "hel*" oifname != "hel-*" oifname . oifname != @self drop
//	}
//
// accept ends a base chain, not the packet's way: what the first stage allows, the second may drop. So
// neither needs marks, and "allow" is a plain accept.

// unknownChain is where packets of endpoints go that the API does not know (yet).
func unknownChain(d policy.Direction) string { return "unknown-" + d.String() }

// baseChains returns the chains that are always there.
func baseChains() []Chain {
	return []Chain{
		{Name: unknownChain(policy.Egress), Rules: denial(policy.UnknownCause(policy.Egress), true)},
		{Name: unknownChain(policy.Ingress), Rules: denial(policy.UnknownCause(policy.Ingress), true)},
		{Name: "forward-egress", Hook: Forward, After: 1, Rules: []Rule{
			established(), toItself(), midStream(InDevice), midStream(OutDevice), dispatch(InDevice, mapEgress), unknownDevice(InDevice),
		}},
		{Name: "forward-ingress", Hook: Forward, After: 2, Rules: []Rule{
			established(), toItself(), dispatch(OutDevice, mapIngress), unknownDevice(OutDevice),
		}},
		{Name: "input-egress", Hook: Input, After: 1, Rules: []Rule{
			established(), neighbourDiscovery(), midStream(InDevice), dispatch(InDevice, mapEgress), unknownDevice(InDevice),
		}},
		{Name: "output", Hook: Output, After: 1, Rules: []Rule{
			unknownDevice(OutDevice, Condition{Field: OutOutDevice, Op: NotIn, Set: setSelf}),
		}},
	}
}

func accept(when ...Condition) Rule { return Rule{When: when, Verdict: Verdict{Kind: Accept}} }

func drop(name string, when ...Condition) Rule {
	return Rule{Comment: name, When: when, Count: true, Verdict: Verdict{Kind: Drop}}
}

// Bits of conntrack's states.
const (
	stateEstablished = 1 << 1
	stateRelated     = 1 << 2
	stateNew         = 1 << 3
)

func state(bits uint32) Condition {
	return Condition{Field: State, Op: HasAny, Value: string(binary.NativeEndian.AppendUint32(nil, bits))}
}

func established() Rule { return accept(state(stateEstablished | stateRelated)) }

func toItself() Rule { return accept(Condition{Field: InOutDevice, Op: In, Set: setSelf}) }

// midStream drops a segment that conntrack takes for the first of a connection, and that is not: when an
// entry was deleted because the connection became denied, the answers of the other end would make it
// anew, in the direction that is allowed.
func midStream(f Field) Rule {
	return drop("mid-stream", append([]Condition{{Field: f, Op: In, Set: setIsolated}}, segment()...)...)
}

// segment is such a segment.
func segment() []Condition {
	const fin, syn, rst, ack = 1, 2, 4, 16
	return []Condition{
		{Field: Protocol, Op: Equal, Value: string([]byte{byte(policy.TCP)})},
		{Field: TCPFlags, Op: NotEqual, Value: string([]byte{syn}), Mask: string([]byte{fin | syn | rst | ack})},
		state(stateNew),
	}
}

func dispatch(f Field, m string) Rule {
	return Rule{When: []Condition{{Field: f, Op: VerdictOf, Set: m}}}
}

// unknownDevice drops what comes from, or goes to, a pod's device that is no endpoint. Tunnels' devices
// have a dash where pods' have a digit.
func unknownDevice(f Field, more ...Condition) Rule {
	return drop("unknown-device", append(podDevice(f), more...)...)
}

// neighbourDiscovery lets a pod ask the node for its link-layer address, and answer: without, it has no
// way to anybody. That is the link's business, not a flow that a policy could mean.
func neighbourDiscovery() Rule {
	const solicitation, advertisement = 135, 136
	return accept(
		Condition{Field: InInDevice, Op: In, Set: setSelf},
		Condition{Field: Protocol, Op: Equal, Value: string([]byte{byte(policy.ICMPv6)})},
		Condition{Field: ICMPType, Op: Within, Value: string([]byte{solicitation}), Last: string([]byte{advertisement})})
}
