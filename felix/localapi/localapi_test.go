// SPDX-License-Identifier: Apache-2.0

package localapi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/felix/localapi"
)

// backend answers by the network's name: "panic" panics, "wait" waits for ctx, all else succeeds.
type backend struct {
	mu      sync.Mutex
	sockets int // that came with ADDs
	ended   chan string
}

func (b *backend) do(ctx context.Context, r cni.Request) *cni.Error {
	switch r.Network {
	case "panic":
		panic("as asked")
	case "wait":
		<-ctx.Done()
		b.ended <- ctx.Err().Error()
	}
	return nil
}

func (b *backend) Add(ctx context.Context, r cni.Request, podSocket *os.File) (cni.Response, *cni.Error) {
	if podSocket != nil {
		if _, err := podSocket.Stat(); err == nil {
			b.mu.Lock()
			b.sockets++
			b.mu.Unlock()
		}
	}
	return cni.Response{PodInterface: cni.Interface{Name: r.Attachment.IfName}}, b.do(ctx, r)
}
func (b *backend) Del(ctx context.Context, r cni.Request) *cni.Error { return b.do(ctx, r) }
func (b *backend) Check(ctx context.Context, r cni.Request, _ *os.File) *cni.Error {
	return b.do(ctx, r)
}
func (b *backend) Status(context.Context) *cni.Error                { return nil }
func (b *backend) GC(ctx context.Context, r cni.Request) *cni.Error { return b.do(ctx, r) }

type server struct {
	*backend
	path     string
	registry *prometheus.Registry
	stop     func() error
}

func start(t *testing.T, path string) *server {
	t.Helper()
	if path == "" {
		dir, err := os.MkdirTemp("", "hel") // t.TempDir is too long for a socket
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		path = filepath.Join(dir, "run", "cni.sock")
	}
	s := &server{backend: &backend{ended: make(chan string, 1)}, path: path, registry: prometheus.NewRegistry()}
	srv, err := localapi.New(s.backend, path, slog.New(slog.DiscardHandler), s.registry)
	if err != nil {
		t.Fatal(err)
	}
	before, _ := os.Stat(path)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx) }()
	s.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if now, err := os.Stat(path); err == nil && !os.SameFile(before, now) {
			if c, err := net.Dial("unix", path); err == nil {
				_ = c.Close()
				return s
			}
		}
		if time.Now().After(end) {
			t.Fatal("the server does not listen")
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

func (s *server) ask(t *testing.T, r cni.Request, files ...*os.File) cni.Response {
	t.Helper()
	c := s.dial(t)
	if err := cni.SendRequest(c, r, files...); err != nil {
		t.Fatal(err)
	}
	var response cni.Response
	if err := cni.ReadMessage(c, &response); err != nil {
		t.Fatal(err)
	}
	return response
}

func pipe(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return r
}

var web = cni.Attachment{ContainerID: "c", IfName: "eth0"}

func codeOf(r cni.Response) uint {
	if r.Error == nil {
		return 0
	}
	return r.Error.Code
}

func TestRequests(t *testing.T) {
	s := start(t, "")
	for _, tc := range []struct {
		name  string
		r     cni.Request
		files int
		want  uint
	}{
		{"ADD", cni.Request{Verb: cni.Add, Attachment: web}, 1, 0},
		{"ADD with more files than asked for", cni.Request{Verb: cni.Add, Attachment: web}, 9, 0},
		{"ADD without socket", cni.Request{Verb: cni.Add, Attachment: web}, 0, cni.CodeDecode},
		{"CHECK without socket", cni.Request{Verb: cni.Check, Attachment: web}, 0, cni.CodeDecode},
		{"DEL with a path as its name", cni.Request{Verb: cni.Del, Attachment: cni.Attachment{ContainerID: "../../etc", IfName: "eth0"}}, 0, cni.CodeInvalidEnvironment},
		{"ADD with a silly MTU", cni.Request{Verb: cni.Add, Attachment: web, MTU: 5}, 1, cni.CodeInvalidConfig},
		{"unknown verb", cni.Request{Verb: "FORMAT", Attachment: web}, 0, cni.CodeDecode},
		{"panic", cni.Request{Verb: cni.Del, Attachment: web, Network: "panic"}, 0, cni.CodeInternal},
		{"STATUS after all that", cni.Request{Verb: cni.Status}, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var files []*os.File
			for range tc.files {
				files = append(files, pipe(t))
			}
			if got := s.ask(t, tc.r, files...); codeOf(got) != tc.want {
				t.Errorf("answer = %+v, want code %d", got, tc.want)
			}
		})
	}
	if s.sockets != 2 {
		t.Errorf("%d ADDs had a socket, want 2", s.sockets)
	}
	want := map[string]float64{
		"0 ADD": 2, "0 STATUS": 1, "4 DEL": 1, "6 ADD": 1, "6 CHECK": 1, "7 ADD": 1, "999 DEL": 1,
		"6 unknown": 2, // one is the connection that start closed without a word
	}
	if diff := cmp.Diff(want, s.counts(t)); diff != "" {
		t.Errorf("heliograph_cni_requests_total (-want +got):\n%s", diff)
	}
}

