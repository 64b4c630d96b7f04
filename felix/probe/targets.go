// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net/netip"
	"time"

	"github.com/heliograph-dev/heliograph/felix/path"
)

// setTargets takes whom to ask. A target that was there keeps what is known of it, a way that was off begins
// anew.
func (c *core) setTargets(targets []path.Target, now time.Time) {
	old := c.targets
	c.targets = make(map[path.Key]*target, len(targets))
	c.byAddr = make(map[netip.Addr]*target, len(targets))
	c.list = c.list[:0]
	nodes := map[string]bool{}
	for _, in := range targets {
		in.Remote = in.Remote.Unmap()
		if c.targets[in.Key] != nil || !in.Remote.IsValid() {
			continue
		}
		t := old[in.Key]
		if t == nil || t.Remote != in.Remote {
			t = newTarget(in)
		}
		c.update(t, in, now)
		c.targets[in.Key], c.byAddr[in.Remote] = t, t
		c.list = append(c.list, t)
		nodes[in.Key.Node] = true
	}
	for k, t := range old {
		if c.targets[k] != t {
			c.retire(t, now)
		}
	}
	c.arrange(1+len(nodes), now)
	for _, t := range c.list {
		c.rule(t, now)
		c.touch(t)
	}
	c.dirty = true
}

func newTarget(in path.Target) *target {
	t := &target{Target: in}
	t.retry.of = t
	for i := range t.ways {
		t.ways[i].target, t.ways[i].method = t, path.Method(i)
	}
	return t
}

// update takes what changed about a target.
func (c *core) update(t *target, in path.Target, now time.Time) {
	for i := range t.ways {
		w := &t.ways[i]
		if w.need == path.Off && in.Needs[i] != path.Off {
			w.udp.forget()
			w.icmp.forget()
		}
		if w.need != path.Off && in.Needs[i] == path.Off || t.MTU[i] != in.MTU[i] {
			c.abortSizing(w, now)
			w.sizing = sizing{}
		}
		w.rising = w.rising || in.Needs[i] > w.need
		if w.need = in.Needs[i]; w.need == path.Off {
			w.climb = false
		}
	}
	t.Target = in
	t.local = c.localOf(t)
}

// retire lets go of a target. Its open questions end as nobody's.
func (c *core) retire(t *target, now time.Time) {
	for i := range t.ways {
		w := &t.ways[i]
		c.abortSizing(w, now)
		w.need, w.climb = path.Off, false
	}
	c.pool.remove(&t.retry)
	c.endBurst(t, now)
	c.pool.remove(&t.retry)
}
