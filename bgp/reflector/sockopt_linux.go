// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxTTL is what RFC 5082 sends with. It does no harm to peers without it.
const maxTTL = 255

// listenControl sends SYN-ACKs as far as they can go: a peer with TTL security drops others.
func listenControl(network, _ string, c syscall.RawConn) error {
	return control(c, func(fd int) error { return setSendTTL(fd, network == "tcp6") })
}

// dialControl sets what must be there before the first packet.
func dialControl(p Peer) func(network, address string, c syscall.RawConn) error {
	return func(network, _ string, c syscall.RawConn) error {
		return control(c, func(fd int) error {
			v6 := network == "tcp6"
			if p.Password != "" {
				if err := setPassword(fd, p.Prefix, string(p.Password), unix.TCP_MD5SIG); err != nil {
					return err
				}
			}
			if p.TTLHops == 0 {
				return nil
			}
			if err := setSendTTL(fd, v6); err != nil {
				return err
			}
			return setMinTTL(fd, v6, p.TTLHops)
		})
	}
}

func setListenerPassword(l net.Listener, p netip.Prefix, password string) error {
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		return err
	}
	return control(raw, func(fd int) error { return setPassword(fd, p, password, unix.TCP_MD5SIG_EXT) })
}

// setPassword gives the kernel a key for a prefix, or takes it away. The plain option is for sockets
// that dial, which have one peer.
func setPassword(fd int, p netip.Prefix, password string, option int) error {
	sig := unix.TCPMD5Sig{Keylen: uint16(len(password))}
	if p.Addr().Is4() {
		sig.Addr.Family = unix.AF_INET
		copy(sig.Addr.Data[2:], p.Addr().AsSlice())
	} else {
		sig.Addr.Family = unix.AF_INET6
		copy(sig.Addr.Data[6:], p.Addr().AsSlice())
	}
	if option == unix.TCP_MD5SIG_EXT {
		sig.Flags, sig.Prefixlen = unix.TCP_MD5SIG_FLAG_PREFIX, uint8(p.Bits())
	}
	copy(sig.Key[:], password)
	return unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, option, &sig)
}

// setTTL drops packets that came over more hops than they may.
func setTTL(conn net.Conn, hops uint8) error {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	v6 := tcp.LocalAddr().(*net.TCPAddr).IP.To4() == nil
	return control(raw, func(fd int) error {
		if err := setSendTTL(fd, v6); err != nil {
			return err
		}
		return setMinTTL(fd, v6, hops)
	})
}

// setPatience makes the kernel give up on a peer that acknowledges nothing, or keeps its window shut. A
// write alone would notice that only when megabytes of buffer are full.
func setPatience(conn net.Conn, d time.Duration) error {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	return control(raw, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
}

func setSendTTL(fd int, v6 bool) error {
	if v6 {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, maxTTL)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, maxTTL)
}

func setMinTTL(fd int, v6 bool, hops uint8) error {
	least := maxTTL - int(hops) + 1
	if v6 {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT, least)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MINTTL, least)
}

func control(c syscall.RawConn, f func(fd int) error) error {
	var inner error
	if err := c.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}
