// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	packet "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/heliograph-dev/heliograph/bgp"
)

// bed is a reflector in a bubble of synctest, whose clients are at the other end of pipes.
type bed struct {
	*Reflector
	t   *testing.T
	cfg Config
}

// inBed runs f in a bubble: time passes when everybody waits.
func inBed(t *testing.T, opts Options, f func(t *testing.T, b *bed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, opts)
		defer b.stop(false)
		f(t, b)
	})
}

func newBed(t *testing.T, opts Options) *bed {
	b := &bed{t: t, Reflector: New(opts, slog.New(slog.NewTextHandler(t.Output(), nil)))}
	b.cfg = Config{
		ASN: 64512, RouterID: addr("10.255.0.1"),
		GracefulRestart: bgp.GracefulRestart{Enabled: true, RestartTime: 120 * time.Second},
		Peers:           []Peer{{Prefix: pfx("10.0.0.0/8"), Name: "clients", AddPaths: true, Accept: Policy{Any: true}, Advertise: Policy{Any: true}}},
	}
	b.apply()
	return b
}

func (b *bed) apply() {
	b.t.Helper()
	if err := b.Apply(context.Background(), b.cfg); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) stop(graceful bool) {
	if err := b.Stop(context.Background(), graceful); err != nil {
		b.t.Error(err)
	}
}

func addr(s string) netip.Addr  { return netip.MustParseAddr(s) }
func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// client is a hand-written speaker. It decodes with GoBGP's codec, which knows nothing of ours.
type client struct {
	t    *testing.T
	conn net.Conn
	addr netip.Addr
	open open

	stalled atomic.Bool // it reads no more until resume is closed
	resume  chan struct{}

	mu     sync.Mutex
	routes map[string]string
	log    []string // what came, in order
	closed bool
	alive  int    // KEEPALIVEs
	data   []byte // of the last NOTIFICATION
}

// dial connects a client with the usual capabilities, changed by the options.
func (b *bed) dial(address string, options ...func(*open)) *client {
	b.t.Helper()
	c := b.connect(address, options...)
	c.write(c.open.message(), keepaliveMessage())
	synctest.Wait()
	return c
}

// connect does not say anything yet.
func (b *bed) connect(address string, options ...func(*open)) *client {
	return b.crossed(address, false, options...)
}

// crossed is a connection that we or the client began.
func (b *bed) crossed(address string, active bool, options ...func(*open)) *client {
	near, far := net.Pipe()
	c := &client{t: b.t, conn: near, addr: addr(address), resume: make(chan struct{}), routes: map[string]string{}}
	c.open = open{asn: 64512, hold: 90, families: 3, as4: true, refresh: true, enhanced: true, extended: true, id: c.addr.As4()}
	for _, o := range options {
		o(&c.open)
	}
	go c.readLoop()
	b.run.serve(far, c.addr, active)
	synctest.Wait()
	return c
}

func withRestart(restarting bool) func(*open) {
	return func(o *open) {
		o.restart = &restart{restarting: restarting, time: 60 * time.Second, families: 3, forwarding: 3}
	}
}

// write does not fail: the other side may have gone.
func (c *client) write(messages ...[]byte) {
	for _, m := range messages {
		_ = c.conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = c.conn.Write(m)
	}
}

func (c *client) say(messages ...[]byte) {
	c.write(messages...)
	time.Sleep(20 * time.Millisecond) // of the bubble: flushes happen
	synctest.Wait()
}

func (c *client) close() {
	_ = c.conn.Close()
	synctest.Wait()
}

func (c *client) readLoop() {
	r := bufio.NewReader(c.conn)
	for {
		h := make([]byte, headerLen)
		if _, err := io.ReadFull(r, h); err != nil {
			c.note("closed")
			c.mu.Lock()
			c.closed = true
			c.mu.Unlock()
			return
		}
		body := make([]byte, int(binary.BigEndian.Uint16(h[16:]))-headerLen)
		if _, err := io.ReadFull(r, body); err != nil {
			c.note("closed within a message")
			return
		}
		c.message(h[18], append(h, body...))
		if c.stalled.Load() {
			<-c.resume
		}
	}
}

func (c *client) kept() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.alive
}

func (c *client) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log = append(c.log, fmt.Sprintf(format, args...))
}

func (c *client) message(typ byte, m []byte) {
	switch typ {
	case msgOpen:
		c.note("OPEN")
	case msgKeepalive:
		c.mu.Lock()
		c.alive++
		c.mu.Unlock()
	case msgNotification:
		c.note("%s", parseNotification(m[headerLen:]).text("got"))
		c.mu.Lock()
		c.data = m[headerLen+2:]
		c.mu.Unlock()
	case msgRefresh:
		c.note("refresh %d %d", m[20], m[21])
	default:
		var options []*packet.MarshallingOption
		if c.open.addPaths != 0 {
			options = append(options, &packet.MarshallingOption{AddPath: map[packet.Family]packet.BGPAddPathMode{
				packet.RF_IPv4_UC: packet.BGP_ADD_PATH_BOTH, packet.RF_IPv6_UC: packet.BGP_ADD_PATH_BOTH,
			}})
		}
		if !c.open.as4 {
			options = append(options, &packet.MarshallingOption{Use2ByteAS: true})
		}
		msg, err := packet.ParseBGPMessage(m, options...)
		if err != nil {
			c.note("UPDATE that GoBGP cannot read: %v: %x", err, m)
			return
		}
		c.update(msg.Body.(*packet.BGPUpdate))
	}
}

