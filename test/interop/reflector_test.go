// SPDX-License-Identifier: Apache-2.0

//go:build linux

package interop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// The reflector is at 10.9.0.1 in this namespace, its clients c1, c2, ... are at 10.9.0.11, 10.9.0.12,
// ... in theirs, all on one bridge. Client ci originates 10.i.0.0/24 and fd00:i::/64.

func TestReflectorFRR(t *testing.T) {
	isolate(t, func(t *testing.T) { reflects(t, "", newFRRClient, newFRRClient) })
}
func TestReflectorBIRD(t *testing.T) {
	isolate(t, func(t *testing.T) { reflects(t, "", newBIRDClient, newBIRDClient) })
}
func TestReflectorGoBGP(t *testing.T) {
	isolate(t, func(t *testing.T) { reflects(t, "", newSpeakerClient, newBIRDClient) })
}
func TestReflectorWithPassword(t *testing.T) {
	isolate(t, func(t *testing.T) { reflects(t, "sesame", newFRRClient, newBIRDClient, newSpeakerClient) })
}
func TestReflectorKilled(t *testing.T) {
	isolate(t, func(t *testing.T) { reflectorKilled(t, newFRRClient, newBIRDClient, newSpeakerClient) })
}
func TestReflectorClientKilled(t *testing.T) {
	isolate(t, func(t *testing.T) { clientKilled(t, newFRRClient, newBIRDClient) })
}
func TestReflectorSpeakerKilled(t *testing.T) {
	isolate(t, func(t *testing.T) { clientKilled(t, newSpeakerClient, newBIRDClient) })
}
func TestReflectorRefresh(t *testing.T) {
	isolate(t, func(t *testing.T) { refreshes(t, newFRRClient, newBIRDClient) })
}
func TestReflectorAsks(t *testing.T) {
	isolate(t, func(t *testing.T) { asks(t, newFRRClient, newBIRDClient, newSpeakerClient) })
}
func TestReflectorAddPaths(t *testing.T) {
	isolate(t, func(t *testing.T) { addPaths(t) })
}
func TestReflectorMaxPrefixes(t *testing.T) {
	isolate(t, func(t *testing.T) { maxPrefixes(t, newFRRClient, newBIRDClient) })
}
func TestReflectorMaxPrefixesOfBIRD(t *testing.T) {
	isolate(t, func(t *testing.T) { maxPrefixes(t, newBIRDClient, newFRRClient) })
}
func TestReflectorMaxPrefixesOfSpeaker(t *testing.T) {
	isolate(t, func(t *testing.T) { maxPrefixes(t, newSpeakerClient, newBIRDClient) })
}

// rrClient is a router that is a client of the reflector.
type rrClient interface {
	start(t *testing.T)
	// table lists its routes by BGP from the reflector, each "PREFIX>NEXTHOP", sorted.
	table(t *testing.T) string
	// kill is kill -9; resume starts it again as one that restarts.
	kill(t *testing.T)
	resume(t *testing.T)
	// refresh asks for all routes again.
	refresh(t *testing.T)
	// announceMore originates 10.99.i.0/24 for i up to n as well.
	announceMore(t *testing.T, n int)
	debug(t *testing.T) string
}

// place is where a client is.
type place struct {
	n        int
	ns, addr string
	addr6    string
	password bgp.Password
	above    string // its reflector; empty: the one at 10.9.0.1
}

func (p place) up() string {
	if p.above != "" {
		return p.above
	}
	return "10.9.0.1"
}

func (p place) v4() string { return fmt.Sprintf("10.%d.0.0/24", p.n) }
func (p place) v6() string { return fmt.Sprintf("fd00:%d::/64", p.n) }

// engine is the reflector's process.
type engine struct {
	cmd  *exec.Cmd
	conf string
}

const rrConf = `asNumber: 64512
routerID: 10.9.0.1
listen: {port: 179}
metricsAddress: 127.0.0.1:9813
stateDir: /run/reflector
gracefulRestart: {restartTime: 60s}
clients:
- name: clients
  prefix: 10.9.0.0/24
  holdTime: 9s
  keepaliveTime: 3s
`

