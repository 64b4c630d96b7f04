// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// inWorld runs a test with a kernel of its own.
func inWorld(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	need(t)
	nettest.Run(t, func(t *testing.T) { f(t, newWorld(t)) })
}

var routesOfOurs = []string{"ip", "route", "show", "proto", "80"}

// nativeToB is what BGP says when b itself announces its block.
func nativeToB() bgp.Snapshot {
	return bgp.Snapshot{Running: true, Paths: []bgp.Path{
		{Prefix: prefix("10.244.1.0/26"), NextHop: addr("192.168.11.2"), Peer: addr("192.168.11.2"), Kind: bgp.PeerNode},
	}}
}

func TestLoopPrograms(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.start()
		w.inSync()
		routes := nettest.Cmd(t, routesOfOurs[0], routesOfOurs[1:]...)
		for _, want := range []string{"blackhole 10.244.0.0/26", "10.244.1.0/26 nhid", "10.244.2.0/26 nhid"} {
			if !strings.Contains(routes, want) {
				t.Errorf("no %q in\n%s", want, routes)
			}
		}
		for text, command := range map[string]string{
			"10.244.0.1/32":      "ip address show dev lo",
			"dst 192.168.12.3":   "bridge fdb show dev hel-vxlan",
			"10.244.0.0/16":      "nft list table inet heliograph",
			"192.168.12.3 lladd": "ip neigh show dev hel-vxlan",
		} {
			w.sees(time.Second, true, text, strings.Fields(command)...)
		}
		w.speaker.set(nativeToB())
		w.sees(patience, true, "10.244.1.0/26 nhid", routesOfOurs...)
		w.sees(patience, true, "via 192.168.11.2 dev up0", "ip", "nexthop", "show", "protocol", "80")
		if r := w.latest.Load(); r.MTU != 1500 || len(r.Paths) != 2 || r.PodIPs[0] != addr("10.244.0.1") || r.Blocks[0].InUse != 1 {
			t.Errorf("report %+v", r)
		}
		if w.speaker.desired.Global.ASN != 64512 || len(w.speaker.desired.Origins) != 1 {
			t.Errorf("the speaker was told %+v", w.speaker.desired)
		}
	})
}

// A node that the API server forgets for a moment keeps all it has, and its pods are served.
func TestLoopHoldsWhatAnUnknownNodeHas(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.start()
		w.inSync()
		before := nettest.Cmd(t, routesOfOurs[0], routesOfOurs[1:]...)
		w.source.set(true, func() { w.source.objects = snapshot.Objects{} })
		eventually(t, patience, func() string {
			if r := w.latest.Load(); r.InSync || !strings.Contains(fmt.Sprint(r.Problems), errUnknownNode.Error()) {
				return fmt.Sprint("not reported: ", r.Problems)
			}
			return ""
		})
		if after := nettest.Cmd(t, routesOfOurs[0], routesOfOurs[1:]...); after != before {
			t.Errorf("routes were\n%s\nand are\n%s", before, after)
		}
		w.device("hel00000000001")
		w.pods.set(pod("hel00000000001", "10.244.0.5"))
		if err := w.sync(); err != nil {
			t.Errorf("a pod is refused: %v", err)
		}
		w.sees(0+time.Second, true, "10.244.0.5 dev hel00000000001", routesOfOurs...)
		if r := w.latest.Load(); r.InSync {
			t.Error("a run for the pods made the agent forget what it does not know")
		}
		w.source.set(true, func() { w.source.objects = cluster() })
		w.inSync()
		if n := w.log.count("not in sync; trying again"); n != 1 {
			t.Errorf("the failure was logged %d times:\n%s", n, w.log.String())
		}
	})
}

