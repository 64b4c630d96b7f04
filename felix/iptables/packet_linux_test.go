// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"log/slog"
	"os"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/policytest"
)

// open makes a driver of a variant on the kernel.
func open(t testing.TB, v Variant) *Table {
	t.Helper()
	k, err := Open(v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return New(k, slog.New(slog.DiscardHandler))
}

// longEnv asks for the long run.
const longEnv = "HELIOGRAPH_LONG"

// TestPackets: what becomes of real packets is what policy/eval says.
func TestPackets(t *testing.T) {
	o := policytest.Options{Packets: 1000}
	if os.Getenv(longEnv) == "1" {
		o.Packets = 5000
	}
	for _, v := range []Variant{NFT, Legacy} {
		t.Run(string(v), func(t *testing.T) {
			policytest.Run(t, func(t testing.TB) policytest.Renderer { return open(t, v) }, o)
		})
	}
}
