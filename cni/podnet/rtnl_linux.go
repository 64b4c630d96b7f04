// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

// This file is all that knows rtnetlink's layout: a socket that sends several requests at once, and
// one function per message. mdlayher/netlink has the attributes; its Conn is not used because it
// sends one message per system call and must own the descriptor, while ours comes from elsewhere.

const (
	receiveTimeout = 10 // seconds that the kernel may take to answer
	receiveBuffer  = 64 << 10
	vethInfoPeer   = 1 // VETH_INFO_PEER of linux/veth.h
	addrNoDAD      = unix.IFA_F_NODAD | unix.IFA_F_PERMANENT
)

// request is one message to the kernel, and what to call it in an error.
type request struct {
	what  string
	typ   uint16
	flags uint16
	body  []byte
}

// socket is a NETLINK_ROUTE socket, of the pod's namespace or of the node's.
type socket struct {
	file *os.File
	seq  uint32
}

// openSocket opens a socket in the namespace of the calling thread.
func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return adoptSocket(os.NewFile(uintptr(fd), "netlink"))
}

// adoptSocket uses a descriptor that somebody else opened, if it is what it should be.
func adoptSocket(f *os.File) (*socket, error) {
	if f == nil {
		return nil, errNotNetlink
	}
	fd := int(f.Fd())
	domain, err1 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	protocol, err2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err1 != nil || err2 != nil || domain != unix.AF_NETLINK || protocol != unix.NETLINK_ROUTE {
		return nil, errNotNetlink
	}
	timeout := unix.Timeval{Sec: receiveTimeout}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	// Better texts and filtered dumps; a kernel without them is as good.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return &socket{file: f}, nil
}

var errNotNetlink = errors.New("the plugin passed no route netlink socket")

// cookie identifies the namespace of the socket; 0 on kernels before 5.14.
func (s *socket) cookie() uint64 {
	c, err := unix.GetsockoptUint64(int(s.file.Fd()), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return c
}

// exchange sends all requests in one system call; the kernel works on them in order, and goes on
// after one that fails. It returns the answers to each, and the failures joined.
func (s *socket) exchange(requests ...request) ([][][]byte, error) {
	base := s.seq + 1
	var out []byte
	for _, r := range requests {
		s.seq++
		out = r.append(out, s.seq)
	}
	fd := int(s.file.Fd())
	if err := unix.Sendto(fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("%s: send: %w", requests[0].what, err)
	}
	answers := make([][][]byte, len(requests))
	var errs []error
	buf := make([]byte, receiveBuffer)
	for open := len(requests); open > 0; {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return answers, errors.Join(append(errs, fmt.Errorf("%s: receive: %w", requests[0].what, err))...)
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return answers, errors.Join(append(errs, fmt.Errorf("%s: parse answer: %w", requests[0].what, err))...)
		}
		for _, m := range messages {
			i := m.Header.Seq - base
			if i >= uint32(len(requests)) {
				continue // of a conversation before ours
			}
			switch m.Header.Type {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				open--
				if err := ackError(m); err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", requests[i].what, err))
				}
			default:
				answers[i] = append(answers[i], append([]byte(nil), m.Data...))
			}
		}
	}
	return answers, errors.Join(errs...)
}

func (r request) append(out []byte, seq uint32) []byte {
	length := unix.NLMSG_HDRLEN + len(r.body)
	out = binary.NativeEndian.AppendUint32(out, uint32(length))
	out = binary.NativeEndian.AppendUint16(out, r.typ)
	flags := r.flags | unix.NLM_F_REQUEST
	if flags&unix.NLM_F_DUMP != unix.NLM_F_DUMP {
		flags |= unix.NLM_F_ACK
	}
	out = binary.NativeEndian.AppendUint16(out, flags)
	out = binary.NativeEndian.AppendUint32(out, seq)
	out = binary.NativeEndian.AppendUint32(out, 0)
	out = append(out, r.body...)
	return append(out, make([]byte, (4-len(r.body)%4)%4)...)
}

// ackError is the error of an acknowledgement or of a dump's end, with the kernel's text if any.
func ackError(m syscall.NetlinkMessage) error {
	if len(m.Data) < 4 {
		return nil
	}
	code := int32(binary.NativeEndian.Uint32(m.Data))
	if code == 0 {
		return nil
	}
	errno := syscall.Errno(-code)
	const text = unix.NLMSGERR_ATTR_MSG
	head := 4 + unix.NLMSG_HDRLEN
	if m.Header.Flags&unix.NLM_F_ACK_TLVS != 0 && len(m.Data) > head {
		if ad, err := netlink.NewAttributeDecoder(m.Data[head:]); err == nil {
			for ad.Next() {
				if ad.Type() == text {
					return fmt.Errorf("%w (%s)", errno, ad.String())
				}
			}
		}
	}
	return errno
}

