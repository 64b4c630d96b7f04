// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/spf13/cobra"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/bgp"
)

// defaultASNumber of a BGPConfiguration.
const defaultASNumber = 64512

func newBGPSummaryCommand() *cobra.Command {
	var kubeconfig, node, output string
	cmd := &cobra.Command{
		Use:   "summary",
		Short: "Print who reflects routes, and every BGP session of every node",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(kubeconfig)
			if err != nil {
				return err
			}
			state, err := readBGP(cmd.Context(), c)
			if err != nil {
				return err
			}
			summary, err := state.summary(node)
			if err != nil {
				return err
			}
			return summary.write(cmd.OutOrStdout(), output, time.Now())
		},
	}
	f := cmd.Flags()
	f.StringVar(&kubeconfig, "kubeconfig", "", "path of the kubeconfig; default as kubectl's")
	f.StringVar(&node, "node", "", "only the sessions of this node")
	f.StringVarP(&output, "output", "o", "", "wide: BFD, and why sessions last went down; json: see docs/bgp.md")
	return cmd
}

// bgpSummary is the answer of bgp summary, and with -o json its form: fields are added, and never change.
type bgpSummary struct {
	ASNumber   int64         `json:"asNumber"`
	Reflection bgpReflection `json:"routeReflection"`
	// Established and Total count neighbors, each at its speaker: a session between two nodes counts twice.
	Established int64        `json:"established"`
	Total       int64        `json:"total"`
	Speakers    []bgpSpeaker `json:"speakers"`
	// Notes say what the summary does not show.
	Notes []string `json:"notes,omitempty"`
}

// bgpReflection is what the controller chose.
type bgpReflection struct {
	Mode v1alpha1.RouteReflectionMode `json:"mode"`
	// Mesh is null where the controller has not said anything.
	Mesh       *bool          `json:"mesh"`
	MeshSince  *metav1.Time   `json:"meshSince"`
	Reason     string         `json:"reason"`
	Reflectors []bgpReflector `json:"reflectors"`
}

type bgpReflector struct {
	Node      string                  `json:"node"`
	ClusterID string                  `json:"clusterID"`
	Zone      string                  `json:"zone"`
	State     v1alpha1.ReflectorState `json:"state"`
	Since     metav1.Time             `json:"since"`
	Reason    string                  `json:"reason"`
}

// The roles of a bgpSpeaker.
const (
	roleSpeaker   = "speaker"
	roleReflector = "reflector"
)

// bgpSpeaker is a node's speaker, or its reflector. Those fields that only reflectors have are 0 or ""
// for speakers.
type bgpSpeaker struct {
	Node             string `json:"node"`
	Role             string `json:"role"`
	RouterID         string `json:"routerID"`
	ClusterID        string `json:"clusterID"`
	Clients          int32  `json:"clients"`
	ClientsConverged int32  `json:"clientsConverged"`
	Routes           int64  `json:"routes"`
	Paths            int64  `json:"paths"`
	Problem          string `json:"problem"`
	Established      int64  `json:"established"`
	Total            int64  `json:"total"`
	// NotListed is how many neighbors there are besides those below.
	NotListed int64         `json:"notListed"`
	Neighbors []bgpNeighbor `json:"neighbors"`
}

// bgpNeighbor is a session, with the names of NodeStatus.
type bgpNeighbor struct {
	PeerIP      string       `json:"peerIP"`
	Name        string       `json:"name"`
	ASNumber    int64        `json:"asNumber"`
	State       string       `json:"state"`
	Since       *metav1.Time `json:"since"`
	PrefixesIn  int64        `json:"prefixesIn"`
	PrefixesOut int64        `json:"prefixesOut"`
	Rejected    int64        `json:"rejected"`
	Flaps       int64        `json:"flaps"`
	LastError   string       `json:"lastError"`
	BFD         string       `json:"bfd"`
	BFDSince    *metav1.Time `json:"bfdSince"`
}

func (s bgpState) summary(only string) (bgpSummary, error) {
	out := bgpSummary{ASNumber: s.asNumber(), Reflection: s.reflection(), Speakers: []bgpSpeaker{}}
	if only != "" && !s.hasNode(only) {
		return out, fmt.Errorf("there is no node %s", only)
	}
	if s.config == nil {
		out.Notes = append(out.Notes, "there is no BGPConfiguration default: the defaults of its fields are in force")
	}
	for _, n := range s.nodes {
		if only != "" && only != n.Name {
			continue
		}
		ns, ok := s.statuses[n.Name]
		if !ok {
			out.Notes = append(out.Notes, silent(n.Name))
			continue
		}
		out.Notes = append(out.Notes, oldReport(n.Name, ns.Status)...)
		out.Speakers = append(out.Speakers, speakerOf(n.Name, ns.Status))
		if ns.Status.Reflector != nil {
			out.Speakers = append(out.Speakers, reflectorOf(n.Name, *ns.Status.Reflector))
		}
	}
	for _, sp := range out.Speakers {
		out.Established += sp.Established
		out.Total += sp.Total
	}
	return out, nil
}

