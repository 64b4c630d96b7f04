// SPDX-License-Identifier: Apache-2.0

package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/cni/ipam"
	"github.com/heliograph-dev/heliograph/cni/ipam/store"
	"github.com/heliograph-dev/heliograph/cni/podnet"
	"github.com/heliograph-dev/heliograph/felix/localapi"
	"github.com/heliograph-dev/heliograph/felix/workload"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// node is a node with the plugin and, between start and stop, an agent: all that is real of an agent
// but its loop, of which sync stands for the routes to pods.
type node struct {
	t       *testing.T
	dir     string
	cni     *libcni.CNIConfig
	store   *store.Store
	manager *workload.Manager
	stop    func()
	syncErr error
	ready   error
	flushed atomic.Int32
	log     *slog.Logger
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "hel")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "heliograph"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	nettest.Cmd(t, "ip", "addr", "add", "10.244.0.1/32", "dev", "lo")
	nettest.Cmd(t, "ip", "addr", "add", "fd00:244::1/128", "dev", "lo", "nodad")
	run := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}} // libcni's own is made at its first use, unlocked
	return &node{
		t: t, dir: dir, cni: libcni.NewCNIConfigWithCacheDir([]string{dir}, filepath.Join(dir, "cache"), run),
		log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}

func (n *node) start() {
	n.t.Helper()
	interfaces, err := podnet.New()
	if err != nil {
		n.t.Fatal(err)
	}
	n.store, err = store.Open(store.Options{Path: filepath.Join(n.dir, "ipam.db"), Kernel: workload.FromKernel(interfaces), Log: n.log})
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.store.SetBlocks([]ipam.Block{
		{Name: "four", CIDR: netip.MustParsePrefix("10.244.0.0/26"), Pool: "pool4", Primary: true},
		{Name: "six", CIDR: netip.MustParsePrefix("fd00:244::/122"), Pool: "pool6", Primary: true},
	}); err != nil {
		n.t.Fatal(err)
	}
	n.manager = workload.New(workload.Options{
		Store: n.store, Interfaces: interfaces, StateDir: n.dir, Log: n.log,
		Hooks: workload.Hooks{
			Sync:           func(ctx context.Context, _ string) error { return n.sync(ctx) },
			InForce:        func(context.Context, string) error { return nil },
			Ready:          func() error { return n.ready },
			FlushConntrack: func(netip.Addr) error { n.flushed.Add(1); return nil },
			MTU:            func() int { return 1450 },
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	if err := n.manager.Sweep(ctx); err != nil {
		n.t.Errorf("sweep: %v", err)
	}
	server, err := localapi.New(n.manager, n.socket(), n.log, prometheus.NewRegistry())
	if err != nil {
		n.t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- server.Serve(ctx) }()
	n.stop = func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("serve: %v", err)
		}
		if err := n.store.Close(); err != nil {
			n.t.Errorf("close: %v", err)
		}
		_ = interfaces.Close()
	}
	waitFor(n.t, "the socket", func() bool { _, err := os.Stat(n.socket()); return err == nil })
}

// sync is the agent's loop, as far as this test needs one.
func (n *node) sync(context.Context) error {
	if n.syncErr != nil {
		return n.syncErr
	}
	for _, x := range n.manager.Attachments() {
		for i, src := range []string{"10.244.0.1", "fd00:244::1"} {
			out, err := exec.Command("ip", "route", "replace", x.Addresses[i].String(), "dev", x.Device, "src", src).CombinedOutput()
			if err != nil && !strings.Contains(string(out), "Cannot find device") { // deleted meanwhile
				return fmt.Errorf("%w: %s", err, out)
			}
		}
	}
	return nil
}

func (n *node) socket() string { return filepath.Join(n.dir, "cni.sock") }

func (n *node) config(version string) *libcni.NetworkConfigList {
	n.t.Helper()
	b, _ := json.Marshal(map[string]any{
		"cniVersion": version, "name": "heliograph",
		"plugins": []any{map[string]any{"type": "heliograph", "socket": n.socket(), "stateDir": n.dir}},
	})
	list, err := libcni.ConfListFromBytes(b)
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

func (n *node) runtime(pod string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: "id-" + pod, NetNS: "/run/netns/" + pod, IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", pod}, {"K8S_POD_UID", "u-" + pod}},
	}
}

func (n *node) add(pod string) (*types100.Result, error) {
	result, err := n.cni.AddNetworkList(context.Background(), n.config("1.1.0"), n.runtime(pod))
	if err != nil {
		return nil, err
	}
	return types100.GetResult(result)
}

func (n *node) mustAdd(pod string) *types100.Result {
	n.t.Helper()
	r, err := n.add(pod)
	if err != nil {
		n.t.Fatalf("ADD %s: %v", pod, err)
	}
	return r
}

func (n *node) del(pod string) error {
	return n.cni.DelNetworkList(context.Background(), n.config("1.1.0"), n.runtime(pod))
}

func (n *node) check(pod string) error {
	return n.cni.CheckNetworkList(context.Background(), n.config("1.1.0"), n.runtime(pod))
}

func (n *node) addNamespace(pod string) {
	n.t.Helper()
	nettest.Cmd(n.t, "ip", "netns", "add", pod)
	nettest.Cmd(n.t, "ip", "-n", pod, "link", "set", "lo", "up")
}

// devices counts the ends of pods that are on the node.
func (n *node) devices() int {
	return strings.Count(nettest.Cmd(n.t, "ip", "-br", "link", "show", "type", "veth"), "hel")
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func codeOf(err error) uint {
	var e *types.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

func TestLifeOfAPod(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		n := newNode(t)
		n.start()
		n.addNamespace("web")
		result := n.mustAdd("web")
		got, _ := json.Marshal(result)
		var plain map[string]any
		_ = json.Unmarshal(got, &plain)
		delete(plain["interfaces"].([]any)[1].(map[string]any), "mac")
		want := map[string]any{
			"cniVersion": "1.1.0",
			"interfaces": []any{
				map[string]any{"name": podnet.HostDevice(cni.Attachment{ContainerID: "id-web", IfName: "eth0"}), "mac": "02:68:65:6c:00:01", "mtu": 1450.0},
				map[string]any{"name": "eth0", "mtu": 1450.0, "sandbox": "/run/netns/web"},
			},
			"ips": []any{
				map[string]any{"address": "10.244.0.2/32", "gateway": "169.254.1.1", "interface": 1.0},
				map[string]any{"address": "fd00:244::2/128", "gateway": "fe80::68:65ff:fe6c:1", "interface": 1.0},
			},
			"routes": []any{
				map[string]any{"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
				map[string]any{"dst": "::/0", "gw": "fe80::68:65ff:fe6c:1"},
			},
		}
		if diff := cmp.Diff(want, plain); diff != "" {
			t.Errorf("result (-want +got):\n%s", diff)
		}
		for _, ip := range []string{"10.244.0.2", "fd00:244::2"} {
			nettest.Cmd(t, "ping", "-c1", "-W1", ip)
		}
		for _, ip := range []string{"10.244.0.1", "fd00:244::1"} {
			nettest.Cmd(t, "ip", "netns", "exec", "web", "ping", "-c1", "-W1", ip)
		}
		if err := n.check("web"); err != nil {
			t.Errorf("CHECK: %v", err)
		}
		pods := n.store.Attachments()
		if len(pods) != 1 || pods[0].Pod != (cni.Pod{Namespace: "default", Name: "web", UID: "u-web"}) {
			t.Errorf("attachments = %+v", pods)
		}
		for range 2 {
			if err := n.del("web"); err != nil {
				t.Errorf("DEL: %v", err)
			}
		}
		if n.devices() != 0 || len(n.store.Attachments()) != 0 || n.flushed.Load() != 2 {
			t.Errorf("after DEL: %d devices, %v, %d addresses flushed", n.devices(), n.store.Attachments(), n.flushed.Load())
		}
		n.stop()
	})
}

func TestResultsOfOlderVersions(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		n := newNode(t)
		n.start()
		for _, version := range []string{"0.4.0", "1.0.0"} {
			pod := "v" + strings.ReplaceAll(version, ".", "")
			n.addNamespace(pod)
			result, err := n.cni.AddNetworkList(t.Context(), n.config(version), n.runtime(pod))
			if err != nil || result.Version() != version {
				t.Fatalf("ADD %s: %v, %v", version, result, err)
			}
			if err := n.cni.CheckNetworkList(t.Context(), n.config(version), n.runtime(pod)); err != nil {
				t.Errorf("CHECK %s: %v", version, err)
			}
			if err := n.cni.DelNetworkList(t.Context(), n.config(version), n.runtime(pod)); err != nil {
				t.Errorf("DEL %s: %v", version, err)
			}
		}
		n.stop()
	})
}

