// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"errors"
	"slices"
	"syscall"
)

// commit makes a change: in one transaction, but for two cases in which what no packet meets goes first.
//
// If the change is too large for the socket's send buffer, which is small where we lack the right to a
// larger one. (Only an odd table, which goes with the first stage, leaves an open moment then.)
//
// And if a device gets another chain that is new. A packet goes by the rules of the generation in which it
// entered its base chain, but finds the elements of the present one: in between it would be sent to a
// chain that, for it, has no rules yet. It would then return, and drop.
func (t *Table) commit(tx Transaction) error {
	if !redirects(tx) {
		err := t.handle.Commit(tx)
		if !errors.Is(err, syscall.EMSGSIZE) {
			return err
		}
	}
	var inert, rest []Op
	for _, op := range tx.Ops {
		if op.Inert {
			inert = append(inert, op)
		} else {
			rest = append(rest, op)
		}
	}
	t.stale = true // if a stage fails, the kernel is not what we think
	if err := t.inParts(Transaction{Replace: tx.Replace, Ops: inert}); err != nil {
		return untold(err)
	}
	if err := t.handle.Commit(Transaction{Ops: rest}); err != nil {
		return untold(err)
	}
	t.stale = false
	return nil
}

// redirects says whether a device that has a verdict gets another, while there are new chains.
func redirects(tx Transaction) bool {
	fresh := slices.ContainsFunc(tx.Ops, func(op Op) bool { return op.Kind == AddChain && op.Inert })
	return fresh && !tx.Replace && slices.ContainsFunc(tx.Ops, func(op Op) bool { return op.Kind == RemoveElements && op.Set.Map })
}

// inParts commits operations in order, in as few parts as the kernel takes.
func (t *Table) inParts(tx Transaction) error {
	err := t.handle.Commit(tx)
	if !errors.Is(err, syscall.EMSGSIZE) {
		return err
	}
	first, second, ok := halves(tx.Ops)
	if !ok {
		return err
	}
	if err := t.inParts(Transaction{Replace: tx.Replace, Ops: first}); err != nil {
		return err
	}
	return t.inParts(Transaction{Ops: second})
}

func halves(ops []Op) (first, second []Op, ok bool) {
	switch n := len(ops) / 2; {
	case n > 0:
		return ops[:n], ops[n:], true
	case len(ops) == 1 && len(ops[0].Elements) > 1:
		a, b, n := ops[0], ops[0], len(ops[0].Elements)/2
		a.Elements, b.Elements = a.Elements[:n], b.Elements[n:]
		return []Op{a}, []Op{b}, true
	}
	return nil, nil, false
}

// untold drops which operations were refused: they are numbered in a part.
func untold(err error) error {
	var refused *RefusedError
	if errors.As(err, &refused) {
		return &RefusedError{Err: refused.Err}
	}
	return err
}
