// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"maps"
	"slices"
	"strings"
)

// objects is what should be in the kernel's table, and how what is differs. A chain or set is there for as
// long as somebody refers to it.
type objects struct {
	chains  map[string]*chainObject
	sets    map[string]*setObject
	doomed  map[string]*setObject // in the kernel, and not wanted any more
	touched struct {
		chains map[string]struct{}
		sets   map[string]struct{}
	}
	// confused: a set was dropped and is wanted again, but with what it holds in the kernel nobody
	// has kept up. The kernel must be read.
	confused bool
}

type chainObject struct {
	refs       int
	want, have *Chain
}

func newObjects() *objects {
	o := &objects{chains: map[string]*chainObject{}, sets: map[string]*setObject{}, doomed: map[string]*setObject{}}
	o.touched.chains, o.touched.sets = map[string]struct{}{}, map[string]struct{}{}
	return o
}

// acquire makes what a unit needs wanted, once more.
func (o *objects) acquire(r *rendering) {
	for i := range r.chains {
		o.acquireChain(&r.chains[i])
	}
	for _, c := range r.constants {
		o.acquireSet(c.Name, func() *setObject { return &setObject{Set: c.Set, all: c.Elements} })
	}
	for _, l := range r.nets {
		o.acquireSet(l.Name, func() *setObject { return newNetSet(l) }).update(l)
	}
}

// release is the reverse.
func (o *objects) release(r *rendering) {
	for _, c := range r.chains {
		obj := o.chains[c.Name]
		if obj.refs--; obj.refs == 0 {
			obj.want = nil
			o.touched.chains[c.Name] = struct{}{}
		}
	}
	for _, c := range r.constants {
		o.releaseSet(c.Name)
	}
	for _, l := range r.nets {
		o.releaseSet(l.Name)
	}
}

func (o *objects) acquireChain(c *Chain) {
	obj := o.chains[c.Name]
	if obj == nil {
		obj = &chainObject{}
		o.chains[c.Name] = obj
	}
	obj.refs++
	obj.want = c
	o.touched.chains[c.Name] = struct{}{}
}

// acquireSet returns the set; one that nobody has let go of in the kernel yet has kept up with itself.
func (o *objects) acquireSet(name string, make func() *setObject) *setObject {
	s := o.sets[name]
	if s == nil {
		if s = o.doomed[name]; s != nil && s.all == nil { // read, and not known
			s, o.confused = nil, true
		}
		if s == nil {
			s = make()
		}
		delete(o.doomed, name)
		o.sets[name] = s
	}
	s.refs++
	o.touched.sets[name] = struct{}{}
	return s
}

func (o *objects) releaseSet(name string) {
	s := o.sets[name]
	if s.refs--; s.refs > 0 {
		return
	}
	delete(o.sets, name)
	o.touched.sets[name] = struct{}{}
	if s.inKernel {
		o.doomed[name] = s
	}
}

// put makes a set of the state wanted. It has been made from present members.
func (o *objects) put(s *setObject) {
	if o.doomed[s.Name] != nil {
		delete(o.doomed, s.Name)
		o.confused = true
	}
	s.refs = 1
	o.sets[s.Name] = s
	o.touched.sets[s.Name] = struct{}{}
}

func (o *objects) touch(s *setObject) { o.touched.sets[s.Name] = struct{}{} }

