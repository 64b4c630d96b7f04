// SPDX-License-Identifier: Apache-2.0

package dnsgate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	nfqueue "github.com/florianl/go-nfqueue/v2"
	"github.com/mdlayher/netlink"
)

const (
	// queueNumber is our NFQUEUE ("he" in ASCII, as policy.LogGroup).
	queueNumber = 0x6865
	// patience is how long an answer is held at most.
	patience = 500 * time.Millisecond
	// maxHeld bounds how many answers are; the kernel holds those after them.
	maxHeld = 256
	// maxQueued is how many the kernel holds. What is more passes.
	maxQueued = 4096
)

// Listen gives each DNS message that the kernel holds in the present network namespace to heard, and lets
// it pass when heard has returned, or has taken too long. It ends with ctx. heard is called concurrently.
func Listen(ctx context.Context, heard func(ctx context.Context, message []byte)) error {
	q, err := nfqueue.Open(&nfqueue.Config{
		NfQueue: queueNumber, MaxQueueLen: maxQueued, MaxPacketLen: 0xffff, Copymode: nfqueue.NfQnlCopyPacket,
		// More answers than we can hold pass unheard; they are not lost.
		Flags: nfqueue.NfQaCfgFlagFailOpen, WriteTimeout: patience,
	})
	if err != nil {
		return fmt.Errorf("open NFQUEUE: %w", err)
	}
	defer q.Close() //nolint:errcheck // all that was held has passed; of what comes now the kernel drops what is queued, and it is asked for again
	l := listener{queue: q, heard: heard, turn: make(chan struct{}, maxHeld), failed: make(chan error, 1)}
	defer l.holding.Wait()
	if err := q.RegisterWithErrorFunc(ctx, func(a nfqueue.Attribute) int { l.hold(ctx, a); return 0 }, func(err error) int { return l.stumble(ctx, err) }); err != nil {
		return fmt.Errorf("listen to NFQUEUE %d: %w", queueNumber, err)
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-l.failed:
		return fmt.Errorf("read NFQUEUE %d: %w", queueNumber, err)
	}
}

type listener struct {
	queue   *nfqueue.Nfqueue
	heard   func(ctx context.Context, message []byte)
	turn    chan struct{}
	holding sync.WaitGroup
	failed  chan error
}

// hold has a packet heard, beside others, and lets it pass.
func (l *listener) hold(ctx context.Context, a nfqueue.Attribute) {
	if a.PacketID == nil {
		return
	}
	l.turn <- struct{}{}
	l.holding.Go(func() {
		defer func() { <-l.turn }()
		// Whatever becomes of it, it passes.
		defer func() { _ = l.queue.SetVerdict(*a.PacketID, nfqueue.NfAccept) }()
		if a.Payload == nil {
			return
		}
		if m := message(*a.Payload); m != nil {
			limited, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			l.heard(limited, m)
		}
	})
}

// stumble says whether to end reading: packets that were lost are no reason.
func (l *listener) stumble(ctx context.Context, err error) int {
	var op *netlink.OpError
	if ctx.Err() == nil && errors.As(err, &op) && (op.Temporary() || op.Timeout() || errors.Is(err, syscall.ENOBUFS)) {
		return 0
	}
	select {
	case l.failed <- err:
	default:
	}
	return 1
}
