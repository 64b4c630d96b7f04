// SPDX-License-Identifier: Apache-2.0

//go:build linux

package speaker_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/bgp/speaker"
)

const testPort = 1790

// node is one speaker on 127.0.0.ID with what it should be.
type node struct {
	*speaker.Speaker
	t       *testing.T
	name    string
	addr    netip.Addr
	desired bgp.Desired
}

// newNode makes the speaker of node n1, n2, ... It originates 10.ID.0.0/24 and fd00:ID::/64.
func newNode(t *testing.T, id int, asn uint32) *node {
	t.Helper()
	n := &node{t: t, name: fmt.Sprintf("n%d", id), addr: netip.MustParseAddr(fmt.Sprintf("127.0.0.%d", id))}
	n.Speaker = speaker.New(speaker.Options{ListenAddresses: []netip.Addr{n.addr}}, testLog(t, n.name))
	n.desired = bgp.Desired{
		Global: bgp.Global{ASN: asn, RouterID: n.addr, Port: testPort},
		Origins: []bgp.Origin{
			{Prefix: pfx("10.%d.0.0/24", id), NextHop: ip("192.0.2.%d", id)},
			{Prefix: pfx("fd00:%d::/64", id), NextHop: ip("2001:db8::%d", id)},
		},
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := n.Stop(ctx, false); err != nil {
			t.Errorf("stop %s: %v", n.name, err)
		}
	})
	return n
}

// peerWith adds a session to m, that accepts all the test prefixes, and returns it for changes.
func (n *node) peerWith(m *node) *bgp.Peer {
	n.desired.Peers = append(n.desired.Peers, bgp.Peer{
		Name:            "node/" + m.name,
		Kind:            bgp.PeerNode,
		Address:         m.addr,
		Port:            testPort,
		LocalAddress:    n.addr,
		ASN:             m.desired.Global.ASN,
		Timers:          bgp.Timers{Hold: 9 * time.Second, Keepalive: 3 * time.Second, ConnectRetry: 2 * time.Second},
		GracefulRestart: bgp.GracefulRestart{Enabled: true, RestartTime: 30 * time.Second},
		Families:        []bgp.Family{bgp.IPv4, bgp.IPv6},
		Accept:          []netip.Prefix{pfx("10.0.0.0/8"), pfx("fd00::/16")},
	})
	return &n.desired.Peers[len(n.desired.Peers)-1]
}

func (n *node) peer(m *node) *bgp.Peer {
	for i := range n.desired.Peers {
		if n.desired.Peers[i].Address == m.addr {
			return &n.desired.Peers[i]
		}
	}
	n.t.Fatalf("%s has no peer %s", n.name, m.name)
	return nil
}

func connect(a, b *node) { a.peerWith(b); b.peerWith(a) }

func (n *node) apply() {
	n.t.Helper()
	if err := n.Apply(context.Background(), n.desired); err != nil {
		n.t.Fatalf("apply %s: %v", n.name, err)
	}
}

// session with m, the zero Session if there is none.
func (n *node) session(m *node) bgp.Session {
	for _, s := range n.Snapshot().Sessions {
		if s.Address == m.addr {
			return s
		}
	}
	return bgp.Session{}
}

// routes of the snapshot, one word each.
func (n *node) routes() []string {
	var out []string
	for _, p := range n.Snapshot().Paths {
		r := fmt.Sprintf("%s>%s<%s", p.Prefix, p.NextHop, p.Peer)
		if p.Stale {
			r += "!stale"
		}
		out = append(out, r)
	}
	return out
}

// waitRoutes waits until the snapshot has exactly these routes, given as one string.
func (n *node) waitRoutes(want string) {
	n.t.Helper()
	n.wait(fmt.Sprintf("routes %q", want), func() bool { return strings.Join(n.routes(), " ") == want })
}

func (n *node) waitState(m *node, want bgp.SessionState) {
	n.t.Helper()
	n.wait(fmt.Sprintf("session with %s %s", m.name, want), func() bool { return n.session(m).State == want })
}

func (n *node) waitError(m *node, want string) {
	n.t.Helper()
	n.wait(fmt.Sprintf("error of %s: %q", m.name, want), func() bool { return strings.Contains(n.session(m).LastError, want) })
}

func (n *node) wait(what string, ok func() bool) {
	n.t.Helper()
	waitFor(n.t, n.name+": "+what, ok, func() string {
		return fmt.Sprintf("routes %q\nsessions %+v", strings.Join(n.routes(), " "), n.Snapshot().Sessions)
	})
}

// waitFor waits for a condition for a minute.
func waitFor(t *testing.T, what string, ok func() bool, state func() string) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited in vain for %s; there is\n%s", what, state())
		}
	}
}

// during fails as soon as the condition does not hold, until stop is closed.
func during(t *testing.T, what string, ok func() bool, stop <-chan struct{}) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if !ok() {
			t.Errorf("did not hold: %s", what)
			return
		}
		select {
		case <-tick.C:
		case <-stop:
			return
		}
	}
}

func pfx(format string, args ...any) netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf(format, args...))
}
func ip(format string, args ...any) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf(format, args...))
}

// testLog shows what an operator would see; HELIOGRAPH_DEBUG=1 shows GoBGP's own lines as well.
func testLog(t *testing.T, name string) *slog.Logger {
	level := slog.LevelInfo
	if os.Getenv("HELIOGRAPH_DEBUG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level})).With("node", name)
}
