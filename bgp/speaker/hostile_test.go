// SPDX-License-Identifier: Apache-2.0

//go:build linux

package speaker_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/internal/hostile"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// attackFor is a few seconds, or what HELIOGRAPH_HOSTILE says: "10m" is what docs/reflector.md quotes.
func attackFor(t *testing.T) time.Duration {
	v := os.Getenv("HELIOGRAPH_HOSTILE")
	if v == "" {
		return 5 * time.Second
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Mutated messages from peers that come again and again: the process lives, the sessions of the others last,
// and their routes come and go.
func TestHostilePeers(t *testing.T) {
	t.Parallel()
	d := attackFor(t)
	nettest.RunFor(t, d+2*time.Minute, func(t *testing.T) {
		n := newNode(t, 1, 65000)
		goods := []string{"127.0.0.8", "127.0.0.9", "127.0.0.10"}
		for _, a := range goods {
			rawPeer(n, a, 65000)
		}
		a := &attack{to: netip.AddrPortFrom(n.addr, testPort)}
		for i := range 120 {
			a.from = append(a.from, ip("127.2.0.%d", i+1))
			rawPeer(n, a.from[i].String(), 65000).Accept = []netip.Prefix{pfx("11.0.0.0/8"), pfx("fd01::/16")}
		}
		n.apply()
		var peers []*raw
		for _, a := range goods {
			peers = append(peers, dialRaw(t, n, a, 65000))
		}
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		var work sync.WaitGroup
		for i := range 2 {
			m, err := hostile.New(uint64(i))
			if err != nil {
				t.Fatal(err)
			}
			work.Go(func() { a.run(ctx, m) })
		}
		changes := 0
		for ; ctx.Err() == nil; changes++ {
			good := peers[changes%len(peers)]
			good.announce("10.8.0.0/24", "192.0.2.8")
			n.waitPath(good.addr, true)
			good.withdraw("10.8.0.0/24")
			n.waitPath(good.addr, false)
		}
		work.Wait()
		for _, s := range n.Snapshot().Sessions {
			if s.Address.As4()[1] == 0 && (s.State != bgp.StateEstablished || s.Flaps > 0) {
				t.Errorf("a good session: %+v", s)
			}
		}
		t.Logf("%d messages in %d sessions, %d NOTIFICATIONs, %d changes of good routes", a.sent.Load(), a.sessions.Load(), a.notifications.Load(), changes)
		if a.sent.Load() < 100 || a.sessions.Load() == 0 {
			t.Error("that was no attack")
		}
	})
}

// waitPath waits until a peer's 10.8.0.0/24 is there, or not.
func (n *node) waitPath(from netip.Addr, there bool) {
	n.t.Helper()
	n.wait(fmt.Sprintf("10.8.0.0/24 from %s: %t", from, there), func() bool {
		for _, p := range n.Snapshot().Paths {
			if p.Prefix == pfx("10.8.0.0/24") && p.Peer == from {
				return there
			}
		}
		return !there
	})
}

// attack sends mutated messages from many addresses: GoBGP refuses each for 5 s after a session of it ended.
type attack struct {
	to   netip.AddrPort
	from []netip.Addr

	next, sent, sessions, notifications atomic.Int64
}

func (a *attack) run(ctx context.Context, m *hostile.Mutator) {
	tick := time.NewTicker(time.Millisecond) // no faster: the machine has others
	defer tick.Stop()
	for ctx.Err() == nil {
		from := a.from[int(a.next.Add(1))%len(a.from)]
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: time.Second}
		conn, err := d.DialContext(ctx, "tcp4", a.to.String())
		if err != nil {
			<-tick.C
			continue
		}
		a.session(conn, from, m, tick.C)
	}
}

// session is one connection, until the other end has enough of it. While GoBGP refuses the address it closes
// without a word: then nothing is sent, and nothing counted.
func (a *attack) session(conn net.Conn, from netip.Addr, m *hostile.Mutator, pace <-chan time.Time) {
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	if typ, _, err := readMessage(conn); err != nil || typ != hostile.Open {
		_ = conn.Close()
		<-pace
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			typ, body, err := readMessage(conn)
			if err != nil {
				return
			}
			if typ == hostile.Notification && len(body) > 1 {
				a.notifications.Add(1)
			}
		}
	}()
	defer func() { _ = conn.Close(); <-gone }()
	send := func(b []byte) {
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = conn.Write(b)
		a.sent.Add(1)
	}
	id := from.As4()
	caps := []byte{1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 65, 4, 0, 0, 0xfd, 0xe8}
	hello := hostile.Message(hostile.Open, append([]byte{4, 0xfd, 0xe8, 0, 90, id[0], id[1], id[2], id[3], byte(len(caps) + 2), 2, byte(len(caps))}, caps...)...)
	if m.Chance(10) {
		hello = m.NextOpen()
	}
	send(hello)
	send(hostile.Message(hostile.Keepalive))
	a.sessions.Add(1)
	for range 200 {
		select {
		case <-gone:
			return
		case <-pace:
			send(m.Next())
		}
	}
}
