// SPDX-License-Identifier: Apache-2.0

package podnet_test

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/cni/podnet"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

var pod = podnet.Interface{
	Attachment: cni.Attachment{ContainerID: strings.Repeat("0123456789abcdef", 4), IfName: "eth0"},
	Pod:        cni.Pod{Namespace: "default", Name: "web-0"},
	MTU:        1400,
	Addresses:  [2]netip.Addr{netip.MustParseAddr("10.244.0.5"), netip.MustParseAddr("fd00:244::5")},
}

// podSocket opens a route netlink socket in a named namespace, as the plugin does.
func podSocket(t *testing.T, name string) *os.File {
	t.Helper()
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := os.Open("/run/netns/" + name)
		if err != nil {
			done <- result{0, err}
			return
		}
		defer func() { _ = ns.Close() }()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{0, err}
			return
		}
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		done <- result{fd, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatalf("open socket in %s: %v", name, r.err)
	}
	f := os.NewFile(uintptr(r.fd), "netlink")
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// setup makes a namespace for a pod and a Net, and routes to the pod as the agent would.
func setup(t *testing.T) (*podnet.Net, *os.File) {
	t.Helper()
	nettest.Cmd(t, "ip", "netns", "add", "pod")
	nettest.Cmd(t, "ip", "-n", "pod", "link", "set", "lo", "up")
	n, err := podnet.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n, podSocket(t, "pod")
}

func addRoutes(t *testing.T) {
	t.Helper()
	device := podnet.HostDevice(pod.Attachment)
	nettest.Cmd(t, "ip", "addr", "replace", "10.244.0.1/32", "dev", "lo")
	nettest.Cmd(t, "ip", "addr", "replace", "fd00:244::1/128", "dev", "lo", "nodad")
	nettest.Cmd(t, "ip", "route", "replace", "10.244.0.5/32", "dev", device, "src", "10.244.0.1")
	nettest.Cmd(t, "ip", "route", "replace", "fd00:244::5/128", "dev", device, "src", "fd00:244::1")
}

func TestCreateConnectsThePod(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		n, socket := setup(t)
		ends, err := n.Create(socket, pod)
		if err != nil {
			t.Fatal(err)
		}
		want := podnet.Ends{
			Host: cni.Interface{Name: podnet.HostDevice(pod.Attachment), MAC: "02:68:65:6c:00:01", MTU: 1400},
			Pod:  cni.Interface{Name: "eth0", MTU: 1400},
		}
		if diff := cmp.Diff(want, ends, cmpopts.IgnoreFields(podnet.Ends{}, "Pod.MAC")); diff != "" {
			t.Errorf("ends (-want +got):\n%s", diff)
		}
		addRoutes(t)
		// The first packet must pass, without waiting for any neighbour discovery.
		nettest.Cmd(t, "ping", "-c1", "-W1", "10.244.0.5")
		nettest.Cmd(t, "ping", "-c1", "-W1", "fd00:244::5")
		nettest.Cmd(t, "ip", "netns", "exec", "pod", "ping", "-c1", "-W1", "10.244.0.1")
		nettest.Cmd(t, "ip", "netns", "exec", "pod", "ping", "-c1", "-W1", "fd00:244::1")
		if err := n.Check(socket, pod); err != nil {
			t.Errorf("check: %v", err)
		}
		found, err := n.List()
		wantFound := []podnet.Found{{Device: ends.Host.Name, Attachment: pod.Attachment, Pod: pod.Pod, Addresses: pod.Addresses}}
		if diff := cmp.Diff(wantFound, found, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || err != nil {
			t.Errorf("list: %v (-want +got):\n%s", err, diff)
		}
		for range 2 {
			if err := n.Delete(ends.Host.Name); err != nil {
				t.Errorf("delete: %v", err)
			}
		}
		if err := n.Check(socket, pod); err == nil || !strings.Contains(err.Error(), "eth0 is missing") {
			t.Errorf("check after delete: %v", err)
		}
	})
}

func TestNeighbourEntriesAreNotNecessaryOnTheNode(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		n, socket := setup(t)
		if _, err := n.Create(socket, pod); err != nil {
			t.Fatal(err)
		}
		addRoutes(t)
		nettest.Cmd(t, "ip", "neigh", "flush", "nud", "permanent", "dev", podnet.HostDevice(pod.Attachment))
		nettest.Cmd(t, "ping", "-c1", "-W3", "10.244.0.5")
		nettest.Cmd(t, "ping", "-c3", "-W3", "fd00:244::5")
	})
}

