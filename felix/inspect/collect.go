// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/bgp/reflector"
)

// collect reads what is asked for, up to MaxPaths of each table.
func (s *Server) collect(q Query) Routes {
	out := Routes{Paths: []Path{}, Reflected: []Route{}}
	for _, sp := range s.opts.Speakers {
		out.addSpeaker(sp.Snapshot(), q, s.opts.MaxPaths)
	}
	slices.SortStableFunc(out.Paths, func(a, b Path) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), a.PeerIP.Compare(b.PeerIP))
	})
	if s.opts.Reflector != nil {
		out.addReflector(s.opts.Reflector.Routes(q.Within), q, s.opts.MaxPaths)
	}
	return out
}

func (r *Routes) addSpeaker(s bgp.Snapshot, q Query, most int) {
	names := make(map[netip.Addr]string, len(s.Sessions))
	for _, session := range s.Sessions {
		names[session.Address] = session.Peer
	}
	for _, p := range s.Paths {
		switch {
		case !q.Matches(p.Prefix):
		case len(r.Paths) >= most:
			r.PathsLeftOut++
		default:
			r.Paths = append(r.Paths, Path{
				Prefix: p.Prefix, NextHop: p.NextHop, Peer: names[p.Peer], PeerIP: p.Peer, ASPathLength: p.ASPathLen,
				Originator: p.Originator, ClusterList: append([]string{}, strings.Fields(p.Clusters)...), Stale: p.Stale,
			})
		}
	}
}

// addReflector takes whole routes: which path is the best, and why, tells little with some of them away.
func (r *Routes) addReflector(routes []reflector.Route, q Query, most int) {
	paths := 0
	for _, route := range routes {
		switch {
		case !q.Matches(route.Prefix):
		case paths+len(route.Paths) > most || r.ReflectedLeftOut > 0:
			r.ReflectedLeftOut++
		default:
			paths += len(route.Paths)
			r.Reflected = append(r.Reflected, newRoute(route))
		}
	}
}

func newRoute(in reflector.Route) Route {
	out := Route{Prefix: in.Prefix, Why: string(in.Why), Paths: []ReflectorPath{}}
	for _, p := range in.Paths {
		path := ReflectorPath{
			Path: Path{
				Prefix: in.Prefix, NextHop: p.NextHop, Peer: p.Peer, PeerIP: p.Address, ASPathLength: asPathLength(p.ASPath),
				ClusterList: []string{}, Stale: p.Stale,
			},
			Best: p.Best, ASPath: p.ASPath, LocalPref: p.LocalPref, MED: p.MED, Origin: p.Origin,
		}
		if !p.Originator.IsUnspecified() { // 0.0.0.0 stands for none
			path.Originator = p.Originator
		}
		for _, c := range p.Clusters {
			path.ClusterList = append(path.ClusterList, c.String())
		}
		out.Paths = append(out.Paths, path)
	}
	return out
}

// asPathLength counts AS numbers, and a set of them as one (RFC 4271 §9.1.2.2).
func asPathLength(path string) int { return len(strings.Fields(path)) }
