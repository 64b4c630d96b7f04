// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
)

const (
	// openHold bounds the wait for an OPEN (RFC 4271 §8.2.2 suggests 4 minutes; nobody who answers
	// at all needs that, and the connection holds memory).
	openHold = 30 * time.Second
	// farewell is how long a NOTIFICATION may take to be written.
	farewell = time.Second
	// chunk is what is written with one deadline, batchSize what the core is given at once.
	chunk     = 256 << 10
	batchSize = 32 << 10
)

// stalled is why a session ended whose peer kept its window shut.
const stalled = "peer did not read for the hold time"

// session is one TCP connection with a peer. Its goroutine (run) is the state machine of RFC 4271 from
// OpenSent on; what is before is the core's and the dialer's.
type session struct {
	core   *core
	peer   *peer // the core's; here only for its address
	cfg    Peer
	addr   netip.Addr
	conn   net.Conn
	active bool // we connected
	ours   open
	log    *slog.Logger

	// Set by run before the core hears of it.
	neg    negotiated
	parser parser
	out    outbox

	phase atomic.Value // bgp.SessionState

	ending sync.Once
	done   chan struct{} // closed when it ends
	last   *notification // set before done is closed; nil: none is to be sent
	reason string

	writer sync.WaitGroup
	// The core's.
	group *group
}

var errStopping = errors.New("reflector stops")

// ended is why a session is over.
type ended struct {
	text string
	// graceful: without a NOTIFICATION from either side, so RFC 4724 applies.
	graceful bool
	// innocent: the peer is not to blame, so nothing is damped for it.
	innocent bool
}

// run speaks with the peer until the session ends, and tells the core.
func (s *session) run() {
	e := s.guarded()
	s.writer.Wait()
	_ = s.conn.Close()
	s.core.post(closed{s, e})
}

// guarded makes a panic cost this session only.
func (s *session) guarded() (e ended) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("session panicked", "panic", p, "stack", string(debug.Stack()))
			s.kill(notify(errCease, subReset, nil, ""), "internal error")
			e = ended{text: "internal error"}
		}
	}()
	err := s.converse()
	s.kill(asNotification(err), reasonOf(err))
	if s.last != nil && !s.writes() {
		_ = s.write([][]byte{s.last.message()}, farewell)
	}
	return s.verdict(err)
}

// writes tells whether there is a writer, which sends the last message itself if it can.
func (s *session) writes() bool { return s.phase.Load() == bgp.StateEstablished }

func asNotification(err error) *notification {
	var n *notification
	if errors.As(err, &n) {
		return n
	}
	return nil
}

func reasonOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// verdict says how the session ended: who began, decides.
func (s *session) verdict(err error) ended {
	var received *received
	switch {
	case s.last != nil:
		return ended{text: s.reason, innocent: s.last.innocent()}
	case errors.As(err, &received):
		return ended{text: received.Error(), innocent: received.code == errCease && received.subcode == subCollision}
	case s.reason != "":
		return ended{text: s.reason, graceful: true}
	}
	return ended{text: "connection closed by peer", graceful: true}
}

// received is a NOTIFICATION of the peer.
type received struct{ *notification }

func (r *received) Error() string { return r.text("received") }

// kill ends the session from any goroutine. With a notification, the peer is told.
func (s *session) kill(n *notification, reason string) {
	s.ending.Do(func() {
		s.last, s.reason = n, reason
		close(s.done)
	})
	now := time.Now()
	_ = s.conn.SetReadDeadline(now)
	_ = s.conn.SetWriteDeadline(now.Add(farewell))
}

func (s *session) stopped() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// converse is the state machine.
func (s *session) converse() error {
	s.phase.Store(bgp.StateOpenSent)
	if err := s.write([][]byte{s.ours.message()}, farewell*5); err != nil {
		return fmt.Errorf("send OPEN: %w", plain(err))
	}
	r := bufio.NewReaderSize(s.conn, 8<<10)
	buf := make([]byte, headerLen, maxMessage)
	if err := s.openSent(r, &buf); err != nil {
		return err
	}
	if err := s.openConfirm(r, &buf); err != nil {
		return err
	}
	s.phase.Store(bgp.StateEstablished)
	if err := setPatience(s.conn, s.stall()); err != nil {
		s.log.Warn("a client that stops reading will be noticed late", "err", err)
	}
	s.writer.Add(1)
	go s.writeLoop()
	if err := s.rise(); err != nil {
		return err
	}
	return s.established(r, buf)
}

