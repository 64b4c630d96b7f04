// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

const socketPort = 1790

// listening is a reflector on real sockets, in a network namespace.
func listening(t *testing.T, peers ...Peer) *Reflector {
	t.Helper()
	r := New(Options{}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	cfg := Config{
		ASN: 64512, RouterID: addr("10.255.0.1"), Peers: peers,
		Listen: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:1790"), netip.MustParseAddrPort("[::]:1790")},
	}
	if err := r.Apply(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Stop(context.Background(), false) })
	return r
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// tcpClient connects, with a password and a TTL if they are given.
func tcpClient(from, to netip.Addr, password string, ttl int) (net.Conn, error) {
	d := net.Dialer{Timeout: 500 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
	d.Control = func(_, _ string, c syscall.RawConn) error {
		return control(c, func(fd int) error {
			if ttl != 0 && to.Is4() {
				if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, ttl); err != nil {
					return err
				}
			} else if ttl != 0 {
				if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, ttl); err != nil {
					return err
				}
			}
			if password == "" {
				return nil
			}
			return setPassword(fd, netip.PrefixFrom(to, to.BitLen()), password, unix.TCP_MD5SIG)
		})
	}
	conn, err := d.Dial("tcp", netip.AddrPortFrom(to, socketPort).String())
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// speaks tells whether a client gets an OPEN, and then a KEEPALIVE for its own. TTL security begins when a
// connection is accepted, so the client listens first.
func speaks(t *testing.T, from, to netip.Addr, password string, ttl int) bool {
	t.Helper()
	conn, err := tcpClient(from, to, password, ttl)
	if err != nil {
		return false
	}
	t.Cleanup(func() { _ = conn.Close() })
	id := from.As16()
	ours := open{asn: 64512, hold: 90, families: 3, as4: true, id: [4]byte{10, id[13], id[14], id[15]}}
	for _, want := range []byte{msgOpen, msgKeepalive} {
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		h := make([]byte, headerLen)
		if _, err := io.ReadFull(conn, h); err != nil || h[18] != want {
			return false
		}
		_, _ = io.CopyN(io.Discard, conn, int64(h[16])<<8+int64(h[17])-headerLen)
		_, _ = conn.Write(append(ours.message(), keepaliveMessage()...))
	}
	return true
}

// RFC 2385, for single clients and ranges, and RFC 5082, in both families.
func TestSockets(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		nettest.Cmd(t, "ip", "addr", "add", "2001:db8::1/64", "dev", "lo", "nodad")
		nettest.Cmd(t, "ip", "addr", "add", "2001:db8::2/64", "dev", "lo", "nodad")
		nettest.Cmd(t, "ip", "addr", "add", "2001:db8:1::2/64", "dev", "lo", "nodad")
		peer := func(prefix string, password bgp.Password, hops uint8) Peer {
			return Peer{Prefix: pfx(prefix), Password: password, TTLHops: hops, Accept: Policy{Any: true}, Advertise: Policy{Any: true}}
		}
		listening(t, peer("127.1.0.0/16", "range", 0), peer("127.1.0.9/32", "single", 0), peer("127.2.0.0/16", "", 1),
			peer("127.3.0.0/16", "", 0), peer("2001:db8::/64", "six", 0), peer("2001:db8:1::/64", "", 1))
		for _, tc := range []struct {
			from, password string
			ttl            int
			want           bool
		}{
			{"127.1.0.1", "range", 0, true},
			{"127.1.0.1", "other", 0, false},
			{"127.1.0.1", "", 0, false},
			{"127.1.0.9", "single", 0, true},
			{"127.1.0.9", "range", 0, false},
			{"127.3.0.1", "", 0, true},
			{"127.2.0.1", "", 255, true},
			{"127.2.0.2", "", 64, false},
			{"127.9.0.1", "", 0, false},
			{"2001:db8::2", "six", 0, true},
			{"2001:db8::2", "other", 0, false},
			{"2001:db8:1::2", "", 255, true},
			{"2001:db8:1::2", "", 64, false},
		} {
			to := addr("127.0.0.1")
			if addr(tc.from).Is6() {
				to = addr("2001:db8::1")
			}
			if got := speaks(t, addr(tc.from), to, tc.password, tc.ttl); got != tc.want {
				t.Errorf("from %s with password %q and TTL %d: %t", tc.from, tc.password, tc.ttl, got)
			}
		}
	})
}

// Two reflectors that are each other's neighbours, one of which dials, and both dial.
func TestConnects(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		one := New(Options{}, slog.New(slog.NewTextHandler(t.Output(), nil)).With("in", "one"))
		two := New(Options{}, slog.New(slog.NewTextHandler(t.Output(), nil)).With("in", "two"))
		cfg := func(own, other string) Config {
			return Config{ASN: 64512, RouterID: addr(own), Listen: []netip.AddrPort{netip.AddrPortFrom(addr(own), socketPort)}, Peers: []Peer{{
				Prefix: netip.PrefixFrom(addr(other), 32), NonClient: true, Connect: true, Port: socketPort, LocalAddress: addr(own), Password: "sesame",
				Timers: bgp.Timers{ConnectRetry: 200 * time.Millisecond}, Accept: Policy{Any: true}, Advertise: Policy{Any: true},
			}}}
		}
		for r, c := range map[*Reflector]Config{one: cfg("127.0.0.1", "127.0.0.2"), two: cfg("127.0.0.2", "127.0.0.1")} {
			if err := r.Apply(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = r.Stop(context.Background(), false) })
		}
		for _, r := range []*Reflector{one, two} {
			eventually(t, "the session", func() bool {
				s := r.Snapshot().Sessions
				return len(s) == 1 && s[0].State == bgp.StateEstablished && len(s[0].EndOfRIB) == 2
			})
		}
	})
}

