// SPDX-License-Identifier: Apache-2.0

package routes

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os/exec"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/test/bench/table"
)

// repeats is how often the quick ways run in a round: they are over before a noisy neighbour is.
const repeats = 3

// way is one way to program n routes. What prepare does (making the lists, or the text for ip) is not
// timed, what it returns is.
type way struct {
	name    string
	target  table.Target
	quick   bool
	prepare func(n int) func() error
}

// programming compares ways to put n routes into an empty table, interleaved within each round.
func (b *bench) programming(n int) (table.Table, error) {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return table.Table{}, err
	}
	b.link = uint32(link.Attrs().Index)
	ways := []way{
		{"heliograph", table.Target{}, true, b.ours},
		{"raw netlink, nexthop objects", table.AtLeast(0.8), true, b.rawNexthops},
		{"raw netlink, plain", table.AtLeast(0.8), true, b.rawPlain},
		{"`ip -batch`, nexthop objects", table.AtLeast(2), false, b.ipNexthops},
		{"`ip -batch`, plain", table.AtLeast(2), false, b.ipPlain},
		{"netlink.RouteReplace, plain", table.AtLeast(5), false, b.routeReplace},
	}
	times := make([][]time.Duration, len(ways))
	for turn := range rounds * repeats {
		for i, w := range ways {
			if !w.quick && turn%repeats != 0 {
				continue
			}
			t, err := b.program(w, n)
			if err != nil {
				return table.Table{}, fmt.Errorf("%s: %w", w.name, err)
			}
			times[i] = append(times[i], t)
		}
	}
	t := table.Table{
		Title: fmt.Sprintf("Programming %d routes", n),
		Note:  fmt.Sprintf("Into an empty table, over %d next hops, with all that it takes: nexthop objects, first reading of the kernel, comparison. Ratio of speeds, of runs next to each other, and medians, of %d interleaved rounds (of %d for those over in less than a second).", gateways, rounds, rounds*repeats),
	}
	us := table.Median(times[0])
	var first []time.Duration // ours of the turns in which all ways ran
	for turn := 0; turn < len(times[0]); turn += repeats {
		first = append(first, times[0][turn])
	}
	for i, w := range ways[1:] {
		beside := first
		if w.quick {
			beside = times[0]
		}
		them := table.Median(times[i+1])
		t.Rows = append(t.Rows, table.Row{
			What: "time", Ours: table.Millis(us) + ", " + table.PerSecond(n, us), Beside: w.name,
			Theirs: table.Millis(them) + ", " + table.PerSecond(n, them), Ratio: table.MedianRatio(times[i+1], beside), Target: w.target,
		})
	}
	return t, nil
}

// program times one way, checks that the kernel holds all routes, and takes them out again.
func (b *bench) program(w way, n int) (time.Duration, error) {
	t, err := timed(w.prepare(n))
	if err != nil {
		return 0, err
	}
	if count, err := b.dump(); err != nil || count != n {
		return 0, fmt.Errorf("%d routes in the kernel, want %d: %w", count, n, err)
	}
	return t, b.clear(n)
}

func (b *bench) ours(n int) func() error {
	nhs, all := nexthops(), routesTo(n)
	return func() error {
		d, err := newDrivers()
		if err != nil {
			return err
		}
		defer func() { _ = d.conn.Close() }()
		d.nexthops.SetDesired(nhs)
		d.routes.SetDesired(all)
		return d.apply(b.ctx)
	}
}

// rawNexthops makes the same objects as ours does, then the routes.
func (b *bench) rawNexthops(n int) func() error {
	return func() error {
		err := b.raw.Each(gateways, func(g int) int {
			at := b.raw.Begin(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE|unix.NLM_F_EXCL, unix.AF_INET, 0, protocol, 0, 0, 0, 0, 0)
			b.raw.Attr32(unix.NHA_ID, singleIDs+uint32(g))
			b.raw.Attr32(unix.NHA_OIF, b.link)
			a := gateway(g).As4()
			b.raw.Attr(unix.NHA_GATEWAY, a[:])
			b.raw.End(at)
			return at
		})
		if err != nil {
			return err
		}
		err = b.raw.Each(gateways, func(g int) int {
			at := b.raw.Begin(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE|unix.NLM_F_EXCL, unix.AF_UNSPEC, 0, protocol, 0, 0, 0, 0, 0)
			b.raw.Attr32(unix.NHA_ID, groupIDs+uint32(g))
			member := binary.NativeEndian.AppendUint32(make([]byte, 0, 8), singleIDs+uint32(g))
			b.raw.Attr(unix.NHA_GROUP, append(member, 0, 0, 0, 0))
			b.raw.End(at)
			return at
		})
		if err != nil {
			return err
		}
		return b.rawRoutes(n, func(i int) uint32 { return groupIDs + uint32(i/4%gateways) })
	}
}

func (b *bench) rawPlain(n int) func() error {
	return func() error { return b.rawRoutes(n, func(int) uint32 { return 0 }) }
}

func (b *bench) rawRoutes(n int, nexthop func(i int) uint32) error {
	return b.raw.Each(n, func(i int) int {
		return b.rawRoute(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, i, b.link, nexthop(i))
	})
}

func (b *bench) ipNexthops(n int) func() error {
	var in bytes.Buffer
	for g := range gateways {
		fmt.Fprintf(&in, "nexthop add id %d via %s dev %s proto %d\n", singleIDs+uint32(g), gateway(g), device, protocol)
		fmt.Fprintf(&in, "nexthop add id %d group %d proto %d\n", groupIDs+uint32(g), singleIDs+uint32(g), protocol)
	}
	for i := range n {
		fmt.Fprintf(&in, "route replace %s/%d nhid %d proto %d\n", address(i), bits, groupIDs+uint32(i/4%gateways), protocol)
	}
	return func() error { return ipBatch(&in) }
}

func (b *bench) ipPlain(n int) func() error {
	var in bytes.Buffer
	for i := range n {
		fmt.Fprintf(&in, "route replace %s/%d via %s dev %s proto %d\n", address(i), bits, gateway(i/4%gateways), device, protocol)
	}
	return func() error { return ipBatch(&in) }
}

func ipBatch(in *bytes.Buffer) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = in
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip -batch: %w: %.200s", err, out)
	}
	return nil
}

func (b *bench) routeReplace(n int) func() error {
	return func() error {
		for i := range n {
			if err := netlink.RouteReplace(vishRoute(i, int(b.link))); err != nil {
				return err
			}
		}
		return nil
	}
}

func vishRoute(i, link int) *netlink.Route {
	a, g := address(i).As4(), gateway(i/4%gateways).As4()
	return &netlink.Route{
		Dst: &net.IPNet{IP: a[:], Mask: net.CIDRMask(bits, 32)}, Gw: g[:], LinkIndex: link, Protocol: protocol,
	}
}
