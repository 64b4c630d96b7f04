// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"syscall"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/policy"
)

// Handle is what Table needs from the kernel. *Kernel satisfies it.
type Handle interface {
	// Commit makes a change as a whole or not at all. What the kernel does not take is a *RefusedError.
	Commit(tx Transaction) error
	// Read reads the table.
	Read(want Ruleset) (Actual, error)
	// Counters returns what rules have counted, by their comments.
	Counters() (map[string]policy.Count, error)
}

// RefusedError says that the kernel does not take a transaction, and never will.
type RefusedError struct {
	Ops []int // of the transaction, that it objects to; may be empty
	Err error
}

// Error is the kernel's.
func (e *RefusedError) Error() string { return e.Err.Error() }

// Unwrap returns it.
func (e *RefusedError) Unwrap() error { return e.Err }

// Table is the driver of the table. Its methods must be called from one goroutine.
type Table struct {
	handle  Handle
	log     *slog.Logger
	ready   bool   // Update was called: nothing is written before
	stale   bool   // the kernel must be read
	adopted bool   // it was read once, so a difference is somebody else's hand
	replace string // why the table must be made anew; empty if not

	state   *policy.State
	sets    map[policy.SetID]*selected
	pools   map[Set]*setObject
	traits  map[policy.PolicyID]traits
	refused map[policy.PolicyID]error
	units   *units
	objects *objects
	endpoints
	hosts hosts
}

// New makes a driver that owns nothing until Update.
func New(h Handle, log *slog.Logger) *Table {
	t := &Table{handle: h, log: log, state: policy.NewState(), refused: map[policy.PolicyID]error{}}
	t.begin()
	return t
}

// begin forgets all that follows from the state, but not the state.
func (t *Table) begin() {
	t.stale = true
	t.sets, t.traits = map[policy.SetID]*selected{}, map[policy.PolicyID]traits{}
	t.units, t.objects, t.endpoints = newUnits(), newObjects(), newEndpoints()
	t.hosts = hosts{all: map[policy.EndpointID]*policy.Endpoint{}}
	for _, c := range baseChains() {
		t.objects.acquireChain(&c)
	}
	for _, s := range t.endpoints.sets() {
		t.objects.put(s)
	}
	t.pools = map[Set]*setObject{}
	for _, k := range []policy.SetKind{policy.AddressSet, policy.AddressPortSet} {
		for i, f := range families() {
			s := &setObject{Set: poolOf(k, f), all: t.pooled(k, i), tags: map[string]bool{}}
			t.pools[s.Set] = s
			t.objects.put(s)
		}
	}
}

// Update stores a change. Memory only.
func (t *Table) Update(d policy.Delta) {
	t.ready = true
	if err := t.state.Apply(d); err != nil {
		// It fits another state than ours. What we have now follows from the state alone, so start from that.
		t.log.Error("policy delta does not fit, everything is rendered anew", "error", err)
		t.begin()
		d = t.state.Delta()
	}
	for _, c := range d.Sets {
		t.updateSet(c)
	}
	for _, c := range d.Policies {
		t.updatePolicy(c.ID)
	}
	for _, c := range d.Endpoints {
		if c.ID.Host {
			t.updateHost(c.ID, c.Endpoint)
		} else {
			t.updateEndpoint(c.ID, c.Endpoint)
		}
	}
}

// QueueResync makes the next Apply read the kernel, and repair what is not as it should be.
func (t *Table) QueueResync() { t.stale = true }

// Refused returns the policies that the kernel does not take, and why. What they select is closed in the
// directions that they apply to; but hosts are open if it is their failsafes.
func (t *Table) Refused() map[policy.PolicyID]error { return maps.Clone(t.refused) }

// Apply makes the table what follows from the state. If it fails nothing has changed, and the next
// tries again.
func (t *Table) Apply(ctx context.Context) error {
	if !t.ready {
		return nil
	}
	if err := t.apply(ctx); err != nil {
		return fmt.Errorf("change nft table inet %s: %w", desired.NFTPolicyTable, err)
	}
	return errors.Join(t.unusable()...)
}

// apply commits what has changed. Each turn that is not the last makes the table read, made anew, or a
// policy refused, so it ends.
func (t *Table) apply(ctx context.Context) error {
	for fresh := false; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		t.render()
		if t.stale {
			if err := t.read(); err != nil {
				return err
			}
			fresh = true
		}
		tx := t.plan()
		if !tx.Replace && len(tx.Ops) == 0 {
			t.objects.committed(false)
			return nil
		}
		err := t.commit(tx)
		var refused *RefusedError
		switch {
		case err == nil:
			t.committed(tx)
			return nil
		case !errors.As(err, &refused):
			return err
		case !fresh: // perhaps the table is not what we think
			t.log.Warn("the kernel refuses a change, reading the nft policy table", "error", err)
			t.stale = true
		case t.blame(tx, refused): // it is rendered without
		case !tx.Replace: // perhaps something foreign is in the way
			t.replace = "the kernel refuses its repair: " + err.Error()
		default:
			return err
		}
	}
}

