// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

// What a NodeStatus holds at most: it is one object of the API, and there are as many as nodes. In a
// mesh of thousands the lists would grow with the square of the nodes; then what is not as it should
// be comes first, and the counts tell the rest.
const (
	maxProblems = 32
	maxSessions = 256
	maxPaths    = 512
	// fewPaths is up to how many all that is known of each is told.
	fewPaths = 64
)

// Report is what the agent knows of itself after a run of its loop. It is immutable.
type Report struct {
	Version    string
	NodeIPs    []netip.Addr
	PodIPs     []netip.Addr
	Blocks     []BlockUse
	BGP        bgp.Snapshot
	Refused    map[bgp.Neighbour]calc.Refusal
	Paths      []PathReport
	Quorum     Quorum
	Can        snapshot.Capabilities
	Routes     map[RouteClass]int
	Felix      snapshot.Felix
	BGPPorts   []uint16 // of all sessions that the configuration asks for
	MTU        int      // of pods
	InSync     bool     // the kernel is as it should be
	FromDisk   bool     // the objects are from the copy on disk: the API server has not been seen yet
	Problems   []string
	Generation uint64 // counts runs of the loop
}

// BlockUse is the use of one block of this node.
type BlockUse struct {
	Name, Pool string
	CIDR       netip.Prefix
	InUse      int
}

// PathReport is a path, how long it has been so, and how often it changed its method.
type PathReport struct {
	calc.Path
	Since   time.Time
	Changes int64
	Was     v1alpha1.PathMethod // before the last change; empty: there was none
}

// Quorum counts the other nodes that are Ready, by the word of the API, and those of them that answer by
// the network.
type Quorum struct {
	Others, Answering int
	// Waiting says that too few answer, but not for long enough to call that a fact.
	Waiting bool
}

// Proven says whether at least half of the others answer, or there are none.
func (q Quorum) Proven() bool { return 2*q.Answering >= q.Others }

// RouteClass is the label set of the route metric.
type RouteClass struct {
	Method string // native, vxlan, local, blackhole
	Family bgp.Family
}

// pathClock remembers since when each path has had its method: the one thing about paths that does
// not follow from present facts.
type pathClock map[pathKey]PathReport

type pathKey struct {
	node   string
	family bgp.Family
}

// update returns the paths with their times, and those whose method changed.
func (c *pathClock) update(paths []calc.Path, now time.Time) (all, changed []PathReport) {
	next := make(pathClock, len(paths))
	for _, p := range paths {
		k := pathKey{p.Node, p.Family}
		before, known := (*c)[k]
		r := PathReport{Path: p, Since: now, Changes: before.Changes, Was: before.Was}
		if known && before.Method == p.Method {
			r.Since = before.Since
		}
		if known && before.Method != p.Method {
			r.Changes, r.Was = r.Changes+1, before.Method
			changed = append(changed, r)
		}
		next[k] = r
		all = append(all, r)
	}
	*c = next
	return all, changed
}

