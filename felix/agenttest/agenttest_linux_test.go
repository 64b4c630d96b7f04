// SPDX-License-Identifier: Apache-2.0

package agenttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/internal/cli"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

const (
	// modeEnv has the test binary be another program.
	modeEnv   = "HELIOGRAPH_AGENTTEST"
	agentMode = "agent"

	metricsAddress = "127.0.0.1:9810"
	// patience is generous: the machine may be emulated.
	patience = time.Minute
	// longest bounds the whole story.
	longest = 9 * time.Minute
)

func TestMain(m *testing.M) {
	if os.Getenv(modeEnv) == agentMode {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		code := cli.Main(ctx, append([]string{"heliograph"}, os.Args[1:]...), os.Stdout, os.Stderr)
		stop()
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// eventually polls until nothing is missing.
func eventually(t *testing.T, within time.Duration, missing func() string) {
	t.Helper()
	var last string
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if last = missing(); last == "" {
			return
		}
	}
	t.Fatalf("after %s: %s", within, last)
}

// The payload of a stream makes inner packets of these sizes.
const (
	inner4 = 20 + 8 + payloadSize
	inner6 = 40 + 8 + payloadSize
	// What the tunnels add, with IPv4 outside: a header; and header, UDP, VXLAN and inner Ethernet.
	overIPIP  = 20
	overVXLAN = 20 + 8 + 8 + 14
)

// story is one run through the faults of a fabric.
type story struct {
	t       *testing.T
	world   *world
	wire    *wire
	ipv4    *stream
	ipv6    *stream
	tcp     []*session
	metrics map[string]*http.Client
	steps   []step
}

// step is one change, when it was made, and for how long traffic may stop on its account.
type step struct {
	name    string
	at      time.Time
	allowed time.Duration
}

// How long traffic may stop. The bounds are those of an emulated machine, where all takes several times as long.
const (
	harmless  = 0
	withdrawn = 5 * time.Second  // until a route that BGP withdraws is replaced, or a working way is used again
	detected  = 15 * time.Second // until probes have found out
	hopeless  = -1               // nothing works until the next step, and then as after withdrawn
)

// TestMixed: no switch speaks BGP, and of two nodes one has a kernel without ipip. They agree on VXLAN, no
// packet goes by IPIP, and both say why. It comes before all other tests: what they load stays loaded.
func TestMixed(t *testing.T) {
	if !inVM() {
		t.Skip("only the kernel of hack/vm can be kept from loading ipip; make test-vm runs this test")
	}
	nettest.RunFor(t, longest, func(t *testing.T) {
		s := newStory(t)
		withoutIPIP(t, func() {
			s.world.startAgent(t, "b")
			eventually(t, 3*patience, func() string { return s.world.agents["b"].log.lacks("kernel probed") })
		})
		nettest.NeedLink(t, "ipip")
		run(t, "spine", "nft", "add rule inet fault forward "+noIPIP+" counter")
		s.step("a has ipip, b has none", harmless, func() { s.world.startAgent(t, "a") }, func() { s.paths("VXLAN", "VXLAN") })
		s.traffic()
		defer s.losses()
		s.wired("VXLAN", "VXLAN")
		s.says("a", "b", "not IPIP: the kernel of b has no ipip")
		s.says("b", "a", "not IPIP: this node's kernel has no ipip: this kernel has no such thing")
		if c := s.world.notebooks["b"].capability("IPIP"); c.Supported || c.Reason == "" {
			t.Errorf("NodeStatus b: capability %+v", c)
		}
		s.stays(20*time.Second, "VXLAN", "VXLAN") // for longer than a proof
		s.unchanged(1, "VXLAN", "VXLAN")
		if out := run(t, "spine", "nft", "list chain inet fault forward"); !strings.Contains(out, "packets 0 bytes 0") {
			t.Errorf("the spine saw IPIP:\n%s", out)
		}
		s.step("b's agent starts again, and finds ipip", harmless, func() { s.world.agents["b"].stop(syscall.SIGTERM); s.world.startAgent(t, "b") }, func() { s.paths("IPIP", "VXLAN") })
		s.wired("IPIP", "VXLAN")
	})
}

// loader is the file that names the program by which the kernel loads modules.
const loader = "/proc/sys/kernel/modprobe"

// withoutIPIP calls f while the kernel has no ipip, and cannot load it.
func withoutIPIP(t *testing.T, f func()) {
	t.Helper()
	was, err := os.ReadFile(loader)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(loader, was, 0); err != nil {
			t.Errorf("restore the loader of modules: %v", err)
		}
	}()
	if err := os.WriteFile(loader, []byte("/bin/false"), 0); err != nil {
		t.Fatal(err)
	}
	args := strings.Fields("link add early0 type ipip local 192.0.2.253 remote 192.0.2.254")
	if out, err := exec.Command("ip", args...).CombinedOutput(); err == nil {
		t.Fatalf("the kernel has ipip already: this test must be the first one %s", out)
	}
	f()
}

