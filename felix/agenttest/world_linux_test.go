// SPDX-License-Identifier: Apache-2.0

package agenttest

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/felix/feed"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
	"github.com/heliograph-dev/heliograph/felix/watch"
	"github.com/heliograph-dev/heliograph/internal/logtest"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// world is two racks, each a node and its leaf, and a spine between them:
//
//	a 192.168.11.11 – leaf1 (AS 65101) – spine (AS 65100) – leaf2 (AS 65102) – b 192.168.12.13
//
// The racks' subnets are routed statically, so that the fabric carries the nodes' own traffic even
// where nobody speaks BGP.
type world struct {
	dir       string
	birds     map[string]*process
	agents    map[string]*process
	notebooks map[string]*notebook
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{dir: t.TempDir(), birds: map[string]*process{}, agents: map[string]*process{}, notebooks: map[string]*notebook{}}
	for _, ns := range []string{"a", "leaf1", "spine", "leaf2", "b"} {
		nettest.Cmd(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { nettest.Cmd(t, "ip", "netns", "del", ns) })
		run(t, ns, "ip", "link", "set", "lo", "up")
		run(t, ns, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1",
			"net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
	}
	join(t, "a", "leaf1", "192.168.11.%s/24", "fd00:11::%s/64", "11", "1")
	join(t, "leaf1", "spine", "172.31.1.%s/24", "fd00:1::%s/64", "1", "2")
	join(t, "leaf2", "spine", "172.31.2.%s/24", "fd00:2::%s/64", "1", "2")
	join(t, "b", "leaf2", "192.168.12.%s/24", "fd00:12::%s/64", "13", "1")
	for _, r := range [][4]string{
		{"a", "default", "192.168.11.1"}, {"a", "default", "fd00:11::1"},
		{"b", "default", "192.168.12.1"}, {"b", "default", "fd00:12::1"},
		{"leaf1", "192.168.12.0/24", "172.31.1.2"}, {"leaf1", "fd00:12::/64", "fd00:1::2"},
		{"leaf2", "192.168.11.0/24", "172.31.2.2"}, {"leaf2", "fd00:11::/64", "fd00:2::2"},
		{"spine", "192.168.11.0/24", "172.31.1.1"}, {"spine", "fd00:11::/64", "fd00:1::1"},
		{"spine", "192.168.12.0/24", "172.31.2.1"}, {"spine", "fd00:12::/64", "fd00:2::1"},
	} {
		run(t, r[0], "ip", "route", "add", r[1], "via", r[2])
	}
	run(t, "spine", "nft", "add table inet fault; add chain inet fault forward { type filter hook forward priority 0; }")
	return w
}

// join lays a wire between two namespaces: each end is named after the other one.
func join(t *testing.T, one, other, ipv4, ipv6, hostOne, hostOther string) {
	t.Helper()
	nettest.Cmd(t, "ip", "link", "add", "name", other, "netns", one, "type", "veth", "peer", "name", one, "netns", other)
	for _, end := range [][3]string{{one, other, hostOne}, {other, one, hostOther}} {
		run(t, end[0], "ip", "address", "add", fmt.Sprintf(ipv4, end[2]), "dev", end[1])
		run(t, end[0], "ip", "address", "add", fmt.Sprintf(ipv6, end[2]), "dev", end[1], "nodad")
		run(t, end[0], "ip", "link", "set", "dev", end[1], "up")
	}
}

// run is a command in a namespace, which must succeed.
func run(t *testing.T, ns string, args ...string) string {
	t.Helper()
	return nettest.Cmd(t, "ip", append([]string{"netns", "exec", ns}, args...)...)
}

// within calls f on a thread in a namespace. Sockets that f opens stay there, whoever uses them.
func within(ns string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		fd, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- fmt.Errorf("open namespace %s: %w", ns, err)
			return
		}
		defer unix.Close(fd) //nolint:errcheck // read only
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter namespace %s: %w", ns, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// dial connects from inside of a namespace.
func dial(ns, network, address string) (conn net.Conn, err error) {
	err = within(ns, func() (err error) {
		conn, err = net.DialTimeout(network, address, 10*time.Second)
		return err
	})
	return conn, err
}

// process is one that this test started, with what it wrote.
type process struct {
	cmd  *exec.Cmd
	log  *log
	done chan error
}

// start runs a program in a namespace until it is stopped, or the test ends.
func start(t *testing.T, ns string, env []string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command("ip", append([]string{"netns", "exec", ns}, args...)...), log: &log{}, done: make(chan error, 1)} //nolint:gosec // our own
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Env = p.log, p.log, append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		// The child dies with the thread that started it, and the threads of within end.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.done <- p.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %v in %s: %v", args, ns, err)
	}
	t.Cleanup(func() {
		p.stop(syscall.SIGKILL)
		if t.Failed() {
			t.Logf("%s in %s wrote:\n%s", filepath.Base(args[0]), ns, p.log.tail(8000))
		}
	})
	return p
}

