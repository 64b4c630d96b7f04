// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/labels"
)

const (
	// joinPatience is how long a new reflector, or the mesh, may take until all nodes that are Ready have
	// connected; then half of them must do, since one broken agent must not hold up the rest.
	joinPatience = time.Minute
	// meshDwell is how long the mesh stays once the reflectors have all routes: they pass on in
	// milliseconds what they have just heard, and agents learn of the end of the mesh within these too.
	meshDwell = 2 * time.Second
	// spreadDwell is how long nothing has to change before a reflector is moved for a better spread.
	spreadDwell = 5 * time.Minute
	// unreachableAfter is how long the other reflectors have to miss one until it is replaced though its
	// node is Ready.
	unreachableAfter = time.Minute
)

// ElectionNode is a node as the controller sees it.
type ElectionNode struct {
	Node
	Ready         bool // kubelet says so, and the API server believes it
	Unschedulable bool // cordoned
	Unproven      bool // it has the taint heliograph.dev/agent-not-ready
	// NodesConverged is with how many nodes its speaker has exchanged the routes on sessions of the mesh.
	NodesConverged int
	// Reflector is what its reflector reports; nil: it has none.
	Reflector *ReflectorReport
}

// ReflectorReport is what a reflector says of itself.
type ReflectorReport struct {
	Converged int      // clients that it has exchanged the routes with
	Problem   string   // why it does not work
	Missing   []Missed // reflectors that it has no session with
}

// Missed is a reflector that another one has no session with.
type Missed struct {
	Node  string
	Since time.Time
}

// ElectionInput is all that the choice of reflectors follows from.
type ElectionInput struct {
	Config v1alpha1.BGPConfigurationSpec
	Status *v1alpha1.RouteReflectionStatus // what was chosen before; nil: nothing
	Nodes  []ElectionNode                  // sorted by name
	Now    time.Time
}

// Election is who reflects from now on. Agents follow its Status.
type Election struct {
	Status v1alpha1.RouteReflectionStatus
	// Problems are what cannot be obeyed.
	Problems []string
	// Changes are what differs from before, for Events.
	Changes []ElectionChange
	// Next is when to look again if nothing happens before; zero: never.
	Next time.Time
}

// ElectionChange is one thing that changed.
type ElectionChange struct {
	Reason string // of an Event
	Note   string
}

// Reasons of ElectionChanges.
const (
	ReflectorJoins  = "ReflectorJoins"
	ReflectorActive = "ReflectorActive"
	ReflectorLeaves = "ReflectorLeaves"
	ReflectorGone   = "ReflectorGone"
	MeshBegins      = "MeshBegins"
	MeshEnds        = "MeshEnds"
)

// Elect chooses reflectors, and whether there is a mesh. What works is kept as long as it may be; what has
// to go stays until what replaces it has the routes of all nodes. It depends on its arguments alone: who
// is chosen among equals follows from a hash of the names.
func Elect(in ElectionInput) Election {
	e := newElection(in)
	if e.wanted() {
		e.retire()
		e.appoint()
		e.promote()
		e.release()
		e.closeMesh()
	} else {
		e.dissolve()
	}
	return e.result()
}

type election struct {
	ElectionInput
	spec   v1alpha1.RouteReflection // with defaults
	nodes  map[string]*ElectionNode
	before map[string]v1alpha1.Reflector
	list   []v1alpha1.Reflector
	mesh   bool
	reason string
	ready  int
	seats  int               // how many reflectors there should be
	chosen map[string]string // Manual: node → cluster ID
	fit    map[string]string // Auto: node that may reflect → zone
	out    Election
}

func newElection(in ElectionInput) *election {
	e := &election{
		ElectionInput: in, nodes: make(map[string]*ElectionNode, len(in.Nodes)), before: map[string]v1alpha1.Reflector{}, mesh: true,
	}
	if in.Config.RouteReflection != nil {
		e.spec = *in.Config.RouteReflection
	}
	e.spec.Mode = cmp.Or(e.spec.Mode, v1alpha1.RouteReflectionAuto)
	e.spec.TopologyKey = cmp.Or(e.spec.TopologyKey, DefaultTopologyKey)
	for i := range in.Nodes {
		e.nodes[in.Nodes[i].Name] = &in.Nodes[i]
		if in.Nodes[i].Ready {
			e.ready++
		}
	}
	if in.Status != nil {
		e.mesh = in.Status.Mesh
		for _, r := range in.Status.Reflectors {
			e.before[r.Node] = r
			if e.nodes[r.Node] != nil {
				e.list = append(e.list, r)
			}
		}
	}
	return e
}

