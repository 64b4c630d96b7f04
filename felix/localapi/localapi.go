// SPDX-License-Identifier: Apache-2.0

// Package localapi serves the CNI plugin on a unix socket. It knows how to speak and what to refuse;
// a Backend knows what to do.
//
// One connection carries one request. Whoever connects must be root; still, nothing that arrives can
// stop the server: messages are bounded in length and time, connections in number, and a failure of
// one request is an answer and a log line.
package localapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/internal/rootsock"
)

const (
	// readTimeout is how long a request may take to arrive.
	readTimeout = 10 * time.Second
	// writeTimeout is how long an answer may take to be read.
	writeTimeout = 5 * time.Second
	// maxConnections bounds what is open at once; the next one is told to try again.
	maxConnections = 512
	// maxWorking bounds what is worked on at once, ADDs apart from the rest, so that pods can be deleted
	// while many others wait to be connected. A node seldom starts more pods than this at once.
	maxWorking = 64
)

// workTimeout is how long a verb may take; less than the plugin waits, so that it hears why.
func workTimeout(v cni.Verb) time.Duration {
	switch v {
	case cni.Add:
		return 42 * time.Second
	case cni.GC:
		return 55 * time.Second
	case cni.Status:
		return 4 * time.Second
	}
	return 20 * time.Second
}

// Backend does what the plugin asks. Its methods are called concurrently; ctx ends when the time is
// over or the plugin is gone. The socket is a netlink socket of the pod's namespace, or nil if the
// plugin sent none; it is closed after the call.
type Backend interface {
	Add(ctx context.Context, r cni.Request, podSocket *os.File) (cni.Response, *cni.Error)
	Del(ctx context.Context, r cni.Request) *cni.Error
	Check(ctx context.Context, r cni.Request, podSocket *os.File) *cni.Error
	Status(ctx context.Context) *cni.Error
	GC(ctx context.Context, r cni.Request) *cni.Error
}

// Server listens on the socket.
type Server struct {
	backend  Backend
	path     string
	log      *slog.Logger
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec

	connections chan struct{}
	adding      chan struct{}
	working     chan struct{}
}

// New returns a server for path (empty: cni.SocketPath), and registers its metrics.
func New(backend Backend, path string, log *slog.Logger, registerer prometheus.Registerer) (*Server, error) {
	if path == "" {
		path = cni.SocketPath
	}
	s := &Server{
		backend: backend, path: path, log: log,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "heliograph_cni_requests_total",
			Help: "Requests of the CNI plugin, by verb and by the code of the answer (0: success).",
		}, []string{"verb", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "heliograph_cni_request_duration_seconds",
			Help:    "Time from a request of the CNI plugin to its answer.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60},
		}, []string{"verb"}),
		connections: make(chan struct{}, maxConnections),
		adding:      make(chan struct{}, maxWorking),
		working:     make(chan struct{}, maxWorking),
	}
	for _, c := range []prometheus.Collector{s.requests, s.duration} {
		if err := registerer.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return s, nil
}

// Serve listens until ctx ends, then waits for the requests in work. The socket file stays: the next
// agent replaces it, so a plugin finds either a listener or, by a refused connection, none.
func (s *Server) Serve(ctx context.Context) error {
	listener, err := rootsock.Listen(s.path)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", s.path, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	s.log.Info("serving the CNI plugin", "socket", s.path)
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := listener.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if conn != nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("listen on %s: %w", s.path, err)
		case err != nil: // out of descriptors, most likely: it passes
			s.log.Warn("cannot accept a connection", "error", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		wg.Go(func() { s.serve(ctx, conn) })
	}
}

