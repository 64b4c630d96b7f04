// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"slices"

	"github.com/heliograph-dev/heliograph/labels"
	"github.com/heliograph-dev/heliograph/policy"
)

// selector selects entities of some kinds, by their labels and those of their namespace.
type selector struct {
	kinds kinds
	// namespaces by their labels. The zero selector restricts nothing, and all() to what is in one.
	namespaces labels.Selector
	labels     labels.Selector
	// byAccount restricts it to pods whose service account has labels that accounts selects.
	byAccount bool
	accounts  labels.Selector
	// own restricts it to pods of this node.
	own bool
}

type selectorKey struct {
	kinds                        kinds
	namespaces, labels, accounts string
	anywhere, byAccount, own     bool
}

func (s selector) key() selectorKey {
	k := selectorKey{
		kinds: s.kinds, namespaces: s.namespaces.String(), labels: s.labels.String(),
		anywhere: s.anywhere(), byAccount: s.byAccount, own: s.own,
	}
	if s.byAccount {
		k.accounts = s.accounts.String()
	}
	return k
}

// anywhere says whether it restricts namespaces in no way. All pods are in one, so all() is no restriction
// of pods.
func (s selector) anywhere() bool { return s.kinds != pods && s.namespaces == labels.All() }

// String is the canonical form.
func (s selector) String() string {
	if s.kinds == domains {
		return string(policy.DomainSet(domainPattern(s.labels)))
	}
	text := ""
	if s.own {
		text = "own "
	}
	switch s.kinds {
	case pods:
		text += "pods("
	case nodes:
		text += "nodes("
	case endpointSlices:
		text += "endpoints("
	case hosts:
		text += "hosts("
	case pods | hosts:
		text += "pods and hosts("
	default:
		text += "pods and sets("
	}
	text += s.labels.String() + ")"
	if s.byAccount {
		text += " accounts(" + s.accounts.String() + ")"
	}
	if !s.anywhere() {
		text += " namespaces(" + s.namespaces.String() + ")"
	}
	return text
}

// selection is the entities that a selector selects now, shared by all who ask for that selector.
type selection struct {
	selector
	// byName says that of namespaces only the name is asked for, accountByName the same of accounts.
	byName, accountByName bool
	buckets               []bucket
	members               map[*entity]struct{}
	sets                  []*set
	sources               map[*source]struct{} // policies whose subject it is
	round                 uint64
}

func (s *selection) matches(e *entity) bool {
	if s.kinds&e.key.kind == 0 || s.own && e.workload == nil {
		return false
	}
	// Of a namespace that the API does not know nobody can say which labels it lacks.
	if !e.namespace.known && e.namespace.name != "" && !s.byName {
		return false
	}
	return s.namespaces.Matches(e.namespace.labels) && s.labels.Matches(e.labels) && (!s.byAccount || s.matchesAccount(e.account))
}

func (s *selection) matchesAccount(a *account) bool {
	return a != nil && (a.known || s.accountByName) && s.accounts.Matches(a.labels)
}

// onlyName says whether a selector looks at no label but the name.
func onlyName(s labels.Selector) bool {
	keys := s.Keys()
	return len(keys) == 0 || len(keys) == 1 && keys[0] == nameLabel
}

// selection returns the one for the selector, and makes it if need be.
func (c *Compiler) selection(sel selector) *selection {
	key := sel.key()
	if s := c.selections[key]; s != nil {
		return s
	}
	s := &selection{
		selector: sel, byName: onlyName(sel.namespaces), accountByName: onlyName(sel.accounts),
		members: map[*entity]struct{}{}, sources: map[*source]struct{}{},
	}
	c.selections[key] = s
	c.index.add(s)
	c.eachCandidate(s, func(e *entity) {
		if s.matches(e) {
			e.selections = append(e.selections, s)
			c.join(e, s)
		}
	})
	return s
}

