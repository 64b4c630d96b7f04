// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/bgp/reflector"
	"github.com/heliograph-dev/heliograph/felix/inforce"
	"github.com/heliograph-dev/heliograph/internal/rootsock"
)

const (
	// readTimeout is how long a request may take to arrive.
	readTimeout = 5 * time.Second
	// turnTimeout is how long a request waits for those before it.
	turnTimeout = 5 * time.Second
	// collectTimeout is how long who enforces policy may take to answer: it may be at work.
	collectTimeout = 10 * time.Second
	// writeTimeout is how long it may take from a request to the end of its answer, with the wait.
	writeTimeout = 20 * time.Second
	// stopTimeout is how long answers under way may take when the agent stops.
	stopTimeout = 2 * time.Second
	// maxConnections bounds what is open at once; the next one is told to try again.
	maxConnections = 16
	// maxWorking bounds the answers that are made, and so held in memory, at once.
	maxWorking = 2
	// maxHeader of a request, in bytes.
	maxHeader = 8 << 10
	// defaultMaxPaths of an answer: some 15 MB for each of the two tables.
	defaultMaxPaths = 50_000
	// defaultMaxRules of an answer: some 10 MB.
	defaultMaxRules = 50_000
)

// Speaker is a BGP speaker of the node; *speaker.Speaker satisfies it.
type Speaker interface {
	Snapshot() bgp.Snapshot
}

// Reflector is the route reflector of the node; *reflector.Reflector satisfies it.
type Reflector interface {
	Routes(within netip.Prefix) []reflector.Route
}

// Options say what is shown, and where.
type Options struct {
	Socket    string // default SocketPath
	Speakers  []Speaker
	Reflector Reflector // nil: none
	MaxPaths  int       // shown of the speakers, and again of the reflector; default 50,000
	Policies  Policies  // nil: no policy is enforced here
	MaxRules  int       // shown with their counters, and so many policies; default 50,000
}

// Policies are those of the node; *enforce.Enforcer satisfies it.
type Policies interface {
	Policies(ctx context.Context) ([]inforce.Policy, error)
}

// Server answers on the socket.
type Server struct {
	opts    Options
	log     *slog.Logger
	open    chan struct{}
	working chan struct{}
}

// New returns a server that does not listen yet.
func New(opts Options, log *slog.Logger) *Server {
	opts.Socket = cmp.Or(opts.Socket, SocketPath)
	opts.MaxPaths = cmp.Or(opts.MaxPaths, defaultMaxPaths)
	opts.MaxRules = cmp.Or(opts.MaxRules, defaultMaxRules)
	return &Server{opts: opts, log: log, open: make(chan struct{}, maxConnections), working: make(chan struct{}, maxWorking)}
}

// Serve listens until ctx ends, then waits a moment for the answers under way. The socket file stays:
// the next agent replaces it.
func (s *Server) Serve(ctx context.Context) error {
	l, err := rootsock.Listen(s.opts.Socket)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", s.opts.Socket, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+routesPath, s.routes)
	mux.HandleFunc("GET "+policyPath, s.policy)
	server := &http.Server{
		Handler: mux, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	// One connection carries one request: idle ones would use up the few there are.
	server.SetKeepAlivesEnabled(false)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if server.Shutdown(last) != nil {
			_ = server.Close()
		}
	})
	s.log.Info("showing BGP tables and policies to root", "socket", s.opts.Socket)
	err = server.Serve(&listener{UnixListener: l, open: s.open, log: s.log})
	if !stop() {
		<-stopped
		return nil
	}
	return fmt.Errorf("serve on %s: %w", s.opts.Socket, err)
}

func (s *Server) routes(w http.ResponseWriter, r *http.Request) {
	q, err := parseValues(r.URL.RawQuery)
	s.answer(w, r, err, func(context.Context) (any, error) { return s.collect(q), nil })
}

func (s *Server) policy(w http.ResponseWriter, r *http.Request) {
	if s.opts.Policies == nil {
		http.Error(w, "no policy is enforced here", http.StatusNotFound)
		return
	}
	q, err := parsePolicyValues(r.URL.RawQuery)
	s.answer(w, r, err, func(ctx context.Context) (any, error) { return s.collectPolicies(ctx, q) })
}

// answer makes an answer when it is the request's turn. wrong is what is wrong with the request.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, wrong error, collect func(context.Context) (any, error)) {
	if r.ContentLength != 0 {
		http.Error(w, "a request has no body", http.StatusBadRequest)
		return
	}
	if wrong != nil {
		http.Error(w, wrong.Error(), http.StatusBadRequest)
		return
	}
	turn, cancel := context.WithTimeout(r.Context(), turnTimeout)
	defer cancel()
	select {
	case s.working <- struct{}{}:
		defer func() { <-s.working }()
	case <-turn.Done():
		http.Error(w, "too many requests at once", http.StatusServiceUnavailable)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), collectTimeout)
	defer cancel()
	out, err := collect(ctx)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(out); err != nil {
		s.log.Warn("cannot answer a request", "path", r.URL.Path, "query", r.URL.RawQuery, "error", err)
	}
}

// listener lets in root alone, and only so many at once.
type listener struct {
	*net.UnixListener
	open chan struct{}
	log  *slog.Logger
}

// Accept returns the next connection that may ask.
func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err // of those that pass net/http tries again
		}
		if err := rootsock.CheckPeer(conn); err != nil {
			l.log.Warn("refused a connection", "error", err)
			_ = conn.Close()
			continue
		}
		select {
		case l.open <- struct{}{}:
			return &connection{UnixConn: conn, release: sync.OnceFunc(func() { <-l.open })}, nil
		default:
			refuse(conn)
		}
	}
}

// refuse tells a client that it is one too many. The few bytes fit into the socket's buffer.
func refuse(conn *net.UnixConn) {
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = io.WriteString(conn, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\ntoo many connections at once\n")
	_ = conn.Close()
}

// connection gives its place back when it is closed.
type connection struct {
	*net.UnixConn
	release func()
}

func (c *connection) Close() error {
	defer c.release()
	return c.UnixConn.Close()
}
