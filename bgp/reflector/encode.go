// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"encoding/binary"
	"sync/atomic"
)

// block is a run of whole messages. Many cursors read it at once, so it does not change any more once
// it is in a log, but for next.
type block struct {
	buf  []byte
	skip map[*source][]span // parts of buf that the client of the source does not get
	only map[*source][]byte // messages that it alone gets, after buf
	end  uint64             // bytes in the log up to the end of this block
	next atomic.Pointer[block]
}

type span struct{ from, to int }

// appendFor appends what the client of the source gets, as pieces of the shared bytes.
func (b *block) appendFor(out [][]byte, of *source) [][]byte {
	at := 0
	for _, s := range b.skip[of] {
		if s.from > at {
			out = append(out, b.buf[at:s.from])
		}
		at = s.to
	}
	if at < len(b.buf) {
		out = append(out, b.buf[at:])
	}
	if own := b.only[of]; len(own) > 0 {
		out = append(out, own)
	}
	return out
}

// encoder packs the changes of one group into a block: as few messages as there may be.
type encoder struct {
	key      groupKey
	limit    int
	withdraw [families][]nlri
	own      map[*source]*[families][]nlri
	runs     map[runKey]int32 // in order
	order    []run
	last     int32 // the run that was added to last; -1: none
	items    []item
	messages int
	tooLong  int // prefixes that no message of the group's size can carry (RFC 8654 §4)
}

// nlri is a prefix, with its path identifier in groups with add-paths.
type nlri struct {
	prefix prefix
	id     uint32
}

type runKey struct {
	attrs *attrs
	from  *source
}

// run has the prefixes of one source with equal attributes.
type run struct {
	runKey
	n    int
	nlri []nlri // set by sort
}

// item is a prefix to be announced, and its run.
type item struct {
	run int32
	nlri
}

func newEncoder(key groupKey) *encoder {
	e := &encoder{runs: map[runKey]int32{}, own: map[*source]*[families][]nlri{}}
	e.reset(key)
	return e
}

// reset makes an encoder as good as new, but for the memory that it keeps.
func (e *encoder) reset(key groupKey) {
	clear(e.runs)
	clear(e.own)
	clear(e.order)
	*e = encoder{key: key, limit: maxMessage, runs: e.runs, own: e.own, order: e.order[:0], items: e.items[:0], last: -1}
	if key.extended {
		e.limit = maxExtended
	}
}

func (e *encoder) addWithdraw(f family, n nlri) { e.withdraw[f] = append(e.withdraw[f], n) }

// addWithdrawOnly withdraws from one client alone.
func (e *encoder) addWithdrawOnly(from *source, f family, n nlri) {
	list := e.own[from]
	if list == nil {
		list = &[families][]nlri{}
		e.own[from] = list
	}
	list[f] = append(list[f], n)
}

func (e *encoder) addAnnounce(from *source, a *attrs, n nlri) {
	if e.overhead(a)+4+17 > e.limit {
		e.tooLong++
		e.addWithdraw(a.family, n)
		return
	}
	key := runKey{a, from}
	if e.last < 0 || e.order[e.last].runKey != key {
		at, ok := e.runs[key]
		if !ok {
			at = int32(len(e.order))
			e.order = append(e.order, run{runKey: key})
			e.runs[key] = at
		}
		e.last = at
	}
	e.order[e.last].n++
	e.items = append(e.items, item{e.last, n})
}

// sort gives each run its prefixes, all from one slice: a slice for each would be most of the work.
func (e *encoder) sort() {
	all := make([]nlri, len(e.items))
	for i := range e.order {
		r := &e.order[i]
		r.nlri, all = all[:0:r.n], all[r.n:]
	}
	for _, x := range e.items {
		r := &e.order[x.run]
		r.nlri = append(r.nlri, x.nlri)
	}
}

// raw has the attributes in the group's AS number size.
func (e *encoder) raw(a *attrs) string {
	if e.key.as4 {
		return a.raw
	}
	return string(a.narrow())
}

// overhead is the length of an UPDATE but for its prefixes.
func (e *encoder) overhead(a *attrs) int {
	n := headerLen + 4 + len(a.raw) + 8 // AS4_AGGREGATOR's possible growth; AS4_PATH's is below
	if !e.key.as4 {
		n = headerLen + 4 + len(a.narrow())
	}
	if a.family != ipv4 {
		n += 4 + 5 + len(a.nextHopBytes())
	}
	return n
}

