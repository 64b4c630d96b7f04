// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"slices"
	"strings"
)

// The functions below build selectors without a text, for languages that have a form of their own,
// as Kubernetes' LabelSelector. Keys and values must be those of valid labels. What they build may
// be longer than MaxLength.

// In selects what has the label with one of the values; without values, nothing.
func In(key string, values ...string) Selector {
	if len(values) == 1 {
		return build(compare{key: key, op: opEqual, value: values[0]})
	}
	return build(&member{key: key, values: sorted(values)})
}

// NotIn selects what In does not.
func NotIn(key string, values ...string) Selector {
	if len(values) == 1 {
		return build(compare{key: key, op: opNotEqual, value: values[0]})
	}
	return build(&member{key: key, negated: true, values: sorted(values)})
}

// Has selects what has the label, with any value.
func Has(key string) Selector { return build(has{key: key}) }

// Lacks selects what Has does not.
func Lacks(key string) Selector { return build(not{of: has{key: key}}) }

// And selects what all of them select. The order in which they are given does not matter, nor that
// one is given twice: the canonical form is the same.
func And(selectors ...Selector) Selector {
	var parts []Selector
	for _, s := range selectors {
		if l, ok := s.root.(*list); ok && !l.or {
			for _, n := range l.of {
				parts = append(parts, build(n))
			}
		} else if s.root != nil {
			parts = append(parts, s)
		}
	}
	slices.SortFunc(parts, func(a, b Selector) int { return strings.Compare(a.text, b.text) })
	parts = slices.CompactFunc(parts, func(a, b Selector) bool { return a.text == b.text })
	nodes := make([]node, 0, len(parts))
	for _, s := range parts {
		nodes = append(nodes, s.root)
	}
	if len(nodes) == 0 {
		return Selector{}
	}
	return build(makeList(false, nodes))
}

func build(root node) Selector {
	var b strings.Builder
	root.write(&b)
	return Selector{root: root, text: b.String()}
}

func sorted(values []string) []string {
	values = slices.Clone(values)
	slices.Sort(values)
	return slices.Compact(values)
}

// Requirement is a label that everything selected has.
type Requirement struct {
	Key string
	// Values are all that it can have; nil: any.
	Values []string
}

// Requirements returns what follows from being selected, by which an index can find the few
// selectors that may select something among many that cannot. There may be none, and there is more
// to selecting than they say.
func (s Selector) Requirements() []Requirement {
	l, ok := s.root.(*list)
	if !ok {
		return appendRequirement(nil, s.root)
	}
	if l.or {
		return nil
	}
	var r []Requirement
	for _, n := range l.of {
		r = appendRequirement(r, n)
	}
	return r
}

func appendRequirement(r []Requirement, n node) []Requirement {
	switch n := n.(type) {
	case has:
		return append(r, Requirement{Key: n.key})
	case compare:
		switch n.op {
		case opEqual:
			return append(r, Requirement{Key: n.key, Values: []string{n.value}})
		case opNotEqual:
			return r
		}
		return append(r, Requirement{Key: n.key})
	case *member:
		// Without values it selects nothing; one of no value would be taken for any.
		if !n.negated && len(n.values) > 0 {
			return append(r, Requirement{Key: n.key, Values: n.values})
		}
	}
	return r
}

// Keys returns the keys of all labels that the selector looks at, sorted.
func (s Selector) Keys() []string {
	keys := appendKeys(nil, s.root)
	slices.Sort(keys)
	return slices.Compact(keys)
}

func appendKeys(keys []string, n node) []string {
	switch n := n.(type) {
	case has:
		return append(keys, n.key)
	case compare:
		return append(keys, n.key)
	case *member:
		return append(keys, n.key)
	case not:
		return appendKeys(keys, n.of)
	case *list:
		for _, m := range n.of {
			keys = appendKeys(keys, m)
		}
	}
	return keys
}
