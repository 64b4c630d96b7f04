// SPDX-License-Identifier: Apache-2.0

//go:build linux

package speaker_test

import (
	"context"
	"encoding/json"
	"flag"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	packet "github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/bgp/speaker"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// childEnv makes the test binary a speaker that runs until it is killed.
const childEnv = "HELIOGRAPH_TEST_SPEAKER"

func TestMain(m *testing.M) {
	if in := os.Getenv(childEnv); in != "" {
		child(in)
	}
	flag.Parse()
	_ = flag.Set("test.parallel", "8") // these tests mostly wait for GoBGP's timers
	os.Exit(m.Run())
}

type childConfig struct {
	Listen  netip.Addr
	Desired bgp.Desired
}

func child(in string) {
	var c childConfig
	if err := json.Unmarshal([]byte(in), &c); err != nil {
		panic(err)
	}
	s := speaker.New(speaker.Options{ListenAddresses: []netip.Addr{c.Listen}}, slog.New(slog.NewTextHandler(os.Stderr, nil)).With("node", "child"))
	if err := s.Apply(context.Background(), c.Desired); err != nil {
		panic(err)
	}
	select {}
}

// process runs the speaker that n describes in a process of its own and returns what kills it.
func (n *node) process(restarting bool) (kill func()) {
	n.t.Helper()
	n.desired.Global.Restarting = restarting
	in, err := json.Marshal(childConfig{Listen: n.addr, Desired: n.desired})
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(in))
	cmd.Stderr = n.t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	n.t.Cleanup(kill)
	return kill
}

// A speaker killed with -9 and started again never loses its routes: not at a heliograph speaker,
// and not at a plain GoBGP.
func TestKilledAndRestarted(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		helper, killed, gone := newNode(t, 1, 64512), newNode(t, 2, 64512), newNode(t, 3, 64512)
		connect(helper, killed)
		killed.peerWith(gone) // never there: it must not hold anything up
		plain := startPlain(t, "127.0.0.4", killed)
		killed.peerWith(plain.node)
		helper.apply()
		kill := killed.process(false)
		both := "10.2.0.0/24>192.0.2.2<127.0.0.2 fd00:2::/64>2001:db8::2<127.0.0.2"
		helper.waitRoutes(both)
		waitFor(t, "routes at the plain GoBGP", func() bool { return plain.has("10.2.0.0/24") && plain.has("fd00:2::/64") }, plain.state)

		stop, watched := make(chan struct{}), sync.WaitGroup{}
		watched.Go(func() {
			during(t, "the helper has both routes", func() bool {
				return strings.ReplaceAll(strings.Join(helper.routes(), " "), "!stale", "") == both
			}, stop)
		})
		plain.watch()
		kill()
		helper.waitRoutes("10.2.0.0/24>192.0.2.2<127.0.0.2!stale fd00:2::/64>2001:db8::2<127.0.0.2!stale")
		kill = killed.process(true)
		helper.waitRoutes(both)
		waitFor(t, "the plain GoBGP to have fresh routes", func() bool { return !strings.Contains(plain.state(), "stale") }, plain.state)
		close(stop)
		watched.Wait()
		if lost := plain.withdrawals(); len(lost) > 0 {
			t.Errorf("the plain GoBGP withdrew %q", lost)
		}

		// It comes back with less: End-of-RIB ends the rest.
		kill()
		helper.wait("stale", func() bool { return strings.Contains(strings.Join(helper.routes(), " "), "!stale") })
		killed.desired.Origins = killed.desired.Origins[:1]
		killed.process(true)
		helper.waitRoutes("10.2.0.0/24>192.0.2.2<127.0.0.2")
	})
}

