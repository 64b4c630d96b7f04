// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/path"
)

// world is a network in which every other node is answered for: a core with a clock of its own.
type world struct {
	*core
	now   time.Time
	begin time.Time
	rng   *rand.Rand
	seal  *sealer
	rtt   time.Duration
	loss  float64
	// dead says that a packet of this size to the node by the method is lost. Agent says the same of what the
	// agent alone answers.
	dead  func(t path.Key, m path.Method, size int) bool
	agent func(t path.Key) bool
	raw   bool
	due   []arriving // answers on their way
	names map[netip.Addr]path.Key

	questions, padded, bits int
	poked                   int
}

type arriving struct {
	at time.Time
	in inbound
}

var testKey = []byte("0123456789abcdef0123456789abcdef")

func local(f bgp.Family) netip.Addr {
	if f == bgp.IPv6 {
		return netip.MustParseAddr("fd00:244::1")
	}
	return netip.MustParseAddr("10.244.0.1")
}

func newWorld(t testing.TB, seed uint64) *world {
	t.Helper()
	count, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w := &world{
		now: start, begin: start, rng: rand.New(rand.NewPCG(seed, 1)), seal: newSealer(testKey), rtt: time.Millisecond,
		dead: func(path.Key, path.Method, int) bool { return false }, agent: func(path.Key) bool { return false },
		names: map[netip.Addr]path.Key{},
	}
	w.core = newCore(count, rand.NewChaCha8([32]byte{byte(seed)}), w.transmit, func(bgp.Family) bool { return w.raw })
	w.setConfig(Config{Key: testKey, Locals: []netip.Addr{local(bgp.IPv4), local(bgp.IPv6)}}, w.now)
	return w
}

func (w *world) targets(targets []path.Target) {
	for _, t := range targets {
		w.names[t.Remote] = t.Key
	}
	w.setTargets(targets, w.now)
}

// transmit loses the packet, or puts its answer on the way.
func (w *world) transmit(o outbound) error {
	k := w.names[o.remote]
	size := len(o.data) + overhead(k.Family)
	w.questions++
	if size > 200 {
		w.padded++
	}
	outer := 0
	switch o.method {
	case path.VXLAN:
		outer = 50
	case path.IPIP:
		outer = 20
	}
	w.bits += 8 * (size + outer)
	if w.dead(k, o.method, size) || !o.echo && w.agent(k) || w.rng.Float64() < w.loss || w.rng.Float64() < w.loss {
		return nil
	}
	data := slices.Clone(o.data)
	if !o.echo {
		m, err := parse(data)
		if err != nil || !w.seal.verify(data, o.local, o.remote) {
			return fmt.Errorf("bad packet: %w", err)
		}
		m.kind, m.capabilities = answer, path.CanVXLAN
		data = w.seal.append(nil, m, 0, o.remote, o.local)
	}
	w.bits += 8 * (len(data) + overhead(k.Family) + outer)
	w.due = append(w.due, arriving{w.now.Add(w.rtt), inbound{echo: o.echo, local: o.local, remote: o.remote, method: o.method, data: data}})
	return nil
}

// run lets time pass, until then or until done.
func (w *world) run(d time.Duration, done func() bool) bool {
	end := w.now.Add(d)
	for w.now.Before(end) {
		w.step(w.now)
		if w.significant {
			w.significant = false
			w.poked++
		}
		if done != nil && done() {
			return true
		}
		at := w.next(w.now)
		if len(w.due) > 0 && (at.IsZero() || w.due[0].at.Before(at)) {
			at = w.due[0].at
		}
		if at.IsZero() || at.After(end) {
			w.now = end
			break
		}
		if at.After(w.now) {
			w.now = at
		}
		for len(w.due) > 0 && !w.due[0].at.After(w.now) {
			in := w.due[0].in
			w.due = w.due[1:]
			w.receive(in, w.now, false)
		}
	}
	return done != nil && done()
}

func (w *world) verdict(node string, f bgp.Family, m path.Method) path.Verdict {
	return w.report(node, f).Methods[m].Verdict
}

func (w *world) report(node string, f bgp.Family) path.Report {
	return w.snapshot(w.now)[path.Key{Node: node, Family: f}]
}

// nodes makes targets of both families, in racks of equal size.
func nodes(n, racks int, needs [path.Methods]path.Need) []path.Target {
	var out []path.Target
	for i := range n {
		for _, f := range []bgp.Family{bgp.IPv4, bgp.IPv6} {
			t := path.Target{Key: path.Key{Node: fmt.Sprintf("node%d", i), Family: f}, Local: local(f), Needs: needs}
			if racks > 0 {
				t.Group = fmt.Sprintf("rack%d", i%racks)
			}
			t.Remote = netip.AddrFrom4([4]byte{10, 245, byte(i >> 8), byte(i)})
			if f == bgp.IPv6 {
				t.Remote = netip.AddrFrom16([16]byte{0xfd, 0, 14: byte(i >> 8), 15: byte(i)})
			}
			out = append(out, t)
		}
	}
	return out
}

