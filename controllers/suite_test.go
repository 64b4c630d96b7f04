// SPDX-License-Identifier: Apache-2.0

//go:build linux

package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/internal/apitest"
)

const (
	namespace = "heliograph-system"
	// patience is how long a test waits for what must become true.
	patience = 20 * time.Second
)

// suite is a real API server, and how the administrator and the controller see it.
type suite struct {
	admin  client.Client
	rest   *rest.Config // of the administrator
	config *rest.Config // of the controller: its ServiceAccount, with the rights of config/rbac alone
	writes atomic.Int64 // requests of controllers that change something
}

// TestAPI runs the controllers against a real API server, with the rights that config/rbac gives.
func TestAPI(t *testing.T) {
	s := newSuite(t)
	for name, test := range map[string]func(*testing.T, *suite){
		"blocks for three nodes":      testBlocks,
		"spare and release":           testSpareAndRelease,
		"deleted block in use":        testDeletedBlock,
		"overlapping pools":           testOverlap,
		"pool too small":              testTooSmall,
		"replaced pool":               testReplacedPool,
		"missing Secret":              testSecret,
		"sessions of peers":           testPeers,
		"configuration of felix":      testFelix,
		"two planners at once":        testRace,
		"leader election":             testLeaderElection,
		"writes per node":             testWrites,
		"a wrong delete is prevented": testStaleCache,
		"failing writes":              testFailures,
		"a node without a network":    testUnproven,
		"policies and tiers":          testPolicies,
		"host endpoints":              testHostEndpoints,
		"policies of the cluster":     testClusterPolicies,
		"the rights on nodes":         testNodeGuard,
		"the key of the probes":       testProbeKey,
		"route reflection":            testReflection,
		"a client of reflectors":      testReflectorClient,
	} {
		t.Run(name, func(t *testing.T) {
			s.wipe(t)
			test(t, s)
		})
	}
}

func newSuite(t *testing.T) *suite {
	t.Helper()
	log.SetLogger(logr.Discard())
	cfg := apitest.Start(t)
	cfg.QPS = -1
	scheme, err := NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	s := &suite{rest: cfg}
	if s.admin, err = client.New(cfg, client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	apitest.CreateRBAC(t, s.admin, "namespace.yaml", "serviceaccounts.yaml", "controller_role.yaml", "controller_admission.yaml")
	s.config = rest.CopyConfig(cfg)
	s.config.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:" + namespace + ":heliograph-controller",
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"},
	}
	s.config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodGet && !strings.Contains(r.URL.Path, "/leases") && !strings.Contains(r.URL.Path, "/events") {
				s.writes.Add(1)
			}
			return next.RoundTrip(r)
		})
	})
	return s
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// wipe removes what the last test left.
func (s *suite) wipe(t *testing.T) {
	t.Helper()
	for _, obj := range []client.Object{
		&v1alpha1.BGPPeer{}, &v1alpha1.BGPConfiguration{}, &v1alpha1.FelixConfiguration{},
		&v1alpha1.IPPool{}, &v1alpha1.IPBlock{}, &v1alpha1.NodeStatus{}, &corev1.Node{},
		&v1alpha1.GlobalNetworkPolicy{}, &v1alpha1.Tier{},
	} {
		if err := s.admin.DeleteAllOf(t.Context(), obj); err != nil {
			t.Fatalf("wipe %T: %v", obj, err)
		}
	}
	for obj, ns := range map[client.Object]string{
		&v1alpha1.NetworkPolicy{}: "default", &networkingv1.NetworkPolicy{}: "default", &corev1.Service{}: "default",
		&corev1.Secret{}: namespace, &eventsv1.Event{}: "default", &coordinationv1.Lease{}: namespace,
	} {
		if err := s.admin.DeleteAllOf(t.Context(), obj, client.InNamespace(ns)); err != nil {
			t.Fatalf("wipe %T: %v", obj, err)
		}
	}
}

// run runs a controller until the test ends or stop is called.
func (s *suite) run(t *testing.T) (mgr manager.Manager, stop func()) {
	t.Helper()
	return s.runWith(t, Options{})
}

func (s *suite) runWith(t *testing.T, o Options) (mgr manager.Manager, stop func()) {
	t.Helper()
	o.Namespace, o.MetricsAddress, o.HealthAddress, o.Version = namespace, "0", "0", "v0-test"
	o.Registerer = prometheus.NewRegistry()
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	mgr, err := NewManager(s.config, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("controller: %v", err)
			}
		case <-time.After(patience):
			t.Error("the controller does not end")
		}
	}
	t.Cleanup(stop)
	return mgr, stop
}

func (s *suite) create(t *testing.T, objs ...client.Object) {
	t.Helper()
	for _, obj := range objs {
		if err := s.admin.Create(t.Context(), obj); err != nil {
			t.Fatalf("create %T %s: %v", obj, obj.GetName(), err)
		}
	}
}

func (s *suite) delete(t *testing.T, obj client.Object) {
	t.Helper()
	if err := s.admin.Delete(t.Context(), obj); err != nil {
		t.Fatalf("delete %T %s: %v", obj, obj.GetName(), err)
	}
}

