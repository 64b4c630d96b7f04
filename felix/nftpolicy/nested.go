// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"net/netip"

	"github.com/gaissmai/bart"
)

// nested keeps networks that may lie within each other, of which the kernel gets the outermost: it refuses
// ranges that overlap. What one network more or less changes is found by looking around it, not through
// all.
type nested struct {
	all    bart.Table[int] // how often each is in
	change func(p netip.Prefix, add bool)
}

// add puts a network in once more.
func (n *nested) add(p netip.Prefix) {
	p = p.Masked()
	count, _ := n.all.Get(p)
	n.all.Insert(p, count+1)
	if count > 0 || n.covered(p) {
		return
	}
	n.within(p, func(q netip.Prefix) { n.change(q, false) })
	n.change(p, true)
}

// remove takes it out once.
func (n *nested) remove(p netip.Prefix) {
	p = p.Masked()
	count, ok := n.all.Get(p)
	switch {
	case !ok:
		return
	case count > 1:
		n.all.Insert(p, count-1)
		return
	}
	n.all.Delete(p)
	if n.covered(p) {
		return
	}
	n.change(p, false)
	n.within(p, func(q netip.Prefix) { n.change(q, true) })
}

// covered says whether p is within another network.
func (n *nested) covered(p netip.Prefix) bool {
	for q := range n.all.Supernets(p) {
		if q != p {
			return true
		}
	}
	return false
}

// within calls visit with the outermost networks within p, other than p.
func (n *nested) within(p netip.Prefix, visit func(netip.Prefix)) {
	var last netip.Prefix
	for q := range n.all.Subnets(p) { // in order, larger ones first
		if q == p || last.IsValid() && last.Contains(q.Addr()) {
			continue
		}
		last = q
		visit(q)
	}
}

// outermost yields the networks that are within no other.
func (n *nested) outermost(yield func(netip.Prefix) bool) {
	var last netip.Prefix
	for q := range n.all.AllSorted() {
		if last.IsValid() && last.Contains(q.Addr()) {
			continue
		}
		last = q
		if !yield(q) {
			return
		}
	}
}
