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

	"github.com/heliograph-dev/heliograph/bgp"
)

// Here the reflector at 10.9.0.1 is FRR or BIRD, and what is ours are its clients: the node's speaker, and
// the reflector as one that stands below it.

func TestSpeakersOfFRR(t *testing.T) {
	isolate(t, func(t *testing.T) { speakersOf(t, &frrReflector{}, "") })
}
func TestSpeakersOfFRRWithPassword(t *testing.T) {
	isolate(t, func(t *testing.T) { speakersOf(t, &frrReflector{}, "sesame") })
}
func TestSpeakersOfBIRD(t *testing.T) {
	isolate(t, func(t *testing.T) { speakersOf(t, &birdReflector{}, "") })
}
func TestSpeakersOfBIRDWithPassword(t *testing.T) {
	isolate(t, func(t *testing.T) { speakersOf(t, &birdReflector{}, "sesame") })
}
func TestReflectorBelowFRR(t *testing.T) {
	isolate(t, func(t *testing.T) { below(t, &frrReflector{}) })
}
func TestReflectorBelowBIRD(t *testing.T) {
	isolate(t, func(t *testing.T) { below(t, &birdReflector{}) })
}

// theirReflector reflects between clients at the first n places.
type theirReflector interface {
	start(t *testing.T, places []place)
	kill()
	resume(t *testing.T)
	debug() string
}

// speakersOf: two speakers are clients; one is killed and comes back, then the reflector; each time the
// others keep their routes.
func speakersOf(t *testing.T, r theirReflector, password bgp.Password) {
	places := bridge(t, 3, password)
	r.start(t, places)
	explainTheirs(t, r)
	clients := []rrClient{newSpeakerClient(places[0]), newSpeakerClient(places[1]), newBIRDClient(places[2])}
	for _, c := range clients {
		c.start(t)
	}
	allHaveAll(t, clients, places)
	if password != "" {
		return // what follows has nothing to do with it
	}

	clients[0].kill(t)
	clients[0].resume(t)
	keeps := keepLooking(t, clients[1:], places, 2)
	allHaveAll(t, clients, places)
	keeps()

	keeps = keepLooking(t, clients[:2], places, 1)
	r.kill()
	r.resume(t)
	clients[0].announceMore(t, 1)
	wait(t, "the reflector's return", func() string {
		return fmt.Sprint(strings.Contains(clients[2].table(t), "10.99.1.0/24>"+places[0].addr))
	}, "true")
	keeps()
}

// keepLooking fails if one of the clients lacks a route before the function that it returns is called. The
// first client's number is given.
func keepLooking(t *testing.T, clients []rrClient, places []place, first int) (enough func()) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			for i, c := range clients {
				got := " " + c.table(t) + " "
				for _, route := range strings.Fields(others(places, first+i)) {
					if !strings.Contains(got, " "+route+" ") {
						t.Errorf("client %d lacks %s: %s", first+i, route, got)
						return
					}
				}
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	return func() { close(stop); <-done }
}

// below: the reflector of ours is at the first place, a client of theirs and the reflector of the client at
// the second; the third is a client of theirs. Routes pass both, in both directions, with their next hops.
func below(t *testing.T, r theirReflector) {
	places := bridge(t, 3, "")
	r.start(t, []place{places[0], places[2]})
	explainTheirs(t, r)
	binary, err := filepath.Abs("../../bin/heliograph-reflector")
	if err != nil {
		t.Fatal(err)
	}
	need(t, binary)
	conf := write(t, t.TempDir(), "reflector.yaml", fmt.Sprintf(`asNumber: 64512
routerID: %[1]s
listen: {addresses: [%[1]s], port: 179}
clients:
- {name: above, address: 10.9.0.1, nonClient: true, connect: true, port: 179, sourceAddress: %[1]s, connectRetryTime: 1s}
- {name: below, address: %[2]s}
`, places[0].addr, places[1].addr))
	inNS(t, places[0].ns, binary, "-f", conf)
	places[1].above = places[0].addr
	leaf, other := newBIRDClient(places[1]), newSpeakerClient(places[2])
	leaf.start(t)
	other.start(t)
	wait(t, "routes below", func() string { return leaf.table(t) }, others(places[1:], 2))
	wait(t, "routes above", func() string { return other.table(t) }, others(places[1:], 3))
	leaf.announceMore(t, 1)
	wait(t, "one more", func() string { return fmt.Sprint(strings.Contains(other.table(t), "10.99.1.0/24>"+places[1].addr)) }, "true")
}

