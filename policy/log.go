// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"crypto/sha256"
	"encoding/hex"
)

// LogGroup is the NFLOG group that renderers log to ("he" in ASCII).
const LogGroup = 0x6865

// Hash is 12 hex digits that stand for a name where that would be too long: names of sets and chains in
// the kernel, prefixes of logged packets.
func Hash(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:6])
}

// LogPrefixStart begins every LogPrefix.
const LogPrefixStart = "hel/"

// LogPrefix is what the kernel puts before a packet that it logs: 63 bytes are all that iptables has.
// cause is what decided: RuleID.String, TierCause or UnknownCause.
func LogPrefix(a Action, cause string) string { return LogPrefixStart + a.String() + "/" + Hash(cause) }

// TierCause is why a packet drops which no rule of a tier matched.
func TierCause(tier string, d Direction) string { return "tier " + tier + " " + d.String() }

// ChainCause is why a packet drops on which no tier decided.
func ChainCause(d Direction) string { return "no tier " + d.String() }

// UnknownCause is why a packet drops whose endpoint is unknown.
func UnknownCause(d Direction) string { return "unknown " + d.String() }

// Count is what a rule has seen.
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}
