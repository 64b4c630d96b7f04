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
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

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

// step is one change, and when it was made.
type step struct {
	name string
	at   time.Time
}

// TestFabricFails: two racks whose agents see the fabric lose BGP, then refuse IPIP, then VXLAN, and come
// back, and that are killed meanwhile. Each time the path is the best that carries packets, both ends
// agree, the spine sees it on its wire, and connections live through all of it.
func TestFabricFails(t *testing.T) {
	nettest.RunFor(t, longest, func(t *testing.T) {
		nettest.NeedLink(t, "ipip")
		s := newStory(t)
		defer s.losses()
		s.step("BGP carries the pods' routes", func() {}, func() { s.paths("Native", "Native") })
		s.traffic()
		s.wired("Native", "Native")
		s.fail()
		s.comeBack()
		s.step("b's agent is killed for 20 s", func() { s.world.agents["b"].stop(syscall.SIGKILL) }, func() { s.stays(20*time.Second, "Native", "Native") })
		s.step("b's agent starts again", func() { s.world.startAgent(t, "b") }, func() { s.paths("Native", "Native") })
		s.wired("Native", "Native")
		s.unchanged(2, "Native", "Native")
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
	s.step("leaf2 stops speaking BGP", func() { s.world.birds["leaf2"].stop(syscall.SIGTERM) }, func() { s.paths("IPIP", "VXLAN") })
	s.wired("IPIP", "VXLAN")
	s.step("a's agent is killed and starts again", func() { a.stop(syscall.SIGKILL); s.world.startAgent(t, "a") }, func() { s.paths("IPIP", "VXLAN") })
	s.wired("IPIP", "VXLAN")
	s.unchanged(1, "IPIP", "VXLAN")
	s.step("the spine drops IPIP", func() { faults(t, noIPIP) }, func() { s.paths("VXLAN", "VXLAN") })
	s.wired("VXLAN", "VXLAN")
	s.step("the spine drops VXLAN too", func() { faults(t, noIPIP, noVXLAN) }, func() { s.unanswered(1); s.paths("VXLAN", "VXLAN") })
}

// comeBack gives them back, with a fault of one direction between.
func (s *story) comeBack() {
	s.t.Helper()
	t := s.t
	s.step("the spine lets VXLAN through", func() { faults(t, noIPIP) }, func() { s.unanswered(0); s.paths("VXLAN", "VXLAN") })
	s.wired("VXLAN", "VXLAN")
	s.step("the spine lets IPIP through", func() { faults(t) }, func() { s.paths("IPIP", "VXLAN") })
	s.wired("IPIP", "VXLAN")
	s.step("the spine drops IPIP from a to b alone", func() { faults(t, "ip saddr 192.168.11.11 "+noIPIP) }, func() { s.paths("VXLAN", "VXLAN") })
	s.wired("VXLAN", "VXLAN")
	s.step("leaf2 speaks BGP again", func() { s.world.startLeaf2(t) }, func() { s.paths("Native", "Native") })
	s.wired("Native", "Native")
}

// newStory starts all there is, but no traffic.
func newStory(t *testing.T) *story {
	t.Helper()
	s := &story{t: t, world: newWorld(t), metrics: map[string]*http.Client{}}
	s.world.startLeaf1(t)
	s.world.startSpine(t)
	s.world.startLeaf2(t)
	s.wire = watchWire(t, "spine", "leaf1")
	for _, node := range []string{"a", "b"} {
		s.world.prepareAgent(t, node)
		s.world.startAgent(t, node)
		s.metrics[node] = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
			DialContext: func(_ context.Context, network, address string) (net.Conn, error) {
				return dial(node, network, address)
			},
		}}
	}
	return s
}

// traffic starts what is to live through all that follows.
func (s *story) traffic() {
	s.t.Helper()
	s.ipv4, s.ipv6 = startStream(s.t, 4), startStream(s.t, 6)
	s.tcp = []*session{startSession(s.t, 4), startSession(s.t, 6)}
}

// step changes something, and prints when both agents had followed.
func (s *story) step(name string, change, follow func()) {
	s.t.Helper()
	from := time.Now()
	s.steps = append(s.steps, step{name, from})
	change()
	follow()
	s.t.Logf("%-40s followed after %.1f s", name, time.Since(from).Seconds())
}

// losses prints what was lost from each step to the next one. Where nothing passes, that is known only when
// something does.
func (s *story) losses() {
	if s.ipv4 == nil {
		return
	}
	for i, step := range s.steps {
		to := time.Now()
		if i+1 < len(s.steps) {
			to = s.steps[i+1].at
		}
		s.t.Logf("%-40s lost IPv4 %s, IPv6 %s", step.name, s.ipv4.losses(step.at, to), s.ipv6.losses(step.at, to))
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
