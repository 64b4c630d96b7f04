// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"io"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"
)

func (s policyStatus) write(w io.Writer, form string, now time.Time) error {
	switch form {
	case "json":
		return encodeJSON(w, s)
	case "", "wide":
		var out bytes.Buffer
		if err := s.writeTables(&out, form == "wide" || s.named, now); err != nil {
			return err
		}
		_, err := w.Write(out.Bytes())
		return err
	}
	return fmt.Errorf("--output is %q: it can be wide or json", form)
}

func (s policyStatus) writeTables(w io.Writer, details bool, now time.Time) error {
	if len(s.Policies) == 0 {
		_, _ = fmt.Fprintln(w, "there is no policy")
	} else {
		var t remarkTable
		t.row(nil, "POLICY", "GENERATION", "IN FORCE", "SLOWEST")
		for _, p := range s.Policies {
			t.row(p.Remarks, p.Policy.String(), p.generation(), p.inForce(), p.slowest())
		}
		if err := t.write(w, nil); err != nil {
			return err
		}
	}
	for _, p := range s.Policies {
		if !details {
			break
		}
		if err := p.writeDetails(w, now); err != nil {
			return err
		}
	}
	for i, n := range s.Notes {
		if i == 0 {
			_, _ = fmt.Fprintln(w)
		}
		_, _ = fmt.Fprintln(w, "note: "+n)
	}
	return nil
}

func (l policyLine) generation() string {
	if l.Generation == 0 {
		return "-"
	}
	return fmt.Sprint(l.Generation)
}

func (l policyLine) inForce() string {
	switch l.Concerned {
	case 0:
		return "selects no pod of these nodes"
	case 1:
		return fmt.Sprintf("on %d of the 1 node that it concerns", l.InForce)
	}
	return fmt.Sprintf("on %d of %d nodes that it concerns", l.InForce, l.Concerned)
}

func (l policyLine) slowest() string {
	if l.InForce == 0 {
		return "-"
	}
	return took(time.Duration(l.SlowestMicroseconds) * time.Microsecond)
}

func took(d time.Duration) string {
	if d < time.Second {
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

// writeDetails prints nodes and rules.
func (l policyLine) writeDetails(w io.Writer, now time.Time) error {
	if len(l.Nodes) == 0 {
		return nil
	}
	_, _ = fmt.Fprintf(w, "\n%s\n", l.Policy)
	var t remarkTable
	t.row(nil, "  NODE", "GENERATION", "PODS", "HEARD", "IN FORCE AFTER")
	for _, n := range l.Nodes {
		after, pods := "-", "none"
		if !n.InForce.IsZero() {
			after = took(n.InForce.Sub(n.Heard))
		}
		if n.Here {
			pods = "some"
		}
		t.row(nil, "  "+n.Node, fmt.Sprint(n.Generation), pods, duration.HumanDuration(now.Sub(n.Heard))+" ago", after)
	}
	if err := t.write(w, nil); err != nil || len(l.Rules) == 0 {
		return err
	}
	t = remarkTable{}
	t.row(nil, "  RULE", "PACKETS", "BYTES")
	for _, r := range l.Rules {
		t.row(nil, fmt.Sprintf("  %s[%d]", r.Rule.Direction, r.Rule.Index), fmt.Sprint(r.Packets), fmt.Sprint(r.Bytes))
	}
	return t.write(w, nil)
}
