// SPDX-License-Identifier: Apache-2.0

// Package workload connects pods to this node and disconnects them: it answers what the CNI plugin
// asks (localapi.Backend) with the allocator, the interfaces, and the agent's loop, which makes
// routes and policy of what Attachments returns.
//
// The order of an ADD is that of its promises: the addresses are on disk before they are used; the
// interface exists before the loop is asked for its routes and rules, which is safe because the
// node's filter drops what comes from a device that it does not know; and the answer waits for the
// loop, so a pod starts with its policy in force. A DEL deletes the device before it releases the
// addresses, so that two devices never have the same one.
package workload

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/cni/ipam"
	"github.com/heliograph-dev/heliograph/cni/podnet"
)

const (
	// DefaultSyncTimeout is how long an ADD waits for the loop.
	DefaultSyncTimeout = 30 * time.Second
	// checkTimeout is how long a CHECK waits for the loop ("a reasonable convergence delay").
	checkTimeout = 5 * time.Second
	// sweepInterval is how often promised DELs are looked for.
	sweepInterval = 10 * time.Second
)

// Store is the part of store.Store that is used here.
type Store interface {
	Allocate(r ipam.Request) (x ipam.Allocation, fresh bool, err error)
	Release(a cni.Attachment) (x ipam.Allocation, ok bool, err error)
	Attachment(a cni.Attachment) (ipam.Allocation, bool)
	Attachments() []ipam.Allocation
	Available() error
	Usage() []ipam.BlockUsage
	Flush() error
}

// Interfaces is the part of podnet.Net that is used here.
type Interfaces interface {
	Create(podSocket *os.File, i podnet.Interface) (podnet.Ends, error)
	Check(podSocket *os.File, i podnet.Interface) error
	Delete(device string) error
	List() ([]podnet.Found, error)
}

// Hooks are what the rest of the agent does for pods. All but Sync and InForce may be nil.
type Hooks struct {
	// Sync returns nil once the kernel holds routes and filters for all that Manager.Attachments returned
	// when Sync was called, as far as it concerns the pod with this device: what another pod's route
	// fails with is no error. It must end when ctx does.
	Sync func(ctx context.Context, device string) error
	// InForce returns nil once the policy of the pod with this device is in force. It must end when ctx does.
	InForce func(ctx context.Context, device string) error
	// Poke says that Manager.Attachments changed, and returns at once.
	Poke func()
	// Ready says why this node cannot take new pods now, or nil. A *cni.Error passes through as it is,
	// so that STATUS may answer cni.CodeLimitedConnectivity.
	Ready func() error
	// FlushConntrack forgets the connections of an address that is nobody's any more.
	FlushConntrack func(ip netip.Addr) error
	// MTU is that of new interfaces whose network configuration names none; 0: the kernel's default.
	MTU func() int
}

// Options configure New.
type Options struct {
	Store       Store
	Interfaces  Interfaces
	Hooks       Hooks
	StateDir    string        // where the plugin leaves promised DELs; empty: cni.StateDir
	SyncTimeout time.Duration // 0: DefaultSyncTimeout
	Log         *slog.Logger  // nil: slog.Default()
}

// Manager connects and disconnects pods. It is safe for concurrent use; what concerns one attachment
// happens one after the other.
type Manager struct {
	store       Store
	interfaces  Interfaces
	hooks       Hooks
	promised    cni.Tombstones
	syncTimeout time.Duration
	log         *slog.Logger
	busy        keyedLock
	hidden      hiddenSet
}

