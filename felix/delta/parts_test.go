// SPDX-License-Identifier: Apache-2.0

package delta_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/felix/delta"
)

type pair struct {
	key   string
	value int
}

func newParts() (*tracker, *delta.Parts[string, int, pair]) {
	d := delta.New[string, int]()
	return d, delta.NewParts(d, func(p pair) (string, int) { return p.key, p.value })
}

func TestParts(t *testing.T) {
	d, parts := newParts()
	steps := []struct {
		name string
		part string
		list []pair
		want map[string]int
	}{
		{"first", "local", []pair{{"a", 1}, {"b", 2}, {"c", 3}}, map[string]int{"a": 1, "b": 2, "c": 3}},
		{"another part", "remote", []pair{{"x", 1}}, map[string]int{"a": 1, "b": 2, "c": 3, "x": 1}},
		{"change in the middle", "local", []pair{{"a", 1}, {"b", 9}, {"c", 3}}, map[string]int{"a": 1, "b": 9, "c": 3, "x": 1}},
		{"other order", "local", []pair{{"c", 3}, {"a", 1}, {"b", 9}}, map[string]int{"a": 1, "b": 9, "c": 3, "x": 1}},
		{"key in two parts", "local", []pair{{"a", 1}, {"x", 7}}, map[string]int{"a": 1, "x": 1}},
		{"the later part lets go", "remote", nil, map[string]int{"a": 1, "x": 7}},
		{"key twice in a part", "local", []pair{{"a", 1}, {"a", 2}}, map[string]int{"a": 2}},
		{"and once again", "local", []pair{{"a", 1}}, map[string]int{"a": 1}},
		{"nothing", "local", nil, map[string]int{}},
	}
	for _, s := range steps {
		parts.Set(s.part, s.list)
		if diff := cmp.Diff(s.want, maps.Collect(d.AllDesired())); diff != "" {
			t.Errorf("%s: desired (-want +got):\n%s", s.name, diff)
		}
	}
}

// However the lists came, the result is that of setting them once, in the order of their names.
func TestPartsForgetHistory(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 2))
		d, parts := newParts()
		lists := map[string][]pair{}
		for range 50 {
			name := fmt.Sprint("part", r.IntN(3))
			lists[name] = variation(r, lists[name])
			parts.Set(name, lists[name])
			want := map[string]int{}
			for _, n := range slices.Sorted(maps.Keys(lists)) {
				for _, p := range lists[n] {
					want[p.key] = p.value
				}
			}
			if diff := cmp.Diff(want, maps.Collect(d.AllDesired())); diff != "" {
				t.Fatalf("seed %d: desired (-want +got):\n%s", seed, diff)
			}
		}
	}
}

// variation changes a few elements of a list, seldom so that a key occurs twice.
func variation(r *rand.Rand, list []pair) []pair {
	next := slices.Clone(list)
	for range r.IntN(4) {
		p := pair{fmt.Sprint(r.IntN(60)), r.IntN(3)}
		at := 0
		if len(next) > 0 {
			at = r.IntN(len(next))
		}
		switch r.IntN(3) {
		case 0:
			next = slices.Insert(next, at, p)
		case 1:
			if len(next) > 0 {
				next = slices.Delete(next, at, at+1)
			}
		case 2:
			if len(next) > 0 {
				next[at].value = p.value
			}
		}
	}
	return next
}

func BenchmarkPartsOneMore(b *testing.B) {
	d, parts := newParts()
	list := make([]pair, 100_000)
	for i := range list {
		list[i] = pair{fmt.Sprint(i), i}
	}
	parts.Set("", list)
	longer := append(slices.Clone(list), pair{"new", 1})
	b.ResetTimer()
	for b.Loop() {
		parts.Set("", longer)
		parts.Set("", slices.Clone(list))
	}
	_ = d
}
