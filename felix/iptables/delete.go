// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/heliograph-dev/heliograph/felix/kernel"
)

// Delete removes all that is ours. What was in force ends.
func (t *Table) Delete(ctx context.Context) error {
	if err := t.DeleteRules(ctx); err != nil {
		return err // sets are in use
	}
	if err := t.deleteSets(ctx); err != nil {
		return err
	}
	t.log.Info("iptables rules and ipsets deleted")
	return nil
}

// DeleteRules is Delete for the rules alone, as for what an earlier process has left with the other variant:
// the sets are those of this one, too.
func (t *Table) DeleteRules(ctx context.Context) error {
	t.stale = true
	var errs []error
	for _, f := range t.families {
		saved, err := t.handle.Save(ctx, f.family)
		if err == nil && strings.Contains(string(saved), prefix) {
			err = t.handle.Restore(ctx, f.family, removal(saved))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove %s rules: %w", f.family, err))
		}
	}
	return errors.Join(errs...)
}

// deleteSets destroys the sets that no rule refers to. The kernel lets go of the rules' sets some time
// after the rules are gone.
func (t *Table) deleteSets(ctx context.Context) error {
	const attempts, pause = 50, 20 * time.Millisecond
	for attempt := 1; ; attempt++ {
		actual, err := t.handle.ListSets(prefix)
		if err != nil {
			return fmt.Errorf("list ipsets: %w", err)
		}
		var steps []SetStep
		for _, name := range slices.Sorted(maps.Keys(actual)) {
			steps = append(steps, SetStep{Do: DestroySet, Name: name})
		}
		var errs kernel.Errors
		for _, err := range take(ctx, t.handle, steps) {
			errs.Add(err)
		}
		err = errs.Err()
		if !errors.Is(err, syscall.EBUSY) || attempt == attempts {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}
