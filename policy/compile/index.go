// SPDX-License-Identifier: Apache-2.0

package compile

import "github.com/heliograph-dev/heliograph/labels"

// label of a pod.
type label struct{ key, value string }

// bucket is a trait of pods. Every selection stands in the buckets of one trait that all of its pods
// have, so that of 10,000 selections only those few are tried whose trait a pod has.
type bucket struct {
	own       bool
	namespace string // by name; empty: any
	scope     scope
	label
}

type scope uint8

const (
	anyPod scope = iota
	podLabel
	podKey
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

// choose returns the buckets of the trait that the fewest other selections stand for. A pod has at most
// one of them.
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
	eachRequirement(s.pods, true, func(l []label) { try(podLabel, l) })
	eachRequirement(s.namespaces, true, func(l []label) { try(namespaceLabel, l) })
	eachRequirement(s.pods, false, func(l []label) { try(podKey, l) })
	eachRequirement(s.namespaces, false, func(l []label) { try(namespaceKey, l) })
	try(anyPod, []label{{}})
	return best
}

func eachRequirement(s labels.Selector, values bool, f func([]label)) {
	for _, r := range s.Requirements() {
		if r.Key == nameLabel || (r.Values != nil) != values {
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

// each visits the selections that may select the pod, each once.
func (x index) each(p *pod, visit func(*selection)) {
	x.eachOf(p, false, visit)
	if p.workload != nil {
		x.eachOf(p, true, visit)
	}
}

func (x index) eachOf(p *pod, own bool, visit func(*selection)) {
	for _, name := range []string{p.namespace.name, ""} {
		at := func(of scope, l label) {
			for s := range x[bucket{own: own, namespace: name, scope: of, label: l}] {
				visit(s)
			}
		}
		at(anyPod, label{})
		for k, v := range p.labels {
			at(podLabel, label{k, v})
			at(podKey, label{key: k})
		}
		for k, v := range p.namespace.labels {
			at(namespaceLabel, label{k, v})
			at(namespaceKey, label{key: k})
		}
	}
}
