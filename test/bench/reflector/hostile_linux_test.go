// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"os"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// A short attack: nobody but the attackers loses a session, what the others are sent is good, and memory
// stays. How long a change takes meanwhile depends on the machine: see bench reflector-hostile.
func TestAttack(t *testing.T) {
	const binary = "../../../bin/heliograph-reflector"
	if _, err := os.Stat(binary); err != nil {
		nettest.Skip(t, "make bin/heliograph-reflector first")
	}
	nettest.Run(t, func(t *testing.T) {
		r, err := Attack(t.Context(), HostileOptions{Binary: binary, Clients: 98, Duration: 20 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.ok(); err != nil {
			t.Error(err)
		}
		if r.Sent < 1000 || r.Notifications == 0 || r.Resets < 20 || r.Stalls == 0 {
			t.Errorf("that was no attack: %+v", r)
		}
		// Five sessions for nothing, then one after 1, 2, 4, 8 s.
		if r.LetIn > 12 {
			t.Errorf("the resetting client got %d sessions of %d", r.LetIn, r.Resets)
		}
		t.Logf("%d messages in %d sessions, %d NOTIFICATIONs; p99 %s in quiet, %s under attack; %d KiB before, %d at most", r.Sent, r.Sessions,
			r.Notifications, quantile(r.Quiet, 0.99), quantile(r.Attacked, 0.99), r.Before, r.Peak)
	})
}
