// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/inspect"
)

func TestBGPRoutes(t *testing.T) {
	for name, tt := range map[string]struct {
		list bgpRoutes
		form string
	}{
		"all":       {list: sampleRoutes()},
		"json":      {list: sampleRoutes(), form: "json"},
		"not-asked": {list: bgpRoutes{Nodes: sampleRoutes().Nodes[2:]}},
	} {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			if err := tt.list.write(&got, tt.form); err != nil {
				t.Fatal(err)
			}
			golden(t, "bgp-routes-"+name+".txt", got.Bytes())
		})
	}
	if err := (bgpRoutes{}).write(&bytes.Buffer{}, "wide"); err == nil || !strings.Contains(err.Error(), `--output is "wide"`) {
		t.Errorf("error = %v", err)
	}
}

// sampleRoutes are of a reflector, of a node that has more than it says, and of one that cannot be asked.
func sampleRoutes() bgpRoutes {
	path := func(prefix, hop, peer, ip string) inspect.Path {
		return inspect.Path{Prefix: netip.MustParsePrefix(prefix), NextHop: netip.MustParseAddr(hop), Peer: peer, PeerIP: netip.MustParseAddr(ip), ClusterList: []string{}}
	}
	reflected := func(p inspect.Path, originator string, clusters ...string) inspect.Path {
		p.Originator, p.ClusterList = netip.MustParseAddr(originator), clusters
		return p
	}
	stale := path("fd00:244::80/122", "fd00:11::254", "peer/leaf1", "fd00:11::254")
	stale.ASPathLength, stale.Stale = 2, true
	two := func(prefix, hop string) inspect.Route {
		return inspect.Route{Prefix: netip.MustParsePrefix(prefix), Why: "shorter cluster list", Paths: []inspect.ReflectorPath{
			{Path: path(prefix, hop, "client/node2", "192.168.11.12"), Best: true, LocalPref: 100, Origin: "IGP"},
			{
				Path: reflected(path(prefix, hop, "reflector/node3", "192.168.12.3"), "192.168.11.12", "10.99.0.3"), ASPath: "65101 {65102,65103}",
				LocalPref: 100, MED: 5, Origin: "incomplete",
			},
		}}
	}
	return bgpRoutes{
		Nodes: []nodeRoutes{
			{Node: "node1", Routes: inspect.Routes{
				Paths: []inspect.Path{
					reflected(path("10.244.1.0/26", "192.168.11.12", "reflector/node1", "192.168.11.11"), "192.168.11.12", "10.99.0.1"),
					reflected(path("10.244.1.0/26", "192.168.11.12", "reflector/node3", "192.168.12.3"), "192.168.11.12", "10.99.0.3", "10.99.0.1"), stale,
				},
				Reflected: []inspect.Route{two("10.244.1.0/26", "192.168.11.12"), two("fd00:244::80/122", "fd00:11::12")},
			}},
			{Node: "node2", Routes: inspect.Routes{Paths: []inspect.Path{path("10.244.2.0/26", "192.168.11.11", "node/node1", "192.168.11.11")}, PathsLeftOut: 50, Reflected: []inspect.Route{}, ReflectedLeftOut: 7}},
			{Node: "node3", NotAsked: "no agent's pod runs on node3 in namespace heliograph-system", Routes: inspect.Routes{Paths: []inspect.Path{}, Reflected: []inspect.Route{}}},
		},
		Notes: []string{"3 more reflectors are not asked: name one with --node"},
	}
}

func TestWhomBGPRoutesAsks(t *testing.T) {
	many := make([]string, 0, 20)
	for i := range 20 {
		many = append(many, fmt.Sprintf("node%02d", i))
	}
	for name, tt := range map[string]struct {
		state bgpState
		node  string
		want  []string
		notes []string
	}{
		"the reflectors":  {state: sampleReflection(time.Now()), want: []string{"node1", "node2"}},
		"all of a mesh":   {state: sampleMesh(time.Now()), want: []string{"node1", "node2", "node3"}},
		"one":             {state: sampleReflection(time.Now()), node: "node3", want: []string{"node3"}},
		"a part of many":  {state: bgpState{clusterState: clusterState{nodes: nodesNamed(many...)}}, want: many[:16], notes: []string{"4 more nodes are not asked: name one with --node"}},
		"only by reports": {state: bgpState{clusterState: clusterState{nodes: nodesNamed("a", "b"), statuses: map[string]v1alpha1.NodeStatus{"b": {Status: v1alpha1.NodeStatusStatus{Reflector: &v1alpha1.ReflectorStatus{}}}}}}, want: []string{"b"}},
	} {
		t.Run(name, func(t *testing.T) {
			nodes, notes, err := tt.state.toAsk(tt.node)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([][]string{tt.want, tt.notes}, [][]string{nodes, notes}); diff != "" {
				t.Errorf("nodes and notes (-want +got):\n%s", diff)
			}
		})
	}
	if _, _, err := sampleMesh(time.Now()).toAsk("nodeX"); err == nil {
		t.Error("a node that is not there is asked")
	}
}

