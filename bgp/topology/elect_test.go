// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// world is a cluster in which the agents do at once what the status says.
type world struct {
	t      *testing.T
	config v1alpha1.BGPConfigurationSpec
	status *v1alpha1.RouteReflectionStatus
	nodes  []ElectionNode
	now    time.Time
	last   Election
	writes int
}

func newWorld(t *testing.T, n int, spec *v1alpha1.RouteReflection) *world {
	w := &world{t: t, config: v1alpha1.BGPConfigurationSpec{RouteReflection: spec}, now: time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)}
	for i := range n {
		w.nodes = append(w.nodes, simNode(i))
	}
	return w
}

func simNode(i int) ElectionNode {
	return ElectionNode{Ready: true, Node: Node{
		Name: fmt.Sprintf("n%05d", i), Labels: map[string]string{DefaultTopologyKey: fmt.Sprintf("z%d", i%5)},
		IPv4: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}),
	}}
}

func (w *world) node(name string) *ElectionNode {
	i := slices.IndexFunc(w.nodes, func(n ElectionNode) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	return &w.nodes[i]
}

func (w *world) remove(name string) {
	w.nodes = slices.DeleteFunc(w.nodes, func(n ElectionNode) bool { return n.Name == name })
}

// once is one election. A second one of the same facts must change nothing.
func (w *world) once() bool {
	w.t.Helper()
	in := ElectionInput{Config: w.config, Status: w.status, Nodes: w.nodes, Now: w.now}
	w.last = Elect(in)
	next := w.last.Status
	changed := w.status == nil || fmt.Sprint(*w.status) != fmt.Sprint(next)
	w.check(next)
	w.status = &next
	if changed {
		w.writes++
	}
	in.Status = w.status
	if again := Elect(in); again.Status.Mesh != next.Mesh && len(again.Changes) > 0 && !changed {
		w.t.Fatalf("the same facts again: %v", again.Changes)
	}
	return changed
}

// check holds what must be so after every election.
func (w *world) check(next v1alpha1.RouteReflectionStatus) {
	w.t.Helper()
	alive := 0
	for _, r := range next.Reflectors {
		n := w.node(r.Node)
		if n == nil {
			w.t.Fatalf("%s is gone and reflects", r.Node)
		}
		if r.State == v1alpha1.ReflectorJoining && r.ClusterID == "" && (!n.Ready || n.Unschedulable || n.Unproven) {
			w.t.Fatalf("%s joins: %+v", r.Node, n)
		}
		if r.State != v1alpha1.ReflectorJoining && n.Ready {
			alive++
		}
	}
	before := 0 // that work now, and were listed
	if w.status != nil && !w.status.Mesh {
		for _, r := range w.status.Reflectors {
			if n := w.node(r.Node); n != nil && n.Ready && r.State != v1alpha1.ReflectorJoining {
				before++
			}
		}
	}
	if before > 0 && alive == 0 && !next.Mesh {
		w.t.Fatalf("routes are lost: %+v → %+v", *w.status, next)
	}
}

// settle goes on until nothing changes, and returns how many writes that took.
func (w *world) settle() int {
	w.t.Helper()
	before := w.writes
	for range 50 {
		changed := w.once()
		w.obey()
		switch {
		case changed:
		case !w.last.Next.IsZero() && w.last.Next.Sub(w.now) <= joinPatience:
			w.now = w.last.Next
		default:
			return w.writes - before
		}
	}
	w.t.Fatalf("does not settle: %+v", *w.status)
	return 0
}

// obey is what the agents do with the status.
func (w *world) obey() {
	ready := 0
	for _, n := range w.nodes {
		if n.Ready {
			ready++
		}
	}
	for i := range w.nodes {
		n := &w.nodes[i]
		if n.NodesConverged = 0; w.status.Mesh && n.Ready {
			n.NodesConverged = ready - 1
		}
		reflects := slices.ContainsFunc(w.status.Reflectors, func(r v1alpha1.Reflector) bool { return r.Node == n.Name })
		switch {
		case reflects && n.Ready:
			n.Reflector = &ReflectorReport{Converged: ready}
		case !reflects:
			n.Reflector = nil
		}
	}
}

func (w *world) states() string {
	var out []string
	for _, r := range w.status.Reflectors {
		out = append(out, strings.TrimPrefix(r.Node, "n000")+" "+string(r.State))
	}
	mesh := map[bool]string{true: "mesh", false: "no mesh"}[w.status.Mesh]
	return strings.Join(append([]string{mesh}, out...), ", ")
}

func (w *world) zones() int {
	zones := map[string]bool{}
	for _, r := range w.status.Reflectors {
		zones[r.Zone] = true
	}
	return len(zones)
}

// One step after another: nothing is given up before what replaces it works.
func TestElectSteps(t *testing.T) {
	threshold, count := int32(3), int32(2)
	w := newWorld(t, 4, &v1alpha1.RouteReflection{MeshThreshold: &threshold, Count: &count})
	step := func(what, want string) {
		t.Helper()
		w.once()
		if got := w.states(); got != want {
			t.Fatalf("%s: %s, want %s", what, got, want)
		}
	}
	step("at first", "mesh, 00 Joining, 01 Joining")
	step("nobody has connected", "mesh, 00 Joining, 01 Joining")
	w.node("n00000").Reflector = &ReflectorReport{Converged: 4}
	w.node("n00001").Reflector = &ReflectorReport{Converged: 3}
	step("one has all", "mesh, 00 Active, 01 Joining")
	w.now = w.now.Add(joinPatience)
	step("the other has most, for long", "mesh, 00 Active, 01 Active")
	w.now = w.now.Add(meshDwell)
	step("a moment later", "no mesh, 00 Active, 01 Active")
	w.node("n00000").Unschedulable = true
	step("one is drained", "no mesh, 00 Leaving, 01 Active, 03 Joining")
	w.node("n00003").Reflector = &ReflectorReport{Problem: "listen on 10.1.0.3:1179: address already in use"}
	step("its successor cannot", "no mesh, 00 Leaving, 01 Active, 02 Joining, 03 Leaving")
	w.node("n00002").Reflector = &ReflectorReport{Converged: 4}
	step("the next one can", "no mesh, 01 Active, 02 Active")
	for i := range w.nodes {
		w.nodes[i].Ready, w.nodes[i].Reflector = false, nil
	}
	step("nobody is in reach", "no mesh, 01 Active, 02 Active")
	for i := range w.nodes {
		w.nodes[i].Ready, w.nodes[i].Unschedulable = true, false
	}
	threshold = 5
	step("the cluster may be a mesh", "mesh, 01 Leaving, 02 Leaving")
	step("which is not complete", "mesh, 01 Leaving, 02 Leaving")
	for i := range w.nodes {
		w.nodes[i].NodesConverged = 3
	}
	step("and is", "mesh")
}

func TestElectModes(t *testing.T) {
	no, few, many := false, int32(2), int32(9)
	for name, tt := range map[string]struct {
		n      int
		spec   *v1alpha1.RouteReflection
		mesh   *bool
		change func(*world)
		want   string
		says   string
	}{
		"few nodes":            {n: 50, want: "mesh", says: "there are no more nodes than meshThreshold 50"},
		"many nodes":           {n: 51, want: "no mesh, 30 Active, 38 Active, 39 Active", says: "there are more nodes than meshThreshold 50"},
		"disabled":             {n: 51, spec: &v1alpha1.RouteReflection{Mode: v1alpha1.RouteReflectionDisabled}, want: "mesh", says: "Disabled"},
		"no mesh to replace":   {n: 51, mesh: &no, want: "no mesh", says: "nodeToNodeMeshEnabled is false"},
		"count is too large":   {n: 3, spec: &v1alpha1.RouteReflection{MeshThreshold: &few, Count: &many}, want: "no mesh, 00 Active, 01 Active, 02 Active", says: "9 reflectors are wanted, and 3 nodes can reflect"},
		"selects nobody":       {n: 3, spec: &v1alpha1.RouteReflection{MeshThreshold: &few, NodeSelector: "has(x)"}, want: "mesh", says: "is the client of no reflector: the mesh stays"},
		"unreadable selector":  {n: 3, spec: &v1alpha1.RouteReflection{MeshThreshold: &few, NodeSelector: "("}, want: "mesh", says: "routeReflection.nodeSelector: position 2"},
		"some are not allowed": {n: 3, spec: &v1alpha1.RouteReflection{MeshThreshold: &few, NodeSelector: DefaultTopologyKey + " != 'z0'"}, want: "no mesh, 01 Active, 02 Active"},
		"not proven":           {n: 3, spec: &v1alpha1.RouteReflection{MeshThreshold: &few}, change: func(w *world) { w.nodes[1].Unproven = true }, want: "no mesh, 00 Active, 02 Active"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tt.n, tt.spec)
			w.config.NodeToNodeMeshEnabled = tt.mesh
			if tt.change != nil {
				tt.change(w)
			}
			w.settle()
			if got := w.states(); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if says := w.status.Reason + "; " + strings.Join(w.last.Problems, "; "); !strings.Contains(says, tt.says) {
				t.Errorf("says %q, want %q", says, tt.says)
			}
		})
	}
}

