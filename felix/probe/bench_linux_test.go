// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/path"
)

// BenchmarkQuestion is one question and its answer on loopback, by real sockets: what one node spends on a
// question of its own and one of another node.
func BenchmarkQuestion(b *testing.B) {
	made, err := openSockets([path.Methods]uint32{}, func(int) path.Method { return path.Native })
	if err != nil {
		b.Fatal(err)
	}
	defer made.Close()
	p, err := New(Options{}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	me, other := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	if err := made.Bind([]netip.Addr{me, other}, 47930); err != nil {
		b.Fatal(err)
	}
	p.sockets = made
	now := time.Now()
	p.core.setConfig(Config{Key: testKey, Locals: []netip.Addr{me}, Peers: []netip.Addr{me, other}}, now)
	key := path.Key{Node: "b", Family: bgp.IPv4}
	p.core.setTargets([]path.Target{{Key: key, Local: me, Remote: other, Needs: [path.Methods]path.Need{path.Active}}}, now)
	w := &p.core.targets[key].ways[path.Native]
	for b.Loop() {
		p.core.desk.peers[me].bucket.at = time.Time{} // without the limit
		p.core.desk.total.at = time.Time{}
		p.core.ask(w, small, 0, time.Now())
		for w.udp.open > 0 {
			made.Wait(time.Second)
			made.Receive(func(in inbound) { p.core.receive(in, time.Now(), false) })
		}
	}
	if w.udp.run != w.udp.count {
		b.Errorf("some were lost: %+v", w.udp.evidence())
	}
}
