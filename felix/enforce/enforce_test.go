// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/cni/ipam"
	"github.com/heliograph-dev/heliograph/felix/conntrack"
	"github.com/heliograph-dev/heliograph/felix/domains"
	"github.com/heliograph-dev/heliograph/felix/feed"
	"github.com/heliograph-dev/heliograph/felix/nflog"
	"github.com/heliograph-dev/heliograph/felix/watch"
	"github.com/heliograph-dev/heliograph/internal/logtest"
	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/compile"
	"github.com/heliograph-dev/heliograph/policy/eval"
)

const patience = 10 * time.Second

// fakeKernel is a renderer whose kernel is a policy.State.
type fakeKernel struct {
	mu      sync.Mutex
	pending []policy.Delta
	state   *policy.State
	err     error
	applied int
	resyncs int
	refused map[policy.PolicyID]error
	deleted bool
}

func (f *fakeKernel) Update(d policy.Delta) { f.pending = append(f.pending, d) }
func (f *fakeKernel) QueueResync() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.resyncs++
}

func (f *fakeKernel) Apply(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	f.applied++
	for _, d := range f.pending {
		if err := f.state.Apply(d); err != nil {
			return err
		}
	}
	f.pending = nil
	return f.state.Check()
}

func (f *fakeKernel) Refused() map[policy.PolicyID]error { return f.refused }

func (f *fakeKernel) Counters(context.Context) (map[policy.RuleID]policy.Count, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	counts := map[policy.RuleID]policy.Count{}
	for _, p := range f.state.Policies {
		for _, r := range p.Ingress {
			counts[r.ID] = policy.Count{Packets: 7, Bytes: 700}
		}
	}
	return counts, nil
}

func (f *fakeKernel) Delete(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state, f.deleted = policy.NewState(), true
	return nil
}

func (f *fakeKernel) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// allows says what the kernel does with a TCP connection to port 80.
func (f *fakeKernel) allows(src, dst string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := eval.Packet{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Protocol: policy.TCP, SrcPort: 40000, DstPort: 80}
	return eval.New(f.state).Evaluate(p).Verdict == policy.Allow
}

// fakeFlows are connections.
type fakeFlows struct {
	mu    sync.Mutex
	flows []conntrack.Flow
}

func (f *fakeFlows) DeleteIf(_ context.Context, denied func(conntrack.Flow) bool) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var left []conntrack.Flow
	for _, flow := range f.flows {
		if !denied(flow) {
			left = append(left, flow)
		}
	}
	n := len(f.flows) - len(left)
	f.flows = left
	return n, nil
}

func (f *fakeFlows) sources() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, flow := range f.flows {
		out = append(out, flow.Src.String())
	}
	return strings.Join(out, " ")
}

type noHeart struct{}

func (noHeart) Beat(time.Time)          {}
func (noHeart) Begin(string, time.Time) {}

// node is one with an enforcer.
type node struct {
	t        *testing.T
	dir      string
	feed     *feed.Feed
	kernel   *fakeKernel
	other    *fakeKernel // by the other dataplane
	otherErr error
	flows    *fakeFlows
	gate     *fakeGate
	learner  *domains.Learner
	enforcer *Enforcer
	registry *prometheus.Registry
	pokes    chan struct{}
	log      *logtest.Buffer

	mu     sync.Mutex
	pods   []ipam.Allocation
	choice string
}

func (n *node) chosen() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.choice
}

func newNode(t *testing.T) *node {
	return &node{
		t: t, dir: t.TempDir(), kernel: &fakeKernel{state: policy.NewState()}, other: &fakeKernel{state: policy.NewState()}, choice: Auto, log: &logtest.Buffer{}, flows: &fakeFlows{}, gate: &fakeGate{}, pokes: make(chan struct{}, 1),
	}
}

