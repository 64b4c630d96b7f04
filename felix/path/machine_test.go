// SPDX-License-Identifier: Apache-2.0

package path

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/bgp"
)

var (
	start  = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	key    = Key{Node: "b", Family: bgp.IPv4}
	all    = SetOf(Native, IPIP, VXLAN)
	native = SetOf(Native)
)

// facts are one method's in a row of a table: "u" not available, "?" no evidence, "a" answers, "d"
// doubtful, "l" lost.
func facts(text string, at time.Time) (available Set, r Report) {
	for m, fact := range strings.Split(text, "") {
		if fact != "u" {
			available |= SetOf(Method(m))
		}
		e := &r.Methods[m]
		switch fact {
		case "a":
			*e = Evidence{Verdict: Answers, Run: Window, RunSince: at, LastAnswer: at}
		case "d":
			*e = Evidence{Verdict: Doubtful, Run: 1, RunSince: at, Sent: Window, Lost: 1}
		case "l":
			*e = Evidence{Verdict: Lost, Run: Window, RunSince: at, Sent: Window, Lost: Window}
		}
	}
	r.Silent = !strings.ContainsAny(text, "ad")
	return available, r
}

// TestTruthTable goes through everything that a path can be told, for every set that a pool can allow,
// after every choice before: 5^3 facts, 7 sets, 4 choices before. The rules are written down a second
// time here, as they would be told to an operator.
func TestTruthTable(t *testing.T) {
	const letters = "u?adl"
	rows := 0
	for _, n := range letters {
		for _, i := range letters {
			for _, v := range letters {
				for set := Set(1); set <= all; set++ {
					for before := Native; before <= Methods; before++ {
						rows++
						checkRow(t, string([]rune{n, i, v}), set, before)
					}
				}
			}
		}
	}
	t.Logf("%d rows", rows)
}

func checkRow(t *testing.T, row string, set Set, before Method) {
	t.Helper()
	in := Input{Key: key, Wanted: []Set{set}, Adopted: before}
	in.Available, in.Report = facts(row, start)
	got := NewMachine("a").Decide(start, []Input{in})[0].Choose(set)
	if want := wanted(row, set, before); got != want {
		t.Errorf("facts %s, allowed %03b, before %s: chose %s, want %s", row, set, before, got, want)
	}
}

// wanted is the choice of a process that has just started, and found before in the kernel.
func wanted(row string, set Set, before Method) Method {
	fact := func(m Method) byte { return row[m] }
	allowed := func(m Method) bool { return m < Methods && set.Has(m) && fact(m) != 'u' }
	// What is in use stays, unless it is lost or cannot be.
	if allowed(before) && fact(before) != 'l' {
		return before
	}
	// Otherwise what answers, what is not known to be broken, or anything at all, each in order.
	for _, good := range []string{"a", "a?d", "a?dl"} {
		if good == "a?dl" && allowed(before) {
			return before
		}
		for m := range Methods {
			if allowed(m) && strings.IndexByte(good, fact(m)) >= 0 {
				return m
			}
		}
	}
	return Methods
}