// get reads a cluster-wide object again.
func (s *suite) get(t *testing.T, name string, obj client.Object) {
	t.Helper()
	if err := s.admin.Get(t.Context(), client.ObjectKey{Name: name}, obj); err != nil {
		t.Fatalf("get %T %s: %v", obj, name, err)
	}
}

func newNode(name string, labels ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		n.Labels[k] = v
	}
	return n
}

func newPool(name, cidr string) *v1alpha1.IPPool {
	return &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.IPPoolSpec{CIDR: cidr}}
}

// report writes what an agent would.
func (s *suite) report(t *testing.T, node string, status v1alpha1.NodeStatusStatus) {
	t.Helper()
	obj := &v1alpha1.NodeStatus{}
	if err := s.admin.Get(t.Context(), client.ObjectKey{Name: node}, obj); err != nil {
		obj = &v1alpha1.NodeStatus{ObjectMeta: metav1.ObjectMeta{Name: node}}
		s.create(t, obj)
	}
	obj.Status = status
	if err := s.admin.Status().Update(t.Context(), obj); err != nil {
		t.Fatalf("report of %s: %v", node, err)
	}
}

// use reports blocks: pairs of a block's name and how many addresses are in use.
func (s *suite) use(t *testing.T, node string, inUse map[string]int64) {
	t.Helper()
	var status v1alpha1.NodeStatusStatus
	for name, n := range inUse {
		var b v1alpha1.IPBlock
		s.get(t, name, &b)
		status.Blocks = append(status.Blocks, v1alpha1.BlockStatus{Name: name, CIDR: b.Spec.CIDR, Pool: b.Spec.Pool, InUse: n})
	}
	s.report(t, node, status)
}

// blocks lists the blocks as "NAME POOL NODE [primary] [releasing]", by name.
func (s *suite) blocks(t *testing.T) []string {
	t.Helper()
	var list v1alpha1.IPBlockList
	if err := s.admin.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, b := range list.Items {
		line := b.Name + " " + b.Spec.Pool + " " + b.Spec.Node
		if b.Spec.Primary {
			line += " primary"
		}
		if b.Spec.Releasing {
			line += " releasing"
		}
		out = append(out, line)
	}
	return out
}

// wantBlocks waits for exactly these blocks.
func (s *suite) wantBlocks(t *testing.T, want ...string) {
	t.Helper()
	eventually(t, func() error {
		if got := s.blocks(t); strings.Join(got, "\n") != strings.Join(want, "\n") {
			return fmt.Errorf("got blocks\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
		}
		return nil
	})
}

// wantReady waits for the Ready condition to be "STATUS REASON: MESSAGE" of the current spec.
func (s *suite) wantReady(t *testing.T, obj client.Object, want string) {
	t.Helper()
	eventually(t, func() error {
		if err := s.admin.Get(t.Context(), client.ObjectKeyFromObject(obj), obj); err != nil {
			return err
		}
		c := meta.FindStatusCondition(conditions(obj), v1alpha1.ConditionReady)
		if c == nil {
			return fmt.Errorf("%T %s has no Ready condition, want %s", obj, obj.GetName(), want)
		}
		if got := fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message); got != want || c.ObservedGeneration != obj.GetGeneration() {
			return fmt.Errorf("%T %s is %s (generation %d)\nwant %s (generation %d)",
				obj, obj.GetName(), got, c.ObservedGeneration, want, obj.GetGeneration())
		}
		return nil
	})
}

func conditions(obj client.Object) []metav1.Condition {
	switch o := obj.(type) {
	case *v1alpha1.IPPool:
		return o.Status.Conditions
	case *v1alpha1.BGPPeer:
		return o.Status.Conditions
	case *v1alpha1.BGPConfiguration:
		return o.Status.Conditions
	case *v1alpha1.FelixConfiguration:
		return o.Status.Conditions
	case *v1alpha1.NetworkPolicy:
		return o.Status.Conditions
	case *v1alpha1.GlobalNetworkPolicy:
		return o.Status.Conditions
	case *v1alpha1.HostEndpoint:
		return o.Status.Conditions
	case *v1alpha1.Tier:
		return o.Status.Conditions
	case *policyv1alpha2.ClusterNetworkPolicy:
		return o.Status.Conditions
	}
	return nil
}

// wantEvent waits for an Event "TYPE REASON" about the object.
func (s *suite) wantEvent(t *testing.T, kind, name, want string) {
	t.Helper()
	eventually(t, func() error {
		var list eventsv1.EventList
		if err := s.admin.List(t.Context(), &list); err != nil {
			return err
		}
		var seen []string
		for _, e := range list.Items {
			if e.Regarding.Kind == kind && e.Regarding.Name == name {
				seen = append(seen, e.Type+" "+e.Reason)
				if e.Type+" "+e.Reason == want {
					return nil
				}
			}
		}
		return fmt.Errorf("events of %s %s: %q, want %q", kind, name, seen, want)
	})
}

// eventually waits until f has nothing to complain about.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %v", patience, err)
		}
		time.Sleep(50 * time.Millisecond) // between looks, bounded by the deadline
	}
}
