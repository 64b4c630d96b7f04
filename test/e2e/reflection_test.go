// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// reflection is the status of route reflection, as the API tells it.
type reflection struct {
	Mesh       bool   `json:"mesh"`
	Reason     string `json:"reason"`
	Reflectors []struct {
		Node   string `json:"node"`
		State  string `json:"state"`
		Reason string `json:"reason"`
	} `json:"reflectors"`
}

func (r reflection) String() string {
	out := []string{fmt.Sprintf("mesh %t", r.Mesh)}
	for _, x := range r.Reflectors {
		out = append(out, x.Node+" "+x.State)
	}
	return strings.Join(out, ", ")
}

// active are the nodes that reflect; nil while something is under way.
func (r reflection) active() []string {
	var out []string
	for _, x := range r.Reflectors {
		if x.State != "Active" {
			return nil
		}
		out = append(out, x.Node)
	}
	return out
}

func readReflection() (reflection, error) {
	var r reflection
	out, err := try("kubectl", "get", "bgpconfiguration", "default", "-o", "jsonpath={.status.routeReflection}")
	if err != nil || out == "" {
		return r, errors.Join(err, errors.New(out))
	}
	return r, json.Unmarshal([]byte(out), &r)
}

// wantReflectors waits for as many reflectors that have all routes, none of them on the nodes named, and no mesh.
func wantReflectors(t *testing.T, count int, within time.Duration, not ...string) []string {
	t.Helper()
	var nodes []string
	took := eventually(t, within, func() error {
		r, err := readReflection()
		if err != nil {
			return err
		}
		nodes = r.active()
		if r.Mesh || len(nodes) != count || slices.ContainsFunc(nodes, func(n string) bool { return slices.Contains(not, n) }) {
			return fmt.Errorf("%s (%s); want %d, none of %v", r, r.Reason, count, not)
		}
		return nil
	})
	t.Logf("after %s: reflectors %v", took.Round(100*time.Millisecond), nodes)
	return nodes
}

// sessionsByKind counts the established sessions of all speakers, by what their names begin with.
func sessionsByKind(t *testing.T) map[string]int {
	t.Helper()
	kinds := map[string]int{}
	for _, name := range strings.Fields(kubectl(t, "get", "nodestatuses", "-o", `jsonpath={range .items[*]}{range .status.sessions[?(@.state=="Established")]}{.name}{"\n"}{end}{end}`)) {
		kind, _, _ := strings.Cut(name, "/")
		kinds[kind]++
	}
	return kinds
}

// pathChanges is how often each node changed the method of any path, but for those that concern the nodes named.
func pathChanges(t *testing.T, but ...string) string {
	t.Helper()
	var lines []string
	for _, line := range strings.Split(kubectl(t, "get", "nodestatuses", "-o",
		`jsonpath={range .items[*]}{.metadata.name}{range .status.paths[*]} {.node}/{.family}={.method}:{.changes}{end}{"\n"}{end}`), "\n") {
		node, rest, _ := strings.Cut(line, " ")
		if node == "" || slices.Contains(but, node) {
			continue
		}
		paths := slices.DeleteFunc(strings.Fields(rest), func(p string) bool {
			to, _, _ := strings.Cut(p, "/")
			return slices.Contains(but, to)
		})
		lines = append(lines, node+" "+strings.Join(paths, " "))
	}
	return strings.Join(lines, "\n")
}

func wantSamePaths(t *testing.T, before string, but ...string) {
	t.Helper()
	if now := pathChanges(t, but...); now != before {
		t.Errorf("paths changed:\nbefore\n%s\nnow\n%s", before, now)
	}
}

