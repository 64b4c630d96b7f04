// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"io"
	"time"
)

// summaryPrinter prints a summary for people.
type summaryPrinter struct {
	now  time.Time
	wide bool
	out  bytes.Buffer
}

func (p *summaryPrinter) print(w io.Writer, s bgpSummary) error {
	p.line("AS %d; neighbors: %d of %d established (a session between two nodes counts at both)", s.ASNumber, s.Established, s.Total)
	if err := p.reflection(s.Reflection); err != nil {
		return err
	}
	for _, sp := range s.Speakers {
		p.line("")
		if err := p.speaker(sp, s.ASNumber); err != nil {
			return err
		}
	}
	for i, n := range s.Notes {
		if i == 0 {
			p.line("")
		}
		p.line("note: %s", n)
	}
	_, err := w.Write(p.out.Bytes())
	return err
}

func (p *summaryPrinter) line(format string, args ...any) {
	_, _ = fmt.Fprintf(&p.out, format+"\n", args...)
}

func (p *summaryPrinter) reflection(r bgpReflection) error {
	p.line("route reflection %s; %s", r.Mode, p.mesh(r))
	if len(r.Reflectors) == 0 {
		return nil
	}
	p.line("")
	var t remarkTable
	t.row(nil, "REFLECTOR", "CLUSTER ID", "ZONE", "STATE", "FOR", "REASON")
	for _, x := range r.Reflectors {
		t.row(nil, x.Node, orDash(x.ClusterID), orDash(x.Zone), string(x.State), age(&x.Since, p.now), orDash(x.Reason))
	}
	return t.write(&p.out, nil)
}

func (p *summaryPrinter) mesh(r bgpReflection) string {
	if r.Mesh == nil {
		return "what the controller chose is not known"
	}
	s := "mesh: no"
	if *r.Mesh {
		s = "mesh: yes"
	}
	if r.MeshSince != nil {
		s += ", for " + age(r.MeshSince, p.now)
	}
	if r.Reason != "" {
		s += ": " + r.Reason
	}
	return s
}

func (p *summaryPrinter) speaker(s bgpSpeaker, as int64) error {
	if s.Role == roleReflector {
		p.line("%s reflector, router ID %s, cluster ID %s, AS %d: %d/%d established, %d/%d clients converged, %d routes, %d paths",
			s.Node, orDash(s.RouterID), orDash(s.ClusterID), as, s.Established, s.Total, s.ClientsConverged, s.Clients, s.Routes, s.Paths)
	} else {
		p.line("%s speaker, AS %d: %d/%d established", s.Node, as, s.Established, s.Total)
	}
	if s.Problem != "" {
		p.line("    problem: %s", s.Problem)
	}
	if len(s.Neighbors) > 0 {
		var t remarkTable
		t.row(nil, p.cells("NEIGHBOR", "NAME", "AS", "STATE", "UP/DOWN", "PFX-RCD", "PFX-SNT", "REJECTED", "FLAPS", "BFD")...)
		for _, n := range s.Neighbors {
			t.row(p.remarks(n), p.cells(n.PeerIP, n.Name, fmt.Sprint(n.ASNumber), n.State, p.upDown(n), fmt.Sprint(n.PrefixesIn),
				fmt.Sprint(n.PrefixesOut), fmt.Sprint(n.Rejected), fmt.Sprint(n.Flaps), p.bfd(n))...)
		}
		if err := t.write(&p.out, nil); err != nil {
			return err
		}
	}
	if s.NotListed > 0 {
		p.line("… and %d more, which the NodeStatus does not list", s.NotListed)
	}
	return nil
}

// cells of a row; the last, BFD, is for the wide form.
func (p *summaryPrinter) cells(all ...string) []string {
	if p.wide {
		return all
	}
	return all[:len(all)-1]
}

func (p *summaryPrinter) upDown(n bgpNeighbor) string {
	if n.Since == nil {
		return "never"
	}
	return age(n.Since, p.now)
}

func (p *summaryPrinter) bfd(n bgpNeighbor) string {
	if n.BFD != "" && n.BFDSince != nil {
		return n.BFD + " " + age(n.BFDSince, p.now)
	}
	return orDash(n.BFD)
}

// remarks say why a session is not established, and in the wide form why it last was not.
func (p *summaryPrinter) remarks(n bgpNeighbor) []string {
	switch {
	case n.LastError == "":
		return nil
	case !n.established():
		return []string{n.LastError}
	case p.wide:
		return []string{"last went down: " + n.LastError}
	}
	return nil
}
