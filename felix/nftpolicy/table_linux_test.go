// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/internal/nettest"
	"github.com/heliograph-dev/heliograph/policy"
)

// TestKernelIncrementalIsFresh is TestIncrementalIsFresh by what nft shows.
func TestKernelIncrementalIsFresh(t *testing.T) {
	seeds := uint64(3)
	if testing.Short() { // on an emulated machine each takes a minute
		seeds = 1
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed_", seed), func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) {
				k := open(t)
				w, d := newWorld(seed+1000), New(k, quiet())
				for range 5 {
					for range 10 {
						apply(t, d, w.next())
						noDrift(t, d)
					}
					got := blocks(list(t))
					nettest.Cmd(t, "nft", "flush", "ruleset")
					apply(t, New(k, quiet()), w.State)
					if diff := cmp.Diff(blocks(list(t)), got); diff != "" {
						t.Fatalf("(-fresh +incremental):\n%s", diff)
					}
				}
			})
		})
	}
}

// blocks are the sets and chains of a listing in order, and the elements of sets of tuples: the kernel has
// them in that of their creation.
func blocks(listing string) []string {
	out := strings.Split(strings.TrimSuffix(listing, "\n}\n"), "\n\n")
	for i := range out {
		out[i] = strings.TrimPrefix(out[i], "table inet "+desired.NFTPolicyTable+" {\n")
		if before, elements, ok := strings.Cut(out[i], "elements = { "); ok {
			lines := strings.Split(strings.NewReplacer(" }\n    }", "", "\n                 ", "").Replace(elements), ",")
			slices.Sort(lines)
			out[i] = before + strings.Join(lines, "\n")
		}
	}
	slices.Sort(out)
	return out
}

func policyOf(t *testing.T, ids ...policy.PolicyID) builder {
	t.Helper()
	b := newBuilder()
	b.Sets["clients"] = addressSet("10.0.0.1", "fd00::1")
	b.Sets["office"] = addressSet("192.0.2.0/24", "2001:db8::/32")
	for i, id := range ids {
		b.ingress(id.Name, policy.Rule{Action: policy.Allow, Match: policy.Match{Source: in("clients", "office")}})
		b.pod(fmt.Sprint("pod-", i), fmt.Sprintf("hel%011x", i), chain(tier(id)), chain())
	}
	return b
}

// TestDrift: whatever somebody changes, the next resync sees it, and replaces the table.
func TestDrift(t *testing.T) {
	const table = "inet heliograph-policy"
	for _, c := range []struct{ name, harm, want string }{
		{"no table", "delete table " + table, "no table"},
		{"a foreign rule", "insert rule " + table + " forward-egress accept", "changed rules in chain forward-egress"},
		{"a foreign rule at the end", "add rule " + table + " output accept", "changed rules in chain output"},
		{"no rules", "flush chain " + table + " input-egress", "changed rules in chain input-egress"},
		{"a foreign chain", "add chain " + table + " theirs; add rule " + table + " theirs accept", "foreign chain theirs"},
		{"a foreign base chain", "add chain " + table + " theirs { type filter hook forward priority 0; }", "foreign chain theirs"},
		{"a jump to a foreign chain", "add chain " + table + " theirs; insert rule " + table + " output jump theirs", "changed rules in chain output"},
		{"a foreign map with our chains", "add map " + table + " theirs { type ifname : verdict; }; add element " + table + " theirs { a : goto unknown-egress }", "foreign set theirs"},
		{"a hook's policy", "chain " + table + " output { policy drop; }", "odd: chain output"},
		{"a set of another kind", "delete table " + table + "; table " + table + " { set self { type ifname; }; }", "odd: set self"},
		{"a foreign set", "add set " + table + " theirs { type ipv4_addr; }", "foreign set theirs"},
		{"a foreign element", "add element " + table + " addresses-4 { 1 . 2 . 10.9.9.9 }", "foreign elements in set"},
		{"an element gone", "flush set " + table + " addresses-6", "missing elements in set"},
		{"a network gone", "delete element " + table + " NETS4 { 192.0.2.0/24 }", "missing elements in set"},
		{"a verdict", "delete element " + table + " ingress { hel00000000000 }; add element " + table + " ingress { hel00000000000 : accept }", "foreign elements in set"},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) {
				k := open(t)
				d := New(k, quiet())
				b := policyOf(t, name("a"), name("b"))
				apply(t, d, b.State)
				before := list(t)
				harm := strings.ReplaceAll(c.harm, "NETS4", d.sets["office"].half[0].set.Name)
				nettest.Cmd(t, "nft", harm)
				if drift := driftOf(t, d); !strings.Contains(drift, c.want) {
					t.Errorf("drift = %q, want %q", drift, c.want)
				}
				d.QueueResync()
				apply(t, d, b.State)
				if diff := cmp.Diff(blocks(before), blocks(list(t))); diff != "" {
					t.Errorf("(-before +healed):\n%s", diff)
				}
			})
		})
	}
}

