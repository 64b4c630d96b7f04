// SPDX-License-Identifier: Apache-2.0

package policy

import "strings"

// DomainSet is the set of what a name of a domain, or a pattern such as "*.example.com", stands for at the
// moment. Its members are what answers of DNS have said on the node.
func DomainSet(pattern string) SetID { return SetID("domains(" + pattern + ")") }

// Domain returns the pattern of a DomainSet.
func (id SetID) Domain() (pattern string, ok bool) {
	rest, ok := strings.CutPrefix(string(id), "domains(")
	return strings.TrimSuffix(rest, ")"), ok
}
