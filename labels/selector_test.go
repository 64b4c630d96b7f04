// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

var node1 = map[string]string{
	"rack":                   "r1",
	"kubernetes.io/hostname": "node1",
	"in":                     "here",
	"has":                    "",
	"note":                   `it's`,
}

func TestMatches(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want bool
	}{
		{"", true},
		{" \t\n", true},
		{"all()", true},
		{"all ( )", true},
		{"!all()", false},
		{"rack == 'r1'", true},
		{`rack=="r1"`, true},
		{"rack == 'r2'", false},
		{"rack == ''", false},
		{"missing == ''", false},
		{"rack != 'r1'", false},
		{"rack != 'r2'", true},
		{"missing != 'r2'", true},
		{"kubernetes.io/hostname == 'node1'", true},
		{"rack in {'r1', 'r2'}", true},
		{"rack in {'r2'}", false},
		{"rack in {}", false},
		{"rack not in {}", true},
		{"missing in {''}", false},
		{"missing not in {''}", true},
		{"rack not in {'r1'}", false},
		{"rack not\tin{'r2'}", true},
		{"has(rack)", true},
		{"has( rack )", true},
		{"has(missing)", false},
		{"!has(missing)", true},
		{"! ! has(rack)", true},
		{"kubernetes.io/hostname contains 'ode'", true},
		{"kubernetes.io/hostname contains 'x'", false},
		{"missing contains ''", false},
		{"kubernetes.io/hostname starts with 'node'", true},
		{"kubernetes.io/hostname starts  with 'ode'", false},
		{"kubernetes.io/hostname ends with '1'", true},
		{"kubernetes.io/hostname ends with 'node'", false},
		{`note == "it's"`, true},
		// Labels named as the words of the language.
		{"in == 'here'", true},
		{"in in {'here'}", true},
		{"has == ''", true},
		{"has(has)", true},
		{"not not in {'x'}", true},
		// && binds tighter than ||, ! tighter than both.
		{"has(rack) || has(missing) && has(missing)", true},
		{"(has(rack) || has(missing)) && has(missing)", false},
		{"!has(rack) || has(in)", true},
		{"!(has(rack) || has(in))", false},
		{"has(rack)&&has(in)&&!has(missing)", true},
	} {
		s, err := Parse(tt.in)
		if err != nil {
			t.Errorf("Parse(%q): %v", tt.in, err)
			continue
		}
		if got := s.Matches(node1); got != tt.want {
			t.Errorf("%q matches: got %v, want %v", tt.in, got, tt.want)
		}
	}
}

// TestNamespaces: what is in no namespace is selected by global(), and by what absence fulfils.
func TestNamespaces(t *testing.T) {
	for _, tt := range []struct {
		in, text         string
		inNamespace, out bool
	}{
		{"", "all()", true, true},
		{"all()", "all()", true, false},
		{"global( )", "global()", false, true},
		{"!global()", "!global()", true, false},
		{"all() && global()", "all() && global()", false, false},
		{"team == 'a' || global()", "team == 'a' || global()", true, true},
		{"team == 'a'", "team == 'a'", true, false},
		{"team != 'a'", "team != 'a'", false, true},
		{"!has(team)", "!has(team)", false, true},
	} {
		s, err := ParseNamespaces(tt.in)
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		if s.String() != tt.text {
			t.Errorf("%q: got %q, want %q", tt.in, s, tt.text)
		}
		if in, out := s.Matches(map[string]string{"team": "a"}), s.Matches(nil); in != tt.inNamespace || out != tt.out {
			t.Errorf("%q: selects the namespace: %v, what is in none: %v; want %v, %v", tt.in, in, out, tt.inNamespace, tt.out)
		}
	}
	if _, err := ParseNamespaces("globe()"); err == nil || err.Error() != `position 1: expected has(…), all() or global(), found "globe"` {
		t.Errorf("got %v", err)
	}
}

// tree is a selector by itself, to hold Parse and Matches against.
type tree struct {
	op       string
	key      string
	values   []string
	children []*tree
}

func grow(r *rand.Rand, depth int) *tree {
	leaves := []string{"==", "!=", "in", "not in", "has", "contains", "starts with", "ends with", "all"}
	if depth > 0 && r.IntN(3) > 0 {
		t := &tree{op: []string{"&&", "||", "!"}[r.IntN(3)]}
		n := 2 + r.IntN(2)
		if t.op == "!" {
			n = 1
		}
		for range n {
			t.children = append(t.children, grow(r, depth-1))
		}
		return t
	}
	t := &tree{op: leaves[r.IntN(len(leaves))], key: string("abc"[r.IntN(3)])}
	for range 1 + r.IntN(2) {
		t.values = append(t.values, []string{"", "x", "y", "xy"}[r.IntN(4)])
	}
	return t
}

