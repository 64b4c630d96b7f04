// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/explain"
)

// routeFacts is all that the way to an address is explained from.
type routeFacts struct {
	ip     netip.Addr
	from   string // the node; empty: all of them, as far as the API tells
	pools  []v1alpha1.IPPool
	blocks []v1alpha1.IPBlock
	state  clusterState
	pods   []corev1.Pod // of the owner, as far as pods says
	// noPods is why pods were not looked up; empty: they were.
	noPods string
	kernel *explain.Route
	// noKernel is why the node's kernel was not asked.
	noKernel string
	now      time.Time
}

// step is one thing that has to be true for a packet to arrive.
type step struct {
	name, text string
	broken     bool // here it stops being true
}

// walk follows a packet from pool to wire. It ends with the first broken step.
type walk struct {
	routeFacts
	steps []step

	pool  v1alpha1.IPPool
	block v1alpha1.IPBlock
	cidr  netip.Prefix         // of the block
	owner *corev1.Pod          // nil: no pod that we know of has the address
	own   bool                 // the address is the owning node's own
	path  *v1alpha1.PathStatus // nil: the owner is the node itself, or the path is not listed
}

// explainRoute explains how a packet of the node gets to the address.
func explainRoute(f routeFacts) []step {
	w := walk{routeFacts: f}
	if !w.follow(w.findPool, w.findBlock, w.findOwner, w.findPath) {
		return w.steps
	}
	asked := []func() bool{w.checkRoute, w.checkHops}
	if f.kernel == nil {
		w.say("kernel", "not asked: %s", f.noKernel)
		asked = nil
	}
	if w.follow(asked...) && w.checkFarEnd() {
		w.say("far end", "nothing is known that would stop the packet")
	}
	return w.steps
}

// explainEverywhere explains what all nodes share, and then says a line for each of them.
func explainEverywhere(f routeFacts) []step {
	w := walk{routeFacts: f}
	if !w.follow(w.findPool, w.findBlock, w.findOwner) {
		return w.steps
	}
	for _, n := range f.state.nodes {
		w.say("from "+n.Name, "%s", w.inShort(n.Name))
	}
	w.checkArrival()
	return w.steps
}

// follow takes steps until one is broken.
func (w *walk) follow(steps ...func() bool) bool {
	for _, s := range steps {
		if !s() {
			return false
		}
	}
	return true
}

func (w *walk) say(name, format string, args ...any) bool {
	w.steps = append(w.steps, step{name: name, text: fmt.Sprintf(format, args...)})
	return true
}

func (w *walk) stop(name, format string, args ...any) bool {
	w.steps = append(w.steps, step{name: name, text: fmt.Sprintf(format, args...), broken: true})
	return false
}

func (w *walk) findPool() bool {
	for _, p := range w.pools {
		if cidr, err := netip.ParsePrefix(p.Spec.CIDR); err == nil && cidr.Contains(w.ip) {
			w.pool = p
			if c := ready(p.Status.Conditions); c != "True" {
				return w.say("pool", "%s (%s, %s); not ready: %s", p.Name, p.Spec.CIDR, p.Spec.Encapsulation, c)
			}
			return w.say("pool", "%s (%s, %s)", p.Name, p.Spec.CIDR, p.Spec.Encapsulation)
		}
	}
	for _, n := range w.state.nodes {
		for _, a := range n.Status.Addresses {
			if a.Address == w.ip.String() {
				return w.stop("pool", "%s is in no IPPool: it is node %s's own address, and heliograph has no part in how it is reached", w.ip, n.Name)
			}
		}
	}
	return w.stop("pool", "%s is in no IPPool: heliograph has no part in how it is reached (of a Service it is the service proxy's work)", w.ip)
}

func (w *walk) findBlock() bool {
	for _, b := range w.blocks {
		cidr, err := netip.ParsePrefix(b.Spec.CIDR)
		if err != nil || !cidr.Contains(w.ip) {
			continue
		}
		w.block, w.cidr = b, cidr
		if !w.state.hasNode(b.Spec.Node) {
			return w.stop("block", "%s is held by %s, and there is no such node: the controller gives the block free once it is sure", b.Spec.CIDR, b.Spec.Node)
		}
		if b.Spec.Releasing {
			return w.say("block", "%s, held by %s, which is giving it back", b.Spec.CIDR, b.Spec.Node)
		}
		return w.say("block", "%s, held by %s", b.Spec.CIDR, b.Spec.Node)
	}
	return w.stop("block", "no node holds a block with %s: no pod can have the address", w.ip)
}