func newEngine(t *testing.T, more string) *engine {
	t.Helper()
	binary, err := filepath.Abs("../../bin/heliograph-reflector")
	if err != nil {
		t.Fatal(err)
	}
	need(t, binary)
	e := &engine{conf: write(t, t.TempDir(), "reflector.yaml", rrConf+more)}
	e.start(t, binary)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := exec.Command("curl", "-s", "http://127.0.0.1:9813/metrics").CombinedOutput()
			for line := range strings.Lines(string(out)) {
				if strings.HasPrefix(line, "heliograph_") {
					t.Log(line)
				}
			}
		}
	})
	return e
}

func (e *engine) start(t *testing.T, binary string) {
	t.Helper()
	e.cmd = exec.Command(binary, "-f", e.conf)
	e.cmd.Stdout, e.cmd.Stderr = t.Output(), t.Output()
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.kill)
}

// rewrite changes its file; it looks each second.
func (e *engine) rewrite(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(e.conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (e *engine) kill() {
	_ = e.cmd.Process.Kill()
	_ = e.cmd.Wait()
}

// bridge makes the reflector's network and places for n clients.
func bridge(t *testing.T, n int, password bgp.Password) []place {
	t.Helper()
	lines := []string{
		"link add br0 type bridge", "link set br0 up", "address add 10.9.0.1/24 dev br0", "address add fd00:9::1/64 dev br0 nodad",
	}
	var places []place
	for i := 1; i <= n; i++ {
		p := place{n: i, ns: fmt.Sprintf("c%d", i), addr: fmt.Sprintf("10.9.0.%d", 10+i), addr6: fmt.Sprintf("fd00:9::%d", 10+i), password: password}
		places = append(places, p)
		lines = append(lines, "netns add "+p.ns, "-n "+p.ns+" link set lo up",
			"link add v"+p.ns+" type veth peer name eth0 netns "+p.ns, "link set v"+p.ns+" master br0 up",
			"-n "+p.ns+" address add "+p.addr+"/24 dev eth0", "-n "+p.ns+" address add "+p.addr6+"/64 dev eth0 nodad", "-n "+p.ns+" link set eth0 up")
	}
	for _, line := range lines {
		nettest.Cmd(t, "ip", strings.Fields(line)...)
	}
	return places
}

// others is the table that a client should have: the routes of all others.
func others(places []place, me int) string {
	var v4, v6 []string
	for _, p := range places {
		if p.n != me {
			v4, v6 = append(v4, p.v4()+">"+p.addr), append(v6, p.v6()+">"+p.addr6)
		}
	}
	return strings.Join(append(v4, v6...), " ")
}

type makeClient func(place) rrClient

// setUp starts the reflector and a client of each make, and waits until all have all.
func setUp(t *testing.T, conf string, password bgp.Password, makes ...makeClient) (*engine, []rrClient, []place) {
	t.Helper()
	if password != "" {
		conf = fmt.Sprintf("  passwordFile: %s\n", write(t, t.TempDir(), "password", string(password)+"\n")) + conf
	}
	places := bridge(t, len(makes), password)
	e := newEngine(t, conf)
	var clients []rrClient
	for i, m := range makes {
		c := m(places[i])
		c.start(t)
		t.Cleanup(func() {
			if t.Failed() {
				t.Log(c.debug(t))
			}
		})
		clients = append(clients, c)
	}
	allHaveAll(t, clients, places)
	return e, clients, places
}

func allHaveAll(t *testing.T, clients []rrClient, places []place) {
	t.Helper()
	for i, c := range clients {
		wait(t, fmt.Sprintf("routes at client %d", i+1), func() string { return c.table(t) }, others(places, i+1))
	}
}

// reflects: both families over one IPv4 session, next hops left alone.
func reflects(t *testing.T, password bgp.Password, makes ...makeClient) {
	setUp(t, "", password, makes...)
	if got := sessions(t); got != fmt.Sprint(len(makes)) {
		t.Errorf("%s sessions", got)
	}
}

// reflectorKilled: kill -9 of the reflector, and no client loses a route.
func reflectorKilled(t *testing.T, makes ...makeClient) {
	e, clients, places := setUp(t, "", "", makes...)
	binary, _ := filepath.Abs("../../bin/heliograph-reflector")
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			for i, c := range clients {
				if got := c.table(t); got != others(places, i+1) {
					t.Errorf("client %d has %q", i+1, got)
					return
				}
			}
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	for range 2 {
		e.kill()
		wait(t, "the sessions' end", func() string { return sessions(t) }, "?")
		e.start(t, binary)
		wait(t, "all sessions", func() string { return sessions(t) }, fmt.Sprint(len(clients)))
		wait(t, "all routes", func() string { return metric(t, `heliograph_reflector_paths{family="IPv6"}`) }, fmt.Sprint(len(clients)))
	}
	allHaveAll(t, clients, places)
	close(stop)
	<-done
}

// clientKilled: a client dies and comes back, and the others keep its routes.
func clientKilled(t *testing.T, makes ...makeClient) {
	_, clients, places := setUp(t, "", "", makes...)
	for i, c := range clients {
		other := clients[1-i]
		c.kill(t)
		wait(t, "the session's end", func() string { return sessions(t) }, "1")
		if got := other.table(t); got != others(places, 2-i) {
			t.Errorf("client %d lost routes: %q", 2-i, got)
		}
		c.resume(t)
		wait(t, "its return", func() string { return sessions(t) }, "2")
		allHaveAll(t, clients, places)
	}
}

// refreshes: clients ask for all routes again.
func refreshes(t *testing.T, makes ...makeClient) {
	_, clients, places := setUp(t, "", "", makes...)
	tables := metric(t, `heliograph_reflector_group_tables_total{group="1"}`)
	for _, c := range clients {
		c.refresh(t)
	}
	wait(t, "tables sent again", func() string {
		return fmt.Sprint(metric(t, `heliograph_reflector_group_tables_total{group="1"}`) > tables)
	}, "true")
	allHaveAll(t, clients, places)
	if got := sessions(t); got != "2" {
		t.Errorf("%s sessions", got)
	}
}

// asks: the reflector's file accepts nothing for a while, and then asks the clients for their routes again.
func asks(t *testing.T, makes ...makeClient) {
	e, clients, places := setUp(t, "", "", makes...)
	file := rrConf
	e.rewrite(t, file+"  accept: []\n")
	for i, c := range clients {
		wait(t, fmt.Sprintf("no route at client %d", i+1), func() string { return c.table(t) }, "")
	}
	e.rewrite(t, file)
	allHaveAll(t, clients, places)
	for _, p := range places {
		if got := metric(t, fmt.Sprintf(`heliograph_reflector_session_flaps_total{address=%q,peer="clients/%s"}`, p.addr, p.addr)); got != "0" {
			t.Errorf("client %d: %s flaps", p.n, got)
		}
	}
}

// addPaths: BIRD and FRR ask for all paths and get both of a prefix that two others announce.
func addPaths(t *testing.T) {
	_, clients, places := setUp(t, "  addPaths: true\n", "", newFRRClient, newBIRDClient, newFRRClient, newBIRDClient)
	for _, c := range clients[:2] {
		c.announceMore(t, 1)
	}
	for i, show := range []func() string{
		func() string {
			return nettest.Cmd(t, "vtysh", "--vty_socket", clients[2].(*frrClient).dir, "-c", "show bgp ipv4 unicast 10.99.1.0/24")
		},
		func() string {
			return nettest.Cmd(t, "birdc", "-s", clients[3].(*birdClient).dir+"/ctl", "show", "route", "all", "10.99.1.0/24")
		},
	} {
		wait(t, fmt.Sprintf("both paths at client %d", i+3), func() string {
			out := show()
			// Each path names its next hop, and its originator, which has the same number.
			return fmt.Sprint(strings.Contains(out, places[0].addr), strings.Contains(out, places[1].addr))
		}, "true true")
	}
	if got := sessions(t); got != "4" {
		t.Errorf("%s sessions", got)
	}
}

// maxPrefixes: a client that sends too much goes, and its routes; the other stays.
func maxPrefixes(t *testing.T, makes ...makeClient) {
	_, clients, _ := setUp(t, "  maxPrefixes: 3\n", "", makes...)
	clients[0].announceMore(t, 5)
	wait(t, "no route of the greedy one", func() string { return clients[1].table(t) }, "")
	if got := sessions(t); got != "1" {
		t.Errorf("%s sessions", got)
	}
}

func metric(t *testing.T, name string) string {
	t.Helper()
	out, _ := exec.Command("curl", "-s", "-m", "2", "http://127.0.0.1:9813/metrics").Output()
	for line := range strings.Lines(string(out)) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(v)
		}
	}
	return "?"
}

