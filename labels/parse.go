// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// SyntaxError says where a selector stops making sense, and what would have.
type SyntaxError struct {
	// Position of the first character that does not fit, counted from 1.
	Position int
	// Expected says what could stand there.
	Expected string
	// Found is what stands there, quoted; or "the end".
	Found string
}

// Error returns "position 7: expected a value in quotes, found 'r1'".
func (e *SyntaxError) Error() string {
	return fmt.Sprintf("position %d: expected %s, found %s", e.Position, e.Expected, e.Found)
}

// Parse parses a selector. Its error is a *SyntaxError, unless the selector is too long.
func Parse(text string) (Selector, error) { return parse(&parser{text: text}) }

// ParseNamespaces parses a selector of the namespaces that things are in. Things in none have nil for
// labels of it: all() does not select them, global() does, and so do comparisons that absence fulfils.
// An empty text restricts nothing, which is more than all().
func ParseNamespaces(text string) (Selector, error) {
	return parse(&parser{text: text, namespaces: true})
}

func parse(p *parser) (Selector, error) {
	if len(p.text) > MaxLength {
		return Selector{}, fmt.Errorf("the selector is %d bytes long, more than %d", len(p.text), MaxLength)
	}
	p.space()
	if p.pos == len(p.text) {
		return Selector{}, nil
	}
	root, err := p.or()
	if err != nil {
		return Selector{}, err
	}
	if p.pos != len(p.text) {
		return Selector{}, p.expected("&&, || or the end")
	}
	if root == (all{}) {
		return Selector{}, nil
	}
	var b strings.Builder
	root.write(&b)
	// Spaces make the canonical form longer than the text; it must parse too.
	if b.Len() > MaxLength {
		return Selector{}, fmt.Errorf("the selector is %d bytes long in its canonical form, more than %d", b.Len(), MaxLength)
	}
	return Selector{root: root, text: b.String()}, nil
}

// parser reads text from pos on. Every method that consumes something also consumes the white
// space after it.
type parser struct {
	text       string
	pos        int
	depth      int
	namespaces bool // as ParseNamespaces has it
}

func (p *parser) or() (node, error)  { return p.list("||", true, p.and) }
func (p *parser) and() (node, error) { return p.list("&&", false, p.not) }

func (p *parser) list(operator string, or bool, operand func() (node, error)) (node, error) {
	var of []node
	for {
		n, err := operand()
		if err != nil {
			return nil, err
		}
		of = append(of, n)
		if !p.accept(operator) {
			return makeList(or, of), nil
		}
	}
}

func (p *parser) not() (node, error) {
	start := p.pos
	switch {
	case p.accept("!"):
		n, err := p.deeper(start, p.not)
		if err != nil {
			return nil, err
		}
		return not{of: n}, nil
	case p.accept("("):
		n, err := p.deeper(start, p.or)
		if err != nil {
			return nil, err
		}
		if !p.accept(")") {
			return nil, p.expected("&&, || or )")
		}
		return n, nil
	}
	return p.term()
}

func (p *parser) deeper(start int, f func() (node, error)) (node, error) {
	if p.depth == MaxDepth {
		p.pos = start
		return nil, p.expected(fmt.Sprintf("at most %d parentheses and negations within each other", MaxDepth))
	}
	p.depth++
	defer func() { p.depth-- }()
	return f()
}

func (p *parser) term() (node, error) {
	start := p.pos
	key := p.word()
	if key == "" {
		return nil, p.expected("a label, has(…), all(), ! or (")
	}
	if p.accept("(") {
		return p.function(start, key)
	}
	for _, op := range []compareOp{opEqual, opNotEqual} {
		if p.accept(string(op)) {
			return p.comparison(key, op)
		}
	}
	return p.wordOperator(key)
}

