// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// toB is the path to node b.
var toB = path.Key{Node: "b", Family: bgp.IPv4}

func evidence(v path.Verdict) path.Evidence {
	e := path.Evidence{Verdict: v, Run: path.Window, RunSince: time.Now(), Sent: path.Window}
	if v == path.Lost {
		e.Lost = path.Window
	}
	return e
}

// Probes that are lost natively, while VXLAN's are answered, move the path in one nexthop object, and no
// route; so does a process that starts in the middle of that: it goes on with VXLAN.
func TestProbesDecide(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.speaker.now = nativeToB()
		stop := w.start()
		w.inSync()
		group := groupOf(t, "10.244.1.0/26")
		w.sees(time.Second, true, "10.244.1.0/26 nhid "+group+" via 192.168.11.2 dev up0", routesOfOurs...)
		w.sees(time.Second, true, "fwmark 0x68650003 lookup 80003", "ip", "rule", "show")
		w.sees(time.Second, true, "blackhole 10.244.0.0/16", "ip", "route", "show", "table", "80003")
		w.sees(time.Second, true, "10.244.1.1 nhid", "ip", "route", "show", "table", "80003")
		w.sees(time.Second, true, "via 192.168.11.2 dev up0", "ip", "route", "show", "table", "80001")

		lost := map[path.Key]path.Report{toB: {Methods: [path.Methods]path.Evidence{
			path.Native: evidence(path.Lost), path.VXLAN: evidence(path.Answers),
		}}}
		w.prober.finds(lost)
		w.sees(patience, true, "10.244.1.0/26 nhid "+group+" via 192.168.11.2 dev hel-vxlan", routesOfOurs...)
		eventually(t, patience, func() string { // the report comes after the kernel
			p := w.latest.Load().Paths[0]
			if p.Method != v1alpha1.PathVXLAN || !strings.Contains(p.Reason, "not Native: probes lost 5/5") {
				return fmt.Sprintf("path %s, reason %q", p.Method, p.Reason)
			}
			return ""
		})
		if !slices.Contains(w.told.lines, "b IPv4 VXLAN") {
			t.Errorf("told %v", w.told.lines)
		}
		if log := w.log.String(); !strings.Contains(log, `level=INFO msg="path changed" node=b family=IPv4 from=Native to=VXLAN why="not Native: probes lost 5/5`) {
			t.Errorf("logged\n%s", log)
		}
		stop()

		// BGP says native at once, and the first probes are not back yet.
		w.prober.finds(nil)
		w.start()
		w.inSync()
		w.sees(time.Second, true, "10.244.1.0/26 nhid "+group+" via 192.168.11.2 dev hel-vxlan", routesOfOurs...)
	})
}

// What was seen to come through is the routes' MTU, if it is less than the device's.
func TestPathMTU(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.speaker.now = nativeToB()
		w.start()
		w.inSync()
		small := evidence(path.Answers)
		small.MTU = 1400
		w.prober.finds(map[path.Key]path.Report{toB: {Methods: [path.Methods]path.Evidence{path.Native: small}}})
		w.sees(patience, true, "mtu 1400", "ip", "route", "show", "10.244.1.0/26", "proto", "80")
		small.MTU = 1500
		w.prober.finds(map[path.Key]path.Report{toB: {Methods: [path.Methods]path.Evidence{path.Native: small}}})
		w.sees(patience, false, "mtu 1400", "ip", "route", "show", "10.244.1.0/26", "proto", "80")
	})
}

// A node that falls silent is told of, and changes nothing; that too few answer is told when it lasts.
func TestSilence(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.speaker.now = nativeToB()
		for i := range w.source.objects.Nodes {
			w.source.objects.Nodes[i].Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		}
		w.start()
		w.inSync()
		condition := func() metav1.Condition { c := w.latest.Load().provenCondition(); return c }
		if c := condition(); c.Status != metav1.ConditionUnknown || c.Reason != "Probing" {
			t.Errorf("right after the start: %+v", c)
		}
		w.prober.finds(map[path.Key]path.Report{toB: {Methods: [path.Methods]path.Evidence{path.Native: evidence(path.Answers)}}})
		eventually(t, patience, func() string {
			if c := condition(); c.Status != metav1.ConditionTrue {
				return c.Reason + ": " + c.Message
			}
			return ""
		})
		w.prober.finds(map[path.Key]path.Report{toB: {Silent: true}})
		w.sees(patience, true, "10.244.1.0/26", routesOfOurs...)
		eventually(t, patience, func() string {
			r := w.latest.Load()
			if !r.Paths[0].unanswered() || r.Paths[0].Method != v1alpha1.PathNative {
				return r.Paths[0].Reason
			}
			return ""
		})
		eventually(t, quorumPatience+patience, func() string {
			if c := condition(); c.Status != metav1.ConditionFalse {
				return c.Reason + ": " + c.Message
			}
			return ""
		})
		w.told.mu.Lock()
		defer w.told.mu.Unlock()
		if !slices.Contains(w.told.lines, "b IPv4 unanswered") || !slices.Contains(w.told.lines, "no quorum") {
			t.Errorf("told %v", w.told.lines)
		}
	})
}

// The prober learns whom to ask, and by which key.
func TestProberIsTold(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.source.objects.Secrets = map[string]map[string][]byte{v1alpha1.ProbeSecret: {v1alpha1.ProbeSecretKey: []byte("k")}}
		w.start()
		w.inSync()
		w.prober.mu.Lock()
		defer w.prober.mu.Unlock()
		c := w.prober.config
		if string(c.Key) != "k" || c.Port != 4793 || len(c.Peers) != 2 || len(c.Locals) != 1 || c.Locals[0] != addr("10.244.0.1") {
			t.Errorf("config %+v", c)
		}
		if len(w.prober.targets) != 2 {
			t.Fatalf("targets %+v", w.prober.targets)
		}
		b := w.prober.targets[0]
		if b.Key != toB || b.Remote != addr("10.244.1.1") || b.Needs != [path.Methods]path.Need{path.VXLAN: path.Standby} || b.MTU[path.VXLAN] != 1450 {
			t.Errorf("target %+v", b)
		}
	})
}

// groupOf is the id of the nexthop object that a route refers to.
func groupOf(t *testing.T, prefix string) string {
	t.Helper()
	var id string
	eventually(t, patience, func() string {
		out := nettest.Cmd(t, "ip", "route", "show", prefix)
		_, rest, ok := strings.Cut(out, "nhid ")
		if !ok {
			return out
		}
		id, _, _ = strings.Cut(rest, " ")
		return ""
	})
	return id
}
