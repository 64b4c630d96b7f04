// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/bgp/reflector"
	"github.com/heliograph-dev/heliograph/bgp/speaker"
	"github.com/heliograph-dev/heliograph/internal/reflectd"
)

// reflectedPrefixes bounds what a reflector may send: it passes on the blocks of the whole cluster.
const reflectedPrefixes = 1_000_000

// speakers is all that speaks BGP on this node, as one speaker to the loop: the node's own, which peers
// with other nodes and with routers, one that is the client of reflectors, and the reflector itself. The
// last two do nothing while there is no reflection.
type speakers struct {
	node   *speaker.Speaker
	client *speaker.Speaker
	engine *reflector.Reflector
	memory *reflectd.Memory
	log    *slog.Logger

	changed chan struct{}
	// moved is poked when a session of the reflector comes or goes.
	moved func()

	mu        sync.Mutex
	desired   bgp.Reflector
	reflects  bool // the engine runs
	engineErr error
	merged    mergedPaths
}

func newSpeakers(stateDir string, log *slog.Logger) *speakers {
	s := &speakers{
		node:   speaker.New(speaker.Options{}, log),
		client: speaker.New(speaker.Options{MaxPrefixes: reflectedPrefixes}, log.With("speaker", "client of reflectors")),
		memory: &reflectd.Memory{Dir: stateDir + "/reflector"}, log: log.With("speaker", "reflector"), changed: make(chan struct{}, 1),
	}
	before, err := s.memory.Remembered(time.Now(), maxRestart)
	if err != nil {
		log.Warn("it is not known who was connected to the reflector of before: routes may flap", "error", err)
	}
	s.engine = reflector.New(reflector.Options{Restarted: before}, s.log)
	return s
}

// maxRestart is for how long a reflector may have been away until nobody waits for it: clients ask for the
// restart time of the configuration, which is not known this early, and is no longer than this by default.
const maxRestart = 2 * time.Minute

// Apply makes all of them equal to desired. The reflector comes first: its node's own client finds it then.
func (s *speakers) Apply(ctx context.Context, d bgp.Desired) error {
	client := bgp.Desired{Peers: d.Reflection.Reflectors, Origins: d.Origins}
	if len(client.Peers) > 0 {
		client.Global = d.Global
		client.Global.Port = 0
	}
	return errors.Join(s.reflect(ctx, d.Reflection.Reflector), s.node.Apply(ctx, d), s.client.Apply(ctx, client))
}

// reflect starts, changes or ends the reflector.
func (s *speakers) reflect(ctx context.Context, want bgp.Reflector) error {
	var err error
	switch {
	case want.ASN != 0:
		err = s.engine.Apply(ctx, reflectorConfig(want))
	case s.runs():
		err = errors.Join(s.engine.Stop(ctx, false), s.memory.Forget())
	default:
		return nil
	}
	if err != nil {
		err = fmt.Errorf("route reflector: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.desired, s.reflects, s.engineErr = want, want.ASN != 0, err
	return err
}

func (s *speakers) runs() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reflects
}

// reflectorConfig translates for the engine, which knows nothing of clusters.
func reflectorConfig(r bgp.Reflector) reflector.Config {
	c := reflector.Config{ASN: r.ASN, RouterID: r.RouterID, ClusterID: r.ClusterID, Listen: r.Listen, GracefulRestart: r.GracefulRestart}
	for _, p := range r.Peers {
		e := reflector.Peer{
			Name: p.Name, Prefix: netip.PrefixFrom(p.Address, p.Address.BitLen()), RouterID: p.RouterID, NonClient: !p.Client,
			Connect: p.Port != 0, Port: p.Port, LocalAddress: p.LocalAddress, Families: p.Families, Password: p.Password, Held: p.Held,
			Timers: p.Timers, MaxPrefixes: p.MaxPrefixes, Advertise: reflector.Policy{Any: true},
		}
		for _, prefix := range p.Accept {
			e.Accept.Rules = append(e.Accept.Rules, reflector.Rule{Prefix: prefix})
		}
		c.Peers = append(c.Peers, e)
	}
	return c
}

// Snapshot is what both speakers are and know; the reflector's own table is its own affair.
func (s *speakers) Snapshot() bgp.Snapshot {
	node, client := s.node.Snapshot(), s.client.Snapshot()
	if !client.Running {
		return node
	}
	node.Sessions = slices.Concat(node.Sessions, client.Sessions)
	slices.SortStableFunc(node.Sessions, func(a, b bgp.Session) int { return a.Address.Compare(b.Address) })
	s.mu.Lock()
	defer s.mu.Unlock()
	node.Paths = s.merged.of(node.Paths, client.Paths)
	return node
}

// mergedPaths keeps the last merge: snapshots are taken more often than routes change.
type mergedPaths struct{ a, b, both []bgp.Path }

func (m *mergedPaths) of(a, b []bgp.Path) []bgp.Path {
	if !sameSlice(a, m.a) || !sameSlice(b, m.b) {
		m.a, m.b, m.both = a, b, mergePaths(a, b)
	}
	return m.both
}

func sameSlice(a, b []bgp.Path) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// mergePaths merges two lists that are sorted by prefix.
func mergePaths(a, b []bgp.Path) []bgp.Path {
	out := make([]bgp.Path, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0].Prefix.Compare(b[0].Prefix) <= 0 {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// Changed is poked when Snapshot would return something new.
func (s *speakers) Changed() <-chan struct{} { return s.changed }

// run passes pokes on until ctx ends, and keeps the memory of who is connected young.
func (s *speakers) run(ctx context.Context) error {
	beat := time.NewTicker(time.Second)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.node.Changed():
			s.poke()
		case <-s.client.Changed():
			s.poke()
		case <-s.engine.Changed():
			s.remember()
			s.moved()
		case now := <-beat.C:
			if s.runs() && s.memory.Beat(now) {
				s.remember()
			}
		}
	}
}

func (s *speakers) poke() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// remember notes who is connected. It is written at each change, since a crash gives no notice.
func (s *speakers) remember() {
	s.mu.Lock()
	restarts := s.reflects && s.desired.GracefulRestart.Enabled
	s.mu.Unlock()
	if !restarts {
		return
	}
	if err := s.memory.RememberKnown(s.engine); err != nil {
		s.log.Warn("cannot note who is connected: after a crash routes may flap", "error", err)
	}
}

// Stop ends all sessions. Graceful leaves them so that peers keep the routes (RFC 4724).
func (s *speakers) Stop(ctx context.Context, graceful bool) error {
	s.remember()
	errs := []error{s.client.Stop(ctx, graceful), s.node.Stop(ctx, graceful), s.engine.Stop(ctx, graceful)}
	if !graceful {
		errs = append(errs, s.memory.Forget())
	}
	return errors.Join(errs...)
}
