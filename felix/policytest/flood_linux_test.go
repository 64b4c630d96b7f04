// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/internal/nettest"
	"github.com/heliograph-dev/heliograph/policy"
)

const closedUDP81 = "add table inet fake; add chain inet fake f { type filter hook forward priority 0; }; " +
	"flush chain inet fake f; add rule inet fake f ct state established,related accept; add rule inet fake f udp dport 81 drop"

// quiet keeps a flood from failing the test.
type quiet struct {
	testing.TB
	failed string
}

func (q *quiet) Errorf(format string, _ ...any) { q.failed = format }

// TestFlood: what is dropped for a moment is lost, what is let in for a moment got in, and what is
// established stays.
func TestFlood(t *testing.T) {
	const openRules, noRules = "flush chain inet fake f", "add rule inet fake f drop"
	for _, tt := range []struct{ name, harm, want string }{
		{"nothing happens", "", ""},
		{"a moment without rules", openRules, "the flood got in: %s"},
		{"a moment that drops new flows", noRules, "of the flood some was lost: %s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) {
				q := &quiet{TB: t}
				l := NewLab(q)
				f := &fake{t, closedUDP81}
				if err := f.nft(closedUDP81); err != nil {
					t.Fatal(err)
				}
				var allowed, denied []Packet
				for _, family := range []policy.Family{policy.IPv4, policy.IPv6} {
					allowed = append(allowed, l.Packet(0, 1, family, policy.UDP, 80), l.Packet(Outside, 1, family, policy.TCP, 80))
					denied = append(denied, l.Packet(0, 1, family, policy.UDP, 81))
				}
				flood := l.Flood(allowed, denied)
				for _, script := range []string{"", tt.harm, closedUDP81} {
					if err := f.nft(script); err != nil {
						t.Fatal(err)
					}
					<-time.After(100 * time.Millisecond) // the flood goes on
				}
				if r := flood.Stop(); q.failed != tt.want || r.Cut > 0 {
					t.Errorf("got %q, %s; want %q", q.failed, r, tt.want)
				}
			})
		})
	}
}
