// SPDX-License-Identifier: Apache-2.0

//go:build linux

package interop

import (
	"strings"
	"testing"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/bgp/speaker"
)

const (
	atTor  = "10.1.0.0/24>192.168.11.1 fd00:1::/64>fd00:11::1"
	atNode = "10.250.0.0/24>192.168.11.254 fd00:250::/64>fd00:11::fe"
)

func TestFRR(t *testing.T)             { isolate(t, func(t *testing.T) { both(t, &frr{}, "") }) }
func TestFRRWithPassword(t *testing.T) { isolate(t, func(t *testing.T) { both(t, &frr{}, "sesame") }) }
func TestFRRKeepsRoutes(t *testing.T) {
	isolate(t, func(t *testing.T) { nodeKilled(t, &frr{}, node("")) })
}
func TestFRRRestarts(t *testing.T)   { isolate(t, func(t *testing.T) { routerKilled(t, &frr{}) }) }
func TestFRRSeesUsStop(t *testing.T) { isolate(t, func(t *testing.T) { nodeStops(t, &frr{}) }) }
func TestBIRD(t *testing.T)          { isolate(t, func(t *testing.T) { both(t, &bird{}, "") }) }
func TestBIRDWithPassword(t *testing.T) {
	isolate(t, func(t *testing.T) { both(t, &bird{}, "sesame") })
}
func TestBIRDKeepsRoutes(t *testing.T) {
	isolate(t, func(t *testing.T) { nodeKilled(t, &bird{}, node("")) })
}
func TestBIRDSeesUsStop(t *testing.T) { isolate(t, func(t *testing.T) { nodeStops(t, &bird{}) }) }
func TestBIRDRestarts(t *testing.T)   { isolate(t, func(t *testing.T) { routerKilled(t, &bird{}) }) }

// both: routes of both families appear on both sides of the one IPv4 session, each with a global
// next hop of its own family; the router's kernel takes them; an administrative shutdown ends them.
func both(t *testing.T, r router, password bgp.Password) {
	r.start(t, password)
	explain(t, r)
	s := started(t, node(password))
	wait(t, "routes at the node", func() string { return routes(s) }, atNode)
	wait(t, "routes in the router's kernel", func() string { return kernel(t) }, atTor)
	wait(t, "end of rib", func() string { return ends(s) }, "IPv4 IPv6")

	r.shutdown(t)
	wait(t, "no route at the node", func() string { return routes(s) }, "")
	wait(t, "no route at the router", func() string { return kernel(t) }, "")
	if got := s.Snapshot().Sessions[0]; got.Flaps != 1 || !strings.HasPrefix(got.LastError, "received Cease/Administrative Shutdown: maintenance") {
		t.Errorf("session = %+v", got)
	}
}

// nodeKilled: the speaker's process dies by kill -9, comes back, and the router's kernel never loses
// a route; it dies again, and comes back with less.
func nodeKilled(t *testing.T, r router, desired bgp.Desired) {
	r.start(t, "")
	explain(t, r)
	p := startProcess(t, desired)
	wait(t, "routes at the node", p.routes, atNode)
	wait(t, "routes in the router's kernel", func() string { return kernel(t) }, atTor)

	m := watchKernel(t)
	for range 2 {
		p.kill()
		desired.Global.Restarting = true
		p = startProcess(t, desired)
		wait(t, "routes at the node, again", p.routes, atNode)
		if got := kernel(t); got != atTor {
			t.Errorf("routes in the router's kernel: %q", got)
		}
		if lost := m.deleted(); len(lost) > 0 {
			t.Errorf("the router lost routes:\n%s", strings.Join(lost, ""))
		}
	}
	p.kill()
	desired.Origins = desired.Origins[:1]
	_ = startProcess(t, desired)
	wait(t, "one route to go", func() string { return kernel(t) }, "10.1.0.0/24>192.168.11.1")
}

// nodeStops: a graceful stop leaves the routes in the router's kernel, another takes them out.
func nodeStops(t *testing.T, r router) {
	r.start(t, "")
	explain(t, r)
	desired := node("")
	s := started(t, desired)
	wait(t, "routes in the router's kernel", func() string { return kernel(t) }, atTor)
	m := watchKernel(t)
	if err := s.Stop(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	desired.Global.Restarting = true
	next := started(t, desired) // as the next process would
	wait(t, "routes at the next speaker", func() string { return routes(next) }, atNode)
	wait(t, "end of rib", func() string { return ends(next) }, "IPv4 IPv6")
	if lost := m.deleted(); len(lost) > 0 {
		t.Errorf("the router lost routes:\n%s", strings.Join(lost, ""))
	}
	if err := next.Stop(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	wait(t, "no route at the router", func() string { return kernel(t) }, "")
}

// routerKilled: the router's daemon dies by kill -9 and comes back; the node has its routes all the
// while.
func routerKilled(t *testing.T, r router) {
	r.start(t, "")
	explain(t, r)
	s := started(t, node(""))
	wait(t, "routes at the node", func() string { return routes(s) }, atNode)
	wait(t, "routes in the router's kernel", func() string { return kernel(t) }, atTor)

	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			if got := strings.ReplaceAll(routes(s), "!stale", ""); got != atNode {
				t.Errorf("routes at the node: %q", got)
				return
			}
			select {
			case <-s.Changed():
			case <-stop:
				return
			}
		}
	}()
	m := watchKernel(t)
	r.kill(t)
	wait(t, "stale routes", func() string { return routes(s) }, strings.ReplaceAll(atNode+" ", " ", "!stale ")[:len(atNode)+12])
	r.resume(t)
	wait(t, "fresh routes", func() string { return routes(s) }, atNode)
	wait(t, "routes in the router's kernel", func() string { return kernel(t) }, atTor)
	close(stop)
	<-done
	t.Logf("deletions in the router's own kernel meanwhile: %q", m.deleted())
}

func ends(s *speaker.Speaker) string {
	var out []string
	for _, f := range s.Snapshot().Sessions[0].EndOfRIB {
		out = append(out, f.String())
	}
	return strings.Join(out, " ")
}

// explain prints the router's view of a test that failed.
func explain(t *testing.T, r router) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.debug(t))
		}
	})
}
