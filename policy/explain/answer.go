// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/eval"
)

// Verdict is what becomes of packets.
type Verdict string

// Verdicts.
const (
	Allowed Verdict = "allowed"
	Denied  Verdict = "denied"
	// Mixed is some allowed, some denied.
	Mixed Verdict = "mixed"
	// Unknown is where there is no packet to ask for: no address, no endpoint.
	Unknown Verdict = "unknown"
)

// Answer is the answer to a Query. Its form as JSON is what `policy explain -o json` prints: fields are
// added, and never change.
type Answer struct {
	From End `json:"from"`
	// To is what was asked for, Protocol and Port what it was asked for with.
	To       string       `json:"to"`
	Protocol string       `json:"protocol"`
	Port     string       `json:"port,omitempty"`
	Service  *Translation `json:"service,omitempty"`
	Verdict  Verdict      `json:"verdict"`
	Flows    []Flow       `json:"flows"`
	// BackendsLeftOut is how many more endpoints the service has.
	BackendsLeftOut int      `json:"backendsLeftOut"`
	Notes           []string `json:"notes,omitempty"`
}

// Flow is packets to one pod or address: of one family, or of both where all is the same.
type Flow struct {
	To       End          `json:"to"`
	Families []string     `json:"families"`
	Src      []netip.Addr `json:"src"`
	Dst      []netip.Addr `json:"dst"`
	Protocol string       `json:"protocol"`
	Port     uint16       `json:"port,omitempty"`
	Verdict  Verdict      `json:"verdict"`
	// Egress is what is asked where the packet comes from, Ingress where it goes; null where that is neither a pod
	// nor a node with a HostEndpoint. Ingress
	// says what it would say, even if Egress denies.
	Egress  *Side `json:"egress"`
	Ingress *Side `json:"ingress"`
}

// Side is the part of one pod, or HostEndpoint, in a verdict.
type Side struct {
	Node string `json:"node"`
	eval.Trace
	// Problems of the policies that apply to the pod in this direction.
	Problems []string `json:"problems,omitempty"`
}

// ephemeral is the source port that packets are taken to have.
const ephemeral = 49152

// ICMP's echo requests.
const (
	echo4 = 8
	echo6 = 128
)

// Explain answers a query. An error says what in it does not exist.
func (v *View) Explain(q Query) (*Answer, error) {
	from, err := v.source(q.From)
	if err != nil {
		return nil, err
	}
	a := &Answer{From: from, Protocol: q.To.Protocol.String(), Port: q.To.PortName, Flows: []Flow{}}
	if q.To.Port > 0 {
		a.Port = fmt.Sprint(q.To.Port)
	}
	backends, err := v.backends(a, q.To)
	if err != nil {
		return nil, err
	}
	if most := cmp.Or(q.MaxBackends, defaultBackends); len(backends) > most {
		a.BackendsLeftOut = len(backends) - most
		backends = backends[:most]
	}
	for _, b := range backends {
		flows, err := v.flows(a, b, q.To.Protocol)
		if err != nil {
			return nil, err
		}
		a.Flows = append(a.Flows, flows...)
	}
	a.Verdict = sum(a.Flows)
	a.note(backends)
	v.noteHosts(a)
	return a, nil
}

// backends are where the packet can go.
func (v *View) backends(a *Answer, t Target) ([]backend, error) {
	svc, ip, err := v.targetService(t)
	switch {
	case err != nil:
		return nil, err
	case svc != nil && t.Protocol == policy.ICMP:
		return nil, fmt.Errorf("%s is an address of service %s/%s, which answers on its ports only", ip, svc.Namespace, svc.Name)
	case svc != nil:
		a.To = "service " + svc.Namespace + "/" + svc.Name
		var backends []backend
		if a.Service, backends, err = v.translate(svc, t, ip, a.From); err != nil {
			return nil, err
		}
		a.noteService(svc, t)
		return backends, nil
	}
	end, err := v.target(t)
	if err != nil {
		return nil, err
	}
	a.To = end.String()
	port := t.Port
	if t.PortName != "" {
		if port, err = v.namedPort(end, t); err != nil {
			return nil, err
		}
	}
	return []backend{{end: end, port: port}}, nil
}

// target finds where a packet goes that is for no service.
func (v *View) target(t Target) (End, error) {
	switch {
	case t.IP.IsValid():
		return v.ipEnd(t.IP), nil
	case t.Node != "":
		return v.nodeEnd(t.Node)
	}
	return v.podEnd(t.Pod)
}

func (v *View) targetService(t Target) (*corev1.Service, netip.Addr, error) {
	if t.IP.IsValid() {
		return v.serviceAt(t.IP), t.IP, nil
	}
	if t.Service == (policy.EndpointID{}) {
		return nil, netip.Addr{}, nil
	}
	svc, err := v.service(t.Service)
	return svc, netip.Addr{}, err
}