// start runs an agent's enforcer; stop ends it.
func (n *node) start() (stop func()) {
	n.t.Helper()
	log := slog.New(slog.NewTextHandler(n.log, nil))
	journal, err := feed.OpenJournal(filepath.Join(n.dir, "policy.db"), journalTypes(), log)
	if err != nil {
		n.t.Fatal(err)
	}
	n.feed, n.registry = feed.New(), prometheus.NewRegistry()
	n.enforcer, err = New(Options{
		Feed: n.feed, Journal: journal, PodPokes: n.pokes, Flows: n.flows, Heart: noHeart{}, Log: log, Registerer: n.registry,
		Pods: n.attachments,
		Dataplanes: []Dataplane{
			{Name: NFTables, Open: func() (Renderer, error) { return n.kernel, nil }},
			{Name: IPTables, Open: func() (Renderer, error) { return n.other, n.otherErr }},
		},
		NodeAddresses: func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("192.168.0.1")}, nil },
		Choice:        n.chosen,
		Node:          "node", Failsafes: func() compile.Failsafes { return compile.Failsafes{VXLAN: 4789, Probe: 4793, BGP: []uint16{179}} },
		Names: Names{
			Gate: n.gate, Resolvers: func() []string { return []string{"k8s-service:kube-dns", "192.0.2.53"} },
			Want: func(patterns []string) { n.learner.Want(patterns) },
		},
		RefreshInterval: func() time.Duration { return time.Minute },
		Changed:         func() {},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	known, err := journal.LoadKind(domains.Records)
	if err != nil {
		n.t.Fatal(err)
	}
	n.learner = domains.NewLearner(domains.Options{
		Feed: n.feed, InForce: n.enforcer.Obeyed, Used: n.enforcer.Used, Log: log, Registerer: n.registry,
	}, known)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := n.enforcer.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			n.t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		if err := journal.Close(); err != nil {
			n.t.Error(err)
		}
	})
	n.t.Cleanup(stop)
	return stop
}

func (n *node) attachments() []ipam.Allocation {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pods
}

// connect is the CNI plugin's ADD, up to the point where it waits.
func (n *node) connect(device, name, uid, ip string) {
	n.mu.Lock()
	n.pods = append(n.pods, ipam.Allocation{
		Pod: cni.Pod{Namespace: "ns", Name: name, UID: uid}, Device: device, Created: time.Now(),
		Addresses: [2]netip.Addr{netip.MustParseAddr(ip)},
	})
	n.mu.Unlock()
	select {
	case n.pokes <- struct{}{}:
	default:
	}
}

func (n *node) inForce(within time.Duration, device string) error {
	ctx, cancel := context.WithTimeout(n.t.Context(), within)
	defer cancel()
	return n.enforcer.InForce(ctx, device)
}

func (n *node) put(kind feed.Kind, o client.Object) { n.feed.Put(feed.KeyOf(kind, o), o) }

// cluster is a namespace, and a client of another node.
func (n *node) cluster() {
	n.put(watch.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}})
	n.put(watch.Pods, pod("client", "u-client", "client", "10.244.9.9"))
}

func pod(name, uid, app, ip string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(uid), Labels: map[string]string{"app": app}},
		Status:     corev1.PodStatus{PodIP: ip},
	}
}

// lets is a policy for app=server that lets in those of an app.
func lets(app string, generation int64) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", Generation: generation},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{
				PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
			}}}},
		},
	}
}

func eventually(t *testing.T, missing func() string) {
	t.Helper()
	var last string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if last = missing(); last == "" {
			return
		}
	}
	t.Fatal(last)
}

// serving is a node with the pod server, which a policy selects, in force.
func serving(t *testing.T, p *networkingv1.NetworkPolicy) *node {
	t.Helper()
	n := newNode(t)
	n.start()
	n.serve(p)
	return n
}

// serve is what makes a node serving.
func (n *node) serve(p *networkingv1.NetworkPolicy) {
	n.t.Helper()
	n.cluster()
	n.put(watch.Pods, pod("server", "u1", "server", ""))
	n.put(watch.NetworkPolicies, p)
	n.connect("hel1", "server", "u1", "10.244.0.5")
	n.feed.MarkSynced()
	if err := n.inForce(patience, "hel1"); err != nil {
		n.t.Fatal(err)
	}
}

