// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/heliograph-dev/heliograph/felix/nflog"
	"github.com/heliograph-dev/heliograph/policy"
)

const (
	// keptDenied is how many of the last logged packets are kept for who asks.
	keptDenied = 256
	// deniedPerSecond are the lines that go to the agent's log; the kernel bounds each rule by itself.
	deniedPerSecond, deniedBurst = 10, 50
	// causesEvery is how often, at most, the names of the rules are looked through.
	causesEvery = time.Second
)

// Logged is a packet that a rule logged, or that was denied. Its form as JSON is what `policy denied -o json`
// prints.
type Logged struct {
	Time   time.Time `json:"time"`
	Action string    `json:"action"`
	// Cause is the rule, tier or default that decided; empty if it is gone meanwhile.
	Cause    string     `json:"cause"`
	From     string     `json:"from,omitempty"` // the pod of this node that it came from
	To       string     `json:"to,omitempty"`   // the pod of this node that it went to
	Src      netip.Addr `json:"src"`
	Dst      netip.Addr `json:"dst"`
	Protocol string     `json:"protocol"`
	SrcPort  uint16     `json:"srcPort,omitempty"`
	DstPort  uint16     `json:"dstPort,omitempty"`
	Type     uint8      `json:"type,omitempty"` // of ICMP
	Code     uint8      `json:"code,omitempty"` // of ICMP
}

// diary keeps the last logged packets.
type diary struct {
	limit *rate.Limiter

	mu      sync.Mutex
	kept    []Logged
	causes  map[string]string // by log prefix
	version uint64            // of the state that causes are of
	read    time.Time
}

func newDiary() *diary { return &diary{limit: rate.NewLimiter(deniedPerSecond, deniedBurst)} }

// Heard takes a packet that the kernel logged.
func (e *Enforcer) Heard(p nflog.Packet) {
	rest, ours := strings.CutPrefix(p.Prefix, policy.LogPrefixStart)
	if !ours {
		return
	}
	action, _, _ := strings.Cut(rest, "/")
	l := Logged{
		Time: time.Now(), Action: action, Cause: e.cause(p.Prefix), Src: p.Src, Dst: p.Dst, Protocol: policy.Protocol(p.Protocol).String(),
		SrcPort: p.SrcPort, DstPort: p.DstPort, Type: p.Type, Code: p.Code,
	}
	l.From, l.To = e.podAt(p.Src), e.podAt(p.Dst)
	e.metrics.logged.WithLabelValues(action).Inc()
	e.diary.keep(l)
	if e.diary.limit.Allow() {
		e.log.Info("packet logged by policy", "action", l.Action, "cause", l.Cause, "from", l.From, "to", l.To,
			"src", l.Src, "dst", l.Dst, "protocol", l.Protocol, "port", strconv.Itoa(int(l.DstPort)))
	}
}

func (d *diary) keep(l Logged) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.kept) == keptDenied {
		d.kept = slices.Delete(d.kept, 0, 1)
	}
	d.kept = append(d.kept, l)
}

// Logged returns the last packets that were logged, the oldest first.
func (e *Enforcer) Logged() []Logged {
	e.diary.mu.Lock()
	defer e.diary.mu.Unlock()
	return append([]Logged{}, e.diary.kept...)
}

// podAt is the pod of this node that has the address.
func (e *Enforcer) podAt(ip netip.Addr) string {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if id, ok := e.byIP[ip]; ok {
		return id.String()
	}
	return ""
}

// cause finds what a log prefix stands for.
func (e *Enforcer) cause(prefix string) string {
	d := e.diary
	d.mu.Lock()
	defer d.mu.Unlock()
	if c, ok := d.causes[prefix]; ok {
		return c
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if now := time.Now(); d.causes == nil || d.version != e.version && now.Sub(d.read) >= causesEvery {
		d.causes, d.version, d.read = causes(e.state), e.version, now
	}
	return d.causes[prefix]
}

// causes are all that can log in a state, by their prefixes.
func causes(s *policy.State) map[string]string {
	out := map[string]string{}
	add := func(a policy.Action, cause string) { out[policy.LogPrefix(a, cause)] = cause }
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		add(policy.Deny, policy.UnknownCause(d))
		add(policy.Deny, policy.ChainCause(d))
		for _, p := range s.Policies {
			for _, r := range p.Rules(d) {
				add(r.Action, r.ID.String())
			}
		}
		for _, ep := range s.Endpoints {
			for _, t := range ep.Chain(d).Tiers {
				add(policy.Deny, policy.TierCause(t.Name, d))
			}
		}
	}
	return out
}