func (w *walk) findOwner() bool {
	node := w.block.Spec.Node
	w.own = w.block.Spec.Primary && w.ip == w.cidr.Addr().Next()
	if w.own {
		return w.say("owner", "node %s itself: its own address in the pod network", node)
	}
	if w.noPods != "" {
		return w.say("owner", "something on %s; which pod, is not known: %s", node, w.noPods)
	}
	for i := range w.pods {
		if hasIP(&w.pods[i], w.ip) {
			w.owner = &w.pods[i]
			return w.say("owner", "pod %s/%s on %s", w.owner.Namespace, w.owner.Name, node)
		}
	}
	return w.say("owner", "no pod on %s has the address now", node)
}

// hasIP says whether a pod has an address, of the pod network and not any more its node's.
func hasIP(p *corev1.Pod, ip netip.Addr) bool {
	if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return false
	}
	return slices.ContainsFunc(p.Status.PodIPs, func(has corev1.PodIP) bool {
		a, err := netip.ParseAddr(has.IP)
		return err == nil && a == ip
	})
}

func (w *walk) local() bool { return w.from == w.block.Spec.Node }

func (w *walk) family() string {
	if w.ip.Is6() {
		return "IPv6"
	}
	return "IPv4"
}

// findPath tells the candidates and the choice, as the node's agent reported them.
func (w *walk) findPath() bool {
	if w.local() {
		return w.say("choice", "local: the address is on %s itself", w.from)
	}
	st, ok := w.state.statuses[w.from]
	if !ok {
		return w.stop("choice", "%s has not reported: is the agent running there?", w.from)
	}
	for _, note := range reservations(w.from, st.Status) {
		w.say("report", "%s", note)
	}
	w.path = findPath(st.Status, w.block.Spec.Node, w.family())
	switch {
	case w.path == nil && allPaths(st.Status) > len(st.Status.Paths):
		return w.say("choice", "not among those that %s lists, so it is Native", w.from)
	case w.path == nil:
		return w.stop("choice", "%s knows no way to %s for %s: has its agent seen the block?", w.from, w.block.Spec.Node, w.family())
	}
	p := newNodePath(w.from, *w.path)
	for _, m := range p.Methods {
		w.say("candidate", "%s", candidate(m, w.now))
	}
	if p.Method == v1alpha1.PathNone {
		return w.stop("choice", "no method works: %s", p.Reason)
	}
	return w.say("choice", "%s via %s for %s: %s", p.Method, orDash(strings.Join(p.NextHops, ", ")), age(p.Since, w.now), p.Reason)
}

func findPath(st v1alpha1.NodeStatusStatus, to, family string) *v1alpha1.PathStatus {
	for i, p := range st.Paths {
		if p.Node == to && p.Family == family {
			return &st.Paths[i]
		}
	}
	return nil
}

func candidate(m nodePathMethod, now time.Time) string {
	s := fmt.Sprintf("%s: %s for %s", m.Method, m.State, age(m.Since, now))
	if m.Probes != "" {
		s += fmt.Sprintf(", probes: %s (lost %s, RTT %s, MTU %s)", probes(m), orDash(m.Loss), rtt(m), mtu(m))
	}
	if m.Reason != "" {
		s += "; " + m.Reason
	}
	return s
}

// inShort says in one line how a node reaches the block.
func (w *walk) inShort(node string) string {
	if node == w.block.Spec.Node {
		return "local"
	}
	st, ok := w.state.statuses[node]
	if !ok {
		return "has not reported: is the agent running there?"
	}
	p := findPath(st.Status, w.block.Spec.Node, w.family())
	switch {
	case p == nil && allPaths(st.Status) > len(st.Status.Paths):
		return "Native (not among those that it lists)"
	case p == nil:
		return "knows no way"
	}
	return fmt.Sprintf("%s via %s for %s: %s", methodInUse(*p), orDash(strings.Join(p.NextHops, ", ")), age(p.Since, w.now), p.Reason)
}

