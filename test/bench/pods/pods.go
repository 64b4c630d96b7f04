// SPDX-License-Identifier: Apache-2.0

// Package pods measures, in the lab, the time from a pod's creation to its first reply to a pod in
// the other rack, beside the same pod in its node's own network, which has nothing to wait for: what
// is left of the ratio above 1 is the pod network's.
package pods

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/heliograph-dev/heliograph/test/bench/table"
)

const (
	namespace = "heliograph-bench"
	rounds    = 10
	patience  = time.Minute
)

const manifest = `
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: ` + namespace + `}
spec:
  nodeName: %s
  hostNetwork: %t
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers:
    - name: server
      image: registry.k8s.io/e2e-test-images/agnhost:2.63.0
      imagePullPolicy: IfNotPresent
      args: [netexec, --http-port=%d, --udp-port=-1]
`

// Measure runs against the lab that is up.
func Measure(ctx context.Context) ([]table.Table, error) {
	l := lab{binary: filepath.Join("..", "..", "bin", "lab")}
	if out, err := l.run(ctx, "status"); err != nil {
		return nil, fmt.Errorf("the lab must be up (bin/lab up): %w\n%s", err, out)
	}
	if out, err := l.run(ctx, "kubectl", "create", "namespace", namespace); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	defer func() {
		_, _ = l.run(context.WithoutCancel(ctx), "kubectl", "delete", "namespace", namespace, "--wait=true")
	}()
	if _, err := l.firstReply(ctx, "asker", "node1", false, ""); err != nil {
		return nil, err
	}
	asker, err := l.run(ctx, "kubectl", "-n", namespace, "get", "pod", "asker", "-o", "jsonpath={.status.podIP}")
	if err != nil {
		return nil, err
	}
	var ours, host []time.Duration
	for i := range rounds {
		for _, hostNetwork := range []bool{false, true} {
			took, err := l.firstReply(ctx, fmt.Sprintf("pod-%d-%t", i, hostNetwork), "node3", hostNetwork, asker)
			if err != nil {
				return nil, err
			}
			if hostNetwork {
				host = append(host, took)
			} else {
				ours = append(ours, took)
			}
		}
	}
	slices.Sort(ours)
	slices.Sort(host)
	row := func(what string, a, b time.Duration) table.Row {
		return table.Row{
			What: what, Ours: table.Millis(a), Beside: "the same pod in the host's network", Theirs: table.Millis(b),
			Ratio: float64(a) / float64(b),
		}
	}
	return []table.Table{{
		Title: "From a pod's creation to its first reply across racks",
		Note:  fmt.Sprintf("%d pods each, one after the other, in the lab; kubectl and polling included on both sides.", rounds),
		Rows:  []table.Row{row("p50", table.Median(ours), table.Median(host)), row("worst", ours[len(ours)-1], host[len(host)-1])},
	}}, nil
}

// lab runs bin/lab.
type lab struct{ binary string }

func (l lab) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, l.binary, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("lab %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// firstReply creates a pod and asks it until it answers, from the pod with the address asker. The
// pod is deleted again; an empty asker means: do not ask, and let it stay.
func (l lab) firstReply(ctx context.Context, name, node string, hostNetwork bool, asker string) (time.Duration, error) {
	port := 8080
	if hostNetwork {
		port = 18080
	}
	file := filepath.Join(os.TempDir(), "heliograph-bench-"+name+".yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, manifest, name, node, hostNetwork, port), 0o600); err != nil {
		return 0, err
	}
	defer os.Remove(file) //nolint:errcheck // a scratch file
	start := time.Now()
	if _, err := l.run(ctx, "kubectl", "apply", "-f", file); err != nil {
		return 0, err
	}
	ip, err := l.awaitIP(ctx, name)
	if err != nil || asker == "" {
		return 0, err
	}
	script := fmt.Sprintf(`for p in /proc/[0-9]*; do
		nsenter --net=$p/ns/net ip -4 -o addr show dev eth0 2>/dev/null | grep -qF 'inet %s/32' && break
	done
	exec nsenter --net=$p/ns/net timeout 60 sh -c 'until curl -s -m 1 http://%s:%d/hostname; do :; done'`, asker, ip, port)
	if _, err := l.run(ctx, "exec", "node1", "sh", "-c", script); err != nil {
		return 0, err
	}
	took := time.Since(start)
	_, err = l.run(ctx, "kubectl", "-n", namespace, "delete", "pod", name, "--wait=true")
	return took, err
}

// awaitIP watches the pod until it has an address.
func (l lab) awaitIP(ctx context.Context, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	watch := exec.CommandContext(ctx, l.binary, "kubectl", "-n", namespace, "get", "pod", name, "-w", "--no-headers",
		"-o", "custom-columns=IP:.status.podIP")
	out, err := watch.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := watch.Start(); err != nil {
		return "", err
	}
	defer func() {
		cancel()
		_ = watch.Wait()
	}()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if ip := strings.TrimSpace(lines.Text()); ip != "" && ip != "<none>" {
			return ip, nil
		}
	}
	return "", fmt.Errorf("pod %s has no address within %s", name, patience)
}
