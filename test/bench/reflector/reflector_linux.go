// SPDX-License-Identifier: Apache-2.0

// Package reflector measures route reflectors with the same light clients: the time until every client
// has every route, what that costs the reflector, and how long one changed route takes to reach the last.
package reflector

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/heliograph-dev/heliograph/test/bench/table"
)

const (
	perClient = 4 // routes of each family
	churn     = 20
	patience  = 3 * time.Minute
	feedSize  = 100_000
	feedPack  = 5
)

// Options choose what is measured.
type Options struct {
	Sizes  []int
	Rounds int
}

// result is one run.
type result struct {
	converge time.Duration
	cpu      time.Duration
	peak     int // KiB
	churn    []time.Duration
}

// Measure runs all reflectors one after the other, and that in rounds: on a noisy machine neighbours in
// time compare best.
func Measure(ctx context.Context, o Options) ([]table.Table, error) {
	dir, err := os.MkdirTemp("", "heliograph-bench-reflector")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a scratch directory
	if err := os.Chmod(dir, 0o777); err != nil {
		return nil, err
	}
	raiseFileLimit()
	if slices.Contains(o.Sizes, 200) {
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "gobgprr"), "./cmd/gobgprr").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build GoBGP: %w\n%s", err, out)
		}
	}
	var out []table.Table
	for _, n := range o.Sizes {
		names := []string{ours, bird, frr}
		if n == 200 {
			names = append(names, gobgp)
		}
		all, err := rounds(dir, names, o.Rounds, func(string) scenario { return fan(n) })
		if err != nil {
			return nil, err
		}
		out = append(out, fanTable(n, o.Rounds, all))
	}
	all, err := rounds(dir, []string{ours, bird, frr}, o.Rounds, func(string) scenario { return feed() })
	if err != nil {
		return nil, err
	}
	return append(out, feedTable(o.Rounds, all)), nil
}

func rounds(dir string, names []string, n int, s func(name string) scenario) (map[string][]result, error) {
	all := map[string][]result{}
	for range n {
		for _, name := range names {
			r, err := s(name).run(name, dir)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			fmt.Fprintf(os.Stderr, "%s: %s, CPU %s, %d KiB, churn %s to %s\n", name, r.converge, r.cpu, r.peak, quantile(r.churn, 0.5), quantile(r.churn, 0.99))
			all[name] = append(all[name], r)
		}
	}
	return all, nil
}

// scenario is what the clients do.
type scenario struct {
	clients []*client
	all     *latch
	write   func(c *client) []byte
	churn   int
}

// fan: each client announces a few routes and wants those of all others.
func fan(n int) scenario {
	per := 2 * perClient
	s := scenario{all: newLatch(n), churn: churn}
	for i := range n {
		s.clients = append(s.clients, &client{
			id: i + 1, space: space{bits4: 26}, first: i * per, own: per, want: (n - 1) * per, have: make([]bool, n*per), all: s.all,
		})
	}
	s.write = func(c *client) []byte { return c.announce(c.first, c.first+c.own, per) }
	return s
}

// feed: one client announces very many, two want them.
func feed() scenario {
	s := scenario{all: newLatch(2)}
	for i := range 3 {
		c := &client{id: i + 1, space: space{bits4: 24, v4: true}, want: feedSize, have: make([]bool, feedSize), all: s.all}
		if i == 0 {
			c.own = feedSize
		}
		s.clients = append(s.clients, c)
	}
	s.write = func(c *client) []byte {
		if c.own == 0 {
			return nil
		}
		return c.announce(0, feedSize, feedPack)
	}
	return s
}

func (s scenario) run(name, dir string) (result, error) {
	p, err := start(name, dir)
	if err != nil {
		return result{}, err
	}
	defer p.stop()
	if err := s.dial(); err != nil {
		return result{}, err
	}
	defer func() {
		for _, c := range s.clients {
			_ = c.conn.Close()
		}
	}()
	stop := s.keepAlive()
	defer stop()
	time.Sleep(1500 * time.Millisecond) // whatever a new session starts is over: the clock begins in quiet
	bufs := make([][]byte, len(s.clients))
	for i, c := range s.clients {
		bufs[i] = s.write(c)
	}
	var r result
	before, begin := p.cpu(), time.Now()
	for i, c := range s.clients {
		if len(bufs[i]) > 1<<16 { // its socket will not take all at once
			go func() { _, _ = c.conn.Write(bufs[i]) }()
		} else if _, err := c.conn.Write(bufs[i]); err != nil {
			return r, err
		}
	}
	end, err := s.all.wait(patience)
	if err != nil {
		return r, err
	}
	r.converge, r.cpu = end.Sub(begin), p.cpu()-before
	time.Sleep(300 * time.Millisecond)
	r.churn, err = s.changes()
	r.peak = p.peak()
	return r, err
}

func (s scenario) dial() error {
	var wait sync.WaitGroup
	errs := make([]error, len(s.clients))
	slots := make(chan struct{}, 32)
	for i, c := range s.clients {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			errs[i] = c.dial(address)
		})
	}
	wait.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (s scenario) keepAlive() (stop func()) {
	done := make(chan struct{})
	go func() {
		t := time.NewTicker(hold / 3 * time.Second)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				for _, c := range s.clients {
					_, _ = c.conn.Write(message(4, nil))
				}
			case <-done:
				return
			}
		}
	}()
	return func() { close(done) }
}