// TestAPodWaitsForItsPolicy: connected before the API shows it, it is closed, and whoever connects it waits.
func TestAPodWaitsForItsPolicy(t *testing.T) {
	n := newNode(t)
	n.start()
	n.cluster()
	n.put(watch.NetworkPolicies, lets("friend", 1))
	n.connect("hel1", "server", "u2", "10.244.0.5")
	if err := n.inForce(50*time.Millisecond, "hel1"); !errors.Is(err, errNotYet) {
		t.Errorf("before the API server has said all: %v", err)
	}
	if n.enforcer.Ready() == nil || n.kernel.applied != 0 {
		t.Error("something was written before the API server had said all")
	}
	n.feed.MarkSynced()
	if err := n.inForce(100*time.Millisecond, "hel1"); !errors.Is(err, errUnknown) {
		t.Errorf("before the API shows the pod: %v", err)
	}
	if n.kernel.allows("10.244.0.5", "192.0.2.1") {
		t.Error("an unknown pod may talk")
	}
	n.put(watch.Pods, pod("server", "u1", "server", ""))
	if err := n.inForce(100*time.Millisecond, "hel1"); !errors.Is(err, errUnknown) {
		t.Errorf("while the API shows its predecessor: %v", err)
	}
	n.put(watch.Pods, pod("server", "u2", "server", ""))
	if err := n.inForce(patience, "hel1"); err != nil {
		t.Fatal(err)
	}
	if n.kernel.allows("10.244.9.9", "10.244.0.5") {
		t.Error("the policy is not in force")
	}
}

// TestKernelFails: who waits hears why, what is in force stays, and it is tried again.
func TestKernelFails(t *testing.T) {
	n := newNode(t)
	n.start()
	n.cluster()
	n.feed.MarkSynced()
	eventually(t, func() string { return text(n.enforcer.Ready()) })
	broken := errors.New("no buffer space available")
	n.kernel.set(func() { n.kernel.err = broken })
	n.put(watch.Pods, pod("server", "u1", "server", ""))
	n.connect("hel1", "server", "u1", "10.244.0.5")
	if err := n.inForce(200*time.Millisecond, "hel1"); !errors.Is(err, broken) {
		t.Errorf("InForce = %v, want the kernel's error", err)
	}
	if p := n.enforcer.Status().Problems; len(p) != 1 || !strings.Contains(p[0], "no buffer space") {
		t.Errorf("problems = %q", p)
	}
	n.kernel.set(func() { n.kernel.err = nil })
	if err := n.inForce(patience, "hel1"); err != nil {
		t.Fatal(err)
	}
	if p := n.enforcer.Status().Problems; len(p) != 0 {
		t.Errorf("problems = %q after the kernel recovered", p)
	}
}

// TestProblemsOfRefusal: what the kernel refuses closes, but for failsafes.
func TestProblemsOfRefusal(t *testing.T) {
	for _, tt := range []struct {
		id   policy.PolicyID
		want string
	}{
		{policy.PolicyID{Namespace: "prod", Name: "web"}, "NetworkPolicy prod/web: the kernel refuses it, so its pods are closed: no match"},
		{policy.FailsafeID(), "Failsafe node: the kernel refuses it, so the node is open: no match"},
	} {
		e := &Enforcer{use: &inUse{Renderer: &fakeKernel{refused: map[policy.PolicyID]error{tt.id: errors.New("no match")}}}}
		if got := e.problems(); len(got) != 1 || got[0] != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// TestConnectionsAreCut: those that a change denies, and no other.
func TestConnectionsAreCut(t *testing.T) {
	n := serving(t, lets("client", 1))
	flow := func(src, dst string) conntrack.Flow {
		return conntrack.Flow{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Protocol: 6, SrcPort: 40000, DstPort: 80}
	}
	n.flows.mu.Lock()
	n.flows.flows = []conntrack.Flow{
		flow("10.244.9.9", "10.244.0.5"), flow("192.168.0.1", "10.244.0.5"), flow("10.244.0.5", "192.0.2.1"), flow("192.0.2.9", "192.0.2.1"),
	}
	n.flows.mu.Unlock()
	n.put(watch.NetworkPolicies, lets("friend", 2))
	eventually(t, func() string {
		if got := n.flows.sources(); got != "192.168.0.1 10.244.0.5 192.0.2.9" {
			return "flows left from " + got
		}
		return ""
	})
	if got := testutil.ToFloat64(n.enforcer.metrics.cut); got != 1 {
		t.Errorf("%v connections counted as cut, want 1", got)
	}
}

// TestHostConnectionsAreCut: those of the node itself that a policy denies, and never a failsafe's.
func TestHostConnectionsAreCut(t *testing.T) {
	n := newNode(t)
	n.start()
	n.cluster()
	flow := func(src, dst string, port uint16) conntrack.Flow {
		return conntrack.Flow{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Protocol: 6, SrcPort: 40000, DstPort: port}
	}
	const out = "203.0.113.9"
	n.flows.mu.Lock()
	n.flows.flows = []conntrack.Flow{
		flow(out, "192.168.0.1", 22), flow(out, "192.168.0.1", 179), flow(out, "192.168.0.1", 8080), flow("192.168.0.1", "192.168.0.1", 8080), flow("192.168.0.1", out, 443),
	}
	n.flows.mu.Unlock()
	n.put(watch.HostEndpoints, &v1alpha1.HostEndpoint{ObjectMeta: metav1.ObjectMeta{Name: "node"}, Spec: v1alpha1.HostEndpointSpec{Node: "node", InterfaceName: "*"}})
	n.put(watch.GlobalPolicies, &v1alpha1.GlobalNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "deny"}})
	n.feed.MarkSynced()
	eventually(t, func() string {
		if got := testutil.ToFloat64(n.enforcer.metrics.cut); got != 1 {
			return fmt.Sprintf("%v connections cut, want 1", got)
		}
		return ""
	})
}

