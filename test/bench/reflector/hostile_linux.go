// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/heliograph-dev/heliograph/internal/hostile"
	"github.com/heliograph-dev/heliograph/test/bench/table"
)

const (
	// attackFor and quietFor alternate: on a machine with other work, neighbours in time compare best.
	attackFor = time.Minute
	quietFor  = 20 * time.Second
	// changeEvery is how often one route of a good client comes or goes.
	changeEvery = 50 * time.Millisecond
	// resetEvery is how often the resetting client begins a session, and ends it.
	resetEvery = 100 * time.Millisecond
	// badRate is how many mutated messages are sent in a second.
	badRate = 1000
	// stallHold is the hold time of the client that does not read, in seconds.
	stallHold = 9
	// memoryLimit is what the reflector may take under attack, in KiB.
	memoryLimit = 256 << 10
)

// The router ID is not that of the reflectors whose messages were recorded: their routes would be taken for loops.
const hostileConf = `asNumber: 65000
routerID: 127.255.0.1
listen: {addresses: [127.0.0.1], port: 1790}
metricsAddress: 127.0.0.1:9813
stateDir: {dir}/state
clients:
- {name: clients, prefix: 127.1.0.0/16, accept: [10.0.0.0/8 le 32, "fd00::/32 le 128"], maxPrefixes: 64}
- {name: strangers, prefix: 127.2.0.0/16, accept: [11.0.0.0/8 le 32, "fd01::/16 le 128"], maxPrefixes: 64, addPaths: true}
`

// HostileOptions choose how long and with how many clients a reflector is attacked.
type HostileOptions struct {
	Binary   string // heliograph-reflector
	Clients  int    // good ones
	Duration time.Duration
}

// HostileResult is what an attack did.
type HostileResult struct {
	Clients         int
	Quiet, Attacked []time.Duration // changes, until the last good client has seen each
	Ended           []error         // good clients' sessions that ended
	Broken          int64           // UPDATEs that a good client could not read
	Before, Peak    int             // KiB resident
	After           int
	Sent            int64 // mutated messages
	Sessions        int64 // that they were sent in
	Notifications   int64 // in return
	Resets, LetIn   int64 // sessions that the resetting client began, and those that it got
	Stalls          int64 // sessions of the stalled client that were ended
	LongestStall    time.Duration
}

// hostile is an attack that runs.
type hostileRun struct {
	HostileOptions
	result HostileResult
	s      scenario
	p      *process
	change int // that comes next
	gone   bool

	sent, sessions, notifications, resets, letIn, stalls, longest atomic.Int64
	address                                                       atomic.Int64 // of the next bad session
}

// MeasureHostile attacks a reflector and compares with quiet times in between.
func MeasureHostile(ctx context.Context, o HostileOptions) ([]table.Table, error) {
	r, err := Attack(ctx, o)
	if err != nil {
		return nil, err
	}
	return []table.Table{r.table(o)}, nil
}

// Attack starts a reflector with good clients and attacks it.
func Attack(ctx context.Context, o HostileOptions) (HostileResult, error) {
	dir, err := os.MkdirTemp("", "heliograph-hostile")
	if err != nil {
		return HostileResult{}, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a scratch directory
	raiseFileLimit()
	p, err := target{file: "heliograph.yaml", conf: strings.ReplaceAll(hostileConf, "{dir}", dir), args: []string{o.Binary, "-f", "{dir}/heliograph.yaml"}}.start(ours, dir)
	if err != nil {
		return HostileResult{}, err
	}
	defer p.stop()
	h := &hostileRun{HostileOptions: o, s: fan(o.Clients), p: p, result: HostileResult{Clients: o.Clients}}
	if err := h.begin(); err != nil {
		return h.result, err
	}
	defer func() {
		for _, c := range h.s.clients {
			_ = c.conn.Close()
		}
	}()
	stop := h.s.keepAlive()
	defer stop()
	if err := h.rounds(ctx); err != nil {
		text, _ := os.ReadFile(dir + "/output")
		return h.result, fmt.Errorf("%w; the reflector's last words: %s", err, text[max(0, len(text)-2000):])
	}
	return h.finish(), nil
}

// begin brings the good clients up, each with its routes.
func (h *hostileRun) begin() error {
	if err := h.s.dial(); err != nil {
		return err
	}
	for _, c := range h.s.clients {
		if _, err := c.conn.Write(h.s.write(c)); err != nil {
			return err
		}
	}
	_, err := h.s.all.wait(patience)
	return err
}

// rounds alternates quiet and attack.
func (h *hostileRun) rounds(ctx context.Context) error {
	h.result.Before = h.p.resident()
	n := max(1, int(h.Duration/attackFor))
	attack := h.Duration / time.Duration(n)
	for i := range n {
		quiet, err := h.changes(min(quietFor, attack/3))
		if err != nil {
			return fmt.Errorf("in quiet: %w", err)
		}
		h.result.Quiet = append(h.result.Quiet, quiet...)
		attacked, err := h.attack(ctx, uint64(i), attack)
		if err != nil {
			return fmt.Errorf("under attack: %w", err)
		}
		h.result.Attacked = append(h.result.Attacked, attacked...)
		fmt.Fprintf(os.Stderr, "round %d of %d: quiet p99 %s, attacked p99 %s, %d messages, %d KiB\n", i+1, n,
			quantile(quiet, 0.99), quantile(attacked, 0.99), h.sent.Load(), h.p.resident())
	}
	return nil
}

// attack lets all bad ones loose for a while.
func (h *hostileRun) attack(ctx context.Context, seed uint64, d time.Duration) ([]time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	var mutators []*hostile.Mutator
	for i := range uint64(2) {
		m, err := hostile.New(2*seed + i)
		if err != nil {
			return nil, err
		}
		mutators = append(mutators, m)
	}
	for _, m := range mutators {
		work.Go(func() { h.mutate(ctx, m, len(mutators)) })
	}
	work.Go(func() { h.reset(ctx) })
	work.Go(func() { h.stall(ctx) })
	return h.changes(d)
}

// changes lets one route after the other come and go, at an even pace.
func (h *hostileRun) changes(d time.Duration) ([]time.Duration, error) {
	var out []time.Duration
	tick := time.NewTicker(changeEvery)
	defer tick.Stop()
	for end := time.Now().Add(d); time.Now().Before(end); <-tick.C {
		c := h.s.clients[h.change/2%len(h.s.clients)]
		took, err := h.s.changeOne(c, c.first+h.change/2%2, h.gone)
		if err != nil {
			return out, err
		}
		h.change, h.gone = h.change+1, !h.gone
		out = append(out, took)
		h.result.Peak = max(h.result.Peak, h.p.resident())
	}
	return out, nil
}

// finish adds up.
func (h *hostileRun) finish() HostileResult {
	r := &h.result
	r.After = h.p.resident()
	for _, c := range h.s.clients {
		r.Broken += c.broken.Load()
		select {
		case err := <-c.ended:
			r.Ended = append(r.Ended, fmt.Errorf("client %d: %w", c.id, err))
		default:
		}
	}
	r.Sent, r.Sessions, r.Notifications = h.sent.Load(), h.sessions.Load(), h.notifications.Load()
	r.Resets, r.LetIn, r.Stalls, r.LongestStall = h.resets.Load(), h.letIn.Load(), h.stalls.Load(), time.Duration(h.longest.Load())
	return *r
}

func raiseFileLimit() {
	lim := syscall.Rlimit{}
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err == nil {
		lim.Cur = lim.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim)
	}
}

