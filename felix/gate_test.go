// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"errors"
	"testing"
)

// Whoever joins while a round runs is told by the next one: the running one may have read the facts
// before his change.
func TestGateJoinsTheNextRound(t *testing.T) {
	var g gate
	first, again := g.join(), g.join()
	if first != again {
		t.Fatal("two who wait before a round begins wait for different ones")
	}
	running := g.begin()
	if running != first {
		t.Fatal("the round that began is not the one that was joined")
	}
	late := g.join()
	if late == running {
		t.Fatal("joined a round that had begun already")
	}
	why := errors.New("no such device")
	running.end(why)
	if err := first.wait(t.Context(), "hel0"); !errors.Is(err, why) {
		t.Errorf("the round ended with %v, and who waited got %v", why, err)
	}
	select {
	case <-late.done:
		t.Error("a round that has not begun is done")
	default:
	}
	g.begin().end(nil)
	if err := late.wait(t.Context(), "hel0"); err != nil {
		t.Error(err)
	}
}

func TestGateWithoutWaiters(t *testing.T) {
	var g gate
	r := g.begin()
	if r != nil {
		t.Fatalf("nobody joined, and a round is there: %v", r)
	}
	r.end(errors.New("nobody hears this"))
}

func TestGateWaitEndsWithContext(t *testing.T) {
	var g gate
	ctx, cancel := context.WithCancel(t.Context())
	r := g.join()
	cancel()
	if err := r.wait(ctx, "hel0"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

// What one pod's route fails with keeps nobody else from being connected.
func TestGateTellsPodsApart(t *testing.T) {
	var g gate
	why := errors.New("no buffer space")
	r := g.join()
	g.begin().end(podErrors{"hel1": why})
	if err := r.wait(t.Context(), "hel1"); !errors.Is(err, why) {
		t.Errorf("the pod whose route failed gets %v", err)
	}
	if err := r.wait(t.Context(), "hel2"); err != nil {
		t.Errorf("another pod gets %v", err)
	}
}
