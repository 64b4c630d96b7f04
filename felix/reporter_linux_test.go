// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/watch"
	"github.com/heliograph-dev/heliograph/internal/apitest"
)

// api is a real API server with the rights of config/rbac, and an agent's token for node a.
type api struct {
	admin  client.Client
	agent  *rest.Config // as node a's agent
	writes atomic.Int64 // of the agent
	reads  atomic.Int64
}

func TestReporterOnAPIServer(t *testing.T) {
	a := newAPI(t)
	for name, test := range map[string]func(*testing.T, *api){
		"create and leave alone": testReporterWrites,
		"conflict":               testReporterConflict,
		"no node":                testReporterWithoutNode,
		"another node":           testReporterOfAnotherNode,
		"events":                 testEvents,
	} {
		t.Run(name, func(t *testing.T) {
			for _, obj := range []client.Object{&v1alpha1.NodeStatus{}, &corev1.Node{}} {
				if err := a.admin.DeleteAllOf(t.Context(), obj); err != nil {
					t.Fatal(err)
				}
			}
			test(t, a)
		})
	}
}

func newAPI(t *testing.T) *api {
	t.Helper()
	log.SetLogger(logr.Discard())
	cfg := apitest.Start(t)
	scheme, err := watch.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	a := &api{}
	if a.admin, err = client.New(cfg, client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	apitest.CreateRBAC(t, a.admin, "namespace.yaml", "serviceaccounts.yaml", "agent_role.yaml", "agent_admission.yaml")
	a.agent = rest.AnonymousClientConfig(cfg)
	a.agent.BearerToken = nodeToken(t, cfg, a.admin)
	a.agent.QPS = -1
	a.agent.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method == http.MethodGet {
				a.reads.Add(1)
			} else {
				a.writes.Add(1)
			}
			return next.RoundTrip(r)
		})
	})
	return a
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// nodeToken asks for a token as kubelet does for a pod on node a: bound to the pod, and so to its node.
func nodeToken(t *testing.T, cfg *rest.Config, admin client.Client) string {
	t.Helper()
	node := newNode("a")
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "agent-a", Namespace: "heliograph-system"},
		Spec: corev1.PodSpec{
			NodeName: "a", ServiceAccountName: "heliograph-agent", HostNetwork: true,
			Containers: []corev1.Container{{Name: "agent", Image: "none"}},
		},
	}
	for _, obj := range []client.Object{node, p} {
		if err := admin.Create(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID},
	}}
	got, err := kubernetes.NewForConfigOrDie(cfg).CoreV1().ServiceAccounts(p.Namespace).CreateToken(t.Context(), "heliograph-agent", request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return got.Status.Token
}

