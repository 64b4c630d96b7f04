// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/path"
)

const (
	// receiveSize holds the largest padded question (jumbo frames).
	receiveSize = 16 << 10
	// receiveBatch is how many packets of a socket are read at a time: more than its buffer holds, so that an
	// answer cannot be behind those of a flood.
	receiveBatch = 1024
)

// socket is one that is bound to an address of ours.
type socket struct {
	fd    int
	local netip.Addr
	echo  bool   // ICMP, raw
	mark  uint32 // that it sends with now
}

// kernelSockets are a UDP and, if that is permitted, a raw ICMP socket per local address. They are read by
// the goroutine that waits for them, without Go's poller: so it is certain that what had come when the wait
// ended is read before anything is judged.
type kernelSockets struct {
	marks    [path.Methods]uint32
	methodOf func(int) path.Method
	all      []*socket
	port     uint16
	buf, oob []byte
	poll     []unix.PollFd
	sequence uint16
	id       uint16

	mu   sync.Mutex // wake and Close, since Wake may be called after Close
	wake int        // eventfd, -1: closed
}

func openSockets(marks [path.Methods]uint32, methodOf func(int) path.Method) (sockets, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make eventfd: %w", err)
	}
	return &kernelSockets{
		marks: marks, methodOf: methodOf, wake: fd, id: uint16(unix.Getpid()),
		buf: make([]byte, receiveSize), oob: make([]byte, 256),
	}, nil
}

// Bind implements sockets.
func (k *kernelSockets) Bind(locals []netip.Addr, port uint16) error {
	if port != k.port {
		k.closeAll()
		k.port = port
	}
	k.all = slices.DeleteFunc(k.all, func(s *socket) bool {
		gone := !slices.Contains(locals, s.local)
		if gone {
			_ = unix.Close(s.fd)
		}
		return gone
	})
	var errs []error
	for _, a := range locals {
		a = a.Unmap()
		if k.find(a, false) == nil {
			s, err := listenUDP(a, port)
			if err != nil {
				errs = append(errs, fmt.Errorf("listen on %s: %w", netip.AddrPortFrom(a, port), err))
				continue
			}
			k.all = append(k.all, s)
		}
		if k.find(a, true) == nil {
			// Not permitted: done without. The caller sees it by Able.
			if s, err := listenEcho(a); err == nil {
				k.all = append(k.all, s)
			}
		}
	}
	return errors.Join(errs...)
}

func (k *kernelSockets) find(a netip.Addr, echo bool) *socket {
	for _, s := range k.all {
		if s.local == a && s.echo == echo {
			return s
		}
	}
	return nil
}

// Able implements sockets.
func (k *kernelSockets) Able(f bgp.Family) bool {
	for _, s := range k.all {
		if s.echo && bgp.FamilyOf(s.local) == f {
			return true
		}
	}
	return false
}

type option struct{ level, name, value int }

// familyOptions let a packet say by which device it came, never be fragmented, whatever the kernel believes
// of the path's MTU, and be bound to an address that is not there yet.
func familyOptions(a netip.Addr) []option {
	if a.Is4() {
		return []option{
			{unix.IPPROTO_IP, unix.IP_PKTINFO, 1},
			{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE},
			{unix.IPPROTO_IP, unix.IP_FREEBIND, 1},
		}
	}
	return []option{
		{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1},
		{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1},
		{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE},
		{unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1}, // or the kernel itself fragments to the device's MTU
		{unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1},
	}
}

func listenUDP(a netip.Addr, port uint16) (*socket, error) {
	return listen(a, port, unix.SOCK_DGRAM, 0, familyOptions(a))
}

// listenEcho opens a raw socket that gets echo replies and nothing else.
func listenEcho(a netip.Addr) (*socket, error) {
	protocol := unix.IPPROTO_ICMP
	options := familyOptions(a)
	if a.Is6() {
		protocol = unix.IPPROTO_ICMPV6
		options = slices.DeleteFunc(options, func(o option) bool { return o.name == unix.IPV6_V6ONLY })
	}
	s, err := listen(a, 0, unix.SOCK_RAW, protocol, options)
	if err != nil {
		return nil, err
	}
	s.echo = true
	if err := filterEcho(s); err != nil {
		_ = unix.Close(s.fd)
		return nil, err
	}
	return s, nil
}

