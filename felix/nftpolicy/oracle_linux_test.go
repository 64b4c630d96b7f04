// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"log/slog"
	"os"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/policytest"
)

// TestOracle: what becomes of real packets, and what rules count of them, is what policy/eval says;
// HELIOGRAPH_LONG=1 for 5,000 of them.
func TestOracle(t *testing.T) {
	o := policytest.Options{Packets: 1500}
	switch {
	case testing.Short():
		o.Packets = 300
	case os.Getenv("HELIOGRAPH_LONG") == "1":
		o.Packets = 5000
	}
	policytest.Run(t, func(t testing.TB) policytest.Renderer {
		k, err := Open()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = k.Close() })
		return New(k, slog.New(slog.DiscardHandler))
	}, o)
}
