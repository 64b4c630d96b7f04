// SPDX-License-Identifier: Apache-2.0

package routes

import (
	"fmt"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/heliograph-dev/heliograph/test/bench/table"
)

// arriving compares routes that come one by one, each written when it comes.
func (b *bench) arriving() (table.Table, error) {
	t := table.Table{
		Title: "Routes arriving one by one",
		Note:  "SetDesired with the whole new set and Apply for each route, beside writing every known route again for each (kube-router's way, with RouteReplace; sampled at small sizes since it grows with the square).",
	}
	for _, n := range []int{250, 500} {
		var ours, theirs []time.Duration
		for range rounds {
			us, _, err := b.arrive(n, 0, false)
			if err != nil {
				return t, err
			}
			them, err := b.writeAllAgain(n)
			if err != nil {
				return t, err
			}
			ours, theirs = append(ours, us), append(theirs, them)
		}
		us, them := table.Median(ours), table.Median(theirs)
		t.Rows = append(t.Rows, table.Row{
			What: fmt.Sprintf("%d routes", n), Ours: table.Millis(us), Beside: "all routes again", Theirs: table.Millis(them),
			Ratio: them.Seconds() / us.Seconds(), Target: map[bool]table.Target{true: table.AtLeast(100)}[n == 500],
		})
	}
	for _, c := range []struct {
		what     string
		n, there int
		asPart   bool
	}{
		{"1000 routes", 1000, 0, false},
		{"1000 routes beside 100000, as a part", 1000, 100_000, true},
		{"200 routes beside 100000, in one list", 200, 100_000, false},
	} {
		us, messages, err := b.arrive(c.n, c.there, c.asPart)
		if err != nil {
			return t, err
		}
		t.Rows = append(t.Rows, table.Row{
			What: fmt.Sprintf("messages for %s (%s)", c.what, table.Millis(us)), Ours: fmt.Sprint(messages),
			Beside: "one for each route", Theirs: fmt.Sprint(c.n), Ratio: float64(messages) / float64(c.n), Target: table.AtMost(1.05),
		})
	}
	return t, nil
}

// writeAllAgain is kube-router's way: each route that comes has all known ones written.
func (b *bench) writeAllAgain(n int) (time.Duration, error) {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return 0, err
	}
	t, err := timed(func() error {
		for i := range n {
			for j := range i + 1 {
				if err := netlink.RouteReplace(vishRoute(j, link.Attrs().Index)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return t, b.clear(n)
}
