// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/internal/nettest"
	"github.com/heliograph-dev/heliograph/policy"
)

// ear hears what somebody else does to the rules.
type ear struct {
	t     *testing.T
	pokes chan struct{}
}

func listen(t *testing.T, r *Restores) *ear {
	e := &ear{t, make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() {
		ended <- r.Monitor(ctx, func() {
			select {
			case e.pokes <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Monitor = %v", err)
		}
	})
	return e
}

func (e *ear) poked(wait time.Duration) bool {
	select {
	case <-e.pokes:
		return true
	case <-time.After(wait):
		return false
	}
}

// ready waits until it hears: of what is done again and again until it does.
func (e *ear) ready() {
	e.t.Helper()
	for range 100 {
		tool(e.t, NFT, "-N", "HEL-x")
		tool(e.t, NFT, "-X", "HEL-x")
		if e.poked(100 * time.Millisecond) {
			break
		}
	}
	for e.poked(100 * time.Millisecond) {
	}
}

// TestMonitor: of each kind of damage to the rules of iptables-nft we hear at once, and heal it; and not of our
// own changes, nor of other people's in chains of their own.
func TestMonitor(t *testing.T) {
	need(t, NFT)
	nettest.Run(t, func(t *testing.T) {
		restores := NewRestores()
		k, err := Open(NFT, restores)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close() //nolint:errcheck // a test's
		e, d := listen(t, restores), New(k, slog.New(slog.DiscardHandler))
		d.Update(small().Delta())
		apply(t, d)
		e.ready()
		d.QueueResync()
		apply(t, d)
		_, whole := saved(t, NFT)

		web := policy.PolicyID{Namespace: "prod", Name: "web"}
		p := *small().Policies[web]
		p.Egress = p.Ingress
		for _, version := range []*policy.Policy{&p, small().Policies[web]} {
			d.Update(policy.Delta{Policies: []policy.PolicyChange{{ID: web, Op: policy.Changed, Policy: version}}})
			apply(t, d)
		}
		tool(t, NFT, "-N", "KUBE-FORWARD")
		tool(t, NFT, "-A", "KUBE-FORWARD", "-j", "ACCEPT")
		tool(t, NFT, "-t", "nat", "-A", "OUTPUT", "-j", "ACCEPT")
		if e.poked(200 * time.Millisecond) {
			t.Error("poked by a change of our own, or by what others do elsewhere")
		}
		chain := policyChain(web, policy.Ingress)
		for _, harm := range [][]string{
			{"-F", chain}, {"-A", chain, "-j", "ACCEPT"}, {"-D", chain, "1"}, {"-I", "FORWARD", "-j", "ACCEPT"}, {"-F", "FORWARD"}, {"-D", "HEL-INPUT", "1"}, {"-N", "HEL-x"}, {"-F"},
		} {
			tool(t, NFT, harm...)
			start := time.Now()
			if !e.poked(5 * time.Second) {
				t.Errorf("not poked by iptables %s", harm)
			}
			d.QueueResync()
			apply(t, d)
			healed := time.Since(start)
			_, now := saved(t, NFT)
			if diff := cmp.Diff(whole, now); diff != "" {
				t.Errorf("after %s (-want +got):\n%s", harm, diff)
			}
			t.Logf("iptables %s is healed after %s", harm, healed.Round(time.Millisecond))
			if harm[0] == "-I" { // it is not ours to take away
				tool(t, NFT, "-D", "FORWARD", "-j", "ACCEPT")
			}
			for e.poked(100 * time.Millisecond) {
			}
		}
	})
}

// TestDamageUntold: what nobody tells of, harm to ipsets and to legacy tables, the next look at all heals. It
// prints what a look costs that finds nothing.
func TestDamageUntold(t *testing.T) {
	variants(t, func(t *testing.T, v Variant) {
		d := open(t, v)
		state := many(100)
		d.Update(state.Delta())
		apply(t, d)
		look := func() time.Duration {
			start := time.Now()
			d.QueueResync()
			apply(t, d)
			return time.Since(start)
		}
		whole := nettest.Cmd(t, "ipset", "list", "-sorted")
		set := setName("set-7", policy.AddressSet, policy.IPv4)
		for _, harm := range [][]string{{"add", set, "203.0.113.0/24"}, {"del", set, "10.0.7.3"}, {"flush", set}, {"create", "HEL-x", "hash:ip"}, {"flush"}} {
			nettest.Cmd(t, "ipset", harm...)
			took := look()
			if diff := cmp.Diff(whole, nettest.Cmd(t, "ipset", "list", "-sorted")); diff != "" {
				t.Errorf("after ipset %s (-want +got):\n%s", harm, diff)
			}
			t.Logf("ipset %s is healed by a look of %s", harm, took.Round(time.Millisecond))
		}
		t.Logf("a look at 100 policies that finds nothing takes %s", look().Round(time.Millisecond))
	})
}