func explainTheirs(t *testing.T, r theirReflector) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.debug())
		}
	})
}

// frrReflector is bgpd without zebra: a reflector forwards nothing.
type frrReflector struct {
	dir, conf string
	cmd       *exec.Cmd
}

func (r *frrReflector) start(t *testing.T, places []place) {
	need(t, "/usr/lib/frr/bgpd", "vtysh")
	r.dir = "/run/frr-above"
	own(t, r.dir, "/run/frr")
	var sessions, four, six string
	for _, p := range places {
		n := " neighbor " + p.addr + " "
		sessions += n + "remote-as 64512\n" + n + "passive\n" + n + "timers 3 9\n"
		if p.password != "" {
			sessions += n + "password " + string(p.password) + "\n"
		}
		four += " " + n + "activate\n " + n + "route-reflector-client\n"
		six += " " + n + "activate\n " + n + "route-reflector-client\n"
	}
	r.conf = write(t, r.dir, "frr.conf", fmt.Sprintf(`frr defaults traditional
log file %s/log
router bgp 64512
 bgp router-id 10.9.0.1
 bgp cluster-id 10.9.0.1
 no bgp default ipv4-unicast
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
 bgp graceful-restart select-defer-time 5
%s address-family ipv4 unicast
%s exit-address-family
 address-family ipv6 unicast
%s exit-address-family
`, r.dir, sessions, four, six))
	write(t, r.dir, "vtysh.conf", "")
	own(t, r.dir)
	r.resume(t)
}

func (r *frrReflector) kill() { _ = r.cmd.Process.Kill(); _ = r.cmd.Wait() }

func (r *frrReflector) resume(t *testing.T) {
	r.cmd = inNS(t, "", "/usr/lib/frr/bgpd", "-f", r.conf, "-i", r.dir+"/bgpd.pid", "-n", "-Z", "--vty_socket", r.dir)
}

func (r *frrReflector) debug() string {
	out, _ := exec.Command("vtysh", "--vty_socket", r.dir, "-c", "show bgp neighbors", "-c", "show bgp ipv4", "-c", "show bgp ipv6").CombinedOutput()
	log, _ := os.ReadFile(r.dir + "/log")
	return string(out) + string(log)
}

type birdReflector struct {
	dir, conf string
	cmd       *exec.Cmd
}

func (r *birdReflector) start(t *testing.T, places []place) {
	need(t, "bird", "birdc")
	r.dir = t.TempDir()
	text := `log stderr all;
router id 10.9.0.1;
graceful restart wait 60;
protocol device { scan time 1; }
`
	for _, p := range places {
		secret := ""
		if p.password != "" {
			secret = fmt.Sprintf("password %q;", string(p.password))
		}
		text += fmt.Sprintf(`protocol bgp %s {
  local 10.9.0.1 as 64512;
  neighbor %s as 64512;
  %s
  rr client; rr cluster id 10.9.0.1;
  passive on;
  hold time 9;
  graceful restart on;
  graceful restart time 60;
  ipv4 { import all; export all; };
  ipv6 { import all; export all; };
}
`, p.ns, p.addr, secret)
	}
	r.conf = write(t, r.dir, "bird.conf", text)
	r.run(t)
}

func (r *birdReflector) run(t *testing.T, args ...string) {
	r.cmd = inNS(t, "", append([]string{"bird", "-f", "-c", r.conf, "-s", r.dir + "/ctl", "-P", r.dir + "/pid"}, args...)...)
}

func (r *birdReflector) kill()               { _ = r.cmd.Process.Kill(); _ = r.cmd.Wait() }
func (r *birdReflector) resume(t *testing.T) { r.run(t, "-R") }

func (r *birdReflector) debug() string {
	out, _ := exec.Command("birdc", "-s", r.dir+"/ctl", "show", "protocols", "all").CombinedOutput()
	more, _ := exec.Command("birdc", "-s", r.dir+"/ctl", "show", "route", "all").CombinedOutput()
	return string(out) + string(more)
}