// dropIfIdle has the next Flush forget the selection, unless somebody asks for it before.
func (c *Compiler) dropIfIdle(s *selection) {
	if len(s.sets) == 0 && len(s.sources) == 0 {
		c.idle[s] = struct{}{}
	}
}

func (c *Compiler) dropIdle() {
	for s := range c.idle {
		if len(s.sets) > 0 || len(s.sources) > 0 {
			continue
		}
		for e := range s.members {
			if i := slices.Index(e.selections, s); i >= 0 {
				e.selections = slices.Delete(e.selections, i, i+1)
			}
		}
		c.index.remove(s)
		delete(c.selections, s.key())
	}
	reset(&c.idle)
}

// eachCandidate visits entities among which are all that the selection selects: those of the namespaces that
// it names or those with a label that it requires, whichever are fewer.
func (c *Compiler) eachCandidate(s *selection, visit func(*entity)) {
	names := namesOf(s.namespaces)
	inNamespaces := 0
	eachNamespace := func(f func(*namespace)) {
		if names == nil {
			for _, n := range c.namespaces {
				f(n)
			}
		}
		for _, name := range names {
			if n := c.namespaces[name]; n != nil {
				f(n)
			}
		}
	}
	if s.own {
		eachNamespace(func(n *namespace) { visitAll(n.own, visit) })
		return
	}
	if names == nil {
		inNamespaces = len(c.entities)
	} else {
		eachNamespace(func(n *namespace) { inNamespaces += len(n.entities) })
	}
	if l, ok := c.rarest(s.labels, inNamespaces); ok {
		for _, l := range l {
			visitAll(c.byLabel[l], visit)
		}
		return
	}
	eachNamespace(func(n *namespace) { visitAll(n.entities, visit) })
}

func visitAll(entities map[*entity]struct{}, visit func(*entity)) {
	for e := range entities {
		visit(e)
	}
}

// rarest returns the labels of the requirement that the fewest entities fulfil, if those are less than limit.
func (c *Compiler) rarest(s labels.Selector, limit int) (best []label, ok bool) {
	for _, r := range s.Requirements() {
		if r.Values == nil {
			continue
		}
		n := 0
		list := make([]label, 0, len(r.Values))
		for _, v := range r.Values {
			list = append(list, label{r.Key, v})
			n += len(c.byLabel[label{r.Key, v}])
		}
		if n < limit {
			best, ok, limit = list, true, n
		}
	}
	return best, ok
}

// namesOf returns the names that a selector of namespaces asks for; nil: any.
func namesOf(namespaces labels.Selector) []string {
	for _, r := range namespaces.Requirements() {
		if r.Key == nameLabel && r.Values != nil {
			return r.Values
		}
	}
	return nil
}

// reselect compares what selects the entity with what did.
func (c *Compiler) reselect(e *entity) {
	c.round++
	var now []*selection
	c.index.each(e, func(s *selection) {
		if s.matches(e) {
			s.round = c.round
			now = append(now, s)
		}
	})
	for _, s := range e.selections {
		if s.round != c.round {
			c.leave(e, s)
		}
	}
	e.selections = now
	for _, s := range now {
		if _, ok := s.members[e]; !ok {
			c.join(e, s)
		}
	}
}

func (c *Compiler) join(e *entity, s *selection) {
	s.members[e] = struct{}{}
	c.moved(e, s, 1)
}

func (c *Compiler) leave(e *entity, s *selection) {
	delete(s.members, e)
	c.moved(e, s, -1)
}

// moved tells sets and policies that an entity joined or left.
func (c *Compiler) moved(e *entity, s *selection, by int) {
	for _, t := range s.sets {
		c.change(t, e, by)
	}
	if len(s.sources) == 0 {
		return
	}
	c.touchEndpoint(e.key.EndpointID)
	// Only the first pod and the last make a difference to a policy.
	if len(s.members) > 1 || len(s.members) == 1 && by < 0 {
		return
	}
	for src := range s.sources {
		c.dirtyPolicies[src.policy.ID] = struct{}{}
	}
}
