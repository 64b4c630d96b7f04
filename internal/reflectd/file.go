// SPDX-License-Identifier: Apache-2.0

// Package reflectd runs the route reflector without Kubernetes: it makes the engine equal to a file, as
// often as the file changes, serves metrics, and remembers across a crash who was connected.
package reflectd

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/bgp/reflector"
)

// file is the configuration as it is written.
type file struct {
	ASNumber        uint32          `json:"asNumber"`
	RouterID        string          `json:"routerID"`
	ClusterID       string          `json:"clusterID"`
	Listen          listen          `json:"listen"`
	MetricsAddress  string          `json:"metricsAddress"`
	StateDir        string          `json:"stateDir"`
	GracefulRestart gracefulRestart `json:"gracefulRestart"`
	Families        []string        `json:"families"`
	Clients         []client        `json:"clients"`
}

type listen struct {
	Addresses []string `json:"addresses"`
	Port      *int     `json:"port"`
}

type gracefulRestart struct {
	Enabled     *bool     `json:"enabled"`
	RestartTime *duration `json:"restartTime"`
}

// client is a neighbour, or all within a prefix.
type client struct {
	Name             string    `json:"name"`
	Prefix           string    `json:"prefix"`
	Address          string    `json:"address"`
	ASNumber         uint32    `json:"asNumber"`
	NonClient        bool      `json:"nonClient"`
	Connect          bool      `json:"connect"`
	Port             int       `json:"port"`
	SourceAddress    string    `json:"sourceAddress"`
	Families         []string  `json:"families"`
	PasswordFile     string    `json:"passwordFile"`
	HoldTime         *duration `json:"holdTime"`
	KeepaliveTime    *duration `json:"keepaliveTime"`
	ConnectRetryTime *duration `json:"connectRetryTime"`
	TTLSecurity      uint8     `json:"ttlSecurity"`
	AddPaths         bool      `json:"addPaths"`
	Accept           *[]string `json:"accept"`
	Advertise        *[]string `json:"advertise"`
	MaxPrefixes      uint32    `json:"maxPrefixes"`
}

// duration is written as "90s". It is metav1.Duration without what comes with that.
type duration struct{ time.Duration }

// UnmarshalJSON implements json.Unmarshaler.
func (d *duration) UnmarshalJSON(b []byte) error {
	var s string
	err := json.Unmarshal(b, &s)
	if err == nil {
		d.Duration, err = time.ParseDuration(s)
	}
	if err != nil {
		return fmt.Errorf("%s is not a duration such as \"90s\"", b)
	}
	return nil
}

const defaultPort = 1179

// Settings are what a file says.
type Settings struct {
	Config         reflector.Config
	MetricsAddress string
	StateDir       string
}

// Load reads a file and the password files that it names. An error names the fields.
func Load(path string) (Settings, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Settings{}, err
	}
	s, err := parse(b, readPassword)
	if err != nil {
		return Settings{}, fmt.Errorf("%s:\n%w", path, err)
	}
	return s, nil
}

// readPassword reads a secret; what an editor puts behind it is not part of it.
func readPassword(path string) (bgp.Password, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if p := strings.TrimRight(string(b), "\r\n"); p != "" {
		return bgp.Password(p), nil
	}
	return "", fmt.Errorf("%s is empty", path)
}

// problems collects what is wrong, each with its field.
type problems []error

func (p *problems) add(field, format string, args ...any) {
	*p = append(*p, fmt.Errorf("%s: "+format, append([]any{field}, args...)...))
}

func (p *problems) addr(field, s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		p.add(field, "%q is not an IP address", s)
		return netip.Addr{}
	}
	return a.Unmap()
}

func (p *problems) id(field, s string) netip.Addr {
	a := p.addr(field, s)
	if a.IsValid() && (!a.Is4() || a.IsUnspecified()) {
		p.add(field, "%q is not an IPv4 address other than 0.0.0.0", s)
		return netip.Addr{}
	}
	return a
}

func (p *problems) families(field string, names []string) []bgp.Family {
	var out []bgp.Family
	for i, n := range names {
		switch n {
		case "IPv4":
			out = append(out, bgp.IPv4)
		case "IPv6":
			out = append(out, bgp.IPv6)
		default:
			p.add(fmt.Sprintf("%s[%d]", field, i), "%q is neither IPv4 nor IPv6", n)
		}
	}
	return out
}

func (p *problems) duration(field string, d *duration, least, most time.Duration) time.Duration {
	if d == nil {
		return 0
	}
	if d.Duration < least || d.Duration > most || d.Duration%time.Second != 0 {
		p.add(field, "%s is not a number of whole seconds from %s to %s", d.Duration, least, most)
		return 0
	}
	return d.Duration
}

func (p *problems) policy(field string, rules *[]string) reflector.Policy {
	if rules == nil {
		return reflector.Policy{Any: true}
	}
	out := reflector.Policy{}
	for i, s := range *rules {
		r, err := reflector.ParseRule(s)
		if err != nil {
			p.add(fmt.Sprintf("%s[%d]", field, i), "%w", err)
			continue
		}
		out.Rules = append(out.Rules, r)
	}
	return out
}