func TestCheckFindsDamage(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		n := newNode(t)
		n.start()
		for i, damage := range [][]string{
			{"addr", "del", "fd00:244::IP/128", "dev", "eth0"},
			{"route", "del", "default"},
			{"link", "set", "eth0", "down"},
		} {
			pod := fmt.Sprintf("pod%d", i)
			n.addNamespace(pod)
			result := n.mustAdd(pod)
			for j := range damage {
				if strings.Contains(damage[j], "IP") {
					damage[j] = result.IPs[1].Address.String()
				}
			}
			nettest.Cmd(t, "ip", append([]string{"-n", pod}, damage...)...)
			if err := n.check(pod); codeOf(err) != cni.CodeCheckFailed {
				t.Errorf("after %v: CHECK = %v", damage, err)
			}
		}
		n.addNamespace("unknown")
		n.mustAdd("unknown")
		if _, _, err := n.store.Release(cni.Attachment{ContainerID: "id-unknown", IfName: "eth0"}); err != nil {
			t.Fatal(err)
		}
		if err := n.check("unknown"); codeOf(err) != cni.CodeUnknownContainer {
			t.Errorf("CHECK of an unknown pod = %v", err)
		}
		n.stop()
	})
}

func TestAddTwiceKeepsTheAddresses(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		n := newNode(t)
		n.start()
		n.addNamespace("web")
		first := n.mustAdd("web")
		second := n.mustAdd("web")
		if diff := cmp.Diff(first.IPs, second.IPs); diff != "" {
			t.Errorf("(-first +second):\n%s", diff)
		}
		nettest.Cmd(t, "ping", "-c1", "-W1", "10.244.0.2")
		// The sandbox made anew under the same id.
		nettest.Cmd(t, "ip", "netns", "del", "web")
		n.addNamespace("web")
		n.mustAdd("web")
		nettest.Cmd(t, "ping", "-c1", "-W1", "10.244.0.2")
		if n.devices() != 1 {
			t.Errorf("%d devices", n.devices())
		}
		n.stop()
	})
}

