package cluster

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"text/template"
	"time"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/cache"
	"github.com/heliograph-dev/heliograph/hack/lab/internal/host"
	"github.com/heliograph-dev/heliograph/hack/lab/internal/topology"
)

const (
	smokeTimeout = 90 * time.Second
	checkTimeout = 15 * time.Second
)

//go:embed smoke.yaml.tmpl
var smokeTemplate string

var smokeManifest = template.Must(template.New("smoke.yaml").Parse(smokeTemplate))

// smokePod is one end of the smoke test's traffic.
type smokePod struct {
	name string
	host topology.Host
	pid  string // of its container, in the node's pid namespace
	ips  []netip.Addr
}

// check is one thing that must work: a pod asks a server for its name.
type check struct {
	name string
	from smokePod
	host string // address or name
	port int
	want string // prefix of the answer
}

// Smoke proves with pods on every node that the pod network carries traffic:
// pod to pod in both families, to a service by its address and by its name.
func (l *Lab) Smoke(ctx context.Context) error {
	if err := l.Running(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, smokeTimeout)
	defer cancel()
	// A name of its own: the namespace of the run before may take a while to go.
	namespace := "lab-smoke-" + randomToken()[:6]
	defer l.removeSmoke(namespace)
	pods, err := l.smokePods(ctx, namespace)
	if err != nil {
		return err
	}
	l.out.step("smoke: %d pods are ready", len(pods))
	checks, err := l.smokeChecks(ctx, namespace, pods)
	if err != nil {
		return err
	}
	byPod := map[string][]check{}
	for _, c := range checks {
		byPod[c.from.name] = append(byPod[c.from.name], c)
	}
	var fns []func() error
	for _, cs := range byPod {
		fns = append(fns, func() error { return l.runChecks(ctx, cs) })
	}
	if err := parallel(fns...); err != nil {
		return fmt.Errorf("smoke: %w\nwhere to look:\n%s", err, l.Advice())
	}
	l.out.step("smoke: all %d checks passed", len(checks))
	return nil
}

// removeSmoke leaves nothing of the test, even when its time is up. The pods are
// gone when it returns; the rest of the namespace follows.
func (l *Lab) removeSmoke(namespace string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, err := l.kubectl(ctx, "", "delete", "-n", namespace, "pods", "--all")
	if err == nil {
		_, err = l.kubectl(ctx, "", "delete", "namespace", namespace, "--ignore-not-found", "--wait=false")
	}
	if err != nil {
		l.out.step("smoke: namespace %s is left over: %v", namespace, err)
	}
}

func (l *Lab) smokePods(ctx context.Context, namespace string) ([]smokePod, error) {
	nodes := l.plan.Of(topology.Node)
	var b bytes.Buffer
	err := smokeManifest.Execute(&b, map[string]any{
		"Namespace": namespace, "Image": cache.AgnhostImage, "Nodes": hostNames(nodes),
	})
	if err != nil {
		return nil, fmt.Errorf("render smoke manifest: %w", err)
	}
	if _, err := l.kubectl(ctx, b.String(), "apply", "-f", "-"); err != nil {
		return nil, err
	}
	var pods []smokePod
	wait, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	err = l.waitFor(wait, "the smoke pods", func() error {
		var err error
		pods, err = l.readySmokePods(ctx, namespace, nodes)
		return err
	})
	if err != nil {
		return nil, l.explain(err)
	}
	return pods, nil
}

func (l *Lab) readySmokePods(ctx context.Context, namespace string, nodes []topology.Host) ([]smokePod, error) {
	var list podList
	if err := l.get(ctx, "/api/v1/namespaces/"+namespace+"/pods", &list); err != nil {
		return nil, err
	}
	var out []smokePod
	for _, p := range list.Items {
		if !p.ready() {
			return nil, fmt.Errorf("pod %s on %s is %s", p.Metadata.Name, p.Spec.NodeName, p.Status.Phase)
		}
		h, _ := l.plan.Host(p.Spec.NodeName)
		pid, err := taskPid(ctx, h, p.Status.ContainerStatuses[0].ContainerID)
		if err != nil {
			return nil, err
		}
		sp := smokePod{name: p.Metadata.Name, host: h, pid: pid}
		for _, ip := range p.Status.PodIPs {
			a, err := netip.ParseAddr(ip.IP)
			if err != nil {
				return nil, fmt.Errorf("parse address of pod %s: %w", sp.name, err)
			}
			sp.ips = append(sp.ips, a)
		}
		out = append(out, sp)
	}
	if len(out) != len(nodes) {
		return nil, fmt.Errorf("%d of %d pods are there", len(out), len(nodes))
	}
	return out, nil
}

