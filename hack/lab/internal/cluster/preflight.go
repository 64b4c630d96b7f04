package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// needed are the programs of the machine that the lab runs, and Debian's
// packages of them.
var needed = []struct{ program, pkg string }{
	{"containerd", "containerd"}, {"ctr", "containerd"}, {"runc", "runc"},
	{frrDir + "zebra", "frr"}, {frrDir + "bgpd", "frr"}, {frrDir + "bfdd", "frr"}, {"vtysh", "frr"},
	{"ip", "iproute2"}, {"nft", "nftables"}, {"iptables", "iptables"}, {"ipset", "ipset"},
	{"conntrack", "conntrack"}, {"sysctl", "procps"}, {"nsenter", "util-linux"}, {"/usr/bin/setpriv", "util-linux"}, {"mount", "mount"},
	{"ping", "iputils-ping"}, {"curl", "curl"},
}

// features are tried in a network namespace of their own.
var features = []struct{ name, command string }{
	{"veth", "ip link add veth0 type veth peer name veth1"},
	{"bridge", "ip link add br0 type bridge"},
	{"vxlan", "ip link add vx0 type vxlan id 1 dstport 4789"},
	{"nexthop objects", "ip link set lo up && ip nexthop add id 1 blackhole"},
	{"nftables", "nft add table inet heliograph-lab"},
	{"IPv6", "ip link set lo up && ip -6 addr show dev lo | grep -q ::1"},
}

// Preflight checks what the machine must have and names all that is missing.
func Preflight(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("the lab needs root: it makes namespaces, mounts and devices")
	}
	var missing, packages []string
	for _, n := range needed {
		if _, err := exec.LookPath(n.program); err != nil {
			missing = append(missing, n.program)
			if !slices.Contains(packages, n.pkg) {
				packages = append(packages, n.pkg)
			}
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("programs are missing: %s\nrun hack/deps.sh, or: apt-get install %s",
			strings.Join(missing, " "), strings.Join(packages, " "))
	}
	if lacking := lackingFeatures(ctx); len(lacking) > 0 {
		return fmt.Errorf("this kernel lacks: %s\nthe lab needs Linux 5.3 or later with these built or their modules installed",
			strings.Join(lacking, "; "))
	}
	return nil
}

// PreflightBuild checks what building needs.
func PreflightBuild() error {
	if _, err := exec.LookPath("go"); err != nil {
		return errors.New("the Go toolchain is missing: https://go.dev/dl/")
	}
	return nil
}

func lackingFeatures(ctx context.Context) []string {
	var out []string
	for _, f := range features {
		b, err := exec.CommandContext(ctx, "unshare", "--net", "sh", "-c", f.command).CombinedOutput()
		if err != nil {
			out = append(out, fmt.Sprintf("%s (%s)", f.name, strings.TrimSpace(string(b))))
		}
	}
	return out
}