func TestAddFailsClosed(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		n := newNode(t)
		n.start()
		n.addNamespace("web")
		clean := func(why string) {
			t.Helper()
			if n.devices() != 0 || len(n.store.Attachments()) != 0 {
				t.Errorf("%s: %d devices, %v are left", why, n.devices(), n.store.Attachments())
			}
		}
		n.syncErr = errors.New("no policy today")
		if _, err := n.add("web"); codeOf(err) != cni.CodeTryAgainLater || !strings.Contains(err.Error(), "no policy today") {
			t.Errorf("loop fails: %v", err)
		}
		clean("loop fails")
		n.syncErr, n.ready = nil, errors.New("not in sync")
		if _, err := n.add("web"); codeOf(err) != cni.CodeTryAgainLater {
			t.Errorf("not ready: %v", err)
		}
		clean("not ready")
		n.ready = nil
		nettest.Cmd(t, "ip", "-n", "web", "link", "add", "eth0", "type", "bridge")
		if _, err := n.add("web"); err == nil || !strings.Contains(err.Error(), "exists in the pod already") {
			t.Errorf("interface exists: %v", err)
		}
		clean("interface exists")
		n.stop()
	})
}

func TestStatus(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		n := newNode(t)
		status := func() uint {
			return codeOf(n.cni.GetStatusNetworkList(t.Context(), n.config("1.1.0")))
		}
		if got := status(); got != 50 {
			t.Errorf("no agent: %d", got)
		}
		n.start()
		if got := status(); got != 0 {
			t.Errorf("all is well: %d", got)
		}
		n.ready = errors.New("not in sync")
		if got := status(); got != 50 {
			t.Errorf("not in sync: %d", got)
		}
		n.ready = &cni.Error{Code: cni.CodeLimitedConnectivity, Msg: "the uplink is down"}
		if got := status(); got != 51 {
			t.Errorf("limited connectivity: %d", got)
		}
		n.ready = nil
		if err := n.store.SetBlocks(nil); err != nil {
			t.Fatal(err)
		}
		if got := status(); got != 50 {
			t.Errorf("no block: %d", got)
		}
		n.stop()
	})
}

func TestGCKeepsWhatIsValid(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		n := newNode(t)
		n.start()
		for _, pod := range []string{"a", "b", "c"} {
			n.addNamespace(pod)
			n.mustAdd(pod)
		}
		err := n.cni.GCNetworkList(t.Context(), n.config("1.1.0"), &libcni.GCArgs{
			ValidAttachments: []types.GCAttachment{{ContainerID: "id-b", IfName: "eth0"}},
		})
		if err != nil {
			t.Errorf("GC: %v", err)
		}
		left := n.store.Attachments()
		if len(left) != 1 || left[0].Pod.Name != "b" || n.devices() != 1 {
			t.Errorf("left: %+v, %d devices", left, n.devices())
		}
		n.stop()
	})
}

