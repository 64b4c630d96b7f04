// SPDX-License-Identifier: Apache-2.0

//go:build linux

package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

const inForce = "True Accepted: nodes get blocks of this pool"

func testBlocks(t *testing.T, s *suite) {
	s.run(t)
	s.create(t, newPool("v4", "10.244.0.0/16"), newPool("v6", "fd00:244::/56"))
	s.create(t, newNode("node1"), newNode("node2"), newNode("node3"))
	s.wantBlocks(t,
		"10-244-0-0-26 v4 node1 primary",
		"10-244-0-128-26 v4 node3 primary",
		"10-244-0-64-26 v4 node2 primary",
		"fd00-244---122 v6 node1 primary",
		"fd00-244--40-122 v6 node2 primary",
		"fd00-244--80-122 v6 node3 primary",
	)
	var list v1alpha1.IPBlockList
	err := s.admin.List(t.Context(), &list, client.MatchingLabels{v1alpha1.LabelNode: "node2", v1alpha1.LabelPool: "v6"})
	if err != nil || len(list.Items) != 1 || list.Items[0].Spec.CIDR != "fd00:244::40/122" {
		t.Errorf("by labels: %v, %v", list.Items, err)
	}
	v4 := newPool("v4", "")
	s.wantReady(t, v4, inForce)
	s.wantEvent(t, "IPPool", "v4", "Normal Accepted")

	s.use(t, "node1", map[string]int64{"10-244-0-0-26": 1, "fd00-244---122": 1})
	s.use(t, "node2", map[string]int64{"10-244-0-64-26": 1, "fd00-244--40-122": 1})
	eventually(t, func() error {
		s.get(t, "v4", v4)
		if st := v4.Status; st.Blocks != 3 || st.BlockCapacity != 1024 || st.AddressesInUse != 2 || st.ObservedGeneration != v4.Generation {
			return fmt.Errorf("status of pool v4: %+v", st)
		}
		return nil
	})

	s.delete(t, newNode("node2"))
	s.wantBlocks(t,
		"10-244-0-0-26 v4 node1 primary",
		"10-244-0-128-26 v4 node3 primary",
		"fd00-244---122 v6 node1 primary",
		"fd00-244--80-122 v6 node3 primary",
	)
	eventually(t, func() error {
		err := s.admin.Get(t.Context(), client.ObjectKey{Name: "node2"}, &v1alpha1.NodeStatus{})
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("NodeStatus of the deleted node: %w", err)
		}
		return nil
	})
	s.create(t, newNode("node4"))
	s.wantBlocks(t,
		"10-244-0-0-26 v4 node1 primary",
		"10-244-0-128-26 v4 node3 primary",
		"10-244-0-64-26 v4 node4 primary",
		"fd00-244---122 v6 node1 primary",
		"fd00-244--40-122 v6 node4 primary",
		"fd00-244--80-122 v6 node3 primary",
	)
}

func testSpareAndRelease(t *testing.T, s *suite) {
	s.run(t)
	s.create(t, newPool("v4", "10.244.0.0/24"), newNode("node1"))
	s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary")
	s.use(t, "node1", map[string]int64{"10-244-0-0-26": 2})
	s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary", "10-244-0-64-26 v4 node1")
	s.use(t, "node1", map[string]int64{"10-244-0-0-26": 64, "10-244-0-64-26": 1})
	s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary", "10-244-0-128-26 v4 node1", "10-244-0-64-26 v4 node1")
	s.use(t, "node1", map[string]int64{"10-244-0-0-26": 64, "10-244-0-64-26": 60, "10-244-0-128-26": 1})
	s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary", "10-244-0-128-26 v4 node1", "10-244-0-192-26 v4 node1", "10-244-0-64-26 v4 node1")

	// The pods go. Creation times are whole seconds, so which of the three counts as the youngest
	// may be decided by address; it is the last one in either case.
	s.use(t, "node1", map[string]int64{"10-244-0-0-26": 1, "10-244-0-64-26": 0, "10-244-0-128-26": 0, "10-244-0-192-26": 0})
	s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary", "10-244-0-128-26 v4 node1", "10-244-0-192-26 v4 node1 releasing", "10-244-0-64-26 v4 node1")
	// The agent gives it back.
	s.use(t, "node1", map[string]int64{"10-244-0-0-26": 1, "10-244-0-64-26": 0, "10-244-0-128-26": 0})
	s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary", "10-244-0-128-26 v4 node1", "10-244-0-64-26 v4 node1")
}

