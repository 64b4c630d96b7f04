// SPDX-License-Identifier: Apache-2.0

// Package archtest holds the house's rules about who may import whom, each with its reason.
package archtest

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/heliograph-dev/heliograph"

// rule forbids packages to reach others, directly or through anything they import.
type rule struct {
	packages []string // within the module; "x/..." for all below x
	forbid   []string // import path prefixes
	direct   []string // import path prefixes that only direct imports are checked for
	because  string
}

var rules = []rule{
	{
		packages: []string{"bgp", "felix/delta", "felix/desired", "cni", "felix/trigger", "policy", "policy/eval"},
		forbid:   []string{"k8s.io", "sigs.k8s.io", "github.com/vishvananda", "github.com/mdlayher", "github.com/osrg"},
		because:  "these are the vocabulary that everything else imports",
	},
	{
		packages: []string{"bgp/topology", "felix/snapshot", "felix/calc", "felix/path", "labels", "cni/ipam"},
		forbid:   []string{"k8s.io/client-go", "github.com/vishvananda", "github.com/mdlayher", "github.com/osrg"},
		because:  "deciding is pure: it must not be able to reach the API, the kernel or a speaker",
	},
	{
		packages: []string{"bgp/topology", "felix/snapshot", "felix/calc", "felix/path", "labels"},
		direct:   []string{"os", "sync", "net/http", "os/exec"},
		because:  "deciding is pure: it depends on its arguments alone, and shares no state",
	},
	{
		packages: []string{"policy", "policy/compile", "policy/eval", "policy/explain"},
		forbid: []string{
			"k8s.io/client-go", "sigs.k8s.io/controller-runtime", "github.com/vishvananda", "github.com/mdlayher", "github.com/google/nftables",
			"github.com/osrg", module + "/felix", module + "/bgp", module + "/controllers",
		},
		because: "what a policy means is decided without the kernel, the API server and the agent: renderers, the CLI and a relay use it too",
	},
	{
		packages: []string{"policy", "policy/eval"},
		forbid:   []string{module + "/api"},
		because:  "the compiler reads our kinds, whose types are plain data as those of Kubernetes are; who has its result need not know them",
	},
	{
		packages: []string{"policy", "policy/compile", "policy/eval", "policy/explain"},
		direct:   []string{"os", "sync", "time", "net/http", "os/exec", "log/slog"},
		because:  "deciding is pure: it depends on its arguments alone, and shares no state",
	},
	{
		packages: []string{
			"felix/link", "felix/address", "felix/neigh", "felix/nexthop", "felix/route", "felix/nft", "felix/sysctl",
			"felix/conntrack", "felix/rule", "felix/capability", "felix/kernel", "felix/explain", "felix/nftpolicy", "felix/iptables", "felix/nflog", "felix/dnsgate",
		},
		forbid: []string{
			"k8s.io", "sigs.k8s.io", "github.com/osrg", module + "/api", module + "/bgp", module + "/felix/calc", module + "/felix/snapshot",
		},
		because: "a driver makes desired values true in one kernel subsystem; it knows nothing of the cluster",
	},
	{
		packages: []string{"felix/iptables", "felix/nftpolicy"},
		forbid:   []string{module + "/policy/compile", module + "/policy/eval"},
		because:  "a renderer takes what was compiled, and is tested against the evaluator: it must not ask it",
	},
	{
		packages: []string{"felix/policytest"},
		forbid: []string{
			"k8s.io", "sigs.k8s.io", "github.com/osrg", "github.com/google/nftables", module + "/api", module + "/bgp", module + "/policy/compile",
		},
		because: "it tests any renderer: it knows what a policy means and what packets are, not how one is rendered or where it comes from",
	},
	{
		packages: []string{"felix/probe"},
		forbid: []string{
			"k8s.io", "sigs.k8s.io", "github.com/osrg", "github.com/vishvananda", "github.com/mdlayher", module + "/api",
			module + "/felix/calc", module + "/felix/snapshot",
		},
		because: "the prober is told whom to ask; it knows sockets, and nothing of the cluster or of routes",
	},
	{
		packages: []string{"felix/inspect"},
		forbid: []string{
			"k8s.io", "sigs.k8s.io", "github.com/osrg", "github.com/vishvananda", "github.com/prometheus", module + "/api",
			module + "/bgp/speaker", module + "/bgp/topology", module + "/felix/calc", module + "/felix/snapshot",
		},
		because: "it shows what speaker and reflector hold, as they tell it: it has nothing to change them with",
	},
	{
		packages: []string{"bgp/speaker"},
		forbid:   []string{"k8s.io", "sigs.k8s.io", module + "/api", module + "/felix"},
		because:  "the speaker knows BGP alone",
	},
	{
		packages: []string{"bgp/reflector"},
		forbid: []string{
			"k8s.io", "sigs.k8s.io", "github.com/vishvananda", "github.com/mdlayher", "github.com/prometheus", module + "/api", module + "/felix",
		},
		because: "the reflector runs without Kubernetes and programs no kernel",
	},
	{
		packages: []string{"bgp/reflector/heliograph-reflector", "internal/reflectd"},
		forbid:   []string{"k8s.io", "sigs.k8s.io/controller-runtime", "github.com/osrg", "github.com/vishvananda", module + "/api", module + "/felix"},
		because:  "it is small: a dedicated machine's memory belongs to its clients",
	},
	{
		packages: []string{"controllers/..."},
		forbid:   []string{module + "/felix", "github.com/osrg", "github.com/vishvananda", "github.com/mdlayher"},
		because:  "the controller runs on no node in particular: it has no kernel and no speaker",
	},
	{
		packages: []string{"cni/heliograph-cni"},
		forbid: []string{
			// vishvananda/netns, a few system calls, comes with the CNI project's skel.
			"k8s.io", "sigs.k8s.io", "github.com/osrg", "github.com/vishvananda/netlink", "github.com/mdlayher", "github.com/prometheus",
			"go.etcd.io", "net/http", module + "/api", module + "/felix",
		},
		because: "it is started for every pod: it must be small and quick",
	},
	{
		packages: []string{"api/..."},
		forbid:   []string{"k8s.io/client-go", "sigs.k8s.io/controller-runtime", module + "/bgp", module + "/felix", module + "/controllers"},
		because:  "others import the API types; they must not get the rest of us with them",
	},
}

