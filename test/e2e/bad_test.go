// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// wantSaid waits until kubectl says something of an object.
func wantSaid(t *testing.T, want string, get ...string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		out, err := try(append([]string{"kubectl", "get"}, get...)...)
		if err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("%s says %q, want %q in it", strings.Join(get, " "), out, want)
		}
		return err
	})
}

const readyMessage = `jsonpath={.status.conditions[?(@.type=="Ready")].reason}: {.status.conditions[?(@.type=="Ready")].message}`

// TestBadObjects applies what cannot work. Each says so itself, and no ping is lost.
func TestBadObjects(t *testing.T) {
	a, b := twoPods(t)
	wantAgentsReady(t)
	pings := pingBothWays(t, a, b, 3*time.Minute)
	for _, tt := range []struct{ name, kind, spec, want string }{
		{"overlaps", "IPPool", "{cidr: 10.244.128.0/20}", "default-ipv4"},
		{"no-secret", "BGPPeer", "{peerIP: 192.168.11.99, asNumber: 65101, node: node1, password: {secretKeyRef: {name: nowhere, key: password}}}", "nowhere"},
		{"wrong-as", "BGPPeer", `{peerIP: "fd00:12::1", asNumber: 65199, node: node3}`, "AS"},
		{"bad-selector", "BGPPeer", "{peerIP: 192.168.11.98, asNumber: 65101, nodeSelector: 'rack =='}", "nodeSelector"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Cleanup(func() { kubectl(t, "delete", tt.kind, tt.name) })
			apply(t, fmt.Sprintf("apiVersion: heliograph.dev/v1alpha1\nkind: %s\nmetadata: {name: %s}\nspec: %s\n", tt.kind, tt.name, tt.spec))
			wantSaid(t, tt.want, tt.kind, tt.name, "-o", readyMessage)
		})
	}
	for _, tt := range []struct{ name, manifest, want string }{
		{"host bits", "kind: IPPool\nmetadata: {name: refused}\nspec: {cidr: 10.9.0.1/16}", "without host bits"},
		{"block size", "kind: IPPool\nmetadata: {name: refused}\nspec: {cidr: 10.9.0.0/24, blockSize: 22}", "blockSize is larger than the pool"},
		{"peer address", "kind: BGPPeer\nmetadata: {name: refused}\nspec: {peerIP: leaf1, asNumber: 65101}", "peerIP must be an IP address"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			script := fmt.Sprintf("printf 'apiVersion: heliograph.dev/v1alpha1\\n%s\\n' >/tmp/refused.yaml", strings.ReplaceAll(tt.manifest, "\n", "\\n"))
			lab(t, "exec", "control", "sh", "-c", script)
			if _, err := try("kubectl", "apply", "-f", "/tmp/refused.yaml"); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the API server says %v, want %q", err, tt.want)
			}
		})
	}
	wantNoneLost(t, pings)
}

// TestForeignRoute puts somebody else's route in front of ours: it is reported, and left alone.
func TestForeignRoute(t *testing.T) {
	wantAgentsReady(t)
	blocks := strings.Fields(kubectl(t, "get", "ipblocks", "-l", "heliograph.dev/node=node3", "-o", "jsonpath={.items[*].spec.cidr}"))
	route := []string{blocks[0], "via", "192.168.11.1", "metric", "5"}
	lab(t, append([]string{"exec", "node1", "ip", "route", "add"}, route...)...)
	removed := false
	remove := func() {
		if !removed {
			removed = true
			lab(t, append([]string{"exec", "node1", "ip", "route", "del"}, route...)...)
		}
	}
	t.Cleanup(remove)
	wantSaid(t, "foreign route", "nodestatus", "node1", "-o", "jsonpath={.status.problems}")
	if out := lab(t, "exec", "node1", "ip", "route", "show", blocks[0]); !strings.Contains(out, "metric 5") || !strings.Contains(out, "metric 80") {
		t.Errorf("routes to %s are\n%s\nwant the foreign one untouched, and ours beside it", blocks[0], out)
	}
	remove()
	eventually(t, 30*time.Second, func() error {
		out, err := nodeStatus("node1", "{.status.problems}")
		if err == nil && out != "" {
			err = fmt.Errorf("problems are still %s", out)
		}
		return err
	})
}

// TestCorruptAddressStore overwrites the file of addresses in use, and kills the agent.
func TestCorruptAddressStore(t *testing.T) {
	a, b := twoPods(t)
	wantAgentsReady(t)
	pings := pingBothWays(t, a, b, 3*time.Minute)
	killAgent(t, "node1", "head -c 4096 /dev/urandom >/var/lib/heliograph/ipam.db")
	wantSaid(t, "ipam.db", "nodestatus", "node1", "-o", "jsonpath={.status.problems}")
	wantAgentsReady(t)
	// The address of the pod that runs must not be given away: new pods get others.
	other := startPod(t, "other", "node1", "")
	if other.ip4 == a.ip4 || other.ip6 == a.ip6 {
		t.Errorf("a new pod has %s and %s, which pod %s has already", other.ip4, other.ip6, a.name)
	}
	kubectl(t, "-n", namespace, "delete", "pod", "other")
	eventually(t, 30*time.Second, func() error { // deleted in the API does not mean gone from the node
		out, err := try("exec", "node1", "ip", "route", "show", other.ip4.String())
		if err == nil && out != "" {
			err = fmt.Errorf("there is still a route to the deleted pod: %s", out)
		}
		return err
	})
	wantNoneLost(t, pings)
	lab(t, "exec", "node1", "sh", "-c", "rm -f /var/lib/heliograph/ipam.db.corrupt-*")
}
