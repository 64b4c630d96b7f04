// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/cni/ipam"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/probe"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
	"github.com/heliograph-dev/heliograph/internal/logtest"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

const patience = 10 * time.Second

// fakeSource is an API server, and a disk, that say what they are told to.
type fakeSource struct {
	mu      sync.Mutex
	changed chan struct{}
	synced  bool
	objects snapshot.Objects
	err     error
	disk    *snapshot.Objects
	saves   int
}

func (f *fakeSource) Changed() <-chan struct{} { return f.changed }

func (f *fakeSource) Synced() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.synced
}

func (f *fakeSource) Objects(context.Context) (snapshot.Objects, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.objects, f.err
}

func (f *fakeSource) Save(o snapshot.Objects) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.saves++
	f.disk = &o
	return nil
}

func (f *fakeSource) Load() (snapshot.Objects, time.Time, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.disk == nil {
		return snapshot.Objects{}, time.Time{}, os.ErrNotExist
	}
	return *f.disk, time.Unix(1000, 0), nil
}

// set changes what the API server says; poke says whether it tells of that.
func (f *fakeSource) set(poke bool, change func()) {
	f.mu.Lock()
	change()
	f.mu.Unlock()
	if poke {
		select {
		case f.changed <- struct{}{}:
		default:
		}
	}
}

// fakeSpeaker knows the routes that it is told.
type fakeSpeaker struct {
	mu      sync.Mutex
	changed chan struct{}
	now     bgp.Snapshot
	desired bgp.Desired
	applied int
}

func (f *fakeSpeaker) Apply(_ context.Context, d bgp.Desired) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.desired = d
	f.applied++
	return nil
}

func (f *fakeSpeaker) Snapshot() bgp.Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fakeSpeaker) Changed() <-chan struct{} { return f.changed }

func (f *fakeSpeaker) set(s bgp.Snapshot) {
	f.mu.Lock()
	f.now = s
	f.mu.Unlock()
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// fakePods is an allocator that gives out what it is told.
type fakePods struct {
	mu     sync.Mutex
	pokes  chan struct{}
	pods   []ipam.Allocation
	blocks []ipam.Block
	err    error
}

func (f *fakePods) SetBlocks(blocks []ipam.Block) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blocks = blocks
	return f.err
}
func (f *fakePods) RequireFamilies(bool, bool) {}
func (f *fakePods) SetCooldown(time.Duration)  {}
func (f *fakePods) Problem() string            { return "" }

func (f *fakePods) Usage() []ipam.BlockUsage {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []ipam.BlockUsage
	for _, b := range f.blocks {
		out = append(out, ipam.BlockUsage{Name: b.Name, CIDR: b.CIDR, Pool: b.Pool, InUse: len(f.pods)})
	}
	return out
}

func (f *fakePods) Owner(ip netip.Addr) (cni.Attachment, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pods {
		if p.Addresses[0] == ip {
			return p.Attachment, true
		}
	}
	return cni.Attachment{}, false
}

func (f *fakePods) attachments() []ipam.Allocation {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pods
}

func (f *fakePods) set(pods ...ipam.Allocation) {
	f.mu.Lock()
	f.pods = pods
	f.mu.Unlock()
	select {
	case f.pokes <- struct{}{}:
	default:
	}
}

func pod(device, ip string) ipam.Allocation {
	return ipam.Allocation{Attachment: cni.Attachment{ContainerID: device, IfName: "eth0"}, Device: device, Addresses: [2]netip.Addr{addr(ip)}}
}

// fakeProber finds out what it is told to.
type fakeProber struct {
	mu      sync.Mutex
	changed chan struct{}
	reports map[path.Key]path.Report
	config  probe.Config
	targets []path.Target
}

func (f *fakeProber) Changed() <-chan struct{} { return f.changed }

func (f *fakeProber) Reports() map[path.Key]path.Report {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reports
}

func (f *fakeProber) SetConfig(c probe.Config) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.config = c
}

func (f *fakeProber) SetTargets(targets []path.Target) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.targets = targets
}

// finds sets what was found out of each key, and pokes.
func (f *fakeProber) finds(reports map[path.Key]path.Report) {
	f.mu.Lock()
	f.reports = reports
	f.mu.Unlock()
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// fakeTeller notes what it is told.
type fakeTeller struct {
	mu    sync.Mutex
	lines []string
}

func (f *fakeTeller) note(line string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lines = append(f.lines, line)
}

func (f *fakeTeller) pathsChanged(changed []PathReport) {
	for _, p := range changed {
		f.note(p.Node + " " + p.Family.String() + " " + string(p.Method))
	}
}

func (f *fakeTeller) unanswered(p PathReport) {
	f.note(p.Node + " " + p.Family.String() + " unanswered")
}

func (f *fakeTeller) quorumChanged(q Quorum) {
	f.note(map[bool]string{true: "quorum", false: "no quorum"}[q.Proven()])
}

// world is a node with the kernel of the test's namespace, and a cluster that is made up:
//
//	a (this node)  192.168.11.1  10.244.0.0/26
//	b              192.168.11.2  10.244.1.0/26
//	c              192.168.12.3  10.244.2.0/26
type world struct {
	t       *testing.T
	source  *fakeSource
	speaker *fakeSpeaker
	pods    *fakePods
	prober  *fakeProber
	told    *fakeTeller
	latest  atomic.Pointer[Report]
	log     *logBuffer
	sysctls string

	loop    *loop
	drivers drivers
}

func newWorld(t *testing.T) *world {
	t.Helper()
	nettest.Cmd(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
	nettest.Cmd(t, "ip", "link", "set", "up1", "up")
	nettest.Cmd(t, "ip", "link", "set", "up0", "up")
	nettest.Cmd(t, "ip", "address", "add", "192.168.11.1/24", "dev", "up0")
	return &world{
		t: t, log: &logBuffer{}, sysctls: "/proc/sys/net",
		source:  &fakeSource{changed: make(chan struct{}, 1), synced: true, objects: cluster()},
		speaker: &fakeSpeaker{changed: make(chan struct{}, 1)},
		pods:    &fakePods{pokes: make(chan struct{}, 1)},
		prober:  &fakeProber{changed: make(chan struct{}, 1)},
		told:    &fakeTeller{},
	}
}

func cluster() snapshot.Objects {
	node := func(name, ip string) corev1.Node {
		return corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}},
		}
	}
	block := func(name, cidr, node string) v1alpha1.IPBlock {
		return v1alpha1.IPBlock{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.IPBlockSpec{CIDR: cidr, Pool: "default", Node: node, Primary: true}}
	}
	return snapshot.Objects{
		Nodes:  []corev1.Node{node("a", "192.168.11.1"), node("b", "192.168.11.2"), node("c", "192.168.12.3")},
		Pools:  []v1alpha1.IPPool{{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.IPPoolSpec{CIDR: "10.244.0.0/16", NATOutgoing: true}}},
		Blocks: []v1alpha1.IPBlock{block("a0", "10.244.0.0/26", "a"), block("b0", "10.244.1.0/26", "b"), block("c0", "10.244.2.0/26", "c")},
	}
}