// TestFabricFails: two racks whose agents see the fabric lose BGP, then refuse IPIP, then VXLAN, and come
// back, and that are killed meanwhile; then the clock steps, the rack's switch dies, and the port of VXLAN is
// somebody else's. Each time the path is the best that carries packets, both ends agree, the spine sees it on
// its wire, and connections live through all of it.
func TestFabricFails(t *testing.T) {
	keepClock(t)
	nettest.RunFor(t, longest, func(t *testing.T) {
		nettest.NeedLink(t, "ipip")
		s := newStory(t)
		s.start()
		defer s.losses()
		s.step("BGP carries the pods' routes", harmless, func() {}, func() { s.paths("Native", "Native") })
		s.traffic()
		s.wired("Native", "Native")
		s.fail()
		s.comeBack()
		s.step("b's agent is killed for 20 s", harmless, func() { s.world.agents["b"].stop(syscall.SIGKILL) }, func() { s.stays(20*time.Second, "Native", "Native") })
		s.step("b's agent starts again", harmless, func() { s.world.startAgent(t, "b") }, func() { s.paths("Native", "Native") })
		s.wired("Native", "Native")
		s.unchanged(2, "Native", "Native")
		s.clockSteps()
		s.deadRack()
		s.portTaken()
	})
}

// What the spine can drop.
const (
	noIPIP  = "ip protocol 4"
	noVXLAN = "udp dport 4789"
)

// fail takes one way after the other from the nodes.
func (s *story) fail() {
	s.t.Helper()
	t, a := s.t, s.world.agents["a"]
	s.step("leaf2 stops speaking BGP", withdrawn, func() { s.world.birds["leaf2"].stop(syscall.SIGTERM) }, func() { s.paths("IPIP", "VXLAN") })
	s.wired("IPIP", "VXLAN")
	s.step("a's agent is killed and starts again", harmless, func() { a.stop(syscall.SIGKILL); s.world.startAgent(t, "a") }, func() { s.paths("IPIP", "VXLAN") })
	s.wired("IPIP", "VXLAN")
	s.unchanged(1, "IPIP", "VXLAN")
	s.step("the spine drops IPIP", detected, func() { faults(t, noIPIP) }, func() { s.paths("VXLAN", "VXLAN") })
	s.wired("VXLAN", "VXLAN")
	s.step("the spine drops VXLAN too", hopeless, func() { faults(t, noIPIP, noVXLAN) }, func() { s.unanswered(1); s.paths("VXLAN", "VXLAN") })
}

// comeBack gives them back, with a fault of one direction between.
func (s *story) comeBack() {
	s.t.Helper()
	t := s.t
	s.step("the spine lets VXLAN through", harmless, func() { faults(t, noIPIP) }, func() { s.unanswered(0); s.paths("VXLAN", "VXLAN") })
	s.wired("VXLAN", "VXLAN")
	s.step("the spine lets IPIP through", harmless, func() { faults(t) }, func() { s.paths("IPIP", "VXLAN") })
	s.wired("IPIP", "VXLAN")
	s.step("the spine drops IPIP from a to b alone", detected, func() { faults(t, "ip saddr 192.168.11.11 "+noIPIP) }, func() { s.paths("VXLAN", "VXLAN") })
	s.wired("VXLAN", "VXLAN")
	s.step("leaf2 speaks BGP again", harmless, func() { s.world.startLeaf2(t) }, func() { s.paths("Native", "Native") })
	s.wired("Native", "Native")
}

