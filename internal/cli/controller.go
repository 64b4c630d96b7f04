// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/heliograph-dev/heliograph/controllers"
	"github.com/heliograph-dev/heliograph/internal/version"
)

// namespaceFile tells a pod its namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// newControllerCommand is "heliograph controller".
func newControllerCommand() *cobra.Command {
	var o controllers.Options
	var kubeconfig, logLevel string
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Run the cluster-wide controller",
		Long: `Run the cluster-wide controller: it gives blocks of addresses to nodes, takes them back, and
writes the status of IPPools, BGPPeers, BGPConfigurations and FelixConfigurations.

Several replicas may run: one leads, the others wait with their caches filled.
The API server is that of the pod, or of --kubeconfig or $KUBECONFIG.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd.ErrOrStderr(), logLevel)
			if err != nil {
				return err
			}
			o.Log, o.Version = log, version.Version
			return runController(cmd.Context(), kubeconfig, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Namespace, "namespace", podNamespace(), "namespace that heliograph runs in: of the Lease and of the Secrets of BGP passwords")
	f.BoolVar(&o.LeaderElection, "leader-elect", true, "wait for the Lease before doing anything; needed if there are several replicas")
	f.StringVar(&o.MetricsAddress, "metrics-bind-address", ":9811", `address to serve /metrics on; "0" for none`)
	f.StringVar(&o.HealthAddress, "health-probe-bind-address", "127.0.0.1:9812", `address to serve /healthz and /readyz on; "0" for none`)
	f.StringVar(&kubeconfig, "kubeconfig", "", "path of a kubeconfig; default: that of the pod, then as kubectl's")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func runController(ctx context.Context, kubeconfig string, o controllers.Options) error {
	if o.Namespace == "" {
		return errors.New("which namespace does heliograph run in? Give --namespace")
	}
	// What the libraries log goes where ours goes.
	logger := logr.FromSlogHandler(o.Log.Handler())
	ctrl.SetLogger(logger)
	klog.SetLogger(logger)
	cfg, err := controllerConfig(kubeconfig)
	if err != nil {
		return fmt.Errorf("find the API server: %w", err)
	}
	mgr, err := controllers.NewManager(cfg, o)
	if err != nil {
		return err
	}
	o.Log.Info("controller starts", "version", o.Version, "namespace", o.Namespace, "server", cfg.Host)
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("run the controller: %w", err)
	}
	o.Log.Info("controller ends")
	return nil
}

func controllerConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig != "" {
		return clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	return ctrl.GetConfig()
}

// podNamespace is the namespace of the pod that this is, or heliograph-system.
func podNamespace() string {
	if b, err := os.ReadFile(namespaceFile); err == nil {
		if ns := strings.TrimSpace(string(b)); ns != "" {
			return ns
		}
	}
	return "heliograph-system"
}
