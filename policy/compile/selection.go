// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"slices"

	"github.com/heliograph-dev/heliograph/labels"
)

// selector is a pair of selectors, of namespaces and of pods in them.
type selector struct {
	namespaces labels.Selector
	pods       labels.Selector
	// own restricts it to pods of this node.
	own bool
}

type selectorKey struct {
	namespaces, pods string
	own              bool
}

func (s selector) key() selectorKey {
	return selectorKey{namespaces: s.namespaces.String(), pods: s.pods.String(), own: s.own}
}

// String is the canonical form.
func (s selector) String() string {
	prefix := ""
	if s.own {
		prefix = "own "
	}
	return prefix + "pods(" + s.pods.String() + ") namespaces(" + s.namespaces.String() + ")"
}

// selection is the pods that a selector selects now, shared by all who ask for that selector.
type selection struct {
	selector
	// byName says that of namespaces only the name is asked for.
	byName  bool
	buckets []bucket
	members map[*pod]struct{}
	sets    []*set
	sources map[*source]struct{} // policies whose subject it is
	round   uint64
}

func (s *selection) matches(p *pod) bool {
	if s.own && p.workload == nil {
		return false
	}
	// Of a namespace that the API does not know nobody can say which labels it lacks.
	if !p.namespace.known && !s.byName {
		return false
	}
	return s.namespaces.Matches(p.namespace.labels) && s.pods.Matches(p.labels)
}

// selection returns the one for the selector, and makes it if need be.
func (c *Compiler) selection(sel selector) *selection {
	key := sel.key()
	if s := c.selections[key]; s != nil {
		return s
	}
	keys := sel.namespaces.Keys()
	s := &selection{
		selector: sel, byName: len(keys) == 0 || len(keys) == 1 && keys[0] == nameLabel,
		members: map[*pod]struct{}{}, sources: map[*source]struct{}{},
	}
	c.selections[key] = s
	c.index.add(s)
	c.eachCandidate(s, func(p *pod) {
		if s.matches(p) {
			p.selections = append(p.selections, s)
			c.join(p, s)
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
		for p := range s.members {
			if i := slices.Index(p.selections, s); i >= 0 {
				p.selections = slices.Delete(p.selections, i, i+1)
			}
		}
		c.index.remove(s)
		delete(c.selections, s.key())
	}
	reset(&c.idle)
}

// eachCandidate visits pods among which are all that the selection selects: those of the namespaces that
// it names or those with a label that it requires, whichever are fewer.
func (c *Compiler) eachCandidate(s *selection, visit func(*pod)) {
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
		inNamespaces = len(c.pods)
	} else {
		eachNamespace(func(n *namespace) { inNamespaces += len(n.pods) })
	}
	if l, ok := c.rarest(s.pods, inNamespaces); ok {
		for _, l := range l {
			visitAll(c.byLabel[l], visit)
		}
		return
	}
	eachNamespace(func(n *namespace) { visitAll(n.pods, visit) })
}

func visitAll(pods map[*pod]struct{}, visit func(*pod)) {
	for p := range pods {
		visit(p)
	}
}

// rarest returns the labels of the requirement that the fewest pods fulfil, if those are less than limit.
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

// reselect compares what selects the pod with what did.
func (c *Compiler) reselect(p *pod) {
	c.round++
	var now []*selection
	c.index.each(p, func(s *selection) {
		if s.matches(p) {
			s.round = c.round
			now = append(now, s)
		}
	})
	for _, s := range p.selections {
		if s.round != c.round {
			c.leave(p, s)
		}
	}
	p.selections = now
	for _, s := range now {
		if _, ok := s.members[p]; !ok {
			c.join(p, s)
		}
	}
}

func (c *Compiler) join(p *pod, s *selection) {
	s.members[p] = struct{}{}
	c.moved(p, s, 1)
}

func (c *Compiler) leave(p *pod, s *selection) {
	delete(s.members, p)
	c.moved(p, s, -1)
}

// moved tells sets and policies that a pod joined or left.
func (c *Compiler) moved(p *pod, s *selection, by int) {
	for _, t := range s.sets {
		c.change(t, p, by)
	}
	if len(s.sources) == 0 {
		return
	}
	c.touchEndpoint(p.id)
	// Only the first pod and the last make a difference to a policy.
	if len(s.members) > 1 || len(s.members) == 1 && by < 0 {
		return
	}
	for src := range s.sources {
		c.dirtyPolicies[src.policy.ID] = struct{}{}
	}
}