// checkRoute compares the kernel's route with what heliograph would have made.
func (w *walk) checkRoute() bool {
	m := w.kernel.Match
	if m == nil {
		return w.stop("kernel", "it has no route to %s (%s): see problems in `kubectl heliograph status --node %s`", w.ip, w.kernel.Error, w.from)
	}
	text := describeMatch(m)
	want := w.cidr
	if w.local() {
		want = netip.PrefixFrom(w.ip, w.ip.BitLen())
	}
	switch {
	case w.local() && w.own && m.Type == explain.TypeLocal: // the kernel's own route to its own address
	case m.Protocol != desired.Protocol:
		if m.Prefix.Bits() < want.Bits() {
			return w.stop("kernel", "the route to %s is missing, and a wider one takes its traffic: %s", want, text)
		}
		return w.stop("kernel", "a foreign route takes its traffic: %s", text)
	case w.local():
		return w.checkLocalRoute(m, text)
	case m.Prefix.Bits() < want.Bits():
		return w.stop("kernel", "the route to the block is missing, and a wider one takes its traffic: %s", text)
	case m.Prefix.Bits() > want.Bits():
		return w.stop("kernel", "a route to a part of the block takes its traffic, as if the address were here: %s", text)
	case m.Type != explain.TypeUnicast:
		return w.stop("kernel", "the route to the block drops: %s; no method worked when it was made", text)
	case m.Nexthop == 0:
		return w.say("kernel", "%s, without a nexthop object", text)
	}
	return w.say("kernel", "%s", text)
}

// checkLocalRoute looks at the route to an address of the node's own blocks.
func (w *walk) checkLocalRoute(m *explain.Match, text string) bool {
	switch {
	case m.Type == explain.TypeBlackhole && w.owner == nil:
		return w.stop("kernel", "no pod here has the address, and the block's own route drops: %s", text)
	case m.Type != explain.TypeUnicast && m.Type != explain.TypeLocal:
		return w.stop("kernel", "there is no route to the pod, and the block's own route drops: %s", text)
	}
	if m.Prefix.Bits() < w.ip.BitLen() {
		return w.stop("kernel", "there is no route to the address itself, and a wider one takes its traffic away: %s", text)
	}
	return w.say("kernel", "%s", text)
}

func describeMatch(m *explain.Match) string {
	s := fmt.Sprintf("%s %s, protocol %s, metric %d", m.Type, m.Prefix, protocolName(m.Protocol), m.Metric)
	if m.Nexthop != 0 {
		s += fmt.Sprintf(", nexthop object %d", m.Nexthop)
	}
	if m.MTU != 0 {
		s += fmt.Sprintf(", MTU %d", m.MTU)
	}
	return s
}

// protocolName names who made a route, where the number is known (rt_protos).
func protocolName(p uint8) string {
	name := map[uint8]string{
		2: "kernel", 3: "boot", 4: "static", 9: "ra", 11: "zebra", 12: "bird", 16: "dhcp", 80: "heliograph", 186: "bgp", 188: "ospf",
	}[p]
	if name == "" {
		return fmt.Sprint(p)
	}
	return fmt.Sprintf("%d (%s)", p, name)
}

// checkHops looks at every way out; one that works will do, but those that do not are told.
func (w *walk) checkHops() bool {
	if w.kernel.Match.Type == explain.TypeLocal {
		return true
	}
	if len(w.kernel.Hops) == 0 {
		return w.stop("nexthop", "object %d has no way out left", w.kernel.Match.Nexthop)
	}
	w.compareMethod()
	working, first := 0, ""
	for _, h := range w.kernel.Hops {
		fault := w.checkHop(h)
		if fault == "" {
			working++
		} else if first == "" {
			first = fault
		}
		if fault != "" && len(w.kernel.Hops) > 1 {
			w.say("fault", "%s", fault)
		}
	}
	switch {
	case working == 0:
		return w.stop("nexthop", "%s", first)
	case working < len(w.kernel.Hops):
		return w.stop("nexthop", "%d of %d ways out work: connections that hash to the other are lost", working, len(w.kernel.Hops))
	}
	return true
}

// compareMethod tells if the kernel goes another way than the report says: a report may be seconds old.
func (w *walk) compareMethod() {
	if w.path == nil || len(w.kernel.Hops) == 0 {
		return
	}
	device := w.kernel.Hops[0].Device.Name
	if is := methodOf(device); is != w.path.Method {
		w.say("report", "the kernel goes by %s (%s), the report says %s: one of them is older", is, device, w.path.Method)
	}
}

