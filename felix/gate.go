// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"errors"
	"sync"
)

// gate lets others wait until the loop has made the kernel equal to what they asked for.
//
// A waiter joins the round that has not started yet: a round that runs already may have read the
// facts before the waiter's change.
type gate struct {
	mu   sync.Mutex
	next *round
}

// round is one run of the loop, as seen by those who wait for it.
type round struct {
	done chan struct{}
	err  error
}

func newRound() *round { return &round{done: make(chan struct{})} }

// join returns the round to wait for.
func (g *gate) join() *round {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.next == nil {
		g.next = newRound()
	}
	return g.next
}

// begin is called by the loop before it reads any facts; it returns whom to tell.
func (g *gate) begin() *round {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.next
	g.next = nil
	return r
}

// end tells the waiters; r may be nil.
func (r *round) end(err error) {
	if r != nil {
		r.err = err
		close(r.done)
	}
}

// wait returns the round's error as far as it concerns the pod with this device, or the context's.
func (r *round) wait(ctx context.Context, device string) error {
	select {
	case <-r.done:
		var single podErrors
		if errors.As(r.err, &single) {
			return single[device]
		}
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}