func TestCheckFindsDamage(t *testing.T) {
	inPod := func(args ...string) []string { return append([]string{"-n", "pod"}, args...) }
	device := podnet.HostDevice(pod.Attachment)
	for _, tc := range []struct {
		name string
		ip   []string
		want string
	}{
		{"address4", inPod("addr", "del", "10.244.0.5/32", "dev", "eth0"), "address 10.244.0.5 is missing"},
		{"address6", inPod("addr", "del", "fd00:244::5/128", "dev", "eth0"), "address fd00:244::5 is missing"},
		{"route4", inPod("route", "del", "default"), "default route via 169.254.1.1 is missing"},
		{"route6", inPod("-6", "route", "del", "default"), "default route via fe80::68:65ff:fe6c:1 is missing"},
		{"neighbour4", inPod("neigh", "del", "169.254.1.1", "dev", "eth0"), "neighbour entry of the gateway 169.254.1.1 is missing"},
		{"podDown", inPod("link", "set", "eth0", "down"), "eth0 is down"},
		{"podRenamed", inPod("link", "set", "eth0", "name", "eth9"), "eth0 is missing"},
		{"nodeDown", []string{"link", "set", device, "down"}, device + " is down"},
		{"nodeRoute", []string{"route", "del", "10.244.0.5/32"}, "no route to 10.244.0.5"},
		{"nodeRenamed", []string{"link", "set", device, "name", "other"}, device + " is missing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) {
				n, socket := setup(t)
				if _, err := n.Create(socket, pod); err != nil {
					t.Fatal(err)
				}
				addRoutes(t)
				nettest.Cmd(t, "ip", tc.ip...)
				if err := n.Check(socket, pod); err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("check = %v, want %q", err, tc.want)
				}
			})
		})
	}
}

func TestCreateLeavesNothingWhenItFails(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		n, socket := setup(t)
		clean := func(what string) {
			t.Helper()
			if out := nettest.Cmd(t, "ip", "-br", "link"); strings.Contains(out, "hel") {
				t.Errorf("%s left on the node:\n%s", what, out)
			}
		}
		nettest.Cmd(t, "ip", "-n", "pod", "link", "add", "eth0", "type", "bridge")
		if _, err := n.Create(socket, pod); !errors.Is(err, podnet.ErrPodInterfaceExists) {
			t.Errorf("existing interface: %v", err)
		}
		clean("existing interface")
		nettest.Cmd(t, "ip", "-n", "pod", "link", "del", "eth0")

		nettest.Cmd(t, "ip", "netns", "exec", "pod", "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
		if _, err := n.Create(socket, pod); err == nil || !strings.Contains(err.Error(), "disable_ipv6") {
			t.Errorf("IPv6 disabled: %v", err)
		}
		clean("IPv6 disabled")
		if out := nettest.Cmd(t, "ip", "-n", "pod", "-br", "link"); strings.Contains(out, "eth0") {
			t.Errorf("left in the pod:\n%s", out)
		}

		own, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(own), "own")
		defer func() { _ = f.Close() }()
		if _, err := n.Create(f, pod); !errors.Is(err, podnet.ErrSameNamespace) {
			t.Errorf("own namespace: %v", err)
		}
		r, w, _ := os.Pipe()
		defer func() { _, _ = r.Close(), w.Close() }()
		if _, err := n.Create(r, pod); err == nil {
			t.Error("a pipe was taken for a socket")
		}
		if _, err := n.Create(nil, pod); err == nil {
			t.Error("nothing was taken for a socket")
		}
	})
}

// TestCreateNeedsOnlyNetAdmin drops every capability but CAP_NET_ADMIN on the thread that works.
func TestCreateNeedsOnlyNetAdmin(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		n, socket := setup(t)
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			if err := keepOnlyNetAdmin(); err != nil {
				done <- err
				return
			}
			if ns, err := os.Open("/run/netns/pod"); err == nil && unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET) == nil {
				done <- errors.New("setns still works: the capabilities are not dropped")
				return
			}
			_, err := n.Create(socket, pod)
			if err == nil {
				_ = n.Check(socket, pod)
				err = n.Delete(podnet.HostDevice(pod.Attachment))
			}
			done <- err
		}()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func keepOnlyNetAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_NET_ADMIN, Permitted: 1 << unix.CAP_NET_ADMIN}}
	return unix.Capset(&header, &data[0])
}