// The cluster grows and shrinks around the threshold: the mesh comes back only well below it.
func TestElectHysteresis(t *testing.T) {
	w := newWorld(t, 51, nil)
	w.settle()
	for _, tt := range []struct {
		n    int
		mesh bool
	}{{41, false}, {50, false}, {40, true}, {50, true}, {51, false}} {
		for len(w.nodes) > tt.n {
			w.nodes = w.nodes[:len(w.nodes)-1]
		}
		for len(w.nodes) < tt.n {
			w.nodes = append(w.nodes, simNode(len(w.nodes)))
		}
		w.settle()
		if w.status.Mesh != tt.mesh || tt.mesh != (len(w.status.Reflectors) == 0) {
			t.Errorf("%d nodes: %s", tt.n, w.states())
		}
	}
}

func manual(clusters ...v1alpha1.RouteReflectorCluster) *v1alpha1.RouteReflection {
	return &v1alpha1.RouteReflection{Mode: v1alpha1.RouteReflectionManual, Clusters: clusters}
}

func TestElectManual(t *testing.T) {
	zone := func(z string) string { return DefaultTopologyKey + " == '" + z + "'" }
	w := newWorld(t, 10, manual(
		v1alpha1.RouteReflectorCluster{ClusterID: "1.0.0.0", ReflectorSelector: zone("z0")},
		v1alpha1.RouteReflectorCluster{ClusterID: "1.0.0.1", ReflectorSelector: DefaultTopologyKey + " in {'z0', 'z1'}", ClientSelector: zone("z1")},
	))
	w.settle()
	if got, want := w.states(), "no mesh, 00 Active, 01 Active, 05 Active, 06 Active"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := strings.Join(w.last.Problems, "\n"); !strings.Contains(got, "clusters[1]: node n00000 reflects for cluster 1.0.0.0 already") {
		t.Errorf("problems: %s", got)
	}
	w.node("n00005").Labels = nil
	w.settle()
	if got, want := w.states(), "no mesh, 00 Active, 01 Active, 06 Active"; got != want {
		t.Errorf("a label is gone: %s, want %s", got, want)
	}
	w.config.RouteReflection.Clusters[0].ClientSelector = "has(nothing)"
	w.settle()
	if got := w.states(); !strings.HasPrefix(got, "mesh, ") || !strings.Contains(strings.Join(w.last.Problems, "\n"), "is the client of no reflector") {
		t.Errorf("clients of nobody: %s; %s", got, w.last.Problems)
	}
	w.config.RouteReflection = nil
	w.settle()
	if got := w.states(); got != "mesh" {
		t.Errorf("Manual is over: %s", got)
	}
}

