// SPDX-License-Identifier: Apache-2.0

package routes

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// raw is the yardstick: hand-built messages on a bare socket, 256 to a sendto with one
// acknowledgement, nothing looked at but whether there were errors.
type raw struct {
	fd  int
	seq uint32
	out []byte
	in  []byte
}

const rawBatch = 256

func openRaw() (*raw, error) {
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
	return &raw{fd: fd, in: make([]byte, 1<<20)}, nil
}

// begin appends a header, end sets the message's length.
func (r *raw) begin(typ, flags uint16, family ...byte) int {
	at := len(r.out)
	r.seq++
	r.out = binary.NativeEndian.AppendUint32(r.out, 0)
	r.out = binary.NativeEndian.AppendUint16(r.out, typ)
	r.out = binary.NativeEndian.AppendUint16(r.out, unix.NLM_F_REQUEST|flags)
	r.out = binary.NativeEndian.AppendUint32(r.out, r.seq)
	r.out = binary.NativeEndian.AppendUint32(r.out, 0)
	r.out = append(r.out, family...)
	return at
}

func (r *raw) attr(typ uint16, v []byte) {
	r.out = binary.NativeEndian.AppendUint16(r.out, uint16(4+len(v)))
	r.out = binary.NativeEndian.AppendUint16(r.out, typ)
	r.out = append(r.out, v...)
}

func (r *raw) attr32(typ uint16, v uint32) {
	r.out = binary.NativeEndian.AppendUint16(r.out, 8)
	r.out = binary.NativeEndian.AppendUint16(r.out, typ)
	r.out = binary.NativeEndian.AppendUint32(r.out, v)
}

func (r *raw) end(at int) { binary.NativeEndian.PutUint32(r.out[at:], uint32(len(r.out)-at)) }

// route appends a message about the i-th route: through a nexthop object, a gateway, or neither.
func (r *raw) route(typ, flags uint16, i int, link, nexthop uint32) int {
	at := r.begin(typ, flags, unix.AF_INET, bits, 0, 0, unix.RT_TABLE_MAIN, protocol, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0)
	d := address(i).As4()
	r.attr(unix.RTA_DST, d[:])
	switch {
	case nexthop != 0:
		r.attr32(rtaNexthopID, nexthop)
	case link != 0:
		g := gateway(i / 4 % gateways).As4()
		r.attr(unix.RTA_GATEWAY, g[:])
		r.attr32(unix.RTA_OIF, link)
	}
	r.end(at)
	return at
}

// each sends n messages in batches.
func (r *raw) each(n int, message func(i int) (at int)) error {
	r.out = r.out[:0]
	for i := range n {
		at := message(i)
		if (i+1)%rawBatch == 0 || i == n-1 {
			if err := r.flush(at); err != nil {
				return err
			}
		}
	}
	return nil
}

// flush sends what was appended and waits for the acknowledgement of the last message.
func (r *raw) flush(last int) error {
	flags := binary.NativeEndian.Uint16(r.out[last+6:])
	binary.NativeEndian.PutUint16(r.out[last+6:], flags|unix.NLM_F_ACK)
	if err := unix.Sendto(r.fd, r.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	r.out = r.out[:0]
	for {
		n, _, err := unix.Recvfrom(r.fd, r.in, 0)
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		for p := r.in[:n]; len(p) >= 20; p = p[(binary.NativeEndian.Uint32(p)+3)&^3:] {
			if code := int32(binary.NativeEndian.Uint32(p[16:])); code != 0 {
				return fmt.Errorf("raw netlink: %w", unix.Errno(-code))
			}
			if binary.NativeEndian.Uint32(p[8:]) == r.seq {
				return nil
			}
		}
	}
}

// dump reads the main table and counts the destinations of our protocol.
func (r *raw) dump() (count int, err error) {
	r.out = r.out[:0]
	r.end(r.begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP, unix.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
	if err := unix.Sendto(r.fd, r.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, os.NewSyscallError("sendto", err)
	}
	for {
		n, _, err := unix.Recvfrom(r.fd, r.in, 0)
		if err != nil {
			return 0, os.NewSyscallError("recvfrom", err)
		}
		for p := r.in[:n]; len(p) >= 16; {
			l := int(binary.NativeEndian.Uint32(p))
			switch binary.NativeEndian.Uint16(p[4:]) {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				return count, nil
			case unix.RTM_NEWROUTE:
				if p[16+5] == protocol {
					count += destinations(p[28:l])
				}
			}
			p = p[(l+3)&^3:]
		}
	}
}

func destinations(a []byte) (n int) {
	for len(a) >= 4 {
		if binary.NativeEndian.Uint16(a[2:]) == unix.RTA_DST {
			n++
		}
		a = a[min((int(binary.NativeEndian.Uint16(a))+3)&^3, len(a)):]
	}
	return n
}
