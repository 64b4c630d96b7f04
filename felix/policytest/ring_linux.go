// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring is a packet socket that the kernel writes to in memory which we share (packet_mmap): a socket's
// own buffer holds some 300 packets, which on a busy machine is less than passes between two reads.
type ring struct {
	fd   int
	mem  []byte
	next int
}

const (
	frameSize  = 256 // our packets are smaller
	blockSize  = 1 << 16
	frameCount = 1 << 14
)

// useRing gives a socket its ring.
func useRing(fd int) (*ring, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2); err != nil {
		return nil, fmt.Errorf("set packet version: %w", err)
	}
	req := unix.TpacketReq{Block_size: blockSize, Block_nr: frameCount * frameSize / blockSize, Frame_size: frameSize, Frame_nr: frameCount}
	if err := unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return nil, fmt.Errorf("set receive ring: %w", err)
	}
	mem, err := unix.Mmap(fd, 0, frameCount*frameSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map receive ring: %w", err)
	}
	return &ring{fd: fd, mem: mem}, nil
}

// read copies the next frame, if there is one, and tells the device that it came in by.
func (r *ring) read(buf []byte) (n, ifindex int, ok bool) {
	frame := r.mem[r.next*frameSize:][:frameSize]
	status := (*uint32)(unsafe.Pointer(&frame[0])) //nolint:gosec // shared with the kernel
	if atomic.LoadUint32(status)&unix.TP_STATUS_USER == 0 {
		return 0, 0, false
	}
	// struct tpacket2_hdr, then struct sockaddr_ll.
	const snaplen, mac, device = 8, 12, 32 + 4
	begin := int(binary.NativeEndian.Uint16(frame[mac:]))
	end := min(begin+int(binary.NativeEndian.Uint32(frame[snaplen:])), frameSize)
	n = copy(buf, frame[begin:end])
	ifindex = int(binary.NativeEndian.Uint32(frame[device:]))
	atomic.StoreUint32(status, unix.TP_STATUS_KERNEL)
	r.next = (r.next + 1) % frameCount
	return n, ifindex, true
}

func (r *ring) close() {
	_ = unix.Munmap(r.mem)
	_ = unix.Close(r.fd)
}

// overflows is how many frames found no room.
func (r *ring) overflows() int {
	s, err := unix.GetsockoptTpacketStats(r.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0
	}
	return int(s.Drops)
}

// wait returns once there is something to read, or after some milliseconds.
func (r *ring) wait(ms int) {
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}}, ms) //nolint:gosec // a descriptor
}
