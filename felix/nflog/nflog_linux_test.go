// SPDX-License-Identifier: Apache-2.0

package nflog

import (
	"context"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/internal/nettest"
)

func TestListen(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		nettest.Cmd(t, "ip", "link", "set", "lo", "up")
		nettest.Cmd(t, "nft", "add table inet t; add chain inet t c { type filter hook output priority 0; }")
		nettest.Cmd(t, "nft", `add rule inet t c log prefix "hel/Deny/abc" group 7 drop`)
		ctx, cancel := context.WithCancel(t.Context())
		heard, ended := make(chan Packet, 64), make(chan error, 1)
		go func() {
			ended <- Listen(ctx, 7, func(p Packet) {
				select {
				case heard <- p:
				default:
				}
			})
		}()
		for _, to := range []string{"127.0.0.1", "::1"} {
			want := Packet{Prefix: "hel/Deny/abc", Out: 1, Src: netip.MustParseAddr(to), Dst: netip.MustParseAddr(to), Protocol: icmp, Type: 8}
			if want.Dst.Is6() {
				want.Protocol, want.Type = icmp6, 128
			}
			p := await(t, heard, to)
			if diff := cmp.Diff(want, p, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("heard (-want +got):\n%s", diff)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Listen = %v", err)
		}
	})
}

// await pings until a packet to the address is heard of: the listener may not be ready at first.
func await(t *testing.T, heard <-chan Packet, to string) Packet {
	t.Helper()
	for range 50 {
		_ = exec.Command("ping", "-c1", "-W0.1", to).Run()
		for wait := true; wait; {
			select {
			case p := <-heard:
				if p.Dst.String() == to {
					return p
				}
			case <-time.After(50 * time.Millisecond):
				wait = false
			}
		}
	}
	t.Fatalf("no packet to %s is heard of", to)
	return Packet{}
}

func TestParse(t *testing.T) {
	v4 := append(make([]byte, 20), 0x9c, 0x40, 0, 80)
	v4[0], v4[9] = 0x45, tcp
	copy(v4[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	later := append([]byte(nil), v4...)
	later[7] = 1 // a later fragment has no ports
	v6 := append(make([]byte, 40), udp, 0, 0, 0, 0, 0, 0, 0, 0, 53, 0, 54)
	v6[0], v6[6], v6[23], v6[39] = 0x60, destination, 1, 2
	four := Packet{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Protocol: tcp}
	fourPorts := four
	fourPorts.SrcPort, fourPorts.DstPort = 40000, 80
	for name, c := range map[string]struct {
		b    []byte
		want Packet
	}{
		"IPv4 TCP":                   {v4, fourPorts},
		"a later fragment":           {later, four},
		"cut off in the ports":       {v4[:22], four},
		"cut off in the header":      {v4[:19], Packet{}},
		"IPv6 UDP behind an option":  {v6, Packet{Src: netip.MustParseAddr("::1"), Dst: netip.MustParseAddr("::2"), Protocol: udp, SrcPort: 53, DstPort: 54}},
		"cut off in the IPv6 option": {v6[:41], Packet{Src: netip.MustParseAddr("::1"), Dst: netip.MustParseAddr("::2")}},
		"nothing":                    {nil, Packet{}},
	} {
		var got Packet
		got.parse(c.b)
		if got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{0x45})
	f.Add(append([]byte{0x60}, make([]byte, 60)...))
	f.Fuzz(func(_ *testing.T, b []byte) {
		var p Packet
		p.parse(b)
	})
}