// A client that stops reading but goes on sending KEEPALIVEs is dropped within two hold times, long before
// the kernel's buffers are full; another goes on.
func TestStall(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		const holdTime = 3
		r := listening(t, Peer{Prefix: pfx("127.1.0.0/16"), Accept: Policy{Any: true}, Advertise: Policy{Any: true}})
		join := func(from string, hold uint16) net.Conn {
			conn, err := tcpClient(addr(from), addr("127.0.0.1"), "", 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			_ = conn.(*net.TCPConn).SetReadBuffer(4096)
			o := open{asn: 64512, hold: hold, families: 3, as4: true, id: addr(from).As4()}
			_, _ = conn.Write(append(o.message(), keepaliveMessage()...))
			return conn
		}
		state := func(from string) Session {
			for _, s := range r.Snapshot().Sessions {
				if s.Address == addr(from) {
					return s
				}
			}
			return Session{}
		}
		busy, lazy := join("127.1.0.1", 0), join("127.1.0.2", holdTime)
		go func() { _, _ = io.Copy(io.Discard, busy) }()
		eventually(t, "both sessions", func() bool {
			return state("127.1.0.1").State == bgp.StateEstablished && state("127.1.0.2").State == bgp.StateEstablished
		})
		start, i := time.Now(), 0
		eventually(t, "its end", func() bool {
			for range 20 {
				i++
				_, _ = busy.Write(announce4("192.0.2.1", netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24).String(), med(byte(i))))
			}
			_, _ = lazy.Write(keepaliveMessage())
			return state("127.1.0.2").State != bgp.StateEstablished
		})
		if took := time.Since(start); took > 2*holdTime*time.Second {
			t.Errorf("dropped after %s", took)
		}
		// What the full receiver drops are acknowledgements too, so its own KEEPALIVEs may get stuck as well:
		// the two timers run out at about the same time, and either is right.
		if why := state("127.1.0.2").LastError; why != stalled && why != "hold timer expired" {
			t.Errorf("dropped since %q", why)
		}
		if s := state("127.1.0.1"); s.Flaps != 0 {
			t.Errorf("the other: %+v", s)
		}
	})
}

// Two speakers at one address, as a node's reflector and its speaker are, are told apart by their router
// IDs: each has its own role and its own routes. A third is refused.
func TestTwoAtOneAddress(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		at := pfx("127.1.0.1/32")
		r := listening(t,
			Peer{Name: "client", Prefix: at, RouterID: addr("1.1.1.1"), Accept: Policy{Rules: []Rule{{Prefix: pfx("10.1.0.0/16")}}}, Advertise: Policy{Any: true}},
			Peer{Name: "reflector", Prefix: at, RouterID: addr("2.2.2.2"), NonClient: true, Accept: Policy{Any: true}, Advertise: Policy{Any: true}},
		)
		join := func(id string) net.Conn {
			conn, err := tcpClient(at.Addr(), addr("127.0.0.1"), "", 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			o := open{asn: 64512, hold: 90, families: 3, as4: true, id: addr(id).As4()}
			_, _ = conn.Write(append(o.message(), keepaliveMessage()...))
			return conn
		}
		ids := func() string {
			var out []string
			for _, s := range r.Snapshot().Sessions {
				if s.State == bgp.StateEstablished {
					out = append(out, s.Peer+" "+s.RouterID.String())
				}
			}
			slices.Sort(out)
			return strings.Join(out, ", ")
		}
		const both = "client 1.1.1.1, reflector 2.2.2.2"
		second, first := join("2.2.2.2"), join("1.1.1.1")
		eventually(t, "both sessions", func() bool { return ids() == both })
		_, _ = first.Write(append(announce4("192.0.2.1", "10.1.0.0/24"), announce4("192.0.2.1", "10.2.0.0/24")...))
		_, _ = second.Write(announce4("192.0.2.1", "10.2.0.0/24"))
		sources := func() string {
			var out []string
			for _, route := range r.Routes(netip.Prefix{}) {
				for _, p := range route.Paths {
					out = append(out, route.Prefix.String()+" "+p.Peer)
				}
			}
			return strings.Join(out, ", ")
		}
		eventually(t, "the routes of both", func() bool { return sources() == "10.1.0.0/24 client, 10.2.0.0/24 reflector" })
		stranger := join("3.3.3.3")
		_ = stranger.SetReadDeadline(time.Now().Add(5 * time.Second))
		said, _ := io.ReadAll(stranger)
		if want := []byte{msgNotification, errOpen, subBadID}; !bytes.Contains(said, want) {
			t.Errorf("a third speaker is told % x, want a NOTIFICATION % x", said, want)
		}
		diff(t, "sessions after it", ids(), both)
	})
}