// TestANewProcessAdopts: what an earlier one has left stays, as far as it is still wanted.
func TestANewProcessAdopts(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		k := open(t)
		apply(t, New(k, quiet()), policyOf(t, name("a"), name("b")).State)
		spy := &spy{Handle: k}
		next := policyOf(t, name("a"), name("c"))
		apply(t, New(spy, quiet()), next.State)
		for _, tx := range spy.txs {
			for _, op := range tx.Ops {
				if tx.Replace || op.Chain.Hook != NoHook {
					t.Errorf("base chains were touched: %+v", op)
				}
			}
		}
		got := blocks(list(t))
		spy.txs = nil
		apply(t, New(spy, quiet()), next.State)
		if len(spy.txs) > 0 {
			t.Errorf("nothing has changed, but: %+v", spy.txs)
		}
		if err := New(k, quiet()).Delete(context.Background()); err != nil {
			t.Fatal(err)
		}
		apply(t, New(k, quiet()), next.State)
		if diff := cmp.Diff(blocks(list(t)), got); diff != "" {
			t.Errorf("(-fresh +adopted):\n%s", diff)
		}
	})
}

// spy notes transactions.
type spy struct {
	Handle
	txs []Transaction
}

func (s *spy) Commit(tx Transaction) error {
	s.txs = append(s.txs, tx)
	return s.Handle.Commit(tx)
}

// TestHealsUntold: a change that fails because somebody has deleted the table, makes it anew.
func TestHealsUntold(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		d := New(open(t), quiet())
		apply(t, d, policyOf(t, name("a")).State)
		nettest.Cmd(t, "nft", "flush", "ruleset")
		apply(t, d, policyOf(t, name("a"), name("b")).State)
		noDrift(t, d)
		if len(d.Refused()) > 0 {
			t.Errorf("refused = %v", d.Refused())
		}
	})
}

func TestDelete(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		nettest.Cmd(t, "nft", "add", "table", "inet", "other")
		before := nettest.Cmd(t, "nft", "list", "ruleset")
		d := New(open(t), quiet())
		if err := d.Apply(context.Background()); err != nil {
			t.Fatal(err)
		}
		if after := nettest.Cmd(t, "nft", "list", "ruleset"); after != before {
			t.Errorf("Apply before Update has changed something: %s", after)
		}
		apply(t, d, policyOf(t, name("a")).State)
		for range 2 {
			if err := d.Delete(context.Background()); err != nil {
				t.Error(err)
			}
		}
		if after := nettest.Cmd(t, "nft", "list", "ruleset"); after != before {
			t.Errorf("left:\n%s", after)
		}
		apply(t, d, policyOf(t, name("a")).State)
		noDrift(t, d)
	})
}

// TestKernelRefuses: what the kernel says to a transaction is understood, and nothing has changed.
func TestKernelRefuses(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		k := open(t)
		apply(t, New(k, quiet()), policyOf(t, name("a")).State)
		before := list(t)
		good := Op{Kind: AddChain, Chain: Chain{Name: "fine"}}
		bad := Op{Kind: AddRule, Chain: Chain{Name: "output"}, Rule: &Rule{Verdict: Verdict{Jump, "nowhere"}}}
		loop := Op{Kind: AddRule, Chain: Chain{Name: "fine"}, Rule: &Rule{Verdict: Verdict{Jump, "fine"}}}
		used := Op{Kind: AddRule, Chain: Chain{Name: "output"}, Rule: &Rule{Verdict: Verdict{Jump, "fine"}}}
		for _, c := range []struct {
			name string
			ops  []Op
			want []int
			err  error
		}{
			{"one", []Op{good, bad}, []int{1}, syscall.ENOENT},
			{"two", []Op{bad, good, bad}, []int{0, 2}, syscall.ENOENT},
			{"when all is there", []Op{good, loop, used}, []int{2}, syscall.EMLINK},
		} {
			err := k.Commit(Transaction{Ops: c.ops})
			var refused *RefusedError
			if !errors.As(err, &refused) {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			if diff := cmp.Diff(c.want, refused.Ops); diff != "" || !errors.Is(err, c.err) {
				t.Errorf("%s: %v, %s", c.name, err, diff)
			}
		}
		if err := k.Commit(Transaction{Ops: []Op{good}, DryRun: true}); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(before, list(t)); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
	})
}

func TestMonitor(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		k := open(t)
		d := New(k, quiet())
		ctx, cancel := context.WithCancel(context.Background())
		pokes := make(chan struct{}, 1)
		ended := make(chan error)
		go func() {
			ended <- k.Monitor(ctx, func() {
				select {
				case pokes <- struct{}{}:
				default:
				}
			})
		}()
		one, two := policyOf(t, name("a")).State, policyOf(t, name("a"), name("b")).State
		apply(t, d, one)
		// The listener is ready once it hears of a change that we make until it does.
		for ready := false; !ready; {
			nettest.Cmd(t, "nft", "add chain inet heliograph-policy theirs; delete chain inet heliograph-policy theirs")
			ready = poked(pokes, 100*time.Millisecond)
		}
		for poked(pokes, 100*time.Millisecond) {
		}
		apply(t, d, two)
		nettest.Cmd(t, "nft", "add", "table", "ip", "heliograph-policy")
		if poked(pokes, 100*time.Millisecond) {
			t.Error("poked by a change of our own, or of another table")
		}
		nettest.Cmd(t, "nft", "flush", "ruleset")
		if !poked(pokes, 5*time.Second) {
			t.Error("not poked by a flush")
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
