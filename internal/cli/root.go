// SPDX-License-Identifier: Apache-2.0

// Package cli holds the subcommands of the heliograph binary, which under the name
// kubectl-heliograph is also a plugin of kubectl.
package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heliograph-dev/heliograph/internal/reflectd"
	"github.com/heliograph-dev/heliograph/internal/version"
)

// pluginName is the binary's name as a kubectl plugin: `kubectl heliograph …` runs it.
const pluginName = "kubectl-heliograph"

// Main runs the program and returns its exit code.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot(filepath.Base(args[0]))
	root.SetArgs(args[1:])
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		_, _ = fmt.Fprintln(stderr, "Error:", err)
		return 1
	}
	return 0
}

func newRoot(name string) *cobra.Command {
	root := &cobra.Command{
		Use:           "heliograph",
		Short:         "A pod network that is routed by BGP where it can be and tunnelled where it must be",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	if strings.HasPrefix(name, pluginName) {
		root.Use = "kubectl heliograph"
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl heliograph"}
	}
	root.AddCommand(
		newAgentCommand(), newControllerCommand(), newInstallCommand(), reflectd.NewCommand(), newStatusCommand(),
		newPathsCommand(), newBGPCommand(), newBGPRoutesOnNodeCommand(), newRouteCommand(), newKernelRouteCommand(),
		newPolicyCommand(), newPolicyOnNodeCommand(), newVersionCommand(),
	)
	return root
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version.Version)
			return err
		},
	}
}

// newLogger logs JSON lines to stderr.
func newLogger(w io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level: %w", err)
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l})), nil
}
