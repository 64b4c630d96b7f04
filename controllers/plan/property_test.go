// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/labels"
)

// world is a cluster that things happen to. Its agents behave as agents should: an agent takes
// note of its blocks now and then, pods come and go in between, and it gives back a releasing
// block once that is empty.
type world struct {
	rnd    *rand.Rand
	now    time.Time
	pools  map[string]v1alpha1.IPPool
	blocks map[string]v1alpha1.IPBlock
	nodes  map[string]Node
	agents map[string]*agent
	serial int
	// lost are blocks that a person deleted: what becomes of them is not the plan's fault.
	lost map[string]bool
}

type agent struct {
	known  map[string]v1alpha1.IPBlock // as the agent saw them last
	inUse  map[string]int64
	report *v1alpha1.NodeStatus // as the API has it
}

func newWorld(seed uint64) *world {
	return &world{
		rnd: rand.New(rand.NewPCG(seed, 0)), now: epoch,
		pools: map[string]v1alpha1.IPPool{}, blocks: map[string]v1alpha1.IPBlock{},
		nodes: map[string]Node{}, agents: map[string]*agent{}, lost: map[string]bool{},
	}
}

func pick[T any](w *world, m map[string]T) string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return ""
	}
	slices.Sort(keys)
	return keys[w.rnd.IntN(len(keys))]
}

// step lets one thing happen, and says what.
func (w *world) step() string {
	w.now = w.now.Add(time.Duration(w.rnd.IntN(3)) * time.Second)
	switch n := w.rnd.IntN(100); {
	case n < 8:
		return w.addNode()
	case n < 11:
		name := pick(w, w.nodes)
		delete(w.nodes, name)
		return "delete node " + name
	case n < 16:
		return w.addPool()
	case n < 18:
		name := pick(w, w.pools)
		delete(w.pools, name)
		return "delete pool " + name
	case n < 20:
		return w.editPool()
	case n < 22:
		if name := pick(w, w.nodes); name != "" {
			w.nodes[name] = Node{Name: name, Labels: map[string]string{"rack": fmt.Sprint("r", w.rnd.IntN(3))}}
			return "label node " + name
		}
	case n < 24:
		name := pick(w, w.blocks)
		delete(w.blocks, name)
		w.lost[name] = true
		return "a person deletes block " + name
	case n < 65:
		if name := pick(w, w.agents); name != "" {
			w.sync(name)
			return "agent looks and reports: " + name
		}
	default:
		return w.pods()
	}
	return "nothing"
}

func (w *world) addNode() string {
	w.serial++
	name := fmt.Sprint("node", w.serial%12) // old names come back
	w.nodes[name] = Node{Name: name, Labels: map[string]string{"rack": fmt.Sprint("r", w.rnd.IntN(3))}}
	if w.agents[name] == nil {
		w.agents[name] = &agent{known: map[string]v1alpha1.IPBlock{}, inUse: map[string]int64{}}
	}
	return "add node " + name
}

func (w *world) addPool() string {
	cidr := []string{
		"10.0.0.0/24", "10.0.0.0/25", "10.0.0.128/25", "10.0.1.0/24", "10.0.0.0/22", "10.1.0.0/28",
		"fd00::/120", "fd00::/64", "fd00:0:0:1::/122",
	}[w.rnd.IntN(9)]
	bits := netip.MustParsePrefix(cidr).Bits() + w.rnd.IntN(4)
	bits = max(bits, map[bool]int{true: 26, false: 122}[cidr[0] == '1'])
	size := int32(bits)
	w.serial++
	p := v1alpha1.IPPool{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("pool", w.serial%7), CreationTimestamp: metav1.NewTime(w.now)},
		Spec:       v1alpha1.IPPoolSpec{CIDR: cidr, BlockSize: &size},
	}
	if w.rnd.IntN(3) == 0 {
		p.Spec.NodeSelector = fmt.Sprintf("rack != 'r%d'", w.rnd.IntN(3))
	}
	if _, ok := w.pools[p.Name]; ok {
		return "nothing"
	}
	w.pools[p.Name] = p
	return fmt.Sprintf("add pool %s %s/%d %s", p.Name, cidr, bits, p.Spec.NodeSelector)
}

func (w *world) editPool() string {
	name := pick(w, w.pools)
	if name == "" {
		return "nothing"
	}
	p := w.pools[name]
	if w.rnd.IntN(2) == 0 {
		p.Spec.Disabled = !p.Spec.Disabled
	} else {
		p.Spec.NodeSelector = []string{"", "rack == 'r1'", "rack ="}[w.rnd.IntN(3)]
	}
	w.pools[name] = p
	return fmt.Sprintf("edit pool %s: %v %q", name, p.Spec.Disabled, p.Spec.NodeSelector)
}

