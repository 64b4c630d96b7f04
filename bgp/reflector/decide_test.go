// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"slices"
	"strings"
	"testing"
	"testing/quick"
)

// RFC 4271 §9.1.2.2 and RFC 4456 §9, rule by rule, in whatever order the paths have come.
func TestDecide(t *testing.T) {
	type a = attrs
	base := a{localPref: 100, pathLen: 2, med: 10, neighborAS: 1, originator: 9, clusterLen: 1}
	with := func(f func(*a)) a { x := base; f(&x); return x }
	for _, tc := range []struct {
		name  string
		paths []a // the first is the best
		want  Reason
	}{
		{"one", []a{base}, ReasonOnly},
		{"local preference", []a{with(func(x *a) { x.localPref, x.pathLen = 200, 9 }), base}, ReasonLocalPref},
		{"AS path", []a{with(func(x *a) { x.pathLen, x.origin = 1, 2 }), base}, ReasonASPath},
		{"origin", []a{base, with(func(x *a) { x.origin, x.med = 1, 0 })}, ReasonOrigin},
		{"MED", []a{with(func(x *a) { x.med, x.originator = 5, 99 }), base}, ReasonMED},
		{"MED of different neighbours", []a{with(func(x *a) { x.neighborAS, x.med, x.originator = 2, 99, 1 }), base}, ReasonOriginator},
		{"MED is no total order", []a{
			with(func(x *a) { x.neighborAS, x.med, x.originator = 2, 50, 5 }),
			with(func(x *a) { x.med, x.originator = 1, 8 }),
			with(func(x *a) { x.med, x.originator = 2, 1 }),
		}, ReasonOriginator},
		{"originator", []a{with(func(x *a) { x.originator, x.clusterLen = 1, 9 }), base}, ReasonOriginator},
		{"cluster list", []a{with(func(x *a) { x.clusterLen = 0 }), base}, ReasonClusterList},
		{"address", []a{base, base}, ReasonAddress},
	} {
		list := make([]*path, len(tc.paths))
		for i := range tc.paths {
			list[i] = &path{attrs: &tc.paths[i], from: &source{addr: addr("10.0.0.1").Next()}}
			for range i {
				list[i].from.addr = list[i].from.addr.Next()
			}
		}
		best := list[0]
		for range 2 {
			for i, x := range list {
				x.next = nil
				if i+1 < len(list) {
					x.next = list[i+1]
				}
			}
			if got, why := decide(list[0]); got != best || why != tc.want {
				t.Errorf("%s: best is %v by %q, want %q", tc.name, *got.attrs, why, tc.want)
			}
			slices.Reverse(list)
		}
	}
}

// A policy's key is all that tells policies apart, and a compiled rule is its text.
func TestRules(t *testing.T) {
	for _, tc := range []struct {
		rule    string
		in, out string
	}{
		{"10.0.0.0/8", "10.0.0.0/8 10.1.0.0/16 10.1.2.3/32", "0.0.0.0/0 11.0.0.0/8"},
		{"10.0.0.0/8 ge 24", "10.1.1.0/24 10.1.2.3/32", "10.0.0.0/8 10.1.0.0/23"},
		{"10.0.0.0/8 ge 24 le 26", "10.1.1.0/24 10.1.2.0/26", "10.1.1.0/27 10.0.0.0/16"},
		{"fd00::/16 le 64", "fd00::/16 fd00:1::/64", "fd00:1::/65 fe80::/64"},
	} {
		r, err := ParseRule(tc.rule)
		if err != nil || r.String() != tc.rule {
			t.Errorf("%q: %v, %v", tc.rule, r, err)
		}
		c := Policy{Rules: []Rule{r}}.compile()
		for want, list := range map[bool]string{true: tc.in, false: tc.out} {
			for _, s := range strings.Fields(list) {
				f, p := fromNetip(pfx(s))
				if c.match(f, p) != want {
					t.Errorf("%q matches %s: %t", tc.rule, s, !want)
				}
			}
		}
	}
	for _, bad := range []string{"", "x", "10.0.0.1/8", "10.0.0.0/8 ge", "10.0.0.0/8 ge 33", "10.0.0.0/8 ge 26 le 24", "10.0.0.0/8 le 4", "10.0.0.0/8 gt 4"} {
		if r, err := ParseRule(bad); err == nil {
			t.Errorf("%q is %v", bad, r)
		}
	}
}

// Containment of keys is that of netip.
func TestContains(t *testing.T) {
	same := func(hi, lo uint64, a, b uint8) bool {
		p := prefix{hi: hi, lo: lo, bits: a % 129}.masked()
		q := prefix{hi: hi, lo: lo ^ 1<<(b%64), bits: b % 129}.masked()
		return p.contains(q) == p.netip(ipv6).Contains(q.netip(ipv6).Addr())
	}
	if err := quick.Check(same, nil); err != nil {
		t.Error(err)
	}
}
