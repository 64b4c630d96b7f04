// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		out = append(out, prefix(text))
	}
	return out
}

func TestParts(t *testing.T) {
	for _, c := range []struct {
		name   string
		from   string
		except []string
		want   []string
	}{
		{"nothing", "10.0.0.0/8", nil, []string{"10.0.0.0/8"}},
		{"half", "10.0.0.0/8", []string{"10.128.0.0/9"}, []string{"10.0.0.0/9"}},
		{"a quarter", "10.0.0.0/8", []string{"10.64.0.0/10"}, []string{"10.0.0.0/10", "10.128.0.0/9"}},
		{"all", "10.0.0.0/8", []string{"0.0.0.0/0"}, nil},
		{"itself", "10.0.0.0/8", []string{"10.0.0.0/8"}, nil},
		{"all in parts", "0.0.0.0/0", []string{"0.0.0.0/1", "128.0.0.0/1"}, nil},
		{"overlapping", "10.0.0.0/30", []string{"10.0.0.0/31", "10.0.0.1/32"}, []string{"10.0.0.2/31"}},
		{"outside", "10.0.0.0/8", []string{"11.0.0.0/8", "::/0"}, []string{"10.0.0.0/8"}},
		{"not masked", "10.1.2.3/8", []string{"10.200.1.1/9"}, []string{"10.0.0.0/9"}},
		{"the last address", "255.255.255.254/31", []string{"255.255.255.255/32"}, []string{"255.255.255.254/32"}},
		{"IPv6", "fd00::/8", []string{"fd80::/9"}, []string{"fd00::/9"}},
		{"all of IPv6", "::/0", []string{"::/1", "8000::/1"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []netip.Prefix
			Net{CIDR: prefix(c.from), Except: prefixes(c.except...)}.Parts(func(p netip.Prefix) { got = append(got, p) })
			if diff := cmp.Diff(prefixes(c.want...), got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