// taskPid asks a node's containerd for a container's process.
func taskPid(ctx context.Context, h topology.Host, containerID string) (string, error) {
	id := strings.TrimPrefix(containerID, "containerd://")
	out, err := hostOf(h).Run(ctx, "", "ctr", "-n", "k8s.io", "tasks", "ls")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == id {
			return f[1], nil
		}
	}
	return "", fmt.Errorf("container %s has no task on %s", id, h.Name)
}

func (l *Lab) smokeChecks(ctx context.Context, namespace string, pods []smokePod) ([]check, error) {
	var svc struct {
		Spec struct {
			ClusterIPs []string
		}
	}
	if err := l.get(ctx, "/api/v1/namespaces/"+namespace+"/services/smoke", &svc); err != nil {
		return nil, err
	}
	dns := l.hasDNS(ctx)
	if !dns {
		l.out.step("smoke: CoreDNS is not ready, names are not checked")
	}
	var checks []check
	families := 2
	for _, from := range pods {
		for _, to := range pods {
			if from.name == to.name {
				continue
			}
			for _, ip := range to.ips {
				checks = append(checks, check{from.name + " to " + to.name, from, ip.String(), 8080, to.name})
			}
		}
		families = min(families, len(from.ips))
		for _, ip := range svc.Spec.ClusterIPs[:min(len(from.ips), len(svc.Spec.ClusterIPs))] {
			checks = append(checks, check{from.name + " to the service", from, ip, 80, "on-"})
		}
		if dns {
			name := "smoke." + namespace + ".svc.cluster.local"
			checks = append(checks, check{from.name + " to the service by name", from, name, 80, "on-"})
		}
	}
	if families < 2 && l.state.CNI == CNIHeliograph {
		return nil, errors.New("smoke: a pod has no second address; heliograph is dual-stack")
	}
	return checks, nil
}

func (l *Lab) hasDNS(ctx context.Context) bool {
	var w workload
	if err := l.get(ctx, "/apis/apps/v1/namespaces/kube-system/deployments/coredns", &w); err != nil {
		return false
	}
	w.kind = deployments
	return w.rolledOut() == nil
}

func (l *Lab) runChecks(ctx context.Context, checks []check) error {
	var errs []error
	for _, c := range checks {
		ctx, cancel := context.WithTimeout(ctx, checkTimeout)
		start := time.Now()
		err := host.WaitFor(ctx, c.name, func() error { return c.run(ctx) })
		cancel()
		if err != nil {
			l.out.step("FAIL  %s at %s", c.name, c.host)
			errs = append(errs, err)
			continue
		}
		l.out.step("ok    %s at %s (%d ms)", c.name, c.host, time.Since(start).Milliseconds())
	}
	return errors.Join(errs...)
}

// run lets the source pod's own server dial the target: curl asks it inside the
// pod's network, so the answer does not depend on how the lab reaches pods.
func (c check) run(ctx context.Context) error {
	q := url.Values{
		"host": {c.host}, "port": {fmt.Sprint(c.port)}, "protocol": {"http"}, "request": {"hostname"}, "tries": {"1"},
	}
	out, err := hostOf(c.from.host).Run(ctx, "", "nsenter", "--target", c.from.pid, "--net",
		"curl", "-sS", "--max-time", "8", "http://127.0.0.1:8080/dial?"+q.Encode())
	if err != nil {
		return err
	}
	var answer struct {
		Responses, Errors []string
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return fmt.Errorf("parse answer %q: %w", out, err)
	}
	if len(answer.Responses) != 1 || !strings.HasPrefix(answer.Responses[0], c.want) {
		return fmt.Errorf("%s: want %s, got %v %v", c.name, c.want, answer.Responses, answer.Errors)
	}
	return nil
}
