// SPDX-License-Identifier: Apache-2.0

package path

import (
	"fmt"
	"hash/fnv"
	"math/bits"
	"time"
)

// The declared hysteresis. A method is given up at once. It is taken back after Proof, more if it has
// failed lately.
const (
	// MinProof is the least time that a method has to answer without a loss, at least Window times, before
	// it is used again.
	MinProof = 10 * time.Second
	// MaxProof bounds the hold-down of a method that keeps failing: the proof doubles with each failure.
	MaxProof = 5 * time.Minute
	// Jitter is added to a proof, differently for each path, so that a thousand nodes do not return at once.
	Jitter = 3 * time.Second
	// Forgiven is how long a method must have worked for its failures to be forgotten.
	Forgiven = 10 * time.Minute
	// blindFactor is how many times longer a proof takes that rests on availability alone, since nothing at
	// all answers probes.
	blindFactor = 3
)

// Set is a set of methods.
type Set uint8

// SetOf makes a set.
func SetOf(methods ...Method) Set {
	var s Set
	for _, m := range methods {
		s |= 1 << m
	}
	return s
}

// Has says whether m is in the set.
func (s Set) Has(m Method) bool { return s&(1<<m) != 0 }

// sets is how many different sets there are.
const sets = 1 << Methods

// Input is all that a decision follows from, beside what Machine remembers.
type Input struct {
	Key Key
	// Available are the methods that could be programmed now: a BGP next hop is on-link, both ends can do
	// IPIP. Why says for each of the others why not, in words for users.
	Available Set
	Why       [Methods]string
	// Wanted are the sets of methods to choose from, one for each encapsulation that the node's pools ask
	// for.
	Wanted []Set
	// Adopted is what the kernel used when this process started; Methods if nothing. It counts when a path
	// is first seen.
	Adopted Method
	Report  Report
}

// Phase is how far a method is trusted.
type Phase uint8

// The phases.
const (
	Down    Phase = iota // cannot be used, or its probes are lost
	Proving              // could be used, and has to show that it works
	Up
)

// String names the phase.
func (p Phase) String() string { return [...]string{"down", "proving", "up"}[p] }

// State is what is known and remembered of one method.
type State struct {
	Phase     Phase
	Since     time.Time // of the phase
	Available bool
	Lost      bool      // Down since probes were lost
	Until     time.Time // of Proving: when the proof is complete if nothing is lost; zero: not known yet
	Failures  int       // how often it went from Up to Down, as far as not forgiven
	blind     time.Time // since when a Lost method has had no evidence
}

// Decision is the outcome for one path.
type Decision struct {
	Key     Key
	Methods [Methods]State
	Report  Report
	// Next is when time alone may change the decision; zero: never.
	Next    time.Time
	why     [Methods]string
	choices [sets]Method
}

// Choose returns the method to use of a set that the Input wanted, or Methods if none of it is available.
func (d Decision) Choose(s Set) Method { return d.choices[s] }

// memory is what is kept of one path from one decision to the next.
type memory struct {
	methods [Methods]State
	choices [sets]Method
}

// Machine decides on all paths of one node. Given the same inputs at the same times it decides the same.
type Machine struct {
	self  string
	paths map[Key]*memory
}

// NewMachine returns a machine for a node that remembers nothing.
func NewMachine(self string) *Machine {
	return &Machine{self: self, paths: map[Key]*memory{}}
}

// Decide decides on all paths that there are. Those that are not in the inputs any more are forgotten.
func (m *Machine) Decide(now time.Time, inputs []Input) []Decision {
	next := make(map[Key]*memory, len(inputs))
	out := make([]Decision, len(inputs))
	for i := range inputs {
		mem := m.paths[inputs[i].Key]
		if mem == nil {
			mem = newMemory(now, &inputs[i])
		}
		next[inputs[i].Key] = mem
		out[i] = m.decide(now, &inputs[i], mem)
	}
	m.paths = next
	return out
}

// newMemory trusts what the kernel used before this process, and nothing else.
func newMemory(now time.Time, in *Input) *memory {
	mem := &memory{}
	for i := range mem.choices {
		mem.choices[i] = Methods
	}
	for i := range mem.methods {
		mem.methods[i] = State{Phase: Down, Since: now}
	}
	if a := in.Adopted; a < Methods && in.Available.Has(a) {
		mem.methods[a] = State{Phase: Up, Since: now, Available: true}
		for s := range mem.choices {
			if Set(s).Has(a) {
				mem.choices[s] = a
			}
		}
	}
	return mem
}

func (m *Machine) decide(now time.Time, in *Input, mem *memory) Decision {
	d := Decision{Key: in.Key, Report: in.Report, why: in.Why}
	for method := range Methods {
		s := &mem.methods[method]
		s.step(now, in.Available.Has(method), &in.Report.Methods[method], func() time.Duration { return m.jitter(in.Key, method) })
		if at := s.next(now); !at.IsZero() && (d.Next.IsZero() || at.Before(d.Next)) {
			d.Next = at
		}
	}
	d.Methods = mem.methods
	for i := range d.choices {
		d.choices[i] = Methods
	}
	for _, s := range in.Wanted {
		d.choices[s] = choose(s, mem.choices[s], &d)
	}
	mem.choices = d.choices
	return d
}

// step brings one method up to date with the facts. Few are proving themselves and need their jitter.
func (s *State) step(now time.Time, available bool, e *Evidence, jitter func() time.Duration) {
	s.Available = available
	switch {
	case !available:
		s.fail(now, false)
	case e.Verdict == Lost:
		s.fail(now, true)
	case s.Phase == Down:
		if s.recovered(now, e) {
			s.enter(Proving, now)
		}
	}
	if s.Phase == Proving {
		s.prove(now, e, jitter())
	}
	if s.Phase == Up && now.Sub(s.Since) >= Forgiven {
		s.Failures = 0
	}
}

