// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"crypto/hmac"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/path"
)

// keyGrace is for how long questions with the last key are answered, since nodes get a new one one by one.
const keyGrace = 10 * time.Minute

// sort is what a question is for.
type sort uint8

const (
	small  sort = iota // asks the agent
	echo               // asks the kernel: ICMP
	padded             // measures the path MTU
)

// outbound is a packet to send. It is valid during the call.
type outbound struct {
	echo          bool
	method        path.Method // by which it goes
	local, remote netip.Addr
	data          []byte // UDP payload, or ICMP echo's
}

// inbound is a packet that came.
type inbound struct {
	echo          bool
	local, remote netip.Addr
	method        path.Method // of the device by which it came
	data          []byte
}

// probe is a question that waits for its answer.
type probe struct {
	way            *way
	sort           sort
	nonce          uint64
	secret         [24]byte // of an echo: the rest of its payload
	size           int      // of a padded one: inner IP packet
	sent, deadline time.Time
	refused        error // by the local kernel
}

// target is another node, for one family.
type target struct {
	path.Target
	local       netip.Addr // of ours, invalid: we have none of the family, and do not ask
	ways        [path.Methods]way
	rulings     [path.Methods]ruling
	silent      bool
	remote      path.Capabilities
	remoteKnown bool

	doubt    doubt
	retry    entry[*target]
	patience time.Duration // until the next question of the pool
	report   path.Report
	touched  bool
}

// way is a target by one method.
type way struct {
	target *target
	method path.Method
	need   path.Need
	lane   *lane
	udp    track
	icmp   track
	rising bool // it is needed more than it was
	climb  bool // it is new or comes back, and is watched until it has proved itself
	sizing sizing
}

// core is all of the prober but sockets and clock: packets and the time in, packets and reports out.
type core struct {
	count *metrics
	rng   *rand.ChaCha8 // nonces and jitter
	// send sends a packet. An error is that of the local kernel, and makes the question a lost one.
	send func(outbound) error
	// able says whether the kernel of a target of the family can be asked, for which it takes a raw socket.
	able func(bgp.Family) bool

	config     Config
	key, old   *sealer
	oldUntil   time.Time
	desk       *desk
	locals     map[bgp.Family]netip.Addr
	targets    map[path.Key]*target
	list       []*target // in the order they were given
	byAddr     map[netip.Addr]*target
	groups     map[groupKey][]*target
	lanes      map[laneKey]*lane
	laneAgenda agenda[*lane]
	plan       plan

	open       []*probe // in the order they were sent
	byNonce    map[uint64]*probe
	bursts     bursts
	pool       agenda[*target]
	poolTokens bucket
	sizings    int // under way

	touched     []*target
	dirty       bool // reports changed since the last snapshot
	significant bool // in a way that somebody waits for
	buf         []byte
}

func newCore(count *metrics, rng *rand.ChaCha8, send func(outbound) error, able func(bgp.Family) bool) *core {
	return &core{
		count: count, rng: rng, send: send, able: able, desk: newDesk(),
		targets: map[path.Key]*target{}, byNonce: map[uint64]*probe{}, lanes: map[laneKey]*lane{},
		poolTokens: bucket{rate: budget, size: 2 * budget}, plan: plan{factor: 1},
	}
}

// setConfig takes a configuration. A new key makes open questions void: nobody is to blame for their loss.
func (c *core) setConfig(config Config, now time.Time) {
	if !bytes.Equal(config.Key, c.config.Key) {
		c.discard()
		c.old, c.oldUntil, c.key = c.key, now.Add(keyGrace), nil
		if len(config.Key) > 0 {
			c.key = newSealer(config.Key)
		} else {
			c.old = nil
		}
	}
	c.config = config
	c.desk.setPeers(config.Peers)
	c.locals = map[bgp.Family]netip.Addr{}
	for _, a := range config.Locals {
		if f := bgp.FamilyOf(a); !c.locals[f].IsValid() {
			c.locals[f] = a.Unmap()
		}
	}
	for _, t := range c.list {
		if t.local = c.localOf(t); !t.local.IsValid() {
			t.forget()
		}
		c.rule(t, now)
		c.touch(t)
	}
	c.dirty = true
}

// forget forgets what is known of a target that is not asked any more.
func (t *target) forget() {
	for i := range t.ways {
		t.ways[i].udp.forget()
		t.ways[i].icmp.forget()
		t.ways[i].climb = t.ways[i].need != path.Off
	}
}

// localOf is the address to ask from, invalid if there is none.
func (c *core) localOf(t *target) netip.Addr {
	if c.key == nil {
		return netip.Addr{}
	}
	return c.locals[t.Key.Family]
}

