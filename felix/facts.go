// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/cni/ipam"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/link"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
	"github.com/heliograph-dev/heliograph/felix/sysctl"
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
	foreign   []netip.Addr // remote ends of others' IPIP tunnels
	objFacts  *snapshot.Objects
	fromDisk  bool
	saved     bool // objFacts are on disk
}

func (f *factCache) forgetLinks()   { f.linkFacts = nil }
func (f *factCache) forgetObjects() { f.objFacts, f.saved = nil, false }

// links returns the subnets that the node's own devices, those that are up, are attached to.
func (f *factCache) links(r linkReader, filters func(string) bool) ([]snapshot.OnLink, error) {
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
	f.foreign = link.IPIPOthers(devices)
	for _, d := range devices {
		if d.Up && d.Name != "lo" && !isOurs(d.Name) {
			up[d.Name] = d
		}
	}
	for _, a := range addresses {
		if d, ok := up[a.Device]; ok && !a.Prefix.Addr().IsLinkLocalUnicast() {
			f.linkFacts = append(f.linkFacts, snapshot.OnLink{
				Device: a.Device, MTU: d.MTU, Addr: a.Prefix.Addr(), Subnet: a.Prefix.Masked(), StrictRPF: filters(a.Device),
			})
		}
	}
	slices.SortFunc(f.linkFacts, func(a, b snapshot.OnLink) int { return a.Addr.Compare(b.Addr) })
	return f.linkFacts, nil
}

func isOurs(device string) bool {
	return len(device) >= len(desired.LinkPrefix) && device[:len(desired.LinkPrefix)] == desired.LinkPrefix
}

// methodOf is the method of what leaves by a device.
func methodOf(device string) path.Method {
	switch device {
	case desired.IPIPDevice:
		return path.IPIP
	case desired.VXLANDevice, desired.VXLANDevice6:
		return path.VXLAN
	}
	return path.Native
}

// strictRPF says whether a device drops what comes in from where the answer would not leave to: the kernel
// takes the larger of the device's value and that for all (Documentation/networking/ip-sysctl.rst).
func strictRPF(values sysctl.Handle) func(device string) bool {
	return func(device string) bool {
		strict := false
		for _, conf := range []string{"all", device} {
			switch v, err := values.Read("ipv4/conf/" + conf + "/rp_filter"); {
			case err != nil: // no such device any more, or no IPv4
			case v == "2":
				return false
			case v == "1":
				strict = true
			}
		}
		return strict
	}
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
func workloads(attachments []ipam.Allocation, r linkReader) ([]snapshot.Workload, error) {
	there, err := workloadDevices(r)
	if err != nil {
		return nil, err
	}
	var out []snapshot.Workload
	for _, a := range attachments {
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

// workloadDevices are the names of the host ends of pods that the kernel has now.
func workloadDevices(r linkReader) (map[string]bool, error) {
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
	return there, nil
}

// awaitFacts waits for the API server, or for long enough to start from the copy on disk. Without
// either it goes on waiting: there is nothing to be done yet.
func (l *loop) awaitFacts(ctx context.Context) error {
	patience := time.NewTimer(apiPatience)
	defer patience.Stop()
	for !l.source.Synced() {
		l.heart.Beat(time.Now())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.source.Changed():
		case <-time.After(loopBeat):
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
	methods    map[netip.Prefix]path.Method // how each remote block was reached; kept
	restarting bool                         // we were here before
	until      time.Time                    // when BGP has had long enough; zero until the first run
	done       bool
}

// adopt reads the methods in use, and native next hops, from the routes and nexthop objects of before.
func adopt(routes []desired.Route, nexthops []desired.Nexthop) adoption {
	a := adoption{
		hops: map[netip.Prefix][]snapshot.Hop{}, methods: map[netip.Prefix]path.Method{}, restarting: len(routes) > 0,
	}
	byID := make(map[desired.NexthopID]desired.Nexthop, len(nexthops))
	for _, n := range nexthops {
		byID[n.ID] = n
	}
	for _, r := range routes {
		for _, id := range byID[r.Nexthop].Members() {
			n := byID[id]
			if !n.Gateway.IsValid() {
				continue
			}
			if a.methods[r.Prefix] = methodOf(n.Device); a.methods[r.Prefix] == path.Native {
				a.hops[r.Prefix] = append(a.hops[r.Prefix], snapshot.Hop{Gateway: n.Gateway, Device: n.Device})
			}
		}
	}
	a.done = len(a.hops) == 0
	return a
}

// settled says whether BGP has said all it had to say: every session that we asked for is up and has
// sent its End-of-RIB for every family (RFC 4724 §2), or they had long enough. The time counts from
// the first run, which is when BGP starts: the API server may have been away until then.
func (a *adoption) settled(s bgp.Snapshot, peers []bgp.Peer, now time.Time) bool {
	if a.done {
		return true
	}
	if a.until.IsZero() {
		a.until = now.Add(settleTime)
	}
	if converged(s, peers) || !now.Before(a.until) {
		a.done, a.hops = true, nil
	}
	return a.done
}

// converged says whether all peers, but for those that must not be talked to, have sent all they
// have. A family that a peer does not speak is never complete: then time decides.
func converged(s bgp.Snapshot, peers []bgp.Peer) bool {
	sessions := make(map[bgp.Neighbour]bgp.Session, len(s.Sessions))
	for _, session := range s.Sessions {
		sessions[session.Neighbour()] = session
	}
	for _, p := range peers {
		session := sessions[p.Neighbour()]
		if p.Held != "" || session.State == bgp.StateHeld {
			continue
		}
		if session.State != bgp.StateEstablished {
			return false
		}
		for _, f := range p.Families {
			if !slices.Contains(session.EndOfRIB, f) {
				return false
			}
		}
	}
	return s.Running && len(peers) > 0
}

// deadline is when the kept next hops count no more; zero if there are none.
func (a *adoption) deadline() time.Time {
	if a.done {
		return time.Time{}
	}
	return a.until
}

func (a *adoption) due(now time.Time) bool {
	at := a.deadline()
	return !at.IsZero() && !now.Before(at)
}
