// SPDX-License-Identifier: Apache-2.0

//go:build linux

package interop

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// router is the other end: AS 65101 at 192.168.11.254 and fd00:11::fe, which originates
// 10.250.0.0/24 and fd00:250::/64 and puts what it learns into its kernel.
type router interface {
	start(t *testing.T, password bgp.Password)
	// shutdown ends the session administratively, with words if it can.
	shutdown(t *testing.T)
	// kill is kill -9 of the BGP daemon; resume starts it again as one that restarts.
	kill(t *testing.T)
	resume(t *testing.T)
	// debug prints what it thinks of us.
	debug(t *testing.T) string
}

// inTor starts a daemon in the router's namespace.
func inTor(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/tor"}, args...)...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func need(t *testing.T, files ...string) {
	t.Helper()
	for _, f := range files {
		if _, err := exec.LookPath(f); err != nil {
			nettest.Skip(t, err.Error()+": run hack/deps.sh")
		}
	}
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// options of a router; the zero value is a session over IPv4 without BFD.
type options struct {
	six bool   // the session is over IPv6
	bfd string // lines for the session, in the router's language; empty: no BFD
}

// node is our address.
func (o options) node() string {
	if o.six {
		return "fd00:11::1"
	}
	return "192.168.11.1"
}

// tor is the router's own address.
func (o options) tor() string {
	if o.six {
		return "fd00:11::fe"
	}
	return "192.168.11.254"
}

type frr struct {
	options
	dir  string
	conf string
	bgpd *exec.Cmd
	bfdd *exec.Cmd
}

func (r *frr) start(t *testing.T, password bgp.Password) {
	need(t, "/usr/lib/frr/bgpd", "/usr/lib/frr/zebra", "vtysh")
	r.dir = "/run/frr-tor" // below /run, since the user frr cannot enter t.TempDir
	own(t, r.dir, "/run/frr")
	secret := ""
	if password != "" {
		secret = "neighbor " + r.node() + " password " + string(password)
	}
	r.conf = write(t, r.dir, "frr.conf", fmt.Sprintf(`frr defaults traditional
hostname tor
log file %[1]s/log
router bgp 65101
 bgp router-id 192.168.11.254
 no bgp ebgp-requires-policy
 no bgp network import-check
 no bgp default ipv4-unicast
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
 bgp graceful-restart select-defer-time 5
 neighbor %[2]s remote-as 64512
 neighbor %[2]s timers 3 9
 neighbor %[2]s timers connect 2
 %[3]s
 %[4]s
 address-family ipv4 unicast
  network 10.250.0.0/24
  neighbor %[2]s activate
 exit-address-family
 address-family ipv6 unicast
  network fd00:250::/64
  neighbor %[2]s activate
 exit-address-family
`, r.dir, r.node(), secret, r.bfd))
	write(t, r.dir, "vtysh.conf", "")
	own(t, r.dir)
	inTor(t, "/usr/lib/frr/zebra", "-f", r.conf, "-i", r.dir+"/zebra.pid", "-z", r.dir+"/zserv.api", "--vty_socket", r.dir, "-K", "60")
	wait(t, "zebra", func() string { _, err := os.Stat(r.dir + "/zserv.api"); return fmt.Sprint(err) }, "<nil>")
	if r.bfd != "" {
		need(t, "/usr/lib/frr/bfdd")
		r.bfdd = inTor(t, "/usr/lib/frr/bfdd", "-f", r.dir+"/vtysh.conf", "-i", r.dir+"/bfdd.pid", "-z", r.dir+"/zserv.api",
			"--vty_socket", r.dir, "--bfdctl", r.dir+"/bfdd.sock")
	}
	r.resume(t)
}

// own makes directories that belong to FRR's user.
func own(t *testing.T, dirs ...string) {
	t.Helper()
	u, err := user.Lookup("frr")
	if err != nil {
		nettest.Skip(t, err.Error())
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := filepath.Walk(d, func(path string, _ os.FileInfo, err error) error {
			if err != nil {
				return err
			}
			return os.Chown(path, uid, gid)
		}); err != nil {
			t.Fatal(err)
		}
	}
}

func (r *frr) shutdown(t *testing.T) {
	nettest.Cmd(t, "vtysh", "--vty_socket", r.dir, "-c", "configure terminal", "-c", "router bgp 65101",
		"-c", "neighbor "+r.node()+" shutdown message maintenance")
}

func (r *frr) kill(*testing.T) {
	_ = r.bgpd.Process.Kill()
	_ = r.bgpd.Wait()
}

func (r *frr) resume(t *testing.T) {
	r.bgpd = inTor(t, "/usr/lib/frr/bgpd", "-f", r.conf, "-i", r.dir+"/bgpd.pid", "-z", r.dir+"/zserv.api", "--vty_socket", r.dir)
}

func (r *frr) debug(t *testing.T) string {
	out, _ := exec.Command("vtysh", "--vty_socket", r.dir, "-c", "show bgp neighbors "+r.node(), "-c", "show bgp all", "-c", "show bfd peers").CombinedOutput()
	log, _ := os.ReadFile(r.dir + "/log")
	return string(out) + string(log)
}

type bird struct {
	options
	dir  string
	conf string
	cmd  *exec.Cmd
}

func (r *bird) start(t *testing.T, password bgp.Password) {
	need(t, "bird", "birdc")
	r.dir = t.TempDir()
	secret := ""
	if password != "" {
		secret = fmt.Sprintf("password %q;", string(password))
	}
	if r.bfd != "" {
		secret += r.bfd
	}
	r.conf = write(t, r.dir, "bird.conf", fmt.Sprintf(`log stderr all;
router id 192.168.11.254;
graceful restart wait 60;
protocol device { scan time 1; }
protocol kernel kernel4 { persist; graceful restart; ipv4 { export where source = RTS_BGP; }; }
protocol kernel kernel6 { persist; graceful restart; ipv6 { export where source = RTS_BGP; }; }
protocol static static4 { ipv4; route 10.250.0.0/24 unreachable; }
protocol static static6 { ipv6; route fd00:250::/64 unreachable; }
protocol bgp node {
  local %[1]s as 65101;
  neighbor %[2]s as 64512;
  %[3]s
  hold time 9;
  connect delay time 1;
  connect retry time 2;
  error wait time 1, 2;
  graceful restart on;
  graceful restart time 60;
  ipv4 { import all; export where source = RTS_STATIC; };
  ipv6 { import all; export where source = RTS_STATIC; };
}
%[4]s`, r.tor(), r.node(), secret, r.bfdProtocol()))
	r.run(t)
}

// bfdProtocol is what BIRD needs beside the option of the session.
func (r *bird) bfdProtocol() string {
	if r.bfd == "" {
		return ""
	}
	return `protocol bfd { interface "*" { min rx interval 100 ms; min tx interval 100 ms; idle tx interval 300 ms; multiplier 3; }; }
`
}

func (r *bird) run(t *testing.T, args ...string) {
	r.cmd = inTor(t, append([]string{"bird", "-f", "-c", r.conf, "-s", r.dir + "/ctl", "-P", r.dir + "/pid"}, args...)...)
}

func (r *bird) shutdown(t *testing.T) {
	nettest.Cmd(t, "birdc", "-s", r.dir+"/ctl", "disable", "node", `"maintenance"`)
}

func (r *bird) kill(*testing.T) {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

func (r *bird) resume(t *testing.T) { r.run(t, "-R") }

func (r *bird) debug(t *testing.T) string {
	out, _ := exec.Command("birdc", "-s", r.dir+"/ctl", "show", "protocols", "all", "node").CombinedOutput()
	more, _ := exec.Command("birdc", "-s", r.dir+"/ctl", "show", "route", "all").CombinedOutput()
	bfd, _ := exec.Command("birdc", "-s", r.dir+"/ctl", "show", "bfd", "sessions").CombinedOutput()
	return string(out) + string(more) + string(bfd)
}
