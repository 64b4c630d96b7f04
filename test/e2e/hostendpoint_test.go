// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// hostServers listen on the node itself, at a port that is a failsafe and at one that is none.
const hostServers = `
apiVersion: v1
kind: Pod
metadata: {name: on-host, namespace: %[1]s}
spec:
  nodeName: %[2]s
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers:
    - {name: ssh, image: registry.k8s.io/e2e-test-images/agnhost:2.63.0, imagePullPolicy: IfNotPresent, args: [netexec, --http-port=22, --udp-port=-1]}
    - {name: web, image: registry.k8s.io/e2e-test-images/agnhost:2.63.0, imagePullPolicy: IfNotPresent, args: [netexec, --http-port=8099, --udp-port=-1]}
`

// closedHost denies all that the node sends and receives, but for failsafes.
const closedHost = `
apiVersion: heliograph.dev/v1alpha1
kind: HostEndpoint
metadata: {name: e2e, labels: {e2e: host}}
spec: {node: %s, interfaceName: "*"}
---
apiVersion: heliograph.dev/v1alpha1
kind: GlobalNetworkPolicy
metadata: {name: e2e-host}
spec: {selector: e2e == 'host', namespaceSelector: global(), types: [Ingress, Egress]}
`

// TestHostEndpoint closes a node by a policy: what holds the cluster together stays, as do its pods; a port of
// the node that is no failsafe is refused, until the policy is gone.
func TestHostEndpoint(t *testing.T) {
	const node = "node3"
	a, b := twoPods(t)
	wantAgentsReady(t)
	apply(t, fmt.Sprintf(hostServers, namespace, node))
	t.Cleanup(func() {
		kubectl(t, "delete", "--ignore-not-found", "globalnetworkpolicies.heliograph.dev", "e2e-host")
		kubectl(t, "delete", "--ignore-not-found", "hostendpoints.heliograph.dev", "e2e")
		kubectl(t, "-n", namespace, "delete", "--ignore-not-found", "pod", "on-host")
	})
	text := kubectl(t, "get", "node", node, "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
	ssh, web := map[string]*dialer{}, map[string]*dialer{}
	for _, field := range strings.Fields(text) {
		ip := netip.MustParseAddr(field)
		ssh[field], web[field] = dial(t, a, netip.AddrPortFrom(ip, 22)), dial(t, a, netip.AddrPortFrom(ip, 8099))
	}
	turn := func(all map[string]*dialer, open bool) {
		t.Helper()
		from := time.Now()
		for _, d := range all {
			d.turns(t, from, open)
		}
	}
	turn(ssh, true)
	turn(web, true)
	pings := pingBothWays(t, a, b, 4*time.Minute)
	apply(t, fmt.Sprintf(closedHost, node))
	turn(web, false)
	turn(ssh, true)
	// Long enough for a node to be found dead, and for a session to end.
	time.Sleep(60 * time.Second) // that nothing happens has no condition to wait for
	wantAgentsReady(t)
	ready := kubectl(t, "get", "node", node, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	if strings.TrimSpace(ready) != "True" {
		t.Errorf("%s is Ready=%s", node, ready)
	}
	turn(ssh, true)
	for _, p := range pings {
		if r := p.stop(t); r.lost() > 0 {
			t.Errorf("ping %s: %d of %d lost", p.name, r.lost(), r.sent)
		}
	}
	kubectl(t, "delete", "globalnetworkpolicies.heliograph.dev", "e2e-host")
	turn(web, true)
}
