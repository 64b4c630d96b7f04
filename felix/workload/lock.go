// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"sync"

	"github.com/heliograph-dev/heliograph/cni"
)

// keyedLock lets one caller at a time work on an attachment.
type keyedLock struct {
	mu   sync.Mutex
	held map[cni.Attachment]*holder
}

type holder struct {
	slot  chan struct{}
	users int // who holds it or waits for it
}

// lock waits for the attachment, no longer than ctx. An ended ctx gets nothing, even if the
// attachment is free: what its caller wanted is overtaken.
func (k *keyedLock) lock(ctx context.Context, a cni.Attachment) (unlock func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	k.mu.Lock()
	if k.held == nil {
		k.held = map[cni.Attachment]*holder{}
	}
	h := k.held[a]
	if h == nil {
		h = &holder{slot: make(chan struct{}, 1)}
		k.held[a] = h
	}
	h.users++
	k.mu.Unlock()
	select {
	case h.slot <- struct{}{}:
	case <-ctx.Done():
		k.leave(a, h)
		return nil, ctx.Err()
	}
	if err := ctx.Err(); err != nil {
		<-h.slot
		k.leave(a, h)
		return nil, err
	}
	return func() {
		<-h.slot
		k.leave(a, h)
	}, nil
}

func (k *keyedLock) leave(a cni.Attachment, h *holder) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if h.users--; h.users == 0 {
		delete(k.held, a)
	}
}

// hiddenSet holds the attachments whose device is just being made or deleted.
type hiddenSet struct {
	mu     sync.Mutex
	hidden map[cni.Attachment]bool
}

func (h *hiddenSet) add(a cni.Attachment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hidden == nil {
		h.hidden = map[cni.Attachment]bool{}
	}
	h.hidden[a] = true
}

func (h *hiddenSet) remove(a cni.Attachment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.hidden, a)
}

func (h *hiddenSet) has(a cni.Attachment) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hidden[a]
}
