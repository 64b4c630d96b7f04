// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/spf13/cobra"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// pathFilter is what of the paths is asked for. The zero value is all.
type pathFilter struct {
	from, to, family string
}

func newPathsCommand() *cobra.Command {
	var kubeconfig, output string
	var filter pathFilter
	cmd := &cobra.Command{
		Use:   "paths",
		Short: "Print how nodes reach each other, and why not by a better way",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := filter.complete(); err != nil {
				return err
			}
			c, err := newClient(kubeconfig)
			if err != nil {
				return err
			}
			state, err := readCluster(cmd.Context(), c)
			if err != nil {
				return err
			}
			list, err := state.paths(filter)
			if err != nil {
				return err
			}
			return list.write(cmd.OutOrStdout(), output, time.Now())
		},
	}
	f := cmd.Flags()
	f.StringVar(&kubeconfig, "kubeconfig", "", "path of the kubeconfig; default as kubectl's")
	f.StringVar(&filter.from, "from", "", "only the paths of this node")
	f.StringVar(&filter.to, "to", "", "only the paths to this node")
	f.StringVar(&filter.family, "family", "", "only paths for IPv4 or IPv6")
	f.StringVarP(&output, "output", "o", "", "wide: a line per method; json: see docs/paths.md")
	return cmd
}

// complete takes a family as people write it.
func (f *pathFilter) complete() error {
	switch strings.ToLower(f.family) {
	case "":
	case "ipv4", "4":
		f.family = "IPv4"
	case "ipv6", "6":
		f.family = "IPv6"
	default:
		return fmt.Errorf("--family is %q: it can be IPv4 or IPv6", f.family)
	}
	return nil
}

// pathList is the answer of paths, and with -o json its form: fields are added, and never change.
type pathList struct {
	Paths []nodePath `json:"paths"`
	// Notes say what the list does not show.
	Notes []string `json:"notes,omitempty"`
}

// nodePath is the path from one node to another for one family.
type nodePath struct {
	From       string              `json:"from"`
	To         string              `json:"to"`
	Family     string              `json:"family"`
	Method     v1alpha1.PathMethod `json:"method"`
	NextHops   []string            `json:"nextHops"`
	Since      *metav1.Time        `json:"since"`
	Changes    int64               `json:"changes"`
	Unanswered bool                `json:"unanswered"`
	Reason     string              `json:"reason"`
	// Methods are those that the pools allow, the best first; empty where the node leaves them out.
	Methods []nodePathMethod `json:"methods"`
}

// nodePathMethod is what is known of one method of a path.
type nodePathMethod struct {
	Method          v1alpha1.PathMethod `json:"method"`
	InUse           bool                `json:"inUse"`
	State           string              `json:"state"`
	Since           *metav1.Time        `json:"since"`
	Reason          string              `json:"reason"`
	Probes          string              `json:"probes"`
	KernelOnly      bool                `json:"kernelOnly"`
	RTTMicroseconds int64               `json:"rttMicroseconds"`
	Loss            string              `json:"loss"`
	MTU             int32               `json:"mtu"`
	Failures        int32               `json:"failures"`
}

// paths lists the paths that are asked for, by the names of their nodes.
func (s clusterState) paths(f pathFilter) (pathList, error) {
	list := pathList{Paths: []nodePath{}}
	for _, name := range []string{f.from, f.to} {
		if name != "" && !s.hasNode(name) {
			return list, fmt.Errorf("there is no node %s", name)
		}
	}
	for _, n := range s.nodes {
		if f.from != "" && f.from != n.Name {
			continue
		}
		ns, ok := s.statuses[n.Name]
		if !ok {
			list.Notes = append(list.Notes, silent(n.Name))
			continue
		}
		list.Notes = append(list.Notes, reservations(n.Name, ns.Status)...)
		for _, p := range ns.Status.Paths {
			if (f.to == "" || f.to == p.Node) && (f.family == "" || f.family == p.Family) {
				list.Paths = append(list.Paths, newNodePath(n.Name, p))
			}
		}
	}
	slices.SortStableFunc(list.Paths, func(a, b nodePath) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To), cmp.Compare(a.Family, b.Family))
	})
	return list, nil
}

func (s clusterState) hasNode(name string) bool {
	for _, n := range s.nodes {
		if n.Name == name {
			return true
		}
	}
	return false
}

// reservations are what keeps a node's report from being the whole truth of now.
func reservations(node string, st v1alpha1.NodeStatusStatus) []string {
	notes := oldReport(node, st)
	if all := allPaths(st); all > len(st.Paths) {
		notes = append(notes, fmt.Sprintf("%s reports %d of its %d paths: those that are not native come first", node, len(st.Paths), all))
	}
	return notes
}

// oldReport says so if the agent has not been heard of.
func oldReport(node string, st v1alpha1.NodeStatusStatus) []string {
	if c := apimeta.FindStatusCondition(st.Conditions, "Stale"); c != nil && c.Status == metav1.ConditionTrue {
		return []string{fmt.Sprintf("the report of %s may be old: %s", node, c.Message)}
	}
	return nil
}

// allPaths is how many paths a node has, be they listed or not.
func allPaths(st v1alpha1.NodeStatusStatus) int {
	return int(st.PathsNative + st.PathsIPIP + st.PathsVXLAN + st.PathsNone)
}

func newNodePath(from string, p v1alpha1.PathStatus) nodePath {
	out := nodePath{
		From: from, To: p.Node, Family: p.Family, Method: p.Method, NextHops: p.NextHops, Since: p.Since,
		Changes: p.Changes, Unanswered: p.Unanswered, Reason: p.Reason, Methods: []nodePathMethod{},
	}
	if out.NextHops == nil {
		out.NextHops = []string{}
	}
	for _, m := range p.Methods {
		out.Methods = append(out.Methods, nodePathMethod{
			Method: m.Method, InUse: m.Method == p.Method, State: m.State, Since: m.Since, Reason: m.Reason, Probes: m.Probes,
			KernelOnly: m.KernelOnly, RTTMicroseconds: m.RTTMicroseconds, Loss: m.Loss, MTU: m.MTU, Failures: m.Failures,
		})
	}
	return out
}

