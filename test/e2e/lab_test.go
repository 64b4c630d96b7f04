// SPDX-License-Identifier: Apache-2.0

// Package e2e tests heliograph in the lab: a real Kubernetes on a real leaf-spine fabric, see
// hack/lab. `make test-e2e` runs it. Without a built lab, or without root, everything is skipped,
// which fails where skips are not allowed.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const namespace = "heliograph-e2e"

// nodes is how large the lab is. Most tests are made for 3.
var nodes = flag.Int("nodes", 3, "nodes of the lab")

// repo is the root of the tree.
var repo = filepath.Join("..", "..")

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

// wasUp says whether the lab was up before the tests: they leave it as they found it.
var wasUp bool

func isUp() bool { return exec.Command(labBinary(), "status").Run() == nil }

// run starts the lab if it is down, and leaves it as it was found.
func run(m *testing.M) (code int, err error) {
	if why := cannotRun(); why != "" {
		if os.Getenv("HELIOGRAPH_NO_SKIP") == "1" {
			return 1, fmt.Errorf("must not skip under HELIOGRAPH_NO_SKIP=1: %s", why)
		}
		fmt.Println("e2e: skipped:", why)
		return 0, nil
	}
	wasUp = isUp()
	up := exec.Command(labBinary(), "up", "--nodes="+strconv.Itoa(*nodes))
	up.Stdout, up.Stderr = os.Stdout, os.Stderr
	if !wasUp {
		defer func() {
			down := exec.Command(labBinary(), "down")
			down.Stdout, down.Stderr = os.Stdout, os.Stderr
			if downErr := down.Run(); downErr != nil && err == nil {
				code, err = 1, fmt.Errorf("lab down: %w", downErr)
			}
		}()
	}
	if err := up.Run(); err != nil {
		return 1, fmt.Errorf("lab up: %w", err)
	}
	defer func() {
		if !isUp() {
			return
		}
		_, deleteErr := try("kubectl", "delete", "namespace", namespace, "--ignore-not-found", "--timeout=90s")
		if deleteErr != nil && err == nil {
			code, err = 1, deleteErr
		}
	}()
	return m.Run(), nil
}

func cannotRun() string {
	if os.Geteuid() != 0 {
		return "the lab needs root"
	}
	if _, err := os.Stat(labBinary()); err != nil {
		return "no bin/lab: run make bin/lab image"
	}
	return ""
}

func labBinary() string { return filepath.Join(repo, "bin", "lab") }

// try runs a lab command and returns what it printed.
func try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, labBinary(), args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("lab %s: %w\n%s%s", strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return out.String(), nil
}

// lab runs a lab command that must succeed.
func lab(t *testing.T, args ...string) string {
	t.Helper()
	out, err := try(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return lab(t, append([]string{"kubectl"}, args...)...)
}

// apply applies a manifest. A new namespace needs a moment until it has its ServiceAccount.
func apply(t *testing.T, manifest string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		_, err := try("kubectl", "apply", "-f", file)
		return err
	})
}

// eventually waits until check returns nil.
func eventually(t *testing.T, within time.Duration, check func() error) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		err := check()
		took := time.Since(start)
		if err == nil {
			return took
		}
		if took > within {
			t.Fatalf("not within %s: %v", within, err)
		}
		time.Sleep(50 * time.Millisecond) // the poll interval; the deadline is above
	}
}

// pod is a running pod of the tests.
type pod struct {
	name, node string
	ip4, ip6   netip.Addr
	netns      string // a path inside of the node's mount namespace
}

const podManifest = `
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: v1
kind: Pod
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  nodeName: %[3]s
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers:
    - name: server
      image: registry.k8s.io/e2e-test-images/agnhost:2.63.0
      imagePullPolicy: IfNotPresent
      args: [netexec, --http-port=8080]
      ports: [{containerPort: 8080%[4]s}]
`

// startPod runs an agnhost server on a node, unless it runs already. extra goes into its port.
func startPod(t *testing.T, name, node, extra string) pod {
	t.Helper()
	apply(t, fmt.Sprintf(podManifest, namespace, name, node, extra))
	kubectl(t, "-n", namespace, "wait", "--for=condition=Ready", "--timeout=90s", "pod/"+name)
	return describe(t, name, node)
}

func describe(t *testing.T, name, node string) pod {
	t.Helper()
	var status struct {
		Status struct {
			PodIPs []struct{ IP netip.Addr } `json:"podIPs"`
		} `json:"status"`
	}
	if err := json.Unmarshal([]byte(kubectl(t, "-n", namespace, "get", "pod", name, "-o", "json")), &status); err != nil {
		t.Fatal(err)
	}
	p := pod{name: name, node: node}
	for _, ip := range status.Status.PodIPs {
		if ip.IP.Is4() {
			p.ip4 = ip.IP
		} else {
			p.ip6 = ip.IP
		}
	}
	if !p.ip4.IsValid() || !p.ip6.IsValid() {
		t.Fatalf("pod %s has addresses %v, want one of each family", name, status.Status.PodIPs)
	}
	p.netns = netnsOf(t, node, p.ip4)
	return p
}

// netnsOf finds the network namespace that holds an address, on a node.
func netnsOf(t *testing.T, node string, ip netip.Addr) string {
	t.Helper()
	script := fmt.Sprintf(`for p in /proc/[0-9]*; do
		nsenter --net=$p/ns/net ip -4 -o addr show dev eth0 2>/dev/null | grep -qF 'inet %s/32' && { echo $p/ns/net; exit 0; }
	done; exit 1`, ip)
	return strings.TrimSpace(lab(t, "exec", node, "sh", "-c", script))
}

// in runs a command in the pod's network namespace, with the machine's own programs.
func (p pod) in(cmd ...string) []string {
	return append([]string{"exec", p.node, "nsenter", "--net=" + p.netns}, cmd...)
}

// twoPods are a pod in each rack.
func twoPods(t *testing.T) (rack1, rack2 pod) {
	t.Helper()
	return startPod(t, "rack1", "node1", ""), startPod(t, "rack2", "node3", "")
}

// background is a command that runs until it is stopped.
type background struct {
	cmd *exec.Cmd
	out output
}

// output collects what a running command prints, while the test looks into it.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

// String returns what has been printed so far.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// start runs a lab command in the background; stop, or the end of the test, ends it.
func start(t *testing.T, args ...string) *background {
	t.Helper()
	b := &background{cmd: exec.Command(labBinary(), args...)}
	b.cmd.Stdout, b.cmd.Stderr = &b.out, &b.out
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.stop() })
	return b
}

// stop interrupts the command and returns what it printed.
func (b *background) stop() string {
	if b.cmd.ProcessState == nil {
		_ = b.cmd.Process.Signal(os.Interrupt)
		_ = b.cmd.Wait()
	}
	return b.out.String()
}

// wait waits until the command ends by itself.
func (b *background) wait(t *testing.T) string {
	t.Helper()
	if err := b.cmd.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(b.cmd.Args, " "), err, b.out.String())
	}
	return b.out.String()
}
