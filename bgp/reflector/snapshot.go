// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
)

// Snapshot is what the reflector is and knows, but for the routes. It is immutable.
type Snapshot struct {
	Running bool
	// Deferring has the neighbours whose routes are waited for after a restart.
	Deferring []netip.Addr
	Sessions  []Session // sorted by Address
	Groups    []Group   // sorted by ID
	Routes    [2]int    // prefixes of IPv4 and IPv6
	Paths     [2]int
	Attrs     int // distinct attribute sets
}

// Session is the state of one neighbour.
type Session struct {
	bgp.Session
	Dynamic   bool // from a range
	NonClient bool
	RouterID  netip.Addr // invalid while down
	Families  []bgp.Family
	Group     int   // update group; 0 while down
	Updates   int64 // messages received, ever
	Malformed int64 // of those, how many RFC 7606 had something to say about
	Problem   string
	Stale     []bgp.Family // families with routes kept for its restart
	Lag       uint64       // octets of the log that it has yet to take
	// Short has how many sessions in a row were short; once that are too many, Damped is until when
	// connections are refused (RFC 4271 §8.1.1). Refused counts those that were, for whatever reason.
	Short   int
	Damped  time.Time
	Refused int64
}

// Group is an update group.
type Group struct {
	ID        int
	Families  []bgp.Family
	AddPaths  []bgp.Family
	NonClient bool
	TwoOctet  bool // AS numbers
	Extended  bool // messages up to 65,535 octets
	Policy    string
	Members   int
	Messages  uint64 // built
	Bytes     uint64
	Tables    uint64 // times that the whole table was built
	MaxLag    uint64 // of a member, in octets
}

// Route is a prefix with all paths to it.
type Route struct {
	Prefix netip.Prefix
	Paths  []Path // the best first, if there is one
	Why    Reason // why the best is
}

// Path is one source's path.
type Path struct {
	Best       bool
	Peer       string
	Address    netip.Addr
	NextHop    netip.Addr
	LocalPref  uint32
	MED        uint32
	ASPath     string
	Origin     string
	Originator netip.Addr
	Clusters   []netip.Addr // as received: without our own
	Stale      bool
}