func TestAgentAway(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		n := newNode(t)
		n.start()
		for _, pod := range []string{"stays", "goes", "again"} {
			n.addNamespace(pod)
			n.mustAdd(pod)
		}
		n.stop() // the socket file stays, and refuses

		n.addNamespace("new")
		_, err := n.add("new")
		if codeOf(err) != cni.CodeTryAgainLater || !strings.Contains(err.Error(), "the heliograph agent is not running on this node (socket "+n.socket()) {
			t.Errorf("ADD without agent: %v", err)
		}
		for _, pod := range []string{"goes", "again", "never-was"} {
			if err := n.del(pod); err != nil {
				t.Errorf("DEL %s without agent: %v", pod, err)
			}
		}
		nettest.Cmd(t, "ping", "-c1", "-W1", "10.244.0.2") // pods live on without the agent

		n.start()
		if n.devices() != 1 || len(n.store.Attachments()) != 1 {
			t.Errorf("after the agent is back: %d devices, %+v", n.devices(), n.store.Attachments())
		}
		if entries, _ := os.ReadDir(filepath.Join(n.dir, cni.TombstoneDir)); len(entries) != 0 {
			t.Errorf("promises are left: %v", entries)
		}
		nettest.Cmd(t, "ping", "-c1", "-W1", "10.244.0.2")

		// A promise that the agent has not looked at yet is kept before the same attachment's ADD.
		promised := cni.Tombstones{Dir: filepath.Join(n.dir, cni.TombstoneDir)}
		if err := promised.Add(cni.Attachment{ContainerID: "id-again", IfName: "eth0"}); err != nil {
			t.Fatal(err)
		}
		n.mustAdd("again")
		if promised.Has(cni.Attachment{ContainerID: "id-again", IfName: "eth0"}) {
			t.Error("the promise is still there and would delete the new pod")
		}
		n.stop()
	})
}

func TestCrashAndLossOfTheFile(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		n := newNode(t)
		n.start()
		for _, pod := range []string{"a", "b"} {
			n.addNamespace(pod)
			n.mustAdd(pod)
		}
		before := n.store.Attachments()
		n.stop()
		nettest.Cmd(t, "ip", "netns", "del", "b") // its device goes too, as at a reboot
		waitFor(t, "b's device to go", func() bool { return n.devices() == 1 })
		path := filepath.Join(n.dir, "ipam.db")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b[:len(b)/3], 0o600); err != nil {
			t.Fatal(err)
		}
		n.start()
		got := n.store.Attachments()
		if len(got) != 1 || got[0].Addresses != find(before, "id-a").Addresses || got[0].Pod.Name != "a" {
			t.Errorf("recovered %+v of %+v", got, before)
		}
		if !strings.Contains(n.store.Problem(), "was damaged") || !strings.Contains(n.store.Problem(), "took 1 of 1 attachments over from the kernel") {
			t.Errorf("problem = %q", n.store.Problem())
		}
		if err := n.check("a"); err != nil {
			t.Errorf("CHECK: %v", err)
		}
		n.addNamespace("c")
		n.mustAdd("c")
		if err := n.del("a"); err != nil {
			t.Errorf("DEL of a recovered pod: %v", err)
		}
		n.stop()
	})
}

func find(all []ipam.Allocation, id string) ipam.Allocation {
	for _, x := range all {
		if x.Attachment.ContainerID == id {
			return x
		}
	}
	return ipam.Allocation{}
}

func TestManyAtOnce(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		n := newNode(t)
		n.start()
		const pods = 50
		for i := range pods {
			n.addNamespace(fmt.Sprintf("p%d", i))
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		seen := map[string]string{}
		for i := range pods {
			wg.Go(func() {
				pod := fmt.Sprintf("p%d", i)
				result, err := n.add(pod)
				if err != nil {
					t.Errorf("ADD %s: %v", pod, err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				for _, ip := range result.IPs {
					if other := seen[ip.Address.String()]; other != "" {
						t.Errorf("%s is had by %s and %s", ip.Address.String(), other, pod)
					}
					seen[ip.Address.String()] = pod
				}
			})
		}
		wg.Wait()
		if len(seen) != 2*pods || n.devices() != pods {
			t.Errorf("%d addresses, %d devices", len(seen), n.devices())
		}
		for i := range pods {
			wg.Go(func() {
				if err := n.del(fmt.Sprintf("p%d", i)); err != nil {
					t.Errorf("DEL %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if n.devices() != 0 {
			t.Errorf("%d devices are left", n.devices())
		}
		n.stop()
	})
}
