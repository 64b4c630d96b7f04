// SPDX-License-Identifier: Apache-2.0

package address

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/desired"
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
	t.Cleanup(k.Close)
	if !k.KeepsProtocol() {
		nettest.Skip(t, "this kernel has no IFA_PROTO")
	}
	return real{k, t}
}

func (r real) address(a desired.Address) {
	nettest.Cmd(r.t, "ip", "addr", "add", a.Prefix.String(), "dev", a.Device)
}

func (r real) remove(a desired.Address) {
	nettest.Cmd(r.t, "ip", "addr", "del", a.Prefix.String(), "dev", a.Device)
}

func TestKernel(t *testing.T) {
	for _, c := range cases {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) {
				r := newReal(t)
				c.run(t, r, New(r, slog.New(slog.DiscardHandler)))
			})
		})
	}
}

// TestKernelUsableAtOnce: no DAD, no route in the main table, and packets can be sent from it.
func TestKernelUsableAtOnce(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		r := newReal(t)
		apply(t, New(r, slog.New(slog.DiscardHandler)), a4, a6)
		if out := nettest.Cmd(t, "ip", "-6", "addr", "show", "dev", "lo"); strings.Contains(out, "tentative") {
			t.Errorf("addresses:\n%s", out)
		}
		if out := nettest.Cmd(t, "ip", "-6", "route", "show"); strings.Contains(out, "fd00:244::100") {
			t.Errorf("routes:\n%s", out)
		}
		nettest.Cmd(t, "ping", "-c1", "-w2", "-I", "fd00:244::100", "fd00:244::100")
		nettest.Cmd(t, "ping", "-c1", "-w2", "-I", "10.244.1.0", "10.244.1.0")
	})
}
