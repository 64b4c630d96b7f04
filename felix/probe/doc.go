// SPDX-License-Identifier: Apache-2.0

// Package probe gathers evidence about the ways (natively, by IPIP, by VXLAN) to every other node, for each
// family: it asks the other agents, by each way that may be used, and counts what comes back. It decides
// nothing (that is felix/path) and writes nothing to the kernel: the rules and routes that let a marked
// packet go by one method alone are drivers' work.
//
//	 node a                                                              node b
//	┌───────────────┐ question, mark Native ── table 80001 ─ fabric ───▶ ┌───────────────┐
//	│ Prober        │ ◀───────── fabric ─ table 80001 ── mark Native, answer │ Prober        │
//	│ one socket    │ question, mark IPIP ──── table 80002 ─ hel-ipip ─▶ │ one socket    │
//	│ per family on │ ◀─────── hel-ipip ─ table 80002 ──── mark IPIP, answer │ per family on │
//	│ the node's    │ question, mark VXLAN ─── table 80003 ─ hel-vxlan ▶ │ the node's    │
//	│ pod-network   │ ◀────── hel-vxlan ─ table 80003 ─── mark VXLAN, answer │ pod-network   │
//	│ address       │ if none is answered: ICMP echo, each mark ───────▶ │ address       │
//	└───────────────┘                                                    └───────────────┘
//
// A question comes back by the method that it went, so that one lost direction makes the method Lost at both
// ends: traffic that flows one way only is of no use to TCP, and both ends should leave it.
//
// # Parts
//
//	Prober   Run: waits, reads sockets, steps the core, publishes reports          probe.go, sockets_linux.go
//	 core    pure: configuration, packets and the time in, packets and reports out core.go
//	  plan     how often, from how many                                            plan.go
//	  lane     the steady probing of one group by one method                       lane.go
//	  burst    the quick questioning of a target in doubt                          burst.go
//	  pool     targets that want attention of their own: new, lost, silent         pool.go
//	  sizing   path MTU                                                            sizing.go
//	  track    what became of the last questions by one method                     track.go
//	  judge    what that means                                                     judge.go
//	  desk     whose questions are answered, and how many                          desk.go
//	 codec   the packet                                                            codec.go
//
// # How a failure is found
//
// All is quiet while questions are answered: a lane asks one member after the other, so seldom that a node
// spends at most a dozen questions a second however large the cluster is. The first lost question puts its
// target in doubt. It is then asked by all methods that it may use, every 200 ms, at the same instants, so
// that a stall of this machine or of the other one hits all methods alike. Five lost in a row by one method,
// while another one of the same node is answered, make the method Lost. If none is answered, that is no word
// about any of them, for a dead agent must not look like a dead path: the kernel is asked (ICMP echo), which
// lives on without its agent. If it is silent too, so is the target.
//
// Nodes that share their ways (Target.Group) speak for each other in large clusters: one that was not asked
// lately has the evidence of its group, marked Sampled. Two losses in a row at one member make all be asked
// for themselves, as fast as the bound on bursts allows, and losses at three of them since anybody of the
// group answered make the group's way Lost.
//
// Time is monotonic everywhere. What this process slept through (SIGSTOP, a starved machine) is not held
// against anybody: sockets are read before questions time out, and a loop that finds itself late throws its
// open questions away unjudged.
//
// # Who may ask
//
// Packets carry an HMAC over all that they say, the addresses and the family. Only addresses of nodes are
// listened to, and only if the packet came by the device of the method that it claims. The answering side
// keeps no state but rates; an answer counts once, for an open question with the same nonce to that target by
// that method. A packet sent again by somebody else costs one answer, to the true asker, never longer than
// the question, and changes nothing.
package probe
