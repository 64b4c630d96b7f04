// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package nettest runs a test inside of fresh user, network and mount namespaces, so that it may
// do with a real kernel what it likes, needs no root, and leaves nothing behind: the namespaces
// end with the process.
package nettest

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	insideEnv = "HELIOGRAPH_NETTEST"
	// noSkipEnv turns every skip into a failure: make test sets it.
	noSkipEnv = "HELIOGRAPH_NO_SKIP"
	// vmEnv says that this is the kernel of hack/vm, which sets it.
	vmEnv = "HELIOGRAPH_VM"
)

// Run executes f in namespaces of its own, by executing the test binary again for this one test.
// Inside, the process is root, lo is up, and /run is an empty tmpfs, so that `ip netns` works.
// Without the right to make namespaces the test is skipped, which fails under make test.
func Run(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	RunFor(t, 5*time.Minute, f)
}

// RunFor is Run for a test that may take longer, or has to take less.
func RunFor(t *testing.T, longest time.Duration, f func(t *testing.T)) {
	t.Helper()
	if os.Getenv(insideEnv) == t.Name() {
		prepare(t)
		f(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run="+pattern(t.Name()), "-test.v", "-test.timeout="+longest.String()) //nolint:gosec // our own binary
	cmd.Env = append(os.Environ(), insideEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		Skip(t, "cannot make namespaces: "+err.Error())
	}
	err := cmd.Wait()
	t.Logf("in namespaces:\n%s", out.String())
	if err != nil {
		t.Fatalf("in namespaces: %v", err)
	}
	if strings.Contains(out.String(), "--- SKIP: "+t.Name()+" ") {
		t.Skip("skipped inside of the namespaces: see above")
	}
}

// pattern is the -test.run pattern that selects exactly the named test.
func pattern(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = "^" + p + "$"
	}
	return strings.Join(parts, "/")
}

func prepare(t *testing.T) {
	t.Helper()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatalf("make mounts private: %v", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		t.Fatalf("mount /run: %v", err)
	}
	Cmd(t, "ip", "link", "set", "lo", "up")
}

// Skip skips the test with a reason, or fails it where skips are not allowed.
func Skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv(noSkipEnv) == "1" {
		t.Fatal("must not skip under " + noSkipEnv + "=1: " + why)
	}
	t.Skip(why)
}

// NeedLink skips a test where the kernel has no network devices of a kind: ipip, wireguard. Such a test
// runs on the kernel of hack/vm, which has them all. There alone a missing kind fails under make test;
// that each package with such a test is among those that make test-vm runs, this package's own test
// checks. It is called inside of Run.
func NeedLink(t *testing.T, kind string) {
	t.Helper()
	args := map[string][]string{"ipip": {"local", "192.0.2.253", "remote", "192.0.2.254"}}[kind]
	out, err := exec.Command("ip", append([]string{"link", "add", "need0", "type", kind}, args...)...).CombinedOutput()
	if err == nil {
		Cmd(t, "ip", "link", "del", "need0")
		return
	}
	why := "this kernel makes no device of kind " + kind + ": " + strings.TrimSpace(string(out))
	if os.Getenv(vmEnv) == "1" {
		Skip(t, why)
	}
	t.Skip(why + "; make test-vm runs this test on one that does")
}

// Cmd runs a command that must succeed and returns what it printed.
func Cmd(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
