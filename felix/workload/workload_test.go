// SPDX-License-Identifier: Apache-2.0

package workload_test

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
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/cni/ipam"
	"github.com/heliograph-dev/heliograph/cni/ipam/store"
	"github.com/heliograph-dev/heliograph/cni/podnet"
	"github.com/heliograph-dev/heliograph/felix/workload"
)

// interfaces is a kernel with rules: names are taken once, and what is there can be listed.
type interfaces struct {
	mu        sync.Mutex
	devices   map[string]podnet.Found
	deleteErr error
}

func (k *interfaces) Create(_ *os.File, i podnet.Interface) (podnet.Ends, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	device := podnet.HostDevice(i.Attachment)
	if _, taken := k.devices[device]; taken {
		return podnet.Ends{}, fmt.Errorf("create %s: %w", device, fs.ErrExist)
	}
	k.devices[device] = podnet.Found{Device: device, Attachment: i.Attachment, Pod: i.Pod, Addresses: i.Addresses}
	return podnet.Ends{Host: cni.Interface{Name: device}, Pod: cni.Interface{Name: i.Attachment.IfName, MTU: i.MTU}}, nil
}

func (k *interfaces) Check(*os.File, podnet.Interface) error { return nil }

func (k *interfaces) Delete(device string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.deleteErr != nil {
		return k.deleteErr
	}
	delete(k.devices, device)
	return nil
}

func (k *interfaces) List() (out []podnet.Found, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.devices {
		out = append(out, f)
	}
	return out, nil
}

// fixture is a Manager on a real store and a fake kernel, and what its hooks saw.
type fixture struct {
	*workload.Manager
	store   *store.Store
	kernel  *interfaces
	dir     string
	seen    [][]ipam.Allocation // by each Sync
	sync    func() error
	inForce error
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{kernel: &interfaces{devices: map[string]podnet.Found{}}, dir: t.TempDir(), sync: func() error { return nil }}
	var err error
	f.store, err = store.Open(store.Options{Path: filepath.Join(f.dir, "ipam.db"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.store.Close() })
	if err := f.store.SetBlocks([]ipam.Block{{Name: "four", CIDR: netip.MustParsePrefix("10.244.0.0/29"), Pool: "p"}}); err != nil {
		t.Fatal(err)
	}
	f.Manager = workload.New(workload.Options{
		Store: f.store, Interfaces: f.kernel, StateDir: f.dir, SyncTimeout: 5 * time.Second, Log: slog.New(slog.DiscardHandler),
		Hooks: workload.Hooks{Sync: func(context.Context, string) error {
			f.seen = append(f.seen, f.Attachments())
			return f.sync()
		}, InForce: func(context.Context, string) error { return f.inForce }},
	})
	return f
}

func request(pod string) cni.Request {
	return cni.Request{Verb: cni.Add, Network: "heliograph", Pod: cni.Pod{Namespace: "d", Name: pod}, Attachment: cni.Attachment{ContainerID: pod, IfName: "eth0"}}
}

func (f *fixture) add(t *testing.T, pod string) cni.Response {
	t.Helper()
	r, err := f.Add(t.Context(), request(pod), nil)
	if err != nil {
		t.Fatalf("ADD %s: %v", pod, err)
	}
	return r
}

func names(all []ipam.Allocation) (out []string) {
	for _, x := range all {
		out = append(out, x.Attachment.ContainerID)
	}
	slices.Sort(out)
	return out
}

func TestDelKeepsTheAddressesAsLongAsTheDevice(t *testing.T) {
	f := newFixture(t)
	f.add(t, "a")
	f.kernel.deleteErr = errors.New("busy")
	if err := f.Del(t.Context(), request("a")); err == nil || err.Code != cni.CodeTryAgainLater {
		t.Errorf("DEL = %v", err)
	}
	if diff := cmp.Diff([]string{"a"}, names(f.Attachments())); diff != "" {
		t.Errorf("attachments (-want +got):\n%s", diff)
	}
	f.kernel.deleteErr = nil
	if err := f.Del(t.Context(), request("a")); err != nil || len(f.Attachments()) != 0 {
		t.Errorf("DEL = %v, left %v", err, f.Attachments())
	}
}

func TestTheLoopSeesADeviceGoBeforeItComesBack(t *testing.T) {
	f := newFixture(t)
	f.add(t, "a")
	f.add(t, "b")
	f.seen = nil
	f.add(t, "a") // again: its device is made anew
	var got [][]string
	for _, s := range f.seen {
		got = append(got, names(s))
	}
	if diff := cmp.Diff([][]string{{"b"}, {"a", "b"}}, got); diff != "" {
		t.Errorf("what Sync saw (-want +got):\n%s", diff)
	}
}

func TestAddRollsBack(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(f *fixture)
		want  uint
	}{
		{"policy is not in force", func(f *fixture) { f.inForce = errors.New("unknown pod") }, cni.CodeTryAgainLater},
		{"loop fails", func(f *fixture) { f.sync = func() error { return errors.New("no") } }, cni.CodeTryAgainLater},
		{"no block", func(f *fixture) { _ = f.store.SetBlocks(nil) }, cni.CodeNoAddress},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t)
			tc.spoil(f)
			if _, err := f.Add(t.Context(), request("a"), nil); err == nil || err.Code != tc.want {
				t.Errorf("ADD = %v, want code %d", err, tc.want)
			}
			if len(f.store.Attachments()) != 0 || len(f.kernel.devices) != 0 {
				t.Errorf("left: %v, %v", f.store.Attachments(), f.kernel.devices)
			}
		})
	}
}