// nodeStatus translates a report for the API.
func (r *Report) nodeStatus(now time.Time) v1alpha1.NodeStatusStatus {
	s := v1alpha1.NodeStatusStatus{
		Version: r.Version, NodeIPs: texts(r.NodeIPs), PodNetworkIPs: texts(r.PodIPs),
		SessionsTotal: int32(len(r.BGP.Sessions)), //nolint:gosec // few
		Problems:      r.Problems,
	}
	if len(s.Problems) > maxProblems {
		s.Problems = s.Problems[:maxProblems]
	}
	for _, b := range r.Blocks {
		s.Blocks = append(s.Blocks, v1alpha1.BlockStatus{Name: b.Name, CIDR: b.CIDR.String(), Pool: b.Pool, InUse: int64(b.InUse)})
	}
	slices.SortFunc(s.Blocks, func(a, b v1alpha1.BlockStatus) int { return cmp.Compare(a.Name, b.Name) })
	for _, session := range r.BGP.Sessions {
		if session.State == bgp.StateEstablished {
			s.SessionsEstablished++
		}
		if session.Kind == bgp.PeerNode && session.Converged(r.families(), now) {
			s.NodesConverged++
		}
		s.Sessions = append(s.Sessions, sessionStatus(session, r.Refused[session.Neighbour()].Routes))
	}
	s.Sessions = worstFirst(s.Sessions, maxSessions, func(b v1alpha1.BGPSessionStatus) bool { return b.State != string(bgp.StateEstablished) })
	for _, p := range r.Paths {
		s.Paths = append(s.Paths, p.status(len(r.Paths) <= fewPaths))
		switch p.Method {
		case v1alpha1.PathNative:
			s.PathsNative++
		case v1alpha1.PathIPIP:
			s.PathsIPIP++
		case v1alpha1.PathVXLAN:
			s.PathsVXLAN++
		case v1alpha1.PathNone:
			s.PathsNone++
		}
	}
	s.Paths = worstFirst(s.Paths, maxPaths, func(p v1alpha1.PathStatus) bool { return p.Method != v1alpha1.PathNative || p.Unanswered })
	s.Capabilities = capabilities(r.Can)
	s.Conditions = []metav1.Condition{r.readyCondition(), r.provenCondition()}
	return s
}

// worstFirst bounds a list. One that fits stays as it is.
func worstFirst[T any](list []T, limit int, bad func(T) bool) []T {
	if len(list) <= limit {
		return list
	}
	out := make([]T, 0, len(list))
	for _, wanted := range []bool{true, false} {
		for _, x := range list {
			if bad(x) == wanted {
				out = append(out, x)
			}
		}
	}
	return out[:limit]
}

// families are those of the node's addresses, and so those of its sessions with nodes that have as many.
func (r *Report) families() []bgp.Family {
	var out []bgp.Family
	for _, ip := range r.NodeIPs {
		out = append(out, bgp.FamilyOf(ip))
	}
	return out
}

// sessionStatus translates a session; refused are routes that the agent does not use beside those that
// the speaker has refused.
func sessionStatus(s bgp.Session, refused int64) v1alpha1.BGPSessionStatus {
	return v1alpha1.BGPSessionStatus{
		Name: s.Peer, PeerIP: s.Address.String(), ASNumber: int64(s.ASN), State: string(s.State),
		Since: timeOf(s.Since), PrefixesIn: s.PrefixesIn, PrefixesOut: s.PrefixesOut,
		Rejected: s.Rejected + refused, Flaps: s.Flaps, LastError: s.LastError,
		BFD: string(s.BFD), BFDSince: timeOf(s.BFDSince),
	}
}

func (r *Report) readyCondition() metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "InSync", Message: "the dataplane is in sync"}
	if !r.InSync {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, "OutOfSync", "the dataplane is not in sync: see problems"
	}
	return c
}

// provenCondition tells whether the node's network is known to work: what a controller waits for before it
// lets pods come here.
func (r *Report) provenCondition() metav1.Condition {
	c := metav1.Condition{
		Type: v1alpha1.ConditionPathsProven, Status: metav1.ConditionTrue, Reason: "QuorumAnswers",
		Message: "at least half of the other nodes that are Ready answer",
	}
	switch {
	case r.Quorum.Others == 0:
		c.Reason, c.Message = "NoOtherNode", "there is no other node that is Ready and has pod addresses"
	case !r.Quorum.Proven() && r.Quorum.Waiting:
		c.Status, c.Reason, c.Message = metav1.ConditionUnknown, "Probing", "waiting for the other nodes' answers"
	case !r.Quorum.Proven():
		c.Status, c.Reason = metav1.ConditionFalse, "NoQuorum"
		c.Message = fmt.Sprintf("%d of %d other nodes that are Ready answer: see paths", r.Quorum.Answering, r.Quorum.Others)
	}
	return c
}

func texts(addrs []netip.Addr) []string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

// timeOf rounds to the second, as the API does, so that what was written compares equal to what is
// read back.
func timeOf(t time.Time) *metav1.Time {
	if t.IsZero() {
		return nil
	}
	return &metav1.Time{Time: t.UTC().Truncate(time.Second)}
}
