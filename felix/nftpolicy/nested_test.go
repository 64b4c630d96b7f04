// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/heliograph-dev/heliograph/policy"
)

// TestNestedTellsTheOutermost: what was told to change, one by one, is what yielding all gives.
func TestNestedTellsTheOutermost(t *testing.T) {
	w := newWorld(7)
	told := map[netip.Prefix]bool{}
	n := &nested{change: func(p netip.Prefix, add bool) {
		if told[p] == add {
			t.Errorf("%s: told twice, add %v", p, add)
		}
		if told[p] = add; !add {
			delete(told, p)
		}
	}}
	var in []netip.Prefix
	for range 3000 {
		if len(in) > 0 && w.IntN(2) == 0 {
			i := w.IntN(len(in))
			n.remove(in[i])
			in = slices.Delete(in, i, i+1)
		} else {
			p := w.prefix(true)
			n.add(p)
			in = append(in, p)
		}
		all := map[netip.Prefix]bool{}
		n.outermost(func(p netip.Prefix) bool { all[p] = true; return true })
		if diff := cmp.Diff(all, told, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
			t.Fatalf("(-all +told):\n%s", diff)
		}
		for _, p := range in {
			if !slices.ContainsFunc(in, func(q netip.Prefix) bool { return told[q] && q.Bits() <= p.Bits() && q.Contains(p.Addr()) }) {
				t.Fatalf("%s is lost", p)
			}
		}
	}
}

func TestMergedRanges(t *testing.T) {
	r := func(a, b uint16) policy.PortRange { return policy.PortRange{First: a, Last: b} }
	got := mergedRanges([]policy.PortRange{r(80, 80), r(10, 20), r(21, 30), r(15, 16), r(9, 8), r(65535, 65535), r(100, 65534)})
	if diff := cmp.Diff([]policy.PortRange{r(10, 30), r(80, 80), r(100, 65535)}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