func (s bgpState) asNumber() int64 {
	if s.config == nil || s.config.Spec.ASNumber == nil {
		return defaultASNumber
	}
	return *s.config.Spec.ASNumber
}

func (s bgpState) reflection() bgpReflection {
	out := bgpReflection{Mode: v1alpha1.RouteReflectionAuto, Reflectors: []bgpReflector{}}
	if s.config == nil {
		return out
	}
	if r := s.config.Spec.RouteReflection; r != nil {
		out.Mode = cmp.Or(r.Mode, out.Mode)
	}
	if st := s.config.Status.RouteReflection; st != nil {
		out.Mesh, out.MeshSince, out.Reason = &st.Mesh, st.MeshSince, st.Reason
	}
	for _, r := range s.chosen() {
		out.Reflectors = append(out.Reflectors, bgpReflector{
			Node: r.Node, ClusterID: r.ClusterID, Zone: r.Zone, State: r.State, Since: r.Since, Reason: r.Reason,
		})
	}
	return out
}

func speakerOf(node string, st v1alpha1.NodeStatusStatus) bgpSpeaker {
	out := bgpSpeaker{Node: node, Role: roleSpeaker, Established: int64(st.SessionsEstablished), Total: int64(st.SessionsTotal)}
	out.list(st.Sessions)
	out.NotListed = max(0, out.Total-int64(len(st.Sessions)))
	return out
}

// reflectorOf counts what NodeStatus does not: the sessions of a reflector that are not listed. It lists
// those first that are not established, so with an established one in the list the rest are too;
// otherwise at least those are with whose clients the routes have been exchanged.
func reflectorOf(node string, r v1alpha1.ReflectorStatus) bgpSpeaker {
	out := bgpSpeaker{
		Node: node, Role: roleReflector, RouterID: r.RouterID, ClusterID: r.ClusterID, Clients: r.Clients, ClientsConverged: r.ClientsConverged,
		Routes: r.Routes, Paths: r.Paths, Problem: r.Problem, Total: int64(len(r.Sessions)),
	}
	out.list(r.Sessions)
	clients := int64(0)
	for _, n := range out.Neighbors {
		if n.established() {
			out.Established++
		}
		if out.isClient(n) {
			clients++
		}
	}
	out.NotListed = max(0, int64(r.Clients)-clients)
	out.Total += out.NotListed
	if out.Established > 0 {
		out.Established += out.NotListed
	} else {
		out.Established = min(int64(r.ClientsConverged), out.NotListed)
	}
	return out
}

// isClient tells a reflector's clients, nodes and routers, from other reflectors.
func (s *bgpSpeaker) isClient(n bgpNeighbor) bool { return !strings.HasPrefix(n.Name, "reflector/") }

// list takes the sessions in the order of the peers' addresses.
func (s *bgpSpeaker) list(sessions []v1alpha1.BGPSessionStatus) {
	s.Neighbors = []bgpNeighbor{}
	for _, b := range sessions {
		s.Neighbors = append(s.Neighbors, bgpNeighbor{
			PeerIP: b.PeerIP, Name: b.Name, ASNumber: b.ASNumber, State: b.State, Since: b.Since, PrefixesIn: b.PrefixesIn,
			PrefixesOut: b.PrefixesOut, Rejected: b.Rejected, Flaps: b.Flaps, LastError: b.LastError, BFD: b.BFD, BFDSince: b.BFDSince,
		})
	}
	address := func(n bgpNeighbor) netip.Addr {
		a, _ := netip.ParseAddr(n.PeerIP) // one that is none comes first
		return a
	}
	slices.SortStableFunc(s.Neighbors, func(a, b bgpNeighbor) int {
		return cmp.Or(address(a).Compare(address(b)), cmp.Compare(a.Name, b.Name))
	})
}

func (n bgpNeighbor) established() bool { return n.State == string(bgp.StateEstablished) }

// write prints the summary in one of the forms.
func (s bgpSummary) write(w io.Writer, form string, now time.Time) error {
	switch form {
	case "json":
		return encodeJSON(w, s)
	case "", "wide":
		p := summaryPrinter{now: now, wide: form == "wide"}
		return p.print(w, s)
	}
	return fmt.Errorf("--output is %q: it can be wide or json", form)
}
