// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// stream is an iperf3 connection between two pods.
type stream struct {
	server, client *background
}

// iperf begins a TCP connection that lasts for some seconds.
func iperf(t *testing.T, from, to pod, seconds int) *stream {
	t.Helper()
	s := &stream{server: start(t, to.in("iperf3", "-s", "-1", "-p", "5300", "-B", to.ip4.String())...)}
	eventually(t, 10*time.Second, func() error {
		_, err := try(to.in("sh", "-c", "ss -ltn | grep -q :5300")...)
		return err
	})
	// A slow rate, so that two cores have time for the rest; what is tested is that it lives.
	s.client = start(t, from.in("iperf3", "-c", to.ip4.String(), "-p", "5300", "-b", "50M", "-t", fmt.Sprint(seconds), "-J")...)
	return s
}

// wantAlive waits for the connection's end and fails if it broke.
func (s *stream) wantAlive(t *testing.T) {
	t.Helper()
	var report struct {
		Error string `json:"error"`
		End   struct {
			SumReceived struct {
				Bytes float64 `json:"bytes"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	out := s.client.wait(t)
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("iperf3 says %q: %v", out, err)
	}
	if report.Error != "" || report.End.SumReceived.Bytes == 0 {
		t.Errorf("the TCP connection broke: %q, %.0f bytes arrived", report.Error, report.End.SumReceived.Bytes)
	}
	t.Logf("the TCP connection lives: %.0f MB arrived", report.End.SumReceived.Bytes/1e6)
}

// agentPID is the agent's process on a node, in the node's own numbering.
func agentPID(t *testing.T, node string) string {
	t.Helper()
	var pid string
	eventually(t, time.Minute, func() error {
		out, err := try("exec", node, "pgrep", "-f", "^/heliograph agent")
		pid = strings.TrimSpace(out)
		return err
	})
	return pid
}

// killAgent kills the agent of a node with SIGKILL, runs a shell command right after, and waits for
// the next agent.
func killAgent(t *testing.T, node, then string) {
	t.Helper()
	before := agentPID(t, node)
	lab(t, "exec", node, "sh", "-c", "kill -9 "+before+" && "+then)
	eventually(t, time.Minute, func() error {
		if pid := agentPID(t, node); pid == before {
			return fmt.Errorf("the agent still has pid %s", pid)
		}
		return nil
	})
}

// wantAgentsReady waits until all agents are ready, all sessions established and all paths native.
func wantAgentsReady(t *testing.T) {
	t.Helper()
	kubectl(t, "-n", "heliograph-system", "rollout", "status", "--timeout=120s", "daemonset/heliograph-agent")
	wantAllNative(t)
	for _, node := range []string{"node1", "node2", "node3"} {
		eventually(t, time.Minute, func() error {
			out, err := nodeStatus(node, `{.status.sessionsEstablished}/{.status.sessionsTotal} {.status.conditions[?(@.type=="Ready")].status}`)
			if err == nil && out != "3/3 True" {
				err = fmt.Errorf("%s has %s sessions", node, out)
			}
			return err
		})
	}
}

// TestAgentKilled kills the agent of node1 with SIGKILL, while pods talk through it.
func TestAgentKilled(t *testing.T) {
	a, b := twoPods(t)
	wantAgentsReady(t)
	pings := pingBothWays(t, a, b, 2*time.Minute)
	connection := iperf(t, a, b, 25)
	killAgent(t, "node1", "true")
	wantAgentsReady(t)
	connection.wantAlive(t)
	wantNoneLost(t, pings)
}

// TestRollingRestart restarts all agents, one after the other.
func TestRollingRestart(t *testing.T) {
	a, b := twoPods(t)
	wantAgentsReady(t)
	pings := pingBothWays(t, a, b, 4*time.Minute)
	connection := iperf(t, a, b, 40)
	kubectl(t, "-n", "heliograph-system", "rollout", "restart", "daemonset/heliograph-agent")
	wantAgentsReady(t)
	connection.wantAlive(t)
	wantNoneLost(t, pings)
}

// TestWithoutAPIServer kills the API server for a minute. Traffic goes on, and the plugin, called as
// a runtime calls it, still connects and disconnects a pod; so it does after a restart of the agent.
func TestWithoutAPIServer(t *testing.T) {
	a, b := twoPods(t)
	wantAgentsReady(t)
	pings := pingBothWays(t, a, b, 4*time.Minute)
	byHand := podForPlugin(t)
	lab(t, "exec", "control", "pkill", "-9", "-x", "kube-apiserver")
	t.Cleanup(func() { lab(t, "up"); wantAgentsReady(t) })
	away := time.Now()
	callPlugin(t, byHand)
	killAgent(t, "node1", "true")
	eventually(t, time.Minute, func() error {
		out, err := try("exec", "node1", "curl", "-sS", "-m", "2", "http://127.0.0.1:9810/metrics")
		if err == nil && !strings.Contains(out, "\nheliograph_in_sync 1\n") {
			err = fmt.Errorf("the agent that started without an API server is not in sync")
		}
		return err
	})
	callPlugin(t, byHand)
	time.Sleep(time.Until(away.Add(time.Minute))) // the length of the outage is the test's subject
	if _, err := try("kubectl", "get", "--raw", "/readyz"); err == nil {
		t.Error("the API server answers: the test tested nothing")
	}
	lab(t, "up")
	wantAgentsReady(t)
	wantNoneLost(t, pings)
}

// podForPlugin makes a Pod that no node gets: the agents know it, as they know any pod that kubelet
// starts anew, and its policy can be in force.
func podForPlugin(t *testing.T) (uid string) {
	t.Helper()
	apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: by-hand, namespace: %s}
spec:
  schedulerName: nobody
  containers: [{name: none, image: registry.k8s.io/pause:3.10}]
`, namespace))
	return kubectl(t, "-n", namespace, "get", "pod", "by-hand", "-o", "jsonpath={.metadata.uid}")
}

// callPlugin adds this pod on node1 by hand, reaches it, and deletes it.
func callPlugin(t *testing.T, uid string) {
	t.Helper()
	script := `set -e
	ip netns add e2e; trap 'ip netns del e2e' EXIT
	export CNI_CONTAINERID=e2e-by-hand CNI_NETNS=/run/netns/e2e CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin
	export CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=` + namespace + `;K8S_POD_NAME=by-hand;K8S_POD_UID=` + uid + `"
	conf='{"cniVersion":"1.1.0","name":"heliograph","type":"heliograph"}'
	echo "$conf" | CNI_COMMAND=ADD /opt/cni/bin/heliograph
	for a in $(ip -n e2e -o addr show dev eth0 scope global | awk '{print $4}'); do ping -n -c 1 -W 2 ${a%/*} >/dev/null; done
	echo "$conf" | CNI_COMMAND=DEL /opt/cni/bin/heliograph`
	if out := lab(t, "exec", "node1", "sh", "-c", script); !strings.Contains(out, `"address"`) {
		t.Errorf("ADD answers %q", out)
	}
}
