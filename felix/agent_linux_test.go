// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/felix/feed"
	"github.com/heliograph-dev/heliograph/felix/watch"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// A whole agent, with its own speaker and store, starts from the copy on disk, while nobody answers
// for the API server; serves pods, health and metrics; and ends when it is told to, leaving the
// kernel as it is.
func TestAgentWithoutAPIServer(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		opts := agentOptions(t, w)
		stop := runAgent(t, opts)
		defer stop()
		eventually(t, 2*patience, func() string {
			if code, body := get("/readyz"); code != http.StatusOK {
				return "not ready: " + body + w.log.String()
			}
			return ""
		})
		w.sees(time.Second, true, "10.244.2.0/26 nhid", routesOfOurs...)
		if code, body := get("/healthz"); code != http.StatusOK {
			t.Errorf("healthz: %s", body)
		}
		checkMetrics(t)
		if r := ask(t, opts.Socket, cni.Request{Verb: cni.Status}); r.Error != nil {
			t.Errorf("STATUS: %v", r.Error)
		}
		start := time.Now()
		stop()
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("it ends after %s", took)
		}
		w.sees(time.Second, true, "10.244.2.0/26 nhid", routesOfOurs...)
		if log := w.log.String(); strings.Contains(log, "context canceled") || !strings.Contains(log, "uninstall=false") {
			t.Errorf("log:\n%s", log)
		}
	})
}

// A part that cannot go on ends the agent with its reason, and the kernel stays as it is.
func TestAgentEndsWithReason(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		opts := agentOptions(t, w)
		l, err := net.Listen("tcp", opts.MetricsAddress)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() //nolint:errcheck // only in the way
		a, err := New(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "health ended: listen for health and metrics: ") {
			t.Errorf("got %v", err)
		}
	})
}

const testMetricsAddress = "127.0.0.1:9810"

func agentOptions(t *testing.T, w *world) Options {
	t.Helper()
	dir := t.TempDir()
	opts := Options{
		NodeName: "a", Namespace: "heliograph-system", DaemonSet: "heliograph-agent", StateDir: dir,
		Socket: filepath.Join(dir, "cni.sock"), SysctlRoot: w.sysctls, CNIBinDir: dir, CNIConfDir: dir,
		MetricsAddress: testMetricsAddress, Version: "test",
		Config: &rest.Config{Host: "http://127.0.0.1:1"}, Log: slog.New(slog.NewTextHandler(w.log, nil)),
	}
	before, err := watch.New(opts.Config, watch.Options{Path: filepath.Join(dir, "snapshot.json"), Log: opts.Log})
	if err != nil {
		t.Fatal(err)
	}
	if err := before.Save(cluster()); err != nil {
		t.Fatal(err)
	}
	policies, err := feed.OpenJournal(filepath.Join(dir, "policy.db"), watch.FeedTypes(), opts.Log)
	if err != nil {
		t.Fatal(err)
	}
	policies.Note(nil, true)
	if err := policies.Close(); err != nil {
		t.Fatal(err)
	}
	return opts
}

func runAgent(t *testing.T, opts Options) (stop func()) {
	t.Helper()
	a, err := New(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stopped := false
	return func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("the agent ends with %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("the agent does not end")
		}
	}
}

func get(path string) (code int, body string) {
	resp, err := http.Get("http://" + testMetricsAddress + path) //nolint:noctx // our own server
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

// checkMetrics looks for what dashboards need, and has promtool look over the rest.
func checkMetrics(t *testing.T) {
	t.Helper()
	_, body := get("/metrics")
	for _, want := range []string{
		`heliograph_build_info{version="test"} 1`, "heliograph_in_sync 1", "heliograph_apiserver_reachable 0",
		`heliograph_path_info{ipv4="VXLAN",ipv6="",node="c"} 1`, `heliograph_paths{family="IPv4",method="VXLAN"} 2`, `heliograph_routes{family="IPv4",method="vxlan"} 2`,
		`heliograph_bgp_session_up{address="192.168.11.2",asn="64512",peer="node/b",state=`,
		`heliograph_driver_apply_duration_seconds_count{driver="route"}`, `heliograph_driver_pending_objects{driver="nft"} 0`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics has no %s", want)
		}
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("promtool is not installed: metrics are not checked")
		return
	}
	var own bytes.Buffer
	for line := range strings.Lines(body) {
		if name := strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE "); strings.HasPrefix(name, "heliograph_") {
			own.WriteString(line)
		}
	}
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = &own
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// ask speaks to the agent as the plugin does.
func ask(t *testing.T, socket string, r cni.Request) (out cni.Response) {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // one request
	if err := cni.SendRequest(conn, r); err != nil {
		t.Fatal(err)
	}
	if err := cni.ReadMessage(conn, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// Sockets and sysctls of a node that cannot be opened are an error that says so.
func TestNewFails(t *testing.T) {
	need(t)
	nettest.Run(t, func(t *testing.T) {
		w := newWorld(t)
		opts := agentOptions(t, w)
		opts.StateDir = "/proc/nowhere"
		if _, err := New(t.Context(), opts); err == nil || !strings.Contains(err.Error(), "open /proc/nowhere/policy.db") {
			t.Errorf("got %v", err)
		}
	})
}
