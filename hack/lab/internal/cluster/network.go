package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/topology"
)

func privatePaths(h topology.Host) []string {
	switch h.Kind {
	case topology.Node:
		return nodePrivatePaths()
	case topology.Control:
		return controlPrivate
	default:
		return routerPrivate
	}
}

// startHosts makes all hosts and the network between them.
func (l *Lab) startHosts(ctx context.Context) error {
	for _, h := range l.plan.Hosts {
		if err := makeMountpoints(privatePaths(h)); err != nil {
			return err
		}
	}
	err := each(l.plan.Hosts, func(h topology.Host) error {
		if err := os.MkdirAll(hostOf(h).Dir, 0o755); err != nil {
			return fmt.Errorf("make directory of host %s: %w", h.Name, err)
		}
		return hostOf(h).Start(ctx, privatePaths(h))
	})
	if err != nil {
		return err
	}
	pids := map[string]int{}
	for _, h := range l.plan.Hosts {
		pids[h.Name] = hostOf(h).Pid()
		if _, err := hostOf(h).Run(ctx, h.Sysctls(), "sysctl", "-q", "-p", "-"); err != nil {
			return err
		}
	}
	if err := runBatch(ctx, l.plan.LinkScript(pids)); err != nil {
		return fmt.Errorf("make links: %w", err)
	}
	return each(l.plan.Hosts, func(h topology.Host) error {
		_, err := hostOf(h).Run(ctx, h.Script(), "ip", "-batch", "-")
		return err
	})
}

func runBatch(ctx context.Context, script string) error {
	cmd := exec.CommandContext(ctx, "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip -batch: %w: %s", err, out)
	}
	return nil
}

// hostsAlive tells whether every host exists.
func (l *Lab) hostsAlive() bool {
	return len(l.plan.Hosts) > 0 && !slices.ContainsFunc(l.plan.Hosts, func(h topology.Host) bool {
		return !hostOf(h).Alive()
	})
}

// underlayWorks tells whether a node reaches the control host and all other
// nodes by their addresses.
func (l *Lab) underlayWorks(ctx context.Context, h topology.Host) error {
	control, _ := l.plan.Host("control")
	for _, peer := range append([]topology.Host{control}, l.plan.Of(topology.Node)...) {
		for _, a := range peer.Addrs() {
			if _, err := hostOf(h).Run(ctx, "", "ping", "-q", "-n", "-c1", "-W1", a.String()); err != nil {
				return fmt.Errorf("%s does not reach %s at %s", h.Name, peer.Name, a)
			}
		}
	}
	return nil
}

// createdDirs lists the directories that the lab had to make on the machine, as
// places to mount on. Down removes them.
var createdDirs = statePath("created-dirs")

func makeMountpoints(paths []string) error {
	for _, p := range paths {
		// Innermost last, so that they can be removed in reverse.
		for _, dir := range missingDirs(p) {
			if err := appendLine(createdDirs, dir); err != nil {
				return err
			}
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make mount point: %w", err)
			}
		}
	}
	return nil
}

func missingDirs(path string) []string {
	var out []string
	for p := path; p != "/"; p = filepath.Dir(p) {
		if _, err := os.Stat(p); err == nil {
			break
		}
		out = append(out, p)
	}
	slices.Reverse(out)
	return out
}

func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("remember %s: %w", line, err)
	}
	defer f.Close()
	if _, err := fmt.Fprintln(f, line); err != nil {
		return fmt.Errorf("remember %s: %w", line, err)
	}
	return nil
}

func removeMountpoints() error {
	b, err := os.ReadFile(createdDirs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the list of made directories: %w", err)
	}
	for _, dir := range slices.Backward(strings.Fields(string(b))) {
		// One that is not empty is somebody else's by now.
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) && !isNotEmpty(err) {
			return fmt.Errorf("remove directory: %w", err)
		}
	}
	return nil
}

// waitForUnderlay waits until the fabric has converged.
func (l *Lab) waitForUnderlay(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	err := each(append(l.plan.Of(topology.Spine), l.plan.Of(topology.Leaf)...), func(h topology.Host) error {
		return l.waitFor(ctx, "the fabric's BGP sessions", func() error { return l.fabricHealthy(ctx, h) })
	})
	if err != nil {
		return err
	}
	return each(l.plan.Of(topology.Node), func(h topology.Host) error {
		return l.waitFor(ctx, "the underlay", func() error { return l.underlayWorks(ctx, h) })
	})
}