// read learns what the kernel holds. What is ours stays, be it of an earlier process: to delete and make
// chains and maps anew, in one transaction, would cost packets. The kernel changes generation while a
// packet is on its way through the old chain, and then finds the old map empty.
func (t *Table) read() error {
	a, err := t.handle.Read(t.objects.ruleset())
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	t.stale = false
	switch {
	case !a.Exists:
		t.replace = "there is no table"
	case a.Odd != "":
		t.replace = "not of ours: " + a.Odd
	default:
		if drift := t.objects.adopt(a); drift != "" {
			t.log.Info("nft policy table repaired", "first", drift, "drift", t.adopted)
		}
	}
	t.adopted = true
	return nil
}

// render brings all that is dirty up to date.
func (t *Table) render() {
	t.renderHosts()
	for len(t.units.dirty) > 0 {
		for u := range t.units.dirty {
			delete(t.units.dirty, u)
			t.renderUnit(u)
		}
	}
	t.renderDevices()
	if t.objects.confused {
		t.stale = true
	}
}

func (t *Table) plan() Transaction {
	replace := t.replace != ""
	return Transaction{Replace: replace, Ops: t.objects.plan(replace)}
}

func (t *Table) committed(tx Transaction) {
	if tx.Replace {
		t.log.Info("nft policy table made anew", "why", t.replace)
		t.replace = ""
	}
	t.objects.committed(tx.Replace)
}

// Counters returns what each rule has seen since its chain last changed.
func (t *Table) Counters(context.Context) (map[policy.RuleID]policy.Count, error) {
	counts, err := t.handle.Counters()
	if err != nil {
		return nil, fmt.Errorf("read counters of nft table inet %s: %w", desired.NFTPolicyTable, err)
	}
	out := map[policy.RuleID]policy.Count{}
	for _, p := range t.state.Policies {
		for _, rules := range [][]policy.Rule{p.Ingress, p.Egress} {
			for i := range rules {
				if c, ok := counts[comment(rules[i].ID.String())]; ok {
					out[rules[i].ID] = c
				}
			}
		}
	}
	return out, nil
}

// Delete deletes the table, for an uninstall or another renderer; one that is gone already is a success.
func (t *Table) Delete(context.Context) error {
	var flush []Op
	for _, c := range baseChains() {
		flush = append(flush, Op{Kind: FlushChain, Chain: Chain{Name: c.Name}})
	}
	// A packet that is on its way meets the rules of when it came, and the maps of now: if both went at once, it
	// would find its device in no map, and be dropped. So no packet meets rules any more when the maps go.
	for _, tx := range []Transaction{{Ops: flush}, {Delete: true}} {
		if err := t.handle.Commit(tx); err != nil && !errors.Is(err, syscall.ENOENT) {
			return fmt.Errorf("delete nft table inet %s: %w", desired.NFTPolicyTable, err)
		}
	}
	t.stale = true
	t.log.Info("nft policy table deleted")
	return nil
}

// lookup returns a policy of the state, and why it is refused.
func (t *Table) lookup(id policy.PolicyID) (*policy.Policy, error) {
	return t.state.Policies[id], t.refused[id]
}

// traits are what others than a policy's own chains depend on.
type traits struct {
	exists, audit bool
	passes        [2]bool
}

func traitsOf(p *policy.Policy) traits {
	if p == nil {
		return traits{}
	}
	return traits{true, p.Audit, [2]bool{passes(p, policy.Ingress), passes(p, policy.Egress)}}
}

func (t *Table) updatePolicy(id policy.PolicyID) {
	_, refused := t.refused[id] // of failsafes, hosts' chains depend on that
	delete(t.refused, id)       // a new version has a new chance
	was, is := t.traits[id], traitsOf(t.state.Policies[id])
	if is.exists {
		t.traits[id] = is
	} else {
		delete(t.traits, id)
	}
	t.units.policyChanged(id, was == is && !refused)
}

func (t *Table) refuse(id policy.PolicyID, err error) {
	if id == policy.FailsafeID() {
		t.log.Error("failsafes refused, so hosts' endpoints are open", "error", err)
	} else {
		t.log.Error("policy refused, what it selects is closed", "policy", id, "error", err)
	}
	t.refused[id] = err
	t.units.policyChanged(id, false)
}