var allNeeds = [path.Methods]path.Need{path.Active, path.Standby, path.Standby}

func thousand() []path.Target {
	targets := nodes(1000, 25, allNeeds)
	for i := range targets {
		targets[i].MTU = [path.Methods]int{1500, 1480, 1450}
	}
	return targets
}

// TestCost: what a node of a cluster of 1,000 spends in steady state.
func TestCost(t *testing.T) {
	w := newWorld(t, 1)
	w.targets(thousand())
	w.run(3*time.Minute, nil)
	w.questions, w.padded, w.bits, w.poked = 0, 0, 0, 0
	start := time.Now()
	const minutes = 10
	w.run(minutes*time.Minute, nil)
	took := time.Since(start)
	per := func(n int) float64 { return float64(n) / (minutes * 60) }
	t.Logf("1,000 nodes: %.1f questions/s and as many answers given; %.1f of them padded", per(w.questions), per(w.padded))
	t.Logf("%.1f kbit/s of own questions and their answers, so %.1f kbit/s each way with those of the others",
		per(w.bits)/1000, per(w.bits)/1000)
	t.Logf("core: %.3f%% of a CPU (this simulation's answers included), %d pokes", 100*took.Seconds()/(minutes*60), w.poked)
	if per(w.questions) > 1.2*budget {
		t.Errorf("%.1f questions/s", per(w.questions))
	}
	if per(w.bits) > 50e3 {
		t.Errorf("%.0f bit/s", per(w.bits))
	}
	for k, r := range w.snapshot(w.now) {
		for m, e := range r.Methods {
			if e.Verdict != path.Answers || e.MTU != [...]int{1500, 1480, 1450}[m] {
				t.Fatalf("%v by %v: %+v", k, path.Method(m), e)
			}
		}
	}
}

// TestRackDies: natively nothing reaches one rack any more.
func TestRackDies(t *testing.T) {
	var worst, sum time.Duration
	const runs = 10
	for seed := range uint64(runs) {
		w := newWorld(t, seed)
		w.targets(thousand())
		w.run(3*time.Minute+time.Duration(seed)*777*time.Millisecond, nil)
		dead := map[string]bool{}
		for i := 7; i < 1000; i += 25 {
			dead[fmt.Sprintf("node%d", i)] = true
		}
		w.dead = func(k path.Key, m path.Method, _ int) bool { return m == path.Native && dead[k.Node] }
		began := w.now
		ok := w.run(time.Minute, func() bool { return w.lostOf(dead) == 2*len(dead) })
		took := w.now.Sub(began)
		if !ok {
			t.Fatalf("seed %d: %d of %d are lost after a minute", seed, w.lostOf(dead), 2*len(dead))
		}
		worst, sum = max(worst, took), sum+took
		w.dead = func(path.Key, path.Method, int) bool { return false }
		began = w.now
		if !w.run(5*time.Minute, func() bool { return w.lostOf(dead) == 0 }) {
			t.Fatalf("seed %d: %d are still lost", seed, w.lostOf(dead))
		}
		if seed == 0 {
			t.Logf("healed: none lost after %v", w.now.Sub(began))
		}
	}
	t.Logf("40 members, both families, all lost: mean %v, worst %v", sum/runs, worst)
	if worst > 15*time.Second {
		t.Errorf("took %v", worst)
	}
}

// lostOf counts the lost native ways of the named nodes.
func (w *world) lostOf(names map[string]bool) int {
	n := 0
	for _, t := range w.list {
		if names[t.Key.Node] && t.report.Methods[path.Native].Verdict == path.Lost {
			n++
		}
	}
	return n
}

// TestLossyNetwork: random loss makes nothing Lost, and does not cost much.
func TestLossyNetwork(t *testing.T) {
	for _, n := range []struct{ nodes, racks int }{{3, 0}, {1000, 25}} {
		w := newWorld(t, 5)
		w.loss = 0.02
		w.targets(nodes(n.nodes, n.racks, allNeeds))
		lost, span := 0, time.Hour
		if testing.Short() {
			span = 5 * time.Minute
		}
		w.run(span, func() bool {
			for _, x := range w.list {
				for _, r := range x.rulings {
					if r.verdict == path.Lost {
						lost++
					}
				}
				if x.silent {
					lost++
				}
			}
			return lost > 0
		})
		t.Logf("%d nodes, 2%% loss each way: %.1f questions/s", n.nodes, float64(w.questions)/w.now.Sub(w.begin).Seconds())
		if lost > 0 {
			t.Errorf("%d nodes: something is lost or silent after %v", n.nodes, w.now.Sub(w.begin))
		}
	}
}