func testDeletedBlock(t *testing.T, s *suite) {
	s.run(t)
	s.create(t, newPool("v4", "10.244.0.0/24"), newNode("node1"))
	s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary")
	s.report(t, "node1", v1alpha1.NodeStatusStatus{
		PodNetworkIPs: []string{"10.244.0.1"},
		Blocks:        []v1alpha1.BlockStatus{{Name: "10-244-0-0-26", CIDR: "10.244.0.0/26", Pool: "v4", InUse: 5}},
	})
	s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary", "10-244-0-64-26 v4 node1")
	var before, after v1alpha1.IPBlock
	s.get(t, "10-244-0-0-26", &before)
	s.delete(t, &before)
	eventually(t, func() error {
		if err := s.admin.Get(t.Context(), client.ObjectKey{Name: before.Name}, &after); err != nil {
			return err
		}
		return nil
	})
	if after.UID == before.UID || after.Spec != before.Spec {
		t.Errorf("before %v %+v, after %v %+v", before.UID, before.Spec, after.UID, after.Spec)
	}
	s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary", "10-244-0-64-26 v4 node1")
}

func testOverlap(t *testing.T, s *suite) {
	s.run(t)
	s.create(t, newPool("old", "10.244.0.0/17"), newNode("node1"))
	s.wantBlocks(t, "10-244-0-0-26 old node1 primary")
	s.create(t, newPool("a-new", "10.244.0.0/16"), newPool("other", "10.9.0.0/16"))
	old, fresh := newPool("old", ""), newPool("a-new", "")
	s.wantReady(t, fresh, "False Overlap: overlaps the older pool old (10.244.0.0/17): no block of it is given to a node")
	s.wantReady(t, old, inForce)
	s.wantReady(t, newPool("other", ""), inForce)
	s.wantEvent(t, "IPPool", "a-new", "Warning Overlap")
	s.create(t, newNode("node2")) // what worked goes on working: the first by name that is in force
	s.wantBlocks(t, "10-244-0-0-26 old node1 primary", "10-244-0-64-26 old node2 primary")
	s.delete(t, old)
	s.wantReady(t, fresh, inForce)
}

func testTooSmall(t *testing.T, s *suite) {
	s.run(t)
	s.create(t, newPool("v4", "10.244.0.0/25"), newNode("node1"), newNode("node2"))
	s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary", "10-244-0-64-26 v4 node2 primary")
	s.create(t, newNode("node3"))
	v4 := newPool("v4", "")
	s.wantReady(t, v4, "False Exhausted: no block is free; nodes without a block: node3")
	s.wantEvent(t, "IPPool", "v4", "Warning Exhausted")
	s.wantEvent(t, "Node", "node3", "Warning IPPoolExhausted")
	s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary", "10-244-0-64-26 v4 node2 primary")
	s.create(t, newPool("z", "10.245.0.0/25"))
	s.wantReady(t, v4, inForce)
	s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary", "10-244-0-64-26 v4 node2 primary", "10-245-0-0-26 z node3 primary")
}

