// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/enforce"
	"github.com/heliograph-dev/heliograph/internal/nettest"
	"github.com/heliograph-dev/heliograph/policy"
)

// ipMonitor writes down what happens in the kernel.
type ipMonitor struct {
	t     *testing.T
	lines chan string
}

func monitorKernel(t *testing.T) *ipMonitor {
	t.Helper()
	cmd := exec.Command("ip", "monitor", "route", "nexthop", "address", "link", "neigh")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	m := &ipMonitor{t: t, lines: make(chan string, 10000)}
	go func(r io.Reader) {
		for s := bufio.NewScanner(r); s.Scan(); {
			m.lines <- s.Text()
		}
		close(m.lines)
	}(out)
	m.ready()
	return m
}

const sentinel = "203.0.113.7"

// ready waits until the monitor listens.
func (m *ipMonitor) ready() {
	m.t.Helper()
	eventually(m.t, patience, func() string {
		nettest.Cmd(m.t, "ip", "route", "replace", sentinel, "dev", "lo")
		select {
		case <-m.lines:
			return ""
		case <-time.After(20 * time.Millisecond):
			return "ip monitor says nothing"
		}
	})
	m.drain()
}

// drain returns what has happened until now.
func (m *ipMonitor) drain() []string {
	m.t.Helper()
	nettest.Cmd(m.t, "ip", "route", "add", "unreachable", "203.0.113.8", "metric", "7")
	nettest.Cmd(m.t, "ip", "route", "del", "unreachable", "203.0.113.8", "metric", "7")
	var out []string
	deadline := time.After(patience)
	for {
		select {
		case line := <-m.lines:
			if strings.HasPrefix(line, "Deleted unreachable 203.0.113.8") {
				return out
			}
			if !strings.Contains(line, "203.0.113.") {
				out = append(out, line)
			}
		case <-deadline:
			m.t.Fatalf("ip monitor does not say all: %q", out)
		}
	}
}

// A second agent finds all as it should be, and writes nothing. It keeps the native path until BGP
// has said all it has to say, and gives it up then.
func TestRestartAdopts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.speaker.now = nativeToB()
		w.device("hel00000000001")
		w.pods.set(pod("hel00000000001", "10.244.0.5"))
		stop := w.start()
		w.inSync()
		const native = "via 192.168.11.2 dev up0"
		w.sees(time.Second, true, native, "ip", "nexthop", "show", "protocol", "80")
		stop()

		m := monitorKernel(t)
		w.speaker.now, w.speaker.desired = bgp.Snapshot{}, bgp.Desired{} // nothing is known yet
		w.start()
		w.inSync()
		if err := w.sync(); err != nil {
			t.Error(err)
		}
		if happened := m.drain(); len(happened) > 0 {
			t.Errorf("the restart touched the kernel:\n%s", strings.Join(happened, "\n"))
		}
		if !w.speaker.desired.Global.Restarting {
			t.Error("peers are not asked to keep our routes")
		}
		if p := w.latest.Load().Paths[0]; p.Method != "Native" || !strings.Contains(p.Reason, "kept from before") {
			t.Errorf("path %+v", p)
		}
		session := func(ip string, s bgp.SessionState, f ...bgp.Family) bgp.Session {
			return bgp.Session{Kind: bgp.PeerNode, Address: addr(ip), State: s, EndOfRIB: f}
		}
		w.speaker.set(bgp.Snapshot{Running: true, Sessions: []bgp.Session{
			session("192.168.11.2", bgp.StateEstablished, bgp.IPv4, bgp.IPv6), session("192.168.12.3", bgp.StateActive),
		}})
		if err := w.sync(); err != nil {
			t.Error(err)
		}
		w.sees(time.Second, true, native, "ip", "nexthop", "show", "protocol", "80")
		w.speaker.set(bgp.Snapshot{Running: true, Sessions: []bgp.Session{
			session("192.168.11.2", bgp.StateEstablished, bgp.IPv4, bgp.IPv6), session("192.168.12.3", bgp.StateEstablished, bgp.IPv4, bgp.IPv6),
		}})
		w.sees(patience, false, native, "ip", "nexthop", "show", "protocol", "80")
		for _, line := range m.drain() {
			if strings.HasPrefix(line, "Deleted 10.244.") && !strings.Contains(line, " table 8000") { // probes' own
				t.Errorf("a route was deleted to change its path: %s", line)
			}
		}
	})
}