// attributes encodes what f adds. Encoding fails only on values too long, which ours are not.
func attributes(head []byte, f func(ae *netlink.AttributeEncoder)) []byte {
	ae := netlink.NewAttributeEncoder()
	f(ae)
	b, err := ae.Encode()
	if err != nil {
		return head // the kernel then refuses the incomplete request
	}
	return append(head, b...)
}

// linkHead is a struct ifinfomsg.
func linkHead(index int32, up bool) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	if up {
		binary.NativeEndian.PutUint32(b[8:], unix.IFF_UP)
		binary.NativeEndian.PutUint32(b[12:], unix.IFF_UP)
	}
	return b
}

// createPair makes the pair from inside of the pod: the end there is up, its peer appears in the
// namespace of the descriptor.
func createPair(i Interface, host string, hostNS int) request {
	pod, hostMAC := podMAC(i.Attachment), HostMAC
	mtu := func(ae *netlink.AttributeEncoder) {
		if i.MTU > 0 {
			ae.Uint32(unix.IFLA_MTU, uint32(i.MTU))
		}
	}
	// The peer cannot be born up: it has no peer yet when the kernel would open it.
	peer := attributes(linkHead(0, false), func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, host)
		ae.Bytes(unix.IFLA_ADDRESS, hostMAC[:])
		mtu(ae)
		ae.Uint32(unix.IFLA_NET_NS_FD, uint32(hostNS))
	})
	body := attributes(linkHead(0, true), func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, i.Attachment.IfName)
		ae.Bytes(unix.IFLA_ADDRESS, pod[:])
		mtu(ae)
		ae.Nested(unix.IFLA_LINKINFO, func(info *netlink.AttributeEncoder) error {
			info.String(unix.IFLA_INFO_KIND, "veth")
			info.Nested(unix.IFLA_INFO_DATA, func(data *netlink.AttributeEncoder) error {
				data.Bytes(vethInfoPeer|unix.NLA_F_NESTED, peer)
				return nil
			})
			return nil
		})
	})
	return request{"create " + i.Attachment.IfName + " and " + host, unix.RTM_NEWLINK, unix.NLM_F_CREATE | unix.NLM_F_EXCL, body}
}

func getLink(name string) request {
	return request{"get link " + name, unix.RTM_GETLINK, 0, attributes(linkHead(0, false), func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, name)
	})}
}

func dumpLinks() request {
	return request{"list links", unix.RTM_GETLINK, unix.NLM_F_DUMP, linkHead(0, false)}
}

func setUp(index int32, alias string) request {
	return request{"set up the node's end", unix.RTM_NEWLINK, 0, attributes(linkHead(index, true), func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.IFLA_IFALIAS, []byte(alias))
	})}
}

func deleteLink(name string) request {
	return request{"delete " + name, unix.RTM_DELLINK, 0, attributes(linkHead(0, false), func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, name)
	})}
}

// addAddress adds a /32 or /128, usable at once.
func addAddress(index int32, a netip.Addr) request {
	head := []byte{afOf(a), byte(a.BitLen()), unix.IFA_F_PERMANENT, unix.RT_SCOPE_UNIVERSE}
	head = binary.NativeEndian.AppendUint32(head, uint32(index))
	return request{"add address " + a.String(), unix.RTM_NEWADDR, unix.NLM_F_CREATE | unix.NLM_F_EXCL, attributes(head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.IFA_LOCAL, a.AsSlice())
		ae.Bytes(unix.IFA_ADDRESS, a.AsSlice())
		if a.Is6() {
			ae.Uint32(unix.IFA_FLAGS, addrNoDAD)
		}
	})}
}

func dumpAddresses(index int32) request {
	head := binary.NativeEndian.AppendUint32([]byte{0, 0, 0, 0}, uint32(index))
	return request{"list addresses", unix.RTM_GETADDR, unix.NLM_F_DUMP, head}
}

// addNeighbour adds a permanent neighbour entry.
func addNeighbour(index int32, a netip.Addr, mac desired.MAC) request {
	head := []byte{afOf(a), 0, 0, 0}
	head = binary.NativeEndian.AppendUint32(head, uint32(index))
	head = binary.NativeEndian.AppendUint16(head, unix.NUD_PERMANENT)
	head = append(head, 0, unix.RTN_UNICAST)
	return request{"add neighbour " + a.String(), unix.RTM_NEWNEIGH, unix.NLM_F_CREATE | unix.NLM_F_REPLACE, attributes(head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.NDA_DST, a.AsSlice())
		ae.Bytes(unix.NDA_LLADDR, mac[:])
	})}
}

func dumpNeighbours(index int32) request {
	head := make([]byte, unix.SizeofNdMsg)
	return request{"list neighbours", unix.RTM_GETNEIGH, unix.NLM_F_DUMP, attributes(head, func(ae *netlink.AttributeEncoder) {
		ae.Uint32(unix.NDA_IFINDEX, uint32(index))
	})}
}

// routeHead is a struct rtmsg of a unicast route in the main table.
func routeHead(af byte, bits int, scope byte) []byte {
	return []byte{af, byte(bits), 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, scope, unix.RTN_UNICAST, 0, 0, 0, 0}
}

