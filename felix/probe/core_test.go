// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/path"
)

var (
	peer4    = netip.MustParseAddr("10.244.7.1")
	stranger = netip.MustParseAddr("198.51.100.66")
)

// listener is a core that knows one peer and keeps what it sends.
type listener struct {
	*core
	sent     []outbound
	now      time.Time
	registry *prometheus.Registry
}

func newListener(t *testing.T, key []byte) *listener {
	t.Helper()
	registry := prometheus.NewRegistry()
	count, err := newMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	l := &listener{now: epoch, registry: registry}
	l.core = newCore(count, newWorld(t, 1).core.rng, func(o outbound) error {
		o.data = slices.Clone(o.data)
		l.sent = append(l.sent, o)
		return nil
	}, func(bgp.Family) bool { return false })
	l.configure(key)
	return l
}

func (l *listener) configure(key []byte) {
	l.setConfig(Config{
		Key: key, Capabilities: path.CanVXLAN, Locals: []netip.Addr{local(bgp.IPv4)}, Peers: []netip.Addr{peer4},
	}, l.now)
}

func (l *listener) rejected(t *testing.T, reason string) int {
	t.Helper()
	families, err := l.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "heliograph_probe_rejected_total" && m.GetLabel()[0].GetValue() == reason {
				return int(m.GetCounter().GetValue())
			}
		}
	}
	return 0
}

func TestAnswering(t *testing.T) {
	me, seal := local(bgp.IPv4), newSealer(testKey)
	ask := func(s *sealer, from netip.Addr, size int) []byte {
		return s.append(nil, message{kind: question, method: path.VXLAN, nonce: 7}, size, from, me)
	}
	good := ask(seal, peer4, 0)
	for _, c := range []struct {
		name   string
		in     inbound
		reason string // "": answered
	}{
		{"a question", inbound{remote: peer4, method: path.VXLAN, data: good}, ""},
		{"a padded one", inbound{remote: peer4, method: path.VXLAN, data: ask(seal, peer4, 1400)}, ""},
		{"of a stranger with the key", inbound{remote: stranger, method: path.VXLAN, data: ask(seal, stranger, 0)}, rejectSource},
		{"with a forged source", inbound{remote: peer4, method: path.VXLAN, data: ask(seal, stranger, 0)}, rejectMAC},
		{"with another key", inbound{remote: peer4, method: path.VXLAN, data: ask(newSealer([]byte("x")), peer4, 0)}, rejectMAC},
		{"by another device", inbound{remote: peer4, method: path.Native, data: good}, rejectDevice},
		{"cut", inbound{remote: peer4, method: path.VXLAN, data: good[:20]}, errSize.Error()},
		{
			"reflected", inbound{remote: peer4, method: path.VXLAN, data: seal.append(nil, message{kind: question, method: path.VXLAN}, 0, me, peer4)},
			rejectMAC,
		},
		{
			"an answer nobody asked for",
			inbound{remote: peer4, method: path.VXLAN, data: seal.append(nil, message{kind: answer, method: path.VXLAN}, 0, peer4, me)},
			rejectNonce,
		},
	} {
		l := newListener(t, testKey)
		c.in.local = me
		l.receive(c.in, l.now, false)
		if c.reason != "" {
			if len(l.sent) != 0 || l.rejected(t, c.reason) != 1 {
				t.Errorf("%s: %d sent, %d rejected for %s", c.name, len(l.sent), l.rejected(t, c.reason), c.reason)
			}
			continue
		}
		if len(l.sent) != 1 {
			t.Errorf("%s: %d answers", c.name, len(l.sent))
			continue
		}
		a := l.sent[0]
		m, err := parse(a.data)
		want := message{kind: answer, method: path.VXLAN, capabilities: path.CanVXLAN, nonce: 7}
		if err != nil || m != want || a.method != path.VXLAN || a.remote != peer4 || len(a.data) > len(c.in.data) || !seal.verify(a.data, me, peer4) {
			t.Errorf("%s: answered %+v, %+v, %v", c.name, a, m, err)
		}
	}
}

