// SPDX-License-Identifier: Apache-2.0

// Package table writes the results of benchmarks as Markdown: each row shows both sides of a
// comparison, their ratio, and the target that the ratio should meet.
package table

import (
	"fmt"
	"io"
	"slices"
	"time"
)

// Table is one comparison's rows.
type Table struct {
	Title string
	Note  string // how it was measured; may be empty
	Rows  []Row
}

// Row compares heliograph with something beside it.
type Row struct {
	What   string
	Ours   string // our figure, printed
	Beside string // whom we are compared with
	Theirs string // their figure, printed
	Ratio  float64
	Target Target
}

// Target is a bound for a ratio. The zero Target is none.
type Target struct {
	Bound   float64
	AtLeast bool // otherwise at most
}

// AtLeast is a target met by ratios from bound up.
func AtLeast(bound float64) Target { return Target{bound, true} }

// AtMost is a target met by ratios up to bound.
func AtMost(bound float64) Target { return Target{Bound: bound} }

// Met tells whether the ratio meets the target.
func (t Target) Met(ratio float64) bool {
	if t.AtLeast {
		return ratio >= t.Bound
	}
	return t.Bound == 0 || ratio <= t.Bound
}

// String prints the target with its sign.
func (t Target) String() string {
	switch {
	case t.AtLeast:
		return fmt.Sprintf("≥ %g", t.Bound)
	case t.Bound != 0:
		return fmt.Sprintf("≤ %g", t.Bound)
	}
	return ""
}

// Write prints the table as Markdown.
func (t Table) Write(w io.Writer) error {
	if _, err := fmt.Fprintf(w, "## %s\n\n", t.Title); err != nil {
		return err
	}
	if t.Note != "" {
		if _, err := fmt.Fprintf(w, "%s\n\n", t.Note); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprint(w, "| what | heliograph | beside | theirs | ratio | target | met |\n|---|--:|---|--:|--:|--:|---|\n"); err != nil {
		return err
	}
	for _, r := range t.Rows {
		met := ""
		if r.Target != (Target{}) {
			met = map[bool]string{true: "yes", false: "**no**"}[r.Target.Met(r.Ratio)]
		}
		if _, err := fmt.Fprintf(w, "| %s | %s | %s | %s | %.3g | %s | %s |\n", r.What, r.Ours, r.Beside, r.Theirs, r.Ratio, r.Target, met); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(w)
	return err
}

// Missed counts the rows that miss their target.
func (t Table) Missed() int {
	n := 0
	for _, r := range t.Rows {
		if !r.Target.Met(r.Ratio) {
			n++
		}
	}
	return n
}

// Median of what was measured in several rounds.
func Median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(d))
	return s[len(s)/2]
}

// MedianRatio is the median of theirs to ours, round by round: on a noisy machine two runs next to each
// other compare better than two medians.
func MedianRatio(theirs, ours []time.Duration) float64 {
	ratios := make([]float64, min(len(theirs), len(ours)))
	for i := range ratios {
		ratios[i] = theirs[i].Seconds() / ours[i].Seconds()
	}
	if len(ratios) == 0 {
		return 0
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

// Millis prints a duration in milliseconds.
func Millis(d time.Duration) string { return fmt.Sprintf("%.2f ms", d.Seconds()*1e3) }

// PerSecond prints how many of n happen in a second at this pace.
func PerSecond(n int, d time.Duration) string {
	return fmt.Sprintf("%.0f/s", float64(n)/max(d.Seconds(), 1e-9))
}
