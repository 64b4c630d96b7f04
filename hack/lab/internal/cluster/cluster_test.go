package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/host"
	"github.com/heliograph-dev/heliograph/hack/lab/internal/topology"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestRenderNode(t *testing.T) {
	plan, err := topology.New(1)
	if err != nil {
		t.Fatal(err)
	}
	h, _ := plan.Host("node1")
	containerd, kubelet, err := renderNode(h, "native")
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string][]byte{"containerd.toml": containerd, "kubelet.yaml": kubelet} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), string(got)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// The manifests repeat numbers of the topology.
func TestManifestsFitTheTopology(t *testing.T) {
	plan, err := topology.New(3)
	if err != nil {
		t.Fatal(err)
	}
	wants := map[string][]string{
		"pools.yaml": strings.Split(topology.PodCIDRs, ","),
		"bgp.yaml":   {"asNumber: 64512"},
	}
	for _, leaf := range plan.Of(topology.Leaf) {
		wants["bgp.yaml"] = append(wants["bgp.yaml"], "peerIP: "+leaf.Addrs()[0].String(), leaf.RackName())
	}
	for file, list := range wants {
		b, err := os.ReadFile(filepath.Join("../../manifests/heliograph", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range list {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s does not hold %q", file, want)
			}
		}
	}
}

func TestFabricDown(t *testing.T) {
	const established = `{"peers": {"a": {"state": "Established", "desc": "spine"}}}`
	for _, tc := range []struct {
		name, in string
		want     []string
	}{
		{"both families up, nodes do not count",
			`{"ipv4Unicast": {"peers": {"a": {"state": "Established", "desc": "spine"}, "b": {"state": "Active", "desc": "node1"}}},
			  "ipv6Unicast": ` + established + `}`, nil},
		{"one family missing", `{"ipv4Unicast": ` + established + `}`, []string{"spine has no ipv6Unicast session"}},
		{"one down", `{"ipv4Unicast": {"peers": {"a": {"state": "Active", "desc": "spine"}}}, "ipv6Unicast": ` + established + `}`,
			[]string{"spine (a) is Active"}},
	} {
		var s bgpSummary
		if err := json.Unmarshal([]byte(tc.in), &s); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tc.want, s.fabricDown([]topology.Host{{Name: "spine"}})); d != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, d)
		}
	}
}

func TestRolledOut(t *testing.T) {
	for _, tc := range []struct {
		name, kind, in string
		want           bool
	}{
		{"deployment", deployments, `{"spec": {"replicas": 2}, "status": {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}}`, true},
		{"old pods left", deployments, `{"spec": {"replicas": 2}, "status": {"replicas": 3, "updatedReplicas": 2, "availableReplicas": 3}}`, false},
		{"spec not seen yet", deployments, `{"metadata": {"generation": 2}, "spec": {"replicas": 1}, "status": {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}}`, false},
		{"daemonset", daemonsets, `{"status": {"desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 3}}`, true},
		{"daemonset half way", daemonsets, `{"status": {"desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 1}}`, false},
		{"daemonset on no node", daemonsets, `{"status": {}}`, false},
	} {
		w := workload{kind: tc.kind}
		if err := json.Unmarshal([]byte(tc.in), &w); err != nil {
			t.Fatal(err)
		}
		if err := w.rolledOut(); (err == nil) != tc.want {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestMountsBelow(t *testing.T) {
	const in = `22 27 0:21 / /proc rw - proc proc rw
23 27 0:22 / /state/a rw - tmpfs none rw
24 27 0:22 / /state/a/b rw - tmpfs none rw
25 27 0:22 / /stateless rw - tmpfs none rw
`
	if d := cmp.Diff([]string{"/state/a", "/state/a/b"}, mountsBelow(in, "/state")); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestMissingDirs(t *testing.T) {
	dir := t.TempDir()
	got := missingDirs(filepath.Join(dir, "a", "b"))
	if d := cmp.Diff([]string{filepath.Join(dir, "a"), filepath.Join(dir, "a", "b")}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if got := missingDirs(dir); got != nil {
		t.Errorf("existing directory: %v", got)
	}
}

// TestHostLife makes a host, runs things in it and ends it, as up and down do.
// It needs root, and the test binary plays the holder.
func TestHostLife(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	h := host.Host{Name: "testhost", Dir: t.TempDir()}
	if err := h.Start(ctx, []string{"/run"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Service("holder").Kill(context.Background()); err != nil {
			t.Error(err)
		}
	})
	out, err := h.Run(ctx, "echo $(hostname) $(ls /sys/class/net) $(ls /run | wc -l) $$ > /run/x; cat /run/x", "sh")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out, "testhost lo 0 ") {
		t.Errorf("inside: %q", out)
	}
	if _, err := os.Stat(filepath.Join(h.Dir, "root/run/x")); err != nil {
		t.Errorf("private /run is not in the host's directory: %v", err)
	}
	if err := h.Spawn("sleeper", []string{"sleep", "100"}); err != nil {
		t.Fatal(err)
	}
	sleeper := h.Service("sleeper")
	if !sleeper.Alive() {
		t.Fatal("service does not run")
	}
	if err := h.Spawn("broken", []string{"/nonexistent"}); err == nil {
		err := host.WaitFor(ctx, "a program that does not exist to end", func() error {
			if h.Service("broken").Alive() {
				return errors.New("it runs")
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	var exit *exec.ExitError
	if _, err := h.Run(ctx, "", "sh", "-c", "exit 7"); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exit code is lost: %v", err)
	}
	if err := h.Service("holder").Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if sleeper.Alive() || h.Alive() {
		t.Error("the host's processes outlive its holder")
	}
	if _, err := h.Run(ctx, "", "true"); err == nil {
		t.Error("a dead host runs commands")
	}
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == host.HolderArg {
		if err := host.Hold(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}