// What could not be read is read again though nobody pokes, and though pods come and go meanwhile.
func TestLoopReadsAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.start()
		w.inSync()
		w.source.set(true, func() { w.source.err = errors.New("the cache is not started") })
		eventually(t, patience, func() string {
			if w.latest.Load().InSync {
				return "not reported"
			}
			return ""
		})
		if err := w.sync(); err != nil {
			t.Error(err)
		}
		w.source.set(false, func() {
			w.source.err, w.source.objects.Blocks = nil, w.source.objects.Blocks[:2]
		})
		w.inSync()
		w.sees(time.Second, false, "10.244.2.0/26", routesOfOurs...)
	})
}

// A cold start without a Node writes nothing at all, and refuses pods.
func TestLoopWaitsForItsNode(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		nettest.Cmd(t, "ip", "route", "add", "blackhole", "10.244.9.0/26", "proto", "80", "metric", "80") // of an earlier agent
		w.source.objects = snapshot.Objects{}
		w.start()
		if err := w.sync(); !errors.Is(err, errUnknownNode) {
			t.Errorf("a pod's ADD ends with %v, want %v", err, errUnknownNode)
		}
		w.sees(time.Second, true, "10.244.9.0/26", routesOfOurs...)
		if out, err := exec.Command("nft", "list", "table", "inet", "heliograph").CombinedOutput(); err == nil {
			t.Errorf("something was written:\n%s", out)
		}
		w.source.set(true, func() { w.source.objects = cluster() })
		w.inSync()
		w.sees(time.Second, false, "10.244.9.0/26", routesOfOurs...)
	})
}

func TestLoopStartsFromDisk(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		disk := cluster()
		w.source.synced, w.source.objects, w.source.disk = false, snapshot.Objects{}, &disk
		w.start()
		w.inSync()
		r := w.latest.Load()
		if !r.FromDisk || !strings.Contains(fmt.Sprint(r.Problems), "copy on disk") {
			t.Errorf("report does not tell: %+v", r)
		}
		w.sees(time.Second, true, "10.244.2.0/26 nhid", routesOfOurs...)
		if w.source.saves != 0 {
			t.Error("the copy on disk was written over by itself")
		}
		w.source.set(true, func() {
			w.source.synced, w.source.objects = true, cluster()
			w.source.objects.Blocks = w.source.objects.Blocks[:2]
		})
		w.sees(patience, false, "10.244.2.0/26", routesOfOurs...)
		eventually(t, patience, func() string {
			if r := w.latest.Load(); r.FromDisk {
				return "still from disk"
			}
			w.source.mu.Lock()
			defer w.source.mu.Unlock()
			if len(w.source.disk.Blocks) != 2 {
				return "not saved"
			}
			return ""
		})
	})
}

// What did not change is not saved again, whatever else makes the loop run.
func TestLoopSavesOnChange(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.start()
		w.inSync()
		for range 3 {
			before := w.latest.Load().Generation
			w.speaker.set(nativeToB())
			eventually(t, patience, func() string {
				if w.latest.Load().Generation == before {
					return "no run"
				}
				return ""
			})
		}
		w.source.mu.Lock()
		defer w.source.mu.Unlock()
		if w.source.saves != 1 {
			t.Errorf("saved %d times, want once", w.source.saves)
		}
	})
}

func TestLoopHealsDrift(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.start()
		w.inSync()
		for _, tt := range []struct{ name, damage, look, text string }{
			{"a route is deleted", "ip route del 10.244.2.0/26 metric 80", "ip route show proto 80", "10.244.2.0/26 nhid"},
			{"a route is replaced", "ip route replace blackhole 10.244.2.0/26 metric 80 proto 80", "ip route show proto 80", "10.244.2.0/26 nhid"},
			{"all nexthop objects are flushed", "ip nexthop flush protocol 80", "ip route show proto 80", "10.244.2.0/26 nhid"},
			{"the FDB is flushed", "bridge fdb flush dev hel-vxlan", "bridge fdb show dev hel-vxlan", "dst 192.168.12.3"},
			{"a neighbour is deleted", "ip neigh del 192.168.12.3 dev hel-vxlan", "ip neigh show dev hel-vxlan", "192.168.12.3 lladdr"},
			{"the tunnel is down", "ip link set hel-vxlan down", "ip link show hel-vxlan", "UP,LOWER_UP"},
			{"the tunnel is gone", "ip link del hel-vxlan", "bridge fdb show dev hel-vxlan", "dst 192.168.12.3"},
			{"the address is deleted", "ip address del 10.244.0.1/32 dev lo", "ip address show dev lo", "10.244.0.1/32"},
			{"our table is deleted", "nft delete table inet heliograph", "nft list table inet heliograph", "10.244.0.0/16"},
			{"our sets are emptied", "nft flush set inet heliograph nodes4", "nft list table inet heliograph", "192.168.12.3"},
		} {
			command := strings.Fields(tt.damage)
			if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil { //nolint:gosec // constants
				t.Logf("%s: cannot: %v %s", tt.name, err, out)
				continue
			}
			t.Log(tt.name)
			w.sees(time.Second, true, tt.text, strings.Fields(tt.look)...)
		}
		w.inSync()
		w.sees(time.Second, true, "10.244.2.0/26 nhid", routesOfOurs...)
	})
}