func orDefault(p *int32, d int) int {
	if p == nil {
		return d
	}
	return int(*p)
}

// wanted says whether there should be reflectors. Auto returns to the mesh with a fifth fewer nodes than
// it left it with, so that one node that comes and goes changes nothing.
func (e *election) wanted() bool {
	n := len(e.Nodes)
	switch e.spec.Mode {
	case v1alpha1.RouteReflectionDisabled:
		e.reason = "routeReflection.mode is Disabled"
		return false
	case v1alpha1.RouteReflectionManual:
		return true
	case v1alpha1.RouteReflectionAuto:
	}
	limit := orDefault(e.spec.MeshThreshold, DefaultMeshThreshold)
	back := max(1, limit*4/5)
	switch {
	case !meshEnabled(e.Config):
		e.reason = "nodeToNodeMeshEnabled is false: there is nothing for reflectors to replace"
		return false
	case n > limit:
		e.reason = fmt.Sprintf("there are more nodes than meshThreshold %d", limit)
		return true
	case n > back && e.count(v1alpha1.ReflectorActive)+e.count(v1alpha1.ReflectorJoining) > 0:
		e.reason = fmt.Sprintf("there are more nodes than %d, at which the mesh comes back (meshThreshold %d)", back, limit)
		return true
	}
	e.reason = fmt.Sprintf("there are no more nodes than meshThreshold %d", limit)
	return false
}

func (e *election) count(s v1alpha1.ReflectorState) int {
	n := 0
	for _, r := range e.list {
		if r.State == s {
			n++
		}
	}
	return n
}

func (e *election) set(r *v1alpha1.Reflector, s v1alpha1.ReflectorState, reason string) {
	if r.State != s {
		r.State, r.Since = s, metav1.Time{Time: e.Now.UTC().Truncate(time.Second)}
	}
	r.Reason = reason
}

// passed says whether a time has gone by; if not, there is another look when it has. A beginning that lies
// ahead is one of before the clock was set back: it tells nothing, and must not be waited for.
func (e *election) passed(since time.Time, d time.Duration) bool {
	gone := e.Now.Sub(since)
	if gone >= d || gone < -time.Minute {
		return true
	}
	e.lookAgain(since.Add(d))
	return false
}

func (e *election) lookAgain(at time.Time) {
	if e.out.Next.IsZero() || at.Before(e.out.Next) {
		e.out.Next = at
	}
}

// retire makes those leave who must not reflect, or need not.
func (e *election) retire() {
	if e.spec.Mode == v1alpha1.RouteReflectionManual {
		e.chooseByLabels()
		return
	}
	e.findFit()
	e.seats = min(orDefault(e.spec.Count, DefaultReflectors), len(e.fit))
	if e.seats == 0 {
		return // nobody could take over: better a doubtful reflector than none
	}
	if want := orDefault(e.spec.Count, DefaultReflectors); e.seats < want {
		e.out.Problems = append(e.out.Problems, fmt.Sprintf("routeReflection.count: %d reflectors are wanted, and %d nodes can reflect", want, e.seats))
	}
	for i := range e.list {
		r := &e.list[i]
		if r.State == v1alpha1.ReflectorLeaving {
			continue
		}
		switch _, ok := e.fit[r.Node]; {
		case r.ClusterID != "":
			e.set(r, v1alpha1.ReflectorLeaving, "routeReflection.mode is Auto")
		case !ok:
			e.set(r, v1alpha1.ReflectorLeaving, e.unfit(e.nodes[r.Node]))
		}
	}
	for e.staying() > e.seats {
		e.set(e.leastNeeded(), v1alpha1.ReflectorLeaving, fmt.Sprintf("%d reflectors are enough", e.seats))
	}
	e.spread()
}

// staying is how many are to stay.
func (e *election) staying() int {
	return len(e.list) - e.count(v1alpha1.ReflectorLeaving)
}

// findFit finds the nodes that may reflect.
func (e *election) findFit() {
	sel, err := labels.Parse(e.spec.NodeSelector)
	if err != nil {
		e.out.Problems = append(e.out.Problems, fmt.Sprintf("routeReflection.nodeSelector: %v; no node can reflect", err))
	}
	e.fit = map[string]string{}
	for i := range e.Nodes {
		n := &e.Nodes[i]
		if err == nil && sel.Matches(n.Labels) && e.unfit(n) == "" {
			e.fit[n.Name] = n.Labels[e.spec.TopologyKey]
		}
	}
}

