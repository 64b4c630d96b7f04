// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/cni/ipam"
	"github.com/heliograph-dev/heliograph/cni/podnet"
)

// Sweep brings store, devices and promised DELs into line after a start: it keeps the promises the
// plugin made while no agent ran, and releases the addresses of attachments whose device is gone,
// as all are after a reboot. It must end before ADDs are served.
func (m *Manager) Sweep(ctx context.Context) error {
	err := m.keepPromises(ctx)
	devices, listErr := m.interfaces.List()
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	alive := map[cni.Attachment]bool{}
	for _, d := range devices {
		alive[d.Attachment] = true
	}
	for _, x := range m.store.Attachments() {
		if alive[x.Attachment] {
			continue
		}
		if delErr := m.Del(ctx, cni.Request{Attachment: x.Attachment}); delErr != nil {
			err = errors.Join(err, delErr)
		}
	}
	return err
}

// Run looks for promised DELs and unwritten releases at intervals, until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := errors.Join(m.keepPromises(ctx), m.store.Flush())
		if (err != nil) != failed {
			if failed = err != nil; failed {
				m.log.Error("deleted pods are not all cleaned up", "error", err)
			} else {
				m.log.Info("deleted pods are all cleaned up")
			}
		}
	}
}

// keepPromises carries out the DELs that the plugin promised.
func (m *Manager) keepPromises(ctx context.Context) error {
	attachments, err := m.promised.List()
	for _, a := range attachments {
		unlock, lockErr := m.busy.lock(ctx, a)
		if lockErr != nil {
			return errors.Join(err, lockErr)
		}
		err = errors.Join(err, m.keepPromise(a))
		unlock()
	}
	return err
}

// keepPromise carries out a promised DEL, if there is one. The caller holds the attachment's lock.
func (m *Manager) keepPromise(a cni.Attachment) error {
	if !m.promised.Has(a) {
		return nil
	}
	if err := m.disconnect(a); err != nil {
		return fmt.Errorf("promised DEL of %s: %w", a.ContainerID, err)
	}
	return m.promised.Remove(a)
}

// FromKernel turns devices of the node into what store.Options.Kernel wants.
func FromKernel(n Interfaces) func() ([]ipam.Allocation, error) {
	return func() ([]ipam.Allocation, error) {
		found, err := n.List()
		var out []ipam.Allocation
		for _, f := range found {
			out = append(out, fromDevice(f))
		}
		return out, err
	}
}

func fromDevice(f podnet.Found) ipam.Allocation {
	return ipam.Allocation{Attachment: f.Attachment, Pod: f.Pod, Device: f.Device, Addresses: f.Addresses}
}