// openSent waits for the peer's OPEN and answers it.
func (s *session) openSent(r *bufio.Reader, buf *[]byte) error {
	typ, body, err := s.read(r, buf, openHold)
	if err != nil {
		return err
	}
	if typ != msgOpen {
		return s.unexpected(typ, body, subOpenSent, "OpenSent")
	}
	theirs, bad := parseOpen(body)
	if bad != nil {
		return bad
	}
	if s.neg, bad = negotiate(s.ours, theirs, s.cfg); bad != nil {
		return bad
	}
	s.parser = parser{neg: s.neg, asn: s.ours.asn, self: s.ours.id, cluster: s.core.cluster}
	reply := make(chan *notification, 1)
	s.core.post(opened{s, reply})
	select {
	case bad = <-reply:
	case <-s.core.stopped:
		return errStopping
	}
	if bad != nil {
		return bad
	}
	return plain(s.write([][]byte{keepaliveMessage()}, farewell*5))
}

// rise asks the core for the session's place among the others.
func (s *session) rise() error {
	reply := make(chan bool, 1)
	s.core.post(established{s, reply})
	select {
	case ok := <-reply:
		if !ok {
			return notify(errCease, subCollision, nil, "")
		}
		return nil
	case <-s.core.stopped:
		return errStopping
	}
}

// openConfirm waits for the peer's KEEPALIVE.
func (s *session) openConfirm(r *bufio.Reader, buf *[]byte) error {
	hold := s.neg.hold
	if hold == 0 {
		hold = openHold
	}
	typ, body, err := s.read(r, buf, hold)
	if err != nil {
		return err
	}
	if typ != msgKeepalive {
		return s.unexpected(typ, body, subOpenConfirm, "OpenConfirm")
	}
	return nil
}

func (s *session) unexpected(typ byte, body []byte, subcode uint8, state string) error {
	if typ == msgNotification {
		return &received{parseNotification(body)}
	}
	return notify(errFSM, subcode, []byte{typ}, "message type %d in %s", typ, state)
}

// established reads until the session ends. Whatever has arrived is handed over in one batch.
func (s *session) established(r *bufio.Reader, buf []byte) error {
	var b *batch // none while there is nothing to say: most sessions are silent most of the time
	for {
		typ, body, err := s.read(r, &buf, s.neg.hold)
		if err == nil {
			if b == nil && typ != msgKeepalive {
				b = s.core.batch(s)
			}
			err = s.handle(typ, body, b)
		}
		if b != nil && (b.size() >= batchSize || !more(r) || err != nil) {
			s.core.post(b)
			b = nil
		}
		if err != nil {
			return err
		}
		if cap(buf) > maxMessage { // an extended message is rare, and there are many sessions
			buf = make([]byte, headerLen, maxMessage)
		}
	}
}

// handle returns the error that ends the session.
func (s *session) handle(typ byte, body []byte, b *batch) error {
	var bad *notification
	switch typ {
	case msgUpdate:
		bad = s.parser.update(body, b)
	case msgRefresh:
		bad = s.parser.refresh(body, b)
	case msgKeepalive:
	default:
		return s.unexpected(typ, body, subEstablished, "Established")
	}
	if bad != nil {
		return bad
	}
	return nil
}

// more tells whether a whole message has arrived already.
func more(r *bufio.Reader) bool {
	n := r.Buffered()
	if n < headerLen {
		return false
	}
	h, err := r.Peek(headerLen)
	return err == nil && n >= int(h[16])<<8+int(h[17])
}

// read returns the next message, which lies in buf until the next read. All of it must arrive within
// the hold time: a peer that sends an octet a minute is not alive.
func (s *session) read(r *bufio.Reader, buf *[]byte, hold time.Duration) (byte, []byte, error) {
	if !more(r) {
		var deadline time.Time
		if hold > 0 {
			deadline = time.Now().Add(hold)
		}
		_ = s.conn.SetReadDeadline(deadline)
		if s.stopped() { // kill set a deadline too, and ours may have come later
			return 0, nil, errors.New(s.reason)
		}
	}
	b := (*buf)[:headerLen]
	if _, err := io.ReadFull(r, b); err != nil {
		return 0, nil, s.readError(err)
	}
	typ, n, bad := checkHeader(b, s.ours.extended)
	if bad != nil {
		return 0, nil, bad
	}
	if cap(b) < n {
		b = append(make([]byte, 0, n), b...)
	}
	b = b[:n]
	*buf = b
	if _, err := io.ReadFull(r, b[headerLen:]); err != nil {
		return 0, nil, s.readError(err)
	}
	return typ, b[headerLen:], nil
}

