// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/go-logr/logr"

	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/felix"
	"github.com/heliograph-dev/heliograph/internal/version"
)

func newAgentCommand() *cobra.Command {
	var (
		kubeconfig, logLevel string
		opts                 = felix.Options{Version: version.Version, DaemonSet: "heliograph-agent"}
	)
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent of this node: BGP speaker, routes, tunnels, and the CNI plugin's other half",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd.ErrOrStderr(), logLevel)
			if err != nil {
				return err
			}
			klog.SetLogger(logr.FromSlogHandler(log.Handler()))
			if opts.NodeName == "" {
				return errors.New("--node-name is empty: set it, or NODE_NAME in the environment")
			}
			if opts.Config, err = agentConfig(kubeconfig); err != nil {
				return err
			}
			opts.Log = log
			agent, err := felix.New(cmd.Context(), opts)
			if err != nil {
				return err
			}
			return agent.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&kubeconfig, "kubeconfig", "", "path of the kubeconfig; default: the pod's service account")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&opts.NodeName, "node-name", os.Getenv("NODE_NAME"), "name of this node")
	f.StringVar(&opts.Namespace, "namespace", envOr("POD_NAMESPACE", "heliograph-system"), "namespace of heliograph's Secrets and DaemonSet")
	f.StringVar(&opts.StateDir, "state-dir", cni.StateDir, "directory of what a restart needs")
	f.StringVar(&opts.Socket, "socket", cni.SocketPath, "unix socket of the CNI plugin")
	f.StringVar(&opts.SysctlRoot, "sysctl-root", "/host/proc/sys/net", "where /proc/sys/net of the host is")
	f.StringVar(&opts.CNIBinDir, "cni-bin-dir", "/host/opt/cni/bin", "where the plugin is to be removed from on uninstall")
	f.StringVar(&opts.CNIConfDir, "cni-conf-dir", "/host/etc/cni/net.d", "where its configuration is to be removed from on uninstall")
	f.StringVar(&opts.MetricsAddress, "metrics-bind-address", ":9810", "address of /metrics, /healthz and /readyz")
	return cmd
}

// agentConfig makes the agent's requests few and patient; it is one of many.
func agentConfig(kubeconfig string) (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	cfg.UserAgent = "heliograph-agent/" + version.Version
	return cfg, nil
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
