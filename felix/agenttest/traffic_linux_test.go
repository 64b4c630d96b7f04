// SPDX-License-Identifier: Apache-2.0

package agenttest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	streamPort  = 7007
	interval    = 20 * time.Millisecond
	payloadSize = 172
)

// stream sends a datagram from a to b each interval, and notes which ones b does not answer.
type stream struct {
	magic    string
	conn     net.Conn
	mu       sync.Mutex
	sent     []time.Time
	answered []bool
	last     int // the last one answered
}

// startStream begins to send to b's address of a family, 4 or 6, until the test ends.
func startStream(t *testing.T, family int) *stream {
	t.Helper()
	at := endpoint("b", family, streamPort)
	echo(t, at)
	s := &stream{magic: fmt.Sprintf("heliograph-stream-%d", family)}
	var err error
	if s.conn, err = dial("a", "udp", at); err != nil {
		t.Fatal(err)
	}
	if got, want := s.conn.LocalAddr().(*net.UDPAddr).IP.String(), podAddress("a", family); got != want { //nolint:forcetypeassert // UDP
		t.Errorf("a speaks to %s from %s, want %s, its own of the pod network", at, got, want)
	}
	ctx := t.Context()
	go func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				_ = s.conn.Close()
				return
			case <-tick.C:
				s.send()
			}
		}
	}()
	go s.receive()
	return s
}

// echo has b answer each datagram with itself.
func echo(t *testing.T, at string) {
	t.Helper()
	var conn net.PacketConn
	if err := within("b", func() (err error) { conn, err = net.ListenPacket("udp", at); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(buf[:n], from)
		}
	}()
}

func (s *stream) send() {
	b := make([]byte, payloadSize)
	copy(b, s.magic)
	s.mu.Lock()
	binary.BigEndian.PutUint64(b[payloadSize-8:], uint64(len(s.sent)))
	s.sent, s.answered = append(s.sent, time.Now()), append(s.answered, false)
	s.mu.Unlock()
	_, _ = s.conn.Write(b) // that there is no route is a loss like another
}

// receive ends with the connection. Errors that ICMP brings do not end it.
func (s *stream) receive() {
	buf := make([]byte, 2048)
	for {
		n, err := s.conn.Read(buf)
		if isClosed(err) {
			return
		}
		if err != nil || n != payloadSize {
			continue
		}
		seq := binary.BigEndian.Uint64(buf[payloadSize-8 : payloadSize])
		s.mu.Lock()
		if seq < uint64(len(s.answered)) {
			s.answered[seq] = true
			s.last = max(s.last, int(seq)) //nolint:gosec // below a length
		}
		s.mu.Unlock()
	}
}

// outage is a time in which nothing was answered: from the first datagram lost to the first that was not.
type outage struct {
	at     time.Time
	lasted time.Duration
	lost   int
}

// outages are those that began between two times. Where nothing passes, that is known only when something does.
func (s *stream) outages(from, to time.Time) []outage {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []outage
	for i := 0; i < s.last; i++ {
		first := i
		for !s.answered[i] { // the last one is
			i++
		}
		if at := s.sent[first]; i > first && !at.Before(from) && at.Before(to) {
			out = append(out, outage{at, s.sent[i].Sub(at), i - first})
		}
	}
	return out
}

// isClosed says whether a connection's reader has nothing more to come.
func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }

// flows waits until a second's worth of what is sent from now on is answered.
func (s *stream) flows(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	now := len(s.sent)
	s.mu.Unlock()
	eventually(t, patience, func() string {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.last <= now+int(time.Second/interval) {
			return fmt.Sprintf("%s: %d answered last of those after %d", s.magic, s.last, now)
		}
		return ""
	})
}

// session is a TCP connection that is written to all the time.
type session struct {
	name  string
	bytes atomic.Int64 // that came back
	err   atomic.Pointer[error]
}

