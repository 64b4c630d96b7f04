// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/osrg/gobgp/v4/api"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/heliograph-dev/heliograph/bgp"
)

func TestBuildPeer(t *testing.T) {
	in := bgp.Peer{
		Name:            "peer/tor",
		Kind:            bgp.PeerFabric,
		Address:         netip.MustParseAddr("192.168.11.254"),
		Port:            1790,
		LocalAddress:    netip.MustParseAddr("192.168.11.1"),
		ASN:             4200000001,
		Password:        "sesame",
		Timers:          bgp.Timers{Hold: time.Second, Keepalive: 500 * time.Millisecond, ConnectRetry: 5 * time.Second},
		EBGPMultihop:    3,
		AllowOwnASN:     1,
		GracefulRestart: bgp.GracefulRestart{Enabled: true, RestartTime: 2 * time.Hour},
		Families:        []bgp.Family{bgp.IPv6},
		Accept:          []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	}
	want := &api.Peer{
		Conf:         &api.PeerConf{NeighborAddress: "192.168.11.254", PeerAsn: 4200000001, AuthPassword: "sesame", AllowOwnAsn: 255},
		Timers:       &api.Timers{Config: &api.TimersConfig{HoldTime: 3, ConnectRetry: 5, IdleHoldTimeAfterReset: 1}},
		Transport:    &api.Transport{LocalAddress: "192.168.11.1", RemotePort: 1790},
		EbgpMultihop: &api.EbgpMultihop{Enabled: true, MultihopTtl: 3},
		GracefulRestart: &api.GracefulRestart{
			Enabled: true, RestartTime: 4095, DeferralTime: 3, LocalRestarting: true,
		},
		AfiSafis: []*api.AfiSafi{{
			Config:            &api.AfiSafiConfig{Family: &api.Family{Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_UNICAST}, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
		}},
	}
	if diff := cmp.Diff(want, buildPeer(in, true), protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}

	in.GracefulRestart = bgp.GracefulRestart{}
	got := buildPeer(in, true).GracefulRestart
	if !got.Enabled || !got.HelperOnly || got.LocalRestarting {
		t.Errorf("without graceful restart: %v; want a helper", got)
	}
}

func TestResetReason(t *testing.T) {
	base := bgp.Peer{Families: []bgp.Family{bgp.IPv4, bgp.IPv6}, Timers: bgp.Timers{Hold: 90 * time.Second}}
	for want, change := range map[string]func(p *bgp.Peer){
		"": func(p *bgp.Peer) {
			p.Name, p.Kind, p.AllowOwnASN = "x", bgp.PeerFabric, 2
			p.Accept = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
			p.Timers.ConnectRetry = time.Minute
		},
		"AS number":        func(p *bgp.Peer) { p.ASN = 1 },
		"password":         func(p *bgp.Peer) { p.Password = "x" },
		"port":             func(p *bgp.Peer) { p.Port = 1 },
		"local address":    func(p *bgp.Peer) { p.LocalAddress = netip.IPv6Loopback() },
		"multihop":         func(p *bgp.Peer) { p.EBGPMultihop = 2 },
		"families":         func(p *bgp.Peer) { p.Families = p.Families[:1] },
		"graceful restart": func(p *bgp.Peer) { p.GracefulRestart.Enabled = true },
		"hold time":        func(p *bgp.Peer) { p.Timers.Keepalive = time.Second },
	} {
		changed := base
		change(&changed)
		if got := resetReason(base, changed); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestAcceptor(t *testing.T) {
	accept := newAcceptor([]netip.Prefix{
		netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.3.0/24"), netip.MustParsePrefix("fd00:1::/32"), {},
	})
	for in, want := range map[string]bool{
		"10.1.0.0/16": true, "10.1.2.0/26": true, "10.1.2.3/32": true, "10.0.0.0/8": false, "0.0.0.0/0": false,
		"10.2.0.0/16": false, "10.2.3.0/24": true, "10.2.4.0/24": false, "10.10.0.0/16": false,
		"fd00:1::/64": true, "fd00:1::/31": false, "fd00:2::/64": false, "::/0": false,
	} {
		if got := accept.accepts(netip.MustParsePrefix(in)); got != want {
			t.Errorf("%s: %v, want %v", in, got, want)
		}
	}
	all := newAcceptor([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")})
	if !all.accepts(netip.MustParsePrefix("0.0.0.0/0")) || !all.accepts(netip.MustParsePrefix("10.0.0.1/32")) || all.accepts(netip.MustParsePrefix("::/0")) {
		t.Error("0.0.0.0/0 means all of IPv4 and nothing else")
	}
	if (acceptor{}).accepts(netip.MustParsePrefix("10.0.0.0/8")) || newAcceptor(nil).accepts(netip.MustParsePrefix("::/0")) {
		t.Error("an empty list accepted something")
	}
}

func FuzzAcceptor(f *testing.F) {
	f.Add([]byte{10, 0, 0, 0}, uint8(8), []byte{10, 1, 0, 0}, uint8(16))
	f.Add(make([]byte, 16), uint8(0), make([]byte, 16), uint8(128))
	f.Fuzz(func(t *testing.T, a []byte, abits uint8, b []byte, bbits uint8) {
		pa, ok := fuzzPrefix(a, abits)
		pb, ok2 := fuzzPrefix(b, bbits)
		if !ok || !ok2 {
			return
		}
		want := pa.Bits() <= pb.Bits() && pa.Contains(pb.Addr())
		if got := newAcceptor([]netip.Prefix{pa}).accepts(pb); got != want {
			t.Errorf("%s accepts %s: %v, want %v", pa, pb, got, want)
		}
	})
}

func fuzzPrefix(b []byte, bits uint8) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(b)
	if !ok || addr.Is4In6() {
		return netip.Prefix{}, false
	}
	p, err := addr.Prefix(int(bits))
	return p, err == nil
}

func TestReasons(t *testing.T) {
	peer := bgp.Peer{ASN: 65101, Password: "sesame"}
	for _, c := range []struct {
		in   report
		want string
	}{
		{notificationText("received", 6, 2, "maintenance"), "received Cease/Administrative Shutdown: maintenance"},
		{notificationText("received", 6, 10, ""), "received Cease/BFD Down"},
		{notificationText("received", 6, 77, ""), "received Cease/77"},
		{notificationText("received", 99, 1, ""), "received NOTIFICATION 99/1"},
		{notificationText("received", 4, 0, ""), "received Hold Timer Expired"},
		{notificationText("sent", 4, 0, ""), "hold timer expired"},
		{notificationText("sent", 3, 11, ""), "sent UPDATE Message Error/Malformed AS_PATH"},
		{notificationText("sent", 2, 2, ""), "peer AS is not 65101 (sent OPEN Message Error/Bad Peer AS)"},
		{notificationText("received", 2, 2, ""), "received OPEN Message Error/Bad Peer AS"},
		{notificationText("sent", 5, 1, ""), "peer refused our OPEN"},
		{dialText("dial tcp 192.0.2.1:0->192.0.2.2:179: connect: connection refused"), "connection refused"},
		{dialText("dial tcp 192.0.2.2:179: connect: no route to host"), "no route to host"},
		{dialText("dial tcp 192.0.2.2:179: i/o timeout"), "connection timed out (do the MD5 passwords agree?)"},
	} {
		if got := c.in.textFor(peer); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	// What one side told the other outlives a vague report, not a new attempt.
	s := &session{state: bgp.StateIdle, peer: bgp.Peer{}}
	for _, step := range []struct {
		in   report
		want string
	}{
		{report{text: "connection closed by peer", vague: true}, "connection closed by peer"},
		{notificationText("received", 6, 2, ""), "received Cease/Administrative Shutdown"},
		{report{text: "connection closed by peer", vague: true}, "received Cease/Administrative Shutdown"},
		{dialText("x: connection refused"), "connection refused"},
		{report{text: "connection closed by peer", vague: true}, "connection closed by peer"},
		{report{}, "connection closed by peer"},
	} {
		s.explain(step.in)
		if s.lastError != step.want {
			t.Errorf("after %+v: %q, want %q", step.in, s.lastError, step.want)
		}
	}
}

func TestTapReadsGoBGPsLog(t *testing.T) {
	var got []string
	tap := &tap{next: slog.DiscardHandler, note: func(a netip.Addr, r report) { got = append(got, a.String()+" "+r.text) }}
	log := slog.New(tap)
	log.Info("sent notification", slog.Int("Code", 6), slog.Int("Subcode", 2)) // no peer
	log = log.With(slog.String("Topic", "Peer"), slog.String("Key", "::ffff:192.0.2.1"))
	log.Debug("failed to connect", slog.String("Error", "dial tcp: connect: connection refused"))
	log.Info("received notification", slog.Int("Code", 6), slog.Int("Subcode", 2), slog.String("Communicated-Reason", "bye"))
	log.Info("something else", slog.Int("Code", 6))
	want := []string{"192.0.2.1 connection refused", "192.0.2.1 received Cease/Administrative Shutdown: bye"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