// plan returns the operations that make the kernel's table what it should be. What is referred to comes
// before what refers, and is taken out after it.
func (o *objects) plan(replace bool) []Op {
	p := planner{replace: replace}
	names := slices.Sorted(maps.Keys(o.touched.sets))
	if replace {
		names = slices.Sorted(maps.Keys(o.sets))
	}
	// The kernel keeps sets in a list, and looks them up from its beginning: those that many rules share
	// go first. With 10,000 policies that saves a third of all the time.
	for _, shared := range []bool{true, false} {
		for _, name := range names {
			if s := o.sets[name]; s != nil && (s.Key >= Port) == shared {
				p.set(s)
			}
		}
	}
	chains := slices.Sorted(maps.Keys(o.touched.chains))
	if replace {
		chains = slices.Sorted(maps.Keys(o.chains))
	}
	p.rules = make([]Op, 0, o.rules(chains))
	for _, name := range chains {
		p.chain(o.chains[name])
	}
	if !replace {
		for _, name := range slices.Sorted(maps.Keys(o.doomed)) {
			p.deleteSets = append(p.deleteSets, Op{Kind: DeleteSet, Set: o.doomed[name].Set})
		}
	}
	return p.ops()
}

// rules is how many rules chains should have: as many operations may be needed.
func (o *objects) rules(chains []string) (n int) {
	for _, name := range chains {
		if c := o.chains[name].want; c != nil {
			n += len(c.Rules)
		}
	}
	return n
}

// committed learns that the kernel has done all that was planned.
func (o *objects) committed(replaced bool) {
	chains, sets := maps.Keys(o.touched.chains), maps.Keys(o.touched.sets)
	if replaced {
		chains, sets = maps.Keys(o.chains), maps.Keys(o.sets)
	}
	for name := range sets {
		if s := o.sets[name]; s != nil {
			s.committed()
		}
	}
	for name := range chains {
		c := o.chains[name]
		if c.have = c.want; c.want == nil {
			delete(o.chains, name)
		}
	}
	o.touched.chains, o.touched.sets = emptied(o.touched.chains), emptied(o.touched.sets)
	clear(o.doomed)
	o.confused = false
}

// emptied clears a map. That takes as long as the map has ever been large, so a large one is left behind.
func emptied(m map[string]struct{}) map[string]struct{} {
	if len(m) > 64 {
		return map[string]struct{}{}
	}
	clear(m)
	return m
}

// ruleset is what the table should hold.
func (o *objects) ruleset() Ruleset {
	var r Ruleset
	for _, name := range slices.Sorted(maps.Keys(o.sets)) {
		r.Sets = append(r.Sets, Content{o.sets[name].Set, o.sets[name].all})
	}
	for _, name := range slices.Sorted(maps.Keys(o.chains)) {
		if c := o.chains[name].want; c != nil {
			r.Chains = append(r.Chains, *c)
		}
	}
	return r
}

// adopt makes the account of the kernel what was read, and says where that departs from what should be.
func (o *objects) adopt(a Actual) (drift string) {
	note := func(what, name string) {
		if drift == "" || what+name < drift { // the first, whatever the order of maps
			drift = what + name
		}
	}
	clear(o.doomed)
	o.confused = false
	for name, s := range o.sets {
		elements, ok := a.Sets[name]
		if s.inKernel, s.pending = ok, nil; !ok {
			note("missing set ", name)
		} else if e := s.adopt(elements); e != "" {
			note(e+" in set ", name)
		}
		o.touch(s)
	}
	for name := range a.Sets {
		if o.sets[name] == nil {
			o.doomed[name] = &setObject{Set: Set{Name: name}, inKernel: true}
			note("foreign set ", name)
		}
	}
	for name, c := range o.chains {
		same, ok := a.Chains[name]
		if c.have = nil; ok && same {
			c.have = c.want
		} else if ok {
			c.have = &Chain{Name: name, Rules: []Rule{{Comment: "unknown"}}}
			note("changed rules in chain ", name)
		} else if c.want != nil {
			note("missing chain ", name)
		}
		if c.want == nil && ok {
			c.have = &Chain{Name: name}
		}
		o.touched.chains[name] = struct{}{}
	}
	for name := range a.Chains {
		if o.chains[name] == nil {
			o.chains[name] = &chainObject{have: &Chain{Name: name}}
			o.touched.chains[name] = struct{}{}
			note("foreign chain ", name)
		}
	}
	return drift
}

