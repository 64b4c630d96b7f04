// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var policyRounds = flag.Int("policy-rounds", 5, "how often the time from kubectl apply to a policy in force is measured")

// isolate lets nobody reach the pod rack2 but those with a ticket.
const isolate = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: isolate, namespace: %s}
spec:
  podSelector: {matchLabels: {app: rack2}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {ticket: valid}}}]}]
`

// TestPolicyInForce measures how long after `kubectl apply` has returned a policy is in force, in both
// families, and how long after `kubectl delete` it is not; the same for a pod's label; and what that costs
// the agent. Nothing else is lost meanwhile.
func TestPolicyInForce(t *testing.T) {
	a, b := twoPods(t)
	wantAgentsReady(t)
	kubectl(t, "-n", namespace, "label", "--overwrite", "pod", "rack2", "app=rack2")
	file := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(file, []byte(fmt.Sprintf(isolate, namespace)), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		kubectl(t, "delete", "--ignore-not-found", "-f", file)
		kubectl(t, "-n", namespace, "label", "pod", "rack1", "ticket-")
	})
	var l *loader
	var rows []inForce
	for _, burden := range burdens(t) {
		if l == nil && (burden.policies > 0 || burden.pods > 0) {
			l = newLoader(t)
		}
		if l != nil {
			l.become(t, burden)
		}
		rows = append(rows, measureInForce(t, a, b, file, burden))
	}
	logInForce(t, rows)
}

// inForce is what one row of the table says.
type inForce struct {
	burden
	// From the return of kubectl until the packets show it, of each change and family.
	applied, deleted, labelled, unlabelled []time.Duration
	perChange                              time.Duration // CPU time of the agent, without what it uses idly
	idle                                   float64       // part of a core
	rss                                    float64       // bytes
}

func measureInForce(t *testing.T, a, b pod, file string, beside burden) inForce {
	t.Helper()
	back := []*pinger{ping(t, a, a.ip4, 4*time.Minute), ping(t, b, a.ip4, 4*time.Minute), ping(t, b, a.ip6, 4*time.Minute)}
	dialers := []*dialer{dial(t, a, netip.AddrPortFrom(b.ip4, 8080)), dial(t, a, netip.AddrPortFrom(b.ip6, 8080))}
	begun := time.Now()
	for _, d := range dialers {
		d.turns(t, begun, true)
	}
	r := inForce{burden: beside}
	before := useOf(t, "node3")
	time.Sleep(3 * time.Second) // what is idle has no condition to wait for
	start := useOf(t, "node3")
	r.idle = start.rate(before)
	for range *policyRounds {
		r.applied = append(r.applied, flips(t, dialers, false, "apply", "-f", file)...)
		r.labelled = append(r.labelled, flips(t, dialers, true, "-n", namespace, "label", "pod", "rack1", "ticket=valid")...)
		r.unlabelled = append(r.unlabelled, flips(t, dialers, false, "-n", namespace, "label", "pod", "rack1", "ticket-")...)
		r.deleted = append(r.deleted, flips(t, dialers, true, "delete", "-f", file)...)
	}
	end := useOf(t, "node3")
	idle := time.Duration(r.idle * float64(end.at.Sub(start.at)))
	r.perChange, r.rss = max(0, end.cpu-start.cpu-idle)/time.Duration(4**policyRounds), end.rss
	for _, d := range dialers {
		d.stop(t)
	}
	wantNoneLost(t, back)
	return r
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

// logInForce prints the table, and holds each row to its goal, and to the row before.
func logInForce(t *testing.T, rows []inForce) {
	t.Helper()
	var table strings.Builder
	fmt.Fprintln(&table, "\n| policies | pods | applied ms | deleted ms | label on ms | label off ms | agent CPU/change ms | idle | agent MiB |\n|---|---|---|---|---|---|---|---|---|")
	for i, r := range rows {
		fmt.Fprintf(&table, "| %d | %d | %s | %s | %s | %s | %.1f | %.1f %% | %.0f |\n", r.policies, r.pods,
			spread(r.applied), spread(r.deleted), spread(r.labelled), spread(r.unlabelled), float64(r.perChange)/1e6, 100*r.idle, r.rss/(1<<20))
		limit := 50 * time.Millisecond
		if r.policies > 0 {
			limit = 100 * time.Millisecond
		}
		if m := median(r.applied); m > limit {
			t.Errorf("beside %d policies and %d pods a policy is in force after %s, want at most %s", r.policies, r.pods, m, limit)
		}
		// Half of what grew tenfold is sublinear by far; a few ms are noise.
		const noise = 10 * time.Millisecond
		if i > 0 && r.perChange > 5*max(rows[i-1].perChange, noise) {
			t.Errorf("beside %d policies and %d pods a change costs %s, in the row before %s: that is not sublinear", r.policies, r.pods, r.perChange, rows[i-1].perChange)
		}
	}
	t.Log(table.String())
}

// spread is the median and the most, in milliseconds.
func spread(d []time.Duration) string {
	return fmt.Sprintf("%.0f (%.0f)", float64(median(d))/1e6, float64(slices.Max(d))/1e6)
}

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}
