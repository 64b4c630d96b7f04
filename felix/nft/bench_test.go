// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

// BenchmarkOneWorkload is a pod that comes and goes on a node of a cluster of 5,000.
func BenchmarkOneWorkload(b *testing.B) {
	n := usual()
	for i := range 5000 {
		a4, a6 := netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), pod(i + 1000).IPs[1]
		n.Nodes = append(n.Nodes, a4, a6)
		n.NoNAT = append(n.NoNAT, netip.PrefixFrom(a4, 32), netip.PrefixFrom(a6, 128))
	}
	for i := range 250 {
		n.Workloads = append(n.Workloads, pod(i+10))
	}
	more := n
	more.Workloads = append(append([]desired.Workload(nil), n.Workloads...), pod(9000))
	d := New(sink{}, slog.New(slog.DiscardHandler))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%2 == 0 {
			d.SetDesired(n)
		} else {
			d.SetDesired(more)
		}
		if err := d.Apply(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

// sink is a kernel that takes everything and costs nothing.
type sink struct{}

func (sink) Read() (State, error)     { return State{}, nil }
func (sink) Commit(Transaction) error { return nil }
func (sink) Limit() int               { return 1 << 20 }
