// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// readBuffer is asked for; without privilege the kernel grants net.core.rmem_max.
	readBuffer = 8 << 20
	// datagram is the most that the kernel puts into one datagram of a dump (32 KiB, but it makes
	// use of larger reads only on some versions).
	datagram = 64 << 10
	// patience is how long a missing answer is waited for. Both families work in the sender's context:
	// when the send returns the answer is there, or lost.
	patience = time.Second
	// attempts is how often an interrupted dump is made before it is taken as it is.
	attempts = 5
)

// Conn is one netlink socket that is kept, of rtnetlink or of netfilter. It belongs to the goroutine that applies: drivers may
// share it as long as they work one after the other.
//
// The socket is mdlayher/netlink's, for its setup and its place in Go's poller; requests and answers
// pass it by and go straight from and to plain buffers, since a message per allocation would
// halve the speed.
type Conn struct {
	sock   *netlink.Conn
	raw    syscall.RawConn
	name   string
	portID uint32
	seq    uint32
	sent   uint64
	buf    []byte // of acknowledgements
	kernel unix.SockaddrNetlink
}

// Dial opens a socket of rtnetlink in the network namespace of the calling thread.
func Dial() (*Conn, error) { return dial(unix.NETLINK_ROUTE, "rtnetlink") }

// DialNetfilter opens one of netfilter, whose messages begin with NfgenmsgLen bytes.
func DialNetfilter() (*Conn, error) { return dial(unix.NETLINK_NETFILTER, "netfilter") }

func dial(family int, name string) (*Conn, error) {
	sock, err := netlink.Dial(family, &netlink.Config{Strict: true})
	if err != nil {
		return nil, fmt.Errorf("open %s socket: %w", name, err)
	}
	c := &Conn{sock: sock, name: name, portID: sock.PID(), kernel: unix.SockaddrNetlink{Family: unix.AF_NETLINK}}
	if err := c.setup(); err != nil {
		_ = sock.Close()
		return nil, fmt.Errorf("set up %s socket: %w", name, err)
	}
	return c, nil
}

func (c *Conn) setup() (err error) {
	// Without CAP_ACK an error carries the whole request, and 256 of them might not fit.
	if err = c.sock.SetOption(netlink.CapAcknowledge, true); err != nil {
		return err
	}
	if err = c.sock.SetReadBuffer(readBuffer); err != nil {
		return err
	}
	c.raw, err = c.sock.SyscallConn()
	return err
}

// Close closes the socket.
func (c *Conn) Close() error { return c.sock.Close() }

// PortID is the socket's netlink address. The kernel puts it into the notifications that our
// requests cause, so that a Monitor can tell them from foreign events.
func (c *Conn) PortID() uint32 { return c.portID }

// Sent is the number of messages sent so far.
func (c *Conn) Sent() uint64 { return c.sent }

// LinkIndex returns the index of a device, by ioctl: a microsecond, and no message.
func (c *Conn) LinkIndex(name string) (int, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("device %q: %w", name, unix.ENODEV)
	}
	if err := c.ioctl(unix.SIOCGIFINDEX, req); err != nil {
		return 0, fmt.Errorf("device %s: %w", name, err)
	}
	return int(req.Uint32()), nil
}

// LinkName returns the name of the device with that index.
func (c *Conn) LinkName(index int) (string, error) {
	req, err := unix.NewIfreq("?")
	if err != nil {
		return "", err
	}
	req.SetUint32(uint32(index))
	if err := c.ioctl(unix.SIOCGIFNAME, req); err != nil {
		return "", fmt.Errorf("device %d: %w", index, err)
	}
	return req.Name(), nil
}

// Execute sends the batch, up to 256 messages a datagram, with one acknowledgement each. A refused
// message does not stop the others. The answer is nil if all were carried out; otherwise it has an
// entry for each message, nil or what became of it: an *Error, or ErrNoAnswer.
func (c *Conn) Execute(ctx context.Context, b *Batch) []error {
	var errs []error
	fail := func(i int, err error) {
		if errs == nil {
			errs = make([]error, b.Len())
		}
		errs[i] = err
	}
	for from := 0; from < b.Len(); {
		to := b.fits(from)
		err := ctx.Err()
		if err == nil {
			first := c.take(to - from)
			err = c.exchange(b.seal(from, to, first), first, to-from, func(i int, err error) { fail(from+i, err) })
		}
		if err != nil { // of those that got no error of their own nothing is known
			for i := from; i < to; i++ {
				if errs == nil || errs[i] == nil {
					fail(i, err)
				}
			}
		}
		from = to
	}
	return errs
}