// A zone that gets its first fit node gets a reflector, and not at once.
func TestElectSpreads(t *testing.T) {
	w := newWorld(t, 60, nil)
	for i := range w.nodes {
		w.nodes[i].Unschedulable = w.nodes[i].Labels[DefaultTopologyKey] > "z1"
	}
	w.settle()
	if got := w.zones(); got != 2 || len(w.status.Reflectors) != 3 {
		t.Fatalf("%d zones: %s", got, w.states())
	}
	first := w.states()
	for i := range w.nodes {
		w.nodes[i].Unschedulable = false
	}
	w.settle()
	if got := w.states(); got != first || w.last.Next.IsZero() {
		t.Fatalf("at once: %s after %s", got, first)
	}
	w.now = w.now.Add(spreadDwell)
	w.settle()
	if got := w.zones(); got != 3 || len(w.status.Reflectors) != 3 {
		t.Errorf("%d zones: %s", got, w.states())
	}
}

// A reflector that the two others have missed for a minute is replaced.
func TestElectUnreachable(t *testing.T) {
	w := newWorld(t, 60, nil)
	w.settle()
	lost := w.status.Reflectors[1].Node
	for i, since := range map[int]time.Time{0: w.now, 2: w.now} {
		w.node(w.status.Reflectors[i].Node).Reflector.Missing = []Missed{{Node: lost, Since: since}}
	}
	w.once()
	if got := w.last.Next; got != w.now.Add(unreachableAfter) || len(w.last.Changes) > 0 {
		t.Fatalf("at once: next look at %s, %v", got, w.last.Changes)
	}
	w.now = w.now.Add(unreachableAfter)
	w.once()
	if i := slices.IndexFunc(w.status.Reflectors, func(r v1alpha1.Reflector) bool { return r.Node == lost }); w.status.Reflectors[i].State != v1alpha1.ReflectorLeaving {
		t.Errorf("it stays: %s", w.states())
	}
}