// namedPort is the number of a container's port.
func (v *View) namedPort(e End, t Target) (uint16, error) {
	if e.Pod == nil {
		return 0, fmt.Errorf("%s is no pod whose ports had names: give the number of port %s", e, t.PortName)
	}
	for _, p := range containerPorts(v.pods[*e.Pod]) {
		if p.Name == t.PortName && protocolOf(p.Protocol) == t.Protocol && p.ContainerPort > 0 && p.ContainerPort <= 65535 {
			return uint16(p.ContainerPort), nil
		}
	}
	return 0, fmt.Errorf("no container of %s has a %s", e, t.port())
}

// containerPorts are the ports that a pod declares, those of sidecars too.
func containerPorts(p *corev1.Pod) []corev1.ContainerPort {
	var out []corev1.ContainerPort
	for i := range p.Spec.InitContainers {
		if r := p.Spec.InitContainers[i].RestartPolicy; r != nil && *r == corev1.ContainerRestartPolicyAlways {
			out = append(out, p.Spec.InitContainers[i].Ports...)
		}
	}
	for i := range p.Spec.Containers {
		out = append(out, p.Spec.Containers[i].Ports...)
	}
	return out
}

// flows are those of the families that both ends have; one flow if all they meet is the same.
func (v *View) flows(a *Answer, b backend, protocol policy.Protocol) ([]Flow, error) {
	var out []Flow
	for _, f := range []policy.Family{policy.IPv4, policy.IPv6} {
		p, ok := v.path(a.From, b, protocol, f)
		if !ok {
			continue
		}
		flow, err := v.flow(p, f)
		if err != nil {
			return nil, err
		}
		flow.Protocol = protocol.String() // ICMP, of either family
		if len(out) > 0 && out[0].alike(flow) {
			out[0].merge(flow)
			continue
		}
		out = append(out, flow)
	}
	if len(out) == 0 {
		return []Flow{{To: b.end, Families: []string{}, Src: []netip.Addr{}, Dst: []netip.Addr{}, Protocol: protocol.String(), Port: b.port, Verdict: Unknown}}, nil
	}
	return out, nil
}

// path is a packet of a family; false if an end has no address of it.
func (v *View) path(from End, b backend, protocol policy.Protocol, f policy.Family) (path, bool) {
	own := from.onNode() && b.end.Pod != nil && !b.end.HostNetwork && from.Node == b.end.Node
	if from.onNode() && (b.end.Pod == nil || b.end.HostNetwork) && slices.Equal(from.IPs, v.sendsWith(from.Node)) {
		from.IPs = v.nodeIPs(from.Node) // it is not to a pod that they go
	}
	p := path{from: from, to: b.end}
	p.Packet = eval.Packet{Src: from.ip(f), Dst: b.end.ip(f), Protocol: protocol, FromNode: own}
	if !p.Dst.IsValid() || !p.Src.IsValid() && !own {
		return path{}, false
	}
	switch {
	case protocol.HasPorts():
		p.SrcPort, p.DstPort = ephemeral, b.port
	case f == policy.IPv4:
		p.ICMPType = echo4
	default:
		p.Protocol, p.ICMPType = policy.ICMPv6, echo6
	}
	return p, true
}

func (v *View) flow(p path, f policy.Family) (Flow, error) {
	flow := Flow{To: p.to, Families: []string{f.String()}, Src: []netip.Addr{}, Dst: []netip.Addr{p.Dst}, Port: p.DstPort, Verdict: Allowed}
	if p.Src.IsValid() {
		flow.Src = []netip.Addr{p.Src}
	}
	var err error
	if flow.Egress, err = v.side(p, policy.Egress, p.from); err != nil {
		return Flow{}, err
	}
	if flow.Ingress, err = v.side(p, policy.Ingress, p.to); err != nil {
		return Flow{}, err
	}
	for _, s := range []*Side{flow.Egress, flow.Ingress} {
		if s != nil && s.Verdict != policy.Allow {
			flow.Verdict = Denied
		}
	}
	return flow, nil
}

// side asks the pod at an end, or else the node.
func (v *View) side(p path, d policy.Direction, e End) (*Side, error) {
	if t := v.eval.Side(p.Packet, d); t != nil {
		return v.read(v.state, t, e), nil
	}
	return v.hostSide(p, d)
}

// read adds to a trace what is known of its endpoint.
func (v *View) read(state *policy.State, t *eval.Trace, e End) *Side {
	if t == nil {
		return nil
	}
	s := &Side{Node: e.Node, Trace: *t}
	if t.Tiers == nil {
		s.Tiers = []eval.TierTrace{}
	}
	if ep := state.Endpoints[t.Endpoint]; ep != nil {
		for _, tier := range ep.Chain(t.Direction).Tiers {
			for _, id := range tier.Policies {
				for _, problem := range v.problems[id] {
					s.Problems = append(s.Problems, id.String()+": "+problem)
				}
			}
		}
	}
	return s
}

// ofHost says that it is a node's processes that were asked about.
func (s *Side) ofHost() bool { return s != nil && s.Endpoint.Host }