// serve handles one connection from its first to its last byte.
func (s *Server) serve(ctx context.Context, conn *net.UnixConn) {
	defer func() { _ = conn.Close() }()
	select {
	case s.connections <- struct{}{}:
		defer func() { <-s.connections }()
	default:
		s.answer(conn, "", cni.Response{Error: &cni.Error{Code: cni.CodeTryAgainLater, Msg: "too many requests at once"}})
		return
	}
	if err := rootsock.CheckPeer(conn); err != nil {
		s.log.Warn("refused a connection", "error", err)
		return
	}
	start := time.Now()
	_ = conn.SetReadDeadline(start.Add(readTimeout))
	r, files, err := cni.ReceiveRequest(conn)
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if err != nil {
		s.log.Warn("cannot read a request", "error", err)
		s.answer(conn, "", cni.Response{Error: &cni.Error{Code: cni.CodeDecode, Msg: "cannot read the request", Details: err.Error()}})
		return
	}
	var podSocket *os.File
	if len(files) > 0 {
		podSocket = files[0]
	}
	ctx, cancel := context.WithTimeout(ctx, workTimeout(r.Verb))
	defer cancel()
	go cancelWhenGone(conn, cancel)
	response := s.work(ctx, r, podSocket)
	s.duration.WithLabelValues(verbLabel(r.Verb)).Observe(time.Since(start).Seconds())
	s.answer(conn, r.Verb, response)
}

// cancelWhenGone ends the work for a plugin that hung up, for instance because it was killed. It
// ends with the connection.
func cancelWhenGone(conn *net.UnixConn, cancel func()) {
	_ = conn.SetReadDeadline(time.Time{})
	var b [1]byte
	_, err := conn.Read(b[:])
	if err != nil {
		cancel()
	}
}

// work validates a request, waits for its turn, and has it done. A panic is that request's failure.
func (s *Server) work(ctx context.Context, r cni.Request, podSocket *os.File) (response cni.Response) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("a request caused a panic", "verb", r.Verb, "panic", p, "stack", string(debug.Stack()))
			response = cni.Response{Error: &cni.Error{Code: cni.CodeInternal, Msg: "the agent failed", Details: fmt.Sprint(p)}}
		}
	}()
	if err := validate(r, podSocket); err != nil {
		s.log.Warn("refused a request", "verb", r.Verb, "error", err)
		return cni.Response{Error: err}
	}
	turn := s.working
	if r.Verb == cni.Add {
		turn = s.adding
	}
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return cni.Response{Error: &cni.Error{Code: cni.CodeTryAgainLater, Msg: "too many requests at once"}}
	}
	switch r.Verb {
	case cni.Add:
		response, err := s.backend.Add(ctx, r, podSocket)
		response.Error = err
		return response
	case cni.Del:
		return cni.Response{Error: s.backend.Del(ctx, r)}
	case cni.Check:
		return cni.Response{Error: s.backend.Check(ctx, r, podSocket)}
	case cni.GC:
		return cni.Response{Error: s.backend.GC(ctx, r)}
	default: // validate leaves STATUS
		return cni.Response{Error: s.backend.Status(ctx)}
	}
}

// validate refuses what no plugin of ours sends.
func validate(r cni.Request, podSocket *os.File) *cni.Error {
	switch r.Verb {
	case cni.Add, cni.Check:
		if podSocket == nil {
			return &cni.Error{Code: cni.CodeDecode, Msg: "the request carries no socket of the pod's namespace"}
		}
		if r.MTU != 0 && (r.MTU < 68 || r.MTU > 65535) {
			return &cni.Error{Code: cni.CodeInvalidConfig, Msg: fmt.Sprintf("mtu %d is not between 68 and 65535", r.MTU)}
		}
		return r.Attachment.Validate()
	case cni.Del:
		return r.Attachment.Validate()
	case cni.Status, cni.GC:
		return nil
	}
	return &cni.Error{Code: cni.CodeDecode, Msg: fmt.Sprintf("unknown verb %.20q", r.Verb)}
}

// answer counts and sends a response. A plugin that does not wait for it has its reasons.
func (s *Server) answer(conn *net.UnixConn, v cni.Verb, response cni.Response) {
	code := uint(0)
	if response.Error != nil {
		code = response.Error.Code
	}
	s.requests.WithLabelValues(verbLabel(v), fmt.Sprint(code)).Inc()
	_ = conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err := cni.WriteMessage(conn, response); err != nil {
		s.log.Warn("cannot answer a request", "verb", v, "error", err)
	}
}

// verbLabel keeps strangers' words out of the metrics.
func verbLabel(v cni.Verb) string {
	switch v {
	case cni.Add, cni.Del, cni.Check, cni.Status, cni.GC:
		return string(v)
	}
	return "unknown"
}
