// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"bufio"
	"context"
	"io"
	"net"
	"time"

	"github.com/heliograph-dev/heliograph/internal/hostile"
)

// mutate sends bad messages at a part of the rate, in session after session, each from a new address: a
// client whose sessions end again and again is soon refused.
func (h *hostileRun) mutate(ctx context.Context, m *hostile.Mutator, share int) {
	const beat = 10 * time.Millisecond
	tick := time.NewTicker(beat)
	defer tick.Stop()
	var b *badSession
	defer func() { b.close() }()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for range badRate / share * int(beat/time.Millisecond) / 1000 {
			if b == nil || b.over() || b.sent > 200 {
				b.close()
				if b = h.badSession(m); b == nil {
					break
				}
			}
			b.send(m.Next())
			h.sent.Add(1)
		}
	}
}

// badSession is one connection of a client that sends what it should not.
type badSession struct {
	conn net.Conn
	sent int
	gone chan struct{}
}

func (h *hostileRun) badSession(m *hostile.Mutator) *badSession {
	n := h.address.Add(1) % (250 * 250)
	d := net.Dialer{Timeout: 2 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 2, byte(n/250), byte(1+n%250))}}
	conn, err := d.Dial("tcp4", address)
	if err != nil {
		return nil
	}
	h.sessions.Add(1)
	b := &badSession{conn: conn, gone: make(chan struct{})}
	go func() {
		defer close(b.gone)
		h.notifications.Add(int64(b.read()))
	}()
	if m.Chance(10) {
		b.send(m.NextOpen())
		h.sent.Add(1)
	} else {
		// An identifier of its own: no two of them are taken for one.
		b.send((&client{id: 1000 + int(n)}).open())
	}
	b.send(hostile.Message(hostile.Keepalive))
	return b
}

func (b *badSession) send(m []byte) {
	b.sent++
	_ = b.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = b.conn.Write(m)
}

// read reads until the other end has enough, and counts its NOTIFICATIONs.
func (b *badSession) read() int {
	r := bufio.NewReaderSize(b.conn, 4096) // there are very many, and garbage would be measured too
	h := make([]byte, 19)
	n := 0
	for {
		if _, err := io.ReadFull(r, h); err != nil {
			return n
		}
		if h[18] == hostile.Notification {
			n++
		}
		if _, err := r.Discard(max(0, int(h[16])<<8+int(h[17])-19)); err != nil {
			return n
		}
	}
}

func (b *badSession) over() bool {
	select {
	case <-b.gone:
		return true
	default:
		return false
	}
}

func (b *badSession) close() {
	if b != nil {
		_ = b.conn.Close()
		<-b.gone
	}
}

// reset begins a session, announces its routes and breaks the connection, again and again.
func (h *hostileRun) reset(ctx context.Context) {
	tick := time.NewTicker(resetEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c := h.stranger(1)
		h.resets.Add(1)
		if err := c.connect(address, 5*time.Second); err != nil {
			continue
		}
		h.letIn.Add(1)
		_, _ = c.conn.Write(c.announce(c.first, c.first+c.own, c.own))
		_ = c.conn.(*net.TCPConn).SetLinger(0) // so that it is a reset
		_ = c.conn.Close()
	}
}

// stranger is a client beside the good ones, with routes that none of them looks for.
func (h *hostileRun) stranger(n int) *client {
	id := h.Clients + n
	return &client{id: id, space: space{bits4: 26}, first: 2 * perClient * (id - 1), own: 2 * perClient, all: newLatch(1)}
}

// stall is a client that sends KEEPALIVEs and reads nothing, until it is thrown out; then it comes again.
func (h *hostileRun) stall(ctx context.Context) {
	tick := time.NewTicker(stallHold / 3 * time.Second)
	defer tick.Stop()
	var conn net.Conn
	var since time.Time
	defer func() {
		if conn != nil {
			_ = conn.Close()
		}
	}()
	for {
		if conn == nil {
			conn, since = h.stalled(), time.Now()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if conn == nil {
			continue
		}
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := conn.Write(message(4, nil)); err != nil {
			h.stalls.Add(1)
			h.longest.Store(max(h.longest.Load(), int64(time.Since(since))))
			_ = conn.Close()
			conn = nil
		}
	}
}

// stalled brings up a session whose window is small, and shuts it.
func (h *hostileRun) stalled() net.Conn {
	c := h.stranger(2)
	c.hold = stallHold
	d := c.dialer()
	conn, err := d.Dial("tcp4", address)
	if err != nil {
		return nil
	}
	_ = conn.(*net.TCPConn).SetReadBuffer(4096)
	_, _ = conn.Write(append(c.open(), message(4, nil)...))
	// The OPEN and the first KEEPALIVE; then nothing any more.
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	h19 := make([]byte, 19)
	for range 2 {
		if _, err := io.ReadFull(conn, h19); err != nil || h19[18] == hostile.Notification {
			_ = conn.Close()
			return nil
		}
		_, _ = io.CopyN(io.Discard, conn, int64(h19[16])<<8+int64(h19[17])-19)
	}
	return conn
}