// adopt makes the difference to what was read pending.
func (s *setObject) adopt(elements map[Element]struct{}) (drift string) {
	for e := range elements {
		if s.tags != nil {
			s.tags[e.Key[:min(tagLength, len(e.Key))]] = true
		}
	}
	for e := range s.all {
		if _, ok := elements[e]; ok {
			delete(elements, e)
			continue
		}
		s.change(e, true)
		drift = "missing elements"
	}
	for e := range elements {
		s.change(e, false)
		drift = "foreign elements"
	}
	return drift
}

// planner collects operations by the phase in which they are due.
type planner struct {
	replace                                                              bool
	addSets, addChains, removals, additions, flushes, rules, deleteChain []Op
	deleteSets                                                           []Op
}

func (p *planner) ops() []Op {
	return slices.Concat(p.addSets, p.addChains, p.removals, p.additions, p.flushes, p.rules, p.deleteChain, p.deleteSets)
}

func (p *planner) set(s *setObject) {
	var remove, add []Element
	fresh := !s.inKernel || p.replace
	if !fresh {
		add = make([]Element, 0, len(s.pending)) // to grow to 100,000 would cost as much as all the rest
		for e, in := range s.pending {
			if in {
				add = append(add, e)
			} else {
				remove = append(remove, e)
			}
		}
	} else {
		p.addSets = append(p.addSets, Op{Kind: AddSet, Set: s.Set, Inert: true})
		add = slices.Collect(s.all)
	}
	// The kernel takes elements in any order; sorted, equal states make equal transactions.
	if len(remove) > 0 {
		slices.SortFunc(remove, compareElements)
		p.removals = append(p.removals, Op{Kind: RemoveElements, Set: s.Set, Elements: remove})
	}
	slices.SortFunc(add, compareElements)
	inert := add
	if !fresh {
		inert, add = partition(add, s.inert)
	} else if s.Map {
		inert = nil
	} else {
		add = nil
	}
	p.add(s.Set, inert, true)
	p.add(s.Set, add, false)
}

func (p *planner) add(s Set, elements []Element, inert bool) {
	if len(elements) > 0 {
		p.additions = append(p.additions, Op{Kind: AddElements, Set: s, Elements: elements, Inert: inert})
	}
}

// partition separates the elements for which is holds.
func partition(list []Element, is func(Element) bool) (yes, no []Element) {
	n := 0
	for _, e := range list {
		if is(e) {
			n++
		}
	}
	switch n {
	case len(list):
		return list, nil
	case 0:
		return nil, list
	}
	yes, no = make([]Element, 0, n), make([]Element, 0, len(list)-n)
	for _, e := range list {
		if is(e) {
			yes = append(yes, e)
		} else {
			no = append(no, e)
		}
	}
	return yes, no
}

func compareElements(a, b Element) int {
	if c := strings.Compare(a.Key, b.Key); c != 0 {
		return c
	}
	return strings.Compare(a.Verdict.Chain, b.Verdict.Chain)
}

func (p *planner) chain(c *chainObject) {
	have := c.have
	if p.replace {
		have = nil
	}
	switch {
	case c.want == have || c.want != nil && have != nil && c.want.Equal(*have):
		return
	case c.want == nil:
		head := Chain{Name: have.Name}
		p.flushes = append(p.flushes, Op{Kind: FlushChain, Chain: head})
		p.deleteChain = append(p.deleteChain, Op{Kind: DeleteChain, Chain: head})
		return
	}
	head := Chain{Name: c.want.Name, Hook: c.want.Hook, After: c.want.After}
	inert := have == nil && head.Hook == NoHook
	if have == nil {
		p.addChains = append(p.addChains, Op{Kind: AddChain, Chain: head, Inert: inert})
	} else {
		p.flushes = append(p.flushes, Op{Kind: FlushChain, Chain: head})
	}
	for i := range c.want.Rules {
		p.rules = append(p.rules, Op{Kind: AddRule, Chain: head, Rule: &c.want.Rules[i], Inert: inert})
	}
}