func testReplacedPool(t *testing.T, s *suite) {
	s.run(t)
	s.create(t, newPool("old", "10.244.0.0/24"), newNode("node1"))
	s.wantBlocks(t, "10-244-0-0-26 old node1 primary")
	s.use(t, "node1", map[string]int64{"10-244-0-0-26": 1})
	s.delete(t, newPool("old", ""))
	s.create(t, newPool("new", "10.244.0.0/16")) // over the range of the old one
	s.wantBlocks(t, "10-244-0-0-26 old node1 primary releasing", "10-244-0-64-26 new node1 primary")
	s.use(t, "node1", map[string]int64{"10-244-0-64-26": 1})
	s.wantBlocks(t, "10-244-0-64-26 new node1 primary")
}

// Without leader election two controllers plan at once. They may waste a block, but never give one
// range to two nodes; and one of two primaries is asked back.
func testRace(t *testing.T, s *suite) {
	s.run(t)
	s.run(t)
	s.create(t, newPool("v4", "10.244.0.0/20"), newPool("v6", "fd00:244::/56"))
	const nodes = 60
	var wg sync.WaitGroup
	for half := range 2 {
		wg.Go(func() {
			for i := half * nodes / 2; i < (half+1)*nodes/2; i++ {
				if err := s.admin.Create(t.Context(), newNode(fmt.Sprint("node", i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	eventually(t, func() error {
		for key, blocks := range s.byNodeFamily(t) {
			s.use(t, key.node, reports(s.blocksOf(t, key.node)))
			if len(blocks) != 1 {
				return fmt.Errorf("%v has %d primaries: %v", key, len(blocks), blocks)
			}
		}
		if got := len(s.byNodeFamily(t)); got != 2*nodes {
			return fmt.Errorf("%d of %d nodes and families have a primary", got, 2*nodes)
		}
		return nil
	})
	var all []netip.Prefix
	var list v1alpha1.IPBlockList
	if err := s.admin.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	for _, b := range list.Items {
		all = append(all, netip.MustParsePrefix(b.Spec.CIDR))
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	for i := 1; i < len(all); i++ {
		if all[i].Overlaps(all[i-1]) {
			t.Errorf("blocks %s and %s overlap", all[i-1], all[i])
		}
	}
}

type nodeFamily struct {
	node string
	v6   bool
}

// byNodeFamily lists the primaries that are not releasing.
func (s *suite) byNodeFamily(t *testing.T) map[nodeFamily][]string {
	t.Helper()
	var list v1alpha1.IPBlockList
	if err := s.admin.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	m := map[nodeFamily][]string{}
	for _, b := range list.Items {
		if b.Spec.Primary && !b.Spec.Releasing {
			key := nodeFamily{b.Spec.Node, b.Spec.Pool == "v6"}
			m[key] = append(m[key], b.Name)
		}
	}
	return m
}

func (s *suite) blocksOf(t *testing.T, node string) []v1alpha1.IPBlock {
	t.Helper()
	var list v1alpha1.IPBlockList
	if err := s.admin.List(t.Context(), &list, client.MatchingLabels{v1alpha1.LabelNode: node}); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// reports is what an agent without pods says of its blocks.
func reports(blocks []v1alpha1.IPBlock) map[string]int64 {
	m := map[string]int64{}
	for _, b := range blocks {
		if !b.Spec.Releasing {
			m[b.Name] = 1
		}
	}
	return m
}

func testLeaderElection(t *testing.T, s *suite) {
	first, stopFirst := s.runWith(t, Options{LeaderElection: true})
	wait(t, first.Elected(), "the first controller to lead")
	second, _ := s.runWith(t, Options{LeaderElection: true})
	s.create(t, newPool("v4", "10.244.0.0/24"), newNode("node1"))
	s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary")
	select {
	case <-second.Elected():
		t.Fatal("both lead")
	default:
	}
	if !second.GetCache().WaitForCacheSync(t.Context()) {
		t.Error("the one that waits has no caches")
	}
	stopFirst()
	wait(t, second.Elected(), "the second controller to lead")
	s.create(t, newNode("node2"))
	s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary", "10-244-0-64-26 v4 node2 primary")
}

func wait(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("after %v still waiting for %s", patience, what)
	}
}

// In a settled cluster nothing is written, and one more node costs its blocks and the pools'
// status, however many nodes there are. HELIOGRAPH_SCALE sets how many: 5000 takes a minute or two.
func testWrites(t *testing.T, s *suite) {
	nodes := 150
	if n, err := strconv.Atoi(os.Getenv("HELIOGRAPH_SCALE")); err == nil {
		nodes = n
	}
	s.create(t, newPool("v4", "10.0.0.0/8"), newPool("v6", "fd00:244::/48"))
	parallel(nodes, func(i int) {
		if err := s.admin.Create(t.Context(), newNode(fmt.Sprintf("node%05d", i))); err != nil {
			t.Error(err)
		}
	})
	start := s.writes.Load()
	began := time.Now()
	s.run(t)
	s.settled(t, 2*(nodes))
	burst := s.writes.Load() - start
	t.Logf("%d nodes at once: %d writes in %v", nodes, burst, time.Since(began).Round(time.Millisecond))
	// Per node 2 blocks, a taint and a condition, and per plan at most 2 pools' status.
	if burst > int64(4*nodes+100) {
		t.Errorf("%d nodes at once cost %d writes", nodes, burst)
	}

	start, began = s.writes.Load(), time.Now()
	s.create(t, newNode("one-more"))
	s.settled(t, 2*(nodes+1))
	t.Logf("one more node: %d writes in %v", s.writes.Load()-start, time.Since(began).Round(time.Millisecond))
	time.Sleep(4 * planDelay)                     // whatever else it might write
	if got := s.writes.Load() - start; got > 10 { // of which a taint and a condition
		t.Errorf("one more node among %d costs %d writes, want at most 10", nodes, got)
	}
	start = s.writes.Load()
	time.Sleep(time.Second)
	if got := s.writes.Load() - start; got != 0 {
		t.Errorf("a settled cluster costs %d writes a second", got)
	}
}

func parallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	const workers = 8
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				f(i)
			}
		})
	}
	wg.Wait()
}

// settled waits until the pools say that this many blocks are held and every node says what its network
// is: two controllers write side by side, and either may be the last.
func (s *suite) settled(t *testing.T, blocks int) {
	t.Helper()
	deadline := time.Now().Add(patience + time.Duration(blocks)*20*time.Millisecond)
	for {
		var pools v1alpha1.IPPoolList
		if err := s.admin.List(t.Context(), &pools); err != nil {
			t.Fatal(err)
		}
		held := 0
		for _, p := range pools.Items {
			held += int(p.Status.Blocks)
		}
		var nodes corev1.NodeList
		if err := s.admin.List(t.Context(), &nodes); err != nil {
			t.Fatal(err)
		}
		silent := 0
		for _, n := range nodes.Items {
			if _, c := networkCondition(n.Status.Conditions); c.Reason == "" {
				silent++
			}
		}
		if held == blocks && silent == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d blocks are held, want %d; %d nodes say nothing of their network", held, blocks, silent)
		}
		time.Sleep(50 * time.Millisecond) // between looks, bounded by the deadline
	}
}

// A replica that has just become leader may have old caches. What it believes to be gone is looked
// up before anything is deleted.
func testStaleCache(t *testing.T, s *suite) {
	block := func(name, cidr, node string, releasing bool) *v1alpha1.IPBlock {
		b := &v1alpha1.IPBlock{Spec: v1alpha1.IPBlockSpec{CIDR: cidr, Pool: "v4", Node: node, Primary: true, Releasing: releasing}}
		b.Name = name
		return b
	}
	s.create(t, newPool("v4", "10.244.0.0/16"), newNode("node1"),
		block("10-244-0-0-26", "10.244.0.0/26", "node1", false), block("10-244-0-64-26", "10.244.0.64/26", "node1", true))
	s.use(t, "node1", map[string]int64{"10-244-0-0-26": 1, "10-244-0-64-26": 3})
	for _, tt := range []struct {
		name  string
		stale func(list client.ObjectList)
	}{
		{"does not know the node", func(list client.ObjectList) {
			if l, ok := list.(*corev1.NodeList); ok {
				l.Items = nil
			}
		}},
		{"does not know that the node lists the block", func(list client.ObjectList) {
			if l, ok := list.(*v1alpha1.NodeStatusList); ok {
				l.Items[0].Status.Blocks = l.Items[0].Status.Blocks[:0]
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := s.reconciler(t, interceptor.Funcs{
				List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
					err := c.List(ctx, list, opts...)
					tt.stale(list)
					return err
				},
			})
			if _, err := r.Reconcile(t.Context(), everything); err != nil {
				t.Error(err)
			}
			s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary", "10-244-0-64-26 v4 node1 primary releasing")
		})
	}
}

// reconciler is one without a manager and its caches.
func (s *suite) reconciler(t *testing.T, f interceptor.Funcs) *IPBlockReconciler {
	t.Helper()
	c, err := client.NewWithWatch(s.config, client.Options{Scheme: s.admin.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	return &IPBlockReconciler{
		Client: interceptor.NewClient(c, f), Live: s.admin, Log: slog.New(slog.DiscardHandler),
		Events: events.NewFakeRecorder(100), metrics: newMetrics(prometheus.NewRegistry(), "test"),
	}
}

// One write that fails does not keep the others from being made, and is made at the next try.
func testFailures(t *testing.T, s *suite) {
	s.create(t, newPool("v4", "10.244.0.0/16"), newNode("node1"), newNode("node2"), newNode("node3"))
	broken := true
	registry := prometheus.NewRegistry()
	r := s.reconciler(t, interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			if broken && obj.GetName() == "10-244-0-64-26" {
				return errors.New("etcd is slow today")
			}
			return c.Create(ctx, obj, opts...)
		},
	})
	r.metrics = newMetrics(registry, "test")
	_, err := r.Reconcile(t.Context(), everything)
	if want := "create IPBlock 10-244-0-64-26 for node node2: etcd is slow today"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary", "10-244-0-128-26 v4 node3 primary")
	broken = false
	if _, err := r.Reconcile(t.Context(), everything); err != nil {
		t.Error(err)
	}
	s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary", "10-244-0-128-26 v4 node3 primary", "10-244-0-64-26 v4 node2 primary")
	for name, want := range map[string]float64{
		"heliograph_ippool_blocks": 3, "heliograph_ippool_block_capacity": 1024, "heliograph_ippool_addresses_in_use": 0,
		"heliograph_ipblock_writes_total": 3, "heliograph_build_info": 1,
	} {
		if got := sum(t, registry, name); got != want {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}

	// Somebody else's block is in the place that the plan chose: the next plan goes around it.
	s.create(t, newNode("node4"))
	r.Client = interceptor.NewClient(r.Client.(client.WithWatch), interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			other := obj.DeepCopyObject().(*v1alpha1.IPBlock)
			other.Spec.Node = "node3"
			if err := s.admin.Create(ctx, other); client.IgnoreAlreadyExists(err) != nil {
				return err
			}
			return c.Create(ctx, obj, opts...)
		},
	})
	result, err := r.Reconcile(t.Context(), everything)
	if err != nil || result.RequeueAfter != planDelay {
		t.Errorf("got %v, %v, want to plan again", result, err)
	}
	s.wantBlocks(t, "10-244-0-0-26 v4 node1 primary", "10-244-0-128-26 v4 node3 primary", "10-244-0-192-26 v4 node3 primary", "10-244-0-64-26 v4 node2 primary")
}

// sum adds up the gauges and counters of a name.
func sum(t *testing.T, g prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	total := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			total += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return total
}