// startSession connects a to b and sends small writes there and back until the test ends.
func startSession(t *testing.T, family int) *session {
	t.Helper()
	at := endpoint("b", family, streamPort)
	var l net.Listener
	if err := within("b", func() (err error) { l, err = net.Listen("tcp", at); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		if conn, err := l.Accept(); err == nil {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	conn, err := dial("a", "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	s := &session{name: fmt.Sprintf("TCP over IPv%d", family)}
	done := make(chan struct{})
	t.Cleanup(func() { close(done); _ = conn.Close() })
	go s.write(conn, done)
	go s.read(conn)
	return s
}

func (s *session) write(conn net.Conn, done <-chan struct{}) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			if _, err := conn.Write([]byte("a small write that comes back...")); err != nil {
				s.err.CompareAndSwap(nil, &err)
				return
			}
		}
	}
}

func (s *session) read(conn net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		s.bytes.Add(int64(n))
		if err != nil {
			s.err.CompareAndSwap(nil, &err)
			return
		}
	}
}

// alive waits until the connection moves on, for as long as TCP may wait before it sends again.
func (s *session) alive(t *testing.T) {
	t.Helper()
	before := s.bytes.Load()
	eventually(t, 3*patience, func() string {
		if err := s.err.Load(); err != nil {
			return s.name + " broke: " + (*err).Error()
		}
		if s.bytes.Load() <= before {
			return s.name + " stands still"
		}
		return ""
	})
}

// frame is what the wire showed of a stream.
type frame struct {
	kind   string // Native, IPIP or VXLAN
	length int    // of the outermost IP packet
	at     time.Time
}

// wire watches one device of the spine.
type wire struct {
	mu     sync.Mutex
	frames map[string][]frame // by magic; the latest
	// seen is when the last frame was, by magic and kind.
	seen map[[2]string]time.Time
}

const framesKept = 10

func watchWire(t *testing.T, ns, device string) *wire {
	t.Helper()
	fd := -1
	err := within(ns, func() error {
		i, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8)
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}); err != nil {
		t.Fatal(err)
	}
	w := &wire{frames: map[string][]frame{}, seen: map[[2]string]time.Time{}}
	done := t.Context().Done()
	go func() {
		defer unix.Close(fd) //nolint:errcheck // read only
		buf := make([]byte, 4096)
		for {
			select {
			case <-done:
				return
			default:
			}
			if n, _, err := unix.Recvfrom(fd, buf, 0); err == nil {
				w.note(buf[:n])
			}
		}
	}()
	return w
}

func (w *wire) note(packet []byte) {
	i := bytes.Index(packet, []byte("heliograph-stream-"))
	if i < 0 {
		return
	}
	magic := string(packet[i : i+len("heliograph-stream-4")])
	f := dissect(packet)
	f.at = time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[[2]string{magic, f.kind}] = f.at
	list := append(w.frames[magic], f)
	w.frames[magic] = list[max(0, len(list)-framesKept):]
}

// dissect reads the outer header.
func dissect(p []byte) frame {
	protocol, header, length := p[9], 20, int(binary.BigEndian.Uint16(p[2:]))
	if p[0]>>4 == 6 {
		protocol, header, length = p[6], 40, 40+int(binary.BigEndian.Uint16(p[4:]))
	}
	switch {
	case protocol == unix.IPPROTO_IPIP || protocol == unix.IPPROTO_IPV6:
		return frame{kind: "IPIP", length: length}
	case protocol == unix.IPPROTO_UDP && binary.BigEndian.Uint16(p[header+2:]) == 4789:
		return frame{kind: "VXLAN", length: length}
	}
	return frame{kind: "Native", length: length}
}

// shows waits until the latest frames of a stream, both ways, are all of a kind and a length.
func (w *wire) shows(t *testing.T, s *stream, kind string, length int) {
	t.Helper()
	from := time.Now()
	eventually(t, patience, func() string {
		w.mu.Lock()
		defer w.mu.Unlock()
		list := w.frames[s.magic]
		other := func(f frame) bool { return f.kind != kind || f.length != length || f.at.Before(from) }
		if len(list) < framesKept || slices.ContainsFunc(list, other) {
			return fmt.Sprintf("%s: the spine sees %v, want %s of %d bytes", s.magic, list, kind, length)
		}
		return ""
	})
}

// onlyShowed checks that a stream had no other kind since a time.
func (w *wire) onlyShowed(t *testing.T, s *stream, kind string, since time.Time) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, at := range w.seen {
		if key[0] == s.magic && key[1] != kind && at.After(since) {
			t.Errorf("%s went by %s %s after all was to stay %s", s.magic, key[1], at.Sub(since), kind)
		}
	}
}
