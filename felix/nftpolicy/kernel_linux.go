// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
)

// sendBuffer is how large a transaction may be. Without CAP_NET_ADMIN on the host the kernel gives less.
const sendBuffer = 64 << 20

// Kernel is the Handle of the network namespace in which it was opened.
type Kernel struct {
	fd       int
	room     int    // bytes that the kernel takes at a time
	port     uint32 // our netlink address, by which Monitor tells our changes from those of others
	sequence uint32 // of the last message: answers to earlier ones, of a turn that failed, are skipped
}

var _ Handle = (*Kernel)(nil)

// Open opens a netlink socket in the present network namespace.
func Open() (*Kernel, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	k := &Kernel{fd: fd}
	if err := k.setUp(); err != nil {
		return nil, errors.Join(fmt.Errorf("set up netlink socket: %w", err), k.Close())
	}
	return k, nil
}

// Close closes the socket.
func (k *Kernel) Close() error { return unix.Close(k.fd) }

func (k *Kernel) setUp() error {
	if err := unix.Bind(k.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for _, option := range [][2]int{{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}, {unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}} {
		if unix.SetsockoptInt(k.fd, unix.SOL_SOCKET, option[0], sendBuffer) == nil {
			continue
		}
		if err := unix.SetsockoptInt(k.fd, unix.SOL_SOCKET, option[1], sendBuffer); err != nil {
			return err
		}
	}
	buffer, err := unix.GetsockoptInt(k.fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return err
	}
	k.room = buffer - 32 // netlink_sendmsg
	// A refusal need not bring back the message, of up to 64 KiB.
	if err := unix.SetsockoptInt(k.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err != nil {
		return err
	}
	addr, err := unix.Getsockname(k.fd)
	if err != nil {
		return err
	}
	k.port = addr.(*unix.SockaddrNetlink).Pid
	return nil
}

// Commit sends a transaction.
func (k *Kernel) Commit(tx Transaction) error {
	b := &batch{sequence: k.sequence, attributes: make(attributes, 0, min(estimate(tx), k.room))}
	defer func() { k.sequence = b.sequence }()
	b.begin(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	b.end()
	// Adding the table before deleting it makes the deletion right in both cases, of one that is there
	// and one that is not.
	if tx.Replace {
		b.table(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
	}
	if tx.Replace || tx.Delete {
		b.table(unix.NFT_MSG_DELTABLE, 0)
	}
	if tx.Replace {
		b.table(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
	}
	first := make([]uint32, len(tx.Ops)) // number of the first message of each operation
	for i := range tx.Ops {
		first[i] = b.sequence + 1
		if err := b.op(&tx.Ops[i]); err != nil {
			return err
		}
		if len(b.attributes) > k.room {
			return fmt.Errorf("send %d operations (the first %d are %d bytes): %w", len(tx.Ops), i+1, len(b.attributes), unix.EMSGSIZE)
		}
	}
	// Refusals are told of each message anyway; that all went well, of this one.
	acknowledge(b.attributes[b.last:])
	last := b.sequence
	// Without the end of a batch the kernel undoes what it has prepared. That is what `nft --check` does.
	if !tx.DryRun {
		b.begin(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
		b.end()
	}
	if err := k.send(b.attributes); err != nil {
		return fmt.Errorf("send %d operations (%d bytes): %w", len(tx.Ops), len(b.attributes), err)
	}
	return k.answers(k.sequence+1, last, first)
}

// estimate is about how many bytes a transaction is: a buffer that grows step by step is copied, and left to
// the collector, several times its size.
func estimate(tx Transaction) int {
	const batch, op, element = 256, 512, 64
	n := batch + op*len(tx.Ops)
	for i := range tx.Ops {
		n += element * len(tx.Ops[i].Elements)
	}
	return n
}

func acknowledge(message []byte) {
	flags := binary.NativeEndian.Uint16(message[6:])
	binary.NativeEndian.PutUint16(message[6:], flags|unix.NLM_F_ACK)
}

// send sends messages; when it returns, the kernel has dealt with them, and its answers are queued.
func (k *Kernel) send(messages []byte) error {
	for {
		err := unix.Sendto(k.fd, messages, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// answers reads what the kernel says to a batch, whose messages are numbered from begin to last. What it
// says to the first is about the batch as a whole.
func (k *Kernel) answers(begin, last uint32, first []uint32) error {
	buffer := make([]byte, 4096)
	refused := &RefusedError{}
	for {
		n, _, err := unix.Recvfrom(k.fd, buffer, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN) && refused.Err != nil:
			return k.verdict(refused)
		case err != nil: // also that answers were lost: we do not know what has happened
			return fmt.Errorf("receive the kernel's answer: %w", err)
		}
		sequence, errno, err := parseAnswer(buffer[:n])
		switch {
		case err != nil:
			return err
		case int32(sequence-begin) < 0:
			continue
		case errno != 0:
			if refused.Err == nil {
				refused.Err = errno
			}
			if i, _ := slices.BinarySearch(first, sequence+1); i > 0 {
				refused.Ops = append(refused.Ops, i-1)
			}
		}
		if sequence == last && errno == 0 {
			return k.verdict(refused)
		}
	}
}

// verdict is nil if the kernel has taken all.
func (k *Kernel) verdict(r *RefusedError) error {
	var errno syscall.Errno
	if !errors.As(r.Err, &errno) {
		return nil
	}
	switch errno {
	case unix.ENOBUFS, unix.ENOMEM, unix.EAGAIN, unix.EINTR, unix.EPERM, unix.EACCES:
		return r.Err
	}
	return r
}

func parseAnswer(b []byte) (sequence uint32, errno syscall.Errno, err error) {
	const headerLen = 16
	if len(b) < headerLen+4 || binary.NativeEndian.Uint16(b[4:]) != unix.NLMSG_ERROR {
		return 0, 0, fmt.Errorf("unexpected answer of %d bytes from nf_tables", len(b))
	}
	return binary.NativeEndian.Uint32(b[8:]), syscall.Errno(-int32(binary.NativeEndian.Uint32(b[headerLen:]))), nil
}

// Monitor calls poke whenever somebody else has changed our table, or may have, until ctx ends.
func (k *Kernel) Monitor(ctx context.Context, poke func()) error {
	return kernel.MonitorNFTables(ctx, kernel.OfInetTable(desired.NFTPolicyTable), func(port uint32) bool { return port == k.port }, poke)
}
