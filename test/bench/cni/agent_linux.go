// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/cni/ipam"
	"github.com/heliograph-dev/heliograph/cni/ipam/store"
	"github.com/heliograph-dev/heliograph/cni/podnet"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/localapi"
	"github.com/heliograph-dev/heliograph/felix/nft"
	"github.com/heliograph-dev/heliograph/felix/route"
	"github.com/heliograph-dev/heliograph/felix/workload"
)

// agent is an agent's local half: everything between the plugin and the kernel, but the API.
type agent struct {
	dir     string
	manager *workload.Manager
	mu      sync.Mutex // held while the drivers work
	routes  *route.Table
	rules   *nft.Table
	stop    func()
}

// startAgent builds the plugin into dir, and serves it from there.
func startAgent(ctx context.Context, dir string) (*agent, error) {
	if err := buildPlugin(filepath.Join(dir, "heliograph")); err != nil {
		return nil, err
	}
	log := slog.New(slog.DiscardHandler)
	conn, err := kernel.Dial()
	if err != nil {
		return nil, err
	}
	tables, err := nft.Open()
	if err != nil {
		return nil, err
	}
	interfaces, err := podnet.New()
	if err != nil {
		return nil, err
	}
	addresses, err := store.Open(store.Options{Path: filepath.Join(dir, "ipam.db"), Log: log})
	if err != nil {
		return nil, err
	}
	if err := addresses.SetBlocks([]ipam.Block{
		// Large, since addresses rest after use and a quick machine comes round.
		{Name: "four", CIDR: netip.MustParsePrefix("10.244.0.0/18"), Primary: true},
		{Name: "six", CIDR: netip.MustParsePrefix("fd00:244::/114"), Primary: true},
	}); err != nil {
		return nil, err
	}
	a := &agent{dir: dir, routes: route.New(route.NewKernel(conn, 0), log), rules: nft.New(tables, log)}
	a.manager = workload.New(workload.Options{
		Store: addresses, Interfaces: interfaces, StateDir: dir, Log: log,
		Hooks: workload.Hooks{InForce: func(context.Context, string) error { return nil }, Sync: func(ctx context.Context, _ string) error { return a.sync(ctx) }, Poke: func() { go func() { _ = a.sync(ctx) }() }},
	})
	server, err := localapi.New(a.manager, a.socket(), log, prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(ctx); err != nil {
			log.Error("the CNI socket is not served", "error", err)
		}
	}()
	a.stop = func() {
		cancel()
		<-done
		_ = addresses.Close()
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(a.socket()); err == nil {
			return a, nil
		}
		if time.Now().After(end) {
			a.stop()
			return nil, fmt.Errorf("the agent does not listen")
		}
	}
}

func buildPlugin(to string) error {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/heliograph-dev/heliograph").Output()
	if err != nil {
		return fmt.Errorf("find the module: %w", err)
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", to, "./cni/heliograph-cni")
	cmd.Dir, cmd.Env = strings.TrimSpace(string(out)), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the plugin: %w: %s", err, out)
	}
	return nil
}

func (a *agent) socket() string { return filepath.Join(a.dir, "cni.sock") }

func (a *agent) conf() string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":"heliograph","type":"heliograph","socket":%q,"stateDir":%q}`, a.socket(), a.dir)
}

// sync programs what follows from the attachments, as a run of the agent's loop does.
func (a *agent) sync(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var routes []desired.Route
	var workloads []desired.Workload
	for _, x := range a.manager.Attachments() {
		workloads = append(workloads, desired.Workload{Device: x.Device, IPs: x.Addresses})
		for _, ip := range x.Addresses {
			routes = append(routes, desired.Route{Prefix: netip.PrefixFrom(ip, ip.BitLen()), Type: desired.RouteDevice, Device: x.Device})
		}
	}
	a.rules.SetDesired(desired.NFT{Workloads: workloads})
	if err := a.rules.Apply(ctx); err != nil {
		return err
	}
	a.routes.SetDesired(routes)
	return a.routes.Apply(ctx)
}
