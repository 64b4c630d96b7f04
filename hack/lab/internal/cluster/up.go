package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/topology"
)

// inProgress marks a lab whose hosts and services a command is starting. If it is
// there at the next up, that command was cut short, and the lab is made anew: a
// service may run whose pid nobody knows.
var inProgress = statePath("in-progress")

// Up makes the lab what the options say, from whatever it is now.
func (l *Lab) Up(ctx context.Context, o Options) error {
	if err := l.Cache.Build(ctx); err != nil {
		return err
	}
	if o.CNI == CNIHeliograph {
		if err := l.checkHeliograph(o); err != nil {
			return err
		}
	}
	if why := l.unusable(o); why != "" {
		if err := l.restart(ctx, o, why); err != nil {
			return err
		}
	}
	if err := l.startServices(ctx); err != nil {
		return err
	}
	if err := l.converge(ctx, o); err != nil {
		return err
	}
	l.out.step("the lab is up")
	return nil
}

// unusable says why the present lab cannot become the wanted one by starting
// what is missing in it; "" if it can.
func (l *Lab) unusable(o Options) string {
	switch _, err := os.Stat(inProgress); {
	case len(l.plan.Hosts) == 0:
		return "there is none"
	case err == nil:
		return "an earlier command was cut short"
	case !l.hostsAlive():
		return "hosts are gone"
	case l.state.Nodes != o.Nodes:
		return fmt.Sprintf("it has %d nodes", l.state.Nodes)
	case l.state.CNI == CNIHeliograph && o.CNI == CNINone:
		return "it has heliograph"
	}
	return ""
}

// restart clears away what there is and makes the hosts and their network.
func (l *Lab) restart(ctx context.Context, o Options, why string) error {
	l.out.step("making a new lab: %s", why)
	if err := l.Down(ctx); err != nil {
		return err
	}
	plan, err := topology.New(o.Nodes)
	if err != nil {
		return err
	}
	port, err := pickPort()
	if err != nil {
		return err
	}
	l.plan, l.state = plan, state{Nodes: o.Nodes, APIPort: port}
	if err := writeFile(inProgress, nil, 0o644); err != nil {
		return err
	}
	if err := l.writePKI(); err != nil {
		return err
	}
	if err := l.saveState(); err != nil {
		return err
	}
	if err := l.startHosts(ctx); err != nil {
		return err
	}
	l.out.step("hosts and links: %s", strings.Join(hostNames(l.plan.Hosts), " "))
	return nil
}

func hostNames(hosts []topology.Host) []string {
	var out []string
	for _, h := range hosts {
		out = append(out, h.Name)
	}
	return out
}

// converge waits until the cluster is what the options say. On a healthy lab it
// only looks.
func (l *Lab) converge(ctx context.Context, o Options) error {
	if err := l.waitForUnderlay(ctx); err != nil {
		return err
	}
	l.out.step("fabric: BGP sessions established, nodes reach each other")
	if err := l.waitForNodes(ctx, "registered", func(node) bool { return true }); err != nil {
		return err
	}
	l.out.step("nodes registered: %s", strings.Join(hostNames(l.plan.Of(topology.Node)), " "))
	if _, err := l.kubectl(ctx, "", "apply", "-k", l.manifests("coredns")); err != nil {
		return err
	}
	if o.CNI == CNIHeliograph {
		if err := l.deployHeliograph(ctx, o); err != nil {
			return err
		}
	}
	l.state.CNI = o.CNI
	return l.saveState()
}

func (l *Lab) manifests(name string) string {
	return filepath.Join(l.Repo, "hack", "lab", "manifests", name)
}

// startServices starts whatever does not run.
func (l *Lab) startServices(ctx context.Context) error {
	if err := writeFile(inProgress, nil, 0o644); err != nil {
		return err
	}
	if err := l.startFoundation(ctx); err != nil {
		return err
	}
	err := parallel(
		func() error { return l.startControllers(ctx) },
		func() error {
			return each(l.plan.Of(topology.Node), func(h topology.Host) error { return l.startKubelet(ctx, h) })
		},
	)
	if err != nil {
		return err
	}
	if err := os.Remove(inProgress); err != nil {
		return fmt.Errorf("mark the services as started: %w", err)
	}
	return nil
}

// startFoundation starts what needs nothing else: routers, the API server and
// the nodes' runtimes.
func (l *Lab) startFoundation(ctx context.Context) error {
	nodes := l.plan.Of(topology.Node)
	return parallel(
		func() error {
			routers := append(l.plan.Of(topology.Spine), l.plan.Of(topology.Leaf)...)
			err := each(routers, func(h topology.Host) error { return l.startRouter(ctx, h) })
			if err == nil {
				l.out.step("routers: FRR runs on %s", strings.Join(hostNames(routers), " "))
			}
			return err
		},
		func() error {
			err := l.startControlPlane(ctx)
			if err == nil {
				l.out.step("API server: %s", l.outsideURL())
			}
			return err
		},
		func() error {
			err := each(nodes, func(h topology.Host) error { return l.startRuntime(ctx, h) })
			if err == nil {
				l.out.step("nodes: containerd runs and has the images")
			}
			return err
		},
	)
}

// waitForNodes waits until all nodes are in the API and ok says yes to each.
func (l *Lab) waitForNodes(ctx context.Context, what string, ok func(node) bool) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	return l.waitFor(ctx, "all nodes to be "+what, func() error {
		have, err := l.nodes(ctx)
		if err != nil {
			return err
		}
		var missing []string
		for _, h := range l.plan.Of(topology.Node) {
			if n, found := have[h.Name]; !found || !ok(n) {
				missing = append(missing, h.Name)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("%s not %s", strings.Join(missing, ", "), what)
		}
		return nil
	})
}

// Load imports an image archive on all nodes.
func (l *Lab) Load(ctx context.Context, tar string) error {
	if err := l.Running(); err != nil {
		return err
	}
	abs, err := filepath.Abs(tar)
	if err != nil {
		return fmt.Errorf("find %s: %w", tar, err)
	}
	err = each(l.plan.Of(topology.Node), func(h topology.Host) error { return l.importImage(ctx, h, abs) })
	if err != nil {
		return err
	}
	l.out.step("%s is on all nodes", filepath.Base(tar))
	return nil
}

// Advice tells where to look in a lab that is up.
func (l *Lab) Advice() string {
	return fmt.Sprintf(`  bin/lab kubectl get nodes,pods -A -o wide    or: kubectl --kubeconfig %s
  bin/lab exec node1 ip route                  hosts: %s
  bin/lab exec leaf1 vtysh -c 'show bgp summary'
  bin/lab status, bin/lab smoke, bin/lab down  logs: %s/hosts/*/*.log
`, Kubeconfig, strings.Join(hostNames(l.plan.Hosts), " "), StateDir)
}

var errUnhealthy = errors.New("the lab is not healthy")