// New returns a Manager. Call Sweep before serving, then Run.
func New(o Options) *Manager {
	if o.StateDir == "" {
		o.StateDir = cni.StateDir
	}
	if o.SyncTimeout == 0 {
		o.SyncTimeout = DefaultSyncTimeout
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Manager{
		store: o.Store, interfaces: o.Interfaces, hooks: o.Hooks.complete(), syncTimeout: o.SyncTimeout, log: o.Log,
		promised: cni.Tombstones{Dir: filepath.Join(o.StateDir, cni.TombstoneDir)},
	}
}

func (h Hooks) complete() Hooks {
	if h.Sync == nil {
		h.Sync = func(context.Context, string) error { return errors.New("nobody programs routes") }
	}
	if h.InForce == nil {
		h.InForce = func(context.Context, string) error { return errors.New("nobody enforces policy") }
	}
	if h.Poke == nil {
		h.Poke = func() {}
	}
	if h.Ready == nil {
		h.Ready = func() error { return nil }
	}
	if h.FlushConntrack == nil {
		h.FlushConntrack = func(netip.Addr) error { return nil }
	}
	if h.MTU == nil {
		h.MTU = func() int { return 0 }
	}
	return h
}

// Attachments returns what routes and policy follow from: every attachment that has addresses and
// should have a device, in the order of the devices. Those whose device is just being made or deleted
// are left out. A device may still be missing, if somebody deleted the pod's namespace: then its DEL
// is on the way, and its routes went with it.
func (m *Manager) Attachments() []ipam.Allocation {
	return slices.DeleteFunc(m.store.Attachments(), func(x ipam.Allocation) bool { return m.hidden.has(x.Attachment) })
}

// Add connects a pod. Called again for the same attachment, it keeps the addresses and makes the
// interface anew. When it fails, nothing is left of what it did.
func (m *Manager) Add(ctx context.Context, r cni.Request, podSocket *os.File) (cni.Response, *cni.Error) {
	unlock, err := m.busy.lock(ctx, r.Attachment)
	if err != nil {
		return cni.Response{}, tryAgain("this pod is being worked on", err)
	}
	defer unlock()
	if err := m.keepPromise(r.Attachment); err != nil {
		return cni.Response{}, tryAgain("cannot finish an earlier DEL of this pod", err)
	}
	if err := m.hooks.Ready(); err != nil {
		return cni.Response{}, notReady(err)
	}
	m.hidden.add(r.Attachment)
	defer m.hidden.remove(r.Attachment)
	allocated, fresh, err := m.store.Allocate(ipam.Request{
		Attachment: r.Attachment, Network: r.Network, Pod: r.Pod, Device: podnet.HostDevice(r.Attachment),
	})
	if err != nil {
		return cni.Response{}, allocationError(err)
	}
	ends, err := m.connect(ctx, podSocket, m.interfaceOf(r, allocated), fresh)
	if err != nil {
		return cni.Response{}, m.rollback(r.Attachment, &cni.Error{Code: cni.CodeInternal, Msg: "cannot create the pod's interface", Details: err.Error()})
	}
	m.hidden.remove(r.Attachment)
	m.hooks.Poke()
	syncCtx, cancel := context.WithTimeout(ctx, m.syncTimeout)
	defer cancel()
	if err := m.inForce(syncCtx, allocated.Device); err != nil {
		return cni.Response{}, m.rollback(r.Attachment, tryAgain("routes and policy of the pod are not in force", err))
	}
	m.log.Info("pod connected", "pod", r.Pod.Namespace+"/"+r.Pod.Name, "device", allocated.Device, "addresses", allocated.Addresses, "containerID", r.Attachment.ContainerID)
	return response(ends, allocated), nil
}

// inForce waits for all that a pod needs before it may start.
func (m *Manager) inForce(ctx context.Context, device string) error {
	if err := m.hooks.Sync(ctx, device); err != nil {
		return err
	}
	return m.hooks.InForce(ctx, device)
}

// connect makes the interface.
func (m *Manager) connect(ctx context.Context, podSocket *os.File, i podnet.Interface, fresh bool) (podnet.Ends, error) {
	ends, err := m.interfaces.Create(podSocket, i)
	if err == nil || fresh && !errors.Is(err, fs.ErrExist) || fresh && errors.Is(err, podnet.ErrPodInterfaceExists) {
		return ends, err
	}
	// The device is there from before: in this pod if the runtime did not hear our answer, or, if it
	// made the sandbox anew, in one that is gone. Making it anew is right in both cases, and rare.
	if err := m.interfaces.Delete(podnet.HostDevice(i.Attachment)); err != nil {
		return podnet.Ends{}, err
	}
	// The routes went with the device. The loop must notice before there is another of the same name, or
	// it would believe that it has them.
	syncCtx, cancel := context.WithTimeout(ctx, m.syncTimeout)
	defer cancel()
	if err := m.hooks.Sync(syncCtx, podnet.HostDevice(i.Attachment)); err != nil {
		return podnet.Ends{}, fmt.Errorf("wait until the old device's routes are gone: %w", err)
	}
	return m.interfaces.Create(podSocket, i)
}

// rollback undoes an ADD.
func (m *Manager) rollback(a cni.Attachment, why *cni.Error) *cni.Error {
	if err := m.disconnect(a); err != nil {
		why.Details += "; and what was done is not all undone: " + err.Error()
	}
	m.log.Warn("pod not connected", "containerID", a.ContainerID, "error", why)
	return why
}

// Del disconnects a pod. An attachment that is unknown is disconnected already.
func (m *Manager) Del(ctx context.Context, r cni.Request) *cni.Error {
	unlock, err := m.busy.lock(ctx, r.Attachment)
	if err != nil {
		return tryAgain("this pod is being worked on", err)
	}
	defer unlock()
	if err := m.disconnect(r.Attachment); err != nil {
		return tryAgain("the pod is not disconnected yet", err)
	}
	if err := m.promised.Remove(r.Attachment); err != nil {
		m.log.Warn("a promised DEL stays on disk", "containerID", r.Attachment.ContainerID, "error", err)
	}
	return nil
}

// disconnect deletes the device and releases the addresses. It fails if the device stays: then the
// addresses stay in use too. A release that cannot be written stands in memory and is written later,
// so it is no failure.
func (m *Manager) disconnect(a cni.Attachment) error {
	m.hidden.add(a)
	defer m.hidden.remove(a)
	if err := m.interfaces.Delete(podnet.HostDevice(a)); err != nil {
		return err
	}
	released, known, err := m.store.Release(a)
	if err != nil {
		m.log.Warn("release of a pod's addresses is not on disk yet", "containerID", a.ContainerID, "error", err)
	}
	if !known {
		return nil
	}
	m.hooks.Poke()
	for _, ip := range released.Addresses {
		if !ip.IsValid() {
			continue
		}
		if err := m.hooks.FlushConntrack(ip); err != nil {
			m.log.Warn("connections of a released address are still tracked", "address", ip, "error", err)
		}
	}
	m.log.Info("pod disconnected", "pod", released.Pod.Namespace+"/"+released.Pod.Name, "device", released.Device, "addresses", released.Addresses, "containerID", a.ContainerID)
	return nil
}

// Check says whether a pod's interface, its addresses and its routes are as ADD left them.
func (m *Manager) Check(ctx context.Context, r cni.Request, podSocket *os.File) *cni.Error {
	unlock, err := m.busy.lock(ctx, r.Attachment)
	if err != nil {
		return tryAgain("this pod is being worked on", err)
	}
	defer unlock()
	allocated, ok := m.store.Attachment(r.Attachment)
	if !ok {
		return &cni.Error{Code: cni.CodeUnknownContainer, Msg: "the node has no addresses for this pod"}
	}
	for _, p := range r.Previous {
		if !has(allocated, p.Addr()) {
			return checkFailed(fmt.Errorf("address %s is not allocated to this pod", p.Addr()))
		}
	}
	syncCtx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if err := m.inForce(syncCtx, allocated.Device); err != nil {
		return checkFailed(fmt.Errorf("routes and policy of the pod are not in force: %w", err))
	}
	if err := m.interfaces.Check(podSocket, m.interfaceOf(r, allocated)); err != nil {
		return checkFailed(err)
	}
	return nil
}

// Status says whether an ADD could succeed now (CNI specification 1.1, STATUS).
func (m *Manager) Status(context.Context) *cni.Error {
	err := m.hooks.Ready()
	if err == nil {
		err = m.store.Available()
	}
	var ours *cni.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ours) && (ours.Code == cni.CodeNotAvailable || ours.Code == cni.CodeLimitedConnectivity):
		return ours
	}
	return &cni.Error{Code: cni.CodeNotAvailable, Msg: "this node cannot take new pods", Details: err.Error()}
}

