// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// status is the answer of kubectl for one field of a NodeStatus.
func nodeStatus(node, jsonPath string) (string, error) {
	return try("kubectl", "get", "nodestatus", node, "-o", "jsonpath="+jsonPath)
}

// wantPaths waits until a node reaches another by a method, in both families.
func wantPaths(t *testing.T, from, to, method string, within time.Duration) {
	t.Helper()
	eventually(t, within, func() error {
		out, err := nodeStatus(from, fmt.Sprintf(`{range .status.paths[?(@.node=="%s")]}{.family}={.method} {end}`, to))
		if err != nil {
			return err
		}
		if want := fmt.Sprintf("IPv4=%s IPv6=%s ", method, method); out != want {
			return fmt.Errorf("paths from %s to %s are %q, want %q", from, to, out, want)
		}
		return nil
	})
}

func wantAllNative(t *testing.T) {
	t.Helper()
	for _, pair := range [][2]string{{"node1", "node3"}, {"node2", "node3"}, {"node3", "node1"}, {"node3", "node2"}, {"node1", "node2"}, {"node2", "node1"}} {
		wantPaths(t, pair[0], pair[1], "Native", time.Minute)
	}
}

// curl asks the server of a pod for its name, from another pod.
func curl(from pod, host string) error {
	out, err := try(from.in("curl", "-sS", "-m", "5", "http://"+host+":8080/hostname")...)
	if err != nil {
		return err
	}
	if out == "" {
		return fmt.Errorf("%s answers nothing", host)
	}
	return nil
}

// TestNativeAcrossRacks is the main job: pods in two racks reach each other over routes that the
// fabric learned by BGP, without encapsulation.
func TestNativeAcrossRacks(t *testing.T) {
	a, b := twoPods(t)
	wantAllNative(t)
	dump := capture(t, "spine", fmt.Sprintf("host %s or host %s or udp port 4789", a.ip4, a.ip6))
	for _, target := range []struct {
		from pod
		host string
	}{
		{a, b.ip4.String()}, {a, "[" + b.ip6.String() + "]"}, {b, a.ip4.String()}, {b, "[" + a.ip6.String() + "]"},
	} {
		if err := curl(target.from, target.host); err != nil {
			t.Error(err)
		}
	}
	for _, to := range []string{b.ip4.String(), b.ip6.String()} {
		lab(t, a.in("ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", to)...)
	}
	seen := dump.stop()
	for _, want := range []string{a.ip4.String(), b.ip4.String(), a.ip6.String(), b.ip6.String()} {
		if !strings.Contains(seen, want) {
			t.Errorf("the spine did not see %s:\n%s", want, seen)
		}
	}
	if inner := encapsulated(seen, a, b); len(inner) > 0 {
		t.Errorf("the spine saw encapsulation:\n%s", strings.Join(inner, "\n"))
	}
}

// encapsulated are the packets of pods that tcpdump saw in VXLAN: it prints them below the outer ones. What
// agents send each other to try the tunnels is not among them.
func encapsulated(seen string, pods ...pod) (inner []string) {
	lines := strings.Split(seen, "\n")
	for i := 1; i < len(lines); i++ {
		if !strings.Contains(lines[i-1], "VXLAN") {
			continue
		}
		for _, p := range pods {
			if words := lines[i] + " "; strings.Contains(words, " "+p.ip4.String()+" ") || strings.Contains(words, " "+p.ip4.String()+".") ||
				strings.Contains(words, " "+p.ip6.String()+" ") || strings.Contains(words, " "+p.ip6.String()+".") {
				inner = append(inner, lines[i])
			}
		}
	}
	return inner
}

// capture runs tcpdump on a host of the lab.
func capture(t *testing.T, host, filter string) *background {
	t.Helper()
	d := start(t, "exec", host, "tcpdump", "-l", "-n", "-i", "any", filter)
	eventually(t, 10*time.Second, func() error {
		if !strings.Contains(d.out.String(), "listening on") {
			return fmt.Errorf("tcpdump says %q", d.out.String())
		}
		return nil
	})
	return d
}

func TestRoutersKnowThePodBlocks(t *testing.T) {
	wantAllNative(t)
	for node, leaf := range map[string]string{"node1": "leaf1", "node2": "leaf1", "node3": "leaf2"} {
		nextHop := map[string]string{"node1": "192.168.11.11", "node2": "192.168.11.12", "node3": "192.168.12.13"}[node]
		nextHop6 := map[string]string{"node1": "fd00:11::11", "node2": "fd00:11::12", "node3": "fd00:12::13"}[node]
		cidrs := strings.Fields(kubectl(t, "get", "ipblocks", "-l", "heliograph.dev/node="+node, "-o", "jsonpath={.items[*].spec.cidr}"))
		if len(cidrs) < 2 {
			t.Errorf("%s holds %v, want a block of each family", node, cidrs)
		}
		for _, cidr := range cidrs {
			family, want := "ipv4", nextHop
			if strings.Contains(cidr, ":") {
				family, want = "ipv6", nextHop6
			}
			out := lab(t, "exec", leaf, "vtysh", "-c", "show bgp "+family+" unicast "+cidr)
			if !strings.Contains(out, want) {
				t.Errorf("%s on %s has no next hop %s:\n%s", cidr, leaf, want, out)
			}
		}
	}
}

