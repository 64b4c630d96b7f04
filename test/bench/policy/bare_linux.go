// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// bare is the yardstick for one element: a batch that was written before, one sendto, one recv, and nothing
// looked at but whether there was an error.
type bare struct {
	fd  int
	in  []byte
	add []byte
	del []byte
}

// newBare prepares the messages that put an address into a set of table inet bare, and take it out.
func newBare(set string, ip netip.Addr) (*bare, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	return &bare{
		fd: fd, in: make([]byte, 4096),
		add: elementBatch(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, set, ip),
		del: elementBatch(unix.NFT_MSG_DELSETELEM, 0, set, ip),
	}, nil
}

func (b *bare) close() { _ = unix.Close(b.fd) }

func (b *bare) commit(batch []byte) error {
	if err := unix.Sendto(b.fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	n, _, err := unix.Recvfrom(b.fd, b.in, 0)
	if err != nil {
		return os.NewSyscallError("recvfrom", err)
	}
	if n < 20 || binary.NativeEndian.Uint32(b.in[16:]) != 0 {
		return fmt.Errorf("nf_tables refuses the element: % x", b.in[:n])
	}
	return nil
}

func elementBatch(kind, flags uint16, set string, ip netip.Addr) []byte {
	attr := func(kind uint16, data []byte) []byte {
		out := binary.NativeEndian.AppendUint16(nil, uint16(4+len(data)))
		out = append(binary.NativeEndian.AppendUint16(out, kind), data...)
		return append(out, make([]byte, -len(out)&3)...)
	}
	message := func(kind, flags uint16, family byte, resource uint16, body ...[]byte) []byte {
		out := make([]byte, 4, 64)
		out = binary.NativeEndian.AppendUint16(out, kind)
		out = binary.NativeEndian.AppendUint16(out, flags|unix.NLM_F_REQUEST)
		out = append(out, make([]byte, 8)...)
		out = append(out, family, 0, byte(resource>>8), byte(resource))
		for _, b := range body {
			out = append(out, b...)
		}
		binary.NativeEndian.PutUint32(out, uint32(len(out)))
		return out
	}
	const nested = unix.NLA_F_NESTED
	key := attr(nested|unix.NFTA_SET_ELEM_KEY, attr(unix.NFTA_DATA_VALUE, ip.AsSlice()))
	out := message(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.NFNL_SUBSYS_NFTABLES)
	out = append(out, message(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags|unix.NLM_F_ACK, unix.NFPROTO_INET, 0,
		attr(unix.NFTA_SET_ELEM_LIST_TABLE, []byte("bare\x00")), attr(unix.NFTA_SET_ELEM_LIST_SET, []byte(set+"\x00")),
		attr(nested|unix.NFTA_SET_ELEM_LIST_ELEMENTS, attr(nested|unix.NFTA_LIST_ELEM, key)))...)
	return append(out, message(unix.NFNL_MSG_BATCH_END, 0, 0, unix.NFNL_SUBSYS_NFTABLES)...)
}
