// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net/netip"
	"time"
)

// How many questions are answered per second. One asker in doubt asks three methods each 200 ms and may
// measure the MTU meanwhile; the sum is what a whole cluster in doubt about this node would ask.
const (
	answersPerAsker = 30
	answersInAll    = 2000
	muteFor         = 2 * time.Second
)

// desk decides whose questions are answered. Who asks too much, or asks while all together ask too much, is
// not answered at all for a while: if every other question were answered, it might be that the lost ones are
// of one method, and a busy node would look like a broken path.
type desk struct {
	peers map[netip.Addr]*asker
	total bucket
}

type asker struct {
	bucket bucket
	muted  time.Time // until then
}

func newDesk() *desk {
	return &desk{total: bucket{rate: answersInAll, size: answersInAll}}
}

// setPeers sets who may ask. Who could before keeps its account.
func (d *desk) setPeers(peers []netip.Addr) {
	old := d.peers
	d.peers = make(map[netip.Addr]*asker, len(peers))
	for _, a := range peers {
		a = a.Unmap()
		if d.peers[a] = old[a]; d.peers[a] == nil {
			d.peers[a] = &asker{bucket: bucket{rate: answersPerAsker, size: 2 * answersPerAsker}}
		}
	}
}

func (d *desk) knows(a netip.Addr) bool { return d.peers[a] != nil }

// admit says whether a question of a known address is answered now.
func (d *desk) admit(a netip.Addr, now time.Time) bool {
	p := d.peers[a]
	if p == nil || now.Before(p.muted) {
		return false
	}
	if !p.bucket.take(now, 1) || !d.total.take(now, 1) {
		p.muted = now.Add(muteFor)
		return false
	}
	return true
}
