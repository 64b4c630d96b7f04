// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// real is the kernel of a namespace, harmed by commands.
type real struct {
	*Kernel
	t *testing.T
}

func newReal(t *testing.T) real {
	k, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return real{k, t}
}

func (r real) nft(args ...string) string { return nettest.Cmd(r.t, "nft", args...) }

func (r real) deleteTable() { r.nft("delete", "table", "inet", "heliograph") }

func (r real) deleteDevice(device string) {
	r.nft("delete", "element", "inet", "heliograph", "workloads", "{", device, "}")
}

func (r real) addDevice(device string) {
	r.nft("add", "element", "inet", "heliograph", "workloads", "{", device, "}")
}

func (r real) drift() { r.nft("flush", "chain", "inet", "heliograph", "target") }

func TestKernel(t *testing.T) {
	for _, c := range cases {
		t.Run(strings.NewReplacer(" ", "_", ",", "").Replace(c.name), func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) {
				r := newReal(t)
				c.run(t, r, New(r, slog.New(slog.DiscardHandler)))
			})
		})
	}
}