// A peer that does not come back keeps its routes for the restart time that it announced.
func TestKilledAndNotRestarted(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		helper, killed := newNode(t, 1, 64512), newNode(t, 2, 64512)
		connect(helper, killed)
		killed.peer(helper).GracefulRestart.RestartTime = 2 * time.Second
		helper.apply()
		kill := killed.process(false)
		helper.waitRoutes("10.2.0.0/24>192.0.2.2<127.0.0.2 fd00:2::/64>2001:db8::2<127.0.0.2")
		killedAt := time.Now()
		kill()
		helper.waitRoutes("10.2.0.0/24>192.0.2.2<127.0.0.2!stale fd00:2::/64>2001:db8::2<127.0.0.2!stale")
		helper.waitRoutes("")
		if d := time.Since(killedAt); d < 1900*time.Millisecond || d > 5*time.Second {
			t.Errorf("routes were kept for %s, not 2 s", d)
		}
	})
}

// A speaker that takes over says so in OPEN, but only for its restart time; one that starts cold
// never does.
func TestRestartIsClaimedForATime(t *testing.T) {
	t.Parallel()
	nettest.Run(t, func(t *testing.T) {
		n := newNode(t, 1, 64512)
		for _, addr := range []string{"127.0.0.8", "127.0.0.9"} {
			rawPeer(n, addr, 65101).GracefulRestart.RestartTime = 3 * time.Second
		}
		n.desired.Global.Restarting = true
		n.apply()
		if r := dialRaw(t, n, "127.0.0.8", 65101); !r.restarting {
			t.Error("no restart claimed after the start")
		}
		started := time.Now()
		waitFor(t, "the restart time to end", func() bool { return time.Since(started) > 3500*time.Millisecond }, func() string { return "" })
		if r := dialRaw(t, n, "127.0.0.9", 65101); r.restarting {
			t.Error("restart claimed when it was over")
		}
		// An AS of its own is a new server, but no new process.
		n.desired.Global.ASN = 64513
		n.apply()
		if r := dialRaw(t, n, "127.0.0.9", 65101); r.restarting {
			t.Error("restart claimed by the same process")
		}
	})
}