// sessions counts those that are established; "?" if the reflector does not run.
func sessions(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("curl", "-s", "-m", "2", "http://127.0.0.1:9813/metrics").Output()
	if err != nil {
		return "?"
	}
	n := 0
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "heliograph_reflector_session_up{") && strings.HasSuffix(strings.TrimSpace(line), " 1") {
			n++
		}
	}
	return fmt.Sprint(n)
}

// inNS starts a daemon at a client's place.
func inNS(t *testing.T, ns string, args ...string) *exec.Cmd {
	t.Helper()
	if ns != "" { // else here
		args = append([]string{"nsenter", "--net=/run/netns/" + ns}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// kernelOf lists the routes that a client put into its kernel.
func kernelOf(t *testing.T, ns string) string {
	var out []string
	for _, family := range []string{"-4", "-6"} {
		for line := range strings.Lines(nettest.Cmd(t, "ip", "-n", ns, family, "route", "show")) {
			f := strings.Fields(line)
			for i, word := range f {
				if word == "via" {
					out = append(out, f[0]+">"+f[i+1])
				}
			}
		}
	}
	return strings.Join(out, " ")
}

// frrClient is FRR with bgpd and zebra.
type frrClient struct {
	place
	dir, conf string
	bgpd      *exec.Cmd
}

func newFRRClient(p place) rrClient { return &frrClient{place: p} }

func (c *frrClient) start(t *testing.T) {
	need(t, "/usr/lib/frr/bgpd", "/usr/lib/frr/zebra", "vtysh")
	c.dir = "/run/frr-" + c.ns
	own(t, c.dir, "/run/frr")
	secret := ""
	if c.password != "" {
		secret = "neighbor " + c.up() + " password " + string(c.password)
	}
	c.conf = write(t, c.dir, "frr.conf", fmt.Sprintf(`frr defaults traditional
log file %[1]s/log
router bgp 64512
 bgp router-id %[2]s
 no bgp network import-check
 no bgp default ipv4-unicast
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
 bgp graceful-restart select-defer-time 5
 neighbor %[7]s remote-as 64512
 neighbor %[7]s timers 3 9
 neighbor %[7]s timers connect 1
 %[3]s
 address-family ipv4 unicast
  network %[4]s
  neighbor %[7]s activate
 exit-address-family
 address-family ipv6 unicast
  network %[5]s
  neighbor %[7]s activate
  neighbor %[7]s route-map six out
 exit-address-family
route-map six permit 10
 set ipv6 next-hop global %[6]s
`, c.dir, c.addr, secret, c.v4(), c.v6(), c.addr6, c.up()))
	write(t, c.dir, "vtysh.conf", "")
	own(t, c.dir)
	inNS(t, c.ns, "/usr/lib/frr/zebra", "-f", c.conf, "-i", c.dir+"/zebra.pid", "-z", c.dir+"/zserv.api", "--vty_socket", c.dir, "-K", "60")
	wait(t, "zebra", func() string { _, err := os.Stat(c.dir + "/zserv.api"); return fmt.Sprint(err) }, "<nil>")
	c.resume(t)
}

func (c *frrClient) table(t *testing.T) string { return kernelOf(t, c.ns) }

func (c *frrClient) kill(*testing.T) { _ = c.bgpd.Process.Kill(); _ = c.bgpd.Wait() }

func (c *frrClient) resume(t *testing.T) {
	c.bgpd = inNS(t, c.ns, "/usr/lib/frr/bgpd", "-f", c.conf, "-i", c.dir+"/bgpd.pid", "-z", c.dir+"/zserv.api", "--vty_socket", c.dir)
}

func (c *frrClient) vtysh(t *testing.T, commands ...string) {
	args := []string{"--vty_socket", c.dir}
	for _, x := range commands {
		args = append(args, "-c", x)
	}
	nettest.Cmd(t, "vtysh", args...)
}

func (c *frrClient) refresh(t *testing.T) {
	c.vtysh(t, "clear bgp ipv4 unicast "+c.up()+" soft in", "clear bgp ipv6 unicast "+c.up()+" soft in")
}

func (c *frrClient) announceMore(t *testing.T, n int) {
	for i := 1; i <= n; i++ {
		c.vtysh(t, "configure terminal", "router bgp 64512", "address-family ipv4 unicast", fmt.Sprintf("network 10.99.%d.0/24", i))
	}
}

func (c *frrClient) debug(*testing.T) string {
	out, _ := exec.Command("vtysh", "--vty_socket", c.dir, "-c", "show bgp neighbors "+c.up(), "-c", "show bgp ipv4", "-c", "show bgp ipv6").CombinedOutput()
	log, _ := os.ReadFile(c.dir + "/log")
	return string(out) + string(log)
}

// birdClient is BIRD 2.
type birdClient struct {
	place
	dir, conf string
	cmd       *exec.Cmd
}

func newBIRDClient(p place) rrClient { return &birdClient{place: p} }

func (c *birdClient) start(t *testing.T) {
	need(t, "bird", "birdc")
	c.dir = t.TempDir()
	c.configure(t, 0)
	c.run(t)
}

func (c *birdClient) configure(t *testing.T, more int) {
	secret, extra := "", ""
	if c.password != "" {
		secret = fmt.Sprintf("password %q;", string(c.password))
	}
	for i := 1; i <= more; i++ {
		extra += fmt.Sprintf("route 10.99.%d.0/24 blackhole; ", i)
	}
	c.conf = write(t, c.dir, "bird.conf", fmt.Sprintf(`log stderr all;
router id %s;
graceful restart wait 60;
protocol device { scan time 1; }
protocol direct { ipv4; ipv6; }
protocol kernel kernel4 { persist; graceful restart; ipv4 { export where source = RTS_BGP; }; }
protocol kernel kernel6 { persist; graceful restart; ipv6 { export where source = RTS_BGP; }; }
protocol static static4 { ipv4; route %s blackhole; %s }
protocol static static6 { ipv6; route %s blackhole; }
protocol bgp up {
  local %s as 64512;
  neighbor %s as 64512;
  %s
  hold time 9;
  connect delay time 1;
  connect retry time 1;
  error wait time 1, 2;
  graceful restart on;
  graceful restart time 60;
  ipv4 { import all; export where source = RTS_STATIC; next hop self; add paths rx; };
  ipv6 { import all; export where source = RTS_STATIC; next hop address %s; add paths rx; };
}
`, c.addr, c.v4(), extra, c.v6(), c.addr, c.up(), secret, c.addr6))
}

func (c *birdClient) run(t *testing.T, args ...string) {
	c.cmd = inNS(t, c.ns, append([]string{"bird", "-f", "-c", c.conf, "-s", c.dir + "/ctl", "-P", c.dir + "/pid"}, args...)...)
}

func (c *birdClient) table(t *testing.T) string { return kernelOf(t, c.ns) }
func (c *birdClient) kill(*testing.T)           { _ = c.cmd.Process.Kill(); _ = c.cmd.Wait() }
func (c *birdClient) resume(t *testing.T)       { c.run(t, "-R") }
func (c *birdClient) refresh(t *testing.T) {
	nettest.Cmd(t, "birdc", "-s", c.dir+"/ctl", "reload", "in", "up")
}

func (c *birdClient) announceMore(t *testing.T, n int) {
	c.configure(t, n)
	nettest.Cmd(t, "birdc", "-s", c.dir+"/ctl", "configure")
}

func (c *birdClient) debug(*testing.T) string {
	out, _ := exec.Command("birdc", "-s", c.dir+"/ctl", "show", "protocols", "all", "up").CombinedOutput()
	more, _ := exec.Command("birdc", "-s", c.dir+"/ctl", "show", "route", "all").CombinedOutput()
	return string(out) + string(more)
}
