// SPDX-License-Identifier: Apache-2.0

//go:build linux

package speaker_test

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	packet "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/heliograph-dev/heliograph/bgp"
)

// raw is a peer that says exactly what a test wants, also what no good speaker would.
type raw struct {
	t       *testing.T
	addr    netip.Addr
	asn     uint32
	peerASN uint32
	conn    net.Conn
	mute    atomic.Bool // no KEEPALIVE any more
	// restarting: the OPEN of the other end had the restart bit, and the forwarding bit of each family.
	restarting bool

	mu            sync.Mutex
	notifications [][2]byte
	gone          chan struct{}
}

// rawPeer adds a peer to n that only connects, never listens.
func rawPeer(n *node, addr string, asn uint32) *bgp.Peer {
	other := &node{addr: netip.MustParseAddr(addr), name: "raw", desired: bgp.Desired{Global: bgp.Global{ASN: asn}}}
	return n.peerWith(other)
}

// dialRaw brings up a session from addr, trying until n lets it in (GoBGP is Idle for 5 s after a
// session ended).
func dialRaw(t *testing.T, n *node, addr string, asn uint32, extra ...packet.ParameterCapabilityInterface) *raw {
	t.Helper()
	r := &raw{t: t, addr: netip.MustParseAddr(addr), asn: asn, peerASN: n.desired.Global.ASN}
	caps := append([]packet.ParameterCapabilityInterface{
		packet.NewCapMultiProtocol(packet.RF_IPv4_UC),
		packet.NewCapMultiProtocol(packet.RF_IPv6_UC),
		packet.NewCapFourOctetASNumber(asn),
	}, extra...)
	open, err := packet.NewBGPOpenMessage(uint16(asn), 90, r.addr, []packet.OptionParameterInterface{packet.NewOptionParameterCapability(caps)})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a session from "+addr, func() bool { return r.try(n, open) }, func() string { return "" })
	r.gone = make(chan struct{})
	go r.read()
	go r.keepalive()
	t.Cleanup(func() { _ = r.conn.Close() })
	return r
}

func (r *raw) try(n *node, open *packet.BGPMessage) bool {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(r.addr, 0))}
	conn, err := d.Dial("tcp4", netip.AddrPortFrom(n.addr, testPort).String())
	if err != nil {
		return false
	}
	r.conn = conn
	r.send(open)
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	for {
		switch typ, body, err := readMessage(conn); {
		case err != nil || typ == packet.BGP_MSG_NOTIFICATION:
			_ = conn.Close()
			return false
		case typ == packet.BGP_MSG_OPEN:
			r.restarting = claimsRestart(r.t, body)
			r.send(packet.NewBGPKeepAliveMessage())
		case typ == packet.BGP_MSG_KEEPALIVE:
			_ = conn.SetReadDeadline(time.Time{})
			return true
		}
	}
}

// claimsRestart reads the graceful restart capability (RFC 4724 §3) of an OPEN.
func claimsRestart(t *testing.T, open []byte) bool {
	t.Helper()
	m := &packet.BGPOpen{}
	if err := m.DecodeFromBytes(open); err != nil {
		t.Fatal(err)
	}
	claims := false
	for _, o := range m.OptParams {
		caps, ok := o.(*packet.OptionParameterCapability)
		if !ok {
			continue
		}
		for _, c := range caps.Capability {
			gr, ok := c.(*packet.CapGracefulRestart)
			if !ok {
				continue
			}
			claims = gr.Flags&0x8 != 0
			for _, f := range gr.Tuples {
				if (f.Flags&0x80 != 0) != claims {
					t.Errorf("restarting %v, but family %d/%d has flags %x", claims, f.AFI, f.SAFI, f.Flags)
				}
			}
		}
	}
	return claims
}

func (r *raw) read() {
	defer close(r.gone)
	for {
		typ, body, err := readMessage(r.conn)
		if err != nil {
			return
		}
		if typ == packet.BGP_MSG_NOTIFICATION {
			r.mu.Lock()
			r.notifications = append(r.notifications, [2]byte{body[0], body[1]})
			r.mu.Unlock()
		}
	}
}

func (r *raw) keepalive() {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	alive := message(packet.BGP_MSG_KEEPALIVE, nil)
	for {
		select {
		case <-tick.C:
			if !r.mute.Load() {
				_, _ = r.conn.Write(alive)
			}
		case <-r.gone:
			return
		}
	}
}

func readMessage(c io.Reader) (typ byte, body []byte, err error) {
	head := make([]byte, packet.BGP_HEADER_LENGTH)
	if _, err := io.ReadFull(c, head); err != nil {
		return 0, nil, err
	}
	body = make([]byte, int(binary.BigEndian.Uint16(head[16:]))-len(head))
	_, err = io.ReadFull(c, body)
	return head[18], body, err
}

func (r *raw) send(m *packet.BGPMessage) {
	r.t.Helper()
	b, err := m.Serialize()
	if err != nil {
		r.t.Fatal(err)
	}
	r.write(b)
}

func (r *raw) write(b []byte) {
	if _, err := r.conn.Write(b); err != nil {
		r.t.Logf("raw peer: %v", err)
	}
}

// announce sends a route; on eBGP the peer's own AS comes first in AS_PATH.
func (r *raw) announce(prefix, nextHop string, path ...uint32) {
	r.t.Helper()
	p := netip.MustParsePrefix(prefix)
	nlri, err := packet.NewIPAddrPrefix(p)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.asn != r.peerASN {
		path = append([]uint32{r.asn}, path...)
	}
	var segments []packet.AsPathParamInterface
	if len(path) > 0 {
		segments = append(segments, packet.NewAs4PathParam(packet.BGP_ASPATH_ATTR_TYPE_SEQ, path))
	}
	attrs := []packet.PathAttributeInterface{packet.NewPathAttributeOrigin(0), packet.NewPathAttributeAsPath(segments)}
	if r.asn == r.peerASN {
		attrs = append(attrs, packet.NewPathAttributeLocalPref(100))
	}
	nh := netip.MustParseAddr(nextHop)
	if p.Addr().Is4() && nh.Is4() {
		a, _ := packet.NewPathAttributeNextHop(nh)
		r.send(packet.NewBGPUpdateMessage(nil, append(attrs, a), []packet.PathNLRI{{NLRI: nlri}}))
		return
	}
	family := packet.RF_IPv6_UC
	if p.Addr().Is4() {
		family = packet.RF_IPv4_UC
	}
	a, err := packet.NewPathAttributeMpReachNLRI(family, []packet.PathNLRI{{NLRI: nlri}}, nh)
	if err != nil {
		r.t.Fatal(err)
	}
	r.send(packet.NewBGPUpdateMessage(nil, append(attrs, a), nil))
}

func (r *raw) withdraw(prefix string) {
	r.t.Helper()
	nlri, err := packet.NewIPAddrPrefix(netip.MustParsePrefix(prefix))
	if err != nil {
		r.t.Fatal(err)
	}
	r.send(packet.NewBGPUpdateMessage([]packet.PathNLRI{{NLRI: nlri}}, nil, nil))
}

func (r *raw) endOfRIB(f packet.Family) { r.send(packet.NewEndOfRib(f)) }