// unfit says why a node must not reflect, or nothing.
func (e *election) unfit(n *ElectionNode) string {
	switch {
	case !n.IPv4.IsValid() && !n.IPv6.IsValid():
		return "the node has no address"
	case !n.Ready:
		return "the node is not Ready"
	case n.Unschedulable:
		return "the node is cordoned"
	case n.Unproven:
		return "the node's network is not proven yet"
	case n.Reflector != nil && n.Reflector.Problem != "":
		return "its reflector does not work: " + n.Reflector.Problem
	case e.unreachable(n.Name):
		return "the other reflectors cannot reach it"
	}
	if sel, err := labels.Parse(e.spec.NodeSelector); err != nil || !sel.Matches(n.Labels) {
		return "routeReflection.nodeSelector excludes the node"
	}
	return ""
}

// unreachable says whether all other reflectors that are Active have missed one for long. One that alone
// misses all the others is the one that is out of reach, so two that miss each other prove nothing.
func (e *election) unreachable(name string) bool {
	witnesses := 0
	for _, r := range e.list {
		n := e.nodes[r.Node]
		if r.Node == name || r.State != v1alpha1.ReflectorActive || !n.Ready || n.Reflector == nil {
			continue
		}
		i := slices.IndexFunc(n.Reflector.Missing, func(m Missed) bool { return m.Node == name })
		if i < 0 {
			return false
		}
		if !e.passed(n.Reflector.Missing[i].Since, unreachableAfter) {
			return false
		}
		witnesses++
	}
	return witnesses > 1
}

// zones counts the reflectors that are to stay, by zone.
func (e *election) zones() map[string]int {
	out := map[string]int{}
	for _, zone := range e.fit {
		out[zone] += 0
	}
	for _, r := range e.list {
		if r.State != v1alpha1.ReflectorLeaving {
			out[e.zone(r.Node)]++
		}
	}
	return out
}

func (e *election) zone(node string) string { return e.nodes[node].Labels[e.spec.TopologyKey] }

// leastNeeded is one of the fullest zone: the last that came.
func (e *election) leastNeeded() *v1alpha1.Reflector {
	zones := e.zones()
	var out *v1alpha1.Reflector
	for i := range e.list {
		r := &e.list[i]
		if r.State == v1alpha1.ReflectorLeaving {
			continue
		}
		if out == nil || cmp.Or(
			cmp.Compare(zones[e.zone(out.Node)], zones[e.zone(r.Node)]), out.Since.Compare(r.Since.Time), cmp.Compare(rank(r.Node), rank(out.Node)),
		) < 0 {
			out = r
		}
	}
	return out
}

// spread moves one reflector from a zone with several to one that could have its first, when all has been
// quiet for long: a zone that comes and goes must not make reflectors wander.
func (e *election) spread() {
	if len(e.list) != e.seats || e.count(v1alpha1.ReflectorActive) != e.seats {
		return
	}
	crowded, empty, name := false, false, ""
	for zone, n := range e.zones() {
		crowded = crowded || n > 1
		if n == 0 && (!empty || zone < name) {
			empty, name = true, zone
		}
	}
	if !crowded || !empty {
		return
	}
	for _, r := range e.list {
		if !e.passed(r.Since.Time, spreadDwell) {
			return
		}
	}
	e.set(e.leastNeeded(), v1alpha1.ReflectorLeaving, fmt.Sprintf("zone %q has no reflector, and this one's has several", name))
}

// appoint fills the seats, each with a node of the zone that has the fewest.
func (e *election) appoint() {
	for node, cluster := range e.chosen {
		if !slices.ContainsFunc(e.list, func(r v1alpha1.Reflector) bool { return r.Node == node }) {
			r := v1alpha1.Reflector{Node: node, ClusterID: cluster}
			e.set(&r, v1alpha1.ReflectorJoining, "selected by labels; waits for its clients")
			e.list = append(e.list, r)
		}
	}
	for e.chosen == nil && e.staying() < e.seats {
		name := e.candidate()
		r := v1alpha1.Reflector{Node: name, Zone: e.fit[name]}
		e.set(&r, v1alpha1.ReflectorJoining, "waits for its clients")
		// One that leaves, and has become fit again, is the last choice: then it stays.
		e.list = append(slices.DeleteFunc(e.list, func(x v1alpha1.Reflector) bool { return x.Node == name }), r)
	}
}