// TestRates: who asks too much is not answered at all for a while, by no method.
func TestRates(t *testing.T) {
	l, seal, me := newListener(t, testKey), newSealer(testKey), local(bgp.IPv4)
	flood := func(n int) int {
		before := len(l.sent)
		for range n {
			l.receive(inbound{local: me, remote: peer4, data: seal.append(nil, message{kind: question}, 0, peer4, me)}, l.now, false)
		}
		return len(l.sent) - before
	}
	if n := flood(1000); n != 2*answersPerAsker {
		t.Errorf("%d answered", n)
	}
	l.now = l.now.Add(time.Second)
	if n := flood(1); n != 0 {
		t.Error("answered while muted")
	}
	l.now = l.now.Add(muteFor)
	if n := flood(1); n != 1 {
		t.Error("still muted")
	}
}

// TestKeyRotation: the other nodes get the new key later than we do.
func TestKeyRotation(t *testing.T) {
	l, me := newListener(t, testKey), local(bgp.IPv4)
	next := []byte("another key of thirty-two bytes!")
	l.configure(next)
	answered := func(key []byte) bool {
		before, s := len(l.sent), newSealer(key)
		l.receive(inbound{local: me, remote: peer4, data: s.append(nil, message{kind: question}, 0, peer4, me)}, l.now, false)
		return len(l.sent) > before && s.verify(l.sent[before].data, me, peer4)
	}
	if !answered(testKey) || !answered(next) {
		t.Error("one of the keys is not answered")
	}
	l.now = l.now.Add(keyGrace + time.Second)
	if answered(testKey) || !answered(next) {
		t.Error("the old key lives on, or the new one does not")
	}
	l.configure(nil)
	if answered(next) {
		t.Error("answered without a key")
	}
}

// TestReplayedAnswer counts once, for its question, target and method.
func TestReplayedAnswer(t *testing.T) {
	l, seal, me := newListener(t, testKey), newSealer(testKey), local(bgp.IPv4)
	key := path.Key{Node: "b", Family: bgp.IPv4}
	l.setTargets([]path.Target{{Key: key, Local: me, Remote: peer4, Needs: [path.Methods]path.Need{path.Native: path.Active, path.VXLAN: path.Active}}}, l.now)
	l.step(l.now)
	if len(l.sent) != 2 {
		t.Fatalf("%d questions", len(l.sent))
	}
	m, err := parse(l.sent[0].data)
	if err != nil {
		t.Fatal(err)
	}
	m.kind, m.method = answer, path.VXLAN
	l.receive(inbound{local: me, remote: peer4, method: path.VXLAN, data: seal.append(nil, m, 0, peer4, me)}, l.now, false)
	if l.rejected(t, rejectNonce) != 1 {
		t.Error("an answer of another method counted")
	}
	m.method = path.Native
	for range 3 {
		l.receive(inbound{local: me, remote: peer4, method: path.Native, data: seal.append(nil, m, 0, peer4, me)}, l.now, false)
	}
	if got := l.snapshot(l.now)[key].Methods[path.Native]; got.Run != 1 || l.rejected(t, rejectNonce) != 3 {
		t.Errorf("%+v", got)
	}
}