func (r HostileResult) table(o HostileOptions) table.Table {
	t := table.Table{
		Title: fmt.Sprintf("%s of attack on a reflector with %d good clients", o.Duration, r.Clients),
		Note: fmt.Sprintf("%d mutated messages a second in sessions of ever new clients, one client that resets %d times a second, one that stops reading. "+
			"Meanwhile, each %s, one route of a good client comes or goes, until the last good client has seen it; beside it the same in quiet times in between. "+
			"%d changes in quiet, %d under attack.", badRate, time.Second/resetEvery, changeEvery, len(r.Quiet), len(r.Attacked)),
	}
	row := func(what, ours, beside, theirs string, ratio float64, target table.Target) {
		t.Rows = append(t.Rows, table.Row{What: what, Ours: ours, Beside: beside, Theirs: theirs, Ratio: ratio, Target: target})
	}
	count := func(what string, a int64, beside string, b int64, target table.Target) {
		row(what, fmt.Sprint(a), beside, fmt.Sprint(b), float64(a)/float64(max(b, 1)), target)
	}
	for _, q := range []float64{0.5, 0.99} {
		a, b, target := quantile(r.Attacked, q), quantile(r.Quiet, q), table.Target{}
		if q == 0.99 {
			target = table.AtMost(2)
		}
		row(fmt.Sprintf("a change, p%g", 100*q), table.Millis(a), "in quiet", table.Millis(b), a.Seconds()/b.Seconds(), target)
	}
	count("good sessions that lasted", int64(r.Clients-len(r.Ended)), "all", int64(r.Clients), table.AtLeast(1))
	count("UPDATEs that good clients could read", 1-min(1, r.Broken), "all", 1, table.AtLeast(1))
	mib := func(kib int) string { return fmt.Sprintf("%.1f MiB", float64(kib)/1024) }
	row("memory, at most", mib(r.Peak), "limit", mib(memoryLimit), float64(r.Peak)/memoryLimit, table.AtMost(1))
	row("memory, after", mib(r.After), "before", mib(r.Before), float64(r.After)/float64(r.Before), table.Target{})
	count("mutated messages sent", r.Sent, "NOTIFICATIONs for them", r.Notifications, table.Target{})
	count("mutated messages sent", r.Sent, "sessions for them", r.Sessions, table.Target{})
	count("sessions that the resetting client got", r.LetIn, "that it began", r.Resets, table.Target{})
	row(fmt.Sprintf("the stalled client was ended %d times, the longest time until then", r.Stalls), table.Millis(r.LongestStall), "two hold times",
		table.Millis(2*stallHold*time.Second), r.LongestStall.Seconds()/(2*stallHold), table.AtMost(1))
	return t
}

// ok says what an attack must not do, whatever the machine.
func (r HostileResult) ok() error {
	errs := slices.Clone(r.Ended)
	if r.Broken > 0 {
		errs = append(errs, fmt.Errorf("%d UPDATEs could not be read", r.Broken))
	}
	if r.Peak > memoryLimit {
		errs = append(errs, fmt.Errorf("%d KiB of memory", r.Peak))
	}
	if r.LongestStall > 2*stallHold*time.Second {
		errs = append(errs, fmt.Errorf("a client did not read for %s", r.LongestStall))
	}
	return errors.Join(errs...)
}
