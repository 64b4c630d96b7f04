// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	packet "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/heliograph-dev/heliograph/bgp"
)

const (
	// deferral is how long our routes wait for the End-of-RIB of peers after a restart. It is
	// short, since we do not forward by what we re-advertise, and one peer that is down would make
	// all others wait for it (GoBGP's default is 360 s).
	deferral = 3 * time.Second
	// maxRestartTime is what fits into 12 bits (RFC 4724 §3).
	maxRestartTime = 4095 * time.Second
	// anyOwnASN makes GoBGP pass routes with our AS in their path on to us: it would refuse such a
	// route without removing the one that it replaces.
	anyOwnASN = 255
)

// buildGlobal is the server that g asks for.
func buildGlobal(g bgp.Global, listen []netip.Addr) *api.Global {
	port := int32(g.Port)
	if port == 0 {
		port = -1 // GoBGP's word for none
	}
	out := &api.Global{
		Asn:        g.ASN,
		RouterId:   g.RouterID.String(),
		ListenPort: port,
		// GoBGP's numbers of IPv4 and IPv6 unicast. Without them it makes tables for 20 families.
		Families: []uint32{0, 1},
	}
	for _, a := range listen {
		out.ListenAddresses = append(out.ListenAddresses, a.String())
	}
	return out
}

// buildPeer is the neighbour that p asks for. What is none of GoBGP's business (Name, Accept,
// AllowOwnASN) has no part in it: even another description would reset the session. Nor has a prefix
// limit: GoBGP counts its whole table for each UPDATE to check it.
func buildPeer(p bgp.Peer, restarting bool) *api.Peer {
	gr := p.GracefulRestart
	out := &api.Peer{
		Conf: &api.PeerConf{
			NeighborAddress: p.Address.String(),
			PeerAsn:         p.ASN,
			AuthPassword:    string(p.Password),
			AllowOwnAsn:     anyOwnASN,
		},
		Timers: &api.Timers{Config: buildTimers(p.Timers)},
		Transport: &api.Transport{
			RemotePort: uint32(p.Port),
		},
		// Helper always (HelperOnly announces no family), restarting side as asked.
		GracefulRestart: &api.GracefulRestart{
			Enabled:         true,
			HelperOnly:      !gr.Enabled,
			RestartTime:     seconds32(restartTime(p)),
			DeferralTime:    seconds32(deferral),
			LocalRestarting: gr.Enabled && restarting,
		},
	}
	if p.LocalAddress.IsValid() {
		out.Transport.LocalAddress = p.LocalAddress.String()
	}
	if p.EBGPMultihop > 1 {
		out.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: uint32(p.EBGPMultihop)}
	}
	for _, f := range families(p) {
		out.AfiSafis = append(out.AfiSafis, &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: apiFamily(f), Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: gr.Enabled}},
		})
	}
	return out
}

func buildTimers(t bgp.Timers) *api.TimersConfig {
	hold := t.Hold
	if hold > 0 && hold < 3*time.Second {
		hold = 3 * time.Second // RFC 4271 §4.2
	}
	return &api.TimersConfig{
		HoldTime:               uint64(seconds32(hold)),
		KeepaliveInterval:      uint64(seconds32(t.Keepalive)),
		ConnectRetry:           uint64(seconds32(t.ConnectRetry)),
		IdleHoldTimeAfterReset: 1, // 30 if not set
	}
}

// restartTime is what we announce to p: the time that we may need to come back.
func restartTime(p bgp.Peer) time.Duration {
	return min(p.GracefulRestart.RestartTime, maxRestartTime)
}

// families of the session with p; its own family if p names none.
func families(p bgp.Peer) []bgp.Family {
	if len(p.Families) == 0 {
		return []bgp.Family{bgp.FamilyOf(p.Address)}
	}
	return p.Families
}

// buildPath is the path that o asks for.
func buildPath(o bgp.Origin) (*apiutil.Path, error) {
	nlri, err := packet.NewIPAddrPrefix(o.Prefix)
	if err != nil {
		return nil, err
	}
	family := bgp.FamilyOf(o.Prefix.Addr())
	if o.NextHop.IsUnspecified() || bgp.FamilyOf(o.NextHop) != family {
		return nil, fmt.Errorf("next hop %s cannot serve %s", o.NextHop, family)
	}
	attrs := []packet.PathAttributeInterface{packet.NewPathAttributeOrigin(packet.BGP_ORIGIN_ATTR_TYPE_IGP)}
	if family == bgp.IPv4 {
		nh, err := packet.NewPathAttributeNextHop(o.NextHop.Unmap())
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, nh)
	} else {
		reach, err := packet.NewPathAttributeMpReachNLRI(packet.RF_IPv6_UC, []packet.PathNLRI{{NLRI: nlri}}, o.NextHop)
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, reach)
	}
	return &apiutil.Path{Family: packetFamily(family), Nlri: nlri, Attrs: attrs}, nil
}

