// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"net/netip"
)

// source is who sends routes: one neighbour through all its sessions.
type source struct {
	id        uint32 // the path identifier of add-paths (RFC 7911); never used again
	peer      string
	addr      netip.Addr
	nonClient bool
	paths     [families]pathList
	rejected  int64
	octets    int // that its paths take, about
}

// pathOctets is what a path takes beside its attributes: dest, path, and their place in maps.
const pathOctets = 256

// weight is what a path with these attributes takes, about. Attributes that are shared are counted for
// each: who shares them would need them alone as well.
func (a *attrs) weight() int { return pathOctets + 2*len(a.key) }

// pathList has the paths of one source, so that losing it costs what it had, not what there is.
type pathList struct {
	first *path
	n     int
}

// dest is a prefix that somebody announces, or that clients have yet to be told is gone.
type dest struct {
	prefix prefix
	paths  *path // by source
	best   *path // nil until decide, or if there is none
	// sent is the source of the path that the last flush told of; nil: none.
	sent  *source
	dirty bool
	// gone has the sources whose paths went since the last flush, for groups with add-paths.
	gone []*source
	// one is the memory of a path: nearly all prefixes have one, and two objects would cost twice.
	one path
}

func (d *dest) has(from *source) bool {
	for x := d.paths; x != nil; x = x.next {
		if x.from == from {
			return true
		}
	}
	return false
}

// path is a route of one source.
type path struct {
	dest  *dest
	from  *source
	attrs *attrs
	next  *path // of dest
	// In from's list.
	before, after *path
	stale         bool // RFC 4724 §4.2
	fresh         bool // changed since the last flush
	told          bool // a flush has told of it
}

// table has the routes of one family, and the interned attributes of all. The core owns it.
type table struct {
	family family
	dests  map[prefix]*dest
	dirty  []*dest
	gone   bool // someone wants to know of single paths: dest.gone is kept
}

// pool interns attributes.
type pool struct {
	byKey  map[string]*attrs
	octets int // that all paths take, by weight
}

// use counts a path of a source that takes an attribute set, disuse one that does no more.
func (p *pool) use(from *source, a *attrs) {
	a.refs++
	from.octets += a.weight()
	p.octets += a.weight()
}

func (p *pool) disuse(from *source, a *attrs) {
	from.octets -= a.weight()
	p.octets -= a.weight()
	p.release(a)
}

func (p *pool) get(key []byte) *attrs {
	if a, ok := p.byKey[string(key)]; ok {
		return a
	}
	a := newAttrs(string(key))
	p.byKey[a.key] = a
	return a
}

func (p *pool) release(a *attrs) {
	if a.refs--; a.refs == 0 {
		delete(p.byKey, a.key)
	}
}

func (t *table) touch(d *dest) {
	if !d.dirty {
		d.dirty = true
		t.dirty = append(t.dirty, d)
	}
}

// announce makes from's path to p have a. It tells whether from has one path more than before.
func (t *table) announce(pl *pool, from *source, p prefix, a *attrs) bool {
	d := t.dests[p]
	if d == nil {
		d = &dest{prefix: p}
		t.dests[p] = d
	}
	for x := d.paths; x != nil; x = x.next {
		if x.from != from {
			continue
		}
		x.stale = false
		if x.attrs != a {
			pl.use(from, a)
			pl.disuse(from, x.attrs)
			x.attrs, x.fresh = a, true
			t.touch(d)
		}
		return false
	}
	pl.use(from, a)
	x := &d.one
	if x.attrs != nil {
		x = new(path)
	}
	*x = path{dest: d, from: from, attrs: a, next: d.paths, fresh: true}
	d.paths = x
	list := &from.paths[t.family]
	if x.after = list.first; x.after != nil {
		x.after.before = x
	}
	list.first = x
	list.n++
	t.touch(d)
	return true
}

// withdraw takes from's path to p away, if there is one.
func (t *table) withdraw(pl *pool, from *source, p prefix) {
	d := t.dests[p]
	if d == nil {
		return
	}
	for x := d.paths; x != nil; x = x.next {
		if x.from == from {
			t.remove(pl, x)
			return
		}
	}
}

func (t *table) remove(pl *pool, x *path) {
	d := x.dest
	for at := &d.paths; *at != nil; at = &(*at).next {
		if *at == x {
			*at = x.next
			break
		}
	}
	list := &x.from.paths[t.family]
	if x.before != nil {
		x.before.after = x.after
	} else {
		list.first = x.after
	}
	if x.after != nil {
		x.after.before = x.before
	}
	list.n--
	if d.best == x {
		d.best = nil
	}
	if x.told && t.gone {
		d.gone = append(d.gone, x.from)
	}
	pl.disuse(x.from, x.attrs)
	*x = path{} // its memory may be used again
	t.touch(d)
}

// purge removes the paths of a source, or only the stale ones.
func (t *table) purge(pl *pool, from *source, onlyStale bool) {
	for x := from.paths[t.family].first; x != nil; {
		after := x.after
		if x.stale || !onlyStale {
			t.remove(pl, x)
		}
		x = after
	}
}

func (t *table) markStale(from *source) {
	for x := from.paths[t.family].first; x != nil; x = x.after {
		x.stale = true
	}
}

// settle ends a flush: what was told is remembered, and what is gone is forgotten.
func (t *table) settle() {
	for _, d := range t.dirty {
		d.dirty, d.gone, d.sent = false, nil, nil
		if d.best != nil {
			d.sent = d.best.from
		}
		for x := d.paths; x != nil; x = x.next {
			x.fresh, x.told = false, true
		}
		if d.paths == nil {
			delete(t.dests, d.prefix)
		}
	}
	clear(t.dirty)
	if cap(t.dirty) > 1<<16 { // a burst must not be kept for good
		t.dirty = nil
	}
	t.dirty = t.dirty[:0]
}