// candidate is the node that reflects next.
func (e *election) candidate() string {
	zones := e.zones()
	leaving := map[string]int{}
	taken := map[string]bool{}
	for _, r := range e.list {
		if taken[r.Node] = true; r.State == v1alpha1.ReflectorLeaving {
			taken[r.Node], leaving[r.Node] = false, 1
		}
	}
	best := ""
	for name, zone := range e.fit {
		if taken[name] {
			continue
		}
		if best == "" || cmp.Or(
			cmp.Compare(leaving[name], leaving[best]), cmp.Compare(zones[zone], zones[e.fit[best]]), cmp.Compare(rank(name), rank(best)), cmp.Compare(name, best),
		) < 0 {
			best = name
		}
	}
	return best
}

// rank orders nodes as if by lot, the same each time.
func rank(name string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	return h.Sum64()
}

// promote makes those Active that have the routes of all nodes.
func (e *election) promote() {
	h := e.hierarchy()
	for i := range e.list {
		r := &e.list[i]
		if r.State != v1alpha1.ReflectorJoining {
			continue
		}
		clients, has := e.clientsOf(h, r.Node), 0
		if report := e.nodes[r.Node].Reflector; report != nil && report.Problem == "" {
			has = report.Converged
		}
		switch {
		case has >= clients && has > 0:
			e.set(r, v1alpha1.ReflectorActive, fmt.Sprintf("has the routes of its %d clients", has))
		case e.passed(r.Since.Time, joinPatience) && 2*has >= clients && has > 0:
			e.set(r, v1alpha1.ReflectorActive, fmt.Sprintf("has the routes of %d of its %d clients; the others have not come in %s", has, clients, joinPatience))
		}
	}
}

func (e *election) hierarchy() *hierarchy {
	return newHierarchy(e.Config.RouteReflection, e.list, func(name string) (Node, bool) {
		n := e.nodes[name]
		if n == nil {
			return Node{}, false
		}
		return n.Node, true
	})
}

// clientsOf counts the nodes that are Ready and should be clients of the reflector on a node.
func (e *election) clientsOf(h *hierarchy, name string) int {
	r, _ := h.reflector(name)
	if r.cluster == "" {
		return e.ready
	}
	n := 0
	for i := range e.Nodes {
		if e.Nodes[i].Ready && h.serves(r, e.Nodes[i].Node) {
			n++
		}
	}
	return n
}

// release lets those go who have been replaced.
func (e *election) release() {
	if e.count(v1alpha1.ReflectorJoining) > 0 || e.count(v1alpha1.ReflectorActive) == 0 {
		return
	}
	e.list = slices.DeleteFunc(e.list, func(r v1alpha1.Reflector) bool { return r.State == v1alpha1.ReflectorLeaving })
}

// closeMesh ends the mesh once every node is a client of a reflector that has all routes, and begins it
// again only if a node is the client of none at all.
func (e *election) closeMesh() {
	if !meshEnabled(e.Config) {
		e.mesh = false
		return
	}
	h := e.hierarchy()
	served, active := e.served(h, false), e.served(h, true)
	switch {
	case served != "":
		e.mesh = true
		e.reason = fmt.Sprintf("node %s is the client of no reflector", served)
		e.out.Problems = append(e.out.Problems, "routeReflection: "+e.reason+": the mesh stays")
	case !e.mesh:
	case active != "" || e.count(v1alpha1.ReflectorJoining) > 0:
		e.reason += "; the mesh ends when the reflectors have all routes"
	default:
		for _, r := range e.list {
			if !e.passed(r.Since.Time, meshDwell) {
				return
			}
		}
		e.mesh = false
	}
}

// served names a node that is no client of any reflector, or of no Active one. Empty: there is none.
func (e *election) served(h *hierarchy, active bool) string {
	state := map[string]v1alpha1.ReflectorState{}
	for _, r := range e.list {
		state[r.Node] = r.State
	}
	clusters := map[string]bool{} // that have a reflector; "": one that serves all
	for _, r := range h.reflectors {
		if !active || state[r.Name] == v1alpha1.ReflectorActive {
			clusters[r.cluster] = true
		}
	}
	if clusters[""] {
		return ""
	}
	for i := range e.Nodes {
		if !clusters[h.clusterOf(e.Nodes[i].Node)] {
			return e.Nodes[i].Name
		}
	}
	return ""
}