// TestStory tells what becomes of one path over time.
func TestStory(t *testing.T) {
	type event struct {
		at    time.Duration
		facts string
		want  Method
	}
	tests := []struct {
		name   string
		set    Set
		before Method
		events []event
	}{
		{name: "a new node: by VXLAN until BGP has told, then natively after proof", set: all, before: Methods, events: []event{
			{0, "uu?", VXLAN}, {1, "uua", VXLAN}, {2, "auA", VXLAN}, {11, "AuA", VXLAN}, {16, "AuA", Native},
		}},
		{name: "a blackhole that BGP does not see", set: all, before: Native, events: []event{
			{0, "aua", Native}, {60, "duA", Native}, {62, "luA", VXLAN}, {70, "auA", VXLAN}, {79, "AuA", VXLAN}, {84, "AuA", Native},
		}},
		{name: "a loss begins the proof anew", set: all, before: VXLAN, events: []event{
			{0, "aua", VXLAN}, {8, "duA", VXLAN}, {9, "auA", VXLAN}, {18, "AuA", VXLAN}, {23, "AuA", Native},
		}},
		{name: "the better tunnel first", set: all, before: Native, events: []event{
			{0, "aaa", Native}, {5, "uAA", IPIP}, {9, "ulA", VXLAN}, {12, "uaA", VXLAN}, {26, "uAA", IPIP},
		}},
		{name: "a dead agent is no dead path", set: all, before: Native, events: []event{
			{0, "aua", Native}, {5, "?u?", Native}, {600, "?u?", Native},
		}},
		{name: "nothing works: the guess stays, and what answers first is taken at once", set: all, before: VXLAN, events: []event{
			{0, "ula", VXLAN}, {20, "u??", VXLAN}, {300, "ua?", VXLAN}, {301, "ual", IPIP}, {310, "uAa", IPIP},
		}},
		{name: "where nothing ever answers, BGP alone is believed after a while", set: all, before: VXLAN, events: []event{
			{0, "?u?", VXLAN}, {29, "?u?", VXLAN}, {34, "?u?", Native},
		}},
		{name: "only native is allowed: it stays, however bad", set: native, before: Native, events: []event{
			{0, "aua", Native}, {5, "lua", Native}, {9, "uua", Methods}, {10, "aua", Native},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := NewMachine("a")
			var since [Methods]time.Time // of the run of answers: a capital letter goes on with it
			for _, e := range tt.events {
				now := start.Add(e.at * time.Second)
				in := Input{Key: key, Wanted: []Set{tt.set}, Adopted: tt.before}
				in.Available, in.Report = facts(strings.ToLower(e.facts), now)
				for i := range since {
					if e.facts[i] == 'A' {
						in.Report.Methods[i].RunSince = since[i]
					} else {
						since[i] = now
					}
				}
				if got := m.Decide(now, []Input{in})[0].Choose(tt.set); got != e.want {
					t.Errorf("after %ds, facts %s: %s, want %s", e.at, e.facts, got, e.want)
				}
			}
		})
	}
}

// TestHoldDown shows that each failure doubles the proof, up to the limit, and that it is forgiven.
func TestHoldDown(t *testing.T) {
	m := NewMachine("a")
	now := start
	decide := func(row string, since time.Time) Decision {
		in := Input{Key: key, Wanted: []Set{all}, Adopted: Native}
		in.Available, in.Report = facts(row, since)
		return m.Decide(now, []Input{in})[0]
	}
	var proofs []time.Duration
	for range 8 {
		decide("aua", now)
		if d := decide("uua", now); d.Choose(all) != VXLAN {
			t.Fatalf("native is gone, and the choice is %s", d.Choose(all))
		}
		back := now
		d := decide("aua", back)
		for d.Choose(all) != Native {
			now = d.Next
			d = decide("aua", back)
		}
		proofs = append(proofs, now.Sub(back).Truncate(10*time.Second))
	}
	want := []time.Duration{10, 20, 40, 80, 160, 300, 300, 300}
	for i := range want {
		want[i] *= time.Second
	}
	if diff := cmp.Diff(want, proofs); diff != "" {
		t.Errorf("proofs (-want +got):\n%s", diff)
	}
	now = now.Add(Forgiven)
	if f := decide("aua", now).Methods[Native].Failures; f != 0 {
		t.Errorf("%d failures are not forgiven", f)
	}
}

// world is a network that fails at random. From it follows what an ideal prober would say.
type world struct {
	available, works Set
	node             bool // the other node answers at all
	since            [Methods]time.Time
}

// change breaks or mends something, at random.
func (w *world) change(r *rand.Rand, now time.Time) {
	switch bit := Set(1) << r.IntN(int(Methods)); r.IntN(8) {
	case 0:
		w.node = !w.node
	case 1, 2, 3:
		w.available ^= bit
	default:
		w.works ^= bit
	}
	for m := range Methods {
		if !w.answers(m) {
			w.since[m] = time.Time{}
		} else if w.since[m].IsZero() {
			w.since[m] = now
		}
	}
}

func (w *world) answers(m Method) bool { return w.node && w.available.Has(m) && w.works.Has(m) }

func (w *world) report(now time.Time) Report {
	r := Report{Silent: true}
	for m := range Methods {
		if w.answers(m) {
			run := min(Window, 1+int(now.Sub(w.since[m])/time.Second))
			r.Methods[m] = Evidence{Verdict: Answers, Run: run, RunSince: w.since[m]}
			r.Silent = false
		}
	}
	for m := range Methods {
		if !r.Silent && w.available.Has(m) && !w.answers(m) {
			r.Methods[m] = Evidence{Verdict: Lost, Run: Window}
		}
	}
	return r
}

