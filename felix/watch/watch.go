// SPDX-License-Identifier: Apache-2.0

// Package watch keeps an agent's copy of what the API server says, and a copy of that on disk, so
// that the agent can start while the API server is away. It only reads the API, and only pokes:
// what changed is found by asking for Objects.
package watch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/felix/feed"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

// Options say what to watch and where to keep the copy.
type Options struct {
	Namespace string     // of heliograph: for Secrets and the DaemonSet
	DaemonSet string     // name of the agents' DaemonSet, whose deletion means uninstall
	Path      string     // of the copy on disk
	Feed      *feed.Feed // what policy follows from goes there
	Log       *slog.Logger
	// InstallCheck is how often the API server is asked for kinds that it lacked; default a minute.
	InstallCheck time.Duration
}

// Watcher watches the kinds that an agent needs.
type Watcher struct {
	opts         Options
	cache        cache.Cache
	api          discovery.ServerResourcesInterface
	decided      chan struct{} // closed once it is known which optional kinds there are
	store        store
	changed      chan struct{}
	heard        []toolscache.InformerSynced // the feed has all that there was when the watch began
	synced       atomic.Bool
	uninstalling atomic.Bool
}

// Scheme knows every kind that an agent reads or writes.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(s); err != nil {
		return nil, fmt.Errorf("build scheme: %w", err)
	}
	return s, errors.Join(v1alpha1.AddToScheme(s), policyv1alpha2.Install(s))
}

// Mapper knows the kinds of Scheme that an agent uses, so that no client has to ask an API server
// that may be away.
func Mapper(scheme *runtime.Scheme) (meta.RESTMapper, error) {
	m := meta.NewDefaultRESTMapper(nil)
	scopes := map[runtime.Object]meta.RESTScope{
		&corev1.Node{}: meta.RESTScopeRoot, &corev1.Secret{}: meta.RESTScopeNamespace, &appsv1.DaemonSet{}: meta.RESTScopeNamespace,
		&v1alpha1.IPPool{}: meta.RESTScopeRoot, &v1alpha1.IPBlock{}: meta.RESTScopeRoot, &v1alpha1.NodeStatus{}: meta.RESTScopeRoot,
		&v1alpha1.BGPConfiguration{}: meta.RESTScopeRoot, &v1alpha1.BGPPeer{}: meta.RESTScopeRoot, &v1alpha1.FelixConfiguration{}: meta.RESTScopeRoot,
	}
	for kind, empty := range FeedTypes() {
		if kind != Nodes && kind != IPBlocks { // above
			scopes[empty()] = scopeOf(kind)
		}
	}
	for obj, scope := range scopes {
		gvk, err := apiutil.GVKForObject(obj, scheme)
		if err != nil {
			return nil, fmt.Errorf("map kinds: %w", err)
		}
		m.Add(gvk, scope)
		// The cache looks up the scope of a list by the list's own kind.
		m.Add(gvk.GroupVersion().WithKind(gvk.Kind+"List"), scope)
	}
	return m, nil
}

// scopeOf is the scope of a kind that goes to the feed.
func scopeOf(kind feed.Kind) meta.RESTScope {
	switch kind {
	case Namespaces, Nodes, GlobalPolicies, Tiers, GlobalNetworkSets, HostEndpoints, ClusterNetworkPolicies:
		return meta.RESTScopeRoot
	}
	return meta.RESTScopeNamespace
}