func newNode(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func (a *api) create(t *testing.T, objs ...client.Object) {
	t.Helper()
	for _, obj := range objs {
		if err := a.admin.Create(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
	}
}

// reporter is that of node a's agent; node is whom it speaks of.
func (a *api) reporter(t *testing.T, node string) *reporter {
	t.Helper()
	scheme, err := watch.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	mapper, err := watch.Mapper(scheme)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(a.agent, client.Options{Scheme: scheme, Mapper: mapper})
	if err != nil {
		t.Fatal(err)
	}
	return newReporter(c, node, noReflector, noPolicy, slog.New(slog.NewTextHandler(t.Output(), nil)))
}

func sampleReport() *Report {
	return &Report{
		Version: "v0", InSync: true, Blocks: []BlockUse{{Name: "a0", CIDR: prefix("10.244.0.0/26"), Pool: "default", InUse: 3}},
		BGP:   bgp.Snapshot{Sessions: []bgp.Session{{Peer: "node/b", Address: addr("192.168.11.2"), State: bgp.StateEstablished, Since: time.Now()}}},
		Paths: []PathReport{{Path: calc.Path{Node: "b", Family: bgp.IPv4, Method: v1alpha1.PathNative, Reason: "same subnet"}, Since: time.Now()}},
	}
}

func testReporterWrites(t *testing.T, a *api) {
	node := newNode("a")
	a.create(t, node)
	r := a.reporter(t, "a")
	before := a.writes.Load() // of other tests
	if err := r.write(t.Context()); err != nil || a.writes.Load() != before {
		t.Fatalf("before the first report: %v, %d writes", err, a.writes.Load()-before)
	}
	r.publish(sampleReport())
	if err := r.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	var ns v1alpha1.NodeStatus
	if err := a.admin.Get(t.Context(), client.ObjectKey{Name: "a"}, &ns); err != nil {
		t.Fatal(err)
	}
	if o := ns.OwnerReferences; len(o) != 1 || o[0].UID != node.UID || o[0].Kind != "Node" {
		t.Errorf("owner: %+v", o)
	}
	if !apimeta.IsStatusConditionTrue(ns.Status.Conditions, v1alpha1.ConditionReady) || !apimeta.IsStatusConditionFalse(ns.Status.Conditions, "Stale") || ns.Status.Blocks[0].InUse != 3 {
		t.Errorf("status: %+v", ns.Status)
	}
	writes, reads := a.writes.Load(), a.reads.Load()
	for range 3 {
		again := *r.latest.Load() // another run, with nothing new
		again.Generation++
		r.publish(&again)
		if err := r.write(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if a.writes.Load() != writes || a.reads.Load() != reads {
		t.Errorf("a report without news cost %d writes and %d reads", a.writes.Load()-writes, a.reads.Load()-reads)
	}
	// Neither does a new agent write what its predecessor wrote.
	next := a.reporter(t, "a")
	next.publish(r.latest.Load())
	if err := next.write(t.Context()); err != nil || a.writes.Load() != writes {
		t.Errorf("a restart: %v, %d writes", err, a.writes.Load()-writes)
	}
	stale := *r.latest.Load()
	stale.FromDisk, stale.InSync = true, false
	r.publish(&stale)
	if err := r.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.admin.Get(t.Context(), client.ObjectKey{Name: "a"}, &ns); err != nil || !apimeta.IsStatusConditionTrue(ns.Status.Conditions, "Stale") || !apimeta.IsStatusConditionFalse(ns.Status.Conditions, v1alpha1.ConditionReady) {
		t.Errorf("%v, conditions %+v", err, ns.Status.Conditions)
	}
}

// Who was overtaken asks again, and says what it has to say.
func testReporterConflict(t *testing.T, a *api) {
	a.create(t, newNode("a"))
	r := a.reporter(t, "a")
	r.publish(sampleReport())
	if err := r.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	var ns v1alpha1.NodeStatus
	if err := a.admin.Get(t.Context(), client.ObjectKey{Name: "a"}, &ns); err != nil {
		t.Fatal(err)
	}
	apimeta.SetStatusCondition(&ns.Status.Conditions, metav1.Condition{Type: "Seen", Status: "True", Reason: "Test"})
	if err := a.admin.Status().Update(t.Context(), &ns); err != nil {
		t.Fatal(err)
	}
	changed := sampleReport()
	changed.Version = "v1"
	r.publish(changed)
	if err := r.write(t.Context()); !apierrors.IsConflict(err) {
		t.Errorf("got %v, want a conflict", err)
	}
	if !r.reachable.Load() {
		t.Error("an API server that answers counts as away")
	}
	if err := r.write(t.Context()); err != nil {
		t.Error(err)
	}
	if err := a.admin.Get(t.Context(), client.ObjectKey{Name: "a"}, &ns); err != nil || ns.Status.Version != "v1" || !apimeta.IsStatusConditionTrue(ns.Status.Conditions, "Seen") {
		t.Errorf("%v: %+v", err, ns.Status)
	}
}

func testReporterWithoutNode(t *testing.T, a *api) {
	r := a.reporter(t, "a")
	r.publish(sampleReport())
	if err := r.write(t.Context()); !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), "create NodeStatus a: read its owner: ") {
		t.Errorf("got %v", err)
	}
}

// The token of node a's agent is good for node a alone.
func testReporterOfAnotherNode(t *testing.T, a *api) {
	a.create(t, newNode("a"), newNode("b"))
	// The policy takes a moment to be in force.
	eventually(t, patience, func() string {
		r := a.reporter(t, "b")
		r.publish(sampleReport())
		err := r.write(t.Context())
		if err == nil || !strings.Contains(err.Error(), "an agent may write the NodeStatus of its own node only, not b") {
			_ = client.IgnoreNotFound(a.admin.Delete(t.Context(), &v1alpha1.NodeStatus{ObjectMeta: metav1.ObjectMeta{Name: "b"}}))
			return "not refused: " + errorText(err)
		}
		return ""
	})
	a.create(t, &v1alpha1.NodeStatus{ObjectMeta: metav1.ObjectMeta{Name: "b"}})
	r := a.reporter(t, "b")
	r.publish(sampleReport())
	if err := r.write(t.Context()); err == nil || !strings.Contains(err.Error(), "own node only") {
		t.Errorf("an update of another's status: %v", err)
	}
	own := a.reporter(t, "a")
	own.publish(sampleReport())
	if err := own.write(t.Context()); err != nil {
		t.Errorf("its own: %v", err)
	}
}

func errorText(err error) string {
	if err == nil {
		return "no error"
	}
	return err.Error()
}

// A burst of changes is a handful of Events; each names the path it is about.
func testEvents(t *testing.T, a *api) {
	a.create(t, newNode("a"))
	scheme, err := watch.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	e, err := newEvents(a.agent, scheme, "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := e.start(ctx); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- e.run(ctx) }()
	change := func(node string, f bgp.Family) PathReport {
		return PathReport{Path: calc.Path{Node: node, Family: f, Method: v1alpha1.PathVXLAN, Reason: "no BGP route"}}
	}
	for i := range 20 { // one by one, as the sessions of a dead router go down
		e.pathsChanged([]PathReport{change("n"+string(rune('a'+i)), bgp.IPv4), change("n"+string(rune('a'+i)), bgp.IPv6)})
	}
	var list eventsv1.EventList
	eventually(t, patience, func() string {
		if err := a.admin.List(t.Context(), &list); err != nil {
			return err.Error()
		}
		notes := ""
		for _, item := range list.Items {
			notes += item.Note + "\n"
		}
		for _, want := range []string{"IPv4 to na is now VXLAN: no BGP route", "IPv6 to na is now VXLAN", "IPv4 to nb", "more paths changed; see NodeStatus a"} {
			if !strings.Contains(notes, want) {
				return want + " is not in\n" + notes
			}
		}
		return ""
	})
	if len(list.Items) > eventBurst+1 {
		t.Errorf("%d Events", len(list.Items))
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	e.pathsChanged([]PathReport{change("late", bgp.IPv4)}) // after the end: nothing happens
}

// An API server that is away is noticed, told once, and told again when it is back.
func TestReporterOutOfReach(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	scheme, err := watch.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	mapper, err := watch.Mapper(scheme)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(&rest.Config{Host: "http://" + address}, client.Options{Scheme: scheme, Mapper: mapper})
	if err != nil {
		t.Fatal(err)
	}
	log := &logBuffer{}
	r := newReporter(c, "a", noReflector, noPolicy, slog.New(slog.NewTextHandler(log, nil)))
	r.publish(sampleReport())
	r.reachable.Store(true)
	for range 3 {
		if err := r.write(t.Context()); err == nil || r.reachable.Load() {
			t.Fatalf("got %v, reachable %v", err, r.reachable.Load())
		}
	}
	if n := log.count("level=WARN"); n != 1 {
		t.Errorf("told %d times:\n%s", n, log.String())
	}
	r.noteReachable(nil)
	if c := r.staleCondition(sampleReport()); !strings.Contains(c.Message, "it was out of reach since") {
		t.Errorf("condition %+v", c)
	}
	refusal := apierrors.NewForbidden(schema.GroupResource{Resource: "nodestatuses"}, "a", nil)
	r.noteReachable(refusal)
	r.noteReachable(refusal)
	if n := log.count("cannot write NodeStatus"); n != 1 {
		t.Errorf("a refusal was told %d times:\n%s", n, log.String())
	}
}

func noPolicy() policyReport { return policyReport{inForce: true} }

func noReflector() *v1alpha1.ReflectorStatus { return nil }
