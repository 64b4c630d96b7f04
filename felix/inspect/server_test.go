// SPDX-License-Identifier: Apache-2.0

package inspect_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/bgp/reflector"
	"github.com/heliograph-dev/heliograph/felix/inspect"
)

// speaker holds what it is told to.
type speaker bgp.Snapshot

func (s speaker) Snapshot() bgp.Snapshot { return bgp.Snapshot(s) }

// table is a reflector's; reading waits for gate, if there is one.
type table struct {
	routes []reflector.Route
	gate   chan struct{}
}

func (r table) Routes(within netip.Prefix) []reflector.Route {
	if r.gate != nil {
		<-r.gate
	}
	var out []reflector.Route
	for _, route := range r.routes {
		if !within.IsValid() || (inspect.Query{Within: within}).Matches(route.Prefix) {
			out = append(out, route)
		}
	}
	return out
}

type server struct {
	path string
	stop func() error
}

func start(t *testing.T, opts inspect.Options) *server {
	t.Helper()
	if opts.Socket == "" {
		dir, err := os.MkdirTemp("", "hel") // t.TempDir is too long for a socket
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		opts.Socket = filepath.Join(dir, "run", "inspect.sock")
	}
	before, _ := os.Stat(opts.Socket)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- inspect.New(opts, slog.New(slog.DiscardHandler)).Serve(ctx) }()
	s := &server{path: opts.Socket, stop: sync.OnceValue(func() error {
		cancel()
		return <-done
	})}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	waitFor(t, "the server listens", func() bool {
		now, err := os.Stat(s.path)
		return err == nil && !os.SameFile(before, now)
	})
	return s
}

func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after 20 s: %s", what)
		}
	}
}

func (s *server) dial(t *testing.T) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: s.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// say sends bytes and returns the first line of the answer and its body.
func (s *server) say(t *testing.T, request string) (status, body string) {
	t.Helper()
	c := s.dial(t)
	_, _ = io.WriteString(c, request) // it may have said no already
	_ = c.CloseWrite()
	got, _ := io.ReadAll(c)
	head, body, _ := strings.Cut(string(got), "\r\n\r\n")
	status, _, _ = strings.Cut(head, "\r\n")
	return status, body
}

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// sample is a node with a speaker of the mesh, one that is a client of reflectors, and a reflector of its own.
func sample() inspect.Options {
	mesh := speaker{
		Sessions: []bgp.Session{{Peer: "node/node2", Address: addr("192.168.11.12")}, {Peer: "peer/leaf1", Address: addr("fd00:11::254")}},
		Paths: []bgp.Path{
			{Prefix: prefix("10.244.1.0/26"), NextHop: addr("192.168.11.12"), Peer: addr("192.168.11.12"), Kind: bgp.PeerNode},
			{Prefix: prefix("fd00:244::80/122"), NextHop: addr("fd00:11::254"), Peer: addr("fd00:11::254"), Kind: bgp.PeerFabric, ASPathLen: 2, Stale: true},
		},
	}
	client := speaker{
		Sessions: []bgp.Session{{Peer: "reflector/node3", Address: addr("192.168.12.13")}, {Peer: "reflector/node2", Address: addr("192.168.11.12")}},
		Paths: []bgp.Path{
			{Prefix: prefix("10.244.1.0/26"), NextHop: addr("192.168.11.12"), Peer: addr("192.168.11.12"), Kind: bgp.PeerReflector, Originator: addr("192.168.11.12"), Clusters: "10.0.0.2"},
			{Prefix: prefix("10.244.1.0/26"), NextHop: addr("192.168.11.12"), Peer: addr("192.168.12.13"), Kind: bgp.PeerReflector, Originator: addr("192.168.11.12"), Clusters: "10.0.0.3 10.0.0.2"},
		},
	}
	route := reflector.Route{Prefix: prefix("fd00:244::80/122"), Why: reflector.ReasonClusterList, Paths: []reflector.Path{
		{Best: true, Peer: "client/node2", Address: addr("192.168.11.12"), NextHop: addr("fd00:11::12"), LocalPref: 100, Origin: "IGP", Originator: addr("0.0.0.0")},
		{
			Peer: "reflector/node3", Address: addr("192.168.12.13"), NextHop: addr("fd00:11::12"), LocalPref: 100, MED: 5, ASPath: "65101 {65102,65103}", Origin: "incomplete",
			Originator: addr("192.168.11.12"), Clusters: []netip.Addr{addr("10.0.0.3"), addr("10.0.0.2")}, Stale: true,
		},
	}}
	return inspect.Options{Speakers: []inspect.Speaker{mesh, client}, Reflector: table{routes: []reflector.Route{
		{Prefix: prefix("10.244.1.0/26"), Why: reflector.ReasonOnly, Paths: []reflector.Path{{Best: true, Peer: "client/node2", Address: addr("192.168.11.12"), NextHop: addr("192.168.11.12"), LocalPref: 100, Origin: "IGP"}}},
		route,
	}}}
}