// text writes it with whatever parentheses, quotes and spaces are allowed.
func (t *tree) text(r *rand.Rand) string {
	space := func() string { return []string{" ", "  ", "\t"}[r.IntN(3)] }
	quote := func(v string) string { q := []string{"'", `"`}[r.IntN(2)]; return q + v + q }
	var text string
	switch t.op {
	case "&&", "||":
		var parts []string
		for _, c := range t.children {
			parts = append(parts, "("+c.text(r)+")")
		}
		text = strings.Join(parts, space()+t.op+space())
	case "!":
		text = "!(" + t.children[0].text(r) + ")"
	case "all":
		text = "all()"
	case "has":
		text = "has(" + t.key + ")"
	case "in", "not in":
		var values []string
		for _, v := range t.values {
			values = append(values, quote(v))
		}
		text = t.key + space() + strings.ReplaceAll(t.op, " ", space()) + space() + "{" + strings.Join(values, ","+space()) + "}"
	default:
		text = t.key + space() + strings.ReplaceAll(t.op, " ", space()) + space() + quote(t.values[0])
	}
	if r.IntN(4) == 0 {
		text = "(" + text + ")"
	}
	return text
}

// selects is the meaning, written down once more.
func (t *tree) selects(l map[string]string) bool {
	v, ok := l[t.key]
	switch t.op {
	case "&&":
		return !slices.ContainsFunc(t.children, func(c *tree) bool { return !c.selects(l) })
	case "||":
		return slices.ContainsFunc(t.children, func(c *tree) bool { return c.selects(l) })
	case "!":
		return !t.children[0].selects(l)
	case "all":
		return true
	case "has":
		return ok
	case "==":
		return ok && v == t.values[0]
	case "!=":
		return !ok || v != t.values[0]
	case "in":
		return ok && slices.Contains(t.values, v)
	case "not in":
		return !ok || !slices.Contains(t.values, v)
	case "contains":
		return ok && strings.Contains(v, t.values[0])
	case "starts with":
		return ok && strings.HasPrefix(v, t.values[0])
	}
	return ok && strings.HasSuffix(v, t.values[0])
}

// TestSelectsAsWritten compares with a naive evaluator: the selector, its canonical form, and what its
// requirements say of all that it selects.
func TestSelectsAsWritten(t *testing.T) {
	for seed := range uint64(5_000) {
		r := rand.New(rand.NewPCG(seed, 0))
		want := grow(r, 4)
		text := want.text(r)
		s := must(t, text)
		again := must(t, s.String())
		for range 20 {
			l := map[string]string{}
			for _, k := range []string{"a", "b", "c"} {
				if r.IntN(2) == 0 {
					l[k] = []string{"", "x", "y", "xy", "z"}[r.IntN(5)]
				}
			}
			selects := want.selects(l)
			if got := s.Matches(l); got != selects {
				t.Fatalf("seed %d: %q selects %v: got %v, want %v", seed, text, l, got, selects)
			}
			if again.Matches(l) != selects {
				t.Fatalf("seed %d: %q has the canonical form %q, which means something else", seed, text, s)
			}
			for _, req := range s.Requirements() {
				v, ok := l[req.Key]
				if selects && (!ok || req.Values != nil && !slices.Contains(req.Values, v)) {
					t.Fatalf("seed %d: %q selects %v, which lacks the requirement %v", seed, text, l, req)
				}
			}
		}
	}
}

func TestString(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "all()"},
		{" all( ) ", "all()"},
		{"((all()))", "all()"},
		{`a=="b"`, "a == 'b'"},
		{`a=="it's"`, `a == "it's"`},
		{`a=='say "x"'`, `a == 'say "x"'`},
		{"a in{ 'y','x', 'y' }", "a in {'x', 'y'}"},
		{"a not  in {}", "a not in {}"},
		{"a starts  with 'x'", "a starts with 'x'"},
		{"((a == 'b') && (has(c)))&&has(d)", "a == 'b' && has(c) && has(d)"},
		{"(has(a)||has(b))&&has(c)", "(has(a) || has(b)) && has(c)"},
		{"has(a)||(has(b)&&has(c))", "has(a) || has(b) && has(c)"},
		{"!(has(a))", "!has(a)"},
		{"!(has(a)&&has(b))", "!(has(a) && has(b))"},
		{"!!has(a)", "!!has(a)"},
		{"!(!has(a))", "!!has(a)"},
	} {
		s, err := Parse(tt.in)
		if err != nil {
			t.Errorf("Parse(%q): %v", tt.in, err)
			continue
		}
		if got := s.String(); got != tt.want {
			t.Errorf("Parse(%q).String(): got %q, want %q", tt.in, got, tt.want)
		}
	}
	if got := All().String(); got != "all()" {
		t.Errorf("All().String() = %q", got)
	}
}