// GC disconnects every pod of the network that the runtime does not name.
func (m *Manager) GC(ctx context.Context, r cni.Request) *cni.Error {
	valid := map[cni.Attachment]bool{}
	for _, a := range r.Valid {
		valid[a] = true
	}
	var errs []error
	for _, x := range m.store.Attachments() {
		// One that was recovered from the kernel has no network's name: there is one network.
		if valid[x.Attachment] || x.Network != "" && x.Network != r.Network {
			continue
		}
		if err := m.Del(ctx, cni.Request{Attachment: x.Attachment}); err != nil {
			errs = append(errs, fmt.Errorf("%s/%s: %w", x.Attachment.ContainerID, x.Attachment.IfName, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return tryAgain("not everything is collected", err)
	}
	return nil
}

func (m *Manager) interfaceOf(r cni.Request, x ipam.Allocation) podnet.Interface {
	mtu := r.MTU
	if mtu == 0 {
		mtu = m.hooks.MTU()
	}
	return podnet.Interface{Attachment: x.Attachment, Pod: x.Pod, MTU: mtu, Addresses: x.Addresses}
}

func response(ends podnet.Ends, x ipam.Allocation) cni.Response {
	r := cni.Response{HostInterface: ends.Host, PodInterface: ends.Pod}
	for _, ip := range x.Addresses {
		if !ip.IsValid() {
			continue
		}
		gateway := podnet.Gateway6
		if ip.Is4() {
			gateway = podnet.Gateway4
		}
		r.Addresses = append(r.Addresses, netip.PrefixFrom(ip, ip.BitLen()))
		r.Gateways = append(r.Gateways, gateway)
	}
	return r
}

func has(x ipam.Allocation, ip netip.Addr) bool {
	return ip.IsValid() && (x.Addresses[ipam.IPv4] == ip || x.Addresses[ipam.IPv6] == ip)
}

func tryAgain(msg string, err error) *cni.Error {
	return &cni.Error{Code: cni.CodeTryAgainLater, Msg: msg, Details: err.Error()}
}

func checkFailed(err error) *cni.Error {
	return &cni.Error{Code: cni.CodeCheckFailed, Msg: "the pod's network is not as it should be", Details: err.Error()}
}

func notReady(err error) *cni.Error {
	return tryAgain("this node cannot take new pods yet", err)
}

func allocationError(err error) *cni.Error {
	var none *ipam.NoAddressError
	switch {
	case errors.As(err, &none):
		return &cni.Error{Code: cni.CodeNoAddress, Msg: err.Error()}
	case errors.Is(err, ipam.ErrNotReady):
		return notReady(err)
	}
	return &cni.Error{Code: cni.CodeIO, Msg: "cannot allocate addresses", Details: err.Error()}
}