// sync is what an agent does: look at the API, give back what is empty, report.
func (w *world) sync(name string) {
	a := w.agents[name]
	report := &v1alpha1.NodeStatus{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, b := range w.blocks {
		if b.Spec.Node == name {
			a.known[b.Name] = b
		}
	}
	for blockName, known := range a.known {
		current, exists := w.blocks[blockName]
		exists = exists && current.Spec.Node == name
		if a.inUse[blockName] == 0 && (!exists || current.Spec.Releasing) {
			delete(a.known, blockName)
			continue
		}
		report.Status.Blocks = append(report.Status.Blocks, v1alpha1.BlockStatus{
			Name: blockName, CIDR: known.Spec.CIDR, Pool: known.Spec.Pool, InUse: a.inUse[blockName],
		})
	}
	slices.SortFunc(report.Status.Blocks, func(x, y v1alpha1.BlockStatus) int { return cmpString(x.Name, y.Name) })
	a.report = report
}

func cmpString(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// pods come or go on one node.
func (w *world) pods() string {
	name := pick(w, w.agents)
	if name == "" {
		return "nothing"
	}
	a := w.agents[name]
	blockName := pick(w, a.known)
	if blockName == "" {
		return "nothing"
	}
	b := a.known[blockName]
	size := int64(1) << (netip.MustParsePrefix(b.Spec.CIDR).Addr().BitLen() - netip.MustParsePrefix(b.Spec.CIDR).Bits())
	switch {
	case w.rnd.IntN(3) == 0:
		a.inUse[blockName] = 0
	case b.Spec.Releasing || a.inUse[blockName] >= size-1:
		return "nothing"
	default:
		a.inUse[blockName] = min(a.inUse[blockName]+1+int64(w.rnd.IntN(20)), size-1)
	}
	return fmt.Sprintf("node %s uses %d of %s", name, a.inUse[blockName], b.Spec.CIDR)
}

func (w *world) input() Input {
	var in Input
	for _, p := range w.pools {
		in.Pools = append(in.Pools, p)
	}
	for _, b := range w.blocks {
		in.Blocks = append(in.Blocks, b)
	}
	for _, n := range w.nodes {
		in.Nodes = append(in.Nodes, n)
	}
	for _, a := range w.agents {
		if a.report != nil {
			in.Statuses = append(in.Statuses, *a.report)
		}
	}
	return in // in the random order of maps: the plan must not depend on it
}

func (w *world) apply(t *testing.T, p Plan) {
	t.Helper()
	for _, b := range p.Create {
		name := BlockName(b.CIDR)
		if _, ok := w.blocks[name]; ok {
			t.Fatalf("block %s is created twice", name)
		}
		w.blocks[name] = v1alpha1.IPBlock{
			ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(w.now)},
			Spec:       v1alpha1.IPBlockSpec{CIDR: b.CIDR.String(), Pool: b.Pool, Node: b.Node, Primary: b.Primary},
		}
	}
	for _, name := range p.Release {
		b := w.blocks[name]
		b.Spec.Releasing = true
		w.blocks[name] = b
	}
	for _, d := range p.Delete {
		// The heart of the handshake: what is taken back from a live node is not in use there.
		if a := w.agents[d.Node]; !d.NodeGone && a.inUse[d.Name] > 0 && !w.lost[d.Name] {
			t.Fatalf("block %s is deleted while node %s uses %d addresses of it", d.Name, d.Node, a.inUse[d.Name])
		}
		delete(w.blocks, d.Name)
	}
	for _, name := range p.Forget {
		w.agents[name].report = nil
		if _, ok := w.nodes[name]; !ok {
			delete(w.agents, name)
		}
	}
}

func (w *world) check(t *testing.T, p Plan) {
	t.Helper()
	primaries := map[string][]string{}
	var all []netip.Prefix
	for _, b := range w.blocks {
		cidr := netip.MustParsePrefix(b.Spec.CIDR)
		all = append(all, cidr)
		pool, ok := w.pools[b.Spec.Pool]
		if !ok || !b.Spec.Primary || b.Spec.Releasing {
			continue
		}
		pl := parsePool(&pool)
		if s, err := labels.Parse(pool.Spec.NodeSelector); pl.cuts(cidr) && (err != nil || s.Matches(w.nodes[b.Spec.Node].Labels)) {
			key := fmt.Sprint(b.Spec.Node, familyOf(cidr))
			if primaries[key] = append(primaries[key], b.Name); len(primaries[key]) > 1 {
				t.Fatalf("%s has several primaries: %v", key, primaries[key])
			}
		}
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	for i := 1; i < len(all); i++ {
		if all[i].Overlaps(all[i-1]) {
			t.Fatalf("blocks %s and %s overlap", all[i-1], all[i])
		}
	}
	exhausted := map[string]bool{}
	for _, s := range p.Pools {
		exhausted[s.Name] = s.Reason == v1alpha1.ReasonExhausted
	}
	for _, pool := range judge(w.input().Pools, w.input().Blocks) {
		for _, n := range w.nodes {
			f := familyOf(pool.cidr)
			if pool.serves(&node{Node: n}, f) && !exhausted[pool.name] && len(primaries[fmt.Sprint(n.Name, f)]) == 0 {
				t.Fatalf("pool %s serves node %s, is not exhausted, and the node has no primary", pool.name, n.Name)
			}
		}
	}
}

// settle plans and applies until nothing is left to do.
func (w *world) settle(t *testing.T) {
	t.Helper()
	for round := 0; ; round++ {
		in := w.input()
		p := Compute(in)
		if diff := cmp.Diff(format(p), format(Compute(w.input()))); diff != "" {
			t.Fatalf("the plan depends on the order of its input:\n%s", diff)
		}
		if p.Empty() {
			w.check(t, p)
			return
		}
		// One for what is freed, one for what that makes room for.
		if round == 3 {
			t.Fatalf("no end to plans: %v", format(p))
		}
		w.apply(t, p)
	}
}

// Whatever happens, and in whatever order: blocks do not overlap, a node has at most one primary
// per family that counts, a block in use is never taken back, who can be served is, and applying
// the plan leaves nothing to plan.
func TestRandomEvents(t *testing.T) {
	seeds := uint64(150)
	if testing.Short() {
		seeds = 20
	}
	for seed := range seeds {
		w := newWorld(seed)
		var history []string
		ok := t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			for range 300 {
				history = append(history, w.step())
				w.settle(t)
			}
		})
		if !ok {
			t.Fatalf("seed %d, the last steps: %q", seed, history[max(0, len(history)-12):])
		}
	}
}
