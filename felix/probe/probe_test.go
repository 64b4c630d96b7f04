// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/path"
)

// slowSockets answer every question unless they are dead, and let the process sleep when told to.
type slowSockets struct {
	now    time.Time
	sleep  time.Duration // the next Wait takes so much longer
	dead   bool
	seal   *sealer
	queue  []inbound
	bound  []netip.Addr
	failed error
}

func (s *slowSockets) Bind(locals []netip.Addr, _ uint16) error {
	s.bound = locals
	return s.failed
}
func (s *slowSockets) Able(bgp.Family) bool { return false }
func (s *slowSockets) Wake()                {}
func (s *slowSockets) Close()               {}

func (s *slowSockets) Send(o outbound) error {
	if s.dead {
		return nil
	}
	m, err := parse(o.data)
	if err != nil {
		return err
	}
	m.kind = answer
	s.queue = append(s.queue, inbound{local: o.local, remote: o.remote, method: o.method, data: s.seal.append(nil, m, 0, o.remote, o.local)})
	return nil
}

func (s *slowSockets) Wait(d time.Duration) {
	if len(s.queue) > 0 && s.sleep == 0 {
		d = min(d, time.Millisecond)
	}
	s.now = s.now.Add(max(0, d) + s.sleep)
	s.sleep = 0
}

func (s *slowSockets) Receive(f func(inbound)) {
	for _, in := range s.queue {
		f(in)
	}
	s.queue = nil
}

// TestStalled: what this process sleeps through is nobody's loss, whether the answer came or not.
func TestStalled(t *testing.T) {
	for _, c := range []struct {
		name   string
		dead   bool // the question that is under way is lost
		sleep  time.Duration
		lost   int
		answer bool
	}{
		{"answered meanwhile", false, 5 * time.Second, 0, true},
		{"not answered meanwhile", true, 5 * time.Second, 0, false},
		{"a little late, answered", false, 250 * time.Millisecond, 0, true},
		{"in time, not answered", true, 0, 1, false},
	} {
		s := &slowSockets{now: epoch, seal: newSealer(testKey)}
		p, err := New(Options{now: func() time.Time { return s.now }}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		p.sockets = s
		key := path.Key{Node: "b", Family: bgp.IPv4}
		p.SetConfig(Config{Key: testKey, Locals: []netip.Addr{local(bgp.IPv4)}})
		p.SetTargets([]path.Target{{Key: key, Local: local(bgp.IPv4), Remote: peer4, Needs: [path.Methods]path.Need{path.Native: path.Active}}})
		way := func() *track { return &p.core.targets[key].ways[path.Native].udp }
		for p.core.list == nil || way().run < 7 {
			p.turn()
		}
		before := way().count
		s.dead, s.sleep = c.dead, 0
		for way().open == 0 { // until a question is under way and the loop waits for its answer
			s.sleep = 0
			p.core.step(s.now)
			s.now = s.now.Add(10 * time.Millisecond)
		}
		s.sleep = c.sleep
		p.turn()
		s.sleep = 0
		p.core.step(s.now)
		if way().count-before > 1 {
			t.Errorf("%s: %d outcomes", c.name, way().count-before)
		}
		if e := way().evidence(); e.Lost != c.lost || c.answer != (way().answered && way().count > before) {
			t.Errorf("%s: %+v", c.name, e)
		}
	}
}

// TestChanged: pokes tell of what matters, not of each answer.
func TestChanged(t *testing.T) {
	s := &slowSockets{now: epoch, seal: newSealer(testKey)}
	p, err := New(Options{now: func() time.Time { return s.now }}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	p.sockets = s
	key := path.Key{Node: "b", Family: bgp.IPv4}
	p.SetConfig(Config{Key: testKey, Locals: []netip.Addr{local(bgp.IPv4)}})
	p.SetTargets([]path.Target{{Key: key, Local: local(bgp.IPv4), Remote: peer4, Needs: [path.Methods]path.Need{path.Native: path.Active}}})
	var runs []int
	for end := epoch.Add(time.Minute); s.now.Before(end); {
		p.turn()
		select {
		case <-p.Changed():
			runs = append(runs, p.Reports()[key].Methods[path.Native].Run)
		default:
		}
	}
	if want := []int{1, 5}; !slices.Equal(runs, want) {
		t.Errorf("poked at runs of %v, want %v", runs, want)
	}
	if got := p.Reports()[key].Methods[path.Native].Run; got < 50 {
		t.Errorf("the report is old: a run of %d", got)
	}
	p.SetConfig(Config{})
	p.turn()
	if len(s.bound) != 0 {
		t.Error("listens without a key")
	}
	p.turn()
	if got := p.Reports()[key].Methods[path.Native]; got != (path.Evidence{Verdict: path.Unknown, LastAnswer: got.LastAnswer, RTT: got.RTT}) {
		t.Errorf("without a key: %+v", got)
	}
}