// TestRandomEvents checks what must hold whatever happens, over a million steps of random worlds.
func TestRandomEvents(t *testing.T) {
	steps, worlds := 1000, 1000
	if testing.Short() {
		worlds = 50
	}
	for seed := range worlds {
		if why := randomWorld(uint64(seed), steps); why != "" {
			t.Fatalf("world %d: %s", seed, why)
		}
	}
	t.Logf("%d steps", steps*worlds)
}

func randomWorld(seed uint64, steps int) string {
	var (
		r         = rand.New(rand.NewPCG(seed, 1))
		w         = world{available: all, works: all, node: true}
		m, replay = NewMachine("a"), NewMachine("a")
		now       = start
		before    = Methods
		voluntary []time.Time
	)
	for step := range steps {
		now = now.Add(time.Duration(r.ExpFloat64() * float64(10*time.Second)))
		if r.IntN(3) > 0 {
			w.change(r, now)
		}
		in := Input{Key: key, Available: w.available, Wanted: []Set{all, native}, Adopted: Native, Report: w.report(now)}
		d := m.Decide(now, []Input{in})[0]
		if again := replay.Decide(now, []Input{in})[0]; again != d {
			return fmt.Sprintf("step %d: two machines that saw the same decide %v and %v", step, d, again)
		}
		if why := invariant(in, d); why != "" {
			return fmt.Sprintf("step %d: %s", step, why)
		}
		got := d.Choose(all)
		// Nothing is known against what was in use before.
		fine := before < Methods && d.Methods[before].Phase != Down
		switch {
		case got != before && fine && got > before:
			return fmt.Sprintf("step %d: changed from %s, which is not broken, to %s, which is worse", step, before, got)
		case got != before && fine:
			voluntary = append(voluntary, now)
		}
		before = got
		if n := len(voluntary); n > maxVoluntary && voluntary[n-1].Sub(voluntary[n-1-maxVoluntary]) < Forgiven {
			return fmt.Sprintf("step %d: more than %d changes to a better method within %s", step, maxVoluntary, Forgiven)
		}
	}
	return converges(m, w, now)
}

// maxVoluntary is how often a path may change to a better method, while the one in use works, within
// Forgiven: proofs of 10, 20, 40, 80, 160 and 300 s, for each of the two methods that are better than
// another.
const maxVoluntary = 12

// invariant says what is wrong with a decision; empty: nothing.
func invariant(in Input, d Decision) string {
	for _, set := range in.Wanted {
		got := d.Choose(set)
		if got != Methods && !set.Has(got) {
			return fmt.Sprintf("%s is not allowed", got)
		}
		if got != Methods && !in.Available.Has(got) {
			return fmt.Sprintf("%s cannot be programmed", got)
		}
		for m := range Methods {
			usable := set.Has(m) && in.Available.Has(m)
			if got == Methods && usable {
				return fmt.Sprintf("nothing is chosen, and %s could be", m)
			}
			if usable && in.Report.Methods[m].Verdict == Answers && in.Report.Methods[got].Verdict == Lost {
				return fmt.Sprintf("%s is chosen though it is lost, and %s answers", got, m)
			}
		}
	}
	return ""
}

// converges says whether, once nothing moves any more, what happened before is forgotten.
func converges(m *Machine, w world, now time.Time) string {
	fresh := NewMachine("a")
	var old, young Decision
	for range 200 { // longer than all of the declared times together
		now = now.Add(10 * time.Second)
		in := Input{Key: key, Available: w.available, Wanted: []Set{all}, Adopted: Methods, Report: w.report(now)}
		old, young = m.Decide(now, []Input{in})[0], fresh.Decide(now, []Input{in})[0]
	}
	if old.Choose(all) != young.Choose(all) {
		return fmt.Sprintf("in the end %s is chosen, and a fresh process chooses %s: available %03b, works %03b, node %t",
			old.Choose(all), young.Choose(all), w.available, w.works, w.node)
	}
	return ""
}

// BenchmarkDecide is a run of the loop in which nothing changed, in a cluster of a thousand nodes.
func BenchmarkDecide(b *testing.B) {
	m := NewMachine("a")
	var inputs []Input
	for i := range 2000 {
		in := Input{Key: Key{Node: fmt.Sprint("node", i/2), Family: bgp.IPv4 + bgp.Family(i%2*2)}, Wanted: []Set{all}, Adopted: Native}
		in.Available, in.Report = facts("aua", start)
		inputs = append(inputs, in)
	}
	b.ReportAllocs()
	for b.Loop() {
		m.Decide(start, inputs)
	}
}
