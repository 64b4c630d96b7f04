// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/heliograph-dev/heliograph/bgp"
)

const (
	// originBatch bounds how long one call holds GoBGP's management lock.
	originBatch = 1000
	// shutdownWait is how long Stop waits for the peers to be told.
	shutdownWait = 2 * time.Second
)

// instance is one running GoBGP server and what was put into it. Speaker.applying guards it.
type instance struct {
	server      *server.BgpServer
	cancelWatch context.CancelFunc
	view        *view
	log         *slog.Logger

	global       bgp.Global
	generation   int // of the view
	bfd          *bfdEngine
	restartUntil time.Time
	timers       []*time.Timer
	peers        map[netip.Addr]running
	origins      map[netip.Prefix]netip.Addr
}

// running is a peer that the server has.
type running struct {
	peer bgp.Peer
	// restarting: its OPEN claims that we restart.
	restarting bool
	// disabled: it sent too much, and has to wait.
	disabled bool
}

// start returns a server that listens, accepts nothing from anyone, and reports to the view.
func start(ctx context.Context, g bgp.Global, opts Options, v *view, log *slog.Logger) (*instance, error) {
	if !g.RouterID.Is4() {
		return nil, fmt.Errorf("router id %s is no IPv4 address", g.RouterID)
	}
	generation := v.reset(true)
	bfd, err := startBFD(ctx, g, log, v, generation)
	if err != nil {
		v.reset(false)
		return nil, err
	}
	tap := &tap{next: log.Handler(), note: func(addr netip.Addr, r report) { v.noteReport(generation, addr, r) }}
	r := &instance{
		server: server.NewBgpServer(server.LoggerOption(slog.New(tap), new(slog.LevelVar))),
		view:   v,
		log:    log,
		global: g,

		generation: generation,
		bfd:        bfd,
		peers:      map[netip.Addr]running{},
		origins:    map[netip.Prefix]netip.Addr{},
	}
	go r.server.Serve()
	var watching context.Context
	watching, r.cancelWatch = context.WithCancel(context.WithoutCancel(ctx))
	if err := r.boot(ctx, watching, opts, generation); err != nil {
		r.close()
		v.reset(false)
		return nil, err
	}
	return r, nil
}

func (r *instance) boot(ctx, watching context.Context, opts Options, generation int) error {
	if err := r.server.StartBgp(ctx, &api.StartBgpRequest{Global: buildGlobal(r.global, listenAddresses(opts))}); err != nil {
		return err
	}
	if err := r.refuseImports(ctx); err != nil {
		return fmt.Errorf("refuse imports: %w", err)
	}
	// One watcher for all, so that what it says about a peer comes in order.
	if err := r.server.WatchEvent(watching, server.WatchEventMessageCallbacks{
		OnPathUpdate: func(paths []*apiutil.Path, _ time.Time) { r.view.onPaths(generation, parsePaths(paths, r.global.ASN)) },
		OnPathEor: func(p *apiutil.Path, _ time.Time) {
			if f, ok := familyOf(p.Family); ok {
				r.view.onEndOfRIB(generation, p.PeerAddress.Unmap(), f)
			}
		},
		OnPeerUpdate: func(e *apiutil.WatchEventMessage_PeerEvent, _ time.Time) {
			if e.Type == apiutil.PEER_EVENT_STATE {
				r.view.onState(generation, parseState(e))
			}
		},
	}, server.WatchUpdate(false, "", ""), server.WatchEor(false), server.WatchPeer()); err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	return nil
}

// refuseImports keeps all but our own origins out of GoBGP's table, and so from being advertised.
// GoBGP applies the import policy to local paths as well.
func (r *instance) refuseImports(ctx context.Context) error {
	own := &api.Policy{Name: "own", Statements: []*api.Statement{{
		Name:       "own",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
	}}}
	if err := r.server.AddPolicy(ctx, &api.AddPolicyRequest{Policy: own}); err != nil {
		return err
	}
	return r.server.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Name:          "global",
		Direction:     api.PolicyDirection_POLICY_DIRECTION_IMPORT,
		Policies:      []*api.Policy{own},
		DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT,
	}})
}

// listenAddresses are all addresses, unless the options name some. GoBGP does not start where it
// cannot listen, so a host without IPv6 must not be asked to.
func listenAddresses(opts Options) []netip.Addr {
	if len(opts.ListenAddresses) > 0 {
		return opts.ListenAddresses
	}
	l, err := net.Listen("tcp6", "[::]:0")
	if err != nil {
		return []netip.Addr{netip.IPv4Unspecified()}
	}
	_ = l.Close()
	return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
}

