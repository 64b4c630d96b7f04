// SPDX-License-Identifier: Apache-2.0

// Package inforce is what an agent tells of the policies on its node: the vocabulary between who enforces,
// who shows it to root, and the CLI.
package inforce

import (
	"time"

	"github.com/heliograph-dev/heliograph/policy"
)

// Policy is a policy on a node. Its form as JSON is part of what `policy status -o json` prints: fields are
// added, and never change.
type Policy struct {
	Policy     policy.PolicyID `json:"policy"`
	Generation int64           `json:"generation"`
	// Here says that the policy selects pods of this node.
	Here  bool      `json:"here"`
	Heard time.Time `json:"heard"`
	// InForce is zero if it is not yet.
	InForce time.Time `json:"inForce,omitzero"`
	// Rules with what they have seen.
	Rules []RuleCount `json:"rules,omitempty"`
	// Refused is why the kernel did not take it.
	Refused string `json:"refused,omitempty"`
}

// RuleCount is what a rule has seen.
type RuleCount struct {
	Rule policy.RuleID `json:"rule"`
	policy.Count
}
