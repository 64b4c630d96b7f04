// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/link"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

const (
	// apiPatience is how long a starting agent waits for the API server before it starts from the
	// copy on disk.
	apiPatience = 5 * time.Second
	// settleTime is how long next hops from before a restart are kept while BGP converges: an
	// upper limit for peers that never come back.
	settleTime = 30 * time.Second
)

// linkReader reads the node's devices: felix/link.
type linkReader interface {
	Devices() ([]link.Device, error)
	Addresses() ([]link.Address, error)
}

// factCache keeps what is costly to read until somebody says that it changed.
type factCache struct {
	linkFacts []snapshot.OnLink
	objFacts  *snapshot.Objects
	fromDisk  bool
}

func (f *factCache) forgetLinks()   { f.linkFacts = nil }
func (f *factCache) forgetObjects() { f.objFacts = nil }

// links returns the subnets that the node's own devices, those that are up, are attached to.
func (f *factCache) links(r linkReader) ([]snapshot.OnLink, error) {
	if f.linkFacts != nil {
		return f.linkFacts, nil
	}
	devices, err := r.Devices()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	addresses, err := r.Addresses()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	up := map[string]link.Device{}
	for _, d := range devices {
		if d.Up && d.Name != "lo" && !isOurs(d.Name) {
			up[d.Name] = d
		}
	}
	for _, a := range addresses {
		if d, ok := up[a.Device]; ok && !a.Prefix.Addr().IsLinkLocalUnicast() {
			f.linkFacts = append(f.linkFacts, snapshot.OnLink{
				Device: a.Device, MTU: d.MTU, Addr: a.Prefix.Addr(), Subnet: a.Prefix.Masked(),
			})
		}
	}
	slices.SortFunc(f.linkFacts, func(a, b snapshot.OnLink) int { return a.Addr.Compare(b.Addr) })
	return f.linkFacts, nil
}

func isOurs(device string) bool {
	return len(device) >= len(desired.LinkPrefix) && device[:len(desired.LinkPrefix)] == desired.LinkPrefix
}

// objects returns what the API server says, or, until it has said anything, the copy on disk.
func (f *factCache) objects(ctx context.Context, s source) (snapshot.Objects, error) {
	if f.objFacts != nil {
		return *f.objFacts, nil
	}
	var (
		o   snapshot.Objects
		err error
	)
	if f.fromDisk = !s.Synced(); f.fromDisk {
		o, _, err = s.Load()
	} else {
		o, err = s.Objects(ctx)
	}
	if err != nil {
		return o, err
	}
	f.objFacts = &o
	return o, nil
}

// workloads are the pods of this node whose devices exist. A pod whose device is gone, say since the
// node was rebooted, has nothing to route to; the runtime will delete it.
func workloads(pods podStore, r linkReader) ([]snapshot.Workload, error) {
	devices, err := r.Devices()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	there := map[string]bool{}
	for _, d := range devices {
		if link.IsWorkload(d) {
			there[d.Name] = true
		}
	}
	var out []snapshot.Workload
	for _, a := range pods.Attachments() {
		if !there[a.Device] {
			continue
		}
		w := snapshot.Workload{Device: a.Device}
		for _, ip := range a.Addresses {
			if ip.IsValid() {
				w.IPs = append(w.IPs, ip)
			}
		}
		out = append(out, w)
	}
	return out, nil
}

// awaitFacts waits for the API server, or for long enough to start from the copy on disk. Without
// either it goes on waiting: there is nothing to be done yet.
func (l *loop) awaitFacts(ctx context.Context) error {
	patience := time.NewTimer(apiPatience)
	defer patience.Stop()
	for !l.source.Synced() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.source.Changed():
		case <-time.After(loopBeat):
			l.heart.beat(time.Now())
		case <-patience.C:
			_, saved, err := l.source.Load()
			if err == nil {
				l.log.Warn("no answer from the API server: starting from the copy on disk", "saved", saved)
				return nil
			}
			l.log.Warn("no answer from the API server, and no copy on disk to start from: waiting", "error", err)
		}
	}
	return nil
}

// adoption is what the kernel held when this process started.
type adoption struct {
	hops       map[netip.Prefix][]snapshot.Hop
	restarting bool // we were here before
	until      time.Time
	done       bool
}

// adopt reads native next hops from the routes and nexthop objects of before.
func adopt(routes []desired.Route, nexthops []desired.Nexthop, now time.Time) adoption {
	a := adoption{hops: map[netip.Prefix][]snapshot.Hop{}, restarting: len(routes) > 0, until: now.Add(settleTime)}
	byID := make(map[desired.NexthopID]desired.Nexthop, len(nexthops))
	for _, n := range nexthops {
		byID[n.ID] = n
	}
	for _, r := range routes {
		for _, id := range byID[r.Nexthop].Members() {
			if n := byID[id]; n.Gateway.IsValid() && !isOurs(n.Device) {
				a.hops[r.Prefix] = append(a.hops[r.Prefix], snapshot.Hop{Gateway: n.Gateway, Device: n.Device})
			}
		}
	}
	a.done = len(a.hops) == 0
	return a
}

// settled says whether BGP has said all it had to say: every session is up and has sent its End-of-RIB
// for every family (RFC 4724 §2), or it had long enough.
func (a *adoption) settled(s bgp.Snapshot, now time.Time) bool {
	if a.done {
		return true
	}
	complete := s.Running && len(s.Sessions) > 0
	for _, session := range s.Sessions {
		if session.State != bgp.StateHeld && (session.State != bgp.StateEstablished || len(session.EndOfRIB) == 0) {
			complete = false
		}
	}
	if complete || now.After(a.until) {
		a.done, a.hops = true, nil
	}
	return a.done
}

func (a *adoption) pending() bool { return !a.done }

// deadline returns how long the kept next hops may still count.
func (a *adoption) deadline(now time.Time) (time.Duration, bool) {
	return max(time.Millisecond, a.until.Sub(now)), !a.done
}