// start runs an agent's loop with real drivers; stop ends it and waits for it.
func (w *world) start() (stop func()) {
	w.t.Helper()
	log := slog.New(slog.NewTextHandler(w.log, nil))
	d, err := openDrivers(Options{SysctlRoot: w.sysctls}, log)
	if err != nil {
		w.t.Fatal(err)
	}
	monitor, err := kernel.NewMonitor(d.ownsPort, log)
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := newMetrics(prometheus.NewRegistry(), "test", &w.latest, func() bool { return true }, func() bool { return true })
	if err != nil {
		w.t.Fatal(err)
	}
	adopted, err := d.adopt(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	h := &heart{}
	w.drivers = d
	w.loop = &loop{
		node: "a", version: "test", log: log,
		inputs: inputs{
			source: w.source, speaker: w.speaker, pods: w.pods, attachments: w.pods.attachments,
			links: d.links, monitor: monitor, nftPokes: d.nftPokes, podPokes: w.pods.pokes,
			filters: func(string) bool { return false }, can: snapshot.Capabilities{Can: path.CanVXLAN},
		},
		outputs: outputs{
			dataplane: newDataplane(d, m, h), gate: &gate{}, heart: h, metrics: m,
			publish: func(r *Report) { w.latest.Store(r) }, tell: w.told,
		},
		adopted: adopted, paths: newPaths("a", w.prober),
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for name, part := range map[string]func(context.Context) error{"loop": w.loop.run, "monitor": monitor.Run, "nft monitor": d.monitorNFT} {
		running.Go(func() {
			if err := part(ctx); err != nil && !errors.Is(err, context.Canceled) {
				w.t.Errorf("%s: %v", name, err)
			}
		})
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			running.Wait()
			w.latest.Store(nil)
		})
	}
	w.t.Cleanup(stop)
	return stop
}

// eventually waits until the condition, which says what is missing, is met.
func eventually(t *testing.T, within time.Duration, missing func() string) {
	t.Helper()
	var last string
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if last = missing(); last == "" {
			return
		}
	}
	t.Fatalf("after %s: %s", within, last)
}

// inSync waits until the agent reports that it is.
func (w *world) inSync() {
	w.t.Helper()
	eventually(w.t, patience, func() string {
		r := w.latest.Load()
		if r == nil || !r.InSync {
			return "not in sync: " + w.log.String()
		}
		return ""
	})
}

// sees waits until a command prints the text, or prints it no more.
func (w *world) sees(within time.Duration, want bool, text string, command ...string) {
	w.t.Helper()
	eventually(w.t, within, func() string {
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		if err == nil && strings.Contains(string(out), text) == want {
			return ""
		}
		return strings.Join(command, " ") + ": " + text + ": want " + map[bool]string{true: "there", false: "gone"}[want] + ", got\n" + string(out)
	})
}

// sync waits as the ADD of a pod does.
func (w *world) sync() error {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	round := w.loop.gate.join()
	w.pods.set(w.pods.attachments()...)
	select { // not wait, which tells one pod its own
	case <-round.done:
		return round.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// device makes the host end of a pod.
func (w *world) device(name string) {
	w.t.Helper()
	if _, err := os.Stat("/run/netns/pods"); err != nil {
		nettest.Cmd(w.t, "ip", "netns", "add", "pods")
	}
	nettest.Cmd(w.t, "ip", "link", "add", name, "type", "veth", "peer", "name", "p"+name[3:], "netns", "pods")
	nettest.Cmd(w.t, "ip", "-n", "pods", "link", "set", "p"+name[3:], "up")
	nettest.Cmd(w.t, "ip", "link", "set", name, "up")
}

// logBuffer keeps what was logged.
type logBuffer struct{ logtest.Buffer }

func (b *logBuffer) count(text string) int { return strings.Count(b.String(), text) }

// need skips where the kernel or the machine lacks what the drivers write.
func need(t *testing.T) {
	t.Helper()
	for _, c := range [][]string{{"ip", "-V"}, {"nft", "--version"}, {"bridge", "-V"}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil { //nolint:gosec // constants
			nettest.Skip(t, strings.Join(c, " ")+": "+err.Error()+string(out))
		}
	}
}
