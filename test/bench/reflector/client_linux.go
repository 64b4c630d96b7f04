// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

const (
	asn  = 65000
	hold = 90
)

// space numbers the prefixes of a run: the even ones are IPv4 /26 or /24, the odd ones IPv6 /64. A feed
// has IPv4 alone.
type space struct {
	bits4 int
	v4    bool // IPv4 alone
}

func (s space) v6(i int) bool { return !s.v4 && i%2 == 1 }

func (s space) nlri(b []byte, i int) []byte {
	if s.v6(i) {
		b = append(b, 64, 0xfd, 0, 0, 0)
		return binary.BigEndian.AppendUint32(b, uint32(i))
	}
	if !s.v4 {
		i /= 2
	}
	var ip [4]byte
	binary.BigEndian.PutUint32(ip[:], 10<<24+uint32(i)<<(32-s.bits4))
	return append(append(b, byte(s.bits4)), ip[:(s.bits4+7)/8]...)
}

// has tells whether a prefix can be one of the run's: others come from clients that do not belong to it.
func (s space) has(b []byte, v6 bool) bool {
	if v6 {
		return !s.v4 && b[0] == 64 && b[1] == 0xfd && b[2] == 0
	}
	return int(b[0]) == s.bits4 && b[1] >= 10
}

// index is nlri's inverse; b begins with the length, and has says that it is the run's.
func (s space) index(b []byte, v6 bool) int {
	if v6 {
		return int(binary.BigEndian.Uint32(b[5:]))
	}
	var ip [4]byte
	copy(ip[:], b[1:1+(int(b[0])+7)/8])
	i := int((binary.BigEndian.Uint32(ip[:]) - 10<<24) >> (32 - s.bits4))
	if !s.v4 {
		i *= 2
	}
	return i
}

// client is the least that a BGP speaker can be: it counts what it has. Every reflector meets the same.
type client struct {
	id    int
	conn  net.Conn
	hold  int // s; 0: the usual
	space space
	first int // its own prefixes are [first, first+own)
	own   int
	want  int
	have  []bool
	got   int
	all   *latch // told when it has all that it wants

	watch  atomic.Pointer[watch]
	up     chan struct{}
	ended  chan error
	broken atomic.Int64 // UPDATEs that cannot be read
}

// watch waits for one prefix to come or to go.
type watch struct {
	prefix int
	come   bool
	seen   *latch
}

// latch knows when the last of n was done.
type latch struct {
	left atomic.Int64
	done chan time.Time
}

func newLatch(n int) *latch {
	l := &latch{done: make(chan time.Time, 1)}
	l.left.Store(int64(n))
	return l
}

func (l *latch) one() {
	if l.left.Add(-1) == 0 {
		l.done <- time.Now()
	}
}

func (l *latch) wait(patience time.Duration) (time.Time, error) {
	select {
	case at := <-l.done:
		return at, nil
	case <-time.After(patience):
		return time.Time{}, fmt.Errorf("%d clients still wait after %s", l.left.Load(), patience)
	}
}

func message(typ byte, body []byte) []byte {
	m := make([]byte, 19, 19+len(body))
	for i := range 16 {
		m[i] = 0xff
	}
	binary.BigEndian.PutUint16(m[16:], uint16(19+len(body)))
	m[18] = typ
	return append(m, body...)
}

func (c *client) open() []byte {
	caps := []byte{1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 65, 4, 0, 0, asn >> 8, asn & 0xff}
	if c.space.v4 {
		caps = append(caps[:6], caps[12:]...)
	}
	h := c.hold
	if h == 0 {
		h = hold
	}
	b := []byte{4, asn >> 8, asn & 0xff, 0, byte(h), 10, 255, byte(c.id >> 8), byte(c.id), byte(len(caps) + 2), 2, byte(len(caps))}
	return message(1, append(b, caps...))
}

func (c *client) attrs(community int, v6 bool) []byte {
	a := []byte{0x40, 1, 1, 0, 0x40, 2, 0}
	if !v6 {
		a = append(a, 0x40, 3, 4, 172, 31, byte(c.id>>8), byte(c.id))
	}
	a = append(a, 0x40, 5, 4, 0, 0, 0, 100)
	if community != 0 {
		a = append(a, 0xc0, 8, 4, asn>>8, asn&0xff, byte(community>>8), byte(community))
	}
	return a
}

// announce makes UPDATEs of up to pack prefixes.
func (c *client) announce(from, to, pack int) []byte {
	var out []byte
	for _, v6 := range []bool{false, true} {
		var nlri []byte
		n := 0
		flush := func(i int) {
			if n == 0 {
				return
			}
			community := 0
			if c.space.v4 {
				community = 1 + i/pack%60000
			}
			at := c.attrs(community, v6)
			if v6 {
				hop := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(c.id >> 8), 15: byte(c.id)}).AsSlice()
				v := append(append([]byte{0, 2, 1, 16}, hop...), 0)
				v = append(v, nlri...)
				at = append(append([]byte{0x90, 14, byte(len(v) >> 8), byte(len(v))}, v...), at...)
				nlri = nil
			}
			out = append(out, message(2, append(append([]byte{0, 0, byte(len(at) >> 8), byte(len(at))}, at...), nlri...))...)
			nlri, n = nil, 0
		}
		for i := from; i < to; i++ {
			if c.space.v6(i) != v6 {
				continue
			}
			nlri = c.space.nlri(nlri, i)
			if n++; n == pack {
				flush(i)
			}
		}
		flush(to)
	}
	return out
}

