// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"slices"
	"time"

	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/desired"
)

// tunnelLinger is how long a tunnel stays that no pool wants any more. Our own traffic leaves it in the
// first run, which must find it whole: the drivers' order makes before it moves, and a device that goes
// takes the routes with it. The other nodes hear of the same change a little later, and send by it until then.
const tunnelLinger = 10 * time.Second

// leaving are the tunnels that nobody wants any more, and that are still there.
type leaving struct {
	linger  time.Duration
	devices []string // sorted
	until   time.Time
}

// follow stores a new state, and with it the tunnels that it has no more. It returns when they may go; zero:
// time alone lets none go.
func (d *dataplane) follow(now time.Time, s calc.RemoteState) time.Time {
	d.setRemote(d.leaving.keep(now, d.remote, s, d.stuck()))
	if now.Before(d.leaving.until) {
		return d.leaving.until
	}
	return time.Time{} // the next try of what failed sees to it
}

// keep adds to a state those tunnels of the last one that may not go yet.
func (l *leaving) keep(now time.Time, last, next calc.RemoteState, stuck bool) calc.RemoteState {
	wanted := tunnelsOf(next)
	gone := slices.DeleteFunc(tunnelsOf(last), func(name string) bool { return slices.Contains(wanted, name) })
	switch {
	case !slices.Equal(gone, l.devices):
		l.devices, l.until = gone, now.Add(l.linger)
	case !now.Before(l.until) && !stuck:
		l.devices = nil
	}
	if len(l.devices) == 0 {
		l.until = time.Time{}
		return next
	}
	return withTunnels(next, last, l.devices)
}

// stuck says that some routes may not have left the tunnels that are to go.
func (d *dataplane) stuck() bool {
	return d.failed["nexthop"] != nil || d.failed["route"] != nil || d.failed["probe routes"] != nil
}

func tunnelsOf(s calc.RemoteState) []string {
	var out []string
	for _, v := range s.VXLANs {
		out = append(out, v.Name)
	}
	for _, i := range s.IPIPs {
		out = append(out, i.Name)
	}
	slices.Sort(out)
	return out
}

// withTunnels adds to a state what the last one had of these devices: themselves, their addresses and
// neighbours, and that the filter lets their packets pass.
func withTunnels(s, last calc.RemoteState, devices []string) calc.RemoteState {
	s.VXLANs = added(s.VXLANs, last.VXLANs, devices, func(v desired.VXLAN) string { return v.Name })
	s.IPIPs = added(s.IPIPs, last.IPIPs, devices, func(i desired.IPIP) string { return i.Name })
	s.Addresses = added(s.Addresses, last.Addresses, devices, func(a desired.Address) string { return a.Device })
	s.Neighbours = added(s.Neighbours, last.Neighbours, devices, func(n desired.Neighbour) string { return n.Device })
	s.FDB = added(s.FDB, last.FDB, devices, func(e desired.FDBEntry) string { return e.Device })
	s.NFT.Tunnels = added(s.NFT.Tunnels, last.NFT.Tunnels, devices, func(name string) string { return name })
	if len(s.NFT.VXLANPorts) == 0 {
		s.NFT.VXLANPorts = last.NFT.VXLANPorts
	}
	if len(s.NFT.IPIPLocal) == 0 {
		s.NFT.IPIPLocal, s.NFT.IPIPOthers = last.NFT.IPIPLocal, last.NFT.IPIPOthers
	}
	return s
}

// added is a new list of all that the next has, and of what the last has of the devices.
func added[T any](next, last []T, devices []string, of func(T) string) []T {
	out := slices.Clone(next)
	for _, x := range last {
		if slices.Contains(devices, of(x)) {
			out = append(out, x)
		}
	}
	return out
}
