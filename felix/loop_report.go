// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/cni/ipam"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

// report publishes what the run brought about.
func (l *loop) report(now time.Time) {
	if l.view.Self.Name == "" {
		return
	}
	paths, changed := l.clock.update(l.state.Paths, now)
	if len(changed) > 0 {
		l.metrics.observeChanges(changed)
		l.onChange(changed)
	}
	r := &Report{
		Version: l.version, BGP: l.speaker.Snapshot(), Refused: l.state.Refused, Paths: paths,
		Routes: l.routeClasses(), InSync: l.applied && l.lastErr == nil, FromDisk: l.facts.fromDisk,
		Problems: l.problems(), Generation: l.runs, MTU: l.state.MTU,
	}
	for _, ip := range []netip.Addr{l.view.Self.IPv4, l.view.Self.IPv6} {
		if ip.IsValid() {
			r.NodeIPs = append(r.NodeIPs, ip)
		}
	}
	for _, a := range l.state.Addresses {
		r.PodIPs = append(r.PodIPs, a.Prefix.Addr())
	}
	r.Blocks = l.blockUse()
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
		if b.Primary && ipam.NodeAddress(u.CIDR).IsValid() {
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
	for _, e := range l.dataplane.route.Shadowed() {
		out = append(out, fmt.Sprintf("route %s: a foreign route (protocol %d, metric %d) takes its traffic", e.Route.Prefix, e.Protocol, e.Metric))
	}
	if l.lastErr != nil {
		if failed := l.dataplane.problems(); len(failed) > 0 {
			out = append(out, failed...)
		} else {
			out = append(out, l.lastErr.Error())
		}
	}
	if l.saveErr != nil {
		out = append(out, l.saveErr.Error())
	}
	if p := l.pods.Problem(); p != "" {
		out = append(out, p)
	}
	return out
}

// routeClasses counts desired routes for the metric.
func (l *loop) routeClasses() map[RouteClass]int {
	tunnels := map[desired.NexthopID]bool{}
	for _, n := range l.state.Nexthops {
		if isOurs(n.Device) {
			tunnels[n.ID] = true
		}
	}
	method := map[desired.NexthopID]string{}
	for _, n := range l.state.Nexthops {
		if n.Group == "" {
			continue
		}
		method[n.ID] = "native"
		if members := n.Members(); len(members) > 0 && tunnels[members[0]] {
			method[n.ID] = "vxlan"
		}
	}
	counts := map[RouteClass]int{}
	for _, r := range l.state.Routes {
		m := "blackhole"
		if r.Type == desired.RouteNexthop {
			m = method[r.Nexthop]
		}
		counts[RouteClass{Method: m, Family: bgp.FamilyOf(r.Prefix.Addr())}]++
	}
	for _, r := range l.dataplane.local.Routes {
		counts[RouteClass{Method: "local", Family: bgp.FamilyOf(r.Prefix.Addr())}]++
	}
	return counts
}

// podError is what keeps the pods of this node from being served: a pod's ADD must not succeed
// before the filter and its own routes are in force. What goes wrong elsewhere does not concern it.
func (l *loop) podError(err error) error {
	if err == nil || !l.applied {
		return err
	}
	if err := l.dataplane.failed["nft"]; err != nil {
		return err
	}
	if l.dataplane.failed["route"] == nil {
		return nil
	}
	local := map[string]bool{}
	for _, r := range l.dataplane.local.Routes {
		local["route "+r.Prefix.String()] = true
	}
	for _, s := range unfinished(l.dataplane.route) {
		if local[s.Object] {
			return fmt.Errorf("%s: %s", s.Object, s.Error)
		}
	}
	return nil
}
