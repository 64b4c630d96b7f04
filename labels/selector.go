// SPDX-License-Identifier: Apache-2.0

// Package labels is the selector language: boolean expressions over labels, such as
//
//	rack in {'r1', 'r2'} && !has(edge)
//
// The grammar, from loosest to tightest; an empty selector is all():
//
//	or    = and  { "||" and }
//	and   = not  { "&&" not }
//	not   = "!" not | "(" or ")" | term
//	term  = "all()" | "has(" KEY ")"
//	      | KEY "==" STRING | KEY "!=" STRING
//	      | KEY "in" SET    | KEY "not in" SET
//	      | KEY "contains" STRING | KEY "starts with" STRING | KEY "ends with" STRING
//	SET   = "{" [ STRING { "," STRING } ] "}"
//
// KEY is letters, digits and . _ / -, so a label may be named "in" or "has" too. STRING stands in
// ' or " and may hold anything but its own quote. A label that is absent fulfils != and not in,
// and no other comparison.
//
// A selector of namespaces ([ParseNamespaces]) has the term "global()" as well: what is in no namespace.
//
// The package is pure, and imports the standard library only.
package labels

import (
	"slices"
	"strings"
)

// Limits of a selector. They bound the work and the stack that a hostile one can cost.
const (
	// MaxLength of a selector in bytes, as it is written and in its canonical form.
	MaxLength = 16384
	// MaxDepth of parentheses and negations within each other.
	MaxDepth = 64
)

// Selector selects sets of labels. The zero Selector selects all. It is immutable.
type Selector struct {
	root node
	text string
}

// All selects everything.
func All() Selector { return Selector{} }

// Matches says whether the selector selects something with these labels.
func (s Selector) Matches(labels map[string]string) bool {
	return s.root == nil || s.root.matches(labels)
}

// String returns the canonical form: what it parses to is the same selector, and two selectors
// that differ only in white space, quotes, needless parentheses or the order of a set have the
// same one.
func (s Selector) String() string {
	if s.root == nil {
		return "all()"
	}
	return s.text
}

// node is one of all, namespaced, global, has, compare, member, not, list.
type node interface {
	matches(labels map[string]string) bool
	// write appends the canonical form.
	write(b *strings.Builder)
	// binds is how tightly: a node within a tighter one needs parentheses.
	binds() int
}

const (
	bindsOr = iota
	bindsAnd
	bindsNot
	bindsTerm
)

type all struct{}

func (all) matches(map[string]string) bool { return true }
func (all) write(b *strings.Builder)       { b.WriteString("all()") }
func (all) binds() int                     { return bindsTerm }

// namespaced is all() in a selector of namespaces, and global its opposite: what is in no namespace has
// no labels of one, not even an empty map.
type namespaced struct{}

func (namespaced) matches(l map[string]string) bool { return l != nil }
func (namespaced) write(b *strings.Builder)         { b.WriteString("all()") }
func (namespaced) binds() int                       { return bindsTerm }

type global struct{}

func (global) matches(l map[string]string) bool { return l == nil }
func (global) write(b *strings.Builder)         { b.WriteString("global()") }
func (global) binds() int                       { return bindsTerm }

type has struct{ key string }

func (n has) matches(l map[string]string) bool { _, ok := l[n.key]; return ok }
func (n has) write(b *strings.Builder)         { b.WriteString("has(" + n.key + ")") }
func (n has) binds() int                       { return bindsTerm }

type compareOp string

const (
	opEqual      compareOp = "=="
	opNotEqual   compareOp = "!="
	opContains   compareOp = "contains"
	opStartsWith compareOp = "starts with"
	opEndsWith   compareOp = "ends with"
)

type compare struct {
	key   string
	op    compareOp
	value string
}

func (n compare) matches(l map[string]string) bool {
	v, ok := l[n.key]
	switch n.op {
	case opEqual:
		return ok && v == n.value
	case opNotEqual:
		return !ok || v != n.value
	case opContains:
		return ok && strings.Contains(v, n.value)
	case opStartsWith:
		return ok && strings.HasPrefix(v, n.value)
	case opEndsWith:
		return ok && strings.HasSuffix(v, n.value)
	}
	return false
}

func (n compare) write(b *strings.Builder) {
	b.WriteString(n.key + " " + string(n.op) + " " + quote(n.value))
}

func (n compare) binds() int { return bindsTerm }

// member is "in" and, negated, "not in". values are sorted and differ from each other.
type member struct {
	key     string
	negated bool
	values  []string
}

func (n *member) matches(l map[string]string) bool {
	v, ok := l[n.key]
	if ok {
		_, ok = slices.BinarySearch(n.values, v)
	}
	return ok != n.negated
}

func (n *member) write(b *strings.Builder) {
	b.WriteString(n.key)
	if n.negated {
		b.WriteString(" not")
	}
	b.WriteString(" in {")
	for i, v := range n.values {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(quote(v))
	}
	b.WriteByte('}')
}

func (n *member) binds() int { return bindsTerm }

type not struct{ of node }

func (n not) matches(l map[string]string) bool { return !n.of.matches(l) }
func (n not) write(b *strings.Builder)         { b.WriteByte('!'); writeWithin(b, bindsNot, n.of) }
func (n not) binds() int                       { return bindsNot }

// list is && or ||. Lists of the same kind are not nested: (a && b) && c is a && b && c.
type list struct {
	or bool
	of []node
}

func (n *list) matches(l map[string]string) bool {
	for _, m := range n.of {
		if m.matches(l) == n.or {
			return n.or
		}
	}
	return !n.or
}

func (n *list) write(b *strings.Builder) {
	for i, m := range n.of {
		if i > 0 {
			b.WriteString(n.operator())
		}
		writeWithin(b, n.binds(), m)
	}
}

func (n *list) operator() string {
	if n.or {
		return " || "
	}
	return " && "
}

func (n *list) binds() int {
	if n.or {
		return bindsOr
	}
	return bindsAnd
}

// makeList joins nodes by && or ||, and takes in the members of lists of the same kind.
func makeList(or bool, of []node) node {
	if len(of) == 1 {
		return of[0]
	}
	l := &list{or: or}
	for _, m := range of {
		if inner, ok := m.(*list); ok && inner.or == or {
			l.of = append(l.of, inner.of...)
		} else {
			l.of = append(l.of, m)
		}
	}
	return l
}

func writeWithin(b *strings.Builder, outer int, n node) {
	if n.binds() >= outer {
		n.write(b)
		return
	}
	b.WriteByte('(')
	n.write(b)
	b.WriteByte(')')
}

// quote needs no escapes: a value was read from within one kind of quotes, so it holds at most
// the other kind.
func quote(v string) string {
	if strings.Contains(v, "'") {
		return `"` + v + `"`
	}
	return "'" + v + "'"
}
