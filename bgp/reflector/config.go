// SPDX-License-Identifier: Apache-2.0

package reflector

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/heliograph-dev/heliograph/bgp"
)

// Config is everything the reflector should be.
type Config struct {
	ASN       uint32
	RouterID  netip.Addr // IPv4
	ClusterID netip.Addr // IPv4; invalid: the router ID (RFC 4456 §7)
	Listen    []netip.AddrPort
	// GracefulRestart is what we ask of clients when we restart; helping them needs no option.
	GracefulRestart bgp.GracefulRestart
	Peers           []Peer
}

// Peer is a neighbour, or all neighbours within a prefix. Prefix and RouterID are its identity.
type Peer struct {
	Name   string
	Prefix netip.Prefix // a single address: /32 or /128
	// RouterID, if valid, is the BGP Identifier that the neighbour must have. Two speakers can then share
	// one address, as the reflector of a node and the node's own speaker do.
	RouterID netip.Addr
	// NonClient makes it an ordinary iBGP neighbour, such as another reflector: it gets the routes of
	// clients only (RFC 4456 §6).
	NonClient bool
	// Connect makes us dial, which needs a single address. We accept connections in any case.
	Connect      bool
	Port         uint16     // that we dial; 0: 179
	LocalAddress netip.Addr // that we dial from; invalid: the kernel chooses
	ASN          uint32     // must be ours; 0: ours
	Families     []bgp.Family
	Password     bgp.Password
	// Held, if not empty, keeps sessions down, and says why: a missing password file for example.
	Held   string
	Timers bgp.Timers
	// TTLHops, if not 0, drops packets that came over more hops (RFC 5082); 1: directly connected.
	TTLHops  uint8
	AddPaths bool // send all paths to whom can take them (RFC 7911)
	// Accept says which routes are taken from it, Advertise which it is told of.
	Accept    Policy
	Advertise Policy
	// MaxPrefixes ends a session with more accepted prefixes in one family. 0: no limit.
	MaxPrefixes uint32
}

// Policy is a set of prefixes. The zero Policy has none.
type Policy struct {
	Any   bool // all prefixes; Rules are not looked at
	Rules []Rule
}

// Rule has the prefixes within Prefix whose length is from GE to LE. Zero means no bound.
type Rule struct {
	Prefix netip.Prefix
	GE, LE uint8
}

// String prints the rule as ParseRule reads it.
func (r Rule) String() string {
	s := r.Prefix.String()
	if r.GE != 0 {
		s += fmt.Sprintf(" ge %d", r.GE)
	}
	if r.LE != 0 {
		s += fmt.Sprintf(" le %d", r.LE)
	}
	return s
}

// ParseRule reads "PREFIX [ge N] [le N]".
func ParseRule(s string) (Rule, error) {
	f := strings.Fields(s)
	if len(f) == 0 {
		return Rule{}, errors.New("is empty")
	}
	p, err := netip.ParsePrefix(f[0])
	if err != nil {
		return Rule{}, fmt.Errorf("%q is not a prefix", f[0])
	}
	r := Rule{Prefix: p}
	for f = f[1:]; len(f) > 0; f = f[2:] {
		var bits uint8
		if len(f) == 1 || (f[0] != "ge" && f[0] != "le") {
			return Rule{}, fmt.Errorf("%q: want PREFIX [ge N] [le N]", s)
		}
		if _, err := fmt.Sscanf(f[1], "%d", &bits); err != nil {
			return Rule{}, fmt.Errorf("%q: %q is not a prefix length", s, f[1])
		}
		if f[0] == "ge" {
			r.GE = bits
		} else {
			r.LE = bits
		}
	}
	return r, r.validate()
}

func (r Rule) validate() error {
	bits := uint8(r.Prefix.Addr().BitLen())
	switch {
	case !r.Prefix.IsValid():
		return errors.New("has no prefix")
	case r.Prefix != r.Prefix.Masked():
		return fmt.Errorf("%s has host bits set: did you mean %s?", r.Prefix, r.Prefix.Masked())
	case r.GE > bits || r.LE > bits:
		return fmt.Errorf("%s: a length is greater than %d", r, bits)
	case r.LE != 0 && (r.LE < r.GE || int(r.LE) < r.Prefix.Bits()):
		return fmt.Errorf("%s matches nothing", r)
	}
	return nil
}

// compiled is a Policy that matches the table's keys.
type compiled struct {
	any   bool
	rules [2][]compiledRule // by family
}

type compiledRule struct {
	p      prefix
	ge, le uint8
}

func (p Policy) compile() compiled {
	c := compiled{any: p.Any}
	for _, r := range p.Rules {
		f, k := fromNetip(r.Prefix)
		cr := compiledRule{p: k, ge: max(r.GE, k.bits), le: r.LE}
		if cr.le == 0 {
			cr.le = f.bits()
		}
		c.rules[f] = append(c.rules[f], cr)
	}
	return c
}

func (c *compiled) match(f family, p prefix) bool {
	if c.any {
		return true
	}
	for _, r := range c.rules[f] {
		if p.bits >= r.ge && p.bits <= r.le && r.p.contains(p) {
			return true
		}
	}
	return false
}

// key tells policies apart.
func (p Policy) key() string {
	if p.Any {
		return "any"
	}
	out := make([]string, len(p.Rules))
	for i, r := range p.Rules {
		out[i] = r.String()
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), ",")
}