func filterEcho(s *socket) error {
	if s.local.Is4() {
		const icmpFilter = 1 // ICMP_FILTER, linux/icmp.h
		mask := ^uint32(1 << 0)
		return unix.SetsockoptInt(s.fd, unix.SOL_RAW, icmpFilter, int(int32(mask)))
	}
	f := unix.ICMPv6Filter{}
	for i := range f.Data {
		f.Data[i] = ^uint32(0)
	}
	f.Data[echoReply6/32] &^= 1 << (echoReply6 % 32)
	return unix.SetsockoptICMPv6Filter(s.fd, unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &f)
}

func listen(a netip.Addr, port uint16, kind, protocol int, options []option) (*socket, error) {
	family := unix.AF_INET6
	if a.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	for _, o := range options {
		if err = unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			err = fmt.Errorf("set option %d of level %d: %w", o.name, o.level, err)
			break
		}
	}
	if err == nil {
		if err = unix.Bind(fd, sockaddr(a, port)); err != nil {
			err = fmt.Errorf("bind: %w", err)
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &socket{fd: fd, local: a}, nil
}

func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
}

// Send implements sockets. The mark is set on the socket, since not all kernels take it with a packet.
func (k *kernelSockets) Send(o outbound) error {
	s := k.find(o.local, o.echo)
	if s == nil {
		return unix.EADDRNOTAVAIL
	}
	if mark := k.marks[o.method]; s.mark != mark {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_MARK, int(int32(mark))); err != nil {
			return fmt.Errorf("set mark: %w", err)
		}
		s.mark = mark
	}
	port, data := k.port, o.data
	if o.echo {
		port = 0
		k.sequence++
		data = appendEcho(nil, s.local.Is4(), k.id, k.sequence, o.data)
	}
	err := unix.Sendto(s.fd, data, 0, sockaddr(o.remote, port))
	if errors.Is(err, unix.EMSGSIZE) {
		return errTooBig
	}
	return err
}

// Wait implements sockets.
func (k *kernelSockets) Wait(d time.Duration) {
	k.poll = append(k.poll[:0], unix.PollFd{Fd: int32(k.wake), Events: unix.POLLIN})
	for _, s := range k.all {
		k.poll = append(k.poll, unix.PollFd{Fd: int32(s.fd), Events: unix.POLLIN})
	}
	ts := unix.NsecToTimespec(int64(max(0, d)))
	if n, err := unix.Ppoll(k.poll, &ts, nil); n > 0 && err == nil && k.poll[0].Revents != 0 {
		var b [8]byte
		_, _ = unix.Read(k.wake, b[:])
	}
}

// Receive implements sockets.
func (k *kernelSockets) Receive(f func(inbound)) {
	for _, s := range k.all {
		for range receiveBatch {
			n, oobn, flags, from, err := unix.Recvmsg(s.fd, k.buf, k.oob, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				break // nothing more; any other error is told by what is missing
			}
			if flags&unix.MSG_TRUNC != 0 {
				continue
			}
			in := inbound{echo: s.echo, local: s.local, remote: address(from), data: k.buf[:n]}
			in.method = k.methodOf(arrival(k.oob[:oobn]))
			if s.echo {
				if in.data = echoData(k.buf[:n], s.local.Is4(), k.id); in.data == nil {
					continue
				}
			}
			f(in)
		}
	}
}

func address(sa unix.Sockaddr) netip.Addr {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(a.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(a.Addr)
	}
	return netip.Addr{}
}

// arrival is the index of the device by which a packet came, 0: unknown.
func arrival(oob []byte) int {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return 0
		}
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			return int(int32(binary.NativeEndian.Uint32(data)))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			return int(binary.NativeEndian.Uint32(data[16:]))
		}
		oob = rest
	}
	return 0
}

// Wake implements sockets.
func (k *kernelSockets) Wake() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.wake >= 0 {
		_, _ = unix.Write(k.wake, binary.NativeEndian.AppendUint64(nil, 1))
	}
}

// Close implements sockets.
func (k *kernelSockets) Close() {
	k.closeAll()
	k.mu.Lock()
	defer k.mu.Unlock()
	_ = unix.Close(k.wake)
	k.wake = -1
}

func (k *kernelSockets) closeAll() {
	for _, s := range k.all {
		_ = unix.Close(s.fd)
	}
	k.all = nil
}