func (s *session) readError(err error) error {
	switch {
	case s.stopped():
		return errors.New(s.reason)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &notification{code: errHold}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("connection closed by peer")
	case errors.Is(err, syscall.ETIMEDOUT): // setPatience's
		s.kill(&notification{code: errSend}, stalled)
		return errors.New(s.reason)
	}
	return fmt.Errorf("connection broken: %w", plain(err))
}

// plain takes addresses and "read tcp" away: who, is said elsewhere.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// writeLoop is the second goroutine of an established session: KEEPALIVEs, the log, and at the end a
// NOTIFICATION.
func (s *session) writeLoop() {
	defer s.writer.Done()
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("writer panicked", "panic", p, "stack", string(debug.Stack()))
			s.kill(notify(errCease, subReset, nil, ""), "internal error")
		}
	}()
	keepalive := time.NewTimer(s.jittered())
	defer keepalive.Stop()
	if s.neg.keepalive == 0 {
		keepalive.Stop()
	}
	var pieces [][]byte
	for {
		select {
		case <-s.done:
			if s.last != nil {
				_ = s.write([][]byte{s.last.message()}, farewell)
			}
			return
		case <-keepalive.C:
			s.out.send(keepaliveMessage())
			keepalive.Reset(s.jittered())
		case <-s.out.wake:
		}
		for {
			if pieces = s.out.take(pieces[:0], chunk); len(pieces) == 0 {
				break
			}
			if err := s.write(pieces, s.stall()); err != nil {
				s.writeFailed(err)
				return
			}
			clear(pieces)
		}
	}
}

// stall is how long a write may make no progress.
func (s *session) stall() time.Duration {
	if s.neg.hold > 0 {
		return s.neg.hold
	}
	return defaultHold
}

// jittered: RFC 4271 §10 asks for 0.75 to 1 of the interval, lest all speak at once; but §4.4 for no less
// than a second.
func (s *session) jittered() time.Duration {
	if s.neg.keepalive == 0 {
		return time.Hour
	}
	return max(time.Second, s.neg.keepalive*3/4+rand.N(s.neg.keepalive/4))
}

// writeFailed ends a session whose peer takes nothing any more. No NOTIFICATION can be sent: a message
// was cut in the middle.
func (s *session) writeFailed(err error) {
	if (errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT)) && !s.stopped() {
		// As an error of the timer, not of the connection: the peer may well forward nothing.
		s.kill(&notification{code: errSend}, stalled)
		return
	}
	s.kill(nil, fmt.Sprintf("connection broken: %v", plain(err)))
}

// write writes all pieces; each chunk of them has the whole patience.
func (s *session) write(pieces [][]byte, patience time.Duration) error {
	for len(pieces) > 0 {
		n, size := 0, 0
		for n < len(pieces) && size < chunk {
			if room := chunk - size; len(pieces[n]) > room && n > 0 {
				break
			}
			size += len(pieces[n])
			n++
		}
		bufs := net.Buffers(pieces[:n])
		if err := s.writeChunk(&bufs, patience); err != nil {
			return err
		}
		pieces = pieces[n:]
	}
	return nil
}

func (s *session) writeChunk(bufs *net.Buffers, patience time.Duration) error {
	for len(*bufs) > 0 {
		part := net.Buffers{(*bufs)[0]}
		if len((*bufs)[0]) <= chunk {
			part, *bufs = *bufs, nil
		} else { // one long piece: a table
			part[0] = (*bufs)[0][:chunk]
			(*bufs)[0] = (*bufs)[0][chunk:]
		}
		_ = s.conn.SetWriteDeadline(time.Now().Add(patience))
		if s.stopped() {
			_ = s.conn.SetWriteDeadline(time.Now().Add(farewell))
		}
		if _, err := part.WriteTo(s.conn); err != nil {
			return err
		}
	}
	return nil
}