// Sync returns when the route exists, and a run for pods alone computes nothing else.
func TestLoopSyncWaitsForTheRoute(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.start()
		w.inSync()
		for i := range 5 {
			device := fmt.Sprintf("hel0000000000%d", i)
			w.device(device)
			w.pods.set(append(w.pods.attachments(), pod(device, fmt.Sprintf("10.244.0.%d", 5+i)))...)
			if err := w.sync(); err != nil {
				t.Fatal(err)
			}
			if out := nettest.Cmd(t, routesOfOurs[0], routesOfOurs[1:]...); !strings.Contains(out, "dev "+device) {
				t.Errorf("an ADD would have been answered without its route:\n%s", out)
			}
			if out := nettest.Cmd(t, "nft", "list", "table", "inet", "heliograph"); !strings.Contains(out, device) {
				t.Errorf("an ADD would have been answered without its filter:\n%s", out)
			}
		}
		w.inSync()
		if applied := w.speaker.applied; applied > 3 { // the first run, and the uplink's own notifications
			t.Errorf("pods made all be computed %d times", applied)
		}
		w.pods.set()
		nettest.Cmd(t, "ip", "link", "del", "hel00000000000")
		if err := w.sync(); err != nil {
			t.Error(err)
		}
		w.sees(time.Second, false, "dev hel0000000000", routesOfOurs...)
	})
}

// No notification tells of a sysctl: only the retry finds the file.
func TestLoopRetries(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.sysctls = t.TempDir()
		w.start()
		eventually(t, patience, func() string {
			if r := w.latest.Load(); r == nil || !strings.Contains(fmt.Sprint(r.Problems), "sysctl net/ipv4/ip_forward: ") {
				return fmt.Sprint("not reported: ", r)
			}
			return ""
		})
		w.sees(time.Second, true, "10.244.2.0/26 nhid", routesOfOurs...) // one driver does not stop the others
		if err := w.sync(); err != nil {
			t.Errorf("a pod is refused: %v", err)
		}
		for _, name := range []string{"ipv4/ip_forward", "ipv4/conf/hel-vxlan/rp_filter"} {
			path := filepath.Join(w.sysctls, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("0"), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		w.inSync()
		if failed, healed := w.log.count("not in sync; trying again"), w.log.count("in sync again"); failed > 3 || healed != 1 {
			t.Errorf("failure logged %d times, recovery %d times:\n%s", failed, healed, w.log.String())
		}
	})
}

// The full read-back comes in its time, however many pods come and go.
func TestLoopRefreshesUnderLoad(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.source.objects.Felix = []v1alpha1.FelixConfiguration{{
			ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.DefaultName},
			Spec:       v1alpha1.FelixConfigurationSpec{RouteRefreshInterval: &metav1.Duration{Duration: time.Second}},
		}}
		w.start()
		w.inSync()
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
			nettest.Skip(t, "sysctls cannot be written here: "+err.Error())
		}
		eventually(t, patience, func() string {
			if err := w.sync(); err != nil {
				return err.Error()
			}
			if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err != nil || string(b) != "1\n" {
				return fmt.Sprintf("ip_forward is %q %v", b, err)
			}
			return ""
		})
	})
}