// TestWithoutAPIServer: an agent that starts without one goes by the copy on disk, and mends what has
// changed when it is back.
func TestWithoutAPIServer(t *testing.T) {
	n := newNode(t)
	stop := n.start()
	n.serve(lets("client", 1))
	stop()

	n.kernel = &fakeKernel{state: policy.NewState()}
	n.start()
	if err := n.inForce(2*apiPatience, "hel1"); err != nil {
		t.Fatal(err)
	}
	if !n.kernel.allows("10.244.9.9", "10.244.0.5") || n.kernel.allows("192.0.2.1", "10.244.0.5") {
		t.Error("the policy of the copy on disk is not in force")
	}
	if !n.enforcer.Status().FromDisk {
		t.Error("the status does not say that this is from disk")
	}
	// The policy was deleted meanwhile; all else is as it was.
	n.cluster()
	n.put(watch.Pods, pod("server", "u1", "server", ""))
	n.feed.MarkSynced()
	eventually(t, func() string {
		if !n.kernel.allows("192.0.2.1", "10.244.0.5") {
			return "a policy that was deleted is still in force"
		}
		return ""
	})
	if n.enforcer.Status().FromDisk {
		t.Error("the status says that this is from disk")
	}
}

// TestNewSandbox: of two sandboxes of one pod the newer one is the pod.
func TestNewSandbox(t *testing.T) {
	n := newNode(t)
	n.start()
	n.cluster()
	n.put(watch.Pods, pod("server", "u1", "server", ""))
	n.feed.MarkSynced()
	n.connect("hel2", "server", "u1", "10.244.0.5")
	if err := n.inForce(patience, "hel2"); err != nil {
		t.Fatal(err)
	}
	n.connect("hel1", "server", "u1", "10.244.0.6")
	if err := n.inForce(patience, "hel1"); err != nil {
		t.Fatal(err)
	}
	if err := n.inForce(10*time.Millisecond, "hel2"); err == nil {
		t.Error("the old sandbox is in force")
	}
}

// TestChangeOfDataplane: the new one is in force before the old one is gone, and one that fails changes nothing.
func TestChangeOfDataplane(t *testing.T) {
	n := serving(t, lets("friend", 1))
	if !n.other.deleted {
		t.Error("what the other dataplane may have left is not swept")
	}
	n.mu.Lock()
	n.choice = IPTables
	n.otherErr = errors.New("there is no iptables on this node")
	n.mu.Unlock()
	n.put(watch.Pods, pod("client", "u-client", "other", "10.244.9.9"))
	eventually(t, func() string {
		if p := n.enforcer.Status().Problems; len(p) == 0 || !strings.Contains(p[0], "there is no iptables") {
			return "no problem is told"
		}
		return ""
	})
	if n.kernel.deleted || n.kernel.allows("10.244.9.9", "10.244.0.5") {
		t.Error("what was in force is not any more")
	}
	n.mu.Lock()
	n.otherErr = nil
	n.mu.Unlock()
	eventually(t, func() string {
		if s := n.enforcer.Status(); s.Dataplane != IPTables || len(s.Problems) > 0 {
			return "dataplane " + s.Dataplane + strings.Join(s.Problems, " ")
		}
		return ""
	})
	if n.other.allows("10.244.9.9", "10.244.0.5") || !n.kernel.deleted {
		t.Error("the new one is not in force, or the old one not gone")
	}
}

