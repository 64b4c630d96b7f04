// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"time"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
)

// status is what the API is told of the node's reflector; nil without one. It is made when it is
// written, and not in each run of the loop: it counts all routes.
func (s *speakers) status() *v1alpha1.ReflectorStatus {
	s.mu.Lock()
	desired, reflects, err := s.desired, s.reflects, s.engineErr
	s.mu.Unlock()
	if !reflects {
		return nil
	}
	now, snapshot := time.Now(), s.engine.Snapshot()
	out := &v1alpha1.ReflectorStatus{
		RouterID: desired.RouterID.String(), ClusterID: desired.ClusterID.String(),
		Routes: int64(snapshot.Routes[0] + snapshot.Routes[1]), Paths: int64(snapshot.Paths[0] + snapshot.Paths[1]),
	}
	if err != nil {
		out.Problem = err.Error()
	}
	peers := make(map[string]bgp.ReflectorPeer, len(desired.Peers))
	for _, p := range desired.Peers {
		if peers[p.Name] = p; p.Kind == bgp.PeerNode {
			out.Clients++
		}
	}
	for _, session := range snapshot.Sessions {
		p := peers[session.Peer]
		if p.Kind == bgp.PeerNode && session.Converged(p.Families, now) {
			out.ClientsConverged++
		}
		out.Sessions = append(out.Sessions, sessionStatus(session.Session, 0))
	}
	out.Sessions = worstFirst(out.Sessions, maxSessions, func(b v1alpha1.BGPSessionStatus) bool { return b.State != string(bgp.StateEstablished) })
	return out
}