// Staleness with a peer that does exactly what the test says.
func TestStaleRoutes(t *testing.T) {
	t.Parallel()
	graceful := func(families ...packet.Family) packet.ParameterCapabilityInterface {
		var tuples []*packet.CapGracefulRestartTuple
		for _, f := range families {
			tuples = append(tuples, packet.NewCapGracefulRestartTuple(f, true))
		}
		return packet.NewCapGracefulRestart(false, false, 60, tuples)
	}
	both := graceful(packet.RF_IPv4_UC, packet.RF_IPv6_UC)
	start := func(t *testing.T, caps ...packet.ParameterCapabilityInterface) (*node, *raw) {
		n := newNode(t, 1, 64512)
		rawPeer(n, "127.0.0.9", 65101)
		n.apply()
		r := dialRaw(t, n, "127.0.0.9", 65101, caps...)
		if r.restarting {
			t.Error("restart claimed on a cold start")
		}
		r.announce("10.8.0.0/24", "192.0.2.1")
		r.announce("10.9.0.0/24", "192.0.2.1")
		r.announce("fd00:8::/64", "2001:db8::1")
		n.waitRoutes("10.8.0.0/24>192.0.2.1<127.0.0.9 10.9.0.0/24>192.0.2.1<127.0.0.9 fd00:8::/64>2001:db8::1<127.0.0.9")
		return n, r
	}
	const allStale = "10.8.0.0/24>192.0.2.1<127.0.0.9!stale 10.9.0.0/24>192.0.2.1<127.0.0.9!stale fd00:8::/64>2001:db8::1<127.0.0.9!stale"
	for name, f := range map[string]func(t *testing.T){
		"end of rib, family by family": func(t *testing.T) {
			n, r := start(t, both)
			_ = r.conn.Close()
			n.waitRoutes(allStale)
			r = dialRaw(t, n, "127.0.0.9", 65101, both)
			r.announce("10.8.0.0/24", "192.0.2.2")
			n.waitRoutes("10.8.0.0/24>192.0.2.2<127.0.0.9 10.9.0.0/24>192.0.2.1<127.0.0.9!stale fd00:8::/64>2001:db8::1<127.0.0.9!stale")
			r.endOfRIB(packet.RF_IPv4_UC)
			n.waitRoutes("10.8.0.0/24>192.0.2.2<127.0.0.9 fd00:8::/64>2001:db8::1<127.0.0.9!stale")
			r.endOfRIB(packet.RF_IPv6_UC)
			n.waitRoutes("10.8.0.0/24>192.0.2.2<127.0.0.9")
			// A second restart before the first one ended (RFC 4724 §4.2).
			_ = r.conn.Close()
			n.waitRoutes("10.8.0.0/24>192.0.2.2<127.0.0.9!stale")
			r = dialRaw(t, n, "127.0.0.9", 65101, both)
			r.announce("10.9.0.0/24", "192.0.2.2")
			n.waitRoutes("10.8.0.0/24>192.0.2.2<127.0.0.9!stale 10.9.0.0/24>192.0.2.2<127.0.0.9")
			_ = r.conn.Close()
			n.waitRoutes("10.9.0.0/24>192.0.2.2<127.0.0.9!stale")
		},
		"one family only": func(t *testing.T) {
			n, r := start(t, graceful(packet.RF_IPv6_UC))
			_ = r.conn.Close()
			n.waitRoutes("fd00:8::/64>2001:db8::1<127.0.0.9!stale")
		},
		"back without graceful restart": func(t *testing.T) {
			n, r := start(t, both)
			_ = r.conn.Close()
			n.waitRoutes(allStale)
			dialRaw(t, n, "127.0.0.9", 65101)
			n.waitRoutes("")
		},
		"failed attempts to come back": func(t *testing.T) {
			n, r := start(t, both)
			_ = r.conn.Close()
			n.waitRoutes(allStale)
			// GoBGP drops its own copy when such an attempt fails; ours must stay.
			raw := &node{addr: r.addr}
			for range 2 {
				var conn net.Conn
				n.wait("an attempt to come back", func() bool {
					if n.session(raw).State == bgp.StateOpenSent {
						return true
					}
					if conn != nil {
						_ = conn.Close()
					}
					conn, _ = (&net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(r.addr, 0))}).Dial("tcp4", netip.AddrPortFrom(n.addr, testPort).String())
					return false
				})
				_ = conn.Close()
				n.waitState(raw, bgp.StateIdle)
				n.waitRoutes(allStale)
			}
			dialRaw(t, n, "127.0.0.9", 65101, both).endOfRIB(packet.RF_IPv4_UC)
			n.waitRoutes("fd00:8::/64>2001:db8::1<127.0.0.9!stale")
		},
		"notification": func(t *testing.T) {
			n, r := start(t, both)
			r.send(packet.NewBGPNotificationMessage(packet.BGP_ERROR_CEASE, packet.BGP_ERROR_SUB_ADMINISTRATIVE_SHUTDOWN, []byte("\x0bmaintenance")))
			n.waitRoutes("")
			n.waitError(&node{addr: r.addr}, "received Cease/Administrative Shutdown: maintenance")
		},
		"hold timer": func(t *testing.T) {
			n := newNode(t, 1, 64512)
			rawPeer(n, "127.0.0.8", 65101).Timers.Hold = 3 * time.Second
			rawPeer(n, "127.0.0.9", 65101).Timers.Hold = 3 * time.Second
			n.apply()
			plain, gr := dialRaw(t, n, "127.0.0.8", 65101), dialRaw(t, n, "127.0.0.9", 65101, both)
			for _, r := range []*raw{plain, gr} {
				r.mute.Store(true)
				r.announce("10.8.0.0/24", "192.0.2.1")
			}
			n.waitRoutes("10.8.0.0/24>192.0.2.1<127.0.0.8 10.8.0.0/24>192.0.2.1<127.0.0.9")
			n.waitRoutes("") // graceful restart or not: who is silent may be dead, with all that it forwarded
			n.waitError(&node{addr: plain.addr}, "hold timer expired")
			n.waitError(&node{addr: gr.addr}, "hold timer expired")
		},
		"the peer is taken away": func(t *testing.T) {
			n, r := start(t, both)
			_ = r.conn.Close()
			n.waitRoutes(allStale)
			n.desired.Peers = nil
			n.apply()
			n.waitRoutes("")
		},
		"its hold time changes": func(t *testing.T) {
			n, r := start(t, both)
			_ = r.conn.Close()
			n.waitRoutes(allStale)
			n.desired.Peers[0].Timers.Hold = time.Minute
			n.apply()
			n.waitRoutes("")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nettest.Run(t, f)
		})
	}
}