// dissolve returns to the mesh, or to nothing. The reflectors stay until the mesh has all routes.
func (e *election) dissolve() {
	if !meshEnabled(e.Config) {
		e.mesh, e.list = false, nil
		return
	}
	begun := e.Now
	if e.mesh = true; e.Status != nil && e.Status.Mesh && e.Status.MeshSince != nil {
		begun = e.Status.MeshSince.Time
	}
	for i := range e.list {
		if r := &e.list[i]; r.State != v1alpha1.ReflectorLeaving {
			e.set(r, v1alpha1.ReflectorLeaving, "the mesh takes over")
		}
	}
	if len(e.list) == 0 {
		return
	}
	behind := 0
	for _, n := range e.Nodes {
		if n.Ready && n.NodesConverged < e.ready-1 {
			behind++
		}
	}
	if late := e.passed(begun, joinPatience); behind > 0 && !late || e.Status == nil || !e.Status.Mesh {
		e.reason += "; the reflectors stay until the mesh has all routes"
		return
	}
	e.list = nil
}

// chooseByLabels finds the reflectors that the spec's clusters name.
func (e *election) chooseByLabels() {
	e.reason = "routeReflection.mode is Manual"
	e.chosen = map[string]string{}
	for i, c := range e.spec.Clusters {
		sel, err := labels.Parse(c.ReflectorSelector)
		if err != nil {
			e.out.Problems = append(e.out.Problems, fmt.Sprintf("routeReflection.clusters[%d].reflectorSelector: %v; it selects no node", i, err))
			continue
		}
		found := 0
		for j := range e.Nodes {
			n := &e.Nodes[j]
			if !sel.Matches(n.Labels) {
				continue
			}
			found++
			if other := e.chosen[n.Name]; other != "" {
				e.out.Problems = append(e.out.Problems, fmt.Sprintf("routeReflection.clusters[%d]: node %s reflects for cluster %s already", i, n.Name, other))
				continue
			}
			e.chosen[n.Name] = c.ClusterID
		}
		if found == 0 {
			e.out.Problems = append(e.out.Problems, fmt.Sprintf("routeReflection.clusters[%d]: reflectorSelector selects no node", i))
		}
	}
	for i := range e.list {
		r := &e.list[i]
		switch cluster, ok := e.chosen[r.Node]; {
		case !ok:
			e.set(r, v1alpha1.ReflectorLeaving, "no reflectorSelector selects the node")
		case cluster != r.ClusterID:
			r.ClusterID, r.State = cluster, "" // another reflector at the same place
			e.set(r, v1alpha1.ReflectorJoining, "selected by labels; waits for its clients")
		case r.State == v1alpha1.ReflectorLeaving:
			e.set(r, v1alpha1.ReflectorJoining, "selected by labels again")
		}
	}
	if len(e.chosen) == 0 {
		e.list = nil // there is nobody to wait for
	}
}

// result compares with before.
func (e *election) result() Election {
	slices.SortFunc(e.list, func(a, b v1alpha1.Reflector) int { return cmp.Compare(a.Node, b.Node) })
	if e.list != nil {
		e.out.Problems = append(e.out.Problems, e.hierarchy().problems...)
	}
	s := v1alpha1.RouteReflectionStatus{Mesh: e.mesh, Reason: e.reason, Reflectors: e.list}
	if e.Status != nil {
		s.MeshSince = e.Status.MeshSince
	}
	if e.Status != nil && e.Status.Mesh != e.mesh {
		s.MeshSince = &metav1.Time{Time: e.Now.UTC().Truncate(time.Second)}
		e.change(map[bool]string{true: MeshBegins, false: MeshEnds}[e.mesh], e.reason)
	}
	e.out.Status = s
	for _, r := range e.list {
		if was, ok := e.before[r.Node]; ok && was.State == r.State && was.ClusterID == r.ClusterID {
			continue
		}
		reason := map[v1alpha1.ReflectorState]string{
			v1alpha1.ReflectorJoining: ReflectorJoins, v1alpha1.ReflectorActive: ReflectorActive, v1alpha1.ReflectorLeaving: ReflectorLeaves,
		}[r.State]
		e.change(reason, fmt.Sprintf("node %s: %s", r.Node, r.Reason))
	}
	if e.Status != nil {
		for _, r := range e.Status.Reflectors {
			if !slices.ContainsFunc(e.list, func(x v1alpha1.Reflector) bool { return x.Node == r.Node }) {
				why := "it has been replaced"
				if e.nodes[r.Node] == nil {
					why = "the node is gone"
				}
				e.change(ReflectorGone, fmt.Sprintf("node %s: %s", r.Node, why))
			}
		}
	}
	return e.out
}

func (e *election) change(reason, note string) {
	e.out.Changes = append(e.out.Changes, ElectionChange{Reason: reason, Note: note})
}