// ask asks by one way.
func (c *core) ask(w *way, s sort, size int, now time.Time) {
	t := w.target
	if !t.local.IsValid() {
		return
	}
	p := &probe{way: w, sort: s, nonce: c.rng.Uint64(), size: size, sent: now, deadline: now.Add(w.udp.timeout())}
	out := outbound{echo: s == echo, method: w.method, local: t.local, remote: t.Remote}
	if s == echo {
		_, _ = c.rng.Read(p.secret[:]) // never fails
		p.deadline = now.Add(w.icmp.timeout())
		c.buf = append(binary.BigEndian.AppendUint64(c.buf[:0], p.nonce), p.secret[:]...)
	} else {
		m := message{kind: question, method: w.method, capabilities: c.config.Capabilities, nonce: p.nonce}
		c.buf = c.key.append(c.buf[:0], m, max(0, size-overhead(t.Key.Family)), t.local, t.Remote)
	}
	out.data = c.buf
	c.count.sent[w.method].Inc()
	if p.refused = c.send(out); p.refused != nil {
		p.deadline = now // lost, but told like any other loss, from expire
	}
	c.open = append(c.open, p)
	c.byNonce[p.nonce] = p
	if tr := w.track(s); tr != nil {
		tr.open++
	}
}

// track is where questions of a sort are recorded.
func (w *way) track(s sort) *track {
	switch s {
	case small:
		return &w.udp
	case echo:
		return &w.icmp
	}
	return nil
}

// receive takes a packet, and sends the answer if it is a question that is to be answered. Late says that
// it may have lain in the buffer for long, so that it tells no round-trip time.
func (c *core) receive(in inbound, now time.Time, late bool) {
	if in.echo {
		c.receiveEcho(in, now, late)
		return
	}
	m, key, reason := c.check(in, now)
	if reason != "" {
		c.count.reject(reason)
		return
	}
	if t := c.byAddr[in.remote]; t != nil && (!t.remoteKnown || t.remote != m.capabilities) {
		t.remote, t.remoteKnown = m.capabilities, true
		c.touch(t)
	}
	if m.kind == question {
		c.answer(in, m, key, now)
		return
	}
	p := c.byNonce[m.nonce]
	if p == nil || p.sort == echo || p.way.method != m.method || p.way.target.Remote != in.remote {
		c.count.reject(rejectNonce)
		return
	}
	c.answered(p, now, late)
}

// check returns what the packet says, and the key that it was made with, or why it is refused. The source
// comes first, since it is cheaper to check than a MAC.
func (c *core) check(in inbound, now time.Time) (message, *sealer, string) {
	if !c.desk.knows(in.remote) && c.byAddr[in.remote] == nil || c.key == nil {
		return message{}, nil, rejectSource
	}
	m, err := parse(in.data)
	if err != nil {
		return message{}, nil, err.Error()
	}
	key := c.key
	if !key.verify(in.data, in.remote, in.local) {
		if key = c.old; key == nil || now.After(c.oldUntil) || !key.verify(in.data, in.remote, in.local) {
			return message{}, nil, rejectMAC
		}
	}
	if in.method != m.method {
		return message{}, nil, rejectDevice
	}
	return m, key, ""
}

// answer answers a question by the method that it came by, with the key that it came with.
func (c *core) answer(in inbound, m message, key *sealer, now time.Time) {
	if !c.desk.knows(in.remote) {
		c.count.reject(rejectSource)
		return
	}
	if !c.desk.admit(in.remote, now) {
		c.count.reject(rejectRate)
		return
	}
	m.kind, m.capabilities = answer, c.config.Capabilities
	c.buf = key.append(c.buf[:0], m, 0, in.local, in.remote)
	// If it cannot be sent, the asker sees the loss, and we see that of our own questions.
	_ = c.send(outbound{method: m.method, local: in.local, remote: in.remote, data: c.buf})
}

func (c *core) receiveEcho(in inbound, now time.Time, late bool) {
	if len(in.data) != 32 {
		return // somebody else's ping
	}
	p := c.byNonce[binary.BigEndian.Uint64(in.data)]
	if p == nil || p.sort != echo || p.way.target.Remote != in.remote {
		return
	}
	// The kernel answers by the route that it has, not by that of the question: the device says nothing.
	if !hmac.Equal(p.secret[:], in.data[8:]) {
		c.count.reject(rejectNonce)
		return
	}
	c.answered(p, now, late)
}

// answered settles a question, and before it those that were sent earlier by the same way: their answers
// would have come first, and outcomes are recorded in the order of the questions.
func (c *core) answered(p *probe, now time.Time, late bool) {
	if p.sort != padded {
		for _, q := range slices.Clone(c.open) {
			if q == p {
				break
			}
			if q.way == p.way && q.sort == p.sort {
				c.settle(q, false, 0, now)
			}
		}
	}
	rtt := now.Sub(p.sent)
	if late {
		rtt = 0
	}
	c.settle(p, true, rtt, now)
}

// expire settles questions whose time is over.
func (c *core) expire(now time.Time) {
	var over []*probe
	for _, p := range c.open {
		if !p.deadline.After(now) {
			over = append(over, p)
		}
	}
	for _, p := range over {
		if c.byNonce[p.nonce] == p { // not settled on account of another
			c.settle(p, false, 0, now)
		}
	}
}

