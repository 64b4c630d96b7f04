// SPDX-License-Identifier: Apache-2.0

package reflectd

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// NewCommand is "heliograph reflector", and all of the binary heliograph-reflector.
func NewCommand() *cobra.Command {
	var file, logLevel string
	var check bool
	var port uint16
	cmd := &cobra.Command{
		Use:   "reflector -f FILE",
		Short: "Run a BGP route reflector by itself, without Kubernetes",
		Long: `Run a BGP route reflector (RFC 4456) by itself, without Kubernetes. docs/reflector.md describes the
file. It is read again when it changes, and at SIGHUP; sessions that a change does not concern go on.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if check {
				if _, err := Load(file); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), file+": ok")
				return err
			}
			var level slog.Level
			if err := level.UnmarshalText([]byte(logLevel)); err != nil {
				return fmt.Errorf("--log-level: %w", err)
			}
			log := slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
			if os.Getenv("GOGC") == "" {
				// What is kept is small beside what an engine that copies per client would keep; a burst
				// makes garbage that is better collected late.
				debug.SetGCPercent(200)
			}
			reload := make(chan os.Signal, 1)
			signal.Notify(reload, syscall.SIGHUP)
			defer signal.Stop(reload)
			return Run(cmd.Context(), Options{File: file, Port: port, Log: log, Reload: reload})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "file", "f", "", "the configuration")
	f.Uint16Var(&port, "port", 0, "listen on this port, whatever the file says")
	f.BoolVar(&check, "check", false, "only say whether the file can be used")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	_ = cmd.MarkFlagRequired("file")
	return cmd
}
