// SPDX-License-Identifier: Apache-2.0

package compile

import "github.com/heliograph-dev/heliograph/labels"

// label of an entity, or of what it belongs to.
type label struct{ key, value string }

// bucket is a trait of entities. Every selection stands in the buckets of one trait that all of its
// entities have, so that of 10,000 selections only those few are tried whose trait an entity has.
type bucket struct {
	own       bool
	namespace string // by name; empty: any
	scope     scope
	label
}

type scope uint8

const (
	anyEntity scope = iota
	ownLabel
	ownKey
	accountLabel
	accountKey
	namespaceLabel
	namespaceKey
)

type index map[bucket]map[*selection]struct{}

func (x index) add(s *selection) {
	s.buckets = x.choose(s.selector)
	for _, b := range s.buckets {
		if x[b] == nil {
			x[b] = map[*selection]struct{}{}
		}
		x[b][s] = struct{}{}
	}
}

func (x index) remove(s *selection) {
	for _, b := range s.buckets {
		delete(x[b], s)
		if len(x[b]) == 0 {
			delete(x, b)
		}
	}
}

// choose returns the buckets of the trait that the fewest other selections stand for. An entity has at
// most one of them.
func (x index) choose(s selector) []bucket {
	names := namesOf(s.namespaces)
	if names == nil {
		names = []string{""}
	}
	var best []bucket
	least := 0
	try := func(of scope, labels []label) {
		var list []bucket
		load := 0
		for _, name := range names {
			for _, l := range labels {
				b := bucket{own: s.own, namespace: name, scope: of, label: l}
				list = append(list, b)
				load += len(x[b])
			}
		}
		if best == nil || load < least {
			best, least = list, load
		}
	}
	// At equal load the more telling trait comes first.
	for _, values := range []bool{true, false} {
		eachRequirement(s.labels, values, func(l []label) { try(pickScope(values, ownLabel, ownKey), l) })
		if s.byAccount {
			eachRequirement(s.accounts, values, func(l []label) { try(pickScope(values, accountLabel, accountKey), l) })
		}
		eachRequirement(s.namespaces, values, func(l []label) {
			// The name is in every bucket.
			if l[0].key != nameLabel {
				try(pickScope(values, namespaceLabel, namespaceKey), l)
			}
		})
	}
	try(anyEntity, []label{{}})
	return best
}

func pickScope(values bool, withValue, withKey scope) scope {
	if values {
		return withValue
	}
	return withKey
}

func eachRequirement(s labels.Selector, values bool, f func([]label)) {
	for _, r := range s.Requirements() {
		if (r.Values != nil) != values {
			continue
		}
		list := []label{{key: r.Key}}
		if values {
			list = list[:0]
			for _, v := range r.Values {
				list = append(list, label{r.Key, v})
			}
		}
		f(list)
	}
}

// each visits the selections that may select the entity, each once.
func (x index) each(e *entity, visit func(*selection)) {
	x.eachOf(e, false, visit)
	if e.workload != nil {
		x.eachOf(e, true, visit)
	}
}

func (x index) eachOf(e *entity, own bool, visit func(*selection)) {
	x.eachIn(e, own, "", visit)
	if e.namespace.name != "" {
		x.eachIn(e, own, e.namespace.name, visit)
	}
}

func (x index) eachIn(e *entity, own bool, namespace string, visit func(*selection)) {
	at := func(of scope, l label) {
		for s := range x[bucket{own: own, namespace: namespace, scope: of, label: l}] {
			visit(s)
		}
	}
	all := func(labels map[string]string, withValue, withKey scope) {
		for k, v := range labels {
			at(withValue, label{k, v})
			at(withKey, label{key: k})
		}
	}
	at(anyEntity, label{})
	all(e.labels, ownLabel, ownKey)
	all(e.namespace.labels, namespaceLabel, namespaceKey)
	if e.account != nil {
		all(e.account.labels, accountLabel, accountKey)
	}
}
