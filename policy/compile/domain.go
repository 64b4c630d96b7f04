// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"errors"
	"net/netip"
	"strings"

	"github.com/heliograph-dev/heliograph/labels"
	"github.com/heliograph-dev/heliograph/policy"
)

// A name of a domain is an entity with made-up labels: its name, and one for each domain that it is below.
// So "*.example.com" selects by one label, as everything else does, and a name costs as much as it has parts.
const (
	domainLabel = "domain"
	belowLabel  = "below " // and the domain
)

// SetDomain says at which addresses a name of a domain is. It is lower case, and has no dot at its end.
func (c *Compiler) SetDomain(name string, addrs []netip.Addr) {
	f := facts{labels: map[string]string{domainLabel: name}}
	for rest, found := name, true; found; {
		if _, rest, found = strings.Cut(rest, "."); found {
			f.labels[belowLabel+rest] = ""
		}
	}
	for _, ip := range addrs {
		f.prefixes = appendPrefix(f.prefixes, host(ip.Unmap()))
	}
	c.setEntity(entityKey{domains, policy.EndpointID{Name: name}}, f)
}

// RemoveDomain says that nobody knows where a name is.
func (c *Compiler) RemoveDomain(name string) {
	c.removeEntity(entityKey{domains, policy.EndpointID{Name: name}})
}

// domainSelector selects a name, or with "*." all names below one.
func domainSelector(pattern string) (selector, error) {
	pattern = strings.ToLower(strings.TrimSuffix(pattern, "."))
	parent, below := strings.CutPrefix(pattern, "*.")
	if err := checkDomain(parent); err != nil {
		return selector{}, err
	}
	if below {
		return selector{kinds: domains, labels: labels.In(belowLabel+parent, "")}, nil
	}
	return selector{kinds: domains, labels: labels.In(domainLabel, pattern)}, nil
}

// Bounds of RFC 1035 §2.3.4, without the length bytes.
const (
	maxDomain      = 253
	maxDomainLabel = 63
)

// checkDomain allows what ClusterNetworkPolicy's API does: at least two labels, underscores among the letters.
func checkDomain(name string) error {
	if len(name) > maxDomain {
		return errors.New("is longer than names of domains are")
	}
	parts := strings.Split(name, ".")
	if len(parts) < 2 {
		return errors.New("is no full name of a domain")
	}
	for _, p := range parts {
		if p == "" || len(p) > maxDomainLabel || strings.Trim(p, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return errors.New("is no name of a domain, nor one below \"*.\"")
		}
	}
	return nil
}

// domainPattern is what the user wrote, in lower case.
func domainPattern(s labels.Selector) string {
	r := s.Requirements()[0]
	if parent, below := strings.CutPrefix(r.Key, belowLabel); below {
		return "*." + parent
	}
	return r.Values[0]
}
