// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/felix/feed"
)

var begin = time.Unix(1_000_000, 0)

func answer(ttl time.Duration, name string, ips ...string) Answer {
	a := Answer{Names: []string{name}}
	for _, ip := range ips {
		a.Addrs = append(a.Addrs, Address{IP: netip.MustParseAddr(ip), TTL: ttl})
	}
	return a
}

func addresses(b *Book, name string) (out []string) {
	if r := b.Record(name); r != nil {
		for _, ip := range r.Addresses() {
			out = append(out, ip.String())
		}
	}
	return out
}

func TestBookKeepsWhatIsWanted(t *testing.T) {
	b := NewBook()
	b.Want([]string{"example.com", "*.example.org"})
	for name, kept := range map[string]bool{
		"example.com": true, "www.example.com": false, "example.org": false, "www.example.org": true, "a.www.example.org": true, "myexample.org": false,
	} {
		changed := b.Learn(answer(time.Hour, name, "192.0.2.1", "2001:db8::1"), begin)
		if kept != slices.Contains(changed, name) || kept != (len(addresses(b, name)) == 2) || kept != b.WantsAny([]string{name}) {
			t.Errorf("%s: changed %v, addresses %v; want it kept: %v", name, changed, addresses(b, name), kept)
		}
	}
	if changed := b.Learn(answer(time.Hour, "example.com", "192.0.2.1"), begin); len(changed) > 0 {
		t.Errorf("what is known changes %v", changed)
	}
	forgotten := b.Want([]string{"*.www.example.org"})
	slices.Sort(forgotten)
	if diff := cmp.Diff([]string{"example.com", "www.example.org"}, forgotten); diff != "" {
		t.Errorf("forgotten (-want +got):\n%s", diff)
	}
}

// TestBookExpires: an address ends when the resolver says, not before minLife, nor while it is used.
func TestBookExpires(t *testing.T) {
	b := NewBook()
	b.Want([]string{"a.b"})
	b.Learn(answer(time.Second, "a.b", "192.0.2.1"), begin)
	b.Learn(answer(time.Hour, "a.b", "2001:db8::1"), begin)
	b.Learn(answer(1000*time.Hour, "a.b", "192.0.2.3"), begin)
	used := netip.MustParseAddr("2001:db8::1")
	for _, tt := range []struct {
		after time.Duration
		inUse bool
		want  []string
	}{
		{minLife - 1, false, []string{"192.0.2.1", "192.0.2.3", "2001:db8::1"}},
		{minLife, false, []string{"192.0.2.3", "2001:db8::1"}},
		{time.Hour, true, []string{"192.0.2.3", "2001:db8::1"}},
		{time.Hour + minLife - 1, false, []string{"192.0.2.3", "2001:db8::1"}},
		{time.Hour + minLife, false, []string{"192.0.2.3"}},
		{maxLife, false, nil},
	} {
		now := begin.Add(tt.after)
		before := len(addresses(b, "a.b"))
		changed := b.Expire(now, func(ip netip.Addr) bool { return tt.inUse && ip == used })
		got := addresses(b, "a.b")
		if diff := cmp.Diff(tt.want, got); diff != "" || (len(changed) > 0) != (len(got) < before) {
			t.Errorf("after %s: changed %v (-want +got):\n%s", tt.after, changed, diff)
		}
	}
	if names, n := b.Size(); names != 0 || n != 0 {
		t.Errorf("%d names and %d addresses are left", names, n)
	}
}

// TestBookIsBounded: whoever makes up names and addresses drives out what would end first.
func TestBookIsBounded(t *testing.T) {
	b := NewBook()
	b.Want([]string{"*.b"})
	b.Learn(answer(maxLife, "long.b", "192.0.2.1"), begin)
	for i := range maxNames + 10 {
		if changed := b.Learn(answer(time.Hour, fmt.Sprintf("n%d.b", i), "192.0.2.1"), begin.Add(time.Duration(i))); i >= maxNames && len(changed) != 2 {
			t.Fatalf("name %d changes %v, want the first to go", i, changed)
		}
	}
	for i := range maxAddresses + 10 {
		b.Learn(Answer{Names: []string{"long.b"}, Addrs: []Address{{IP: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), TTL: maxLife}}}, begin.Add(time.Duration(i+1)))
	}
	if names, n := b.Size(); names != maxNames || n != maxNames-1+maxAddresses {
		t.Errorf("%d names and %d addresses", names, n)
	}
	if known := addresses(b, "long.b"); slices.Contains(known, "192.0.2.1") || !slices.Contains(known, "10.0.3.241") {
		t.Error("not the oldest address was dropped")
	}
}

// TestLearnerForgets: what is over leaves the feed, but not while it has connections, or nobody can see.
func TestLearnerForgets(t *testing.T) {
	var inUse bool
	var unseen error
	f := feed.New()
	l := NewLearner(Options{
		Feed: f, InForce: func(context.Context) error { return nil }, Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		Used: func(_ context.Context, addrs map[netip.Addr]bool) (map[netip.Addr]bool, error) {
			if inUse {
				return addrs, unseen
			}
			return nil, unseen
		},
	}, nil)
	l.Want([]string{"a.example"})
	l.Heard(t.Context(), packed(t, response, "a.example.", resource("a.example.", 1, "192.0.2.1")))
	over := time.Now().Add(minLife + time.Second)
	for _, tt := range []struct {
		inUse  bool
		unseen error
		after  time.Duration
		want   int // what the feed still has
	}{{true, nil, 0, 1}, {false, context.DeadlineExceeded, minLife, 1}, {false, nil, minLife, 0}} {
		inUse, unseen = tt.inUse, tt.unseen
		l.expire(t.Context(), over.Add(tt.after))
		if names, _ := l.size(); names != tt.want {
			t.Errorf("%+v: %d names are left", tt, names)
		}
	}
	changes := f.Take()
	if len(changes) != 1 || changes[0].Object != nil {
		t.Errorf("the feed was told %v, want that the name is gone", changes)
	}
}

// TestLearnerRemembers: a new agent knows what the last one knew, until it is told what is wanted.
func TestLearnerRemembers(t *testing.T) {
	f := feed.New()
	r := &Record{Leases: []Lease{{IP: netip.MustParseAddr("192.0.2.1"), End: time.Now().Add(-time.Hour)}}}
	r.Name = "a.example"
	l := NewLearner(Options{Feed: f, Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()}, []feed.Change{{Key: Key("a.example"), Object: r}})
	f.MarkSynced()
	if changes := f.Take(); len(changes) != 1 || changes[0].Object == nil {
		t.Errorf("the feed was told %v", changes)
	}
	l.Want([]string{"a.example"})
	l.expire(t.Context(), time.Now())
	if _, n := l.size(); n != 1 {
		t.Errorf("%d addresses are left, want the one", n)
	}
	l.Want(nil)
	if changes := f.Take(); len(changes) != 1 || changes[0].Object != nil {
		t.Errorf("the feed was told %v, want that the name is gone", changes)
	}
}
