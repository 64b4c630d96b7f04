// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/felix/feed"
)

// expireEvery is how often the book is looked through for what is over.
const expireEvery = 30 * time.Second

// Options configure NewLearner.
type Options struct {
	Feed *feed.Feed
	// InForce returns when the kernel obeys what the feed had when it was called.
	InForce func(ctx context.Context) error
	// Used says which of the addresses have connections.
	Used       func(ctx context.Context, addrs map[netip.Addr]bool) (map[netip.Addr]bool, error)
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Learner hears answers of DNS and tells the feed what is new in them. It is safe for concurrent use.
type Learner struct {
	opts Options
	held prometheus.Histogram

	mu    sync.Mutex
	book  *Book
	told  uint64 // how often the feed was told something
	known uint64 // up to which of these the kernel obeys
}

// NewLearner returns a learner that wants nothing, but keeps what an earlier agent knew until it is told
// what is wanted. Of that the feed is told at once, for a feed that has not heard of a record from us would
// forget it when the API server has said all.
func NewLearner(o Options, known []feed.Change) *Learner {
	l := &Learner{opts: o, book: NewBook(), held: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "heliograph_dns_held_seconds",
		Help:    "How long answers of DNS were held until policy for the addresses in them was in force.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 11),
	})}
	names := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "heliograph_dns_names", Help: "Names of domains that policy knows addresses of.",
	}, func() float64 { n, _ := l.size(); return float64(n) })
	addresses := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "heliograph_dns_addresses", Help: "Addresses that policy knows for names of domains.",
	}, func() float64 { _, n := l.size(); return float64(n) })
	o.Registerer.MustRegister(l.held, names, addresses)
	for _, c := range known {
		if r, ok := c.Object.(*Record); ok {
			l.book.Restore(r, time.Now())
			o.Feed.Put(c.Key, r)
		}
	}
	return l
}

func (l *Learner) size() (names, addresses int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.book.Size()
}

// Want sets the names that policy asks for: docs of Book.Want.
func (l *Learner) Want(patterns []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tell(l.book.Want(patterns))
}

// Heard takes a message of DNS, and returns when policy for the addresses in it is in force, or ctx ends.
func (l *Learner) Heard(ctx context.Context, message []byte) {
	start := time.Now()
	a, ok := Parse(message)
	if !ok {
		return
	}
	at, wait := l.learn(a, start)
	if !wait {
		return
	}
	if err := l.opts.InForce(ctx); err != nil {
		l.opts.Log.Warn("an answer of DNS was passed on before policy for its addresses is in force", "name", a.Names[0], "error", err)
	} else {
		l.settled(at)
	}
	l.held.Observe(time.Since(start).Seconds())
}

// learn says whether there is something to wait for: what this answer told, or another one just before.
func (l *Learner) learn(a Answer, now time.Time) (at uint64, wait bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.book.WantsAny(a.Names) {
		return 0, false
	}
	l.tell(l.book.Learn(a, now))
	return l.told, l.told > l.known
}

func (l *Learner) settled(at uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known = max(l.known, at)
}

// tell has the feed hear what became of names. The lock is held: of two words about a name the later is
// the last.
func (l *Learner) tell(names []string) {
	for _, name := range names {
		if r := l.book.Record(name); r != nil {
			l.opts.Feed.Put(Key(name), r)
		} else {
			l.opts.Feed.Delete(Key(name))
		}
	}
	if len(names) > 0 {
		l.told++
	}
}

// Run forgets what is over, until ctx ends.
func (l *Learner) Run(ctx context.Context) error {
	tick := time.NewTicker(expireEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			l.expire(ctx, now)
		}
	}
}

func (l *Learner) expire(ctx context.Context, now time.Time) {
	l.mu.Lock()
	due := l.book.Due(now)
	l.mu.Unlock()
	if len(due) == 0 {
		return
	}
	used, err := l.opts.Used(ctx, due)
	if err != nil {
		// They are kept: what is too much for a while is better than what is cut.
		if ctx.Err() == nil {
			l.opts.Log.Warn("cannot see which addresses of names have connections", "error", err)
		}
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// What became due meanwhile was not asked for.
	l.tell(l.book.Expire(now, func(ip netip.Addr) bool { return used[ip] || !due[ip] }))
}
