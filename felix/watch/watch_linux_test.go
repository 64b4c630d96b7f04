// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/felix/feed"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
	"github.com/heliograph-dev/heliograph/internal/apitest"
)

const (
	namespace = "heliograph-system"
	patience  = 20 * time.Second
	// quiet is how long nothing has to happen before it counts as not happening.
	quiet = 300 * time.Millisecond
)

// cluster is a real API server, seen by an administrator and by an agent with config/rbac's rights.
type cluster struct {
	admin client.Client
	root  *rest.Config // the administrator's
	agent *rest.Config
	feed  *feed.Feed
}

func TestWatcherOnAPIServer(t *testing.T) {
	c := newCluster(t)
	w, stop := c.start(t)
	eventually(t, func() string {
		if !w.Synced() {
			return "not in sync: are the agent's rights enough?"
		}
		return ""
	})
	t.Run("objects", func(t *testing.T) { testObjects(t, c, w) })
	t.Run("changes", func(t *testing.T) { testChanges(t, c, w) })
	t.Run("feed", func(t *testing.T) { testFeed(t, c) })
	t.Run("order", func(t *testing.T) { testOrder(t, c, w) })
	t.Run("uninstall", func(t *testing.T) { testUninstalling(t, c, w) })
	stop()
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	cfg := apitest.Start(t)
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{root: cfg, agent: rest.CopyConfig(cfg), feed: feed.New()}
	if c.admin, err = client.New(cfg, client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	apitest.CreateRBAC(t, c.admin, "namespace.yaml", "serviceaccounts.yaml", "agent_role.yaml")
	c.agent.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:" + namespace + ":heliograph-agent",
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"},
	}
	return c
}

func (c *cluster) create(t *testing.T, objs ...client.Object) {
	t.Helper()
	for _, obj := range objs {
		if err := c.admin.Create(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
	}
}

// start runs a watcher; stop ends it and waits.
func (c *cluster) start(t *testing.T) (w *Watcher, stop func()) {
	t.Helper()
	w, err := New(c.agent, Options{
		Namespace: namespace, DaemonSet: "heliograph-agent", Path: filepath.Join(t.TempDir(), "snapshot.json"),
		Log: slog.New(slog.DiscardHandler), Feed: c.feed, InstallCheck: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
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
				t.Errorf("the watcher ends with %v", err)
			}
		case <-time.After(patience):
			t.Error("the watcher does not end")
		}
	}
	t.Cleanup(stop)
	return w, stop
}

func eventually(t *testing.T, missing func() string) {
	t.Helper()
	var last string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if last = missing(); last == "" {
			return
		}
	}
	t.Fatal(last)
}

// poked waits for a poke.
func poked(t *testing.T, w *Watcher, why string) {
	t.Helper()
	select {
	case <-w.Changed():
	case <-time.After(patience):
		t.Errorf("%s: no poke", why)
	}
	calm(w)
}

// calm takes pokes until there are no more.
func calm(w *Watcher) (pokes int) {
	for {
		select {
		case <-w.Changed():
			pokes++
		case <-time.After(quiet):
			return pokes
		}
	}
}

// holds waits until the watcher's objects are as they should be.
func holds(t *testing.T, w *Watcher, what string, ok func(snapshot.Objects) bool) {
	t.Helper()
	eventually(t, func() string {
		o, err := w.Objects(t.Context())
		if err != nil || !ok(o) {
			return what + ": not seen"
		}
		return ""
	})
}

func secret(name string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, Data: map[string][]byte{"password": []byte(name)}}
}

// Every kind arrives, and of the Secrets those that somebody refers to.
func testObjects(t *testing.T, c *cluster, w *Watcher) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"rack": "1"}, Annotations: map[string]string{"long": "story"}}}
	peer := &v1alpha1.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: "tor"}, Spec: v1alpha1.BGPPeerSpec{PeerIP: "192.168.11.254", ASNumber: 65101}}
	peer.Spec.Password = &v1alpha1.BGPPassword{SecretKeyRef: corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "tor"}, Key: "password"}}
	c.create(t, node, peer, secret("tor"), secret("other"),
		&v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.IPPoolSpec{CIDR: "10.244.0.0/16"}},
		&v1alpha1.IPBlock{ObjectMeta: metav1.ObjectMeta{Name: "a0"}, Spec: v1alpha1.IPBlockSpec{CIDR: "10.244.0.0/26", Pool: "default", Node: "a"}},
		&v1alpha1.BGPConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		&v1alpha1.FelixConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	holds(t, w, "all kinds", func(o snapshot.Objects) bool {
		return len(o.Nodes) == 1 && len(o.Pools) == 1 && len(o.Blocks) == 1 && len(o.BGP) == 1 && len(o.Peers) == 1 && len(o.Felix) == 1 && len(o.Secrets) == 1
	})
	o, err := w.Objects(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if string(o.Secrets["tor"]["password"]) != "tor" {
		t.Errorf("secrets: %v", o.Secrets)
	}
	if n := o.Nodes[0]; n.Labels["rack"] != "1" || n.Annotations != nil || n.ManagedFields != nil {
		t.Errorf("node: %+v", n)
	}
	if err := w.Save(o); err != nil {
		t.Fatal(err)
	}
	if loaded, _, err := w.Load(); err != nil || len(loaded.Peers) != 1 {
		t.Errorf("%v: %+v", err, loaded)
	}
	calm(w)
}

