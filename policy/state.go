// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// SetID is the selector that a set comes from, in its canonical form: all who select the same share
// one set. It is as long as users' selectors are; renderers hash it where names must be short.
type SetID string

// SetKind says what the members of a set are.
type SetKind uint8

// Kinds of sets.
const (
	AddressSet     SetKind = iota // prefixes
	AddressPortSet                // address, protocol and port: named ports, services
)

// String is the kind's name.
func (k SetKind) String() string { return name(k, "addresses", "address-ports") }

// Member of a set. Sets hold both families.
type Member struct {
	Prefix   netip.Prefix
	Protocol Protocol // of AddressPortSet
	Port     uint16   // of AddressPortSet
}

// Compare orders by prefix, protocol and port.
func (m Member) Compare(o Member) int {
	if c := m.Prefix.Compare(o.Prefix); c != 0 {
		return c
	}
	if c := int(m.Protocol) - int(o.Protocol); c != 0 {
		return c
	}
	return int(m.Port) - int(o.Port)
}

// String is "10.244.1.5/32" or "10.244.1.5/32 TCP 80".
func (m Member) String() string {
	if m.Protocol == AnyProtocol {
		return m.Prefix.String()
	}
	return fmt.Sprintf("%s %s %d", m.Prefix, m.Protocol, m.Port)
}

// Set is a set with its members.
type Set struct {
	Kind    SetKind
	Members map[Member]struct{}
}

// State is all that is in force on a node.
type State struct {
	Sets      map[SetID]*Set
	Policies  map[PolicyID]*Policy
	Endpoints map[EndpointID]*Endpoint
}

// NewState returns the state in which there is nothing.
func NewState() *State {
	return &State{Sets: map[SetID]*Set{}, Policies: map[PolicyID]*Policy{}, Endpoints: map[EndpointID]*Endpoint{}}
}

// Delta leads from one State to the next, by the shortest way. Everything in it is sorted. What is
// added or changed may refer to what the same delta adds, so whoever cannot apply it at once applies
// sets (without removals), policies, endpoints, then the removals in the opposite order.
type Delta struct {
	Sets      []SetChange
	Policies  []PolicyChange
	Endpoints []EndpointChange
}

// Empty says whether nothing changes.
func (d Delta) Empty() bool { return len(d.Sets) == 0 && len(d.Policies) == 0 && len(d.Endpoints) == 0 }

// Op is what happens to a thing.
type Op uint8

// Operations.
const (
	Added Op = iota
	Changed
	Removed
)

// String is the operation's name.
func (o Op) String() string { return name(o, "added", "changed", "removed") }

// SetChange is members that join and leave. A set that is Added has all its members in Add; one that is
// Removed mentions none.
type SetChange struct {
	ID     SetID
	Op     Op
	Kind   SetKind
	Add    []Member
	Remove []Member
}

// PolicyChange has no Policy if that is Removed.
type PolicyChange struct {
	ID     PolicyID
	Op     Op
	Policy *Policy
}

// EndpointChange has no Endpoint if that is Removed.
type EndpointChange struct {
	ID       EndpointID
	Op       Op
	Endpoint *Endpoint
}

// Apply makes the changes. It reports what does not fit the state: adding what is there, changing or
// removing what is not, a change that changes nothing.
func (s *State) Apply(d Delta) error {
	var errs []error
	for _, c := range d.Sets {
		errs = append(errs, s.applySet(c))
	}
	for _, c := range d.Policies {
		old, ok := s.Policies[c.ID]
		if err := applicable(c.Op, ok, old.Equal(c.Policy)); err != nil {
			errs = append(errs, fmt.Errorf("policy %s: %w", c.ID, err))
		}
		put(s.Policies, c.ID, c.Op, c.Policy)
	}
	for _, c := range d.Endpoints {
		old, ok := s.Endpoints[c.ID]
		if err := applicable(c.Op, ok, old.Equal(c.Endpoint)); err != nil {
			errs = append(errs, fmt.Errorf("endpoint %s: %w", c.ID, err))
		}
		put(s.Endpoints, c.ID, c.Op, c.Endpoint)
	}
	return errors.Join(errs...)
}