func parsePaths(paths []*apiutil.Path, asn uint32) []update {
	updates := make([]update, 0, len(paths))
	for _, p := range paths {
		if u, ok := parsePath(p, asn); ok {
			updates = append(updates, u)
		}
	}
	return updates
}

// needsRestart tells whether g can only be had by another server. Restarting is about the start.
func (r *instance) needsRestart(g bgp.Global) bool {
	return r.global.ASN != g.ASN || r.global.RouterID != g.RouterID || r.global.Port != g.Port
}

// stop ends the server. If ctx ends first, the rest of it happens in the background.
func (r *instance) stop(ctx context.Context, graceful bool) error {
	done := make(chan error, 1)
	go func() {
		var bye farewell
		if graceful {
			bye = r.prepareFarewell(ctx, r.bfd.all())
		} else {
			r.shutdownPeers(ctx)
		}
		err := r.server.StopBgp(context.WithoutCancel(ctx), &api.StopBgpRequest{AllowGracefulRestart: graceful})
		r.close()
		// After the end of the TCP connections: FRR 8 and BIRD 2 reset an established session on
		// AdminDown, but FRR keeps the routes of one that has just ended without a NOTIFICATION.
		bye.say(context.WithoutCancel(ctx), r.log)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// shutdownPeers says Cease/Administrative Shutdown to all peers: StopBgp alone would say
// Peer De-configured. It waits until no session is up, since StopBgp would overtake the message.
func (r *instance) shutdownPeers(ctx context.Context) {
	if len(r.peers) == 0 {
		return
	}
	for addr := range r.peers { // one call for all would be one message, serialised by all sessions at once
		if err := r.server.ShutdownPeer(ctx, &api.ShutdownPeerRequest{Address: addr.String()}); err != nil {
			r.log.Warn("bgp peer not told of the shutdown", "address", addr, "error", err)
		}
	}
	r.view.waitAllDown(ctx, shutdownWait)
}

// close frees what StopBgp leaves: the watcher, BFD, and GoBGP's own goroutine for it.
func (r *instance) close() {
	for _, t := range r.timers {
		t.Stop()
	}
	r.cancelWatch()
	r.bfd.close()
	r.server.Stop()
}

// reconcileOrigins adds before it withdraws.
func (r *instance) reconcileOrigins(origins []bgp.Origin) error {
	var errs []error
	want := make(map[netip.Prefix]netip.Addr, len(origins))
	var add []bgp.Origin
	for _, o := range origins {
		if !o.NextHop.IsValid() {
			continue // the node has no address of this family
		}
		o.Prefix = o.Prefix.Masked()
		want[o.Prefix] = o.NextHop
		if r.origins[o.Prefix] != o.NextHop {
			add = append(add, o)
		}
	}
	errs = append(errs, r.announce(add))
	var remove []bgp.Origin
	for prefix, nh := range r.origins {
		if _, ok := want[prefix]; !ok {
			remove = append(remove, bgp.Origin{Prefix: prefix, NextHop: nh})
		}
	}
	errs = append(errs, r.withdraw(remove))
	r.view.setOrigins(slices.Collect(maps.Keys(r.origins)))
	return errors.Join(errs...)
}

func (r *instance) announce(origins []bgp.Origin) error {
	var errs []error
	for batch := range slices.Chunk(origins, originBatch) {
		var paths []*apiutil.Path
		var sent []bgp.Origin
		for _, o := range batch {
			p, err := buildPath(o)
			if err != nil {
				errs = append(errs, fmt.Errorf("originate %s: %w", o.Prefix, err))
				continue
			}
			p.Age = time.Now().Unix()
			paths, sent = append(paths, p), append(sent, o)
		}
		if len(paths) == 0 {
			continue
		}
		if _, err := r.server.AddPath(apiutil.AddPathRequest{Paths: paths}); err != nil {
			errs = append(errs, fmt.Errorf("originate %d prefixes: %w", len(paths), err))
			continue
		}
		for _, o := range sent {
			r.origins[o.Prefix] = o.NextHop
		}
	}
	return errors.Join(errs...)
}

func (r *instance) withdraw(origins []bgp.Origin) error {
	var errs []error
	for batch := range slices.Chunk(origins, originBatch) {
		var paths []*apiutil.Path
		for _, o := range batch {
			p, err := buildPath(o)
			if err != nil {
				errs = append(errs, fmt.Errorf("withdraw %s: %w", o.Prefix, err))
				continue
			}
			paths = append(paths, p)
		}
		if err := r.server.DeletePath(apiutil.DeletePathRequest{Paths: paths}); err != nil {
			errs = append(errs, fmt.Errorf("withdraw %d prefixes: %w", len(paths), err))
			continue
		}
		for _, o := range batch {
			delete(r.origins, o.Prefix)
		}
	}
	return errors.Join(errs...)
}
