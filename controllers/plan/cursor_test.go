// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

func TestBlockName(t *testing.T) {
	seen := map[string]string{}
	for _, tt := range []struct{ cidr, want string }{
		{"10.244.0.0/26", "10-244-0-0-26"},
		{"10.244.0.64/26", "10-244-0-64-26"},
		{"0.0.0.0/20", "0-0-0-0-20"},
		{"fd00:244::/122", "fd00-244---122"},
		{"fd00:244::40/122", "fd00-244--40-122"},
		{"fd00:244:0:1::/122", "fd00-244-0-1---122"},
		{"1:2:3:4:5:6:7:0/112", "1-2-3-4-5-6-7-0-112"},
		{"::/112", "0---112"},
		{"::1:0/112", "0--1-0-112"},
		{"0:0:1::/112", "0-0-1---112"},
	} {
		got := BlockName(netip.MustParsePrefix(tt.cidr))
		if got != tt.want {
			t.Errorf("BlockName(%s) = %s, want %s", tt.cidr, got, tt.want)
		}
		if errs := validation.IsDNS1123Subdomain(got); len(errs) > 0 {
			t.Errorf("BlockName(%s) = %s: %v", tt.cidr, got, errs)
		}
		if other, ok := seen[got]; ok {
			t.Errorf("%s and %s are both named %s", tt.cidr, other, got)
		}
		seen[got] = tt.cidr
	}
}

func TestCursor(t *testing.T) {
	for _, tt := range []struct {
		name  string
		pool  string
		bits  int
		taken []string // by address
		want  []string
	}{
		{"empty", "10.0.0.0/24", 26, nil, []string{"10.0.0.0/26", "10.0.0.64/26", "10.0.0.128/26", "10.0.0.192/26"}},
		{"one block", "10.0.0.0/26", 26, nil, []string{"10.0.0.0/26"}},
		{"full", "10.0.0.0/26", 26, []string{"10.0.0.0/26"}, nil},
		{"holes", "10.0.0.0/24", 26, []string{"10.0.0.0/26", "10.0.0.128/26"}, []string{"10.0.0.64/26", "10.0.0.192/26"}},
		{"larger blocks of another time", "10.0.0.0/24", 26, []string{"10.0.0.0/25"}, []string{"10.0.0.128/26", "10.0.0.192/26"}},
		{"smaller ones", "10.0.0.0/25", 26, []string{"10.0.0.1/32", "10.0.0.32/28"}, []string{"10.0.0.64/26"}},
		{"the pool lies within a taken range", "10.0.0.0/24", 26, []string{"10.0.0.0/16"}, nil},
		{"nested", "10.0.0.0/24", 26, []string{"10.0.0.0/25", "10.0.0.0/26", "10.0.0.64/27", "10.0.0.192/28"}, []string{"10.0.0.128/26"}},
		{"outside", "10.0.0.0/25", 26, []string{"9.0.0.0/8", "10.0.1.0/24"}, []string{"10.0.0.0/26", "10.0.0.64/26"}},
		{"the end of IPv4", "255.255.255.128/25", 26, nil, []string{"255.255.255.128/26", "255.255.255.192/26"}},
		{"the end of IPv6", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff80/121", 122, nil,
			[]string{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff80/122", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffc0/122"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var taken []*block
			for _, s := range tt.taken {
				taken = append(taken, &block{cidr: netip.MustParsePrefix(s)})
			}
			c := newCursor(&pool{cidr: netip.MustParsePrefix(tt.pool), bits: tt.bits}, taken)
			var got []string
			for {
				p, ok := c.free()
				if !ok {
					break
				}
				got = append(got, p.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// cluster has n nodes with a primary of each family, and a spare of IPv4, all reported.
func cluster(n int) Input {
	in := Input{Pools: []v1alpha1.IPPool{
		{ObjectMeta: metav1.ObjectMeta{Name: "v4"}, Spec: v1alpha1.IPPoolSpec{CIDR: "10.0.0.0/8"}},
		{ObjectMeta: metav1.ObjectMeta{Name: "v6"}, Spec: v1alpha1.IPPoolSpec{CIDR: "fd00:244::/32"}},
	}}
	for i := range n {
		in.Nodes = append(in.Nodes, Node{Name: fmt.Sprintf("node%05d", i), Labels: map[string]string{"rack": fmt.Sprint("r", i%100)}})
	}
	for range 3 {
		p := Compute(in)
		in.Statuses = nil
		byNode := map[string][]v1alpha1.BlockStatus{}
		for _, b := range p.Create {
			in.Blocks = append(in.Blocks, v1alpha1.IPBlock{
				ObjectMeta: metav1.ObjectMeta{Name: BlockName(b.CIDR)},
				Spec:       v1alpha1.IPBlockSpec{CIDR: b.CIDR.String(), Pool: b.Pool, Node: b.Node, Primary: b.Primary},
			})
		}
		for _, b := range in.Blocks {
			inUse := int64(1)
			if b.Spec.Pool == "v4" && b.Spec.Primary {
				inUse = 30
			}
			byNode[b.Spec.Node] = append(byNode[b.Spec.Node], v1alpha1.BlockStatus{Name: b.Name, CIDR: b.Spec.CIDR, Pool: b.Spec.Pool, InUse: inUse})
		}
		for name, blocks := range byNode {
			in.Statuses = append(in.Statuses, v1alpha1.NodeStatus{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.NodeStatusStatus{Blocks: blocks}})
		}
	}
	return in
}

// One more node costs as many writes in a cluster of 5,000 as in an empty one.
func TestWritesPerEvent(t *testing.T) {
	for _, n := range []int{0, 50, 5000} {
		in := cluster(n)
		if p := Compute(in); n > 0 && len(p.Release)+len(p.Delete)+len(p.Forget) != 0 {
			t.Fatalf("%d nodes: %d releases, %d deletes", n, len(p.Release), len(p.Delete))
		}
		before := len(Compute(in).Create)
		in.Nodes = append(in.Nodes, Node{Name: "one-more"})
		if got := len(Compute(in).Create) - before; got != 2 {
			t.Errorf("%d nodes: one more needs %d writes, want 2", n, got)
		}
	}
}

func BenchmarkCompute(b *testing.B) {
	for _, n := range []int{100, 1000, 5000} {
		in := cluster(n)
		b.Run(fmt.Sprint(n, "nodes"), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Compute(in)
			}
		})
	}
}

// A /12 with a million blocks, nearly all of them held.
func BenchmarkLastBlock(b *testing.B) {
	pl := &pool{cidr: netip.MustParsePrefix("10.0.0.0/12"), bits: 32 - 0}
	pl.bits = 30
	var taken []*block
	c := newCursor(pl, nil)
	for {
		p, ok := c.free()
		if !ok {
			break
		}
		taken = append(taken, &block{cidr: p})
	}
	taken = taken[:len(taken)-1]
	for b.Loop() {
		if p, ok := newCursor(pl, taken).free(); !ok || p.String() != "10.15.255.252/30" {
			b.Fatal(p, ok)
		}
	}
}