// discard drops open questions without a judgement: this process was not there to hear the answers.
func (c *core) discard() {
	for len(c.open) > 0 {
		p := c.open[0]
		c.close(p)
		if p.sort == padded {
			c.abortSizing(p.way, p.sent.Add(maxTimeout))
		}
	}
}

// close takes a question from the open ones.
func (c *core) close(p *probe) {
	delete(c.byNonce, p.nonce)
	if i := slices.Index(c.open, p); i >= 0 {
		c.open = slices.Delete(c.open, i, i+1)
	}
	if tr := p.way.track(p.sort); tr != nil {
		tr.open--
	}
}

// settle records what became of a question, and what follows.
func (c *core) settle(p *probe, answered bool, rtt time.Duration, now time.Time) {
	c.close(p)
	w := p.way
	c.count.observe(w.method, answered, rtt)
	if w.need == path.Off {
		return // nobody wants to know any more
	}
	if p.sort == padded {
		c.sized(p, answered, now)
		return
	}
	o := outcome{sent: p.sent, answered: answered}
	tr := w.track(p.sort)
	if rtt > 0 {
		tr.measured(rtt)
	}
	tr.record(o)
	if p.sort == small {
		c.note(w, o, rtt, now)
	}
	switch {
	case answered && p.sort == small:
		c.heard(w)
	case !answered && tr.run == 1 && (p.sort == small || tr.count > 1):
		c.suspect(w.target, p.sent)
	case !answered && tr.run == 2 && p.sort == small:
		c.suspectGroup(w, now)
	}
	c.rule(w.target, now)
	if !answered && p.sort == small && c.undecided(w) {
		c.suspect(w.target, p.sent)
	}
	c.touch(w.target)
	if answered && p.sort == small {
		c.considerSizing(w, now)
	}
}

// undecided says that a burst ended, for its rounds were thrown away by a loop that found itself late, without
// a word on why nothing is answered: neither the other methods nor the kernel have been asked often enough.
// The run of losses goes on, so no first loss would begin another burst.
func (c *core) undecided(w *way) bool {
	d := &w.target.doubt
	return !d.active && !d.queued && w.udp.run > path.Window && w.verdict() == path.Doubtful
}

// heard takes an agent's answer, which makes what its kernel said void. If it is the first one after silence,
// what was lost meanwhile was lost since nobody listened: it is no word about the other methods, and they are
// asked afresh, all together.
func (c *core) heard(w *way) {
	t := w.target
	back := t.silent || t.rulings[w.method].kernel
	for i := range t.ways {
		o := &t.ways[i]
		o.icmp.forget()
		if back && o != w && t.rulings[i].verdict != path.Lost {
			o.udp.forget()
		}
	}
	if back {
		w.climb = true
		c.suspect(t, w.udp.since)
	}
}

// rule judges a target anew, and sees to what follows from a change.
func (c *core) rule(t *target, now time.Time) {
	var in [path.Methods]testimony
	able := c.able(t.Key.Family)
	for i := range t.ways {
		w := &t.ways[i]
		in[i] = testimony{needed: w.need != path.Off, udp: &w.udp, icmp: &w.icmp, kernelAble: able}
	}
	was := t.rulings
	t.rulings, t.silent = judge(&in)
	for i := range t.ways {
		w := &t.ways[i]
		v := t.rulings[i].verdict
		switch {
		case was[i].verdict == path.Lost && v == path.Answers:
			w.climb = true
		case w.climb && w.proven():
			w.climb = false
		}
		if (v == path.Lost) != (was[i].verdict == path.Lost) && w.lane != nil {
			w.lane.recount()
			c.tell(w.lane, now)
		}
	}
	c.attend(t, now)
}

// proven says that a way that was new or came back needs no special watch any more.
func (w *way) proven() bool {
	if w.need == path.Active {
		return w.udp.answering(path.Window)
	}
	return w.need == path.Off || w.udp.answering(1)
}

// step does all that is due.
func (c *core) step(now time.Time) {
	c.expire(now)
	c.runBursts(now)
	c.runPool(now)
	c.runLanes(now)
	c.review(now)
}

// next is when step is due again; the zero time: never.
func (c *core) next(now time.Time) time.Time {
	var next time.Time
	earlier := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, p := range c.open {
		earlier(p.deadline)
	}
	c.bursts.next(earlier)
	if e := c.pool.first(); e != nil {
		at := c.poolTokens.ready(now)
		if e.due.After(at) {
			at = e.due
		}
		earlier(at)
	}
	if e := c.laneAgenda.first(); e != nil {
		earlier(e.due)
	}
	return next
}

// jitter varies a duration by a tenth, so that nodes do not ask in step.
func (c *core) jitter(d time.Duration) time.Duration {
	f := float64(c.rng.Uint64()>>11) / (1 << 53)
	return scale(d, 0.9+0.2*f)
}

// overhead is how much larger the inner IP packet is than its UDP payload.
func overhead(f bgp.Family) int {
	if f == bgp.IPv6 {
		return 48
	}
	return 28
}
