// SPDX-License-Identifier: Apache-2.0

//go:build linux

package interop

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
)

// speakerClient is the node's speaker, which is GoBGP, in a process of its own.
type speakerClient struct {
	place
	desired bgp.Desired
	p       *process
}

func newSpeakerClient(p place) rrClient { return &speakerClient{place: p} }

func (c *speakerClient) start(t *testing.T) {
	c.desired = bgp.Desired{
		Global: bgp.Global{ASN: 64512, RouterID: netip.MustParseAddr(c.addr), Port: 1790},
		Origins: []bgp.Origin{
			{Prefix: netip.MustParsePrefix(c.v4()), NextHop: netip.MustParseAddr(c.addr)},
			{Prefix: netip.MustParsePrefix(c.v6()), NextHop: netip.MustParseAddr(c.addr6)},
		},
		Peers: []bgp.Peer{{
			Name: "node/reflector", Kind: bgp.PeerNode, Address: netip.MustParseAddr(c.up()), Port: 179, LocalAddress: netip.MustParseAddr(c.addr),
			ASN: 64512, Password: c.password, Families: []bgp.Family{bgp.IPv4, bgp.IPv6},
			Timers:          bgp.Timers{Hold: 9 * time.Second, Keepalive: 3 * time.Second, ConnectRetry: 2 * time.Second},
			GracefulRestart: bgp.GracefulRestart{Enabled: true, RestartTime: 60 * time.Second},
			Accept:          []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/16")},
		}},
	}
	c.run(t)
}

func (c *speakerClient) run(t *testing.T) {
	c.p = startSpeaker(t, c.desired, exec.Command("nsenter", "--net=/run/netns/"+c.ns, os.Args[0]))
}

// table is what it has; what is stale is used all the same.
func (c *speakerClient) table(*testing.T) string {
	return strings.ReplaceAll(c.p.routes(), "!stale", "")
}

func (c *speakerClient) kill(*testing.T) { c.p.kill() }

func (c *speakerClient) resume(t *testing.T) {
	c.desired.Global.Restarting = true
	c.run(t)
}

// refresh: it never asks, since it keeps what it does not accept.
func (c *speakerClient) refresh(*testing.T) {}

func (c *speakerClient) announceMore(t *testing.T, n int) {
	for i := 1; i <= n; i++ {
		c.desired.Origins = append(c.desired.Origins, bgp.Origin{
			Prefix: netip.MustParsePrefix(fmt.Sprintf("10.99.%d.0/24", i)), NextHop: netip.MustParseAddr(c.addr),
		})
	}
	c.p.apply(t, c.desired)
}

func (c *speakerClient) debug(*testing.T) string { return "the speaker has " + c.p.routes() }