// update is what one peer says about one prefix.
type update struct {
	peer     netip.Addr
	prefix   netip.Prefix
	withdraw bool
	nextHop  netip.Addr // invalid if there is none that could be used
	pathLen  int        // of AS_PATH, as RFC 4271 §9.1.2.2 counts it
	ownASN   uint8      // how often our AS stands in AS_PATH
	reflected
}

// reflected is what reflectors say of a route: bgp.Path.
type reflected struct {
	originator netip.Addr
	clusters   string
}

// parsePath reads a received path; asn is our own. It is false for what is no unicast route.
func parsePath(p *apiutil.Path, asn uint32) (update, bool) {
	nlri, ok := p.Nlri.(*packet.IPAddrPrefix)
	if !ok || (p.Family != packet.RF_IPv4_UC && p.Family != packet.RF_IPv6_UC) {
		return update{}, false
	}
	u := update{peer: p.PeerAddress.Unmap(), prefix: nlri.Prefix.Masked(), withdraw: p.Withdrawal}
	for _, a := range p.Attrs {
		switch a := a.(type) {
		case *packet.PathAttributeNextHop:
			u.nextHop = a.Value
		case *packet.PathAttributeMpReachNLRI:
			u.nextHop = a.Nexthop
		case *packet.PathAttributeAsPath:
			u.pathLen, u.ownASN = measure(a, asn)
		case *packet.PathAttributeOriginatorId:
			u.originator = a.Value
		case *packet.PathAttributeClusterList:
			u.clusters = clusterList(a.Value)
		}
	}
	if !usable(u.nextHop, bgp.FamilyOf(u.prefix.Addr())) {
		u.nextHop = netip.Addr{}
	}
	return u, true
}

func clusterList(ids []netip.Addr) string {
	var b strings.Builder
	for i, id := range ids {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(id.String())
	}
	return b.String()
}

// usable tells whether the kernel could route a prefix of the family by the next hop. An IPv4 prefix
// may have an IPv6 next hop (RFC 8950), but not the other way round: FRR sends an IPv4-mapped next
// hop on an IPv4 session if its interface has no global IPv6 address.
func usable(nh netip.Addr, family bgp.Family) bool {
	if !nh.IsValid() || nh.IsUnspecified() || nh.IsMulticast() || nh.IsLinkLocalUnicast() {
		return false
	}
	return family == bgp.IPv4 || bgp.FamilyOf(nh) == bgp.IPv6
}

// measure returns the length of an AS_PATH and how often asn stands in it.
func measure(path *packet.PathAttributeAsPath, asn uint32) (length int, own uint8) {
	for _, segment := range path.Value {
		length += segment.ASLen() // an AS_SET counts one
		for _, as := range segment.GetAS() {
			if as == asn && own < 255 {
				own++
			}
		}
	}
	return length, own
}

func apiFamily(f bgp.Family) *api.Family {
	if f == bgp.IPv6 {
		return &api.Family{Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_UNICAST}
	}
	return &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
}

func packetFamily(f bgp.Family) packet.Family {
	if f == bgp.IPv6 {
		return packet.RF_IPv6_UC
	}
	return packet.RF_IPv4_UC
}

func seconds32(d time.Duration) uint32 { return uint32(d / time.Second) }

// familySet is a set of the two families.
type familySet uint8

func (s familySet) has(f bgp.Family) bool { return s&familyBit(f) != 0 }

func (s familySet) with(f bgp.Family) familySet { return s | familyBit(f) }

func (s familySet) list() []bgp.Family {
	var out []bgp.Family
	for _, f := range []bgp.Family{bgp.IPv4, bgp.IPv6} {
		if s.has(f) {
			out = append(out, f)
		}
	}
	return out
}

func familyBit(f bgp.Family) familySet {
	if f == bgp.IPv6 {
		return 2
	}
	return 1
}

// familyOf reads GoBGP's family; it is false for all but the unicast families.
func familyOf(f packet.Family) (bgp.Family, bool) {
	switch f {
	case packet.RF_IPv4_UC:
		return bgp.IPv4, true
	case packet.RF_IPv6_UC:
		return bgp.IPv6, true
	}
	return 0, false
}

// capabilities is what matters to us of a peer's OPEN.
type capabilities struct {
	families    familySet // that it speaks
	graceful    familySet // whose routes survive its restart
	restartTime time.Duration
}

func parseCapabilities(caps []packet.ParameterCapabilityInterface) capabilities {
	var out capabilities
	for _, c := range caps {
		switch c := c.(type) {
		case *packet.CapMultiProtocol:
			if f, ok := familyOf(c.CapValue); ok {
				out.families = out.families.with(f)
			}
		case *packet.CapGracefulRestart:
			out.restartTime = time.Duration(c.Time) * time.Second
			out.graceful = 0
			for _, t := range c.Tuples {
				if f, ok := familyOf(packet.NewFamily(t.AFI, t.SAFI)); ok {
					out.graceful = out.graceful.with(f)
				}
			}
		}
	}
	if out.families == 0 {
		out.families = familyBit(bgp.IPv4) // RFC 4760: no capability means IPv4 unicast
	}
	return out
}
