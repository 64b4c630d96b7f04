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

	"github.com/heliograph-dev/heliograph/policy"
)

// host is a kernel in memory, as strict as the real one about what refers to what.
type host struct {
	tables map[policy.Family]map[string][]string // chains with their lines
	sets   map[string]Set
	log    []string
	// fail may refuse an operation, of which it is told the name and what it is about.
	fail func(op, about string) error
}

func newHost() *host {
	h := &host{tables: map[policy.Family]map[string][]string{}, sets: map[string]Set{}}
	for _, f := range []policy.Family{policy.IPv4, policy.IPv6} {
		h.tables[f] = map[string][]string{"INPUT": nil, "FORWARD": nil, "OUTPUT": nil}
	}
	return h
}

func (h *host) refuses(op, about string) error {
	h.log = append(h.log, op)
	if h.fail == nil {
		return nil
	}
	return h.fail(op, about)
}

func (h *host) Save(_ context.Context, f policy.Family) ([]byte, error) {
	if err := h.refuses("save", f.String()); err != nil {
		return nil, err
	}
	return []byte(h.print(f)), nil
}

// print is what iptables-save -c would say.
func (h *host) print(f policy.Family) string {
	var b strings.Builder
	b.WriteString("*filter\n")
	names := slices.Sorted(maps.Keys(h.tables[f]))
	for _, name := range names {
		fmt.Fprintf(&b, ":%s - [0:0]\n", name)
	}
	for _, name := range names {
		for _, l := range h.tables[f][name] {
			fmt.Fprintf(&b, "[0:0] -A %s %s\n", name, l)
		}
	}
	return b.String() + "COMMIT\n"
}

func (h *host) Restore(_ context.Context, f policy.Family, input []byte) error {
	if err := h.refuses("restore", string(input)); err != nil {
		return err
	}
	table := map[string][]string{}
	for name, lines := range h.tables[f] {
		table[name] = slices.Clone(lines)
	}
	for text := range strings.Lines(string(input)) {
		if err := h.restoreLine(table, strings.TrimSpace(text)); err != nil {
			return &RestoreError{Command: "fake", Code: 1, Output: err.Error() + " in " + text}
		}
	}
	for name, lines := range table {
		for _, l := range lines {
			if t := target(l); isOurs(t) && !has(table, t) {
				return &RestoreError{Command: "fake", Code: 1, Output: name + " refers to " + t + ", which is not there"}
			}
		}
	}
	h.tables[f] = table
	return nil
}

func has(table map[string][]string, name string) bool { _, ok := table[name]; return ok }

func target(line string) string { return line[strings.LastIndex(line, " ")+1:] }

func (h *host) restoreLine(table map[string][]string, text string) error {
	op, rest, _ := strings.Cut(text, " ")
	name, spec, _ := strings.Cut(rest, " ")
	switch {
	case strings.HasPrefix(op, ":"):
		table[op[1:]] = nil
	case op == "-A" || op == "-I":
		if !has(table, name) {
			return errors.New("no such chain")
		}
		for _, word := range strings.Fields(spec) {
			if isOurs(word) && strings.Contains(spec, "--match-set "+word+" ") && h.sets[word].Members == nil {
				return errors.New("no such set")
			}
		}
		if op == "-A" {
			table[name] = append(table[name], spec)
		} else {
			table[name] = slices.Insert(table[name], 0, spec)
		}
	case op == "-D":
		i := slices.Index(table[name], spec)
		if i < 0 {
			return errors.New("no such rule")
		}
		table[name] = slices.Delete(table[name], i, i+1)
	case op == "-X":
		if len(table[name]) > 0 {
			return errors.New("chain not empty")
		}
		delete(table, name)
	}
	return nil
}

func (h *host) ListSets(prefix string) (map[string]Set, error) {
	if err := h.refuses("list", prefix); err != nil {
		return nil, err
	}
	out := map[string]Set{}
	for name, s := range h.sets {
		if strings.HasPrefix(name, prefix) {
			out[name] = Set{s.Kind, s.Family, maps.Clone(s.Members)}
		}
	}
	return out, nil
}

func (h *host) ChangeSets(_ context.Context, steps []SetStep) []error {
	errs := make([]error, len(steps))
	for i, step := range steps {
		op := map[SetVerb]string{CreateSet: "create", AddMembers: "add", RemoveMembers: "remove", DestroySet: "destroy"}[step.Do]
		if errs[i] = h.refuses(op, step.Name); errs[i] == nil {
			errs[i] = h.changeSet(step)
		}
	}
	return errs
}

func (h *host) changeSet(step SetStep) error {
	s, exists := h.sets[step.Name]
	switch {
	case step.Do == CreateSet && exists:
		return syscall.EEXIST
	case step.Do == CreateSet:
		h.sets[step.Name] = Set{step.Kind, step.Family, map[policy.Member]struct{}{}}
		return nil
	case !exists:
		return syscall.ENOENT
	case step.Do == DestroySet:
		return h.destroy(step.Name)
	}
	for _, m := range step.Members {
		if m.Prefix.Bits() == 0 || policy.FamilyOf(m.Prefix.Addr()) != s.Family {
			return fmt.Errorf("no member of this set: %s", m)
		}
		if s.Members[m] = struct{}{}; step.Do == RemoveMembers {
			delete(s.Members, m)
		}
	}
	return nil
}

func (h *host) destroy(name string) error {
	for _, table := range h.tables {
		for _, lines := range table {
			if slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, name+" ") }) {
				return syscall.EBUSY
			}
		}
	}
	delete(h.sets, name)
	return nil
}

// setName is what a set is called at first.
func setName(id policy.SetID, kind policy.SetKind, f policy.Family) string {
	return setRef{kind: kind}.name(id, f)
}