func methodOf(device string) v1alpha1.PathMethod {
	switch device {
	case desired.VXLANDevice, desired.VXLANDevice6:
		return v1alpha1.PathVXLAN
	case desired.IPIPDevice:
		return v1alpha1.PathIPIP
	}
	return v1alpha1.PathNative
}

// checkHop tells what there is of one way out, and what is wrong with it.
func (w *walk) checkHop(h explain.Hop) (fault string) {
	if fault := w.checkDevice("device", h); fault != "" {
		return fault
	}
	gateway := h.Gateway
	if !gateway.IsValid() {
		gateway = w.ip
	}
	if fault := w.checkNeighbour("neighbour", h, gateway); fault != "" {
		return fault
	}
	return w.checkUnderlay(h)
}

func (w *walk) checkDevice(name string, h explain.Hop) (fault string) {
	d := h.Device
	switch {
	case d.Name == "":
		return fmt.Sprintf("device %d is gone", d.Index)
	case !d.Up:
		return fmt.Sprintf("device %s is down", d.Name)
	case !d.Carrier:
		return fmt.Sprintf("device %s has no carrier", d.Name)
	}
	w.say(name, "%s (%s) is up, MTU %d", d.Name, d.Kind, d.MTU)
	return ""
}

// checkNeighbour: a tunnel's entries are made by heliograph and must be there; elsewhere Linux asks when it
// has something to send.
func (w *walk) checkNeighbour(name string, h explain.Hop, gateway netip.Addr) (fault string) {
	n, tunnel := h.Neighbour, h.Device.Kind
	switch {
	case tunnel == "ipip":
		w.say(name, "IPIP needs none: %s is the outer address", gateway)
	case n == nil && tunnel == "vxlan":
		return fmt.Sprintf("%s has no neighbour entry for %s", h.Device.Name, gateway)
	case n == nil:
		w.say(name, "%s on %s is not resolved yet: Linux asks when there is something to send", gateway, h.Device.Name)
	case !n.Usable():
		return fmt.Sprintf("neighbour %s on %s is %s: nobody there answers", gateway, h.Device.Name, n.State)
	case tunnel == "vxlan" && !h.Remote.IsValid():
		return fmt.Sprintf("%s has no FDB entry for %s, the MAC of %s", h.Device.Name, n.MAC, gateway)
	case tunnel == "vxlan":
		w.say(name, "%s is at %s (%s), and that behind %s (FDB)", gateway, n.MAC, n.State, h.Remote)
	default:
		w.say(name, "%s is at %s (%s)", gateway, n.MAC, n.State)
	}
	return ""
}

// checkUnderlay follows the outer packet of a tunnel.
func (w *walk) checkUnderlay(h explain.Hop) (fault string) {
	if h.Underlay == nil {
		return ""
	}
	u := h.Underlay
	if u.Match == nil || u.Match.Type != explain.TypeUnicast || len(u.Hops) == 0 {
		return fmt.Sprintf("the kernel has no way to the tunnel's other end %s (%s)", h.Remote, orDash(u.Error))
	}
	outer := u.Hops[0]
	if fault := w.checkDevice("outer device", outer); fault != "" {
		return fmt.Sprintf("on the way to the tunnel's other end %s, %s", h.Remote, fault)
	}
	gateway := outer.Gateway
	if !gateway.IsValid() {
		gateway = h.Remote
	}
	if fault := w.checkNeighbour("outer neighbour", outer, gateway); fault != "" {
		return fmt.Sprintf("on the way to the tunnel's other end %s, %s", h.Remote, fault)
	}
	return ""
}

// checkFarEnd is about what is beyond this node: whether the other one answers, and has the address.
func (w *walk) checkFarEnd() bool {
	if w.path != nil && w.path.Unanswered {
		return w.stop("far end", "%s answers probes by no method at all; what this node has is in order as far as is told above: look at the network between, and at %s",
			w.block.Spec.Node, w.block.Spec.Node)
	}
	return w.checkArrival()
}

func (w *walk) checkArrival() bool {
	if w.noPods == "" && w.owner == nil && !w.own {
		return w.stop("far end", "no pod on %s has %s: the node drops what comes for it", w.block.Spec.Node, w.ip)
	}
	return true
}