// exchange sends n requests and reads until the last one is answered.
func (c *Conn) exchange(p []byte, first uint32, n int, refused func(int, error)) error {
	if err := c.send(p); err != nil {
		return fmt.Errorf("send to %s: %w", c.name, err)
	}
	c.sent += uint64(n)
	for {
		var err error
		if c.buf, err = c.receive(c.buf[:0]); err != nil {
			return fmt.Errorf("%w: %w", ErrNoAnswer, err)
		}
		for m := range Messages(c.buf) {
			i := m.Seq - first
			if i >= uint32(n) || m.Type != unix.NLMSG_ERROR { // a late answer to an earlier request
				continue
			}
			if err := parseError(m); err != nil {
				refused(int(i), err)
			}
			if i == uint32(n-1) {
				return nil
			}
		}
	}
}

// Dump sends the only request of b as a dump and appends the answer's messages to dst, to be walked
// over by Messages. With ErrInterrupted the messages are returned as well.
func (c *Conn) Dump(ctx context.Context, b *Batch, dst []byte) ([]byte, error) {
	if b.Len() != 1 {
		return dst, fmt.Errorf("dump of %d requests", b.Len())
	}
	binary.NativeEndian.PutUint16(b.buf[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	var all []byte
	var err error
	for range attempts {
		if err = ctx.Err(); err != nil {
			return dst, err
		}
		all, err = c.dump(b, dst)
		switch {
		case err == nil:
			return all, nil
		case !errors.Is(err, ErrInterrupted) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EBUSY):
			return dst, err
		}
	}
	if errors.Is(err, ErrInterrupted) {
		return all, err
	}
	return dst, err
}

func (c *Conn) dump(b *Batch, dst []byte) ([]byte, error) {
	seq := c.take(1)
	binary.NativeEndian.PutUint32(b.buf[8:], seq)
	if err := c.send(b.buf); err != nil {
		return dst, fmt.Errorf("send to %s: %w", c.name, err)
	}
	c.sent++
	interrupted := false
	for {
		at := len(dst)
		var err error
		if dst, err = c.receive(dst); err != nil {
			return dst, fmt.Errorf("dump: %w: %w", ErrNoAnswer, err)
		}
		for m := range Messages(dst[at:]) {
			if m.Seq != seq {
				continue
			}
			interrupted = interrupted || m.Flags&unix.NLM_F_DUMP_INTR != 0
			if m.Type != unix.NLMSG_DONE && m.Type != unix.NLMSG_ERROR {
				continue
			}
			if err = parseError(m); err == nil && interrupted {
				err = ErrInterrupted
			}
			return dst, err
		}
	}
}

// take reserves n sequence numbers and returns the first.
func (c *Conn) take(n int) uint32 {
	first := c.seq + 1
	c.seq += uint32(n)
	return first
}

func (c *Conn) send(p []byte) (err error) {
	werr := c.raw.Write(func(fd uintptr) bool {
		for {
			err = unix.Sendto(int(fd), p, 0, &c.kernel)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	return errors.Join(werr, err)
}

// receive appends one datagram to dst.
func (c *Conn) receive(dst []byte) ([]byte, error) {
	dst = slices.Grow(dst, datagram)
	free := dst[len(dst):cap(dst)]
	n, waited := 0, false
	var err error
	rerr := c.raw.Read(func(fd uintptr) bool {
		if n, err = recv(int(fd), free, unix.MSG_TRUNC); !errors.Is(err, unix.EAGAIN) {
			return true
		}
		if !waited {
			waited = true
			_ = c.sock.SetReadDeadline(time.Now().Add(patience))
		}
		return false
	})
	if waited {
		_ = c.sock.SetReadDeadline(time.Time{})
	}
	switch {
	case rerr != nil:
		return dst, rerr
	case err != nil:
		return dst, os.NewSyscallError("recvfrom", err)
	case n > len(free):
		return dst, fmt.Errorf("datagram of %d bytes: %w", n, unix.EMSGSIZE)
	}
	return dst[:len(dst)+n], nil
}

// recv reads again when a signal came between: the poller would not wake for what is there already.
func recv(fd int, p []byte, flags int) (int, error) {
	for {
		n, _, err := unix.Recvfrom(fd, p, flags)
		if err != unix.EINTR {
			return n, err
		}
	}
}

func (c *Conn) ioctl(op uint, req *unix.Ifreq) (err error) {
	cerr := c.raw.Control(func(fd uintptr) { err = unix.IoctlIfreq(int(fd), op, req) })
	return errors.Join(cerr, err)
}
