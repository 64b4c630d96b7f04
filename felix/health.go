// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// How long the loop may be silent before the agent counts as hung: little while it waits, and much
// within one step of work. A large table or a slow disk is no reason to kill an agent.
const (
	waitLimit = 2 * time.Minute
	workLimit = 15 * time.Minute
)

// heart is when a loop last moved, and what it is at.
type heart struct {
	name string
	last atomic.Int64
	work atomic.Pointer[string] // nil: it waits
}

// Beat says that the loop goes round.
func (h *heart) Beat(now time.Time) {
	h.work.Store(nil)
	h.last.Store(now.UnixNano())
}

// Begin says that the loop begins a step of work.
func (h *heart) Begin(work string, now time.Time) {
	h.work.Store(&work)
	h.last.Store(now.UnixNano())
}

func (h *heart) check(now time.Time) error {
	silent := now.Sub(time.Unix(0, h.last.Load()))
	switch work := h.work.Load(); {
	case work == nil && silent > waitLimit:
		return fmt.Errorf("the %s has been silent for %s", h.name, silent.Round(time.Second))
	case work != nil && silent > workLimit:
		return fmt.Errorf("the %s has been at %q for %s", h.name, *work, silent.Round(time.Second))
	}
	return nil
}

// health serves /healthz, /readyz and /metrics.
type health struct {
	alive    func() error
	ready    func() error
	gatherer prometheus.Gatherer
	log      *slog.Logger
}

func (h *health) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", answer(h.alive))
	mux.HandleFunc("GET /readyz", answer(h.ready))
	mux.Handle("GET /metrics", promhttp.HandlerFor(h.gatherer, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(h.log.Handler(), slog.LevelWarn), MaxRequestsInFlight: 4,
	}))
	return mux
}

func answer(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := check(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	}
}

// serve listens until ctx ends.
func (h *health) serve(ctx context.Context, address string) error {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen for health and metrics: %w", err)
	}
	server := &http.Server{
		Handler: h.handler(), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve health and metrics: %w", err)
	}
	return nil
}