// used is what is known of the method in use.
func (p nodePath) used() nodePathMethod {
	for _, m := range p.Methods {
		if m.InUse {
			return m
		}
	}
	return nodePathMethod{}
}

// better are the methods that would be used if they could.
func (p nodePath) better() []nodePathMethod {
	i := slices.IndexFunc(p.Methods, func(m nodePathMethod) bool { return m.InUse })
	if i < 0 && p.Method != v1alpha1.PathNone {
		return nil
	}
	if i < 0 {
		return p.Methods
	}
	return p.Methods[:i]
}

// remarks say, a line each, why no better method is used, and what else should not be so.
func (p nodePath) remarks(now time.Time) []string {
	var out []string
	for _, m := range p.better() {
		out = append(out, fmt.Sprintf("not %s: %s for %s, %s", m.Method, m.State, age(m.Since, now), m.Reason))
	}
	if len(out) == 0 && p.Method != v1alpha1.PathNative {
		out = append(out, p.Reason)
	}
	switch {
	case p.Unanswered:
		out = append(out, fmt.Sprintf("%s answers by no method at all: %s is kept as the best guess", p.To, p.Method))
	case p.used().KernelOnly:
		out = append(out, fmt.Sprintf("the kernel of %s answers, its agent does not", p.To))
	}
	return out
}

// write prints the list in one of the forms.
func (l pathList) write(w io.Writer, form string, now time.Time) error {
	switch form {
	case "":
		return l.writeTable(w, now)
	case "wide":
		return l.writeWide(w, now)
	case "json":
		return encodeJSON(w, l)
	}
	return fmt.Errorf("--output is %q: it can be wide or json", form)
}

func (l pathList) writeTable(w io.Writer, now time.Time) error {
	var t remarkTable
	t.row(nil, "FROM", "TO", "FAMILY", "METHOD", "FOR", "CHANGES", "RTT", "LOSS", "MTU")
	for _, p := range l.Paths {
		m := p.used()
		t.row(p.remarks(now), p.From, p.To, p.Family, string(p.Method), age(p.Since, now), fmt.Sprint(p.Changes), rtt(m), orDash(m.Loss), mtu(m))
	}
	return t.write(w, l.Notes)
}

// writeWide has a line for each method; what is said of the path itself stands on the first.
func (l pathList) writeWide(w io.Writer, now time.Time) error {
	var t remarkTable
	t.row(nil, "FROM", "TO", "FAMILY", "METHOD", "USED", "STATE", "FOR", "PROBES", "RTT", "LOSS", "MTU", "FAILURES", "VIA", "REASON")
	for _, p := range l.Paths {
		via := orDash(strings.Join(p.NextHops, ","))
		if len(p.Methods) == 0 || p.Method == v1alpha1.PathNone {
			t.row(nil, p.From, p.To, p.Family, string(p.Method), p.usedFor(now), "-", "-", "-", "-", "-", "-", "-", via, p.Reason)
		}
		for _, m := range p.Methods {
			used, hops := "-", "-"
			if m.InUse {
				used, hops = p.usedFor(now), via
			}
			t.row(nil, p.From, p.To, p.Family, string(m.Method), used, m.State, age(m.Since, now), probes(m), rtt(m),
				orDash(m.Loss), mtu(m), fmt.Sprint(m.Failures), hops, m.Reason)
		}
	}
	return t.write(w, l.Notes)
}

// usedFor is since when the method in use has been so, and whether anybody answers.
func (p nodePath) usedFor(now time.Time) string {
	s := age(p.Since, now)
	if p.Unanswered {
		s += ", unanswered"
	}
	return s
}

func probes(m nodePathMethod) string {
	if m.KernelOnly {
		return orDash(m.Probes) + " (kernel)"
	}
	return orDash(m.Probes)
}

func rtt(m nodePathMethod) string {
	if m.RTTMicroseconds == 0 {
		return "-"
	}
	return (time.Duration(m.RTTMicroseconds) * time.Microsecond).String()
}

func mtu(m nodePathMethod) string {
	if m.MTU == 0 {
		return "-"
	}
	return fmt.Sprint(m.MTU)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// remarkTable is a table whose rows have remarks, which stand below their row, and take no part in the
// widths of columns: so it fits a terminal.
type remarkTable struct {
	rows    []string
	remarks [][]string
}

func (t *remarkTable) row(remarks []string, cells ...string) {
	t.rows = append(t.rows, strings.Join(cells, "\t"))
	t.remarks = append(t.remarks, remarks)
}

func (t *remarkTable) write(w io.Writer, notes []string) error {
	var aligned bytes.Buffer
	tw := tabwriter.NewWriter(&aligned, 0, 4, 2, ' ', 0)
	for _, r := range t.rows {
		_, _ = fmt.Fprintln(tw, r)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	var out bytes.Buffer
	for i, line := range strings.Split(strings.TrimSuffix(aligned.String(), "\n"), "\n") {
		_, _ = fmt.Fprintln(&out, line)
		for _, r := range t.remarks[i] {
			_, _ = fmt.Fprintln(&out, "    "+r)
		}
	}
	for i, n := range notes {
		if i == 0 {
			_, _ = fmt.Fprintln(&out)
		}
		_, _ = fmt.Fprintln(&out, "note: "+n)
	}
	_, err := w.Write(out.Bytes())
	return err
}
