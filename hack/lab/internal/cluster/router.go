package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/frr"
	"github.com/heliograph-dev/heliograph/hack/lab/internal/topology"
)

const frrDir = "/usr/lib/frr/"

var (
	routerDaemons = frr.Daemons
	routerPrivate = []string{"/run", "/etc/frr"}
)

// startRouter runs FRR. Each router has an /etc/frr and a /run of its own, so
// FRR's programs, vtysh too, need no option to find each other.
func (l *Lab) startRouter(ctx context.Context, h topology.Host) error {
	hh := hostOf(h)
	root := filepath.Join(hh.Dir, "root")
	files, err := frr.Files(l.plan, h)
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := writeFile(filepath.Join(root, "etc/frr", name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	// FRR gives up root for its own user, and refuses to stay root.
	for _, dir := range []string{"run/frr", "etc/frr"} {
		if err := giveToFRR(filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	if err := stopRouterIfCrippled(ctx, h); err != nil {
		return err
	}
	var services []service
	for _, d := range routerDaemons {
		services = append(services, routerService(h, d))
	}
	return l.ensureAll(ctx, services)
}

func routerService(h topology.Host, daemon string) service {
	hh := hostOf(h)
	return service{
		host: hh, name: daemon, argv: []string{frrDir + daemon},
		ready: listens(filepath.Join(hh.Dir, "root/run/frr", daemon+".vty")),
	}
}

// StartDaemon starts a daemon of a router that has ended, and leaves the others alone: what Up does not,
// for the sake of zebra, whose clients must not be older than itself.
func (l *Lab) StartDaemon(ctx context.Context, router, daemon string) error {
	for _, h := range l.plan.Hosts {
		if h.Name == router && h.IsRouter() && slices.Contains(routerDaemons, daemon) {
			return l.ensure(ctx, routerService(h, daemon))
		}
	}
	return fmt.Errorf("start %s on %s: want a router and one of %s", daemon, router, strings.Join(routerDaemons, ", "))
}

// stopRouterIfCrippled ends all daemons of a router that lacks one, as FRR's own
// watchfrr does: bgpd does not give a new zebra the routes that the old one had.
func stopRouterIfCrippled(ctx context.Context, h topology.Host) error {
	if hostStatus(h) == nil {
		return nil
	}
	for _, d := range routerDaemons {
		if err := hostOf(h).Service(d).Kill(ctx); err != nil {
			return fmt.Errorf("stop %s on %s: %w", d, h.Name, err)
		}
	}
	return nil
}

func giveToFRR(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make FRR directory: %w", err)
	}
	u, err := user.Lookup("frr")
	if err != nil {
		return fmt.Errorf("find FRR's user: %w", err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return fmt.Errorf("parse FRR's user id: %w", err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return fmt.Errorf("parse FRR's group id: %w", err)
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		return fmt.Errorf("give directory to FRR: %w", err)
	}
	return nil
}

// bgpSummary is the part of `show bgp summary json` that matters here: by
// family, by peer.
type bgpSummary map[string]struct {
	Peers map[string]struct {
		State string `json:"state"`
		Desc  string `json:"desc"`
	} `json:"peers"`
}

// fabricDown lists the sessions of a router with other routers that are not
// established.
func (s bgpSummary) fabricDown(routers []topology.Host) []string {
	var down []string
	seen := map[string]bool{}
	for family, f := range s {
		for addr, peer := range f.Peers {
			seen[family+peer.Desc] = true
			if isOneOf(routers, peer.Desc) && peer.State != "Established" {
				down = append(down, fmt.Sprintf("%s (%s) is %s", peer.Desc, addr, peer.State))
			}
		}
	}
	for _, r := range routers {
		for _, family := range []string{"ipv4Unicast", "ipv6Unicast"} {
			if !seen[family+r.Name] {
				down = append(down, fmt.Sprintf("%s has no %s session", r.Name, family))
			}
		}
	}
	return down
}

func isOneOf(hosts []topology.Host, name string) bool {
	for _, h := range hosts {
		if h.Name == name {
			return true
		}
	}
	return false
}

// fabricHealthy tells whether a router has all its sessions with other routers.
func (l *Lab) fabricHealthy(ctx context.Context, h topology.Host) error {
	out, err := hostOf(h).Run(ctx, "", "vtysh", "-c", "show bgp summary json")
	if err != nil {
		return err
	}
	var s bgpSummary
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return fmt.Errorf("parse BGP summary of %s: %w", h.Name, err)
	}
	var routers []topology.Host
	for _, n := range l.plan.Neighbours(h.Name) {
		if n.IsRouter() {
			routers = append(routers, n)
		}
	}
	if down := s.fabricDown(routers); len(down) > 0 {
		return fmt.Errorf("BGP on %s: %s", h.Name, strings.Join(down, ", "))
	}
	return nil
}
