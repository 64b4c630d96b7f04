// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"sync"
	"sync/atomic"
)

// groupKey is what makes two sessions get the same bytes.
type groupKey struct {
	families  familySet
	addPaths  familySet
	as4       bool
	extended  bool
	nonClient bool
	policy    string // Policy.key
}

// group is an update group: one log for all its members. The core owns it.
type group struct {
	groupKey
	id      int
	policy  compiled
	members map[*session]struct{}
	tail    *block // the last block of the log; at first an empty one
	dump    dump
	// What was built; what was sent is that for each member.
	messages, bytes uint64
	dumps           uint64
}

// dump is the whole table as it was when the log ended with at.
type dump struct {
	at    *block
	block *block
}

func newGroup(key groupKey, id int, policy compiled) *group {
	return &group{groupKey: key, id: id, policy: policy, members: map[*session]struct{}{}, tail: &block{}}
}

// sends tells whether routes of the source may go to the group at all (RFC 4456 §6): from a client to
// everyone, from others to clients.
func (g *group) sends(from *source) bool {
	return from != nil && (!from.nonClient || !g.nonClient)
}

// change adds to the encoder what became of a prefix since the last flush.
func (g *group) change(e *encoder, f family, d *dest) {
	if !g.families.has(f) || !g.policy.match(f, d.prefix) {
		return
	}
	if g.addPaths.has(f) {
		g.changePaths(e, f, d)
		return
	}
	n := nlri{prefix: d.prefix}
	before := d.sent
	if !g.sends(before) {
		before = nil
	}
	if d.best == nil || !g.sends(d.best.from) {
		if before != nil {
			e.addWithdraw(f, n)
		}
		return
	}
	now := d.best.from
	if before != now || d.best.fresh {
		e.addAnnounce(now, d.best.attrs, n)
	}
	if before != nil && before != now {
		e.addWithdrawOnly(now, f, n)
	}
}

func (g *group) changePaths(e *encoder, f family, d *dest) {
	for _, from := range d.gone {
		if g.sends(from) && !d.has(from) {
			e.addWithdraw(f, nlri{d.prefix, from.id})
		}
	}
	for x := d.paths; x != nil; x = x.next {
		if x.fresh && g.sends(x.from) {
			e.addAnnounce(x.from, x.attrs, nlri{d.prefix, x.from.id})
		}
	}
}

// append puts a block at the end of the log and wakes the members.
func (g *group) append(b *block, messages int) {
	b.end = g.tail.end + uint64(len(b.buf))
	g.messages += uint64(messages)
	g.bytes += uint64(len(b.buf))
	g.tail.next.Store(b)
	g.tail = b
	if g.dump.block != nil && b.end-g.dump.at.end > uint64(len(g.dump.block.buf))+64<<10 {
		g.dump = dump{} // it would keep more log than it saves work
	}
	for s := range g.members {
		s.out.poke()
	}
}

// table encodes all that the group may have of some families.
func (g *group) table(tables *[families]table, which familySet) *block {
	e := newEncoder(g.groupKey)
	for f := range families {
		if !which.has(f) || !g.families.has(f) {
			continue
		}
		for _, d := range tables[f].dests {
			if !g.policy.match(f, d.prefix) {
				continue
			}
			if g.addPaths.has(f) {
				for x := d.paths; x != nil; x = x.next {
					if g.sends(x.from) {
						e.addAnnounce(x.from, x.attrs, nlri{d.prefix, x.from.id})
					}
				}
			} else if d.best != nil && g.sends(d.best.from) {
				e.addAnnounce(d.best.from, d.best.attrs, nlri{prefix: d.prefix})
			}
		}
	}
	g.dumps++
	if b := e.finish(); b != nil {
		return b
	}
	return &block{}
}

// insert is something that a cursor sends when it has passed a block, before it goes on.
type insert struct {
	after *block
	parts []*block
	then  []byte
	jump  *block // go on behind this one instead: in another group's log
	// refresh has the families that it answers a ROUTE-REFRESH for.
	refresh familySet
}

// outbox is what a session's writer is to send: its place in the log, and what is its own. The core
// puts in, the writer takes out.
type outbox struct {
	source *source
	wake   chan struct{} // 1 slot

	mu      sync.Mutex
	cursor  *block // the last block that was taken; nil: no log yet
	inserts []insert
	control [][]byte
	jumping bool // an insert with a jump waits: the cursor's place is that of another log

	// at is the place of the cursor in the log, for the core to see who lags.
	at atomic.Uint64
}

func (o *outbox) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// join begins to read a log behind a block, after the inserts.
func (o *outbox) join(at *block, first ...insert) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cursor = at
	o.at.Store(at.end)
	o.inserts = append(o.inserts, first...)
	o.poke()
}

func (o *outbox) insert(i insert) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if i.refresh != 0 && o.refreshing(i.refresh) {
		return // the one that waits answers this request too
	}
	o.inserts = append(o.inserts, i)
	if i.jump != nil {
		o.jumping = true
		o.at.Store(i.jump.end)
	}
	o.poke()
}

func (o *outbox) refreshing(f familySet) bool {
	for _, i := range o.inserts {
		if i.refresh&f == f {
			return true
		}
	}
	return false
}

// send queues a message of the session's own.
func (o *outbox) send(message []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.control) < 64 { // a peer cannot make it grow: it asks, we answer by an insert
		o.control = append(o.control, message)
	}
	o.poke()
}

// take appends what is to be written next, about atMost octets of it.
func (o *outbox) take(out [][]byte, atMost int) [][]byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	out = append(out, o.control...)
	o.control = nil
	if o.cursor == nil {
		return out
	}
	for size := 0; size < atMost; {
		if len(o.inserts) > 0 && o.inserts[0].after == o.cursor {
			i := o.inserts[0]
			o.inserts[0] = insert{}
			o.inserts = o.inserts[1:]
			for _, b := range i.parts {
				out = b.appendFor(out, o.source)
				size += len(b.buf)
			}
			if len(i.then) > 0 {
				out = append(out, i.then)
			}
			if i.jump != nil {
				o.cursor, o.jumping = i.jump, false
			}
			continue
		}
		next := o.cursor.next.Load()
		if next == nil {
			break
		}
		out = next.appendFor(out, o.source)
		size += len(next.buf)
		o.cursor = next
	}
	if !o.jumping {
		o.at.Store(o.cursor.end)
	}
	return out
}