// Defaults of Peer's timers.
const (
	defaultHold         = 90 * time.Second
	defaultConnectRetry = 5 * time.Second
	defaultPort         = 179
)

// withDefaults fills in what may be left out.
func (p Peer) withDefaults(c Config) Peer {
	if p.ASN == 0 {
		p.ASN = c.ASN
	}
	if p.Port == 0 {
		p.Port = defaultPort
	}
	if len(p.Families) == 0 {
		p.Families = []bgp.Family{bgp.IPv4, bgp.IPv6}
	}
	if p.Timers.Hold == 0 {
		p.Timers.Hold = defaultHold
	}
	if p.Timers.Keepalive == 0 {
		p.Timers.Keepalive = p.Timers.Hold / 3
	}
	if p.Timers.ConnectRetry == 0 {
		p.Timers.ConnectRetry = defaultConnectRetry
	}
	if p.Name == "" {
		p.Name = p.Prefix.String()
	}
	p.Prefix = netip.PrefixFrom(p.Prefix.Addr().Unmap(), p.Prefix.Bits())
	return p
}

// single tells whether the peer is one address.
func (p Peer) single() bool { return p.Prefix.IsSingleIP() }

func (c Config) clusterID() netip.Addr {
	if c.ClusterID.IsValid() {
		return c.ClusterID
	}
	return c.RouterID
}

// Validate says what cannot work, naming the fields.
func (c Config) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.ASN == 0 || c.ASN == asTrans {
		add("ASN: %d is reserved", c.ASN)
	}
	if !c.RouterID.Is4() || c.RouterID.IsUnspecified() {
		add("RouterID: %s is not an IPv4 address other than 0.0.0.0", c.RouterID)
	}
	if c.ClusterID.IsValid() && (!c.ClusterID.Is4() || c.ClusterID.IsUnspecified()) {
		add("ClusterID: %s is not an IPv4 address other than 0.0.0.0", c.ClusterID)
	}
	if t := c.GracefulRestart.RestartTime; t < 0 || t > 4095*time.Second {
		add("GracefulRestart.RestartTime: %s is not within 0s and 4095s", t)
	}
	seen := map[netip.Prefix][]int{}
	for i, p := range c.Peers {
		if err := p.validate(c); err != nil {
			add("Peers[%d] (%s): %w", i, p.Prefix, err)
		}
		for _, j := range seen[p.Prefix] {
			if err := p.beside(c.Peers[j]); err != nil {
				add("Peers[%d]: prefix %s is that of Peers[%d] too: %w", i, p.Prefix, j, err)
			}
		}
		seen[p.Prefix] = append(seen[p.Prefix], i)
	}
	return errors.Join(errs...)
}

// beside says why two peers cannot share an address. Until the OPEN of one has come nobody knows which of
// them it is, so ours must suit both.
func (p Peer) beside(q Peer) error {
	switch {
	case !p.RouterID.IsValid() || !q.RouterID.IsValid() || p.RouterID == q.RouterID:
		return errors.New("RouterID: must tell them apart")
	case p.Timers != q.Timers || p.Password != q.Password || p.Held != q.Held || p.TTLHops != q.TTLHops || p.AddPaths != q.AddPaths ||
		!slices.Equal(p.Families, q.Families):
		return errors.New("all that an OPEN and a connection follow from must be the same")
	}
	return nil
}

func (p Peer) validate(c Config) error {
	t := p.Timers
	switch {
	case !p.Prefix.IsValid():
		return errors.New("Prefix: is missing")
	case p.Prefix != p.Prefix.Masked():
		return fmt.Errorf("Prefix: has host bits set: did you mean %s?", p.Prefix.Masked())
	case p.RouterID.IsValid() && (!p.single() || !p.RouterID.Is4() || p.RouterID.IsUnspecified()):
		return fmt.Errorf("RouterID: %s: want an IPv4 address other than 0.0.0.0, and a single address as Prefix", p.RouterID)
	case p.Connect && !p.single():
		return errors.New("Connect: needs a single address to connect to")
	case p.ASN != 0 && p.ASN != c.ASN:
		return fmt.Errorf("ASN: %d is not the reflector's %d: it speaks iBGP alone", p.ASN, c.ASN)
	case t.Hold != 0 && (t.Hold < 3*time.Second || t.Hold > 65535*time.Second):
		return fmt.Errorf("Timers.Hold: %s is not within 3s and 65535s", t.Hold)
	case t.Keepalive < 0 || t.Keepalive > 0 && t.Hold > 0 && t.Keepalive >= t.Hold:
		return fmt.Errorf("Timers.Keepalive: %s is not less than the hold time %s", t.Keepalive, t.Hold)
	case t.ConnectRetry < 0:
		return fmt.Errorf("Timers.ConnectRetry: %s is negative", t.ConnectRetry)
	case len(p.Password) > 80:
		return errors.New("Password: is longer than 80 octets")
	case p.LocalAddress.IsValid() && p.LocalAddress.Unmap().Is4() != p.Prefix.Addr().Unmap().Is4():
		return fmt.Errorf("LocalAddress: %s is not of the family of %s", p.LocalAddress, p.Prefix)
	}
	for name, policy := range map[string]Policy{"Accept": p.Accept, "Advertise": p.Advertise} {
		for _, r := range policy.Rules {
			if err := r.validate(); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}
