// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// leftovers prints whatever of heliograph's is on a node; nothing if nothing is.
const leftovers = `
ip -o link | grep -oE 'hel[0-9a-z-]+' ; ip route show proto 80; ip -6 route show proto 80
ip nexthop show proto 80; ip rule show | grep 'proto 80'; ip addr show dev lo | grep -E '10[.]244|fd00:244'
nft list tables | grep -w heliograph
ls /opt/cni/bin /etc/cni/net.d | grep heliograph
find /var/lib/heliograph /run/heliograph -type f -o -type s 2>/dev/null
pgrep -fa '^/heliograph'
true`

// TestUninstall takes heliograph away, as a user would, and brings it back. Its file is the last of the
// tests, since what it does ends every pod's network.
func TestUninstall(t *testing.T) {
	startPod(t, "rack1", "node1", "")
	config, err := filepath.Abs(filepath.Join(repo, "config", "default"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Pods from before have lost their network for good: new ones take their place, as soon as
		// there is a plugin again that the runtime can ask to disconnect them.
		kubectl(t, "delete", "namespace", namespace, "--wait=false")
		kubectl(t, "-n", "kube-system", "delete", "pods", "-l", "k8s-app=kube-dns", "--grace-period=1", "--wait=false")
		lab(t, "up")
		wantAgentsReady(t)
	})
	for _, node := range []string{"node1", "node2", "node3"} {
		if out := lab(t, "exec", node, "sh", "-c", leftovers); strings.TrimSpace(out) == "" {
			t.Fatalf("nothing of heliograph's is on %s: the test would test nothing", node)
		}
	}
	kubectl(t, "delete", "-k", config, "--timeout=90s")
	for _, node := range []string{"node1", "node2", "node3"} {
		eventually(t, 45*time.Second, func() error {
			out, err := try("exec", node, "sh", "-c", leftovers)
			if err == nil && strings.TrimSpace(out) != "" {
				err = errLeft{node, out}
			}
			return err
		})
	}
}

type errLeft struct{ node, what string }

func (e errLeft) Error() string { return "left on " + e.node + ":\n" + e.what }
