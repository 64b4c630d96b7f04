// SPDX-License-Identifier: Apache-2.0

//go:build linux

package interop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/bgp/speaker"
	"github.com/heliograph-dev/heliograph/internal/logtest"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

const (
	insideEnv  = "HELIOGRAPH_INTEROP"
	speakerEnv = "HELIOGRAPH_INTEROP_SPEAKER"
)

func TestMain(m *testing.M) {
	if in := os.Getenv(speakerEnv); in != "" {
		runSpeaker(in)
	}
	os.Exit(m.Run())
}

// isolate runs f in network and mount namespaces of its own, as real root. Everything that f starts
// dies with it, since it gets a PID namespace as well.
func isolate(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	if os.Getenv(insideEnv) == t.Name() {
		prepare(t)
		f(t)
		return
	}
	if os.Getuid() != 0 {
		nettest.Skip(t, "needs real root: FRR wants to become the user frr")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=300s")
	cmd.Env = append(os.Environ(), insideEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		nettest.Skip(t, "cannot make namespaces: "+err.Error())
	}
	err := cmd.Wait()
	t.Logf("in namespaces:\n%s", out.String())
	if err != nil {
		t.Fatalf("in namespaces: %v", err)
	}
	if strings.Contains(out.String(), "--- SKIP: "+t.Name()+" ") {
		t.Skip("skipped inside of the namespaces: see above")
	}
}

// prepare makes node (here) and tor (a second network namespace) with a cable between them.
func prepare(t *testing.T) {
	t.Helper()
	for _, m := range []struct {
		target, fstype string
		flags          uintptr
	}{
		{"/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"/proc", "proc", 0},
		{"/run", "tmpfs", 0},
		{"/var/tmp", "tmpfs", 0}, // where FRR leaves its crash logs
	} {
		if err := unix.Mount("none", m.target, m.fstype, m.flags, ""); err != nil {
			t.Fatalf("mount %s: %v", m.target, err)
		}
	}
	for _, line := range []string{
		"link set lo up",
		"netns add tor",
		"-n tor link set lo up",
		"link add tor0 type veth peer name node0 netns tor",
		"address add 192.168.11.1/24 dev tor0",
		"address add fd00:11::1/64 dev tor0 nodad",
		"link set tor0 up",
		"-n tor address add 192.168.11.254/24 dev node0",
		"-n tor address add fd00:11::fe/64 dev node0 nodad",
		"-n tor link set node0 up",
	} {
		nettest.Cmd(t, "ip", strings.Fields(line)...)
	}
}

// node is what the speaker under test should be: 10.1.0.0/24 and fd00:1::/64 behind 192.168.11.1,
// one session with the router.
func node(password bgp.Password) bgp.Desired {
	return bgp.Desired{
		Global: bgp.Global{ASN: 64512, RouterID: netip.MustParseAddr("192.168.11.1"), Port: 179},
		Origins: []bgp.Origin{
			{Prefix: netip.MustParsePrefix("10.1.0.0/24"), NextHop: netip.MustParseAddr("192.168.11.1")},
			{Prefix: netip.MustParsePrefix("fd00:1::/64"), NextHop: netip.MustParseAddr("fd00:11::1")},
		},
		Peers: []bgp.Peer{{
			Name:            "peer/tor",
			Kind:            bgp.PeerFabric,
			Address:         netip.MustParseAddr("192.168.11.254"),
			LocalAddress:    netip.MustParseAddr("192.168.11.1"),
			ASN:             65101,
			Password:        password,
			Timers:          bgp.Timers{Hold: 9 * time.Second, Keepalive: 3 * time.Second, ConnectRetry: 2 * time.Second},
			GracefulRestart: bgp.GracefulRestart{Enabled: true, RestartTime: 60 * time.Second},
			Families:        []bgp.Family{bgp.IPv4, bgp.IPv6},
			Accept:          []netip.Prefix{netip.MustParsePrefix("10.250.0.0/16"), netip.MustParsePrefix("fd00:250::/32")},
		}},
	}
}

// started is a speaker in this process.
func started(t *testing.T, desired bgp.Desired) *speaker.Speaker {
	t.Helper()
	s := speaker.New(speaker.Options{}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err := s.Apply(t.Context(), desired); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop(context.Background(), false) })
	return s
}

// process is a speaker in a process of its own; it prints the routes it has whenever they change.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	mu  sync.Mutex
	out string
}