// New makes a watcher; Run starts it.
func New(cfg *rest.Config, opts Options) (*Watcher, error) {
	opts.InstallCheck = cmp.Or(opts.InstallCheck, defaultInstallCheck)
	scheme, err := Scheme()
	if err != nil {
		return nil, err
	}
	mapper, err := Mapper(scheme)
	if err != nil {
		return nil, err
	}
	here := map[string]cache.Config{opts.Namespace: {}}
	c, err := cache.New(cfg, cache.Options{
		Scheme:           scheme,
		Mapper:           mapper,
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Node{}:               {Transform: trimNode},
			&corev1.Pod{}:                {Transform: trimPod},
			&corev1.Namespace{}:          {Transform: trimNamespace},
			&corev1.ServiceAccount{}:     {Transform: trimServiceAccount},
			&discoveryv1.EndpointSlice{}: {Transform: trimEndpointSlice},
			&corev1.Secret{}:             {Namespaces: here},
			&appsv1.DaemonSet{}: {
				Namespaces: here,
				Field:      fields.OneTermEqualSelector("metadata.name", opts.DaemonSet),
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make cache: %w", err)
	}
	api, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make discovery client: %w", err)
	}
	return &Watcher{
		api: api, decided: make(chan struct{}),
		opts: opts, cache: c, changed: make(chan struct{}, 1),
		store: store{path: opts.Path},
	}, nil
}

// Run watches until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	kinds := []client.Object{
		&corev1.Node{}, &corev1.Secret{}, &v1alpha1.IPPool{}, &v1alpha1.IPBlock{},
		&v1alpha1.BGPConfiguration{}, &v1alpha1.BGPPeer{}, &v1alpha1.FelixConfiguration{},
	}
	for _, kind := range kinds {
		if err := w.watch(ctx, kind, toolscache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { w.poke() },
			UpdateFunc: func(before, after any) {
				if matters(before, after) {
					w.poke()
				}
			},
			DeleteFunc: func(any) { w.poke() },
		}); err != nil {
			return err
		}
	}
	if err := w.watch(ctx, &appsv1.DaemonSet{}, w.daemonSetHandler()); err != nil {
		return err
	}
	if err := w.watchFeed(ctx); err != nil {
		return err
	}
	var waiting sync.WaitGroup
	defer waiting.Wait()
	waiting.Go(func() { w.awaitSync(ctx) })
	waiting.Go(func() { w.watchOptional(ctx) })
	if err := w.cache.Start(ctx); err != nil {
		return fmt.Errorf("run cache: %w", err)
	}
	return nil
}

func (w *Watcher) watch(ctx context.Context, kind client.Object, h toolscache.ResourceEventHandler) error {
	// Not blocking: without an API server we go on from the copy on disk.
	informer, err := w.cache.GetInformer(ctx, kind, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch %T: %w", kind, err)
	}
	if _, err := informer.AddEventHandler(h); err != nil {
		return fmt.Errorf("watch %T: %w", kind, err)
	}
	return nil
}

func (w *Watcher) awaitSync(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-w.decided:
	}
	if !w.cache.WaitForCacheSync(ctx) || !toolscache.WaitForCacheSync(ctx.Done(), w.heard...) {
		return
	}
	w.opts.Feed.MarkSynced()
	w.synced.Store(true)
	w.opts.Log.Info("in sync with the API server")
	w.poke()
}

// daemonSetHandler notices that somebody uninstalls us. The watch goes on after our rights are
// gone, since rights are checked when a watch begins; so it sees what a query could not.
func (w *Watcher) daemonSetHandler() toolscache.ResourceEventHandlerFuncs {
	note := func(obj any) {
		ds, ok := obj.(*appsv1.DaemonSet)
		w.uninstalling.Store(ok && ds.DeletionTimestamp != nil)
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    note,
		UpdateFunc: func(_, after any) { note(after) },
		DeleteFunc: func(any) { w.uninstalling.Store(true) },
	}
}

// Changed receives a poke whenever Objects may have changed.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

func (w *Watcher) poke() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// Synced says whether Objects come from the API server.
func (w *Watcher) Synced() bool { return w.synced.Load() }

// Uninstalling says that our DaemonSet is being deleted, or is gone.
func (w *Watcher) Uninstalling() bool { return w.uninstalling.Load() }

