// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/heliograph-dev/heliograph/cni/install"
	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/link"
)

// uninstall takes everything of heliograph's away from the node: devices, rules, routes of all our
// tables, nexthop objects, addresses, our nft tables, the plugin and our files. Pods lose their network, which is what
// whoever deletes heliograph asks for. It goes on after failures and joins them. Sysctls stay: who
// else needs forwarding by now is not known.
func (a *Agent) uninstall(ctx context.Context) error {
	var errs []error
	// The plugin goes first, so that the runtime starts no more pods on us.
	if err := install.Uninstall(install.Options{BinDir: a.opts.CNIBinDir, ConfDir: a.opts.CNIConfDir}); err != nil {
		errs = append(errs, fmt.Errorf("remove the CNI plugin: %w", err))
	}
	errs = append(errs, a.clearKernel(ctx))
	for _, dir := range []string{a.opts.StateDir, filepath.Dir(a.opts.Socket)} {
		errs = append(errs, emptyDir(dir))
	}
	err := errors.Join(errs...)
	if err == nil {
		a.log.Info("everything of heliograph's is gone from this node")
	}
	return err
}

// clearKernel deletes all of ours from the kernel. What fails is tried again while there is time: what
// stays behind, nobody will ever take away.
func (a *Agent) clearKernel(ctx context.Context) error {
	for wait := firstRetry; ; wait *= 2 {
		// Before the nexthop objects that these routes refer to.
		errs := []error{a.deletePodDevices(), a.drivers.clearProbes(ctx)}
		// Kernels that do not remember who made an address tell ours by the pools.
		a.loop.dataplane.setRemote(calc.RemoteState{NFT: desired.NFT{NoNAT: a.loop.state.NFT.NoNAT}})
		a.loop.dataplane.setLocal(calc.LocalState{})
		a.loop.dataplane.queueResync(kernel.All)
		errs = append(errs, a.loop.dataplane.apply(ctx), a.drivers.nft.DeleteTable(ctx), a.policy.enforcer.Delete(ctx), a.policy.names.Delete())
		err := errors.Join(errs...)
		if deadline, ok := ctx.Deadline(); err == nil || ctx.Err() != nil || ok && time.Until(deadline) < wait {
			return err
		}
		pause(ctx, wait, nil)
	}
}

func (a *Agent) deletePodDevices() error {
	devices, err := a.drivers.links.Devices()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	var errs []error
	for _, d := range devices {
		if link.IsWorkload(d) {
			errs = append(errs, a.drivers.link.DeleteWorkload(d.Name))
		}
	}
	return errors.Join(errs...)
}

// emptyDir removes what is in a directory; the directory itself is a mount of ours.
func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}