func TestRoutes(t *testing.T) {
	s := start(t, sample())
	mesh4 := inspect.Path{Prefix: prefix("10.244.1.0/26"), NextHop: addr("192.168.11.12"), Peer: "node/node2", PeerIP: addr("192.168.11.12"), ClusterList: []string{}}
	reflected4, other4 := mesh4, mesh4
	reflected4.Peer, reflected4.Originator, reflected4.ClusterList = "reflector/node2", addr("192.168.11.12"), []string{"10.0.0.2"}
	other4.Peer, other4.PeerIP = "reflector/node3", addr("192.168.12.13")
	other4.Originator, other4.ClusterList = addr("192.168.11.12"), []string{"10.0.0.3", "10.0.0.2"}
	fabric6 := inspect.Path{
		Prefix: prefix("fd00:244::80/122"), NextHop: addr("fd00:11::254"), Peer: "peer/leaf1", PeerIP: addr("fd00:11::254"), ASPathLength: 2, ClusterList: []string{}, Stale: true,
	}
	client4 := mesh4
	client4.Peer = "client/node2"
	best6, second6 := client4, other4
	best6.Prefix, best6.NextHop = fabric6.Prefix, addr("fd00:11::12")
	second6.Prefix, second6.NextHop, second6.ASPathLength, second6.Stale = fabric6.Prefix, addr("fd00:11::12"), 2, true
	route4 := inspect.Route{Prefix: mesh4.Prefix, Why: "only path", Paths: []inspect.ReflectorPath{{Path: client4, Best: true, LocalPref: 100, Origin: "IGP"}}}
	route6 := inspect.Route{Prefix: fabric6.Prefix, Why: "shorter cluster list", Paths: []inspect.ReflectorPath{
		{Path: best6, Best: true, LocalPref: 100, Origin: "IGP"},
		{Path: second6, ASPath: "65101 {65102,65103}", LocalPref: 100, MED: 5, Origin: "incomplete"},
	}}
	for query, want := range map[string]inspect.Routes{
		"":              {Paths: []inspect.Path{mesh4, reflected4, other4, fabric6}, Reflected: []inspect.Route{route4, route6}},
		"10.244.0.0/16": {Paths: []inspect.Path{mesh4, reflected4, other4}, Reflected: []inspect.Route{route4}},
		"fd00:244::81":  {Paths: []inspect.Path{fabric6}, Reflected: []inspect.Route{route6}},
		"192.0.2.0/24":  {Paths: []inspect.Path{}, Reflected: []inspect.Route{}},
	} {
		t.Run(query, func(t *testing.T) {
			q, err := inspect.ParseQuery(query)
			if err != nil {
				t.Fatal(err)
			}
			got, err := inspect.NewClient(s.path).Routes(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// An answer that is cut says so, and has no half of a route.
func TestAnswersAreBounded(t *testing.T) {
	for most, want := range map[int][4]int{1: {1, 3, 1, 1}, 2: {2, 2, 1, 1}, 3: {3, 1, 2, 0}, 4: {4, 0, 2, 0}} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			opts := sample()
			opts.MaxPaths = most
			r, err := inspect.NewClient(start(t, opts).path).Routes(t.Context(), inspect.Query{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, [4]int{len(r.Paths), r.PathsLeftOut, len(r.Reflected), r.ReflectedLeftOut}); diff != "" {
				t.Errorf("paths and left out, routes and left out (-want +got):\n%s", diff)
			}
		})
	}
}

// A node that is no reflector and has no speaker has nothing to show.
func TestNothing(t *testing.T) {
	r, err := inspect.NewClient(start(t, inspect.Options{}).path).Routes(t.Context(), inspect.Query{})
	if diff := cmp.Diff(inspect.Routes{Paths: []inspect.Path{}, Reflected: []inspect.Route{}}, r); diff != "" || err != nil {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
}

func TestMalformedRequests(t *testing.T) {
	s := start(t, sample())
	for name, tt := range map[string]struct{ request, status, body string }{
		"garbage":         {string(bytes.Repeat([]byte{0xff, 0x00, 0x13}, 100)), "HTTP/1.1 400", ""},
		"another path":    {"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 404", ""},
		"another method":  {"POST /bgp/routes HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 405", ""},
		"a body":          {"GET /bgp/routes HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 400", "no body"},
		"chunks":          {"GET /bgp/routes HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "HTTP/1.1 400", "no body"},
		"no prefix":       {get("within=10.244.0.0"), "HTTP/1.1 400", "is no prefix"},
		"host bits":       {get("within=10.244.0.1/16"), "HTTP/1.1 400", "host bits"},
		"no address":      {get("containing=10.244.0.0/16"), "HTTP/1.1 400", "neither a prefix nor an address"},
		"two conditions":  {get("within=10.244.0.0/16&containing=10.244.0.1"), "HTTP/1.1 400", "more than one condition"},
		"one twice":       {get("within=10.244.0.0/16&within=::/0"), "HTTP/1.1 400", "more than one condition"},
		"unknown":         {get("prefix=::/0"), "HTTP/1.1 400", `"prefix" is unknown`},
		"bad escape":      {get("within=%zz"), "HTTP/1.1 400", ""},
		"a long line":     {get("within=" + strings.Repeat("1", 100_000)), "HTTP/1.1 431", ""},
		"after all that":  {get("within=fd00:244::/56"), "HTTP/1.1 200", `"prefix":"fd00:244::80/122"`},
		"of another time": {"GET /bgp/routes\r\n", "HTTP/1.1 400", ""},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := s.say(t, tt.request)
			if !strings.HasPrefix(status, tt.status) || !strings.Contains(body, tt.body) {
				t.Errorf("answer = %q, %.300q; want %s, %q", status, body, tt.status, tt.body)
			}
		})
	}
}

func get(query string) string {
	return "GET /bgp/routes?" + query + " HTTP/1.1\r\nHost: a\r\n\r\n"
}

func TestClientSaysWhatIsWrong(t *testing.T) {
	s := start(t, sample())
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{s.path: "connection refused", s.path + "-": "no such file"} {
		_, err := inspect.NewClient(path).Routes(t.Context(), inspect.Query{})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("error = %v; want %q in it", err, want)
		}
	}
}

// The next agent finds the socket of the last, which is dead or about to die, and takes its place.
func TestSocketIsReplaced(t *testing.T) {
	first := start(t, inspect.Options{})
	opts := sample()
	opts.Socket = first.path
	second := start(t, opts)
	if err := first.stop(); err != nil {
		t.Error(err)
	}
	r, err := inspect.NewClient(second.path).Routes(t.Context(), inspect.Query{})
	if err != nil || len(r.Paths) != 4 {
		t.Errorf("%d paths, %v; want the second's 4", len(r.Paths), err)
	}
	if err := second.stop(); err != nil {
		t.Error(err)
	}
	third := start(t, opts) // of a dead one
	if _, err := inspect.NewClient(third.path).Routes(t.Context(), inspect.Query{}); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(first.path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
}

// Connections that say nothing take all places; whoever comes then is told, and served once they had
// their time.
func TestHangingConnectionsAreBounded(t *testing.T) {
	t.Parallel() // it waits for a timeout
	s := start(t, sample())
	for range 16 {
		_ = s.dial(t)
	}
	waitFor(t, "one too many is told so", func() bool {
		status, body := s.say(t, get(""))
		return strings.HasPrefix(status, "HTTP/1.1 503") && strings.Contains(body, "too many connections")
	})
	waitFor(t, "there is room again", func() bool {
		_, err := inspect.NewClient(s.path).Routes(t.Context(), inspect.Query{})
		return err == nil
	})
}

// Only two answers are made at once: others wait for their turn, though not for ever.
func TestAnswersUnderWayAreBounded(t *testing.T) {
	t.Parallel() // it waits for a timeout
	opts := sample()
	gate := make(chan struct{})
	opts.Reflector = table{gate: gate}
	s := start(t, opts)
	const asking = 4
	errs := make(chan error, asking)
	for range asking {
		go func() {
			_, err := inspect.NewClient(s.path).Routes(t.Context(), inspect.Query{})
			errs <- err
		}()
	}
	for range asking - 2 {
		if err := <-errs; err == nil || !strings.Contains(err.Error(), "too many requests at once") {
			t.Errorf("error = %v; want that there are too many", err)
		}
	}
	close(gate)
	for range 2 {
		if err := <-errs; err != nil {
			t.Errorf("one of the two that had their turn: %v", err)
		}
	}
}
