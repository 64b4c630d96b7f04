// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// disableIPv6 is what new devices of the current namespace start with.
const disableIPv6 = "/proc/sys/net/ipv6/conf/default/disable_ipv6"

// openSocketIn opens a route netlink socket inside of a network namespace, and runs f there too. It
// works on a thread of its own, which ends with it.
func openSocketIn(namespace string, f func()) (*os.File, error) {
	ns, err := os.Open(namespace)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ns.Close() }()
	type result struct {
		socket *os.File
		err    error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlock: nothing else may run on this thread
		socket, err := enter(ns)
		if err == nil && f != nil {
			f()
		}
		done <- result{socket, err}
	}()
	r := <-done
	return r.socket, r.err
}

func enter(ns *os.File) (*os.File, error) {
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("enter %s: %w", ns.Name(), err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket in %s: %w", ns.Name(), err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// prepareNamespace lets the device that is about to be made have IPv6 addresses, which some runtimes
// switch off in new namespaces and netlink cannot switch on. If that fails, the agent's error says
// what to do.
func prepareNamespace() {
	if b, err := os.ReadFile(disableIPv6); err == nil && strings.TrimSpace(string(b)) == "1" {
		_ = os.WriteFile(disableIPv6, []byte("0"), 0) // exists, so the mode is not used
	}
}