// sum is the verdict on all flows.
func sum(flows []Flow) Verdict {
	out := Unknown
	for _, f := range flows {
		switch {
		case f.Verdict == Unknown || out == f.Verdict:
		case out == Unknown:
			out = f.Verdict
		default:
			return Mixed
		}
	}
	return out
}

// note says what a reader may not expect.
func (a *Answer) note(backends []backend) {
	subject := func(e End) bool { return e.Pod != nil && !e.HostNetwork }
	hosts := [2]bool{}
	for _, f := range a.Flows {
		hosts[policy.Ingress] = hosts[policy.Ingress] || f.Ingress.ofHost()
		hosts[policy.Egress] = hosts[policy.Egress] || f.Egress.ofHost()
	}
	if a.From.HostNetwork && !hosts[policy.Egress] {
		a.Notes = append(a.Notes, fmt.Sprintf("%s uses the network of its node, %s: no policy applies where its packets leave, and other pods see the node's address", a.From, a.From.Node))
	}
	if len(a.From.IPs) == 0 && a.From.Pod != nil {
		a.Notes = append(a.Notes, fmt.Sprintf("%s has no address yet", a.From))
	}
	for _, b := range backends {
		switch {
		case b.end.HostNetwork && !hosts[policy.Ingress]:
			a.Notes = append(a.Notes, fmt.Sprintf("%s uses the network of its node, %s: no policy applies where packets arrive", b.end, b.end.Node))
		case len(b.end.IPs) == 0:
			a.Notes = append(a.Notes, fmt.Sprintf("%s has no address yet", b.end))
		case !subject(a.From) && !subject(b.end) && hosts == [2]bool{}:
			a.Notes = append(a.Notes, fmt.Sprintf("neither %s nor %s is a pod with an address of its own: no policy applies", a.From, b.end))
		}
	}
	for _, f := range a.Flows {
		if f.Verdict == Unknown && len(a.From.IPs) > 0 && len(f.To.IPs) > 0 {
			a.Notes = append(a.Notes, fmt.Sprintf("%s and %s have no addresses of one family", a.From, f.To))
		}
	}
}

func (a *Answer) noteService(s *corev1.Service, t Target) {
	if a.Service.Ready == 0 {
		a.Notes = append(a.Notes, "the service has no ready endpoint for the port: packets go nowhere")
	}
	if local(s, t) {
		a.Notes = append(a.Notes, "internalTrafficPolicy is Local: only endpoints on the sender's node get its packets")
	}
	outside := a.From.Pod == nil && a.From.Node == ""
	if outside && s.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		a.Notes = append(a.Notes, "from outside the cluster packets for the service may arrive with a node's address instead of the sender's (externalTrafficPolicy: Cluster), and ipBlocks do not see the sender then")
	}
}

// alike says whether two flows meet the same, but for the addresses.
func (f Flow) alike(o Flow) bool {
	return f.Verdict == o.Verdict && f.Egress.alike(o.Egress) && f.Ingress.alike(o.Ingress)
}

// merge takes in a flow that is alike.
func (f *Flow) merge(o Flow) {
	f.Families = append(f.Families, o.Families...)
	f.Src, f.Dst = append(f.Src, o.Src...), append(f.Dst, o.Dst...)
	for _, s := range [][2]*Side{{f.Egress, o.Egress}, {f.Ingress, o.Ingress}} {
		if s[0] != nil {
			s[0].merge(s[1])
		}
	}
}

func (s *Side) alike(o *Side) bool {
	if s == nil || o == nil {
		return s == o
	}
	sameRule := func(a, b eval.RuleTrace) bool {
		// Failsafes that are of one family are so by nature: nobody asks which.
		failsafe := a.ID.Policy.Kind == policy.Failsafe
		return a.ID == b.ID && a.Matched == b.Matched && (failsafe || a.Differs.Condition == b.Differs.Condition && a.Differs.Want == b.Differs.Want)
	}
	samePolicy := func(a, b eval.PolicyTrace) bool {
		return a.ID == b.ID && a.Verdict == b.Verdict && slices.EqualFunc(a.Rules, b.Rules, sameRule)
	}
	return s.Endpoint == o.Endpoint && s.Verdict == o.Verdict && s.Reason == o.Reason && s.Rule == o.Rule && s.Tier == o.Tier &&
		slices.EqualFunc(s.Tiers, o.Tiers, func(a, b eval.TierTrace) bool {
			return a.Tier == b.Tier && a.Verdict == b.Verdict && slices.EqualFunc(a.Policies, b.Policies, samePolicy)
		})
}

// merge has differences name what either flow has.
func (s *Side) merge(o *Side) {
	for i := range s.Tiers {
		for j := range s.Tiers[i].Policies {
			for k := range s.Tiers[i].Policies[j].Rules {
				mine, other := &s.Tiers[i].Policies[j].Rules[k].Differs, o.Tiers[i].Policies[j].Rules[k].Differs
				if mine.Condition == other.Condition && mine.Got != other.Got {
					mine.Got += " and " + other.Got
				}
			}
		}
	}
}
