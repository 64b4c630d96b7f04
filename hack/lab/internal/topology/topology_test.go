package topology_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/topology"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

func TestScripts(t *testing.T) {
	for _, nodes := range []int{1, 3, 5} {
		plan, err := topology.New(nodes)
		if err != nil {
			t.Fatal(err)
		}
		pids := map[string]int{}
		var b strings.Builder
		for i, h := range plan.Hosts {
			pids[h.Name] = 1001 + i
			fmt.Fprintf(&b, "# %s pid %d rack %d\n%s%s\n", h.Name, pids[h.Name], h.Rack, h.Sysctls(), h.Script())
		}
		fmt.Fprintf(&b, "# links\n%s", plan.LinkScript(pids))
		golden(t, fmt.Sprintf("nodes%d.txt", nodes), b.String())
	}
}

func TestNodeCountIsBounded(t *testing.T) {
	for _, n := range []int{-1, 0, topology.MaxNodes + 1} {
		if _, err := topology.New(n); err == nil {
			t.Errorf("New(%d): no error", n)
		}
	}
}

func TestAddressesAreUnique(t *testing.T) {
	plan, err := topology.New(topology.MaxNodes)
	if err != nil {
		t.Fatal(err)
	}
	owner := map[netip.Addr]string{}
	claim := func(host string, ps []netip.Prefix) {
		for _, p := range ps {
			if o, ok := owner[p.Addr()]; ok {
				t.Errorf("%s is on %s and on %s", p.Addr(), o, host)
			}
			owner[p.Addr()] = host
		}
	}
	for _, h := range plan.Hosts {
		if h.Bridge != nil {
			claim(h.Name, h.Bridge.Addrs)
		}
		for _, p := range h.Ports {
			claim(h.Name, p.Addrs)
		}
	}
}

func TestAddrsToward(t *testing.T) {
	plan, err := topology.New(3)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ host, peer, want string }{
		{"leaf1", "node2", "192.168.11.1 fd00:11::1"},
		{"node2", "leaf1", "192.168.11.12 fd00:11::12"},
		{"leaf2", "spine", "192.168.100.5 fd00:100::5"},
		{"spine", "leaf2", "192.168.100.4 fd00:100::4"},
		{"node1", "spine", ""},
	} {
		var got []string
		for _, a := range plan.AddrsToward(tc.host, tc.peer) {
			got = append(got, a.String())
		}
		if d := cmp.Diff(tc.want, strings.Join(got, " ")); d != "" {
			t.Errorf("%s toward %s (-want +got):\n%s", tc.host, tc.peer, d)
		}
	}
}
