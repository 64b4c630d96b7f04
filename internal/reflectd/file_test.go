// SPDX-License-Identifier: Apache-2.0

package reflectd

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/bgp/reflector"
)

func noPassword(string) (bgp.Password, error) { return "", errors.New("no such file") }

func TestParse(t *testing.T) {
	got, err := parse([]byte(`
asNumber: 64512
routerID: 192.0.2.1
clusterID: 192.0.2.2
listen: {addresses: [192.0.2.1, "2001:db8::1"], port: 179}
metricsAddress: 127.0.0.1:9813
stateDir: /var/lib/heliograph/reflector
gracefulRestart: {restartTime: 60s}
families: [IPv4, IPv6]
clients:
- name: nodes
  prefix: 192.0.2.0/24
  accept: [10.244.0.0/16 ge 24 le 28, "fd00::/16"]
  advertise: []
  maxPrefixes: 100
  addPaths: true
  ttlSecurity: 1
- name: other
  address: 2001:db8::9
  connect: true
  port: 1179
  sourceAddress: 2001:db8::1
  nonClient: true
  asNumber: 64512
  families: [IPv6]
  holdTime: 9s
  keepaliveTime: 3s
  connectRetryTime: 2s
  passwordFile: /none
`), noPassword)
	if err != nil {
		t.Fatal(err)
	}
	rule := func(s string) reflector.Rule { r, _ := reflector.ParseRule(s); return r }
	want := Settings{
		MetricsAddress: "127.0.0.1:9813", StateDir: "/var/lib/heliograph/reflector",
		Config: reflector.Config{
			ASN: 64512, RouterID: netip.MustParseAddr("192.0.2.1"), ClusterID: netip.MustParseAddr("192.0.2.2"),
			Listen:          []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:179"), netip.MustParseAddrPort("[2001:db8::1]:179")},
			GracefulRestart: bgp.GracefulRestart{Enabled: true, RestartTime: time.Minute},
			Peers: []reflector.Peer{
				{
					Name: "nodes", Prefix: netip.MustParsePrefix("192.0.2.0/24"), Families: []bgp.Family{bgp.IPv4, bgp.IPv6},
					Accept:    reflector.Policy{Rules: []reflector.Rule{rule("10.244.0.0/16 ge 24 le 28"), rule("fd00::/16")}},
					Advertise: reflector.Policy{}, MaxPrefixes: 100, AddPaths: true, TTLHops: 1,
				},
				{
					Name: "other", Prefix: netip.MustParsePrefix("2001:db8::9/128"), Connect: true, Port: 1179, NonClient: true, ASN: 64512,
					LocalAddress: netip.MustParseAddr("2001:db8::1"), Families: []bgp.Family{bgp.IPv6},
					Timers: bgp.Timers{Hold: 9 * time.Second, Keepalive: 3 * time.Second, ConnectRetry: 2 * time.Second},
					Held:   "no password: no such file", Accept: reflector.Policy{Any: true}, Advertise: reflector.Policy{Any: true},
				},
			},
		},
	}
	addr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	prefix := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	port := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if d := cmp.Diff(want, got, addr, prefix, port); d != "" {
		t.Error(d)
	}
}

// Every error names its field, and there are as many as there are mistakes.
func TestParseErrors(t *testing.T) {
	const good = "asNumber: 64512\nrouterID: 192.0.2.1\n"
	for _, tc := range []struct{ in, want string }{
		{"{}", "asNumber: is missing\nrouterID: is missing"},
		{"asNumber: 1\nrouterID: 2001:db8::1", `routerID: "2001:db8::1" is not an IPv4 address other than 0.0.0.0`},
		{"asNumber: 23456\nrouterID: 192.0.2.1", "ASN: 23456 is reserved"},
		{good + "colour: red", `unknown field "colour"`},
		{good + "listen: {port: 70000}", "listen.port: 70000 is not a port"},
		{good + "listen: {addresses: [here]}", `listen.addresses[0]: "here" is not an IP address`},
		{good + "families: [IPv5]", `families[0]: "IPv5" is neither IPv4 nor IPv6`},
		{good + "gracefulRestart: {restartTime: 2h}", "gracefulRestart.restartTime: 2h0m0s is not a number of whole seconds from 1s to 1h8m15s"},
		{good + "gracefulRestart: {restartTime: 7}", `7 is not a duration such as "90s"`},
		{good + "clients: [{}]", "clients[0]: wants either prefix or address"},
		{good + "clients: [{prefix: 10.0.0.1/8}]", "clients[0].prefix: 10.0.0.1/8 has host bits set: did you mean 10.0.0.0/8?"},
		{good + "clients: [{address: 10.0.0.1}, {prefix: 10.0.0.1/32}]", "clients[1]: 10.0.0.1/32 is that of clients[0] too"},
		{good + "clients: [{address: 10.0.0.1, asNumber: 7}]", "clients[0].asNumber: 7 is not the reflector's: it speaks iBGP alone"},
		{good + "clients: [{prefix: 10.0.0.0/8, connect: true}]", "clients[0].connect: needs an address, not a prefix of many"},
		{good + "clients: [{address: 10.0.0.1, holdTime: 1s}]", "clients[0].holdTime: 1s is not a number of whole seconds from 3s to 18h12m15s"},
		{good + "clients: [{address: 10.0.0.1, accept: [10.0.0.0/8 ge 40]}]", "clients[0].accept[0]: 10.0.0.0/8 ge 40: a length is greater than 32"},
	} {
		if _, err := parse([]byte(tc.in), noPassword); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %v, want %s", tc.in, err, tc.want)
		}
	}
}