func startProcess(t *testing.T, desired bgp.Desired) *process {
	t.Helper()
	return startSpeaker(t, desired, exec.Command(os.Args[0]))
}

func startSpeaker(t *testing.T, desired bgp.Desired, cmd *exec.Cmd) *process {
	t.Helper()
	in, err := json.Marshal(desired)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd}
	p.cmd.Env = append(os.Environ(), speakerEnv+"="+string(in))
	p.cmd.Stderr = t.Output()
	pipe, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		lines := bufio.NewScanner(pipe)
		for lines.Scan() {
			p.mu.Lock()
			p.out = lines.Text()
			p.mu.Unlock()
		}
	}()
	t.Cleanup(p.kill)
	return p
}

// apply makes it something else.
func (p *process) apply(t *testing.T, desired bgp.Desired) {
	t.Helper()
	if err := json.NewEncoder(p.in).Encode(desired); err != nil {
		t.Fatal(err)
	}
}

func (p *process) routes() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func runSpeaker(in string) {
	var desired bgp.Desired
	if err := json.Unmarshal([]byte(in), &desired); err != nil {
		panic(err)
	}
	s := speaker.New(speaker.Options{}, slog.New(slog.NewTextHandler(os.Stderr, nil)).With("in", "process"))
	if err := s.Apply(context.Background(), desired); err != nil {
		panic(err)
	}
	go follow(s)
	for range s.Changed() {
		fmt.Println(routes(s))
	}
}

// follow applies what comes on standard input.
func follow(s *speaker.Speaker) {
	for d := json.NewDecoder(os.Stdin); ; {
		var desired bgp.Desired
		if d.Decode(&desired) != nil {
			return
		}
		if err := s.Apply(context.Background(), desired); err != nil {
			panic(err)
		}
	}
}

// routes of a speaker, one word each.
func routes(s *speaker.Speaker) string {
	var out []string
	for _, p := range s.Snapshot().Paths {
		r := fmt.Sprintf("%s>%s", p.Prefix, p.NextHop)
		if p.Stale {
			r += "!stale"
		}
		out = append(out, r)
	}
	return strings.Join(out, " ")
}

// kernel lists the routes that the router put into its kernel.
func kernel(t *testing.T) string {
	t.Helper()
	var out []string
	for _, family := range []string{"-4", "-6"} {
		for line := range strings.Lines(nettest.Cmd(t, "ip", "-n", "tor", family, "route", "show")) {
			f := strings.Fields(line)
			for i, word := range f {
				if word == "via" && !strings.HasPrefix(f[0], "default") {
					out = append(out, f[0]+">"+f[i+1])
				}
			}
		}
	}
	return strings.Join(out, " ")
}

// monitor records what happens to the router's kernel routes.
type monitor struct{ logtest.Buffer }

func watchKernel(t *testing.T) *monitor {
	t.Helper()
	m := &monitor{}
	cmd := exec.Command("ip", "-n", "tor", "-o", "monitor", "route")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	go func() { _, _ = io.Copy(m, pipe) }()
	// It hears something only once it listens: poke until it does.
	wait(t, "ip monitor", func() string {
		nettest.Cmd(t, "ip", "-n", "tor", "route", "replace", "198.51.100.0/24", "dev", "lo")
		nettest.Cmd(t, "ip", "-n", "tor", "route", "delete", "198.51.100.0/24", "dev", "lo")
		return fmt.Sprint(strings.Contains(m.String(), "198.51.100.0/24"))
	}, "true")
	return m
}

// deleted lists the deletions of our routes.
func (m *monitor) deleted() []string {
	var out []string
	for line := range strings.Lines(m.String()) {
		if strings.HasPrefix(line, "Deleted 10.1.") || strings.HasPrefix(line, "Deleted fd00:1:") {
			out = append(out, line)
		}
	}
	return out
}

// wait waits for a minute until state returns what is wanted.
func wait(t *testing.T, what string, state func() string, want string) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		got := state()
		if got == want {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited in vain for %s:\n got %q\nwant %q", what, got, want)
		}
	}
}