// Hosts returns those of the endpoints that are of the node itself, by device. Of several for one device
// the first in order counts.
func Hosts(endpoints map[EndpointID]*Endpoint) map[string]*Endpoint {
	hosts := map[string]*Endpoint{}
	for id, e := range endpoints {
		if old := hosts[e.Device]; id.Host && (old == nil || id.Compare(old.ID) < 0) {
			hosts[e.Device] = e
		}
	}
	return hosts
}

func put[K comparable, V any](m map[K]V, key K, op Op, v V) {
	if op == Removed {
		delete(m, key)
		return
	}
	m[key] = v
}

func applicable(op Op, present, same bool) error {
	switch {
	case op == Added && present:
		return errors.New("added, but is there")
	case op != Added && !present:
		return fmt.Errorf("%s, but is not there", op)
	case op == Changed && same:
		return errors.New("changed to what it was")
	}
	return nil
}

func (s *State) applySet(c SetChange) error {
	set, ok := s.Sets[c.ID]
	if err := applicable(c.Op, ok, len(c.Add) == 0 && len(c.Remove) == 0); err != nil {
		return fmt.Errorf("set %s: %w", c.ID, err)
	}
	if c.Op == Removed {
		delete(s.Sets, c.ID)
		return nil
	}
	if c.Op == Added {
		set = &Set{Kind: c.Kind, Members: make(map[Member]struct{}, len(c.Add))}
		s.Sets[c.ID] = set
	}
	return set.apply(c)
}

func (s *Set) apply(c SetChange) error {
	var errs []error
	for _, m := range c.Remove {
		if _, ok := s.Members[m]; !ok {
			errs = append(errs, fmt.Errorf("set %s: %s leaves, but is not in it", c.ID, m))
		}
		delete(s.Members, m)
	}
	for _, m := range c.Add {
		if _, ok := s.Members[m]; ok {
			errs = append(errs, fmt.Errorf("set %s: %s joins, but is in it", c.ID, m))
		}
		s.Members[m] = struct{}{}
	}
	return errors.Join(errs...)
}

// Check reports references to what is not there, and sets that nobody refers to.
func (s *State) Check() error {
	var errs []error
	used := map[SetID]bool{}
	for id, p := range s.Policies {
		for set := range p.Sets {
			used[set] = true
			if s.Sets[set] == nil {
				errs = append(errs, fmt.Errorf("policy %s refers to set %s, which does not exist", id, set))
			}
		}
	}
	for id := range s.Sets {
		if !used[id] {
			errs = append(errs, fmt.Errorf("set %s is used by no policy", id))
		}
	}
	for id, e := range s.Endpoints {
		for _, d := range []Direction{Ingress, Egress} {
			for _, t := range e.Chain(d).Tiers {
				for _, p := range t.Policies {
					if s.Policies[p] == nil {
						errs = append(errs, fmt.Errorf("endpoint %s refers to policy %s, which does not exist", id, p))
					}
				}
			}
		}
	}
	return errors.Join(errs...)
}

// Delta returns what leads from nothing to this state.
func (s *State) Delta() Delta {
	var d Delta
	for id, set := range s.Sets {
		members := slices.SortedFunc(maps.Keys(set.Members), Member.Compare)
		d.Sets = append(d.Sets, SetChange{ID: id, Op: Added, Kind: set.Kind, Add: members})
	}
	for id, p := range s.Policies {
		d.Policies = append(d.Policies, PolicyChange{ID: id, Op: Added, Policy: p})
	}
	for id, e := range s.Endpoints {
		d.Endpoints = append(d.Endpoints, EndpointChange{ID: id, Op: Added, Endpoint: e})
	}
	slices.SortFunc(d.Sets, func(a, b SetChange) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(d.Policies, func(a, b PolicyChange) int { return a.ID.Compare(b.ID) })
	slices.SortFunc(d.Endpoints, func(a, b EndpointChange) int { return a.ID.Compare(b.ID) })
	return d
}
