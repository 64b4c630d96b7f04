// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/heliograph-dev/heliograph/felix/nflog"
	"github.com/heliograph-dev/heliograph/policy"
)

const (
	// deniedPerSecond are the lines that go to the agent's log; the kernel bounds each rule by itself.
	deniedPerSecond, deniedBurst = 10, 50
	// causesEvery is how often, at most, the names of the rules are looked through.
	causesEvery = time.Second
)

// diary knows what the prefixes of logged packets stand for, and how many lines may be written.
type diary struct {
	limit *rate.Limiter

	mu      sync.Mutex
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
	e.metrics.logged.WithLabelValues(action).Inc()
	if e.diary.limit.Allow() {
		e.log.Info("packet logged by policy", "action", action, "cause", e.cause(p.Prefix), "from", e.podAt(p.Src), "to", e.podAt(p.Dst),
			"src", p.Src, "dst", p.Dst, "protocol", policy.Protocol(p.Protocol).String(), "port", strconv.Itoa(int(p.DstPort)))
	}
}

// podAt is the pod of this node that has the address.
func (e *Enforcer) podAt(ip netip.Addr) string {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if id, ok := e.force.byIP[ip]; ok {
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