func (p *problems) port(field string, port int) uint16 {
	if port < 0 || port > 65535 {
		p.add(field, "%d is not a port", port)
		return 0
	}
	return uint16(port)
}

func parse(b []byte, password func(path string) (bgp.Password, error)) (Settings, error) {
	var f file
	if err := yaml.UnmarshalStrict(b, &f); err != nil {
		return Settings{}, err
	}
	var p problems
	s := Settings{MetricsAddress: f.MetricsAddress, StateDir: f.StateDir}
	c := &s.Config
	c.ASN = f.ASNumber
	if c.ASN == 0 {
		p.add("asNumber", "is missing")
	}
	if c.RouterID = p.id("routerID", f.RouterID); f.RouterID == "" {
		p.add("routerID", "is missing")
	}
	c.ClusterID = p.id("clusterID", f.ClusterID)
	c.Listen = p.listen(f.Listen)
	c.GracefulRestart = p.gracefulRestart(f.GracefulRestart)
	families := p.families("families", f.Families)
	seen := map[netip.Prefix]int{}
	for i, cl := range f.Clients {
		peer := p.client(fmt.Sprintf("clients[%d]", i), cl, c.ASN, families, password)
		if first, ok := seen[peer.Prefix]; ok && peer.Prefix.IsValid() {
			p.add(fmt.Sprintf("clients[%d]", i), "%s is that of clients[%d] too", peer.Prefix, first)
		}
		seen[peer.Prefix] = i
		c.Peers = append(c.Peers, peer)
	}
	if err := errors.Join(p...); err != nil {
		return s, err
	}
	return s, c.Validate()
}

func (p *problems) listen(l listen) []netip.AddrPort {
	port := uint16(defaultPort)
	if l.Port != nil {
		port = p.port("listen.port", *l.Port)
	}
	addresses := l.Addresses
	if addresses == nil {
		addresses = []string{"0.0.0.0", "::"}
	}
	var out []netip.AddrPort
	for i, a := range addresses {
		if x := p.addr(fmt.Sprintf("listen.addresses[%d]", i), a); x.IsValid() {
			out = append(out, netip.AddrPortFrom(x, port))
		}
	}
	return out
}

func (p *problems) gracefulRestart(g gracefulRestart) bgp.GracefulRestart {
	out := bgp.GracefulRestart{Enabled: g.Enabled == nil || *g.Enabled, RestartTime: 120 * time.Second}
	if g.RestartTime != nil {
		out.RestartTime = p.duration("gracefulRestart.restartTime", g.RestartTime, time.Second, 4095*time.Second)
	}
	return out
}

func (p *problems) client(field string, cl client, asn uint32, families []bgp.Family, password func(string) (bgp.Password, error)) reflector.Peer {
	at := func(name string) string { return field + "." + name }
	out := reflector.Peer{
		Name: cl.Name, ASN: cl.ASNumber, NonClient: cl.NonClient, Connect: cl.Connect, Port: p.port(at("port"), cl.Port),
		LocalAddress: p.addr(at("sourceAddress"), cl.SourceAddress), Families: families, TTLHops: cl.TTLSecurity,
		AddPaths: cl.AddPaths, MaxPrefixes: cl.MaxPrefixes,
		Accept: p.policy(at("accept"), cl.Accept), Advertise: p.policy(at("advertise"), cl.Advertise),
		Timers: bgp.Timers{
			Hold:         p.duration(at("holdTime"), cl.HoldTime, 3*time.Second, 65535*time.Second),
			Keepalive:    p.duration(at("keepaliveTime"), cl.KeepaliveTime, time.Second, 21845*time.Second),
			ConnectRetry: p.duration(at("connectRetryTime"), cl.ConnectRetryTime, time.Second, time.Hour),
		},
	}
	if len(cl.Families) > 0 {
		out.Families = p.families(at("families"), cl.Families)
	}
	if cl.ASNumber != 0 && cl.ASNumber != asn {
		p.add(at("asNumber"), "%d is not the reflector's: it speaks iBGP alone", cl.ASNumber)
	}
	out.Prefix = p.place(field, cl)
	if cl.Connect && out.Prefix.IsValid() && !out.Prefix.IsSingleIP() {
		p.add(at("connect"), "needs an address, not a prefix of many")
	}
	if cl.PasswordFile != "" {
		var err error
		if out.Password, err = password(cl.PasswordFile); err != nil {
			// Without its password a session is worse than none; the rest goes on.
			out.Held = fmt.Sprintf("no password: %v", err)
		}
	}
	return out
}

// place is where a client is: prefix or address.
func (p *problems) place(field string, cl client) netip.Prefix {
	switch {
	case (cl.Prefix == "") == (cl.Address == ""):
		p.add(field, "wants either prefix or address")
	case cl.Address != "":
		if a := p.addr(field+".address", cl.Address); a.IsValid() {
			return netip.PrefixFrom(a, a.BitLen())
		}
	default:
		x, err := netip.ParsePrefix(cl.Prefix)
		switch {
		case err != nil:
			p.add(field+".prefix", "%q is not a prefix", cl.Prefix)
		case x != x.Masked():
			p.add(field+".prefix", "%s has host bits set: did you mean %s?", x, x.Masked())
		default:
			return x
		}
	}
	return netip.Prefix{}
}
