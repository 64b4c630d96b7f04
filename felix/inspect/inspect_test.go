// SPDX-License-Identifier: Apache-2.0

package inspect_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/felix/inspect"
)

func TestParseQuery(t *testing.T) {
	for in, want := range map[string]struct{ query, err string }{
		"":                   {},
		"10.244.0.0/16":      {query: "10.244.0.0/16"},
		"fd00:244::/56":      {query: "fd00:244::/56"},
		"0.0.0.0/0":          {query: "0.0.0.0/0"},
		"10.244.1.5":         {query: "10.244.1.5"},
		"FD00:244::0:7":      {query: "fd00:244::7"},
		"::ffff:10.244.1.5":  {query: "10.244.1.5"},
		"10.244.1.5/24":      {err: "has host bits: is 10.244.1.0/24 meant, or the address 10.244.1.5?"},
		"::ffff:10.0.0.0/96": {err: "write it as IPv4"},
		"fe80::1%eth0":       {err: "neither a prefix nor an address"},
		"10.244.0.0/33":      {err: "is no prefix"},
		"node1":              {err: "neither a prefix nor an address"},
	} {
		t.Run(in, func(t *testing.T) {
			q, err := inspect.ParseQuery(in)
			switch {
			case want.err == "" && err != nil:
				t.Fatal(err)
			case want.err != "" && (err == nil || !strings.Contains(err.Error(), want.err)):
				t.Fatalf("error = %v; want %q in it", err, want.err)
			}
			if diff := cmp.Diff(want.query, q.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestQueryMatches(t *testing.T) {
	prefixes := []string{"0.0.0.0/0", "10.244.0.0/16", "10.244.1.0/26", "10.244.1.64/26", "::/0", "fd00:244::/56", "fd00:244::80/122"}
	for in, want := range map[string][]string{
		"":                 prefixes,
		"10.244.1.0/24":    {"10.244.1.0/26", "10.244.1.64/26"},
		"10.244.1.0/26":    {"10.244.1.0/26"},
		"10.244.1.70":      {"0.0.0.0/0", "10.244.0.0/16", "10.244.1.64/26"},
		"::/0":             {"::/0", "fd00:244::/56", "fd00:244::80/122"},
		"fd00:244::81":     {"::/0", "fd00:244::/56", "fd00:244::80/122"},
		"fd00:244::80/123": nil,
	} {
		t.Run(in, func(t *testing.T) {
			q, err := inspect.ParseQuery(in)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range prefixes {
				if q.Matches(netip.MustParsePrefix(p)) {
					got = append(got, p)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever is taken is printed so that it is taken again, as the same.
func FuzzParseQuery(f *testing.F) {
	for _, s := range []string{"", "10.244.0.0/16", "fd00:244::7", "::ffff:1.2.3.4/120", "fe80::1%x", "1.2.3.4/0", "/", "::/129"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := inspect.ParseQuery(s)
		if err != nil {
			if len(err.Error()) > 400 {
				t.Errorf("the error says %d bytes", len(err.Error()))
			}
			return
		}
		again, err := inspect.ParseQuery(q.String())
		if err != nil || again != q {
			t.Errorf("%q is %+v, and its own text %+v, %v", s, q, again, err)
		}
		if q.Within.IsValid() && !q.Matches(q.Within) {
			t.Errorf("%q does not match itself", s)
		}
	})
}