// Snapshot returns the present state.
func (r *Reflector) Snapshot() Snapshot {
	r.applying.Lock()
	run := r.run
	r.applying.Unlock()
	var out Snapshot
	if run != nil {
		run.core.do(func(c *core) { out = c.snapshot() })
	}
	// Not on the core, which must not be held up for long by ten thousand neighbours.
	slices.SortFunc(out.Deferring, netip.Addr.Compare)
	slices.SortFunc(out.Groups, func(a, b Group) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(out.Sessions, func(a, b Session) int { return a.Address.Compare(b.Address) })
	return out
}

// Known returns the neighbours that have a session or routes here, or are waited for after a restart:
// whom a next process has to wait for (Options.Restarted). It costs a small part of a Snapshot.
func (r *Reflector) Known() []netip.Addr {
	r.applying.Lock()
	run := r.run
	r.applying.Unlock()
	var out []netip.Addr
	if run != nil {
		run.core.do(func(c *core) {
			for a := range c.awaited {
				out = append(out, a)
			}
			for _, p := range c.peers {
				if p.up != nil || p.stale != 0 {
					out = append(out, p.addr)
				}
			}
		})
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// Routes returns the routes within a prefix, or all if it is invalid, sorted.
func (r *Reflector) Routes(within netip.Prefix) []Route {
	r.applying.Lock()
	run := r.run
	r.applying.Unlock()
	var out []Route
	if run != nil {
		run.core.do(func(c *core) { out = c.routes(within) })
	}
	return out
}

func (c *core) snapshot() Snapshot {
	out := Snapshot{Running: true, Attrs: len(c.pool.byKey)}
	for a := range c.awaited {
		out.Deferring = append(out.Deferring, a)
	}
	sent := map[int]*groupCount{}
	for f := range families {
		out.Routes[f] = len(c.tables[f].dests)
		for _, d := range c.tables[f].dests {
			for x := d.paths; x != nil; x = x.next {
				out.Paths[f]++
			}
		}
	}
	for _, g := range c.groups {
		sent[g.id] = c.count(g)
		out.Groups = append(out.Groups, g.public())
	}
	now := time.Now()
	out.Sessions = make([]Session, 0, len(c.peers))
	for _, p := range c.peers {
		out.Sessions = append(out.Sessions, p.public(now, sent))
	}
	return out
}

// groupCount has how many routes a group was told of, and how many of those are of each source, which
// did not get them.
type groupCount struct {
	all int
	own map[*source]int
}

func (c *core) count(g *group) *groupCount {
	n := &groupCount{own: map[*source]int{}}
	for f := range families {
		if !g.families.has(f) {
			continue
		}
		for _, d := range c.tables[f].dests {
			if !g.policy.match(f, d.prefix) {
				continue
			}
			for x := d.paths; x != nil; x = x.next {
				if x.told && g.sends(x.from) && (x == d.best || g.addPaths.has(f)) {
					n.all++
					n.own[x.from]++
				}
			}
		}
	}
	return n
}

func (g *group) public() Group {
	out := Group{
		ID: g.id, Families: g.families.public(), AddPaths: g.addPaths.public(), NonClient: g.nonClient, TwoOctet: !g.as4,
		Extended: g.extended, Policy: g.groupKey.policy, Members: len(g.members), Messages: g.messages, Bytes: g.bytes, Tables: g.dumps,
	}
	for s := range g.members {
		out.MaxLag = max(out.MaxLag, g.lag(s))
	}
	return out
}

func (g *group) lag(s *session) uint64 {
	if at := s.out.at.Load(); at < g.tail.end {
		return g.tail.end - at
	}
	return 0
}

func (p *peer) public(now time.Time, sent map[int]*groupCount) Session {
	out := Session{
		Session: bgp.Session{
			Peer: p.name(), Kind: bgp.PeerNode, Address: p.addr, ASN: p.cfg.ASN, State: p.state(now), Since: p.since,
			Flaps: p.flaps, LastError: p.lastError, EndOfRIB: p.eor.public(),
		},
		Dynamic: p.dynamic, NonClient: p.cfg.NonClient, Updates: p.updates, Malformed: p.problems, Problem: p.problem,
		Stale: p.stale.public(), Short: p.damping.short, Refused: p.damping.refused,
	}
	if p.up == nil && p.damping.active(now) {
		out.Damped = p.damping.until
		out.LastError = fmt.Sprintf("%s, the last: %s", p.damping.why(), p.lastError)
	}
	if p.cfg.Held != "" {
		out.LastError = p.cfg.Held
	}
	if p.source != nil {
		out.Rejected = p.source.rejected
		for f := range families {
			out.PrefixesIn += int64(p.source.paths[f].n)
		}
	}
	if s := p.up; s != nil {
		out.RouterID, out.Families = netip.AddrFrom4(s.neg.id), s.neg.families.public()
		if s.group != nil {
			n := sent[s.group.id]
			out.Group, out.Lag, out.PrefixesOut = s.group.id, s.group.lag(s), int64(n.all-n.own[p.source])
		}
	}
	return out
}

func (c *core) routes(within netip.Prefix) []Route {
	c.flush() // so that what is best is decided
	var out []Route
	for f := range families {
		for _, d := range c.tables[f].dests {
			p := d.prefix.netip(f)
			if within.IsValid() && (within.Bits() > p.Bits() || !within.Contains(p.Addr())) {
				continue
			}
			out = append(out, d.public(p))
		}
	}
	slices.SortFunc(out, func(a, b Route) int { return a.Prefix.Compare(b.Prefix) })
	return out
}

func (d *dest) public(p netip.Prefix) Route {
	r := Route{Prefix: p}
	best, why := decide(d.paths)
	r.Why = why
	for x := d.paths; x != nil; x = x.next {
		r.Paths = append(r.Paths, x.public(x == best))
	}
	slices.SortFunc(r.Paths, func(a, b Path) int {
		if a.Best != b.Best {
			return map[bool]int{true: -1, false: 1}[a.Best]
		}
		return a.Address.Compare(b.Address)
	})
	return r
}

func (x *path) public(best bool) Path {
	a := x.attrs
	out := Path{
		Best: best, Peer: x.from.peer, Address: x.from.addr, NextHop: a.nextHop, LocalPref: a.localPref, MED: a.med,
		ASPath: a.asPath(), Origin: originName(a.origin), Stale: x.stale,
		Originator: netip.AddrFrom4([4]byte{byte(a.originator >> 24), byte(a.originator >> 16), byte(a.originator >> 8), byte(a.originator)}),
	}
	a.each(func(t attr) {
		if t.typ != attrClusterList {
			return
		}
		for list := t.value[4:]; len(list) > 0; list = list[4:] {
			out.Clusters = append(out.Clusters, netip.AddrFrom4([4]byte(list)))
		}
	})
	return out
}

func originName(o uint8) string {
	switch o {
	case 0:
		return "IGP"
	case 1:
		return "EGP"
	case 2:
		return "incomplete"
	}
	return fmt.Sprint(o)
}