// addLinkRoute adds a route to an address that is directly on the device.
func addLinkRoute(index int32, dst netip.Addr) request {
	head := routeHead(afOf(dst), dst.BitLen(), unix.RT_SCOPE_LINK)
	return request{"add route " + dst.String(), unix.RTM_NEWROUTE, unix.NLM_F_CREATE | unix.NLM_F_EXCL, attributes(head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.RTA_DST, dst.AsSlice())
		ae.Uint32(unix.RTA_OIF, uint32(index))
	})}
}

// addDefault adds the default route.
func addDefault(index int32, via netip.Addr) request {
	return request{"add default route via " + via.String(), unix.RTM_NEWROUTE, unix.NLM_F_CREATE | unix.NLM_F_EXCL,
		attributes(routeHead(afOf(via), 0, unix.RT_SCOPE_UNIVERSE), func(ae *netlink.AttributeEncoder) {
			ae.Bytes(unix.RTA_GATEWAY, via.AsSlice())
			ae.Uint32(unix.RTA_OIF, uint32(index))
		})}
}

func dumpRoutes(af byte) request {
	return request{"list routes", unix.RTM_GETROUTE, unix.NLM_F_DUMP, []byte{af, 0, 0, 0, unix.RT_TABLE_MAIN, 0, 0, 0, 0, 0, 0, 0}}
}

// lookup asks where the kernel would send a packet.
func lookup(dst netip.Addr) request {
	head := make([]byte, unix.SizeofRtMsg)
	head[0], head[1] = afOf(dst), byte(dst.BitLen())
	return request{"look up " + dst.String(), unix.RTM_GETROUTE, 0, attributes(head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.RTA_DST, dst.AsSlice())
	})}
}

func afOf(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// link is what we read of a link.
type link struct {
	index, peer int32
	mtu         int
	up          bool
	name, alias string
	mac         []byte
}

func parseLink(b []byte) (link, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return link{}, errShort
	}
	l := link{index: int32(binary.NativeEndian.Uint32(b[4:])), up: binary.NativeEndian.Uint32(b[8:])&unix.IFF_UP != 0}
	err := eachAttribute(b[unix.SizeofIfInfomsg:], func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			l.name = ad.String()
		case unix.IFLA_IFALIAS:
			l.alias = ad.String()
		case unix.IFLA_LINK:
			l.peer = ad.Int32()
		case unix.IFLA_MTU:
			l.mtu = int(ad.Uint32())
		case unix.IFLA_ADDRESS:
			l.mac = ad.Bytes()
		}
	})
	return l, err
}

// parseAddress returns the address and device of an address message.
func parseAddress(b []byte) (a netip.Addr, index int32, err error) {
	if len(b) < unix.SizeofIfAddrmsg {
		return a, 0, errShort
	}
	index = int32(binary.NativeEndian.Uint32(b[4:]))
	err = eachAttribute(b[unix.SizeofIfAddrmsg:], func(ad *netlink.AttributeDecoder) {
		// IFA_LOCAL is the interface's own where there are both (IPv4), IFA_ADDRESS where it is alone.
		if t := ad.Type(); t == unix.IFA_LOCAL || t == unix.IFA_ADDRESS && !a.IsValid() {
			a, _ = netip.AddrFromSlice(ad.Bytes())
		}
	})
	return a, index, err
}

// parseNeighbour returns the parts of a neighbour message.
func parseNeighbour(b []byte) (a netip.Addr, mac desired.MAC, index int32, permanent bool, err error) {
	if len(b) < unix.SizeofNdMsg {
		return a, mac, 0, false, errShort
	}
	index = int32(binary.NativeEndian.Uint32(b[4:]))
	permanent = binary.NativeEndian.Uint16(b[8:])&unix.NUD_PERMANENT != 0
	err = eachAttribute(b[unix.SizeofNdMsg:], func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NDA_DST:
			a, _ = netip.AddrFromSlice(ad.Bytes())
		case unix.NDA_LLADDR:
			copy(mac[:], ad.Bytes())
		}
	})
	return a, mac, index, permanent, err
}

// route is what we read of a route.
type route struct {
	isDefault bool
	via       netip.Addr
	index     int32
}

func parseRoute(b []byte) (route, error) {
	if len(b) < unix.SizeofRtMsg {
		return route{}, errShort
	}
	r := route{isDefault: b[1] == 0 && b[4] == unix.RT_TABLE_MAIN && b[7] == unix.RTN_UNICAST}
	err := eachAttribute(b[unix.SizeofRtMsg:], func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.RTA_GATEWAY:
			r.via, _ = netip.AddrFromSlice(ad.Bytes())
		case unix.RTA_OIF:
			r.index = ad.Int32()
		}
	})
	return r, err
}

var errShort = errors.New("the kernel's answer is too short")

func eachAttribute(b []byte, f func(ad *netlink.AttributeDecoder)) error {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return err
	}
	for ad.Next() {
		f(ad)
	}
	return ad.Err()
}