func (c *client) withdraw(i int) []byte {
	nlri := c.space.nlri(nil, i)
	if c.space.v6(i) {
		v := append([]byte{0, 2, 1}, nlri...)
		return message(2, append([]byte{0, 0, 0, byte(len(v) + 3), 0x80, 15, byte(len(v))}, v...))
	}
	return message(2, append(append([]byte{0, byte(len(nlri))}, nlri...), 0, 0))
}

// dial connects from an address of the client's own and waits until the session is up. Some reflectors
// listen before they know their clients, so a refusal is no error at first.
func (c *client) dial(to string) error {
	var err error
	for range 100 {
		if err = c.connect(to, 20*time.Second); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("client %d: %w", c.id, err)
}

func (c *client) dialer() net.Dialer {
	return net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(c.id/250), byte(1+c.id%250))}}
}

// connect tries once.
func (c *client) connect(to string, patience time.Duration) error {
	d := c.dialer()
	var err error
	if c.conn, err = d.Dial("tcp4", to); err != nil {
		return err
	}
	c.up, c.ended = make(chan struct{}), make(chan error, 1)
	go func() { c.ended <- c.read() }()
	_, _ = c.conn.Write(c.open())
	select {
	case <-c.up:
		return nil
	case err = <-c.ended:
	case <-time.After(patience):
		err = errors.New("no session")
	}
	_ = c.conn.Close()
	return err
}

func (c *client) read() error {
	r := bufio.NewReaderSize(c.conn, 64<<10)
	buf := make([]byte, 64<<10)
	up := false
	for {
		if _, err := io.ReadFull(r, buf[:19]); err != nil {
			return err
		}
		typ, body := buf[18], buf[:int(binary.BigEndian.Uint16(buf[16:]))-19]
		if _, err := io.ReadFull(r, body); err != nil {
			return err
		}
		switch typ {
		case 1:
			_, _ = c.conn.Write(message(4, nil))
		case 2:
			c.update(body)
		case 3:
			return fmt.Errorf("notification %d/%d", body[0], body[1])
		case 4:
			if !up {
				close(c.up)
			}
			up = true
		}
	}
}

// update takes an UPDATE in. One that cannot be read counts, and is left there.
func (c *client) update(b []byte) {
	withdrawn, b, ok := section(b)
	attrs, nlri, fine := section(b)
	if !ok || !fine {
		c.broken.Add(1)
		return
	}
	c.prefixes(withdrawn, false, false)
	for len(attrs) > 0 {
		var typ byte
		var v []byte
		if typ, v, attrs, ok = attribute(attrs); !ok {
			c.broken.Add(1)
			return
		}
		switch {
		case typ == 14 && len(v) > 3 && len(v) >= 5+int(v[3]):
			c.prefixes(v[5+int(v[3]):], v[1] == 2, true)
		case typ == 15 && len(v) >= 3:
			c.prefixes(v[3:], v[1] == 2, false)
		case typ == 14 || typ == 15:
			c.broken.Add(1)
		}
	}
	c.prefixes(nlri, false, true)
}

// section splits off what begins with its length in two octets.
func section(b []byte) (in, rest []byte, ok bool) {
	if len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b)) {
		return nil, nil, false
	}
	n := 2 + int(binary.BigEndian.Uint16(b))
	return b[2:n], b[n:], true
}

// attribute splits off a path attribute.
func attribute(b []byte) (typ byte, value, rest []byte, ok bool) {
	head := 3
	if len(b) > 0 && b[0]&0x10 != 0 {
		head = 4
	}
	if len(b) < head {
		return 0, nil, nil, false
	}
	n := int(b[2])
	if head == 4 {
		n = int(binary.BigEndian.Uint16(b[2:]))
	}
	if len(b) < head+n {
		return 0, nil, nil, false
	}
	return b[1], b[head : head+n], b[head+n:], true
}

func (c *client) prefixes(b []byte, v6, come bool) {
	for len(b) > 0 {
		n := 1 + (int(b[0])+7)/8
		if n > len(b) {
			c.broken.Add(1)
			return
		}
		if c.space.has(b, v6) {
			c.note(c.space.index(b, v6), come)
		}
		b = b[n:]
	}
}

func (c *client) note(i int, come bool) {
	if i < 0 || i >= len(c.have) || i >= c.first && i < c.first+c.own || c.have[i] == come {
		return
	}
	c.have[i] = come
	if come {
		if c.got++; c.got == c.want {
			c.all.one()
		}
	} else {
		c.got--
	}
	if w := c.watch.Load(); w != nil && w.prefix == i && w.come == come && c.watch.CompareAndSwap(w, nil) {
		w.seen.one()
	}
}
