// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

func TestMonitor(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		r := newReal(t)
		d := New(r, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(context.Background())
		pokes := make(chan struct{}, 1)
		ended := make(chan error)
		go func() {
			ended <- r.Monitor(ctx, func() {
				select {
				case pokes <- struct{}{}:
				default:
				}
			})
		}()
		// The listener is ready once it hears of a change that we make until it does.
		apply(t, d, usual())
		for ready := false; !ready; {
			r.addDevice("helready")
			r.deleteDevice("helready")
			ready = poked(pokes, 100*time.Millisecond)
		}
		for poked(pokes, 100*time.Millisecond) {
		}

		apply(t, d, desired.NFT{})
		r.nft("add", "table", "ip", "heliograph") // of another family
		r.nft("add", "table", "inet", "other")
		r.nft("add", "set", "inet", "other", "workloads", "{ type ifname; }")
		if poked(pokes, 100*time.Millisecond) {
			t.Error("poked by a change of our own, or of another table")
		}
		for name, harm := range map[string]func(){
			"element": func() { r.addDevice("helstranger") },
			"chain":   r.drift,
			"ruleset": func() { r.nft("flush", "ruleset") },
		} {
			harm()
			if !poked(pokes, 5*time.Second) {
				t.Errorf("not poked by a change of the %s", name)
			}
			d.QueueResync()
			apply(t, d, desired.NFT{})
			want(t, r, desired.NFT{})
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Monitor = %v", err)
		}
	})
}

func poked(pokes <-chan struct{}, wait time.Duration) bool {
	select {
	case <-pokes:
		return true
	case <-time.After(wait):
		return false
	}
}

func TestForeignTablesStay(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		r := newReal(t)
		r.nft("add", "table", "inet", "other")
		r.nft("add", "chain", "inet", "other", "heliograph")
		r.nft("add", "table", "ip", "heliograph")
		before := r.nft("list", "ruleset")
		d := New(r, slog.New(slog.DiscardHandler))
		apply(t, d, usual())
		r.drift()
		d.QueueResync()
		apply(t, d, usual())
		if err := d.DeleteTable(context.Background()); err != nil {
			t.Error(err)
		}
		if after := r.nft("list", "ruleset"); after != before {
			t.Errorf("foreign tables were:\n%s\nare:\n%s", before, after)
		}
	})
}

// TestDriftIsSeen: whatever somebody changes in the layout, the next read sees it.
func TestDriftIsSeen(t *testing.T) {
	const table = "inet heliograph"
	for _, c := range []struct{ name, harm string }{
		{"a rule of theirs", "insert rule " + table + " forward accept"},
		{"a rule of theirs under our name", "insert rule " + table + ` host accept comment "tunnel"`},
		{"a chain of theirs", "add chain " + table + " theirs"},
		{"a set of theirs", "add set " + table + " theirs { type ipv4_addr; }"},
		{"a policy", "chain " + table + " forward { policy drop; }"},
		{"a rule replaced", "replace rule " + table + ` output handle HANDLE oifname "hel*" return comment "to-hel"`},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) {
				r := newReal(t)
				d := New(r, slog.New(slog.DiscardHandler))
				apply(t, d, usual())
				out := r.nft("-a", "list", "chain", "inet", "heliograph", "output")
				_, handle, _ := strings.Cut(out, `"to-hel" # handle `)
				r.nft(strings.ReplaceAll(c.harm, "HANDLE", strings.Fields(handle)[0]))
				if s, err := r.Read(); err != nil || s.Drift == "" {
					t.Errorf("Read = %q, %v; want a drift", s.Drift, err)
				}
				d.QueueResync()
				apply(t, d, usual())
				want(t, r, usual())
			})
		})
	}
}

func TestLarge(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		r := newReal(t)
		d := New(r, slog.New(slog.DiscardHandler))
		n := usual()
		more := 20000
		if testing.Short() {
			more = 1000
		}
		for i := range more {
			n.Workloads = append(n.Workloads, pod(i+100))
		}
		start := time.Now()
		apply(t, d, n)
		t.Logf("%d elements in %v", 3*more, time.Since(start))
		start = time.Now()
		d.QueueResync()
		apply(t, d, n)
		t.Logf("read back in %v", time.Since(start))
		want(t, r, n)
		apply(t, d, usual())
		want(t, r, usual())
	})
}
