// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/cni/ipam"
	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
	"github.com/heliograph-dev/heliograph/policy/compile"
)

// remoteSummary is what reports tell of the cluster. It is made once for each computation, so that a
// run for the pods alone costs what they cost.
type remoteSummary struct {
	paths    []PathReport
	quorum   Quorum
	silent   map[path.Key]bool
	routes   map[RouteClass]int
	prefixes map[netip.Prefix]bool
}

// summarize makes the summary of a new state, and tells of paths that changed their method.
func (l *loop) summarize(now time.Time) {
	l.noteIntruders(now)
	paths, changed := l.paths.clock.update(l.state.Paths, now)
	if len(changed) > 0 {
		l.metrics.observeChanges(changed)
		l.tell.pathsChanged(changed)
		l.logChanges(changed)
	}
	silent := l.tellSilence(paths)
	quorum := l.paths.quorum(now, l.view, paths)
	if lost := !quorum.Proven(); !quorum.Waiting && lost != l.paths.lost {
		l.paths.lost = lost
		l.tell.quorumChanged(quorum)
	}
	l.summary = remoteSummary{paths: paths, quorum: quorum, silent: silent, routes: routeClasses(l.state), prefixes: make(map[netip.Prefix]bool, len(l.state.Routes))}
	for _, r := range l.state.Routes {
		l.summary.prefixes[r.Prefix] = true
	}
}

// logChanges writes a line for each path that changed its method. Unlike the Events, none is left out.
func (l *loop) logChanges(changed []PathReport) {
	for _, p := range changed {
		l.log.Info("path changed", "node", p.Node, "family", p.Family.String(), "from", p.Was, "to", p.Method, "why", p.Reason)
	}
}

// tellSilence tells of nodes that fell silent since the last run, and returns all that are silent.
func (l *loop) tellSilence(paths []PathReport) map[path.Key]bool {
	silent := make(map[path.Key]bool, len(l.summary.silent))
	for _, p := range paths {
		key := p.Decision.Key
		if silent[key] = p.unanswered(); silent[key] && !l.summary.silent[key] && l.runs > 1 {
			l.tell.unanswered(p)
		}
	}
	return silent
}

// intruder is a peer that announces what it must not.
type intruder struct {
	peer  bgp.Neighbour
	what  calc.Refusal
	since time.Time
	told  bool
}

// String says what it does.
func (i intruder) String() string {
	return fmt.Sprintf("BGP peer %s announces %d routes that are not its own to announce, such as %s: they are refused", i.peer.Address, i.what.Routes, i.what.Example)
}

// intruderPatience is how long a peer may announce what the API does not say it owns before that is
// told: a node may learn of its new block a moment before we do.
const intruderPatience = 10 * time.Second

// noteIntruders tells, once, of peers that keep on announcing what they must not.
func (l *loop) noteIntruders(now time.Time) {
	next := make(map[bgp.Neighbour]intruder, len(l.state.Refused))
	for peer, what := range l.state.Refused {
		i, known := l.intruders[peer]
		if !known {
			i = intruder{peer: peer, since: now}
		}
		i.what = what
		if !i.told && now.Sub(i.since) >= intruderPatience {
			i.told = true
			l.log.Warn("bgp peer announces what is not its own", "peer", peer.Address, "routes", what.Routes, "example", what.Example)
		}
		next[peer] = i
	}
	l.intruders = next
}

// report publishes what the run brought about.
func (l *loop) report() {
	if l.view.Self.Name == "" {
		return
	}
	r := &Report{
		Version: l.version, BGP: l.speaker.Snapshot(), Refused: l.state.Refused, Paths: l.summary.paths,
		Quorum: l.summary.quorum, Can: l.can,
		Routes: maps.Clone(l.summary.routes), InSync: l.factsComplete() && l.lastErr == nil, FromDisk: l.facts.fromDisk,
		Problems: l.problems(), Generation: l.runs, Felix: l.view.Felix, BGPPorts: compile.BGPPorts(l.view.BGPConfig, l.view.BGPPeers), MTU: l.state.MTU, Blocks: l.blockUse(),
	}
	for _, route := range l.dataplane.local.Routes {
		r.Routes[RouteClass{Method: "local", Family: bgp.FamilyOf(route.Prefix.Addr())}]++
	}
	for _, ip := range []netip.Addr{l.view.Self.IPv4, l.view.Self.IPv6} {
		if ip.IsValid() {
			r.NodeIPs = append(r.NodeIPs, ip)
		}
	}
	for _, a := range l.state.Addresses {
		if a.Device == "lo" { // on the tunnels it stands again
			r.PodIPs = append(r.PodIPs, a.Prefix.Addr())
		}
	}
	l.publish(r)
}

