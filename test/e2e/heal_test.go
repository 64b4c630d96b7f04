// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestHeals breaks the kernel's state behind the agent's back; each breakage must be gone within a
// second.
func TestHeals(t *testing.T) {
	a, b := twoPods(t)
	wantAgentsReady(t)
	// state is all that the agent of node1 programmed, without counters and without what pods do.
	const state = `ip route show proto 80; ip -6 route show proto 80; ip nexthop show proto 80;
		ip -d link show hel-vxlan; bridge fdb show dev hel-vxlan; ip neigh show dev hel-vxlan nud permanent;
		ip addr show dev lo; nft list table inet heliograph | sed 's/counter packets [0-9]* bytes [0-9]*/counter/'`
	read := func() (string, error) { return try("exec", "node1", "sh", "-c", state) }
	before := steady(t, read)
	for _, tt := range []struct{ name, damage string }{
		{"a route is deleted", "ip route del $(ip route show proto 80 | grep nhid | head -1 | cut -d' ' -f1)"},
		{"an IPv6 route is deleted", "ip -6 route del $(ip -6 route show proto 80 | grep nhid | head -1 | cut -d' ' -f1)"},
		{"a pod's route is deleted", "ip route del " + a.ip4.String()},
		{"all nexthop objects are deleted", "ip nexthop flush proto 80"},
		{"the FDB is flushed", "bridge fdb show dev hel-vxlan | while read mac rest; do bridge fdb del $mac dev hel-vxlan; done"},
		{"the neighbours are flushed", "ip neigh flush dev hel-vxlan nud permanent"},
		{"the nft table is deleted", "nft delete table inet heliograph"},
		{"a rule is deleted", "nft flush chain inet heliograph forward"},
		{"hel-vxlan is set down", "ip link set hel-vxlan down"},
		{"hel-vxlan is deleted", "ip link del hel-vxlan"},
		{"the node's own address is deleted", "ip addr del $(ip -4 -o addr show dev lo scope global | awk '{print $4}') dev lo"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab(t, "exec", "node1", "sh", "-c", tt.damage)
			took := eventually(t, 10*time.Second, func() error {
				now, err := read()
				if err == nil && normal(now) != normal(before) {
					err = fmt.Errorf("differs from before: %s", firstDifference(normal(before), normal(now)))
				}
				return err
			})
			t.Logf("healed within %s, reading included", took.Round(time.Millisecond))
			if took > time.Second {
				t.Errorf("healed after %s, want within 1s", took)
			}
		})
	}
	if err := curl(a, b.ip4.String()); err != nil {
		t.Error(err)
	}
}

// steady reads until nothing has changed for two seconds: pods of the test before may still be on
// their way out, and their devices are part of the state.
func steady(t *testing.T, read func() (string, error)) string {
	t.Helper()
	var last string
	var since time.Time
	eventually(t, time.Minute, func() error {
		now, err := read()
		if err != nil {
			return err
		}
		if normal(now) != normal(last) {
			last, since = now, time.Now()
		}
		if time.Since(since) < 2*time.Second {
			return fmt.Errorf("the node's state still changes")
		}
		return nil
	})
	return last
}

// normal drops what differs between two equal states: handles, indices, the order of lines.
func normal(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		fields := strings.Fields(line)
		if len(fields) > 0 && strings.HasSuffix(fields[0], ":") {
			fields = fields[1:] // the interface's index
		}
		line = strings.Join(fields, " ")
		if i := strings.Index(line, " # handle"); i >= 0 {
			line = line[:i]
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func firstDifference(before, now string) string {
	a, b := strings.Split(before, "\n"), strings.Split(now, "\n")
	for i := range a {
		if i >= len(b) {
			return fmt.Sprintf("missing %q", a[i])
		}
		if a[i] != b[i] {
			return fmt.Sprintf("%q instead of %q", b[i], a[i])
		}
	}
	return fmt.Sprintf("%d lines more", len(b)-len(a))
}