func TestErrors(t *testing.T) {
	const operators = "==, !=, in, not in, contains, starts with or ends with"
	for _, tt := range []struct{ in, want string }{
		{"rack", "position 5: expected " + operators + ", found the end"},
		{"rack = 'r1'", `position 6: expected ` + operators + `, found "="`},
		{"rack == r1", `position 9: expected a value in quotes, found "r1"`},
		{"rack ==", "position 8: expected a value in quotes, found the end"},
		{"rack == 'r1", "position 12: expected ' to end the value that begins at position 9, found the end"},
		{"rack == 'ü' x", `position 13: expected &&, || or the end, found "x"`},
		{"== 'r1'", `position 1: expected a label, has(…), all(), ! or (, found "="`},
		{"rack == 'r1' && ", "position 17: expected a label, has(…), all(), ! or (, found the end"},
		{"rack == 'r1' & has(a)", `position 14: expected &&, || or the end, found "&"`},
		{"(has(a)", "position 8: expected &&, || or ), found the end"},
		{"has(a))", `position 7: expected &&, || or the end, found ")"`},
		{"has()", `position 5: expected a label, found ")"`},
		{"has(a, b)", `position 6: expected ), found ","`},
		{"all(x)", `position 5: expected ), found "x"`},
		{"global()", `position 1: expected has(…) or all(), found "global"`},
		{"a in 'b'", `position 6: expected {, found "'"`},
		{"a in {'b' 'c'}", `position 11: expected , or }, found "'"`},
		{"a in {'b',}", `position 11: expected a value in quotes, found "}"`},
		{"a in {'b'", "position 10: expected , or }, found the end"},
		{"a not 'b'", `position 7: expected in, found "'"`},
		{"a starts 'b'", `position 10: expected with, found "'"`},
		{"a like 'b'", `position 3: expected ` + operators + `, found "like"`},
		{"!", "position 2: expected a label, has(…), all(), ! or (, found the end"},
		{"()", `position 2: expected a label, has(…), all(), ! or (, found ")"`},
		{"ä == 'x'", `position 1: expected a label, has(…), all(), ! or (, found "ä"`},
	} {
		_, err := Parse(tt.in)
		var syntax *SyntaxError
		if !errors.As(err, &syntax) {
			t.Errorf("Parse(%q): got %v, want a *SyntaxError", tt.in, err)
			continue
		}
		if err.Error() != tt.want {
			t.Errorf("Parse(%q):\n got %v\nwant %s", tt.in, err, tt.want)
		}
	}
}

func TestLimits(t *testing.T) {
	deep := func(n int) string { return strings.Repeat("(", n) + "has(a)" + strings.Repeat(")", n) }
	negated := func(n int) string { return strings.Repeat("!", n) + "has(a)" }
	long := func(n int) string { return "a == '" + strings.Repeat("x", n-7) + "'" }
	for _, tt := range []struct {
		name, in string
		want     string // part of the error; empty: none
	}{
		{"deepest", deep(MaxDepth), ""},
		{"too deep", deep(MaxDepth + 1), fmt.Sprintf("position %d: expected at most 64 parentheses and negations", MaxDepth+1)},
		{"most negations", negated(MaxDepth), ""},
		{"too many negations", negated(MaxDepth + 1), "expected at most 64"},
		{"longest", long(MaxLength), ""},
		{"too long", long(MaxLength + 1), "16385 bytes long, more than 16384"},
		{"too long in canonical form", "has(a)" + strings.Repeat("||has(a)", MaxLength/8-1), "in its canonical form"},
		{"wide", "has(a)" + strings.Repeat(" || has(a)", 1000), ""},
		{"deep and never closed", strings.Repeat("(", MaxLength), "expected at most 64"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse(tt.in)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// What parses has a canonical form that parses to the same, and means the same.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "all()", "a == 'b'", `a != "b"`, "a in {'b', 'c'}", "a not in {}", "has(a)", "!has(a)",
		"a contains 'b'", "a starts with 'b'", "a ends with 'b'",
		"(a == 'b' || c == 'd') && !(e == 'f' && has(g)) || all()",
		"rack = 'r1'", "((((", "a in {'b',", "not not in {'x'}", "!!!has(a)", "a == '\x00\xff'", "global() || !all()",
	} {
		f.Add(s)
	}
	samples := []map[string]string{nil, node1, {"a": "b"}, {"a": "", "b": "c"}, {"a": "c", "c": "d", "e": "f", "g": ""}}
	f.Fuzz(func(t *testing.T, in string) {
		for _, parse := range []func(string) (Selector, error){Parse, ParseNamespaces} {
			checkCanonical(t, parse, in, samples)
		}
	})
}

func checkCanonical(t *testing.T, parse func(string) (Selector, error), in string, samples []map[string]string) {
	t.Helper()
	s, err := parse(in)
	if err != nil {
		if len(err.Error()) > 1024 {
			t.Fatalf("error of %d bytes", len(err.Error()))
		}
		return
	}
	if s == All() {
		return // the empty text, which is more than all() where namespaces are selected
	}
	canonical := s.String()
	again, err := parse(canonical)
	if err != nil {
		t.Fatalf("%q has the canonical form %q, which does not parse: %v", in, canonical, err)
	}
	if again.String() != canonical {
		t.Fatalf("%q has the canonical form %q, and that has %q", in, canonical, again.String())
	}
	for _, l := range samples {
		if s.Matches(l) != again.Matches(l) {
			t.Fatalf("%q and its canonical form %q differ on %v", in, canonical, l)
		}
	}
}

func BenchmarkMatches(b *testing.B) {
	s, err := Parse("rack in {'r1', 'r2'} && !has(edge) || kubernetes.io/hostname starts with 'node'")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if !s.Matches(node1) {
			b.Fatal("no match")
		}
	}
}