// blockUse lists the blocks that the node holds. One that is being released and that nobody uses is
// left out: so the controller learns that it may have it back.
func (l *loop) blockUse() []BlockUse {
	known := map[netip.Prefix]snapshot.Block{}
	for _, b := range l.view.Blocks {
		if b.Node == l.node {
			known[b.CIDR] = b
		}
	}
	var out []BlockUse
	for _, u := range l.pods.Usage() {
		b, used := known[u.CIDR], u.InUse+u.CoolingDown
		if u.Name == "" || b.Releasing && used == 0 {
			continue
		}
		if ip := ipam.NodeAddress(u.CIDR); b.Primary && ip.IsValid() && !l.yielding {
			used++ // the node's own address
		}
		out = append(out, BlockUse{Name: u.Name, Pool: u.Pool, CIDR: u.CIDR, InUse: used})
	}
	return out
}

// problems lists what somebody should look at: objects that are not obeyed, and what the kernel
// refuses.
func (l *loop) problems() []string {
	var out []string
	if l.facts.fromDisk {
		out = append(out, "the API server has not answered since the agent started: working from the copy on disk")
	}
	for _, p := range l.state.Problems {
		out = append(out, p.String())
	}
	for _, peer := range slices.SortedFunc(maps.Keys(l.intruders), func(a, b bgp.Neighbour) int { return a.Address.Compare(b.Address) }) {
		if l.intruders[peer].told {
			out = append(out, l.intruders[peer].String())
		}
	}
	for _, e := range l.dataplane.shadowed {
		out = append(out, fmt.Sprintf("route %s: a foreign route (protocol %d, metric %d) takes its traffic", e.Route.Prefix, e.Protocol, e.Metric))
	}
	for _, err := range []error{l.trouble.cluster, l.trouble.blocks, l.trouble.pods, l.trouble.bgp, l.trouble.save} {
		if err != nil {
			out = append(out, err.Error())
		}
	}
	out = append(out, l.dataplane.problems()...)
	if p := l.pods.Problem(); p != "" {
		out = append(out, p)
	}
	return out
}

// routeClasses counts desired routes for the metric.
func routeClasses(state calc.RemoteState) map[RouteClass]int {
	single := map[desired.NexthopID]string{}
	for _, n := range state.Nexthops {
		single[n.ID] = strings.ToLower(methodOf(n.Device).String())
	}
	method := map[desired.NexthopID]string{}
	for _, n := range state.Nexthops {
		if n.Group == "" {
			continue
		}
		if members := n.Members(); len(members) > 0 {
			method[n.ID] = single[members[0]]
		}
	}
	counts := map[RouteClass]int{}
	for _, r := range state.Routes {
		m := "blackhole"
		if r.Type == desired.RouteNexthop {
			m = method[r.Nexthop]
		}
		counts[RouteClass{Method: m, Family: bgp.FamilyOf(r.Prefix.Addr())}]++
	}
	return counts
}

// podError is what keeps the pods of this node from being served: a pod's ADD must not succeed
// before the filter and its own routes are in force. What goes wrong elsewhere does not concern it.
func (l *loop) podError(ctx context.Context) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case !l.factsComplete():
		return errors.Join(errNoFacts, l.trouble.cluster, l.trouble.pods)
	case l.trouble.pods != nil:
		return l.trouble.pods
	case l.trouble.kernel == nil:
		return nil
	}
	// A pod that was deleted while the run was under way fails here, and is nobody's concern.
	there, err := workloadDevices(l.links)
	if err != nil {
		return err
	}
	return l.dataplane.podError(there)
}
