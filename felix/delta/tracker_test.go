// SPDX-License-Identifier: Apache-2.0

package delta_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/felix/delta"
)

type tracker = delta.Tracker[string, int]

func TestTracker(t *testing.T) {
	tests := []struct {
		name string
		do   func(*tracker)
		want string // pending changes in order
	}{
		{"empty", func(*tracker) {}, ""},
		{"desired only", func(d *tracker) { d.SetDesired("a", 1) }, "create a=1"},
		{"actual only", func(d *tracker) { d.SetActual("a", 1) }, "delete a=1"},
		{"equal", func(d *tracker) { d.SetActual("a", 1); d.SetDesired("a", 1) }, ""},
		{"differ", func(d *tracker) { d.SetActual("a", 1); d.SetDesired("a", 2) }, "replace a=1 by 2"},
		{"zero value is a value", func(d *tracker) { d.SetDesired("a", 0) }, "create a=0"},
		{"no longer desired", func(d *tracker) { d.SetDesired("a", 1); d.DeleteDesired("a") }, ""},
		{"vanished from the kernel", func(d *tracker) {
			d.SetDesired("a", 1)
			d.SetActual("a", 1)
			d.DeleteActual("a")
		}, "create a=1"},
		{"a written key that changes again", func(d *tracker) {
			d.SetDesired("a", 1)
			d.SetActual("a", 1)
			d.SetDesired("a", 2)
		}, "replace a=1 by 2"},
		{"whole sets", func(d *tracker) {
			d.ReplaceDesired(maps.All(map[string]int{"old": 1}))
			d.ReplaceActual(maps.All(map[string]int{"old": 1, "orphan": 1}))
			d.ReplaceDesired(maps.All(map[string]int{"new": 2}))
		}, "create new=2, delete old=1, delete orphan=1"},
		{"whole sets may be empty", func(d *tracker) {
			d.SetDesired("a", 1)
			d.SetActual("b", 1)
			d.ReplaceDesired(maps.All(map[string]int(nil)))
			d.ReplaceActual(maps.All(map[string]int(nil)))
		}, ""},
		{"a slot used again", func(d *tracker) {
			d.SetDesired("a", 1)
			d.DeleteDesired("a")
			d.SetDesired("b", 2)
		}, "create b=2"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			d := delta.New[string, int]()
			tc.do(d)
			got := slices.Sorted(slices.Values(pending(d)))
			if diff := cmp.Diff(tc.want, strings.Join(got, ", ")); diff != "" {
				t.Errorf("pending (-want +got):\n%s", diff)
			}
			if d.InSync() != (tc.want == "") {
				t.Errorf("InSync() = %t with %q pending", d.InSync(), tc.want)
			}
		})
	}
}

// A driver notes each success while it walks; what failed stays.
func TestPartialFailure(t *testing.T) {
	d := delta.New[string, int]()
	for i, k := range []string{"a", "b", "c", "d"} {
		d.SetDesired(k, i)
	}
	d.SetActual("x", 1)
	d.SetActual("y", 2)
	for u := range d.PendingUpdates() {
		if u.Key != "b" {
			d.Written(u)
		}
	}
	for k := range d.PendingDeletes() {
		if k != "y" {
			d.DeleteActual(k)
		}
	}
	if diff := cmp.Diff([]string{"create b=1", "delete y=2"}, pending(d)); diff != "" {
		t.Errorf("pending (-want +got):\n%s", diff)
	}
}

func TestWrittenAfterAChange(t *testing.T) {
	d := delta.New[string, int]()
	d.SetDesired("a", 1)
	var u delta.Update[string, int]
	for u = range d.PendingUpdates() {
	}
	d.DeleteDesired("a") // gives the slot up
	d.SetDesired("b", 2) // and takes it
	d.Written(u)
	if diff := cmp.Diff([]string{"create b=2", "delete a=1"}, pending(d)); diff != "" {
		t.Errorf("pending (-want +got):\n%s", diff)
	}
}