// neighbor shuts node3 on its leaf, or takes that back.
func neighbor(t *testing.T, no string) {
	t.Helper()
	lab(t, "exec", "leaf2", "vtysh", "-c", "configure terminal", "-c", "router bgp 65102", "-c", no+"neighbor 192.168.12.13 shutdown")
}

// TestFallsBackToVXLANAndReturns shuts the session between node3 and its leaf while pods ping each
// other every 10 ms.
func TestFallsBackToVXLANAndReturns(t *testing.T) {
	a, b := twoPods(t)
	wantAllNative(t)
	t.Cleanup(func() { neighbor(t, "no ") })
	if mtu := strings.TrimSpace(lab(t, a.in("cat", "/sys/class/net/eth0/mtu")...)); mtu != "1500" {
		t.Errorf("the MTU of a pod is %s, want the fabric's own 1500", mtu)
	}
	wantFullSize(t, a, b)
	pings := pingBothWays(t, a, b, time.Minute)
	dump := capture(t, "spine", "udp port 4789")
	neighbor(t, "")
	wantPaths(t, "node1", "node3", "VXLAN", 30*time.Second)
	wantPaths(t, "node3", "node1", "VXLAN", 30*time.Second)
	for _, host := range []string{b.ip4.String(), "[" + b.ip6.String() + "]"} {
		if err := curl(a, host); err != nil {
			t.Errorf("over VXLAN: %v", err)
		}
	}
	wantTooBig(t, a, b)
	if seen := strings.Join(encapsulated(dump.stop(), a), "\n"); !strings.Contains(seen, a.ip4.String()) || !strings.Contains(seen, a.ip6.String()) {
		t.Errorf("the spine saw no VXLAN between the pods:\n%.2000s", seen)
	}
	wantShortGaps(t, "shutdown", pings, 2*time.Second)
	pings = pingBothWays(t, a, b, time.Minute)
	neighbor(t, "no ")
	wantPaths(t, "node1", "node3", "Native", time.Minute)
	wantPaths(t, "node3", "node1", "Native", time.Minute)
	wantShortGaps(t, "return", pings, 300*time.Millisecond)
	wantSaid(t, "PathVXLAN", "events", "-n", "default", "--field-selector", "involvedObject.name=node1")
}

// wantFullSize sends packets of 1500 bytes that must not be fragmented. First the pod forgets what an
// earlier fallback has taught it.
func wantFullSize(t *testing.T, from, to pod) {
	t.Helper()
	lab(t, from.in("ip", "-4", "route", "flush", "cache")...)
	lab(t, from.in("ip", "-6", "route", "flush", "cache")...)
	for ip, payload := range map[string]string{to.ip4.String(): "1472", to.ip6.String(): "1452"} {
		lab(t, from.in("ping", "-n", "-M", "do", "-c", "3", "-i", "0.2", "-W", "2", "-s", payload, ip)...)
	}
}

// wantTooBig sends the same by a tunnel: the node itself tells the pod how large a packet may be, and one
// that is no larger comes through.
func wantTooBig(t *testing.T, from, to pod) {
	t.Helper()
	for ip, payload := range map[string][2]string{to.ip4.String(): {"1472", "1422"}, to.ip6.String(): {"1452", "1402"}} {
		out, err := try(from.in("ping", "-n", "-M", "do", "-c", "3", "-i", "0.2", "-W", "2", "-s", payload[0], ip)...)
		if err == nil || !strings.Contains(out+err.Error(), "1450") {
			t.Errorf("a packet of 1500 bytes to %s by VXLAN: %v %s; want to be told of 1450", ip, err, out)
		}
		lab(t, from.in("ping", "-n", "-M", "do", "-c", "3", "-i", "0.2", "-W", "2", "-s", payload[1], ip)...)
	}
}

// wantShortGaps stops the pingers and prints what a change of path cost. The routers take 50 ms each
// to pass a withdrawal on, and more on a busy machine; the agent itself a few. What must not happen
// is that somebody waits for a timer, or that a return, which has both ways open, is noticed at all
// but for the moment between a router's announcement and its own forwarding table.
func wantShortGaps(t *testing.T, what string, pings []*pinger, limit time.Duration) {
	t.Helper()
	for _, p := range pings {
		r := p.stop(t)
		t.Logf("ping %s over the %s: %d sent, %d lost, longest gap %s", p.name, what, r.sent, r.lost(), r.gap)
		if r.gap > limit {
			t.Errorf("ping %s: a gap of %s over the %s; want at most %s", p.name, r.gap, what, limit)
		}
	}
}
