// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// domainServices have a name each that is resolved to pods.
const domainServices = `
apiVersion: v1
kind: Service
metadata: {name: wanted, namespace: %[1]s}
spec: {clusterIP: None, ipFamilyPolicy: PreferDualStack, selector: {app: wanted}}
---
apiVersion: v1
kind: Service
metadata: {name: unwanted, namespace: %[1]s}
spec: {clusterIP: None, ipFamilyPolicy: PreferDualStack, selector: {app: unwanted}}
`

// domainPolicies let pods with a label ask DNS, and reach names below one domain; nothing else.
var domainPolicies = map[string]string{
	"clusternetworkpolicies.policy.networking.k8s.io": `
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: e2e-names}
spec:
  tier: Admin
  priority: 10
  subject: {pods: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %[1]s}}, podSelector: {matchLabels: {names: only}}}}
  egress:
    - action: Accept
      to: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}}]
    - action: Accept
      to: [{domainNames: ["*.wanted.%[1]s.svc.cluster.local", "wanted.%[1]s.svc.cluster.local"]}]
      protocols: [{tcp: {destinationPort: {number: 8080}}}]
    - action: Deny
      to: [{networks: [0.0.0.0/0, "::/0"]}]
`,
	"networkpolicies.heliograph.dev": `
apiVersion: heliograph.dev/v1alpha1
kind: NetworkPolicy
metadata: {name: e2e-names, namespace: %[1]s}
spec:
  selector: names == 'only'
  types: [Egress]
  egress:
    - {action: Allow, destination: {selector: k8s-app == 'kube-dns', namespaceSelector: all()}}
    - {action: Allow, protocol: TCP, destination: {domains: ["*.wanted.%[1]s.svc.cluster.local", "wanted.%[1]s.svc.cluster.local"], ports: [8080]}}
`,
}

// TestDomainNames reaches a pod by a name that policy allows: with the first packet after the answer, and not
// by any other name, nor by its address before somebody has asked for the name.
func TestDomainNames(t *testing.T) {
	client, other := twoPods(t)
	wantAgentsReady(t)
	kubectl(t, "apply", "--server-side", "-k", "../../config/crd/network-policy-api")
	kubectl(t, "wait", "--for=condition=Established", "--timeout=30s", "crd/clusternetworkpolicies.policy.networking.k8s.io")
	kubectl(t, "-n", namespace, "label", "--overwrite", "pod", "rack1", "names=only")
	kubectl(t, "-n", namespace, "label", "--overwrite", "pod", "rack2", "app=unwanted")
	t.Cleanup(func() {
		kubectl(t, "-n", namespace, "delete", "--ignore-not-found", "service", "wanted", "unwanted")
		kubectl(t, "-n", namespace, "label", "pod", "rack1", "names-")
	})
	apply(t, fmt.Sprintf(domainServices, namespace))
	for kind, manifest := range domainPolicies {
		t.Run(kind, func(t *testing.T) {
			t.Cleanup(func() { kubectl(t, "-n", namespace, "delete", "--ignore-not-found", kind, "e2e-names") })
			apply(t, fmt.Sprintf(manifest, namespace))
			// Agents ask once a minute whether a kind has come that the cluster lacked.
			eventually(t, 90*time.Second, func() error {
				if reaches(client, other.ip4.String()) == nil {
					return errors.New("the policy is not in force")
				}
				return nil
			})
			for round := range 2 {
				testDomainNames(t, client, round > 0)
			}
			kubectl(t, "-n", namespace, "delete", kind, "e2e-names")
			eventually(t, 10*time.Second, func() error { return reaches(client, "unwanted."+namespace+".svc.cluster.local.") })
			eventually(t, 10*time.Second, func() error {
				if out, err := try("exec", client.node, "nft", "list", "tables"); err != nil || strings.Contains(out, "heliograph-dns") {
					return fmt.Errorf("the table of DNS is left (%w)\n%s", err, out)
				}
				return nil
			})
		})
	}
}

// testDomainNames starts another pod each time, at an address that nobody has been told of.
func testDomainNames(t *testing.T, client pod, kill bool) {
	t.Helper()
	wanted, unwanted := "wanted."+namespace+".svc.cluster.local.", "unwanted."+namespace+".svc.cluster.local."
	server := startPod(t, "named", "node3", "")
	kubectl(t, "-n", namespace, "label", "pod", "named", "app=wanted")
	for _, ip := range []string{server.ip4.String(), server.ip6.String()} {
		if reaches(client, ip) == nil {
			t.Errorf("%s is reached before anybody has asked for its name", ip)
		}
	}
	wantResolved(t, client, wanted, server.ip4.String(), server.ip6.String())
	// What is in an answer that the pod has got is in force: no try may fail.
	for _, to := range []string{server.ip4.String(), server.ip6.String(), wanted} {
		if err := reaches(client, to); err != nil {
			t.Error(err)
		}
	}
	if reaches(client, unwanted) == nil {
		t.Errorf("%s is reached", unwanted)
	}
	if kill {
		killAgent(t, client.node, "true")
		wantAgentsReady(t)
		if err := reaches(client, server.ip4.String()); err != nil {
			t.Errorf("after the agent was killed: %v", err)
		}
	}
	kubectl(t, "-n", namespace, "delete", "pod", "named")
}

// reaches connects once, for less than the second after which a SYN is sent again.
func reaches(from pod, to string) error {
	out, err := try("kubectl", "-n", namespace, "exec", from.name, "--", "/agnhost", "connect", "--timeout=900ms", net.JoinHostPort(to, "8080"))
	if err != nil {
		return fmt.Errorf("%s does not reach %s: %w\n%s", from.name, to, err, out)
	}
	return nil
}

// wantResolved waits until DNS tells a pod the addresses of a name, and no longer those of pods that are gone.
// The pod asks with this machine's program.
func wantResolved(t *testing.T, from pod, name string, want ...string) {
	t.Helper()
	slices.Sort(want)
	eventually(t, time.Minute, func() error {
		var all string
		for _, kind := range []string{"A", "AAAA"} {
			out, err := try(from.in("dig", "+short", "+tries=1", "@10.96.0.10", name, kind)...)
			if err != nil {
				return err
			}
			all += out + "\n"
		}
		got := strings.Fields(all)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("%s is %q, want %s", name, got, want)
		}
		return nil
	})
}