// What an agent looks at pokes; heartbeats and statuses do not.
func testChanges(t *testing.T, c *cluster, w *Watcher) {
	ctx := t.Context()
	update := func(obj client.Object, write func() error) {
		t.Helper()
		if err := c.admin.Get(ctx, client.ObjectKeyFromObject(obj), obj); err != nil {
			t.Fatal(err)
		}
		if err := write(); err != nil {
			t.Fatal(err)
		}
	}
	node, pool := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	ready := func(at time.Time) {
		t.Helper()
		update(node, func() error {
			node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(at)}}
			return c.admin.Status().Update(ctx, node)
		})
	}
	ready(time.Now())
	poked(t, w, "a node gets ready")
	ready(time.Now().Add(10 * time.Second)) // the API keeps whole seconds
	update(pool, func() error { pool.Status.Blocks = 7; return c.admin.Status().Update(ctx, pool) })
	holds(t, w, "a status", func(o snapshot.Objects) bool {
		return o.Pools[0].Status.Blocks == 7 && o.Nodes[0].ResourceVersion == node.ResourceVersion
	})
	if n := calm(w); n != 0 {
		t.Errorf("a heartbeat and a status poke %d times", n)
	}
	update(node, func() error {
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.11.1"}}
		return c.admin.Status().Update(ctx, node)
	})
	poked(t, w, "a node's address")
	update(pool, func() error { pool.Spec.NATOutgoing = true; return c.admin.Update(ctx, pool) })
	poked(t, w, "a pool's spec")
	if err := c.admin.Delete(ctx, &v1alpha1.IPBlock{ObjectMeta: metav1.ObjectMeta{Name: "a0"}}); err != nil {
		t.Fatal(err)
	}
	poked(t, w, "a block's deletion")
	rotated := secret("tor")
	update(rotated, func() error { rotated.Data["password"] = []byte("new"); return c.admin.Update(ctx, rotated) })
	poked(t, w, "a new password")
}

// Listed twice, the objects are in the same order: the copy on disk is compared by its bytes.
func testOrder(t *testing.T, c *cluster, w *Watcher) {
	var names []string
	for _, r := range "hgfedcb" {
		names = append(names, "n-"+string(r))
		c.create(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n-" + string(r)}})
	}
	names = append(names, "a")
	slices.Sort(names)
	holds(t, w, "nodes", func(o snapshot.Objects) bool { return len(o.Nodes) == len(names) })
	for range 20 {
		o, err := w.Objects(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, n := range o.Nodes {
			got = append(got, n.Name)
		}
		if !slices.Equal(got, names) {
			t.Fatalf("got %q, want %q", got, names)
		}
	}
}

func testUninstalling(t *testing.T, c *cluster, w *Watcher) {
	daemonSet := func(name string) *appsv1.DaemonSet {
		labels := map[string]string{"app": name}
		return &appsv1.DaemonSet{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
			Spec: appsv1.DaemonSetSpec{
				Selector: &metav1.LabelSelector{MatchLabels: labels},
				Template: corev1.PodTemplateSpec{
					ObjectMeta: metav1.ObjectMeta{Labels: labels},
					Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "agent", Image: "none"}}},
				},
			},
		}
	}
	is := func(want bool) {
		t.Helper()
		eventually(t, func() string {
			if w.Uninstalling() != want {
				return "uninstalling is not " + map[bool]string{true: "noticed", false: "forgotten"}[want]
			}
			return ""
		})
	}
	is(false) // there is no DaemonSet yet: an agent may run without
	remove := func(ds *appsv1.DaemonSet, how metav1.DeletionPropagation) {
		t.Helper()
		if err := c.admin.Delete(t.Context(), ds, client.PropagationPolicy(how)); err != nil {
			t.Fatal(err)
		}
	}
	other := daemonSet("other")
	ours := daemonSet("heliograph-agent")
	c.create(t, other, ours)
	remove(other, metav1.DeletePropagationBackground)
	is(false)
	// The API server of the tests has no garbage collector: the object stays, being deleted.
	remove(ours, metav1.DeletePropagationForeground)
	is(true)
	ours.Finalizers = nil
	if err := c.admin.Patch(t.Context(), ours, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if err := c.admin.Create(t.Context(), daemonSet("heliograph-agent")); err != nil {
			return err.Error()
		}
		return ""
	})
	is(false) // installed anew
	remove(daemonSet("heliograph-agent"), metav1.DeletePropagationBackground)
	is(true)
}

// Without an API server a watcher neither waits in New nor ends by itself, and does end when told to.
func TestWatcherWithoutAPIServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c := &cluster{agent: &rest.Config{Host: "http://" + address}}
	w, stop := c.start(t)
	if n := calm(w); n != 0 || w.Synced() || w.Uninstalling() {
		t.Errorf("%d pokes, synced %v, uninstalling %v", n, w.Synced(), w.Uninstalling())
	}
	start := time.Now()
	stop()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("ends after %s", took)
	}
}