// What an earlier agent left and nobody wants any more is swept, once the facts are complete.
func TestRestartSweepsOrphans(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		stop := w.start()
		w.inSync()
		stop()
		nettest.Cmd(t, "ip", "route", "add", "blackhole", "10.244.9.0/26", "proto", "80", "metric", "80")
		w.source.objects.Nodes, w.source.objects.Blocks = w.source.objects.Nodes[:2], w.source.objects.Blocks[:2]
		w.start()
		w.inSync()
		for text, command := range map[string]string{
			"10.244.9.0/26": "ip route show proto 80", "10.244.2.0/26": "ip route show proto 80",
			"192.168.12.3": "bridge fdb show dev hel-vxlan", "via 192.168.12.3": "ip nexthop show",
		} {
			w.sees(time.Second, false, text, strings.Fields(command)...)
		}
	})
}

// policyWithRules is the part of an agent that enforces policy, with rules in the kernel.
func policyWithRules(t *testing.T, opts Options, log *slog.Logger) *policyPart {
	t.Helper()
	p, err := openPolicy(opts, log)
	if err != nil {
		t.Fatal(err)
	}
	if p.enforcer, err = enforce.New(enforce.Options{Dataplanes: p.dataplanes(), Registerer: prometheus.NewRegistry()}); err != nil {
		t.Fatal(err)
	}
	r, err := p.dataplanes()[0].Open()
	if err != nil {
		t.Fatal(err)
	}
	r.Update(policy.Delta{})
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	nettest.Cmd(t, "nft", "list", "table", "inet", desired.NFTPolicyTable)
	return p
}

// After an uninstall nothing of ours is left in the kernel or on disk, with an API server or without.
func TestUninstall(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.device("hel00000000001")
		w.pods.set(pod("hel00000000001", "10.244.0.5"))
		stop := w.start()
		w.inSync()
		stop()
		dir := t.TempDir()
		opts := Options{
			StateDir: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "run", "cni.sock"),
			CNIBinDir: filepath.Join(dir, "bin"), CNIConfDir: filepath.Join(dir, "net.d"),
		}
		for _, f := range []string{filepath.Join(opts.StateDir, "ipam.db"), opts.Socket, filepath.Join(opts.CNIBinDir, "ptp")} {
			if err := os.MkdirAll(filepath.Dir(f), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(f, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.MkdirAll(opts.CNIConfDir, 0o700); err != nil {
			t.Fatal(err)
		}
		// What an agent that probes has left.
		for _, v := range []string{"-4", "-6"} {
			nettest.Cmd(t, "ip", v, "rule", "add", "pref", "80", "fwmark", "9", "table", fmt.Sprint(desired.TableVXLAN), "protocol", "80")
			nettest.Cmd(t, "ip", v, "route", "add", "blackhole", "default", "table", fmt.Sprint(desired.TableVXLAN), "proto", "80", "metric", "80")
			nettest.Cmd(t, "ip", v, "rule", "add", "pref", "90", "fwmark", "7", "table", "100", "protocol", "4")
		}
		log := slog.New(slog.NewTextHandler(w.log, nil))
		a := &Agent{opts: opts, log: log, loop: w.loop, drivers: w.drivers, policy: policyWithRules(t, opts, log)}
		if err := a.uninstall(t.Context()); err != nil {
			t.Fatal(err)
		}
		for text, command := range map[string]string{
			"10.244.": "ip route show", "table 8000": "ip route show table all", "0x6865000": "ip rule show", "id": "ip nexthop show", "hel": "ip -o link show", "heliograph": "nft list tables", "10.244.0.1": "ip address show dev lo",
		} {
			w.sees(time.Second, false, text, strings.Fields(command)...)
		}
		for _, v := range []string{"-4", "-6"} {
			w.sees(time.Second, false, "80003", "ip", v, "rule", "show")
			w.sees(time.Second, true, "fwmark 0x7 lookup 100", "ip", v, "rule", "show") // another's
			w.sees(time.Second, false, "80003", "ip", v, "route", "show", "table", "all")
		}
		for _, d := range []string{opts.StateDir, filepath.Dir(opts.Socket)} {
			if left, err := os.ReadDir(d); err != nil || len(left) > 0 {
				t.Errorf("%s holds %v, %v", d, left, err)
			}
		}
		if _, err := os.Stat(filepath.Join(opts.CNIBinDir, "ptp")); err != nil {
			t.Errorf("another's plugin: %v", err)
		}
		if err := a.uninstall(t.Context()); err != nil {
			t.Errorf("again: %v", err)
		}
	})
}