// Eight are asked at once, and one that fails spoils nothing.
func TestAskAll(t *testing.T) {
	nodes := make([]string, 16)
	for i := range nodes {
		nodes[i] = fmt.Sprint(i)
	}
	var now, most atomic.Int32
	eight := make(chan struct{})
	got := askAll(t.Context(), nodes, func(_ context.Context, node string) (inspect.Routes, error) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		if n == maxAsking {
			close(eight)
		}
		<-eight
		if node == "3" {
			return inspect.Routes{}, errors.New("no")
		}
		return inspect.Routes{PathsLeftOut: 1}, nil
	})
	if most.Load() != maxAsking {
		t.Errorf("%d are asked at once, want %d", most.Load(), maxAsking)
	}
	for i, n := range got {
		if failed := n.NotAsked != ""; n.Node != nodes[i] || failed != (i == 3) || n.PathsLeftOut != 1 && !failed {
			t.Errorf("answer %d = %+v", i, n)
		}
	}
}

// podList is an API that has pods alone.
type podList struct {
	client.Client
	pods []corev1.Pod
}

func (p podList) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	list.(*corev1.PodList).Items = p.pods
	return nil
}

func TestAskRoutes(t *testing.T) {
	want := sampleRoutes().Nodes[0].Routes
	answer, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	agent := []corev1.Pod{{
		ObjectMeta: metav1.ObjectMeta{Namespace: "heliograph-system", Name: "heliograph-agent-x"}, Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}}
	say := func(stdout, stderr string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if q := r.URL.Query(); !slices.Equal(q["command"], []string{"/heliograph", "bgp-routes", "fd00:244::/56"}) {
				t.Errorf("command = %q", q["command"])
			}
			serveWebSocket(t, w, r, stdout, stderr)
		}
	}
	for name, tt := range map[string]struct {
		handler http.HandlerFunc
		pods    []corev1.Pod
		wantErr string
	}{
		"answer":         {handler: say(string(answer), ""), pods: agent},
		"no pod":         {wantErr: "no agent's pod runs on node1"},
		"not permitted":  {handler: forbid, pods: agent, wantErr: "pods/exec is forbidden"},
		"an older agent": {handler: say("", `Error: unknown command "bgp-routes"`), pods: agent, wantErr: "unknown command"},
		"not JSON":       {handler: say("hello", ""), pods: agent, wantErr: "the answer of pod heliograph-system/heliograph-agent-x"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(tt.handler)
			defer server.Close()
			q := inspect.Query{Within: netip.MustParsePrefix("fd00:244::/56")}
			got, err := askRoutes(t.Context(), &rest.Config{Host: server.URL}, podList{pods: tt.pods}, "heliograph-system", "node1", q)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("error = %v; want %q in it", err, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			again, _ := json.Marshal(got)
			if diff := cmp.Diff(string(answer), string(again)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// tables are a speaker's.
type tables bgp.Snapshot

func (s tables) Snapshot() bgp.Snapshot { return bgp.Snapshot(s) }

// The node's half, against a real server.
func TestBGPRoutesOnNode(t *testing.T) {
	dir, err := os.MkdirTemp("", "hel") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	speaker := tables{Paths: []bgp.Path{{Prefix: netip.MustParsePrefix("10.244.1.0/26")}, {Prefix: netip.MustParsePrefix("fd00:244::/122")}}}
	go func() {
		done <- inspect.New(inspect.Options{Socket: socket, Speakers: []inspect.Speaker{speaker}}, slog.New(slog.DiscardHandler)).Serve(ctx)
	}()
	run := func(args ...string) (string, string) {
		var out, errOut bytes.Buffer
		Main(t.Context(), append([]string{"heliograph", bgpRoutesOnNode, "--socket=" + socket}, args...), &out, &errOut)
		return out.String(), errOut.String()
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		out, errOut := run("fd00:244::1")
		if strings.Contains(out, `"fd00:244::/122"`) && !strings.Contains(out, "10.244") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("out %q, error %q", out, errOut)
		}
	}
	if _, errOut := run("node1"); !strings.Contains(errOut, "neither a prefix nor an address") {
		t.Errorf("error = %q", errOut)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, errOut := run(); !strings.Contains(errOut, "connection refused") {
		t.Errorf("error = %q", errOut)
	}
}
