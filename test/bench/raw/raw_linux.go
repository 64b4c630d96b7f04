// SPDX-License-Identifier: Apache-2.0

// Package raw is the yardstick for what writes to the kernel: hand-built netlink messages on a bare
// socket, 256 to a sendto with one acknowledgement, nothing looked at but whether there were errors.
package raw

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Socket is a netlink socket, and the messages that are still to be sent.
type Socket struct {
	fd  int
	seq uint32
	out []byte
	in  []byte
}

const batch = 256

// Open opens a socket of the present network namespace.
func Open() (*Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	for _, opt := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, opt, 1); err != nil {
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	return &Socket{fd: fd, in: make([]byte, 1<<20)}, nil
}

// Begin appends a header, and says where it is.
func (s *Socket) Begin(typ, flags uint16, family ...byte) int {
	at := len(s.out)
	s.seq++
	s.out = binary.NativeEndian.AppendUint32(s.out, 0)
	s.out = binary.NativeEndian.AppendUint16(s.out, typ)
	s.out = binary.NativeEndian.AppendUint16(s.out, unix.NLM_F_REQUEST|flags)
	s.out = binary.NativeEndian.AppendUint32(s.out, s.seq)
	s.out = binary.NativeEndian.AppendUint32(s.out, 0)
	s.out = append(s.out, family...)
	return at
}

// Attr appends an attribute.
func (s *Socket) Attr(typ uint16, v []byte) {
	s.out = binary.NativeEndian.AppendUint16(s.out, uint16(4+len(v)))
	s.out = binary.NativeEndian.AppendUint16(s.out, typ)
	s.out = append(s.out, v...)
}

// Attr32 appends an attribute that is a number.
func (s *Socket) Attr32(typ uint16, v uint32) {
	s.out = binary.NativeEndian.AppendUint16(s.out, 8)
	s.out = binary.NativeEndian.AppendUint16(s.out, typ)
	s.out = binary.NativeEndian.AppendUint32(s.out, v)
}

// End completes the message that begins at at.
func (s *Socket) End(at int) { binary.NativeEndian.PutUint32(s.out[at:], uint32(len(s.out)-at)) }

// Each sends n messages in batches.
func (s *Socket) Each(n int, message func(i int) (at int)) error {
	s.out = s.out[:0]
	for i := range n {
		at := message(i)
		if (i+1)%batch == 0 || i == n-1 {
			if err := s.flush(at); err != nil {
				return err
			}
		}
	}
	return nil
}

// flush sends what was appended and waits for the acknowledgement of the last message.
func (s *Socket) flush(last int) error {
	flags := binary.NativeEndian.Uint16(s.out[last+6:])
	binary.NativeEndian.PutUint16(s.out[last+6:], flags|unix.NLM_F_ACK)
	if err := unix.Sendto(s.fd, s.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	s.out = s.out[:0]
	for {
		n, _, err := unix.Recvfrom(s.fd, s.in, 0)
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		for p := s.in[:n]; len(p) >= 20; p = p[(binary.NativeEndian.Uint32(p)+3)&^3:] {
			if code := int32(binary.NativeEndian.Uint32(p[16:])); code != 0 {
				return fmt.Errorf("raw netlink: %w", unix.Errno(-code))
			}
			if binary.NativeEndian.Uint32(p[8:]) == s.seq {
				return nil
			}
		}
	}
}

// Dump sends the one message that was appended, and calls f with each answer's type and body.
func (s *Socket) Dump(f func(typ uint16, body []byte)) error {
	err := unix.Sendto(s.fd, s.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	s.out = s.out[:0]
	if err != nil {
		return os.NewSyscallError("sendto", err)
	}
	for {
		n, _, err := unix.Recvfrom(s.fd, s.in, 0)
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		for p := s.in[:n]; len(p) >= 16; {
			l := int(binary.NativeEndian.Uint32(p))
			switch typ := binary.NativeEndian.Uint16(p[4:]); typ {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				return nil
			default:
				f(typ, p[16:l])
			}
			p = p[(l+3)&^3:]
		}
	}
}
