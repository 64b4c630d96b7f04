// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// dialEvery is the time between two connections, and so the resolution of what is measured.
	dialEvery = 2 * time.Millisecond
	// dialPatience is how long a connection may take before it counts as refused. A SYN that drops is sent
	// again only after a second.
	dialPatience = 700 * time.Millisecond
)

// dialer opens a new TCP connection every few milliseconds, from within a pod, without a process in it.
type dialer struct {
	stopping chan struct{}
	ended    sync.WaitGroup
	err      error

	mu       sync.Mutex
	attempts []attempt
}

// attempt is one connection.
type attempt struct {
	at   time.Time
	open bool
}

// dialing is an attempt under way.
type dialing struct {
	fd int
	at time.Time
}

// dial begins to connect from a pod to an address.
func dial(t *testing.T, from pod, to netip.AddrPort) *dialer {
	t.Helper()
	ns := openNamespace(t, from)
	d := &dialer{stopping: make(chan struct{})}
	d.ended.Go(func() {
		defer unix.Close(ns)   //nolint:errcheck // read only
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if d.err = unix.Setns(ns, unix.CLONE_NEWNET); d.err == nil {
			d.err = d.run(to)
		}
	})
	t.Cleanup(func() { d.stop(t) })
	return d
}

// openNamespace opens the network namespace of a pod. The pod's processes are this machine's as well, if by
// other numbers than its node has for them.
func openNamespace(t *testing.T, p pod) int {
	t.Helper()
	inode := strings.TrimSpace(lab(t, "exec", p.node, "stat", "-Lc", "net:[%i]", p.netns))
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if found, err := os.Readlink(link); err != nil || found != inode {
			continue
		}
		if fd, err := unix.Open(link, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			return fd
		}
	}
	t.Fatalf("no process is in the namespace of pod %s, %s", p.name, inode)
	return 0
}

// run connects until it is told to stop, at most for ten minutes.
func (d *dialer) run(to netip.AddrPort) error {
	tick := time.NewTicker(dialEvery)
	defer tick.Stop()
	var under []dialing
	for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); {
		select {
		case <-d.stopping:
			d.settle(under, true)
			return nil
		case <-tick.C:
		}
		a, err := begin(to)
		if err != nil {
			return err
		}
		under = d.settle(append(under, a), false)
	}
	return errors.New("nobody stopped it")
}

// begin sends a SYN.
func begin(to netip.AddrPort) (dialing, error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return dialing{}, fmt.Errorf("open a socket: %w", err)
	}
	a := dialing{fd: fd, at: time.Now()}
	if err := unix.Connect(fd, sa); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		_ = unix.Close(fd)
		return dialing{}, fmt.Errorf("connect to %s: %w", to, err)
	}
	return a, nil
}

// settle notes the attempts that came to an end, and returns the others. A connection is reset, not
// closed, so that thousands of them leave nothing behind.
func (d *dialer) settle(under []dialing, all bool) (left []dialing) {
	polls := make([]unix.PollFd, len(under))
	for i, a := range under {
		polls[i] = unix.PollFd{Fd: int32(a.fd), Events: unix.POLLOUT} //nolint:gosec // a descriptor
	}
	_, _ = unix.Poll(polls, 0)
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, a := range under {
		done := polls[i].Revents != 0
		late := time.Since(a.at) > dialPatience
		if !done && !late && !all {
			left = append(left, a)
			continue
		}
		if done || late { // what is stopped meanwhile says nothing
			code, err := unix.GetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_ERROR)
			d.attempts = append(d.attempts, attempt{at: a.at, open: done && err == nil && code == 0})
		}
		_ = unix.SetsockoptLinger(a.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		_ = unix.Close(a.fd)
	}
	return left
}

// stop ends it; twice does no harm.
func (d *dialer) stop(t *testing.T) []attempt {
	t.Helper()
	select {
	case <-d.stopping:
	default:
		close(d.stopping)
	}
	d.ended.Wait()
	if d.err != nil {
		t.Errorf("dialer: %v", d.err)
	}
	return d.attempts
}

// since returns the attempts that were begun from then on and have come to an end.
func (d *dialer) since(t time.Time) (out []attempt) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range d.attempts {
		if !a.at.Before(t) {
			out = append(out, a)
		}
	}
	return out
}

// turns waits until connections open, or open no more, and returns when the first one began from which on
// it was so.
func (d *dialer) turns(t *testing.T, from time.Time, open bool) time.Time {
	t.Helper()
	const steady = 20
	var first time.Time
	eventually(t, 20*time.Second, func() error {
		attempts := d.since(from)
		// Those that are refused come to an end late.
		slices.SortFunc(attempts, func(a, b attempt) int { return a.at.Compare(b.at) })
		i := len(attempts)
		for i > 0 && attempts[i-1].open == open {
			i--
		}
		if len(attempts)-i < steady {
			return fmt.Errorf("connections do not turn (open: %v): %d in a row", open, len(attempts)-i)
		}
		first = attempts[i].at
		return nil
	})
	return first
}