func TestARequestThatIsOvertakenDoesNothing(t *testing.T) {
	f := newFixture(t)
	f.add(t, "a")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Del(ctx, request("a")); err == nil || len(f.Attachments()) != 1 {
		t.Errorf("DEL = %v, left %v", err, f.Attachments())
	}
}

func TestGCLeavesOtherNetworksAlone(t *testing.T) {
	f := newFixture(t)
	for _, pod := range []string{"a", "b", "c"} {
		f.add(t, pod)
	}
	other := request("other")
	other.Network = "second"
	if _, err := f.Add(t.Context(), other, nil); err != nil {
		t.Fatal(err)
	}
	gc := cni.Request{Verb: cni.GC, Network: "heliograph", Valid: []cni.Attachment{{ContainerID: "b", IfName: "eth0"}}}
	if err := f.GC(t.Context(), gc); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"b", "other"}, names(f.Attachments())); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestSweepAfterAReboot(t *testing.T) {
	f := newFixture(t)
	for _, pod := range []string{"a", "b", "c"} {
		f.add(t, pod)
	}
	promised := cni.Tombstones{Dir: filepath.Join(f.dir, cni.TombstoneDir)}
	if err := promised.Add(request("b").Attachment); err != nil {
		t.Fatal(err)
	}
	delete(f.kernel.devices, podnet.HostDevice(request("c").Attachment))
	if err := f.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"a"}, names(f.Attachments())); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	if len(f.kernel.devices) != 1 || promised.Has(request("b").Attachment) {
		t.Errorf("devices %v, promise kept %v", f.kernel.devices, !promised.Has(request("b").Attachment))
	}
}

func TestUsageCollector(t *testing.T) {
	f := newFixture(t)
	f.add(t, "a")
	f.add(t, "b")
	_ = f.Del(t.Context(), request("b"))
	registry := prometheus.NewRegistry()
	registry.MustRegister(workload.UsageCollector{Usage: f.store.Usage})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, m := range families[0].GetMetric() {
		key := ""
		for _, l := range m.GetLabel() {
			key += l.GetName() + "=" + l.GetValue() + " "
		}
		got[key] = m.GetGauge().GetValue()
	}
	want := map[string]float64{
		"block=four pool=p state=in_use ": 1, "block=four pool=p state=cooling ": 1, "block=four pool=p state=free ": 5,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
