// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestHostPort reaches a pod by a port of its node, from the other rack.
func TestHostPort(t *testing.T) {
	startPod(t, "hostport", "node3", ", hostPort: 18888")
	t.Cleanup(func() { kubectl(t, "-n", namespace, "delete", "pod", "hostport") })
	for _, host := range []string{"192.168.12.13", "[fd00:12::13]"} {
		eventually(t, 10*time.Second, func() error {
			out, err := try("exec", "node1", "curl", "-sS", "-m", "2", "http://"+host+":18888/hostname")
			if err == nil && out != "hostport" {
				err = fmt.Errorf("%s answers %q", host, out)
			}
			return err
		})
	}
}

// TestNATOutgoing pings a host outside of the cluster from a pod: it must see the node's address.
func TestNATOutgoing(t *testing.T) {
	a := startPod(t, "rack1", "node1", "")
	for _, tt := range []struct{ to, node, pod string }{
		{"192.168.10.10", "192.168.11.11", a.ip4.String()},
		{"fd00:10::10", "fd00:11::11", a.ip6.String()},
	} {
		d := capture(t, "control", "icmp or icmp6")
		lab(t, a.in("ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", tt.to)...)
		seen := d.stop()
		if !strings.Contains(seen, tt.node+" > "+tt.to) || strings.Contains(seen, tt.pod+" > ") {
			t.Errorf("%s saw\n%s\nwant echo requests from %s, not from %s", tt.to, seen, tt.node, tt.pod)
		}
	}
}