// onlyImporters lists imports that few packages may have. bgp/reflector, for all that design.md
// grants it, does without GoBGP's codec: its tests alone use that, as an oracle.
var onlyImporters = map[string][]string{
	"github.com/osrg/gobgp/v4": {"bgp/speaker"},
	"go.etcd.io/bbolt":         {"cni/ipam", "felix/feed"},
}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func TestImports(t *testing.T) {
	packages := list(t)
	for _, r := range rules {
		for _, name := range r.packages {
			matched := 0
			for _, p := range packages {
				if !matches(p.ImportPath, name) {
					continue
				}
				matched++
				check(t, p, p.Deps, r.forbid, r.because)
				check(t, p, p.Imports, r.direct, r.because)
			}
			if matched == 0 {
				t.Errorf("rule for %s matches no package", name)
			}
		}
	}
	for _, p := range packages {
		for prefix, owners := range onlyImporters {
			if !slices.ContainsFunc(owners, func(o string) bool { return strings.HasPrefix(p.ImportPath, module+"/"+o) }) {
				check(t, p, p.Imports, []string{prefix}, "only "+strings.Join(owners, " and ")+" may")
			}
		}
	}
}

// TestDriversAreStrangers keeps drivers from importing each other.
func TestDriversAreStrangers(t *testing.T) {
	drivers := []string{"link", "address", "neigh", "nexthop", "route", "nft", "sysctl", "conntrack", "rule", "capability", "explain", "nftpolicy", "iptables", "nflog"}
	for _, p := range list(t) {
		for _, d := range drivers {
			if p.ImportPath != module+"/felix/"+d {
				continue
			}
			for _, other := range drivers {
				check(t, p, p.Imports, []string{module + "/felix/" + other}, "drivers are strangers to each other: order is the agent's")
			}
		}
	}
}

func check(t *testing.T, p pkg, imports, forbidden []string, because string) {
	t.Helper()
	for _, f := range forbidden {
		for _, i := range imports {
			if i == f || strings.HasPrefix(i, f+"/") {
				t.Errorf("%s reaches %s: %s", p.ImportPath, i, because)
				break
			}
		}
	}
}

func matches(path, name string) bool {
	if base, ok := strings.CutSuffix(name, "/..."); ok {
		return path == module+"/"+base || strings.HasPrefix(path, module+"/"+base+"/")
	}
	return path == module+"/"+name
}

func list(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps=false", "-json=ImportPath,Imports,Deps", module+"/...").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var packages []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}