// TestScenes: three nodes that share nothing, and what becomes of the verdicts.
func TestScenes(t *testing.T) {
	needs := [path.Methods]path.Need{path.Native: path.Active, path.VXLAN: path.Standby}
	victim := "node0"
	native := func(w *world) path.Verdict { return w.verdict(victim, bgp.IPv4, path.Native) }
	for _, c := range []struct {
		name   string
		raw    bool
		harm   func(w *world)
		want   path.Verdict
		silent bool
		within time.Duration
	}{
		{
			name: "native dies", within: 3 * time.Second, want: path.Lost,
			harm: func(w *world) {
				w.dead = func(k path.Key, m path.Method, _ int) bool { return k.Node == victim && m == path.Native }
			},
		},
		{
			name: "the node dies", raw: true, within: 4 * time.Second, want: path.Unknown, silent: true,
			harm: func(w *world) { w.dead = func(k path.Key, _ path.Method, _ int) bool { return k.Node == victim } },
		},
		{
			name: "its agent dies, we may not ping", within: 4 * time.Second, want: path.Unknown, silent: true,
			harm: func(w *world) { w.agent = func(k path.Key) bool { return k.Node == victim } },
		},
		{
			name: "its agent and native die", raw: true, within: 4 * time.Second, want: path.Lost,
			harm: func(w *world) {
				w.agent = func(k path.Key) bool { return k.Node == victim }
				w.dead = func(k path.Key, m path.Method, _ int) bool { return k.Node == victim && m == path.Native }
			},
		},
	} {
		w := newWorld(t, 3)
		w.raw = c.raw
		w.targets(nodes(2, 0, needs))
		w.run(time.Minute, nil)
		if native(w) != path.Answers {
			t.Fatalf("%s: %v before", c.name, native(w))
		}
		c.harm(w)
		began := w.now
		if !w.run(c.within, func() bool { return native(w) == c.want && w.report(victim, bgp.IPv4).Silent == c.silent }) {
			t.Errorf("%s: %+v", c.name, w.report(victim, bgp.IPv4))
		}
		t.Logf("%s: %v after %v", c.name, c.want, w.now.Sub(began))
		if v := w.verdict("node1", bgp.IPv4, path.Native); v != path.Answers {
			t.Errorf("%s: a bystander is %v", c.name, v)
		}
		w.dead = func(path.Key, path.Method, int) bool { return false }
		w.agent = func(path.Key) bool { return false }
		wronged := false
		healed := w.run(40*time.Second, func() bool {
			e := w.report(victim, bgp.IPv4).Methods
			wronged = wronged || c.silent && (e[path.Native].Verdict == path.Lost || e[path.VXLAN].Verdict == path.Lost)
			return e[path.Native].Verdict == path.Answers && e[path.Native].Run >= path.Window && !e[path.Native].Kernel
		})
		if !healed || wronged {
			t.Errorf("%s: healed: %v, wrongly lost meanwhile: %v", c.name, healed, wronged)
		}
	}
}

// TestAgentRestarts: whenever an agent stops and starts, none of its paths is ever Lost.
func TestAgentRestarts(t *testing.T) {
	for seed := range uint64(40) {
		for _, raw := range []bool{true, false} {
			w := newWorld(t, seed)
			w.raw = raw
			w.targets(nodes(5, 1, allNeeds))
			w.run(time.Minute, nil)
			w.agent = func(k path.Key) bool { return k.Node == "node0" }
			lost := ""
			watch := func() bool {
				for k, r := range w.snapshot(w.now) {
					for m, e := range r.Methods {
						if e.Verdict == path.Lost {
							lost = fmt.Sprintf("%v by %v after %v", k, path.Method(m), w.now.Sub(w.begin))
						}
					}
				}
				return lost != ""
			}
			w.run(time.Duration(seed)*330*time.Millisecond, watch)
			w.agent = func(path.Key) bool { return false }
			w.run(30*time.Second, watch)
			if lost != "" {
				t.Errorf("seed %d, raw %v: %s", seed, raw, lost)
			}
		}
	}
}

// TestStarvedBurst: a loop that is late throws away each round of a burst in which the kernel is asked, until
// the burst ends. Once it has time again, what it had no time for is found out.
func TestStarvedBurst(t *testing.T) {
	const victim = "node0"
	for _, c := range []struct {
		name   string
		harm   func(w *world)
		native path.Verdict
		silent bool
	}{
		{
			name: "the node dies", native: path.Unknown, silent: true,
			harm: func(w *world) { w.dead = func(path.Key, path.Method, int) bool { return true } },
		},
		{
			name: "its agent and native die", native: path.Lost,
			harm: func(w *world) {
				w.agent = func(path.Key) bool { return true }
				w.dead = func(_ path.Key, m path.Method, _ int) bool { return m == path.Native }
			},
		},
	} {
		w := newWorld(t, 1)
		w.raw = true
		w.targets(nodes(1, 0, allNeeds))
		w.run(time.Minute, nil)
		c.harm(w)
		starved := 0
		w.run(time.Minute, func() bool {
			if slices.ContainsFunc(w.open, func(p *probe) bool { return p.sort == echo }) {
				starved++
				w.discard()
			}
			return starved > 0 && len(w.bursts.active) == 0
		})
		if starved < maxRounds/2 {
			t.Fatalf("%s: %d rounds were thrown away: this is no test", c.name, starved)
		}
		began := w.now
		if !w.run(time.Minute, func() bool {
			r := w.report(victim, bgp.IPv4)
			return r.Silent == c.silent && r.Methods[path.Native].Verdict == c.native
		}) {
			t.Errorf("%s: after %v: %+v", c.name, w.now.Sub(began), w.report(victim, bgp.IPv4))
		}
		t.Logf("%s: known after %v", c.name, w.now.Sub(began))
	}
}
