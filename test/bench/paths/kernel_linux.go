// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/capability"
	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/path"
	"github.com/heliograph-dev/heliograph/test/bench/dataplane"
	"github.com/heliograph-dev/heliograph/test/bench/raw"
	"github.com/heliograph-dev/heliograph/test/bench/sandbox"
	"github.com/heliograph-dev/heliograph/test/bench/table"
)

// node is the kernel of one node of the cluster, and its agent.
type node struct {
	agent     *agent
	plane     *dataplane.Plane
	raw       *raw.Socket
	well, ill calc.RemoteState
	groups    [2][]desired.Nexthop // what differs, as it is in ill and in well
}

// times are of the same change, made in several ways.
type times struct{ driver, all, run, raw []time.Duration }

// program applies the change of paths to the kernel, to and fro, in turns with a bare socket.
func program(ctx context.Context) (table.Table, error) {
	n, err := newNode(ctx)
	if err != nil {
		return table.Table{}, err
	}
	defer n.plane.Close()
	var fall, rise times
	for range rounds {
		for i, t := range []*times{&fall, &rise} {
			if err := n.ours(ctx, i == 1, t); err != nil {
				return table.Table{}, err
			}
		}
		for i, t := range []*times{&fall, &rise} {
			c := measure(func() { err = n.bare(n.groups[i]) })
			if err != nil {
				return table.Table{}, err
			}
			t.raw = append(t.raw, c.wall)
		}
	}
	t := table.Table{
		Title: fmt.Sprintf("The rack's paths change in the kernel (%d nodes)", nodes),
		Note: fmt.Sprintf("The same in the kernel, in a namespace with %d routes. The driver: felix/nexthop's SetDesired and Apply. All drivers: SetDesired and Apply of all, with what they find unchanged. Whole run: the decision before that. Beside: the same %d messages on a bare netlink socket. Medians of %d interleaved rounds.",
			len(n.well.Routes), affected, rounds),
	}
	for _, w := range []struct {
		name string
		t    times
	}{{"falls to a tunnel", fall}, {"returns", rise}} {
		t.Rows = append(t.Rows, rows(w.name, w.t)...)
	}
	return t, nil
}

func rows(name string, t times) []table.Row {
	var out []table.Row
	for _, w := range []struct {
		name   string
		ours   []time.Duration
		target table.Target
	}{{"the driver", t.driver, table.AtMost(3)}, {"all drivers", t.all, table.Target{}}, {"whole run", t.run, table.Target{}}} {
		out = append(out, table.Row{
			What: name + ": " + w.name, Ours: table.Millis(table.Median(w.ours)), Beside: "raw netlink",
			Theirs: table.Millis(table.Median(t.raw)), Ratio: table.MedianRatio(w.ours, t.raw), Target: w.target,
		})
	}
	return out
}

// newNode puts the cluster's paths into the kernel.
func newNode(ctx context.Context) (*node, error) {
	can, err := capability.Probe(ctx, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	methods := path.CanVXLAN
	if can.IPIP {
		methods |= path.CanIPIP
	}
	n := &node{agent: newAgent(nodes, methods)}
	if err := n.attach(); err != nil {
		return nil, err
	}
	if n.plane, err = dataplane.Open(); err != nil {
		return nil, err
	}
	if n.raw, err = raw.Open(); err != nil {
		return nil, err
	}
	n.well = n.agent.state
	n.agent.now = n.agent.now.Add(time.Second)
	n.agent.run(n.agent.facts(n.agent.now, lostRack))
	n.ill = n.agent.state
	n.groups = [2][]desired.Nexthop{differing(n.ill, n.well), differing(n.well, n.ill)}
	n.plane.Set(n.well, calc.LocalState{})
	return n, n.plane.Apply(ctx)
}

// attach makes the node's uplink.
func (n *node) attach() error {
	commands := [][]string{
		{"link", "add", device, "type", "veth", "peer", "name", "up1"},
		{"link", "set", "up1", "up"}, {"link", "set", device, "up"},
	}
	for _, p := range n.agent.cluster.SelfAddresses() {
		args := []string{"address", "add", p.String(), "dev", device}
		if p.Addr().Is6() {
			args = append(args, "nodad")
		}
		commands = append(commands, args)
	}
	for _, args := range commands {
		if err := sandbox.Run("ip", args...); err != nil {
			return err
		}
	}
	return nil
}

// differing are the nexthop objects of a that are others in b.
func differing(a, b calc.RemoteState) []desired.Nexthop {
	other := map[desired.NexthopID]desired.Nexthop{}
	for _, n := range b.Nexthops {
		other[n.ID] = n
	}
	var out []desired.Nexthop
	for _, n := range a.Nexthops {
		if other[n.ID] != n {
			out = append(out, n)
		}
	}
	return out
}

// ours lets the drivers make the change. The decision is taken once more to know the time of the whole run.
func (n *node) ours(ctx context.Context, well bool, t *times) error {
	state, facts := n.ill, n.agent.facts(n.agent.now, lostRack)
	if well {
		state, facts = n.well, n.agent.facts(n.agent.now)
	}
	decision := measure(func() { n.agent.run(facts) })
	var err error
	before := n.plane.Sent()
	driver := measure(func() {
		n.plane.Nexthops.SetDesired(state.Nexthops)
		err = n.plane.Nexthops.Apply(ctx)
	})
	if err != nil {
		return err
	}
	if sent := n.plane.Sent() - before; sent != affected {
		return fmt.Errorf("the driver sent %d messages, want %d", sent, affected)
	}
	before = n.plane.Sent()
	rest := measure(func() {
		n.plane.Set(state, calc.LocalState{})
		err = n.plane.Apply(ctx)
	})
	if err != nil {
		return err
	}
	if sent := n.plane.Sent() - before; sent > affected { // the probes' routes
		return fmt.Errorf("all drivers together sent %d messages more, want %d at most", sent, affected)
	}
	t.driver = append(t.driver, driver.wall)
	t.all = append(t.all, driver.wall+rest.wall)
	t.run = append(t.run, decision.wall+driver.wall+rest.wall)
	return nil
}

// bare replaces groups by hand-made messages.
func (n *node) bare(groups []desired.Nexthop) error {
	return n.raw.Each(len(groups), func(i int) int {
		at := n.raw.Begin(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, unix.AF_UNSPEC, 0, desired.Protocol, 0, 0, 0, 0, 0)
		n.raw.Attr32(unix.NHA_ID, uint32(groups[i].ID))
		var members []byte
		for _, id := range groups[i].Members() {
			members = append(binary.NativeEndian.AppendUint32(members, uint32(id)), 0, 0, 0, 0)
		}
		n.raw.Attr(unix.NHA_GROUP, members)
		n.raw.End(at)
		return at
	})
}