// deadRack: leaf2 takes no packet any more, and b's rack has no other switch. That is said, and when leaf2 is
// back, so is everything.
func (s *story) deadRack() {
	s.t.Helper()
	t := s.t
	s.step("leaf2 is dead", hopeless, func() {
		run(t, "leaf2", "nft", "add table inet dead; add chain inet dead everything { type filter hook prerouting priority -300; policy drop; }")
	}, func() { s.unanswered(1) })
	s.step("leaf2 is back", harmless, func() { run(t, "leaf2", "nft", "delete table inet dead") }, func() {
		s.unanswered(0)
		s.paths("Native", "Native")
	})
	s.wired("Native", "Native")
}

// portTaken: while b's agent is down, somebody else takes the port of VXLAN. The agent says so, does the rest,
// and nobody counts on VXLAN until the port is free.
func (s *story) portTaken() {
	s.t.Helper()
	t, agents := s.t, s.world.agents
	var squatter net.PacketConn
	s.step("the VXLAN port of b is taken", harmless, func() {
		agents["b"].stop(syscall.SIGKILL)
		run(t, "b", "ip", "link", "del", "hel-vxlan")
		if err := within("b", func() (err error) { squatter, err = net.ListenPacket("udp4", ":4789"); return err }); err != nil {
			t.Fatal(err)
		}
		s.world.startAgent(t, "b")
	}, func() {
		const why = "UDP port 4789 is held by another socket"
		eventually(t, 3*patience, func() string {
			if p := s.world.notebooks["b"].problems(); !strings.Contains(p, why) {
				return "NodeStatus b: problems: " + p
			}
			return agents["b"].log.lacks(why)
		})
		s.vxlan("Down")
		s.paths("Native", "Native")
	})
	s.step("the VXLAN port of b is free", harmless, func() { _ = squatter.Close() }, func() {
		s.sees("b", "heliograph_in_sync 1")
		s.vxlan("Up")
	})
	s.wired("Native", "Native")
	s.unchanged(2, "Native", "Native")
}

// newStory makes a world in which nothing runs yet.
func newStory(t *testing.T) *story {
	t.Helper()
	s := &story{t: t, world: newWorld(t), metrics: map[string]*http.Client{}}
	s.wire = watchWire(t, "spine", "leaf1")
	for _, node := range []string{"a", "b"} {
		s.world.prepareAgent(t, node)
		s.metrics[node] = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
			DialContext: func(_ context.Context, network, address string) (net.Conn, error) {
				return dial(node, network, address)
			},
		}}
	}
	return s
}

// start starts all that there is, but no traffic.
func (s *story) start() {
	s.t.Helper()
	s.world.startLeaf1(s.t)
	s.world.startSpine(s.t)
	s.world.startLeaf2(s.t)
	s.world.startAgent(s.t, "a")
	s.world.startAgent(s.t, "b")
}

// traffic starts what is to live through all that follows.
func (s *story) traffic() {
	s.t.Helper()
	s.ipv4, s.ipv6 = startStream(s.t, 4), startStream(s.t, 6)
	s.tcp = []*session{startSession(s.t, 4), startSession(s.t, 6)}
}

// step changes something, and prints when both agents had followed.
func (s *story) step(name string, allowed time.Duration, change, follow func()) {
	s.t.Helper()
	from := time.Now()
	s.steps = append(s.steps, step{name, from, allowed})
	change()
	follow()
	s.t.Logf("%-40s followed after %.1f s", name, time.Since(from).Seconds())
}

// losses prints what was lost from each step to the next one, and checks that it is not more than allowed.
func (s *story) losses() {
	if s.ipv4 == nil {
		return
	}
	for i, step := range s.steps {
		to := time.Now()
		if i+1 < len(s.steps) {
			to = s.steps[i+1].at
		}
		for _, stream := range []*stream{s.ipv4, s.ipv6} {
			s.judge(step, to, stream)
		}
	}
}

func (s *story) judge(of step, to time.Time, stream *stream) {
	lost, stopped, allowed := 0, time.Duration(0), of.allowed
	if allowed == hopeless {
		allowed = to.Sub(of.at) + withdrawn
	}
	for _, o := range stream.outages(of.at, to) {
		lost, stopped = lost+o.lost, stopped+o.lasted
	}
	s.t.Logf("%-40s %s: %d lost in %d ms", of.name, stream.magic, lost, stopped.Milliseconds())
	if stopped > allowed {
		s.t.Errorf("%s: %s stopped for %s, allowed are %s", of.name, stream.magic, stopped, allowed)
	}
}