// changes withdraws and announces one route at a time, of one family and then of the other.
func (s scenario) changes() ([]time.Duration, error) {
	var out []time.Duration
	for round := range s.churn {
		c := s.clients[round%len(s.clients)]
		i := c.first + round%2
		for _, come := range []bool{false, true} {
			d, err := s.changeOne(c, i, come)
			if err != nil {
				return nil, fmt.Errorf("change %d: %w", round, err)
			}
			out = append(out, d)
		}
	}
	return out, nil
}

// changeOne lets one route of a client come or go, and waits until all others have seen it.
func (s scenario) changeOne(c *client, i int, come bool) (time.Duration, error) {
	w := &watch{prefix: i, come: come, seen: newLatch(len(s.clients) - 1)}
	for _, other := range s.clients {
		if other != c {
			other.watch.Store(w)
		}
	}
	m := c.withdraw(i)
	if come {
		m = c.announce(i, i+1, 1)
	}
	begin := time.Now()
	if _, err := c.conn.Write(m); err != nil {
		return 0, err
	}
	end, err := w.seen.wait(30 * time.Second)
	return end.Sub(begin), err
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(d))
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

// figure is a median over the rounds.
func figure(rs []result, f func(result) float64) float64 {
	var v []float64
	for _, r := range rs {
		v = append(v, f(r))
	}
	slices.Sort(v)
	return v[len(v)/2]
}

func converge(r result) float64 { return r.converge.Seconds() * 1e3 }
func cpu(r result) float64      { return r.cpu.Seconds() * 1e3 }
func peak(r result) float64     { return float64(r.peak) / 1024 }
func p50(r result) float64      { return quantile(r.churn, 0.5).Seconds() * 1e3 }
func p99(r result) float64      { return quantile(r.churn, 0.99).Seconds() * 1e3 }

func fanTable(n, rounds int, all map[string][]result) table.Table {
	t := table.Table{
		Title: fmt.Sprintf("Route reflection to %d clients", n),
		Note: fmt.Sprintf("Each client announces %d IPv4 and %d IPv6 routes with a next hop of its own. Medians of %d interleaved rounds. "+
			"A change is one route withdrawn or announced, until the last client has seen it.", perClient, perClient, rounds),
	}
	add := func(what, unit, beside string, our, their func(result) float64, target table.Target) {
		a, b := figure(all[ours], our), figure(all[beside], their)
		t.Rows = append(t.Rows, table.Row{
			What: what, Ours: fmt.Sprintf("%.1f %s", a, unit), Beside: beside, Theirs: fmt.Sprintf("%.1f %s", b, unit), Ratio: a / b, Target: target,
		})
	}
	bound := func(at int, b float64) table.Target {
		if n != at {
			return table.Target{}
		}
		return table.AtMost(b)
	}
	for _, beside := range []string{bird, frr, gobgp} {
		if all[beside] == nil {
			continue
		}
		var toBIRD, cpuGoal, peakGoal, changeGoal table.Target
		switch beside {
		case bird:
			toBIRD, cpuGoal, peakGoal = bound(200, 0.25), bound(500, 0.15), bound(500, 3)
		case frr:
			cpuGoal, changeGoal = bound(500, 1), bound(200, 0.2)
		}
		add("until all have all", "ms", beside, converge, converge, toBIRD)
		add("CPU", "ms", beside, cpu, cpu, cpuGoal)
		add("peak memory", "MiB", beside, peak, peak, peakGoal)
		add("a change, p50", "ms", beside, p50, p50, table.Target{})
		add("a change, p99", "ms", beside, p99, p99, table.Target{})
		add("a change, p99 beside p50", "ms", beside, p99, p50, changeGoal)
	}
	if n == 2000 {
		limit := func(what, unit string, f func(result) float64, most float64) {
			a := figure(all[ours], f)
			t.Rows = append(t.Rows, table.Row{What: what, Ours: fmt.Sprintf("%.1f %s", a, unit), Beside: "limit",
				Theirs: fmt.Sprintf("%.0f %s", most, unit), Ratio: a / most, Target: table.AtMost(1)})
		}
		limit("until all have all", "ms", converge, 5000)
		limit("peak memory", "MiB", peak, 300)
	}
	return t
}

func feedTable(rounds int, all map[string][]result) table.Table {
	t := table.Table{
		Title: fmt.Sprintf("A full feed of %d routes", feedSize),
		Note:  fmt.Sprintf("One client sends them, %d in a message, each message with attributes of its own; two receive them. Medians of %d interleaved rounds.", feedPack, rounds),
	}
	for _, beside := range []string{bird, frr} {
		for _, row := range []struct {
			what, unit string
			f          func(result) float64
			target     table.Target
		}{{"until both have all", "ms", converge, table.AtMost(1)}, {"CPU", "ms", cpu, table.Target{}}, {"peak memory", "MiB", peak, table.Target{}}} {
			if beside != bird {
				row.target = table.Target{}
			}
			a, b := figure(all[ours], row.f), figure(all[beside], row.f)
			t.Rows = append(t.Rows, table.Row{What: row.what, Ours: fmt.Sprintf("%.1f %s", a, row.unit), Beside: beside,
				Theirs: fmt.Sprintf("%.1f %s", b, row.unit), Ratio: a / b, Target: row.target})
		}
	}
	return t
}