// A foreign route on our prefix stays, is reported, and stops neither the rest nor the pods.
func TestLoopLeavesForeignRoutes(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		nettest.Cmd(t, "ip", "route", "add", "10.244.1.0/26", "dev", "up0", "proto", "static", "metric", "80")
		nettest.Cmd(t, "ip", "route", "add", "10.244.2.0/26", "dev", "up0", "proto", "static", "metric", "10")
		w.start()
		eventually(t, patience, func() string {
			r := w.latest.Load()
			if r == nil || !strings.Contains(fmt.Sprint(r.Problems), "route 10.244.1.0/26: ") || !strings.Contains(fmt.Sprint(r.Problems), "10.244.2.0/26: a foreign route (protocol 4, metric 10)") {
				return fmt.Sprintf("not reported: %+v", r)
			}
			return ""
		})
		w.device("hel00000000001")
		w.pods.set(pod("hel00000000001", "10.244.0.5"))
		if err := w.sync(); err != nil {
			t.Errorf("a pod is refused: %v", err)
		}
		out := nettest.Cmd(t, "ip", "route", "show", "proto", "static")
		if !strings.Contains(out, "10.244.1.0/26 dev up0") || !strings.Contains(out, "10.244.2.0/26 dev up0") {
			t.Errorf("a foreign route is gone:\n%s", out)
		}
		nettest.Cmd(t, "ip", "route", "del", "10.244.1.0/26", "proto", "static", "metric", "80")
		nettest.Cmd(t, "ip", "route", "del", "10.244.2.0/26", "proto", "static", "metric", "10")
		w.inSync()
		eventually(t, patience, func() string { return strings.Join(w.latest.Load().Problems, "; ") })
	})
}

// A disk that cannot be written stops no route.
func TestLoopProgramsWithoutDisk(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.pods.err = errors.New("no space left on device")
		w.start()
		w.sees(patience, true, "10.244.2.0/26 nhid", routesOfOurs...)
		if err := w.sync(); err != nil {
			t.Error(err)
		}
		if r := w.latest.Load(); r.InSync || !strings.Contains(fmt.Sprint(r.Problems), "no space left") {
			t.Errorf("not reported: %+v", r)
		}
	})
}

// A pod that has the second address of what has become the primary block keeps it.
func TestLoopYieldsItsAddress(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.device("hel00000000001")
		w.pods.set(pod("hel00000000001", "10.244.0.1"))
		w.start()
		w.inSync()
		w.sees(time.Second, true, "10.244.0.1 dev hel00000000001", routesOfOurs...)
		if out := nettest.Cmd(t, "ip", "address", "show", "dev", "lo"); strings.Contains(out, "10.244.0.1/") {
			t.Errorf("the node took the pod's address:\n%s", out)
		}
		if r := w.latest.Load(); !strings.Contains(fmt.Sprint(r.Problems), "IPBlock a0: the node goes without its own address 10.244.0.1") {
			t.Errorf("not reported: %v", r.Problems)
		}
		if b := w.pods.blocks; len(b) != 1 || !b[0].Primary {
			t.Errorf("the allocator would give the address to the next pod: %+v", b)
		}
		w.pods.set()
		w.sees(patience, true, "10.244.0.1/32", "ip", "address", "show", "dev", "lo")
	})
}

// A node that is renumbered is read anew.
func TestLoopFollowsTheUplink(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.start()
		w.inSync()
		nettest.Cmd(t, "ip", "address", "add", "192.168.13.1/24", "dev", "up0")
		w.source.set(true, func() {
			w.source.objects.Nodes = append([]corev1.Node(nil), w.source.objects.Nodes...)
			w.source.objects.Nodes[0].Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.13.1"}}
		})
		w.sees(patience, true, "local 192.168.13.1", "ip", "-d", "link", "show", "hel-vxlan")
		w.inSync()
	})
}
