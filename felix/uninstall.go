// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/heliograph-dev/heliograph/cni/install"
	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/link"
)

// uninstall takes everything of heliograph's away from the node: devices, routes, nexthop objects,
// addresses, our nft table, the plugin and our files. Pods lose their network, which is what
// whoever deletes heliograph asks for. It goes on after failures and joins them. Sysctls stay: who
// else needs forwarding by now is not known.
func (a *Agent) uninstall(ctx context.Context) error {
	var errs []error
	// The plugin goes first, so that the runtime starts no more pods on us.
	if err := install.Uninstall(install.Options{BinDir: a.opts.CNIBinDir, ConfDir: a.opts.CNIConfDir}); err != nil {
		errs = append(errs, fmt.Errorf("remove the CNI plugin: %w", err))
	}
	errs = append(errs, a.deletePodDevices())
	a.loop.dataplane.setRemote(calc.RemoteState{})
	a.loop.dataplane.setLocal(calc.LocalState{})
	errs = append(errs, a.loop.dataplane.apply(ctx), a.drivers.nft.DeleteTable(ctx))
	for _, dir := range []string{a.opts.StateDir, filepath.Dir(a.opts.Socket)} {
		errs = append(errs, emptyDir(dir))
	}
	err := errors.Join(errs...)
	if err == nil {
		a.log.Info("everything of heliograph's is gone from this node")
	}
	return err
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