// Objects returns what the API server says. The objects are shared: they must not be changed.
func (w *Watcher) Objects(ctx context.Context) (snapshot.Objects, error) {
	var (
		o       = snapshot.Objects{Secrets: map[string]map[string][]byte{}}
		nodes   corev1.NodeList
		pools   v1alpha1.IPPoolList
		blocks  v1alpha1.IPBlockList
		bgp     v1alpha1.BGPConfigurationList
		peers   v1alpha1.BGPPeerList
		felix   v1alpha1.FelixConfigurationList
		secrets corev1.SecretList
	)
	for _, list := range []client.ObjectList{&nodes, &pools, &blocks, &bgp, &peers, &felix, &secrets} {
		if err := w.cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return snapshot.Objects{}, fmt.Errorf("list %T: %w", list, err)
		}
	}
	// The cache lists in no order. Sorted, what did not change is saved as the same bytes, which is not
	// at all.
	o.Nodes, o.Pools, o.Blocks = byName(nodes.Items), byName(pools.Items), byName(blocks.Items)
	o.BGP, o.Peers, o.Felix = byName(bgp.Items), byName(peers.Items), byName(felix.Items)
	wanted := secretsOf(o)
	for _, s := range secrets.Items {
		if wanted[s.Name] {
			o.Secrets[s.Name] = s.Data
		}
	}
	return o, nil
}

func byName[T any, P interface {
	*T
	client.Object
}](list []T) []T {
	slices.SortFunc(list, func(a, b T) int { return strings.Compare(P(&a).GetName(), P(&b).GetName()) })
	return list
}

// Save keeps a copy of objects on disk, if they differ from what is there.
func (w *Watcher) Save(o snapshot.Objects) error { return w.store.save(o) }

// Load reads the copy on disk.
func (w *Watcher) Load() (snapshot.Objects, time.Time, error) { return w.store.load() }

// secretsOf names the Secrets that the objects refer to.
func secretsOf(o snapshot.Objects) map[string]bool {
	names := map[string]bool{v1alpha1.ProbeSecret: true}
	note := func(p *v1alpha1.BGPPassword) {
		if p != nil {
			names[p.SecretKeyRef.Name] = true
		}
	}
	for _, c := range o.BGP {
		note(c.Spec.NodeMeshPassword)
	}
	for _, p := range o.Peers {
		note(p.Spec.Password)
	}
	return names
}

// trimNode keeps of a Node what an agent needs: its name, labels, addresses, and whether it is Ready.
func trimNode(obj any) (any, error) {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	return &corev1.Node{
		TypeMeta: n.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{
			Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Labels: n.Labels,
		},
		Status: corev1.NodeStatus{Addresses: n.Status.Addresses, Conditions: readiness(n.Status.Conditions)},
	}, nil
}

// readiness is the condition Ready without the heartbeats and words that change all the time.
func readiness(conditions []corev1.NodeCondition) []corev1.NodeCondition {
	for _, c := range conditions {
		if c.Type == corev1.NodeReady {
			return []corev1.NodeCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	return nil
}

// matters says whether an update changed anything that an agent looks at: not a heartbeat, and
// of statuses only who reflects routes.
func matters(before, after any) bool {
	switch a := after.(type) {
	case *corev1.Node:
		b, ok := before.(*corev1.Node)
		return !ok || !maps.Equal(a.Labels, b.Labels) || !reflect.DeepEqual(a.Status, b.Status)
	case *corev1.Secret:
		b, ok := before.(*corev1.Secret)
		return !ok || !reflect.DeepEqual(a.Data, b.Data)
	case *v1alpha1.BGPConfiguration:
		b, ok := before.(*v1alpha1.BGPConfiguration)
		return !ok || a.Generation != b.Generation || a.UID != b.UID || !reflect.DeepEqual(reflection(a), reflection(b))
	case client.Object:
		b, ok := before.(client.Object)
		return !ok || a.GetGeneration() != b.GetGeneration() || a.GetUID() != b.GetUID()
	}
	return true
}

// reflection is what agents follow of the choice of reflectors.
func reflection(c *v1alpha1.BGPConfiguration) []any {
	r := c.Status.RouteReflection
	if r == nil {
		return nil
	}
	out := []any{r.Mesh}
	for _, x := range r.Reflectors {
		out = append(out, x.Node, x.ClusterID)
	}
	return out
}