// finish returns the block, or nil if there is nothing to say.
func (e *encoder) finish() *block {
	e.sort()
	size := 0
	for i := range e.order {
		r := &e.order[i]
		size += e.overhead(r.attrs) + len(r.nlri)*6
	}
	b := &block{buf: make([]byte, 0, size+64*len(e.withdraw))}
	for f := range families {
		b.buf = e.appendWithdraw(b.buf, f, e.withdraw[f])
	}
	for i := range e.order {
		r := &e.order[i]
		from := len(b.buf)
		if r.attrs.family == ipv4 {
			b.buf = e.appendClassic(b.buf, r)
		} else {
			b.buf = e.appendMP(b.buf, r)
		}
		b.mark(r.from, span{from, len(b.buf)})
	}
	for from, lists := range e.own {
		var own []byte
		for f := range families {
			own = e.appendWithdraw(own, f, lists[f])
		}
		if b.only == nil {
			b.only = map[*source][]byte{}
		}
		b.only[from] = own
	}
	if len(b.buf) == 0 && b.only == nil {
		return nil
	}
	return b
}

// mark leaves a part out for the client of the source.
func (b *block) mark(from *source, s span) {
	if b.skip == nil {
		b.skip = map[*source][]span{}
	}
	list := b.skip[from]
	if n := len(list); n > 0 && list[n-1].to == s.from {
		list[n-1].to = s.to
		return
	}
	b.skip[from] = append(list, s)
}

func (e *encoder) appendNLRI(b []byte, f family, n nlri) []byte {
	if e.key.addPaths.has(f) {
		b = binary.BigEndian.AppendUint32(b, n.id)
	}
	return n.prefix.appendTo(b)
}

// fill appends prefixes until the message that began at start, to which tail octets come, is full.
func (e *encoder) fill(b []byte, start, tail int, f family, list []nlri) (filled []byte, rest []nlri) {
	id := 0
	if e.key.addPaths.has(f) {
		id = 4
	}
	for len(list) > 0 && len(b)-start+tail+id+list[0].prefix.wireLen() <= e.limit {
		b = e.appendNLRI(b, f, list[0])
		list = list[1:]
	}
	return b, list
}

func (e *encoder) appendWithdraw(b []byte, f family, list []nlri) []byte {
	for len(list) > 0 {
		start := len(b)
		b = appendHeader(b, msgUpdate)
		at := len(b)
		if f == ipv4 {
			b = append(b, 0, 0)
			b, list = e.fill(b, start, 2, f, list)
			binary.BigEndian.PutUint16(b[at:], uint16(len(b)-at-2))
			b = append(b, 0, 0)
		} else {
			b = append(b, 0, 0, 0, 0, flagOptional|flagLong, attrMPUnreach, 0, 0, 0, f.afi(), safiUnicast)
			b, list = e.fill(b, start, 0, f, list)
			binary.BigEndian.PutUint16(b[at+2:], uint16(len(b)-at-4))
			binary.BigEndian.PutUint16(b[at+6:], uint16(len(b)-at-8))
		}
		b = finish(b, start)
		e.messages++
	}
	return b
}

// appendClassic announces IPv4 as RFC 4271 does.
func (e *encoder) appendClassic(b []byte, r *run) []byte {
	raw := e.raw(r.attrs)
	for list := r.nlri; len(list) > 0; {
		start := len(b)
		b = appendHeader(b, msgUpdate)
		b = append(b, 0, 0, byte(len(raw)>>8), byte(len(raw)))
		b = append(b, raw...)
		b, list = e.fill(b, start, 0, ipv4, list)
		b = finish(b, start)
		e.messages++
	}
	return b
}

// appendMP announces by MP_REACH_NLRI, which comes first (RFC 7606 §5.1).
func (e *encoder) appendMP(b []byte, r *run) []byte {
	raw, hop, f := e.raw(r.attrs), r.attrs.nextHopBytes(), r.attrs.family
	for list := r.nlri; len(list) > 0; {
		start := len(b)
		b = appendHeader(b, msgUpdate)
		b = append(b, 0, 0, 0, 0)
		at := len(b)
		b = append(b, flagOptional|flagLong, attrMPReach, 0, 0, 0, f.afi(), safiUnicast, byte(len(hop)))
		b = append(b, hop...)
		b = append(b, 0)
		b, list = e.fill(b, start, len(raw), f, list)
		binary.BigEndian.PutUint16(b[at+2:], uint16(len(b)-at-4))
		b = append(b, raw...)
		binary.BigEndian.PutUint16(b[at-2:], uint16(len(b)-at))
		b = finish(b, start)
		e.messages++
	}
	return b
}
