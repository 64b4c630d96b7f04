// SPDX-License-Identifier: Apache-2.0

// Package oracle holds our policy compiler and evaluator against an independent reading of the same API:
// the engine of sigs.k8s.io/kube-network-policies. Where that engine and the text of the API disagree,
// TestOracleIsWrong says so, case by case.
package oracle
