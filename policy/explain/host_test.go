// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	// anyDevice is all of node2; its addresses are those of both families.
	anyDevice = `
apiVersion: v1
kind: Node
metadata: {name: node2}
status: {addresses: [{type: InternalIP, address: 192.168.11.12}, {type: InternalIP, address: "fd00:11::12"}]}
---
apiVersion: v1
kind: Node
metadata: {name: node1}
status: {addresses: [{type: InternalIP, address: 192.168.11.11}, {type: InternalIP, address: "fd00:11::11"}]}
---
apiVersion: heliograph.dev/v1alpha1
kind: HostEndpoint
metadata: {name: node2, labels: {role: node}}
spec: {node: node2, interfaceName: "*"}
`
	// oneDevice is another of node2, which expects the node's IPv6 address.
	oneDevice = `
apiVersion: heliograph.dev/v1alpha1
kind: HostEndpoint
metadata: {name: node2-eth0, labels: {role: free}}
spec: {node: node2, interfaceName: eth0, expectedIPs: ["fd00:11::12"]}
`
	closedHosts = `
apiVersion: heliograph.dev/v1alpha1
kind: GlobalNetworkPolicy
metadata: {name: hosts}
spec:
  selector: role == 'node'
  types: [Ingress, Egress]
  ingress: [{action: Allow, protocol: TCP, source: {nets: [192.168.11.11/32, "fd00:11::11/128"]}, destination: {ports: [9100]}}]
`
	bgpElsewhere = `
apiVersion: heliograph.dev/v1alpha1
kind: BGPConfiguration
metadata: {name: default}
spec: {listenPort: 1790}
---
apiVersion: heliograph.dev/v1alpha1
kind: BGPPeer
metadata: {name: tor}
spec: {peerIP: 192.168.11.1, asNumber: 65101, port: 1791}
`
	noFailsafes = `
apiVersion: heliograph.dev/v1alpha1
kind: FelixConfiguration
metadata: {name: node.node2}
spec: {failsafeInboundHostPorts: []}
`
)

func TestExplainHosts(t *testing.T) {
	const byRule, byTier = "allowed; egress -; ingress Allow by GlobalNetworkPolicy hosts ingress[0]", "denied; egress -; ingress Deny by tier default"
	several := "node node2 has HostEndpoints for *, eth0: packets are taken to pass "
	for _, tt := range []struct {
		name, from, to string
		objects        []string
		want, notes    []string
	}{
		{"no policy, no chain", "node/node1", "node/node2:9100", []string{anyDevice}, []string{"allowed", "IPv4+IPv6 node node2 TCP/9100: allowed; egress -; ingress Allow"}, nil},
		{"another node's own addresses", "node/node1", "node/node2:9100", []string{anyDevice, closedHosts}, []string{"allowed", "IPv4+IPv6 node node2 TCP/9100: " + byRule}, nil},
		{"another port", "node/node1", "node/node2:9101", []string{anyDevice, closedHosts}, []string{"denied", "IPv4+IPv6 node node2 TCP/9101: " + byTier}, nil},
		{"a pod, to its node", "dev/old", "node/node2:9101", []string{anyDevice, closedHosts}, []string{"denied", "IPv4 node node2 TCP/9101: denied; egress Allow; ingress Deny by tier default"}, nil},
		{"a node to itself", "node/node2", "node/node2:9101", []string{anyDevice, closedHosts}, []string{"allowed", "IPv4+IPv6 node node2 TCP/9101: allowed; egress -; ingress -"},
			[]string{"neither node node2 nor node node2 is a pod with an address of its own: no policy applies"}},
		{"a node to its own pod", "node/node2", "dev/old:80", []string{anyDevice, closedHosts}, []string{"allowed", "IPv4 dev/old TCP/80: allowed; egress -; ingress Allow, the pod's own node may talk to it"}, nil},
		{"a node to another's pod", "node/node2", "prod/web:80", []string{anyDevice, closedHosts}, []string{"denied", "IPv4+IPv6 prod/web TCP/80: denied; egress Deny by tier default; ingress Allow"}, nil},
		{"what a policy's peers are not", "192.0.2.1", "192.168.11.12:9100", []string{anyDevice, closedHosts}, []string{"denied", "IPv4 node node2 TCP/9100: " + byTier}, nil},
		{"a failsafe", "192.0.2.1", "node/node2:22", []string{anyDevice, closedHosts}, []string{"allowed", "IPv4 node node2 TCP/22: allowed; egress -; ingress Allow by Failsafe node ingress[17]"}, nil},
		{"no failsafe", "192.0.2.1", "node/node2:22", []string{anyDevice, closedHosts, noFailsafes}, []string{"denied", "IPv4 node node2 TCP/22: " + byTier}, nil},
		{"what agents need", "192.0.2.1", "node/node2:4789/udp", []string{anyDevice, closedHosts, noFailsafes}, []string{"allowed", "IPv4 node node2 UDP/4789: allowed; egress -; ingress Allow by Failsafe node ingress[0]"}, nil},
		{"a port that BGP is configured to have", "192.0.2.1", "node/node2:1790", []string{anyDevice, closedHosts, noFailsafes, bgpElsewhere}, []string{"allowed", "IPv4 node node2 TCP/1790: allowed; egress -; ingress Allow by Failsafe node ingress[5]"}, nil},
		{"one of a peer", "node/node2", "192.168.11.1:1791", []string{anyDevice, closedHosts, noFailsafes, bgpElsewhere}, []string{"allowed", "IPv4 192.168.11.1 TCP/1791: allowed; egress Allow by Failsafe node egress[5]; ingress -"}, nil},
		{"a device's, by the address", "node/node1", "node/node2:9101", []string{anyDevice, oneDevice, closedHosts}, []string{
			"mixed", "IPv4 node node2 TCP/9101: " + byTier, "IPv6 node node2 TCP/9101: allowed; egress -; ingress Allow",
		}, []string{several + "*"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, err := NewView(cluster(t, tt.objects...))
			if err != nil {
				t.Fatal(err)
			}
			a, err := v.Explain(query(t, tt.from, tt.to))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, brief(a)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.notes, a.Notes); diff != "" {
				t.Errorf("notes (-want +got):\n%s", diff)
			}
		})
	}
}