// stop sends a signal and waits for the end.
func (p *process) stop(signal syscall.Signal) {
	if p.done == nil {
		return
	}
	_ = p.cmd.Process.Signal(signal)
	<-p.done //nolint:errcheck // however it ended
	p.done = nil
}

// log is what a process wrote so far.
type log struct{ logtest.Buffer }

// lacks says what the process has not written yet, if so.
func (l *log) lacks(text string) string {
	if !strings.Contains(l.String(), text) {
		return "it has not written " + text
	}
	return ""
}

func (l *log) tail(n int) string {
	s := l.String()
	return s[max(0, len(s)-n):]
}

// bgpPeer is a neighbour of a switch.
type bgpPeer struct {
	name, address string
	asn           int
}

// startBIRD runs a switch. It sends what it learns to all its neighbours, and puts it into its kernel.
// One session carries both families. Told to end, BIRD takes its routes with it.
func (w *world) startBIRD(t *testing.T, ns string, asn int, routerID string, peers ...bgpPeer) {
	t.Helper()
	conf := fmt.Sprintf(`log stderr all;
router id %s;
protocol device { scan time 1; }
protocol kernel kernel4 { ipv4 { export where source = RTS_BGP; }; }
protocol kernel kernel6 { ipv6 { export where source = RTS_BGP; }; }
`, routerID)
	for _, p := range peers {
		conf += fmt.Sprintf(`protocol bgp %s {
  local as %d;
  neighbor %s as %d;
  hold time 9;
  connect delay time 1;
  connect retry time 2;
  error wait time 1, 2;
  ipv4 { import all; export where source = RTS_BGP; next hop self; };
  ipv6 { import all; export where source = RTS_BGP; next hop self; };
}
`, p.name, asn, p.address, p.asn)
	}
	dir := filepath.Join(w.dir, "bird-"+ns)
	file := filepath.Join(dir, "bird.conf")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	w.birds[ns] = start(t, ns, nil, "bird", "-f", "-c", file, "-s", dir+"/ctl", "-P", dir+"/pid")
}

func (w *world) startLeaf1(t *testing.T) {
	t.Helper()
	w.startBIRD(t, "leaf1", 65101, "172.31.1.1", bgpPeer{"node", "192.168.11.11", 64512}, bgpPeer{"spine", "172.31.1.2", 65100})
}

func (w *world) startLeaf2(t *testing.T) {
	t.Helper()
	w.startBIRD(t, "leaf2", 65102, "172.31.2.1", bgpPeer{"node", "192.168.12.13", 64512}, bgpPeer{"spine", "172.31.2.2", 65100})
}

func (w *world) startSpine(t *testing.T) {
	t.Helper()
	w.startBIRD(t, "spine", 65100, "172.31.1.2", bgpPeer{"leaf1", "172.31.1.1", 65101}, bgpPeer{"leaf2", "172.31.2.1", 65102})
}

// faults makes the spine drop what the rules match, and nothing else.
func faults(t *testing.T, rules ...string) {
	t.Helper()
	script := "flush chain inet fault forward"
	for _, r := range rules {
		script += "; add rule inet fault forward " + r + " drop"
	}
	run(t, "spine", "nft", script)
}

