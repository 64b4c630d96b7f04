// SPDX-License-Identifier: Apache-2.0

// Package controllers holds the cluster-wide reconcilers. Each has one reconcile for all of its
// objects: it lists everything, computes what should be (package plan, status.go), and writes the
// difference. Events from the API only say that it is time to look again; many that come close
// together lead to one look.
//
//   - IPBlockReconciler gives blocks to nodes, takes them back, and writes the status of IPPools.
//   - BGPConfigurationReconciler chooses the route reflectors.
//   - ConfigReconciler writes the status of BGPPeers and FelixConfigurations.
//   - PolicyReconciler writes the status of policies and tiers.
//   - NodeReconciler keeps pods from new nodes until their network is proven.
//   - ProbeKeyReconciler makes the key of the agents' probes.
//
// Nothing here reaches a node: agents act on what stands in the API.
package controllers

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// leaseName is the name of the Lease that says which replica leads.
const leaseName = "heliograph-controller"

// reconcileTimeout ends a reconcile that hangs, so that it is tried again.
const reconcileTimeout = 2 * time.Minute

// shutdownTimeout is less than the pod's grace period, so that the Lease is given up in time.
const shutdownTimeout = 8 * time.Second

// Options of the controller.
type Options struct {
	// Namespace that heliograph runs in: of the Lease, and of the Secrets that passwords refer to.
	Namespace string
	// LeaderElection makes replicas wait until they lead. Only tests do without.
	LeaderElection bool
	// MetricsAddress and HealthAddress to listen on. "0": not at all.
	MetricsAddress string
	HealthAddress  string
	// Version is a label of heliograph_build_info.
	Version string
	// Registerer of the metrics. Default: controller-runtime's, which MetricsAddress serves.
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// NewScheme knows all the types that the controller reads and writes.
func NewScheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(s); err != nil {
		return nil, fmt.Errorf("add the types of Kubernetes to the scheme: %w", err)
	}
	if err := v1alpha1.AddToScheme(s); err != nil {
		return nil, fmt.Errorf("add the types of heliograph to the scheme: %w", err)
	}
	if err := policyv1alpha2.Install(s); err != nil {
		return nil, fmt.Errorf("add ClusterNetworkPolicy to the scheme: %w", err)
	}
	return s, nil
}

// NewManager wires the reconcilers to an API server. Its Start runs them.
func NewManager(cfg *rest.Config, o Options) (manager.Manager, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Registerer == nil {
		o.Registerer = metrics.Registry
	}
	scheme, err := NewScheme()
	if err != nil {
		return nil, err
	}
	cfg = rest.CopyConfig(cfg)
	cfg.QPS = -1 // the API server's priority and fairness knows better than a number here
	mgr, err := manager.New(cfg, manager.Options{
		Scheme:                        scheme,
		Logger:                        logr.FromSlogHandler(o.Log.Handler()),
		LeaderElection:                o.LeaderElection,
		LeaderElectionID:              leaseName,
		LeaderElectionNamespace:       o.Namespace,
		LeaderElectionReleaseOnCancel: true, // the process ends then: internal/cli
		GracefulShutdownTimeout:       ptr.To(shutdownTimeout),
		Metrics:                       metricsserver.Options{BindAddress: o.MetricsAddress},
		HealthProbeBindAddress:        o.HealthAddress,
		Cache:                         cacheOptions(o.Namespace),
		// A plan made before the last plan's writes are seen would hand out the same blocks again.
		Client: client.Options{Cache: &client.CacheOptions{EnableReadYourWritesConsistency: ptr.To(true)}},
		Controller: config.Controller{
			// A replica that waits for its turn has its caches filled when it comes.
			EnableWarmup:          ptr.To(true),
			ReconciliationTimeout: reconcileTimeout,
			SkipNameValidation:    ptr.To(true), // several managers in one test process
		},
	})
	if err != nil {
		return nil, fmt.Errorf("set up the manager: %w", err)
	}
	if err := setup(mgr, o); err != nil {
		return nil, err
	}
	return mgr, nil
}

func setup(mgr manager.Manager, o Options) error {
	m := newMetrics(o.Registerer, o.Version)
	blocks := &IPBlockReconciler{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Log: o.Log.With("controller", "ipblock"),
		Events: mgr.GetEventRecorder("heliograph-controller"), metrics: m,
	}
	if err := blocks.SetupWithManager(mgr); err != nil {
		return err
	}
	reflection := &BGPConfigurationReconciler{
		Client: mgr.GetClient(), Namespace: o.Namespace, Log: o.Log.With("controller", "bgpconfiguration"),
		Events: mgr.GetEventRecorder("heliograph-controller"), metrics: m,
	}
	if err := reflection.SetupWithManager(mgr); err != nil {
		return err
	}
	configs := &ConfigReconciler{
		Client: mgr.GetClient(), Namespace: o.Namespace, Log: o.Log.With("controller", "config"),
		Events: mgr.GetEventRecorder("heliograph-controller"),
	}
	if err := configs.SetupWithManager(mgr); err != nil {
		return err
	}
	policies := &PolicyReconciler{
		Client: mgr.GetClient(), Log: o.Log.With("controller", "policy"), Events: mgr.GetEventRecorder("heliograph-controller"),
	}
	if err := policies.SetupWithManager(mgr); err != nil {
		return err
	}
	hosts := &HostEndpointReconciler{
		Client: mgr.GetClient(), Log: o.Log.With("controller", "hostendpoint"), Events: mgr.GetEventRecorder("heliograph-controller"),
	}
	if err := hosts.SetupWithManager(mgr); err != nil {
		return err
	}
	nodes := &NodeReconciler{
		Client: mgr.GetClient(), Log: o.Log.With("controller", "node"), Events: mgr.GetEventRecorder("heliograph-controller"),
	}
	if err := nodes.SetupWithManager(mgr); err != nil {
		return err
	}
	key := &ProbeKeyReconciler{Client: mgr.GetClient(), Namespace: o.Namespace, Log: o.Log.With("controller", "probekey")}
	if err := key.SetupWithManager(mgr); err != nil {
		return err
	}
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return fmt.Errorf("add the health check: %w", err)
	}
	if err := mgr.AddReadyzCheck("caches", cachesInSync(mgr.GetCache())); err != nil {
		return fmt.Errorf("add the readiness check: %w", err)
	}
	return nil
}

// cacheOptions keeps in memory only what the reconcilers read. In a mesh of n nodes every
// NodeStatus lists n paths: n² of them would be held here for nothing. Of Secrets, only those of
// our own namespace are watched, and only which keys are empty is kept, never a password.
func cacheOptions(namespace string) cache.Options {
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Node{}:         {Transform: trimNode},
			&v1alpha1.NodeStatus{}: {Transform: trimNodeStatus},
			&corev1.Secret{}:       {Transform: trimSecret, Namespaces: map[string]cache.Config{namespace: {}}},
		},
	}
}
