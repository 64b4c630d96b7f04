// SPDX-License-Identifier: Apache-2.0

// Package inspect shows the BGP tables of a node, and the policies in force there, to whoever is root: a server
// on a unix socket in the agent, and its client. It reads what speakers, reflector and enforcer hold, and
// changes nothing.
//
// It speaks HTTP/1.1: GET /bgp/routes?within=PREFIX, or ?containing=ADDRESS; GET /policy?rules=true, or
// ?namespace=NAMESPACE&name=NAME. Nothing that arrives can cost
// the agent much: connections are bounded in number and time, requests in length, answers in length, and
// only a few are made at once.
package inspect

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// SocketPath is where the agent listens.
const SocketPath = "/run/heliograph/inspect.sock"

// routesPath of the URL.
const routesPath = "/bgp/routes"

// Routes is what a node's speakers and its reflector know about the prefixes that were asked for. Its
// form as JSON is what `bgp routes -o json` prints: fields are added, and never change.
type Routes struct {
	// Paths that the node's speakers accepted, sorted by prefix.
	Paths []Path `json:"paths"`
	// PathsLeftOut is how many more there are.
	PathsLeftOut int `json:"pathsLeftOut"`
	// Reflected are the routes of the node's reflector, sorted by prefix; empty if it is none.
	Reflected []Route `json:"reflected"`
	// ReflectedLeftOut is how many more there are.
	ReflectedLeftOut int `json:"reflectedLeftOut"`
}

// Path is a path that one of the node's speakers holds.
type Path struct {
	Prefix  netip.Prefix `json:"prefix"`
	NextHop netip.Addr   `json:"nextHop"`
	// Peer that sent it: its name, as in NodeStatus, and its address.
	Peer         string     `json:"peer"`
	PeerIP       netip.Addr `json:"peerIP"`
	ASPathLength int        `json:"asPathLength"`
	// Originator and ClusterList of a reflected path (RFC 4456 §8), the last reflector first.
	Originator  netip.Addr `json:"originator"`
	ClusterList []string   `json:"clusterList"`
	// Stale says that it is kept for a restarting peer (RFC 4724 §4.2).
	Stale bool `json:"stale"`
}

// Route is a prefix with the paths that a reflector has for it.
type Route struct {
	Prefix netip.Prefix `json:"prefix"`
	// Why the best path is the best.
	Why string `json:"why"`
	// Paths, the best first.
	Paths []ReflectorPath `json:"paths"`
}

// ReflectorPath is a path that a reflector holds.
type ReflectorPath struct {
	Path
	Best bool `json:"best"`
	// ASPath is as it is written: sets of AS numbers in braces.
	ASPath    string `json:"asPath"`
	LocalPref uint32 `json:"localPref"`
	MED       uint32 `json:"med"`
	// Origin is IGP, EGP or incomplete.
	Origin string `json:"origin"`
}

// Query says which prefixes are asked for. The zero Query is all; at most one of its fields is set.
type Query struct {
	Within     netip.Prefix // this prefix, and those that lie within it
	Containing netip.Addr   // the prefixes that contain this address
}

// ParseQuery takes a prefix, an address, or nothing.
func ParseQuery(s string) (Query, error) {
	switch {
	case s == "":
		return Query{}, nil
	case strings.Contains(s, "/"):
		p, err := parsePrefix(s)
		return Query{Within: p}, err
	}
	a, err := parseAddr(s)
	return Query{Containing: a}, err
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%.60q is no prefix, such as 10.244.0.0/16 or fd00:244::/56", s)
	case p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%s is an IPv4 prefix in IPv6's clothes: write it as IPv4", p)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%s has host bits: is %s meant, or the address %s?", p, p.Masked(), p.Addr())
	}
	return p, nil
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%.60q is neither a prefix nor an address", s)
	}
	return a.Unmap(), nil
}

// String returns the query as ParseQuery takes it.
func (q Query) String() string {
	switch {
	case q.Within.IsValid():
		return q.Within.String()
	case q.Containing.IsValid():
		return q.Containing.String()
	}
	return ""
}

// Matches says whether a prefix is asked for.
func (q Query) Matches(p netip.Prefix) bool {
	switch {
	case q.Within.IsValid():
		return q.Within.Bits() <= p.Bits() && q.Within.Contains(p.Addr())
	case q.Containing.IsValid():
		return p.Contains(q.Containing)
	}
	return true
}

// values are the URL's, as parseValues takes them.
func (q Query) values() url.Values {
	v := url.Values{}
	if q.Within.IsValid() {
		v.Set("within", q.Within.String())
	}
	if q.Containing.IsValid() {
		v.Set("containing", q.Containing.String())
	}
	return v
}

// parseValues takes the query of a URL. It refuses what it does not know: an answer to half a question
// would be taken for one to the whole.
func parseValues(raw string) (Query, error) {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return Query{}, fmt.Errorf("the query of the URL: %w", err)
	}
	var q Query
	for name, all := range values {
		switch {
		case len(values) > 1 || len(all) > 1:
			return Query{}, fmt.Errorf("there is more than one condition in %.100q", raw)
		case name == "within":
			q.Within, err = parsePrefix(all[0])
		case name == "containing":
			q.Containing, err = parseAddr(all[0])
		default:
			err = fmt.Errorf("%.60q is unknown: it can be within=PREFIX or containing=ADDRESS", name)
		}
	}
	return q, err
}
