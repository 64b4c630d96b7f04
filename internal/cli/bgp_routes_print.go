// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/heliograph-dev/heliograph/felix/inspect"
)

// bgpRoutes is the answer of bgp routes, and with -o json its form: fields are added, and never change.
type bgpRoutes struct {
	Nodes []nodeRoutes `json:"nodes"`
	// Notes say what the answer does not show.
	Notes []string `json:"notes,omitempty"`
}

type nodeRoutes struct {
	Node string `json:"node"`
	// NotAsked is why the node gave no answer.
	NotAsked string `json:"notAsked"`
	inspect.Routes
}

// write prints the routes in one of the forms.
func (l bgpRoutes) write(w io.Writer, form string) error {
	switch form {
	case "":
		return l.writeTables(w)
	case "json":
		return encodeJSON(w, l)
	}
	return fmt.Errorf("--output is %q: it can be json", form)
}

func (l bgpRoutes) writeTables(w io.Writer) error {
	var out bytes.Buffer
	legend := false
	for _, n := range l.Nodes {
		if n.NotAsked == "" && !legend {
			legend = true
			_, _ = fmt.Fprintln(&out, "> best, S stale")
		}
		if err := n.writeTables(&out); err != nil {
			return err
		}
	}
	for i, n := range l.notes() {
		if i == 0 && out.Len() > 0 {
			_, _ = fmt.Fprintln(&out)
		}
		_, _ = fmt.Fprintln(&out, "note: "+n)
	}
	_, err := w.Write(out.Bytes())
	return err
}

// notes are those of the answer, and those of the nodes that gave none or a part.
func (l bgpRoutes) notes() []string {
	notes := l.Notes
	for _, n := range l.Nodes {
		if n.NotAsked != "" {
			notes = append(notes, fmt.Sprintf("%s is not asked: %s", n.Node, n.NotAsked))
		}
		if n.PathsLeftOut > 0 {
			notes = append(notes, fmt.Sprintf("%s leaves out %d paths of its speaker: name a prefix", n.Node, n.PathsLeftOut))
		}
		if n.ReflectedLeftOut > 0 {
			notes = append(notes, fmt.Sprintf("%s leaves out %d routes of its reflector: name a prefix", n.Node, n.ReflectedLeftOut))
		}
	}
	return notes
}

func (n nodeRoutes) writeTables(w io.Writer) error {
	if n.NotAsked != "" {
		return nil
	}
	_, _ = fmt.Fprintf(w, "\n%s speaker: %d paths\n", n.Node, len(n.Paths)+n.PathsLeftOut)
	if len(n.Paths) > 0 {
		var t remarkTable
		t.row(nil, " ", "PREFIX", "NEXT HOP", "FROM", "NEIGHBOR", "PATH LEN", "ORIGINATOR", "CLUSTER LIST")
		for _, p := range n.Paths {
			t.row(nil, marks(false, p.Stale), p.Prefix.String(), address(p.NextHop), orDash(p.Peer), address(p.PeerIP),
				fmt.Sprint(p.ASPathLength), address(p.Originator), clusters(p))
		}
		if err := t.write(w, nil); err != nil {
			return err
		}
	}
	if len(n.Reflected) == 0 {
		return nil
	}
	_, _ = fmt.Fprintf(w, "\n%s reflector: %d routes\n", n.Node, len(n.Reflected)+n.ReflectedLeftOut)
	var t remarkTable
	t.row(nil, " ", "PREFIX", "NEXT HOP", "FROM", "NEIGHBOR", "LOCAL PREF", "MED", "AS PATH", "ORIGIN", "ORIGINATOR", "CLUSTER LIST", "WHY BEST")
	for _, r := range n.Reflected {
		for _, p := range r.Paths {
			why := ""
			if p.Best {
				why = r.Why
			}
			t.row(nil, marks(p.Best, p.Stale), p.Prefix.String(), address(p.NextHop), orDash(p.Peer), address(p.PeerIP),
				fmt.Sprint(p.LocalPref), fmt.Sprint(p.MED), orDash(p.ASPath), p.Origin, address(p.Originator), clusters(p.Path), orDash(why))
		}
	}
	return t.write(w, nil)
}

// marks of a path, as routers write them.
func marks(best, stale bool) string {
	var s string
	if best {
		s = ">"
	}
	if stale {
		s += "S"
	}
	return cmp.Or(s, " ")
}

func address(a netip.Addr) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

func clusters(p inspect.Path) string { return orDash(strings.Join(p.ClusterList, " ")) }
