// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/heliograph-dev/heliograph/policy"
)

// Names of the dataplanes.
const (
	Auto     = "Auto" // the first that this node has
	NFTables = "NFTables"
	IPTables = "IPTables"
)

// ErrMissing is wrapped by what Open returns where the node does not have the dataplane's tools at all: nothing
// can have been left by it.
var ErrMissing = errors.New("this node does not have it")

// Dataplane is a renderer that can be opened.
type Dataplane struct {
	Name string
	// Open opens it, and changes nothing yet. Its error says what the node lacks.
	Open func() (Renderer, error)
	// Polled says that not every change by others is told by Options.Disturbed: so it is looked for.
	Polled bool
}

// inUse is the dataplane that enforces.
type inUse struct {
	Renderer
	name   string
	polled bool
	auto   bool // it was chosen as the first that there is
	// swept says that what others may have left is gone.
	swept bool
}

// choose opens the dataplane that is asked for, unless it is in use. Of a change the new one takes all
// that is in force first; until it has, the old one stays, and after that both are for a moment, so
// that at no time a packet passes which neither would let.
func (e *Enforcer) choose(ctx context.Context) error {
	want := e.opts.Choice()
	if e.use != nil && (want == e.use.name || want == Auto && e.use.auto) {
		return nil
	}
	next, err := e.open(want)
	if err != nil {
		return err
	}
	if e.use != nil && e.use.name == next.name {
		e.use.auto = next.auto
		return nil
	}
	next.Update(e.state.Delta())
	if e.use == nil {
		e.use = next
		return nil
	}
	if err := next.Apply(ctx); err != nil {
		e.use.swept = false // a half of it may be in the kernel, and would grow old there
		return fmt.Errorf("change to dataplane %s: %w", next.name, err)
	}
	e.log.Info("policy is enforced by another dataplane", "from", e.use.name, "to", next.name)
	e.use = next
	return nil
}

// open opens a dataplane by its name, or the first that the node has.
func (e *Enforcer) open(name string) (*inUse, error) {
	var last error
	for _, d := range e.opts.Dataplanes {
		if name != Auto && name != d.Name {
			continue
		}
		r, err := d.Open()
		if err == nil {
			return &inUse{Renderer: r, name: d.Name, polled: d.Polled, auto: name == Auto}, nil
		}
		last = fmt.Errorf("dataplane %s: %w", d.Name, err)
	}
	if last == nil {
		last = fmt.Errorf("dataplane %s: there is no such dataplane", name)
	}
	return nil, last
}

// sweep takes away what other dataplanes have left on this node, once ours is in force: the last one first,
// as what it has left may be in the way of those before it. One that cannot be opened here has left nothing.
func (e *Enforcer) sweep(ctx context.Context) error {
	if e.use.swept {
		return nil
	}
	for _, d := range slices.Backward(e.opts.Dataplanes) {
		if d.Name == e.use.name {
			continue
		}
		r, err := d.Open()
		if err != nil {
			continue
		}
		if err := r.Delete(ctx); err != nil {
			return fmt.Errorf("remove what dataplane %s has left: %w", d.Name, err)
		}
	}
	e.use.swept = true
	return nil
}

// refused are the policies that the kernel did not take.
func (e *Enforcer) refused() map[policy.PolicyID]error {
	if e.use == nil {
		return nil
	}
	return e.use.Refused()
}
