// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"flag"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

var floodLoad = flag.Int("flood-policies", 1000, "how many policies TestPolicyFlood loads, and drops")

// floodPolicies let friends reach the pod rack2, and nobody else; and let pods of the churn reach nobody.
const floodPolicies = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: flood-in, namespace: %[1]s}
spec:
  podSelector: {matchLabels: {app: rack2}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {flood: friend}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: flood-out, namespace: %[1]s}
spec:
  podSelector: {matchLabels: {flood: churn}}
  policyTypes: [Egress]
`

// flood is connections of two pods to a third: of a friend, who must never be cut off, and of a stranger,
// who must never get in.
type flood struct {
	friend, stranger []*dialer
	server           pod
	begun            time.Time
	overflows        int // of the server, before
}

func startFlood(t *testing.T) *flood {
	t.Helper()
	friend, server := twoPods(t)
	stranger := startPod(t, "stranger", "node2", "")
	wantAgentsReady(t)
	kubectl(t, "-n", namespace, "label", "--overwrite", "pod", "rack2", "app=rack2")
	kubectl(t, "-n", namespace, "label", "--overwrite", "pod", "rack1", "flood=friend")
	apply(t, fmt.Sprintf(floodPolicies, namespace))
	t.Cleanup(func() {
		kubectl(t, "-n", namespace, "delete", "networkpolicy", "--ignore-not-found", "flood-in", "flood-out")
		kubectl(t, "-n", namespace, "label", "pod", "rack1", "flood-")
	})
	f := &flood{server: server}
	for _, ip := range []netip.Addr{server.ip4, server.ip6} {
		to := netip.AddrPortFrom(ip, 8080)
		f.friend, f.stranger = append(f.friend, dial(t, friend, to)), append(f.stranger, dial(t, stranger, to))
	}
	start := time.Now()
	for i := range f.friend {
		f.friend[i].turns(t, start, true)
		f.stranger[i].turns(t, start, false)
	}
	f.begun, f.overflows = time.Now(), overflows(t, server)
	return f
}

// overflows are the connections that a pod's program was too slow to accept.
func overflows(t *testing.T, p pod) (n int) {
	t.Helper()
	out := strings.Fields(lab(t, p.in("nstat", "-az", "TcpExtListenDrops")...))
	i := slices.Index(out, "TcpExtListenDrops")
	if i < 0 || i+1 == len(out) {
		t.Fatalf("nstat says %q", out)
	}
	if _, err := fmt.Sscan(out[i+1], &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// check fails if a friend was refused or a stranger let in since the flood was steady.
func (f *flood) check(t *testing.T) {
	t.Helper()
	count := func(dialers []*dialer, open bool) (all, wrong int) {
		for _, d := range dialers {
			for _, a := range d.stop(t) {
				if a.at.Before(f.begun) {
					continue
				}
				if all++; a.open != open {
					wrong++
				}
			}
		}
		return all, wrong
	}
	all, cut := count(f.friend, true)
	tried, leaked := count(f.stranger, false)
	slow := overflows(t, f.server) - f.overflows
	t.Logf("%d connections of a friend, %d refused (the server was too slow for %d); %d of a stranger, %d let in", all, cut, slow, tried, leaked)
	if cut > slow || leaked > 0 || all < 1000 || tried < 1000 {
		t.Errorf("%d of %d allowed connections were refused, %d of %d denied ones let in; want none (of thousands)", cut, all, leaked, tried)
	}
}

// TestPolicyFlood floods a pod while agents are killed, the dataplane changes, policies are loaded by the
// thousand, and pods come and go.
func TestPolicyFlood(t *testing.T) {
	t.Run("agents killed", func(t *testing.T) {
		f := startFlood(t)
		for range 2 {
			for _, node := range []string{"node1", "node2", "node3"} {
				killAgent(t, node, "true")
			}
			// Whoever restarts again before its peers have all its routes loses those that they kept for it (RFC
			// 4724 §4.2): that would test BGP.
			wantAgentsReady(t)
		}
		f.check(t)
	})
	t.Run("dataplane changed", func(t *testing.T) {
		t.Cleanup(func() { kubectl(t, "delete", "felixconfiguration", "default", "--ignore-not-found") })
		f := startFlood(t)
		for _, dataplane := range []string{"IPTables", "NFTables", "IPTables", "NFTables"} {
			apply(t, fmt.Sprintf("apiVersion: heliograph.dev/v1alpha1\nkind: FelixConfiguration\nmetadata: {name: default}\nspec: {dataplane: %s}\n", dataplane))
			wantDataplane(t, dataplane)
		}
		f.check(t)
	})
	t.Run("policies by the thousand", func(t *testing.T) {
		f := startFlood(t)
		l := newLoader(t)
		l.become(t, burden{policies: *floodLoad})
		l.dropPolicies(t)
		f.check(t)
	})
	t.Run("pods come and go", func(t *testing.T) {
		f := startFlood(t)
		for round := range 3 {
			churn(t, round)
		}
		f.check(t)
	})
}

func wantDataplane(t *testing.T, want string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		out, err := try("kubectl", "get", "nodestatuses", "-o", "jsonpath={.items[*].status.policy.dataplane}")
		if all := strings.Fields(out); err == nil && (len(all) != *nodes || strings.Count(out, want) != *nodes) {
			err = fmt.Errorf("policy is enforced by %v, want %s", all, want)
		}
		return err
	})
}

const churnPod = `
---
apiVersion: v1
kind: Pod
metadata: {name: %[2]s, namespace: %[1]s, labels: {flood: %[3]s}}
spec:
  nodeName: %[4]s
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers:
    - name: client
      image: registry.k8s.io/e2e-test-images/agnhost:2.63.0
      imagePullPolicy: IfNotPresent
      args: [connect, "%[5]s", --timeout=%[6]s]
`

// churn starts pods whose first deed is to connect to the pod stranger, which lets everybody in. Those that
// may not send must not get there, not even with their first packet; the others must.
func churn(t *testing.T, round int) {
	t.Helper()
	target := describe(t, "stranger", "node2")
	var manifest strings.Builder
	var names []string
	for i, node := range []string{"node1", "node2", "node3", "node1", "node2", "node3"} {
		kind, ip, patience := "churn", target.ip4, "1s"
		if i >= 3 {
			kind, ip, patience = "free", target.ip6, "10s"
		}
		name := fmt.Sprintf("%s-%d-%d", kind, round, i)
		names = append(names, name)
		fmt.Fprintf(&manifest, churnPod, namespace, name, kind, node, netip.AddrPortFrom(ip, 8080), patience)
	}
	apply(t, manifest.String())
	for _, name := range names {
		want := "Succeeded"
		if strings.HasPrefix(name, "churn") {
			want = "Failed"
		}
		var phase string
		eventually(t, 90*time.Second, func() error {
			var err error
			phase, err = try("kubectl", "-n", namespace, "get", "pod", name, "-o", "jsonpath={.status.phase}")
			if err == nil && phase != "Succeeded" && phase != "Failed" {
				err = fmt.Errorf("pod %s is %s", name, phase)
			}
			return err
		})
		if phase != want {
			t.Errorf("pod %s, which connects with its first packet: %s, want %s", name, phase, want)
		}
	}
	kubectl(t, append([]string{"-n", namespace, "delete", "pod", "--wait=false"}, names...)...)
}