// TestReflection lets the cluster grow out of its mesh, loses reflectors in each way there is, and lets it
// return. No packet is lost and no path changes. Unplugging and deleting a node need one more than carry the
// pods: they are part of it in a lab of 6.
func TestReflection(t *testing.T) {
	a, b := twoPods(t)
	wantAllNative(t)
	n, count := *nodes, min(3, *nodes-1)
	t.Logf("mesh of %d: sessions %v", n, sessionsByKind(t))
	if kinds := sessionsByKind(t); kinds["node"] != n*(n-1) {
		t.Errorf("sessions %v, want %d of the mesh, each seen from both ends", kinds, n*(n-1))
	}
	patch := func(spec string) {
		t.Helper()
		kubectl(t, "patch", "bgpconfiguration", "default", "--type=merge", "-p", spec)
	}
	apply(t, `{apiVersion: heliograph.dev/v1alpha1, kind: BGPConfiguration, metadata: {name: default}}`)
	t.Cleanup(func() {
		patch(`{"spec":{"routeReflection":null}}`)
		eventually(t, time.Minute, func() error {
			r, err := readReflection()
			if err == nil && (!r.Mesh || len(r.Reflectors) > 0) {
				err = fmt.Errorf("%s", r)
			}
			return err
		})
	})

	var reflectors []string
	during := func(what string, but []string, change func()) {
		t.Helper()
		t.Log(what)
		before, pings := pathChanges(t, but...), pingBothWays(t, a, b, 3*time.Minute)
		change()
		wantNoneLost(t, pings)
		wantSamePaths(t, before, but...)
	}
	during("the cluster outgrows the mesh", nil, func() {
		patch(fmt.Sprintf(`{"spec":{"routeReflection":{"meshThreshold":%d,"count":%d}}}`, n-1, count))
		reflectors = wantReflectors(t, count, time.Minute)
		eventually(t, 20*time.Second, func() error {
			if kinds := sessionsByKind(t); kinds["node"] != 0 || kinds["reflector"] != n*count {
				return fmt.Errorf("sessions %v, want none of the mesh and %d with reflectors", kinds, n*count)
			}
			return nil
		})
		t.Logf("sessions %v", sessionsByKind(t))
	})
	during("a router becomes a client of the reflectors", nil, func() { wantRouterServed(t, reflectors) })
	during(fmt.Sprintf("the agents of all reflectors, %v, are killed at once", reflectors), reflectors, func() {
		killAll(t, reflectors)
		kubectl(t, "-n", "heliograph-system", "rollout", "status", "--timeout=120s", "daemonset/heliograph-agent")
		wantReflectors(t, count, time.Minute)
	})
	drained := reflectors[1]
	during("reflector "+drained+" is drained", nil, func() {
		kubectl(t, "cordon", drained)
		t.Cleanup(func() { kubectl(t, "uncordon", drained) })
		reflectors = wantReflectors(t, count, time.Minute, drained)
	})
	var lost []string
	if n >= 6 {
		lost = loseNodes(t, reflectors, count, []string{drained, a.node, b.node}, during)
	}
	during("the cluster returns to the mesh", lost, func() {
		patch(`{"spec":{"routeReflection":{"meshThreshold":50}}}`)
		took := eventually(t, time.Minute, func() error {
			r, err := readReflection()
			if err == nil && (!r.Mesh || len(r.Reflectors) > 0) {
				err = fmt.Errorf("%s", r)
			}
			return err
		})
		t.Logf("after %s: mesh, sessions %v", took.Round(100*time.Millisecond), sessionsByKind(t))
	})
}

// loseNodes unplugs the node of one reflector and deletes that of another, and returns both. The lab has to
// be made anew after it.
func loseNodes(t *testing.T, reflectors []string, count int, keep []string, during func(string, []string, func())) (lost []string) {
	t.Helper()
	victim := func() string {
		for _, r := range reflectors {
			if !slices.Contains(keep, r) {
				return r
			}
		}
		t.Skip("no reflector is on a node that the test can do without")
		return ""
	}
	unplugged := victim()
	during("the cable of reflector "+unplugged+" is pulled", []string{unplugged}, func() {
		leaf := "leaf1"
		if unplugged > "node2" {
			leaf = "leaf2"
		}
		lab(t, "exec", leaf, "ip", "link", "set", unplugged, "down")
		t.Cleanup(func() { lab(t, "exec", leaf, "ip", "link", "set", unplugged, "up") })
		reflectors = wantReflectors(t, count, 2*time.Minute, unplugged)
	})
	keep = append(keep, unplugged)
	deleted := victim()
	during("the Node of reflector "+deleted+" is deleted", []string{unplugged, deleted}, func() {
		kubectl(t, "delete", "node", deleted)
		reflectors = wantReflectors(t, min(count, 6-3), time.Minute, deleted)
	})
	return []string{unplugged, deleted}
}