// Random events: what must hold does, and what one event costs in writes does not grow with the cluster.
func TestElectRandom(t *testing.T) {
	most := map[int]int{}
	for _, n := range []int{60, 5000} {
		events := max(300, 100_000/n)
		w := newWorld(t, n, nil)
		w.settle()
		rng := rand.New(rand.NewPCG(1, uint64(n)))
		for range events {
			w.now = w.now.Add(time.Duration(rng.IntN(600)) * time.Second)
			w.event(rng, n)
			most[n] = max(most[n], w.settle())
			if ready := w.ready(); ready > 0 && (w.status.Mesh || len(w.status.Reflectors) != min(3, ready)) {
				t.Fatalf("%d nodes can reflect, and the status is %s", ready, w.states())
			}
		}
	}
	t.Logf("writes for one event, at most: %v", most)
	for n, writes := range most {
		if writes > 12 {
			t.Errorf("%d nodes: %d writes", n, writes)
		}
	}
}

func (w *world) ready() int {
	n := 0
	for _, x := range w.nodes {
		if x.Ready && !x.Unschedulable && !x.Unproven {
			n++
		}
	}
	return n
}

// event lets something happen, mostly to reflectors.
func (w *world) event(rng *rand.Rand, n int) {
	pick := &w.nodes[rng.IntN(len(w.nodes))]
	if rs := w.status.Reflectors; len(rs) > 0 && rng.IntN(3) > 0 {
		pick = w.node(rs[rng.IntN(len(rs))].Node)
	}
	switch rng.IntN(5) {
	case 0:
		pick.Ready = !pick.Ready
	case 1:
		pick.Unschedulable = !pick.Unschedulable
	case 2:
		if len(w.nodes) > 52 {
			w.remove(pick.Name)
		}
	case 3:
		pick.Unproven = !pick.Unproven
	case 4:
		for i := range n { // back comes the first that is gone
			if w.node(fmt.Sprintf("n%05d", i)) == nil {
				w.nodes = append(w.nodes, simNode(i))
				slices.SortFunc(w.nodes, func(a, b ElectionNode) int { return cmp.Compare(a.Name, b.Name) })
				return
			}
		}
	}
}

// The clock of the controller's node is set back by an hour while reflectors join: nobody waits for an hour.
func TestElectClockStep(t *testing.T) {
	w := newWorld(t, 60, nil)
	w.once()
	w.obey()
	w.now = w.now.Add(-time.Hour)
	if w.settle(); w.status.Mesh || len(w.status.Reflectors) != 3 {
		t.Errorf("set back: %s", w.states())
	}
	w.now = w.now.Add(2 * time.Hour)
	if w.settle(); w.status.Mesh || len(w.status.Reflectors) != 3 {
		t.Errorf("set forward: %s", w.states())
	}
}