// unchanged checks that in the last steps the spine saw no other kind than these.
func (s *story) unchanged(steps int, ipv4, ipv6 string) {
	s.t.Helper()
	since := s.steps[len(s.steps)-steps].at
	s.wire.onlyShowed(s.t, s.ipv4, ipv4, since)
	s.wire.onlyShowed(s.t, s.ipv6, ipv6, since)
}

// stays checks that a reaches b by these methods, and that all flows, for some time.
func (s *story) stays(d time.Duration, ipv4, ipv6 string) {
	s.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		s.sees("a", fmt.Sprintf("heliograph_path_info{ipv4=%q,ipv6=%q,node=%q} 1", ipv4, ipv6, "b"))
		s.wired(ipv4, ipv6)
	}
}

// paths waits until each agent reaches the other by these methods.
func (s *story) paths(ipv4, ipv6 string) {
	s.t.Helper()
	s.sees("a", fmt.Sprintf("heliograph_path_info{ipv4=%q,ipv6=%q,node=%q} 1", ipv4, ipv6, "b"))
	s.sees("b", fmt.Sprintf("heliograph_path_info{ipv4=%q,ipv6=%q,node=%q} 1", ipv4, ipv6, "a"))
}

// says waits until a node's NodeStatus gives a reason for its path to another, of IPv4.
func (s *story) says(node, other, reason string) {
	s.t.Helper()
	eventually(s.t, patience, func() string {
		if p, ok := s.world.notebooks[node].path(other, "IPv4"); !ok || !strings.Contains(p.Reason, reason) {
			return fmt.Sprintf("NodeStatus %s: path %+v, want the reason %q", node, p, reason)
		}
		return ""
	})
}

// vxlan waits until both nodes say how they think of VXLAN to the other.
func (s *story) vxlan(state string) {
	s.t.Helper()
	for node, other := range map[string]string{"a": "b", "b": "a"} {
		eventually(s.t, 3*patience, func() string {
			p, _ := s.world.notebooks[node].path(other, "IPv6")
			for _, m := range p.Methods {
				if m.Method == v1alpha1.PathVXLAN && m.State == state {
					return ""
				}
			}
			return fmt.Sprintf("NodeStatus %s: path %+v, want VXLAN to be %s", node, p, state)
		})
	}
}

// unanswered waits until each agent says of how many paths no method answers, in each family.
func (s *story) unanswered(n int) {
	s.t.Helper()
	for _, node := range []string{"a", "b"} {
		s.sees(node, fmt.Sprintf(`heliograph_paths_unanswered{family="IPv4"} %d`, n))
		s.sees(node, fmt.Sprintf(`heliograph_paths_unanswered{family="IPv6"} %d`, n))
	}
}

// sees waits for a line of an agent's metrics.
func (s *story) sees(node, line string) {
	s.t.Helper()
	eventually(s.t, 3*patience, func() string {
		body, err := s.get(node)
		if err != nil {
			return "metrics of " + node + ": " + err.Error()
		}
		if !strings.Contains(body, line+"\n") {
			return node + " does not say " + line + ":\n" + about(body)
		}
		return ""
	})
}

func (s *story) get(node string) (string, error) {
	resp, err := s.metrics[node].Get("http://" + metricsAddress + "/metrics")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", errors.New(resp.Status)
	}
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// about keeps what is of interest when a test fails.
func about(metrics string) string {
	var out strings.Builder
	for line := range strings.Lines(metrics) {
		for _, of := range []string{"heliograph_path", "heliograph_bgp_session_up", "heliograph_quorum"} {
			if strings.HasPrefix(line, of) {
				out.WriteString(line)
			}
		}
	}
	return out.String()
}

// wired checks that all traffic flows, and that the spine sees it as it should be.
func (s *story) wired(ipv4, ipv6 string) {
	s.t.Helper()
	over := map[string]int{"IPIP": overIPIP, "VXLAN": overVXLAN}
	s.ipv4.flows(s.t)
	s.ipv6.flows(s.t)
	s.wire.shows(s.t, s.ipv4, ipv4, inner4+over[ipv4])
	s.wire.shows(s.t, s.ipv6, ipv6, inner6+over[ipv6])
	for _, c := range s.tcp {
		c.alive(s.t)
	}
	s.t.Logf("%-40s IPv4 %s %d bytes, IPv6 %s %d bytes", "on the spine:", ipv4, inner4+over[ipv4], ipv6, inner6+over[ipv6])
}
