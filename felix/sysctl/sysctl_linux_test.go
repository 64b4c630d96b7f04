// SPDX-License-Identifier: Apache-2.0

package sysctl

import (
	"context"
	"log/slog"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

func TestKernel(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		d := New(Dir(DefaultRoot), slog.New(slog.DiscardHandler))
		d.SetDesired([]desired.Sysctl{
			{Path: "ipv4/ip_forward", Value: "1"},
			{Path: "ipv6/conf/all/forwarding", Value: "1"},
			{Path: "ipv4/conf/lo/rp_filter", Value: "2"},
		})
		for range 2 {
			if err := d.Apply(context.Background()); err != nil {
				t.Fatal(err)
			}
			if got, err := Dir(DefaultRoot).Read("ipv4/ip_forward"); got != "1" || err != nil {
				t.Errorf("ip_forward = %q, %v", got, err)
			}
			nettest.Cmd(t, "sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward")
			d.QueueResync()
		}
	})
}
