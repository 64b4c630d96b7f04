// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
)

const (
	// defaultMaxPrefixes is far above what a fabric should send a node, and bounds its memory.
	defaultMaxPrefixes = 50_000
	// defaultOverLimitRetry is how long a peer that sent too much is left alone.
	defaultOverLimitRetry = time.Minute
)

// Options is what does not change while the process runs. Its zero value is good.
type Options struct {
	// ListenAddresses to listen on. Empty: all addresses of both families.
	ListenAddresses []netip.Addr
	// MaxPrefixes that one peer may send in both families together, accepted or not, before its
	// session is ended. 0: 50,000.
	MaxPrefixes uint32
	// OverLimitRetry is the time until such a session is tried again. 0: one minute.
	OverLimitRetry time.Duration
}

// Speaker owns one GoBGP server. Apply and Stop wait for each other; Snapshot and Changed do not
// wait for them.
type Speaker struct {
	opts Options
	log  *slog.Logger
	view *view

	// applying guards run, and is held while GoBGP is called. The view has its own mutex, which is
	// never held while GoBGP is called, since GoBGP calls back into the view.
	applying sync.Mutex
	run      *instance // nil: no server
	wasRun   bool      // this process has run a server before: it no longer takes over from another one
}

// New returns a speaker that does nothing until the first Apply.
func New(opts Options, log *slog.Logger) *Speaker {
	if opts.MaxPrefixes == 0 {
		opts.MaxPrefixes = defaultMaxPrefixes
	}
	if opts.OverLimitRetry == 0 {
		opts.OverLimitRetry = defaultOverLimitRetry
	}
	s := &Speaker{opts: opts, log: log, view: newView(log)}
	s.view.maxPrefixes, s.view.onOverLimit = int(opts.MaxPrefixes), s.overLimit
	s.view.onUnreachable, s.view.onBFD = s.unreachable, s.steerBFD
	return s
}

// Apply makes the server equal to desired. It touches only what differs: a session is reset only if
// what was negotiated on it changed, and the server is restarted only for another AS, router id or
// port. The first Apply should name all peers and origins, because the End-of-RIB that follows it
// makes restarting peers' helpers drop what was not named. A zero Global stops the server. Failures
// are joined; the next Apply tries what failed again.
func (s *Speaker) Apply(ctx context.Context, desired bgp.Desired) error {
	s.applying.Lock()
	defer s.applying.Unlock()

	if desired.Global.ASN == 0 {
		return s.stop(ctx, false)
	}
	if s.run != nil && s.run.needsRestart(desired.Global) {
		s.log.Info("bgp restarts: global settings changed", "was", s.run.global, "is", desired.Global)
		if err := s.stop(ctx, false); err != nil {
			return err
		}
	}
	if s.run == nil {
		run, err := start(ctx, desired.Global, s.opts, s.view, s.log)
		if err != nil {
			return fmt.Errorf("start bgp: %w", err)
		}
		s.run = run
		s.log.Info("bgp started", "asn", desired.Global.ASN, "routerID", desired.Global.RouterID, "port", desired.Global.Port, "restarting", desired.Global.Restarting)
		if desired.Global.Restarting && !s.wasRun {
			s.restart(run, desired.Peers)
		}
		s.wasRun = true
	}
	// Origins before peers: a new session sends them all, then End-of-RIB.
	return errors.Join(
		s.run.reconcileOrigins(desired.Origins),
		s.run.reconcilePeers(ctx, desired.Peers),
		s.run.reconcileBFD(ctx),
	)
}

// Snapshot returns what the speaker is and knows. The caller must not change it. It costs one copy
// of the tables if something changed since the last call, and nothing otherwise.
func (s *Speaker) Snapshot() bgp.Snapshot { return s.view.snapshot() }

// Changed is poked when Snapshot would return something new, at most about once in a millisecond, and
// more rarely if snapshots take long.
func (s *Speaker) Changed() <-chan struct{} { return s.view.changed }

// Stop ends all sessions and the server. Graceful closes the TCP connections without a NOTIFICATION,
// so that peers with graceful restart keep our routes; otherwise they are told
// Cease/Administrative Shutdown and drop them at once. Apply may start the server again.
func (s *Speaker) Stop(ctx context.Context, graceful bool) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	return s.stop(ctx, graceful)
}

func (s *Speaker) stop(ctx context.Context, graceful bool) error {
	if s.run == nil {
		return nil
	}
	run := s.run
	s.run = nil
	err := run.stop(ctx, graceful)
	s.view.reset(false)
	s.log.Info("bgp stopped", "graceful", graceful)
	if err != nil {
		return fmt.Errorf("stop bgp: %w", err)
	}
	return nil
}

// restart makes run announce that it takes over from another process, and forget that once the
// restart time is over: a session that first comes up hours later must not claim to be restarting.
func (s *Speaker) restart(run *instance, peers []bgp.Peer) {
	var window time.Duration
	for _, p := range peers {
		if p.GracefulRestart.Enabled {
			window = max(window, restartTime(p))
		}
	}
	run.restartUntil = time.Now().Add(window)
	run.timers = append(run.timers, time.AfterFunc(window, func() {
		s.applying.Lock()
		defer s.applying.Unlock()
		if s.run == run {
			run.endRestart(context.Background())
		}
	}))
}

// overLimit ends the session of a peer that sent too many prefixes, and tries it again later. The
// view calls it, so it must not wait.
func (s *Speaker) overLimit(addr netip.Addr, why string) {
	go s.locked(func(run *instance) {
		run.disable(context.Background(), addr, why)
		run.timers = append(run.timers, time.AfterFunc(s.opts.OverLimitRetry, s.locked(func(run *instance) {
			run.enable(context.Background(), addr)
		})))
	})()
}

// unreachable ends the session of a peer whose BFD failed; a new one is tried. It replaces the peer
// instead of resetting it, because GoBGP keeps a NOTIFICATION that it cannot send for the next session.
// The view calls it, so it must not wait.
func (s *Speaker) unreachable(addr netip.Addr) {
	go s.locked(func(run *instance) {
		if !run.peers[addr].disabled && !run.view.established(addr) {
			run.readd(context.Background(), addr)
		}
	})()
}

// steerBFD starts and ends BFD as the BGP sessions come and go. The view calls it, so it must not wait.
func (s *Speaker) steerBFD() {
	go s.locked(func(run *instance) {
		if err := run.reconcileBFD(context.Background()); err != nil {
			s.log.Warn("bfd not as it should be", "error", err)
		}
	})()
}

// locked is a callback that works on the server, if there is one by then.
func (s *Speaker) locked(f func(*instance)) func() {
	return func() {
		s.applying.Lock()
		defer s.applying.Unlock()
		if s.run != nil {
			f(s.run)
		}
	}
}
