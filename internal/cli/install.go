// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"github.com/heliograph-dev/heliograph/cni/install"
)

func newInstallCommand() *cobra.Command {
	var (
		opts      install.Options
		uninstall bool
		logLevel  string
	)
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Put the CNI plugin and its configuration on this node, or with --uninstall take them away",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd.ErrOrStderr(), logLevel)
			if err != nil {
				return err
			}
			if uninstall {
				return install.Uninstall(opts)
			}
			result, err := install.Install(opts)
			if err != nil {
				return err
			}
			for _, w := range result.Warnings {
				log.Warn("another CNI configuration is in the way", "warning", w)
			}
			log.Info("the CNI plugin is installed", "written", result.Written)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.Plugin, "plugin", "/cni/heliograph-cni", "the plugin's binary")
	f.StringVar(&opts.PortMap, "portmap", "/cni/portmap", "the portmap plugin's binary, for host ports; empty for none")
	f.StringVar(&opts.BinDir, "cni-bin-dir", install.DefaultBinDir, "where the runtime looks for plugins")
	f.StringVar(&opts.ConfDir, "cni-conf-dir", install.DefaultConfDir, "where the runtime looks for configurations")
	f.IntVar(&opts.MTU, "mtu", 0, "MTU of pods in bytes; 0: as the agent decides")
	f.BoolVar(&uninstall, "uninstall", false, "remove what was installed, and nothing else")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}