// podAddress is a node's own address in the pod network: the second of its block.
func podAddress(node string, family int) string {
	return map[string]string{"a4": "10.244.0.1", "a6": "fd00:244::1", "b4": "10.244.1.1", "b6": "fd00:244::101"}[node+strconv.Itoa(family)]
}

// endpoint is a port there.
func endpoint(node string, family, port int) string {
	return net.JoinHostPort(podAddress(node, family), strconv.Itoa(port))
}

// cluster is what the API server would say if there were one.
func cluster() snapshot.Objects {
	one := int32(1)
	node := func(name, ipv4, ipv6 string) corev1.Node {
		return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ipv4}, {Type: corev1.NodeInternalIP, Address: ipv6}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		}}
	}
	pool := func(name, cidr string) v1alpha1.IPPool {
		return v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.IPPoolSpec{CIDR: cidr, Encapsulation: v1alpha1.EncapsulationAuto}}
	}
	block := func(name, cidr, pool, node string) v1alpha1.IPBlock {
		return v1alpha1.IPBlock{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.IPBlockSpec{CIDR: cidr, Pool: pool, Node: node, Primary: true}}
	}
	peer := func(name, node, leaf string, asn int64) v1alpha1.BGPPeer {
		return v1alpha1.BGPPeer{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       v1alpha1.BGPPeerSpec{Node: node, PeerIP: leaf, ASNumber: asn, NumAllowedLocalASNumbers: &one},
		}
	}
	return snapshot.Objects{
		Nodes: []corev1.Node{node("a", "192.168.11.11", "fd00:11::11"), node("b", "192.168.12.13", "fd00:12::13")},
		Pools: []v1alpha1.IPPool{pool("v4", "10.244.0.0/16"), pool("v6", "fd00:244::/56")},
		Blocks: []v1alpha1.IPBlock{
			block("a4", "10.244.0.0/26", "v4", "a"), block("a6", "fd00:244::/122", "v6", "a"),
			block("b4", "10.244.1.0/26", "v4", "b"), block("b6", "fd00:244::100/122", "v6", "b"),
		},
		Peers:   []v1alpha1.BGPPeer{peer("rack1", "a", "192.168.11.1", 65101), peer("rack2", "b", "192.168.12.1", 65102)},
		Secrets: map[string]map[string][]byte{v1alpha1.ProbeSecret: {v1alpha1.ProbeSecretKey: bytes.Repeat([]byte("k"), 32)}},
	}
}

// prepareAgent writes what an agent finds on its disk after a restart of the node, and starts what it finds
// in place of an API server.
func (w *world) prepareAgent(t *testing.T, node string) {
	t.Helper()
	dir := filepath.Join(w.dir, "agent-"+node)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	w.notebooks[node] = startNotebook(t, node)
	disk, err := watch.New(&rest.Config{Host: api}, watch.Options{Path: filepath.Join(dir, "snapshot.json"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Save(cluster()); err != nil {
		t.Fatal(err)
	}
	policies, err := feed.OpenJournal(filepath.Join(dir, "policy.db"), watch.FeedTypes(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	policies.Note(nil, true)
	if err := policies.Close(); err != nil {
		t.Fatal(err)
	}
	kubeconfig := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q}}]
contexts: [{name: c, context: {cluster: c}}]
current-context: c
`, api)
	if err := os.WriteFile(filepath.Join(dir, "kubeconfig"), []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
}

// startAgent runs this binary again as the agent of a node.
func (w *world) startAgent(t *testing.T, node string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(w.dir, "agent-"+node)
	w.agents[node] = start(t, node, []string{modeEnv + "=" + agentMode}, self, "agent", "--node-name="+node,
		"--state-dir="+dir, "--socket="+dir+"/cni.sock", "--sysctl-root=/proc/sys/net", "--kubeconfig="+dir+"/kubeconfig",
		"--metrics-bind-address="+metricsAddress, "--cni-bin-dir="+dir, "--cni-conf-dir="+dir)
}