// killAll kills the agents of nodes with SIGKILL, before any of them can come back.
func killAll(t *testing.T, nodes []string) {
	t.Helper()
	pids := map[string]string{}
	for _, n := range nodes {
		pids[n] = agentPID(t, n)
	}
	var kills []*background
	for n, pid := range pids {
		kills = append(kills, start(t, "exec", n, "kill", "-9", pid))
	}
	for _, k := range kills {
		k.wait(t)
	}
	for n, before := range pids {
		eventually(t, time.Minute, func() error {
			if pid := agentPID(t, n); pid == before {
				return fmt.Errorf("the agent of %s still has pid %s", n, pid)
			}
			return nil
		})
	}
}

// wantRouterServed makes the spine, in a BGP instance of its own, a client of the reflectors: it learns every
// block of the cluster with its node as next hop, and what it may announce is reflected, and nothing else.
func wantRouterServed(t *testing.T, reflectors []string) {
	t.Helper()
	const address = "192.168.10.1"
	apply(t, `{apiVersion: heliograph.dev/v1alpha1, kind: BGPPeer, metadata: {name: edge},
		spec: {peerIP: 192.168.10.1, asNumber: 64512, reflectorClient: true, acceptPrefixes: [172.31.0.0/16]}}`)
	t.Cleanup(func() { kubectl(t, "delete", "bgppeer", "edge", "--ignore-not-found") })
	configure := []string{
		"configure terminal", "router bgp 64512 view edge", "bgp router-id 192.168.10.254", "no bgp default ipv4-unicast", "no bgp network import-check",
		"address-family ipv4 unicast", "network 172.31.1.0/24", "network 172.30.1.0/24", "exit-address-family",
	}
	for _, r := range reflectors {
		ip, err := try("kubectl", "get", "node", r, "-o", `jsonpath={.status.addresses[0].address}`)
		if err != nil {
			t.Fatal(err)
		}
		n := "neighbor " + ip + " "
		configure = append(configure, n+"remote-as 64512", n+"port 1179", n+"update-source "+address, n+"timers connect 1",
			"address-family ipv4 unicast", n+"activate", "exit-address-family", "address-family ipv6 unicast", n+"activate", "exit-address-family")
	}
	vtysh := []string{"exec", "spine", "vtysh"}
	for _, c := range configure {
		vtysh = append(vtysh, "-c", c)
	}
	lab(t, vtysh...)
	t.Cleanup(func() {
		lab(t, "exec", "spine", "vtysh", "-c", "configure terminal", "-c", "no router bgp 64512 view edge")
	})
	blocks := strings.Fields(kubectl(t, "get", "ipblocks", "-o", `jsonpath={range .items[*]}{.spec.cidr}{"\n"}{end}`))
	took := eventually(t, 30*time.Second, func() error {
		table := lab(t, "exec", "spine", "vtysh", "-c", "show bgp view edge ipv4 unicast", "-c", "show bgp view edge ipv6 unicast")
		for _, b := range blocks {
			if !strings.Contains(table, b) {
				return fmt.Errorf("the router does not know %s:\n%s", b, table)
			}
		}
		return nil
	})
	t.Logf("after %s the router knows all %d blocks", took.Round(100*time.Millisecond), len(blocks))
	eventually(t, 20*time.Second, func() error {
		out, err := nodeStatus(reflectors[0], `{range .status.reflector.sessions[?(@.name=="peer/edge")]}{.state} in {.prefixesIn} rejected {.rejected}{end}`)
		if want := "Established in 1 rejected 1"; err == nil && out != want {
			err = fmt.Errorf("session with the router: %q, want %q", out, want)
		}
		return err
	})
}