// counts reads heliograph_cni_requests_total by "code verb".
func (s *server) counts(t *testing.T) map[string]float64 {
	t.Helper()
	families, err := s.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "heliograph_cni_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			got[m.GetLabel()[0].GetValue()+" "+m.GetLabel()[1].GetValue()] = m.GetCounter().GetValue()
		}
	}
	return got
}

func TestMalformedRequests(t *testing.T) {
	t.Parallel() // it waits for a timeout
	s := start(t, "")
	length := func(n uint32, body string) []byte { return append(binary.BigEndian.AppendUint32(nil, n), body...) }
	for _, tc := range []struct {
		name string
		in   []byte
	}{
		{"garbage", bytes.Repeat([]byte{0xff, 0x00, 0x13}, 100)},
		{"oversized length", length(1<<31, "{}")},
		{"not JSON", length(5, "hello")},
		{"wrong types", length(10, `{"verb":7}`)},
		{"cut off", length(100, "{")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := s.dial(t)
			if _, err := c.Write(tc.in); err != nil {
				t.Fatal(err)
			}
			_ = c.CloseWrite()
			var response cni.Response
			if err := cni.ReadMessage(c, &response); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("no answer: %v", err) // a reset: we had sent more than was read
			} else if err == nil && codeOf(response) != cni.CodeDecode {
				t.Errorf("answer = %+v", response)
			}
		})
	}
	hanging := s.dial(t)
	if _, err := hanging.Write(length(100, `{"verb":`)); err != nil {
		t.Fatal(err)
	}
	if got := s.ask(t, cni.Request{Verb: cni.Status}); got.Error != nil {
		t.Errorf("STATUS beside a hanging request: %+v", got)
	}
	var response cni.Response
	if err := cni.ReadMessage(hanging, &response); err != nil || codeOf(response) != cni.CodeDecode {
		t.Errorf("hanging request: %+v, %v", response, err)
	}
}

func TestPluginThatHangsUpEndsItsWork(t *testing.T) {
	s := start(t, "")
	c := s.dial(t)
	if err := cni.SendRequest(c, cni.Request{Verb: cni.Add, Attachment: web, Network: "wait"}, pipe(t)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // either order is right; mostly the work has begun
	_ = c.Close()
	select {
	case err := <-s.ended:
		if err != context.Canceled.Error() {
			t.Errorf("ended with %s", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the work goes on")
	}
}

func TestSocketIsReplacedWithoutGap(t *testing.T) {
	first := start(t, "")
	stop := make(chan struct{})
	missing := make(chan error, 1)
	go func() {
		defer close(missing)
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := os.Lstat(first.path); err != nil {
					missing <- err
					return
				}
			}
		}
	}()
	second := start(t, first.path)
	if err := first.stop(); err != nil {
		t.Error(err)
	}
	if got := second.ask(t, cni.Request{Verb: cni.Add, Attachment: web}, pipe(t)); got.Error != nil || first.sockets != 0 || second.sockets != 1 {
		t.Errorf("the first served %d, the second %d; %+v", first.sockets, second.sockets, got)
	}
	close(stop)
	if err := <-missing; err != nil {
		t.Errorf("there was a moment without socket: %v", err)
	}
	info, err := os.Stat(first.path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	entries, _ := os.ReadDir(filepath.Dir(first.path))
	if diff := cmp.Diff(1, len(entries)); diff != "" {
		t.Errorf("left beside the socket: %v", entries)
	}
}

func TestManyHangingConnectionsDoNotStopTheServer(t *testing.T) {
	t.Parallel() // it waits for a timeout
	s := start(t, "")
	for range 520 { // more than are served at once
		c := s.dial(t)
		defer func() { _ = c.Close() }()
	}
	// Those in excess are told so; when the others have had their time, there is room again.
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		c := s.dial(t)
		_ = cni.SendRequest(c, cni.Request{Verb: cni.Status})
		var r cni.Response
		err := cni.ReadMessage(c, &r)
		if err == nil && r.Error == nil {
			return
		}
		if err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.EPIPE) {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatal("the server does not answer any more")
		}
	}
}

func FuzzServer(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte("\x00\x00\x00\x12{\"verb\": \"STATUS\"}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := start(t, "")
		c := s.dial(t)
		_, _ = c.Write(b)
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c)
		if got := s.ask(t, cni.Request{Verb: cni.Status}); got.Error != nil {
			t.Errorf("STATUS after %q: %+v", b, got)
		}
	})
}
