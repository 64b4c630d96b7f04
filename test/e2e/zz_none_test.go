// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const referenceConf = `{"cniVersion":"1.0.0","name":"reference","plugins":[{"type":"ptp",` +
	`"ipam":{"type":"host-local","ranges":[[{"subnet":"10.200.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`

// TestLabWithoutNetwork starts a lab without a network plugin: its nodes stay NotReady until
// somebody installs one. It needs a lab of its own, so its file is the last
func TestLabWithoutNetwork(t *testing.T) {
	lab(t, "down")
	t.Cleanup(func() {
		lab(t, "down")
		if wasUp {
			lab(t, "up")
		}
	})
	lab(t, "up", "--cni=none", "--nodes=1")
	if out := kubectl(t, "get", "nodes", "--no-headers"); strings.Count(out, "NotReady") != 1 {
		t.Fatalf("nodes are\n%s\nwant one, NotReady", out)
	}
	lab(t, "exec", "node1", "sh", "-c", fmt.Sprintf(
		`cp /usr/lib/cni/ptp /usr/lib/cni/host-local /opt/cni/bin/ && mkdir -p /etc/cni/net.d && echo '%s' >/etc/cni/net.d/10-reference.conflist`, referenceConf))
	kubectl(t, "wait", "--for=condition=Ready", "--timeout=60s", "node/node1")
	apply(t, fmt.Sprintf(podManifest, namespace, "reference", "node1", ""))
	kubectl(t, "-n", namespace, "wait", "--for=condition=Ready", "--timeout=90s", "pod/reference")
	ip := kubectl(t, "-n", namespace, "get", "pod", "reference", "-o", "jsonpath={.status.podIP}")
	if !strings.HasPrefix(ip, "10.200.0.") {
		t.Errorf("the pod has %s, want an address of host-local's range", ip)
	}
	eventually(t, 10*time.Second, func() error {
		_, err := try("exec", "node1", "curl", "-sS", "-m", "2", "http://"+ip+":8080/hostname")
		return err
	})
}