// TestDelete: all dataplanes' rules go. One that the node does not have is no failure; one that cannot be
// opened is.
func TestDelete(t *testing.T) {
	n := serving(t, lets("client", 1))
	n.otherErr = fmt.Errorf("%w: no iptables in the path", ErrMissing)
	if err := n.enforcer.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if !n.kernel.deleted {
		t.Error("the rules in use are not deleted")
	}
	broken := errors.New("too many open files")
	n.otherErr = broken
	if err := n.enforcer.Delete(t.Context()); !errors.Is(err, broken) {
		t.Errorf("Delete = %v, want %v", err, broken)
	}
}

func TestPoliciesAndMetrics(t *testing.T) {
	n := serving(t, lets("client", 3))
	lines, err := n.enforcer.Policies(t.Context())
	if err != nil || len(lines) != 1 {
		t.Fatalf("Policies = %v, %v", lines, err)
	}
	l := lines[0]
	if l.Generation != 3 || !l.Here || l.InForce.IsZero() || len(l.Rules) != 1 || l.Rules[0].Packets != 7 {
		t.Errorf("Policies = %+v", l)
	}
	want := `
# HELP heliograph_policy_rule_packets_total Packets that a rule matched: first packets of connections. The busiest rules only.
# TYPE heliograph_policy_rule_packets_total counter
heliograph_policy_rule_packets_total{direction="ingress",kind="NetworkPolicy",namespace="ns",policy="p",rule="0"} 7
`
	if err := testutil.GatherAndCompare(n.registry, strings.NewReader(want), "heliograph_policy_rule_packets_total"); err != nil {
		t.Error(err)
	}
	problems, err := testutil.GatherAndLint(n.registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}

// TestLoggedPackets: what the kernel logs is told with the pod and the rule.
func TestLoggedPackets(t *testing.T) {
	n := serving(t, lets("friend", 1))
	cause := policy.TierCause(policy.DefaultTier, policy.Ingress)
	n.enforcer.Heard(nflog.Packet{Prefix: "somebody else's"})
	n.enforcer.Heard(nflog.Packet{
		Prefix: policy.LogPrefix(policy.Deny, cause), Src: netip.MustParseAddr("10.244.9.9"), Dst: netip.MustParseAddr("10.244.0.5"), Protocol: 6, DstPort: 80,
	})
	const more = 512
	for range more {
		n.enforcer.Heard(nflog.Packet{Prefix: policy.LogPrefix(policy.Deny, cause), Dst: netip.MustParseAddr("10.244.0.5")})
	}
	var lines []string
	for line := range strings.Lines(n.log.String()) {
		if strings.Contains(line, "packet logged by policy") {
			lines = append(lines, line)
		}
	}
	want := `action=Deny cause="` + cause + `" from="" to=ns/server src=10.244.9.9 dst=10.244.0.5 protocol=TCP port=80`
	if len(lines) == 0 || !strings.Contains(lines[0], want) {
		t.Errorf("first line %q, want %s", lines[:min(1, len(lines))], want)
	}
	if len(lines) > 2*deniedBurst {
		t.Errorf("%d lines for %d packets", len(lines), more+1)
	}
	if c := testutil.ToFloat64(n.enforcer.metrics.logged.WithLabelValues("Deny")); c != more+1 {
		t.Errorf("%v counted", c)
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestRefreshInterval: where nobody tells of changes they are looked for, as often as that is cheap.
func TestRefreshInterval(t *testing.T) {
	for _, tt := range []struct {
		name     string
		use      *inUse
		readTook time.Duration
		want     time.Duration
	}{
		{"nothing in use", nil, 0, 90 * time.Second},
		{"changes are told", &inUse{}, time.Second, 90 * time.Second},
		{"a quick look", &inUse{polled: true}, 20 * time.Millisecond, pollInterval},
		{"a slow look", &inUse{polled: true}, 300 * time.Millisecond, 30 * time.Second},
		{"a very slow one", &inUse{polled: true}, 5 * time.Second, 90 * time.Second},
	} {
		e := &Enforcer{opts: Options{RefreshInterval: func() time.Duration { return 90 * time.Second }}, use: tt.use, readTook: tt.readTook}
		if got := e.refreshInterval(); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