func TestWalkVisitsInOrderOfBecomingPending(t *testing.T) {
	d := delta.New[string, int]()
	for _, k := range []string{"q", "m", "z", "a"} {
		d.SetDesired(k, 0)
	}
	d.SetActual("m", 0)
	d.SetDesired("b", 0)
	d.SetActual("m", 1)
	want := []string{"create q=0", "replace m=1 by 0", "create z=0", "create a=0", "create b=0"}
	if diff := cmp.Diff(want, pending(d)); diff != "" {
		t.Errorf("pending (-want +got):\n%s", diff)
	}
}

// Any sequence of calls leaves the difference of two plain maps.
func TestTrackerEqualsTwoMaps(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		d := delta.New[string, int]()
		desired, actual := map[string]int{}, map[string]int{}
		for range 300 {
			k, v := fmt.Sprint(r.IntN(12)), r.IntN(3)
			switch r.IntN(8) {
			case 0, 1:
				d.SetDesired(k, v)
				desired[k] = v
			case 2:
				d.DeleteDesired(k)
				delete(desired, k)
			case 3:
				d.SetActual(k, v)
				actual[k] = v
			case 4:
				d.DeleteActual(k)
				delete(actual, k)
			case 5:
				desired = randomMap(r)
				d.ReplaceDesired(maps.All(desired))
			case 6:
				actual = randomMap(r)
				d.ReplaceActual(maps.All(actual))
			case 7: // an Apply in which some fail
				for u := range d.PendingUpdates() {
					if r.IntN(2) == 0 {
						d.Written(u)
						actual[u.Key] = u.Desired
					}
				}
			}
			check(t, d, desired, actual)
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
	}
}

func randomMap(r *rand.Rand) map[string]int {
	m := map[string]int{}
	for range r.IntN(12) {
		m[fmt.Sprint(r.IntN(12))] = r.IntN(3)
	}
	return m
}

func check(t *testing.T, d *tracker, desired, actual map[string]int) {
	t.Helper()
	var want []string
	updates, deletes := 0, 0
	for k, v := range desired {
		switch have, ok := actual[k]; {
		case !ok:
			want = append(want, fmt.Sprintf("create %s=%d", k, v))
			updates++
		case have != v:
			want = append(want, fmt.Sprintf("replace %s=%d by %d", k, have, v))
			updates++
		}
	}
	for k, v := range actual {
		if _, ok := desired[k]; !ok {
			want = append(want, fmt.Sprintf("delete %s=%d", k, v))
			deletes++
		}
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, slices.Sorted(slices.Values(pending(d)))); diff != "" {
		t.Errorf("pending (-want +got):\n%s", diff)
	}
	if u, x := d.Pending(); u != updates || x != deletes {
		t.Errorf("Pending() = %d, %d; want %d, %d", u, x, updates, deletes)
	}
	if w, h := d.Len(); w != len(desired) || h != len(actual) {
		t.Errorf("Len() = %d, %d; want %d, %d", w, h, len(desired), len(actual))
	}
	if diff := cmp.Diff(desired, maps.Collect(d.AllDesired())); diff != "" {
		t.Errorf("desired (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(actual, maps.Collect(d.AllActual())); diff != "" {
		t.Errorf("actual (-want +got):\n%s", diff)
	}
}

// pending prints the pending changes, updates first.
func pending(d *tracker) (all []string) {
	for u := range d.PendingUpdates() {
		if u.Create {
			all = append(all, fmt.Sprintf("create %s=%d", u.Key, u.Desired))
		} else {
			all = append(all, fmt.Sprintf("replace %s=%d by %d", u.Key, u.Actual, u.Desired))
		}
	}
	for k, v := range d.PendingDeletes() {
		all = append(all, fmt.Sprintf("delete %s=%d", k, v))
	}
	return all
}
