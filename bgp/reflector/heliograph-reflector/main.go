// SPDX-License-Identifier: Apache-2.0

// heliograph-reflector is `heliograph reflector` as a binary of its own, for machines that do nothing
// else: without Kubernetes' libraries it starts at a sixth of the memory.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/heliograph-dev/heliograph/internal/reflectd"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	cmd := reflectd.NewCommand()
	cmd.Use = "heliograph-reflector -f FILE"
	err := cmd.ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}