// fail gives the method up, at once.
func (s *State) fail(now time.Time, lost bool) {
	if s.Phase == Up {
		s.Failures++
	}
	if s.Phase != Down {
		s.enter(Down, now)
	}
	s.Lost, s.blind = lost, time.Time{}
}

// recovered says whether a method that is down may begin to prove itself. Lost probes are evidence that
// only an answer refutes, or time: old evidence is none.
func (s *State) recovered(now time.Time, e *Evidence) bool {
	switch {
	case !s.Lost || e.Verdict == Answers:
		return true
	case s.blind.IsZero():
		s.blind = now
	}
	return now.Sub(s.blind) >= MaxProof
}

func (s *State) enter(p Phase, now time.Time) {
	s.Phase, s.Since = p, now
	s.Lost, s.Until, s.blind = false, time.Time{}, time.Time{}
}

// prove ends the proof if it is complete. A loss begins it anew; where nothing answers at all, that the
// method has been available for long enough has to do.
func (s *State) prove(now time.Time, e *Evidence, jitter time.Duration) {
	switch e.Verdict {
	case Answers:
		from := s.Since
		if e.RunSince.After(from) {
			from = e.RunSince
		}
		s.Until = from.Add(s.proof() + jitter)
		if e.Run < Window {
			return // however long that takes
		}
	case Unknown:
		s.Until = s.Since.Add(blindFactor*s.proof() + jitter)
	default:
		s.Until = time.Time{}
		return
	}
	if !now.Before(s.Until) {
		s.enter(Up, now)
	}
}

// proof is how long the method has to answer: longer, the more often it failed.
func (s *State) proof() time.Duration {
	p := MinProof
	for range min(s.Failures-1, bits.Len(uint(MaxProof/MinProof))) {
		p *= 2
	}
	return min(p, MaxProof)
}

// next is when time alone moves the method on; zero: never. A proof that waits for answers is moved on by
// these.
func (s *State) next(now time.Time) time.Time {
	switch {
	case s.Phase == Proving && s.Until.After(now):
		return s.Until
	case s.Phase == Down && !s.blind.IsZero():
		return s.blind.Add(MaxProof)
	}
	return time.Time{}
}

// choose picks a method of a set: the best that is Up; if none is, what gives most hope, and rather the one
// in use than another that is no better known.
func choose(s Set, current Method, d *Decision) Method {
	up := func(m Method) bool { return d.Methods[m].Phase == Up }
	proving := func(m Method) bool { return d.Methods[m].Phase == Proving }
	available := func(m Method) bool { return d.Methods[m].Available }
	verdict := func(m Method) Verdict { return d.Report.Methods[m].Verdict }
	answering := func(m Method) bool { return proving(m) && verdict(m) == Answers }
	known := func(m Method) bool { return proving(m) && verdict(m) != Unknown }
	first := func(ok func(Method) bool) Method {
		for m := range Methods {
			if s.Has(m) && ok(m) {
				return m
			}
		}
		return Methods
	}
	inUse := func(ok func(Method) bool) Method {
		if current < Methods && ok(current) {
			return current
		}
		return Methods
	}
	best := first(up)
	// What is in use does not make room for a worse one that has proved itself first.
	stays := current < best && proving(current) && verdict(current) != Doubtful
	if best != Methods && !stays {
		return best
	}
	for _, m := range []Method{inUse(known), first(answering), inUse(proving), first(proving), inUse(available)} {
		if m != Methods {
			return m
		}
	}
	return first(available)
}

// Block is what keeps a method from being used, in one word.
type Block uint8

// The blocks.
const (
	NotBlocked   Block = iota
	Unavailable        // there is no route, or one end cannot
	ProbesLost         // its probes are lost
	StillProving       // it has to show that it works
)

// String names the block.
func (b Block) String() string {
	return [...]string{"none", "unavailable", "probes-lost", "proving"}[b]
}

// Block says what keeps a method from being used.
func (d Decision) Block(m Method) Block {
	switch s := d.Methods[m]; {
	case !s.Available:
		return Unavailable
	case s.Lost:
		return ProbesLost
	case s.Phase == Proving:
		return StillProving
	}
	return NotBlocked
}

// Why says in words why a method is not used, or what its state is.
func (d Decision) Why(m Method) string {
	s, e := d.Methods[m], d.Report.Methods[m]
	switch {
	case !s.Available:
		return d.why[m]
	case s.Lost && e.Verdict == Unknown:
		return "its probes were lost before everything fell silent"
	case s.Lost:
		return fmt.Sprintf("probes lost %d/%d while others are answered", e.Lost, e.Sent)
	case s.Phase == Proving && s.Until.IsZero():
		return fmt.Sprintf("has to prove itself: %d of %d probes lost lately", e.Lost, e.Sent)
	case s.Phase == Proving:
		return "has to prove itself until " + s.Until.UTC().Format(time.TimeOnly)
	case d.Report.Silent:
		return "nothing answers by any method"
	}
	return d.why[m]
}

// jitter is a fixed part of Jitter for each path and method.
func (m *Machine) jitter(k Key, method Method) time.Duration {
	h := fnv.New32a()
	_, _ = h.Write([]byte(m.self))
	_, _ = h.Write([]byte{0, byte(k.Family), byte(method)})
	_, _ = h.Write([]byte(k.Node))
	return time.Duration(h.Sum32()%1000) * Jitter / 1000
}
