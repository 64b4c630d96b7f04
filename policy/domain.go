// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"iter"
	"strings"
)

// DomainSet is the set of what a name of a domain, or a pattern such as "*.example.com", stands for at the
// moment. Its members are what answers of DNS have said on the node.
func DomainSet(pattern string) SetID { return SetID("domains(" + pattern + ")") }

// Domain returns the pattern of a DomainSet.
func (id SetID) Domain() (pattern string, ok bool) {
	rest, ok := strings.CutPrefix(string(id), "domains(")
	return strings.TrimSuffix(rest, ")"), ok
}

// Below returns the domain that a pattern stands for all names below of: "*.example.com".
func Below(pattern string) (domain string, ok bool) { return strings.CutPrefix(pattern, "*.") }

// Parents are the domains that a name is below, the nearest first.
func Parents(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for rest, found := name, true; found; {
			if _, rest, found = strings.Cut(rest, "."); found && !yield(rest) {
				return
			}
		}
	}
}