// function is called after its name and "(".
func (p *parser) function(start int, name string) (node, error) {
	switch name {
	case "all":
		if !p.accept(")") {
			return nil, p.expected(")")
		}
		if p.namespaces {
			return namespaced{}, nil
		}
		return all{}, nil
	case "has":
		key := p.word()
		if key == "" {
			return nil, p.expected("a label")
		}
		if !p.accept(")") {
			return nil, p.expected(")")
		}
		return has{key: key}, nil
	}
	if p.namespaces && name == "global" {
		if !p.accept(")") {
			return nil, p.expected(")")
		}
		return global{}, nil
	}
	p.pos = start
	if p.namespaces {
		return nil, p.expected("has(…), all() or global()")
	}
	return nil, p.expected("has(…) or all()")
}

func (p *parser) wordOperator(key string) (node, error) {
	start := p.pos
	const operators = "==, !=, in, not in, contains, starts with or ends with"
	switch p.word() {
	case "contains":
		return p.comparison(key, opContains)
	case "starts":
		return p.secondWord("with", func() (node, error) { return p.comparison(key, opStartsWith) })
	case "ends":
		return p.secondWord("with", func() (node, error) { return p.comparison(key, opEndsWith) })
	case "in":
		return p.set(key, false)
	case "not":
		return p.secondWord("in", func() (node, error) { return p.set(key, true) })
	}
	p.pos = start
	return nil, p.expected(operators)
}

func (p *parser) secondWord(want string, then func() (node, error)) (node, error) {
	start := p.pos
	if p.word() != want {
		p.pos = start
		return nil, p.expected(want)
	}
	return then()
}

func (p *parser) comparison(key string, op compareOp) (node, error) {
	value, err := p.value()
	if err != nil {
		return nil, err
	}
	return compare{key: key, op: op, value: value}, nil
}

func (p *parser) set(key string, negated bool) (node, error) {
	if !p.accept("{") {
		return nil, p.expected("{")
	}
	n := &member{key: key, negated: negated}
	if p.accept("}") {
		return n, nil
	}
	for {
		v, err := p.value()
		if err != nil {
			return nil, err
		}
		n.values = append(n.values, v)
		if p.accept("}") {
			slices.Sort(n.values)
			n.values = slices.Compact(n.values)
			return n, nil
		}
		if !p.accept(",") {
			return nil, p.expected(", or }")
		}
	}
}

func (p *parser) value() (string, error) {
	if p.pos == len(p.text) || p.text[p.pos] != '\'' && p.text[p.pos] != '"' {
		return "", p.expected("a value in quotes")
	}
	q := p.text[p.pos]
	end := strings.IndexByte(p.text[p.pos+1:], q)
	if end < 0 {
		start := p.pos
		p.pos = len(p.text)
		return "", p.expected(fmt.Sprintf("%c to end the value that begins at position %d", q, p.position(start)))
	}
	v := p.text[p.pos+1 : p.pos+1+end]
	p.pos += end + 2
	p.space()
	return v, nil
}

// accept consumes the token if it is next. It must not begin with a letter.
func (p *parser) accept(token string) bool {
	if !strings.HasPrefix(p.text[p.pos:], token) {
		return false
	}
	p.pos += len(token)
	p.space()
	return true
}

// word consumes letters, digits and . _ / - and returns them.
func (p *parser) word() string {
	start := p.pos
	for p.pos < len(p.text) && isWord(p.text[p.pos]) {
		p.pos++
	}
	w := p.text[start:p.pos]
	p.space()
	return w
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._/-", c) >= 0
}

func (p *parser) space() {
	for p.pos < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.pos]) >= 0 {
		p.pos++
	}
}

// position counts characters, as the reader of the message does.
func (p *parser) position(offset int) int {
	return utf8.RuneCountInString(p.text[:offset]) + 1
}

func (p *parser) expected(what string) error {
	return &SyntaxError{Position: p.position(p.pos), Expected: what, Found: p.found()}
}

// found is the word or the character at pos.
func (p *parser) found() string {
	if p.pos == len(p.text) {
		return "the end"
	}
	end := p.pos
	for end < len(p.text) && isWord(p.text[end]) && end-p.pos < 32 {
		end++
	}
	if end == p.pos {
		_, size := utf8.DecodeRuneInString(p.text[p.pos:])
		end += size
	}
	return fmt.Sprintf("%q", p.text[p.pos:end])
}
