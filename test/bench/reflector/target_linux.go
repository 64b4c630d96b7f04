// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const address = "127.0.0.1:1790"

// target is a reflector: how to configure and start it, with clients from 127.1.0.0/16.
type target struct {
	file string
	conf string
	args []string // {dir} is where file is
}

const heliographConf = `asNumber: 65000
routerID: 127.0.0.1
listen: {addresses: [127.0.0.1], port: 1790}
clients: [{name: clients, prefix: 127.1.0.0/16}]
`

const birdConf = `router id 127.0.0.1;
protocol device {}
ipv4 table master4;
ipv6 table master6;
template bgp t {
  local 127.0.0.1 port 1790 as 65000;
  rr client; rr cluster id 127.0.0.1;
  hold time 90;
  ipv4 { import all; export all; };
  ipv6 { import all; export all; };
}
protocol bgp dyn from t { neighbor range 127.1.0.0/16 as 65000; passive on; dynamic name "c"; }
`

const frrConf = `router bgp 65000
 bgp router-id 127.0.0.1
 bgp cluster-id 127.0.0.1
 no bgp network import-check
 neighbor c peer-group
 neighbor c remote-as 65000
 bgp listen limit 5000
 bgp listen range 127.1.0.0/16 peer-group c
 neighbor c disable-connected-check
 neighbor c timers 30 90
 address-family ipv4 unicast
  neighbor c route-reflector-client
 exit-address-family
 address-family ipv6 unicast
  neighbor c activate
  neighbor c route-reflector-client
 exit-address-family
`

const (
	ours  = "heliograph"
	bird  = "BIRD 2"
	frr   = "FRR"
	gobgp = "GoBGP 4.8"
)

func targets() map[string]target {
	return map[string]target{
		ours: {file: "heliograph.yaml", conf: heliographConf, args: []string{"../../bin/heliograph-reflector", "-f", "{dir}/heliograph.yaml"}},
		bird: {file: "bird.conf", conf: birdConf, args: []string{"/usr/sbin/bird", "-f", "-c", "{dir}/bird.conf", "-s", "{dir}/bird.ctl", "-P", "{dir}/bird.pid"}},
		frr: {file: "bgpd.conf", conf: frrConf, args: []string{"/usr/lib/frr/bgpd", "-f", "{dir}/bgpd.conf", "-p", "1790", "-l", "127.0.0.1", "-n", "-Z", "-S",
			"-i", "{dir}/bgpd.pid", "-A", "127.0.0.1", "-P", "0", "--vty_socket", "{dir}"}},
		gobgp: {args: []string{"{dir}/gobgprr", "-port", "1790"}},
	}
}

// process is a reflector that runs.
type process struct {
	cmd *exec.Cmd
	pid int
}

// start runs a target until it listens.
func start(name, dir string) (*process, error) { return targets()[name].start(name, dir) }

func (t target) start(name, dir string) (*process, error) {
	if t.file != "" {
		if err := os.WriteFile(filepath.Join(dir, t.file), []byte(t.conf), 0o644); err != nil {
			return nil, err
		}
	}
	args := make([]string, len(t.args))
	for i, a := range t.args {
		args[i] = strings.ReplaceAll(a, "{dir}", dir)
	}
	out, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, pid: cmd.Process.Pid}
	for range 100 {
		if c, err := net.DialTimeout("tcp4", address, time.Second); err == nil {
			_ = c.Close()
			return p, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	p.stop()
	text, _ := os.ReadFile(out.Name())
	return nil, fmt.Errorf("%s does not listen: %s", name, text)
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	over := make(chan struct{})
	go func() { _ = p.cmd.Wait(); close(over) }()
	select {
	case <-over:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-over
	}
}

// cpu is the time that its threads have run. None of the targets ends threads.
func (p *process) cpu() time.Duration {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.pid))
	var sum time.Duration
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			continue
		}
		ns, _ := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
		sum += time.Duration(ns)
	}
	return sum
}

// peak is the most memory that was ever resident, in KiB; resident is what is now.
func (p *process) peak() int     { return p.status("VmHWM:") }
func (p *process) resident() int { return p.status("VmRSS:") }

func (p *process) status(field string) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == field {
			kb, _ := strconv.Atoi(f[1])
			return kb
		}
	}
	return 0
}
