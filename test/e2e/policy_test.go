// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

var policyRounds = flag.Int("policy-rounds", 5, "how often the time from kubectl apply to a policy in force is measured")

// isolate lets nobody reach the pod rack2.
const isolate = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: isolate, namespace: %s}
spec:
  podSelector: {matchLabels: {app: rack2}}
  policyTypes: [Ingress]
`

// TestPolicyInForce measures how long after `kubectl apply` has returned a policy is in force, in both
// families, and how long after `kubectl delete` it is not. Nothing else is lost meanwhile.
func TestPolicyInForce(t *testing.T) {
	a, b := twoPods(t)
	wantAgentsReady(t)
	kubectl(t, "-n", namespace, "label", "--overwrite", "pod", "rack2", "app=rack2")
	load(t)
	back := []*pinger{ping(t, a, a.ip4, 4*time.Minute), ping(t, b, a.ip4, 4*time.Minute), ping(t, b, a.ip6, 4*time.Minute)}
	file := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(file, []byte(fmt.Sprintf(isolate, namespace)), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kubectl(t, "delete", "--ignore-not-found", "-f", file) })
	dialers := []*dialer{dial(t, a, netip.AddrPortFrom(b.ip4, 8080)), dial(t, a, netip.AddrPortFrom(b.ip6, 8080))}
	begun := time.Now()
	for _, d := range dialers {
		d.turns(t, begun, true)
	}
	used, start := agentCPU(t, "node3"), time.Now()
	var closed, opened []time.Duration
	for range *policyRounds {
		closed = append(closed, flips(t, dialers, false, "apply", "-f", file)...)
		opened = append(opened, flips(t, dialers, true, "delete", "-f", file)...)
	}
	t.Logf("in force after kubectl apply returned: median %s, at most %s (of %d)", median(closed), slices.Max(closed), len(closed))
	t.Logf("lifted after kubectl delete returned: median %s, at most %s", median(opened), slices.Max(opened))
	t.Logf("the agent of the pod's node used %s of CPU time in %s of these changes", agentCPU(t, "node3")-used, time.Since(start).Round(time.Second))
	if m := median(closed); m > 50*time.Millisecond {
		t.Errorf("in force after %s, want at most 50ms", m)
	}
	wantNoneLost(t, back)
}

// flips runs kubectl, and returns how long after its end each dialer's connections changed: negative
// where they had before.
func flips(t *testing.T, dialers []*dialer, open bool, args ...string) (took []time.Duration) {
	t.Helper()
	before := time.Now()
	kubectl(t, args...)
	returned := time.Now()
	for _, d := range dialers {
		took = append(took, d.turns(t, before, open).Sub(returned))
	}
	return took
}

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}