// plain is a GoBGP without heliograph.
type plain struct {
	*node
	server *server.BgpServer

	mu       sync.Mutex
	lost     []string
	watching bool
}

func startPlain(t *testing.T, addr string, peer *node) *plain {
	t.Helper()
	p := &plain{node: &node{t: t, name: "plain", addr: netip.MustParseAddr(addr)}}
	p.server = server.NewBgpServer(server.LoggerOption(slog.New(p), new(slog.LevelVar)))
	p.desired.Global.ASN = 65104
	go p.server.Serve()
	t.Cleanup(p.server.Stop)
	ctx := t.Context()
	if err := p.server.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn: 65104, RouterId: addr, ListenPort: testPort, ListenAddresses: []string{addr},
	}}); err != nil {
		t.Fatal(err)
	}
	if err := p.server.WatchEvent(ctx, server.WatchEventMessageCallbacks{OnBestPath: func(paths []*apiutil.Path, _ time.Time) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, path := range paths {
			if path.Withdrawal && p.watching {
				p.lost = append(p.lost, path.Nlri.String())
			}
		}
	}}, server.WatchBestPath(false)); err != nil {
		t.Fatal(err)
	}
	n := &api.Peer{
		Conf:            &api.PeerConf{NeighborAddress: peer.addr.String(), PeerAsn: peer.desired.Global.ASN},
		Timers:          &api.Timers{Config: &api.TimersConfig{ConnectRetry: 2, HoldTime: 9}},
		Transport:       &api.Transport{LocalAddress: addr, RemotePort: testPort},
		GracefulRestart: &api.GracefulRestart{Enabled: true, RestartTime: 30, DeferralTime: 3},
	}
	for _, afi := range []api.Family_Afi{api.Family_AFI_IP, api.Family_AFI_IP6} {
		n.AfiSafis = append(n.AfiSafis, &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: &api.Family{Afi: afi, Safi: api.Family_SAFI_UNICAST}, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
		})
	}
	if err := p.server.AddPeer(ctx, &api.AddPeerRequest{Peer: n}); err != nil {
		t.Fatal(err)
	}
	return p
}

// As a log handler it only takes its lock, which orders GoBGP's marking of stale paths after the
// reading of them in the watcher; see tap.
func (p *plain) Handle(context.Context, slog.Record) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return nil
}
func (p *plain) Enabled(context.Context, slog.Level) bool { return true }
func (p *plain) WithAttrs([]slog.Attr) slog.Handler       { return p }
func (p *plain) WithGroup(string) slog.Handler            { return p }

func (p *plain) watch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watching = true
}

func (p *plain) withdrawals() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}

func (p *plain) has(prefix string) bool { return strings.Contains(p.state(), prefix) }

// state lists the routes, and which of them are stale.
func (p *plain) state() string {
	var out strings.Builder
	for _, f := range []packet.Family{packet.RF_IPv4_UC, packet.RF_IPv6_UC} {
		_ = p.server.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: f}, func(nlri packet.NLRI, paths []*apiutil.Path) {
			out.WriteString(nlri.String())
			for _, path := range paths {
				if path.Stale {
					out.WriteString("!stale")
				}
			}
			out.WriteString(" ")
		})
	}
	return out.String()
}