func (c *client) update(u *packet.BGPUpdate) {
	if ok, f := u.IsEndOfRib(); ok {
		c.note("end of %s", f)
		return
	}
	if err := packetValid(u); err != "" {
		c.note("bad UPDATE: %s", err)
	}
	var attrs []string
	add := func(verb string, list []packet.PathNLRI, hop string) {
		for _, n := range list {
			key := n.NLRI.String()
			if n.ID != 0 {
				key += fmt.Sprintf("#%d", n.ID)
			}
			c.note("%s %s", verb, key)
			c.mu.Lock()
			if verb == "+" {
				c.routes[key] = strings.TrimSpace(hop + " " + strings.Join(attrs, " "))
			} else {
				delete(c.routes, key)
			}
			c.mu.Unlock()
		}
	}
	hop := ""
	for _, a := range u.PathAttributes {
		switch x := a.(type) {
		case *packet.PathAttributeNextHop:
			hop = x.Value.String()
		case *packet.PathAttributeMpReachNLRI, *packet.PathAttributeMpUnreachNLRI:
		default:
			attrs = append(attrs, a.String())
		}
	}
	add("-", u.WithdrawnRoutes, "")
	for _, a := range u.PathAttributes {
		switch x := a.(type) {
		case *packet.PathAttributeMpUnreachNLRI:
			add("-", x.Value, "")
		case *packet.PathAttributeMpReachNLRI:
			add("+", x.Value, x.Nexthop.String())
		}
	}
	add("+", u.NLRI, hop)
}

// packetValid checks order and singleness of attributes.
func packetValid(u *packet.BGPUpdate) string {
	last := packet.BGPAttrType(0)
	for i, a := range u.PathAttributes {
		typ := a.GetType()
		if typ == packet.BGP_ATTR_TYPE_MP_REACH_NLRI || typ == packet.BGP_ATTR_TYPE_MP_UNREACH_NLRI {
			if i != 0 {
				return "MP attribute is not the first"
			}
			continue
		}
		if typ <= last {
			return fmt.Sprintf("attribute %s after %s", typ, last)
		}
		last = typ
	}
	return ""
}

// table prints the routes that the client has.
func (c *client) table() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for k, v := range c.routes {
		out = append(out, k+" "+v)
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// prefixes prints only which there are.
func (c *client) prefixes() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for k := range c.routes {
		out = append(out, k)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// events are what came since the last call.
func (c *client) events() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := strings.Join(c.log, ", ")
	c.log = nil
	return out
}

// What clients say.

func plainAttrs(hop string, more ...[]byte) []byte {
	a := []byte{0x40, attrOrigin, 1, 0, 0x40, attrASPath, 0}
	if hop != "" {
		a = append(a, 0x40, attrNextHop, 4)
		a = append(a, addr(hop).AsSlice()...)
	}
	a = append(a, 0x40, attrLocalPref, 4, 0, 0, 0, 100)
	return append(a, slices.Concat(more...)...)
}

func nlriBytes(prefixes ...string) []byte {
	var b []byte
	for _, s := range prefixes {
		_, p := fromNetip(pfx(s))
		b = p.appendTo(b)
	}
	return b
}

func rawUpdate(withdrawn, attrs, nlri []byte) []byte {
	b := appendHeader(nil, msgUpdate)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(withdrawn))), withdrawn...)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(attrs))), attrs...)
	return finish(append(b, nlri...), 0)
}

// announce4 and announce6 announce with the usual attributes and more.
func announce4(hop, prefix string, more ...[]byte) []byte {
	return rawUpdate(nil, plainAttrs(hop, more...), nlriBytes(prefix))
}

func announce6(hop, prefix string, more ...[]byte) []byte {
	v := append([]byte{0, afiIPv6, safiUnicast, 16}, addr(hop).AsSlice()...)
	v = append(append(v, 0), nlriBytes(prefix)...)
	return rawUpdate(nil, append(appendAttr(nil, flagOptional, attrMPReach, v), plainAttrs("", more...)...), nil)
}

func withdraw4(prefixes ...string) []byte { return rawUpdate(nlriBytes(prefixes...), nil, nil) }

func withdraw6(prefixes ...string) []byte {
	v := append([]byte{0, afiIPv6, safiUnicast}, nlriBytes(prefixes...)...)
	return rawUpdate(nil, appendAttr(nil, flagOptional, attrMPUnreach, v), nil)
}

func med(n byte) []byte       { return []byte{0x80, attrMED, 4, 0, 0, 0, n} }
func localPref(n byte) []byte { return []byte{0x40, attrLocalPref, 4, 0, 0, 0, n} }
func originator(s string) []byte {
	return append([]byte{0x80, attrOriginator, 4}, addr(s).AsSlice()...)
}
func clusters(s ...string) []byte {
	b := []byte{0x80, attrClusterList, byte(4 * len(s))}
	for _, x := range s {
		b = append(b, addr(x).AsSlice()...)
	}
	return b
}

// session returns the status of a client.
func (b *bed) session(address string) Session {
	for _, s := range b.Snapshot().Sessions {
		if s.Address == addr(address) {
			return s
		}
	}
	return Session{}
}
