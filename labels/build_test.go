// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBuild(t *testing.T) {
	for _, tt := range []struct {
		in           Selector
		want         string
		requirements []Requirement
		keys         []string
	}{
		{And(), "all()", nil, nil},
		{And(All(), All()), "all()", nil, nil},
		{In("a", "1"), "a == '1'", []Requirement{{"a", []string{"1"}}}, []string{"a"}},
		{In("a", "2", "1", "2"), "a in {'1', '2'}", []Requirement{{"a", []string{"1", "2"}}}, []string{"a"}},
		{In("a"), "a in {}", nil, []string{"a"}},
		{NotIn("a", "1"), "a != '1'", nil, []string{"a"}},
		{NotIn("a", "2", "1"), "a not in {'1', '2'}", nil, []string{"a"}},
		{Has("a"), "has(a)", []Requirement{{Key: "a"}}, []string{"a"}},
		{Lacks("a"), "!has(a)", nil, []string{"a"}},
		{
			And(Lacks("z"), In("b", "1"), And(Has("a"), In("b", "1"))), "!has(z) && b == '1' && has(a)",
			[]Requirement{{"b", []string{"1"}}, {Key: "a"}}, []string{"a", "b", "z"},
		},
		{And(In("b", "1"), In("b", "1")), "b == '1'", []Requirement{{"b", []string{"1"}}}, []string{"b"}},
		{must(t, "a contains 'x' && (b == '1' || has(c))"), "a contains 'x' && (b == '1' || has(c))", []Requirement{{Key: "a"}}, []string{"a", "b", "c"}},
		{must(t, "a == '1' || b == '1'"), "a == '1' || b == '1'", nil, []string{"a", "b"}},
	} {
		if got := tt.in.String(); got != tt.want {
			t.Errorf("String: got %q, want %q", got, tt.want)
		}
		if got := must(t, tt.in.String()).String(); got != tt.want {
			t.Errorf("%q parses to %q", tt.want, got)
		}
		if diff := cmp.Diff(tt.requirements, tt.in.Requirements()); diff != "" {
			t.Errorf("%s: requirements (-want +got):\n%s", tt.want, diff)
		}
		if diff := cmp.Diff(tt.keys, tt.in.Keys()); diff != "" {
			t.Errorf("%s: keys (-want +got):\n%s", tt.want, diff)
		}
	}
}

// TestAndIsCanonical holds the promise that order and repetition do not matter.
func TestAndIsCanonical(t *testing.T) {
	a := And(In("a", "1"), Lacks("b"), NotIn("c", "2", "1"))
	b := And(NotIn("c", "1", "2", "1"), In("a", "1"), Lacks("b"), In("a", "1"))
	if a.String() != b.String() {
		t.Errorf("%s is not %s", a, b)
	}
}

func must(t *testing.T, text string) Selector {
	t.Helper()
	s, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
