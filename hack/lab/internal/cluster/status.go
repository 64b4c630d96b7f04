package cluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/topology"
)

// Status prints what runs and what does not, and returns an error if anything
// that should does not.
func (l *Lab) Status(ctx context.Context, w io.Writer) error {
	if err := l.Running(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	r := report{w: w}
	if _, err := os.Stat(inProgress); err == nil {
		r.line("up", fmt.Errorf("it did not finish, or is at work"), "")
	}
	for _, h := range l.plan.Hosts {
		r.line(h.Name, hostStatus(h), "runs "+strings.Join(serviceNames(h), ", "))
	}
	for _, h := range append(l.plan.Of(topology.Spine), l.plan.Of(topology.Leaf)...) {
		r.line("BGP on "+h.Name, l.fabricHealthy(ctx, h), "fabric sessions established")
	}
	for _, h := range l.plan.Of(topology.Node) {
		r.line("underlay of "+h.Name, l.underlayWorks(ctx, h), "reaches control and every node")
	}
	r.line("API server", l.apiReady(ctx), l.outsideURL())
	l.clusterStatus(ctx, &r)
	if r.bad {
		return errUnhealthy
	}
	return nil
}

func (l *Lab) clusterStatus(ctx context.Context, r *report) {
	nodes, err := l.nodes(ctx)
	if err != nil {
		r.line("nodes", err, "")
		return
	}
	for _, h := range l.plan.Of(topology.Node) {
		n, found := nodes[h.Name]
		switch {
		case !found:
			r.line("node "+h.Name, fmt.Errorf("not registered"), "")
		case n.ready():
			r.line("node "+h.Name, nil, "Ready")
		case l.state.CNI == CNINone:
			r.line("node "+h.Name, nil, "NotReady: the lab has no pod network of its own (--cni=none)")
		default:
			r.line("node "+h.Name, fmt.Errorf("NotReady: %s", message(n.Status.Conditions, "Ready")), "")
		}
	}
	if l.state.CNI == CNINone {
		return
	}
	workloads, err := l.workloads(ctx)
	if err != nil {
		r.line("workloads", err, "")
	}
	for _, w := range workloads {
		if w.isOurs() || w.Metadata.Name == "coredns" {
			r.line(w.String(), w.rolledOut(), w.counts())
		}
	}
}

func hostStatus(h topology.Host) error {
	hh := hostOf(h)
	if !hh.Alive() {
		return fmt.Errorf("host is gone")
	}
	var dead []string
	for _, name := range serviceNames(h) {
		if !hh.Service(name).Alive() {
			dead = append(dead, name)
		}
	}
	if len(dead) > 0 {
		return fmt.Errorf("does not run: %s (logs in %s)", strings.Join(dead, ", "), hh.Dir)
	}
	return nil
}

func message(cs []condition, kind string) string {
	for _, c := range cs {
		if c.Type == kind {
			return c.Message
		}
	}
	return "no condition " + kind
}

type report struct {
	w   io.Writer
	bad bool
}

func (r *report) line(what string, err error, good string) {
	mark, text := "ok  ", good
	if err != nil {
		mark, text, r.bad = "FAIL", err.Error(), true
	}
	fmt.Fprintf(r.w, "%s  %-24s %s\n", mark, what, text)
}
