// SPDX-License-Identifier: Apache-2.0

// Package nftpolicy makes a policy.State true in the kernel: the nftables table `inet
// heliograph-policy`, straight over netlink. In our table means ours; no other is ever touched.
//
//	device ─ map ─▶ endpoint's chain ─ jump ─▶ policy's chain ─ lookup ─▶ pool, or set of ranges
//	  (egress,       (i-…, e-…: tiers,          (p-…: a rule per           (addresses-4, services-4,
//	   ingress)       their defaults)            alternative)               ...; a-…, s-…, r-…)
//
// Chains are shared: of endpoints by equal policy.Chain, of policies by all who refer to them. A pod
// that joins a set is one element, a policy that changes one chain, an endpoint one element of a map
// and perhaps a chain; each Apply is one transaction, so there is no moment between two states, and
// a state never half in force. The first Apply, and each after QueueResync, reads the table and
// repairs it, whoever made it so. Only what cannot be repaired is made anew, in one transaction too.
//
// It fails closed. A device of a pod that is no endpoint drops, an endpoint whose policy is missing
// drops, and a policy that the kernel does not take is replaced by one that drops, and named by
// Refused.
//
// What is rendered is plain values (ruleset.go), so all but the kernel's messages is tested without
// one.
package nftpolicy
