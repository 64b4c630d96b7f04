// SPDX-License-Identifier: Apache-2.0

// Package sandbox runs the benchmarks in user, network and mount namespaces of their own: they need no
// root and leave nothing behind.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const insideEnv = "HELIOGRAPH_BENCH_SANDBOX"

// Enter runs the program again, with the same arguments, inside of new namespaces, and returns true
// once it is there. Outside it returns false and how the inner run ended.
func Enter() (inside bool, err error) { return enter(syscall.CLONE_NEWUSER) }

// EnterWithRights is Enter for root, who keeps his rights on the host: send buffers of any size are one.
func EnterWithRights() (inside bool, err error) { return enter(0) }

func enter(user uintptr) (inside bool, err error) {
	if os.Getenv(insideEnv) == "1" {
		return true, Run("ip", "link", "set", "lo", "up")
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: user | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	if user != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Run(); err != nil {
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			return false, fmt.Errorf("in the sandbox: %w", err)
		}
		return false, fmt.Errorf("enter the sandbox: %w", err)
	}
	return false, nil
}

// In runs f on a thread of a named namespace, which ends with it. Sockets that f opens stay there.
func In(namespace string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		ns, err := os.Open("/run/netns/" + namespace)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			_ = ns.Close()
		}
		if err != nil {
			done <- fmt.Errorf("enter namespace %s: %w", namespace, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Run runs a command that must succeed.
func Run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
