// SPDX-License-Identifier: Apache-2.0

// Package sysctl keeps the values below /proc/sys/net that heliograph relies on. It writes what
// differs and reads it back; it never removes or restores a value, since a value has no owner.
package sysctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

// DefaultRoot is where the values are on a host. In a container it may be mounted elsewhere, because
// the runtime makes /proc/sys read-only.
const DefaultRoot = "/proc/sys/net"

// Handle is what Table needs of the file system. Dir satisfies it.
type Handle interface {
	Read(name string) (string, error)
	Write(name, value string) error
}

// Table is the driver of the values. Its methods must be called from one goroutine.
type Table struct {
	handle  Handle
	log     *slog.Logger
	desired map[string]string
	done    map[string]string // what was read or written, and is as desired
	failed  map[string]error
}

// New makes a driver that sets nothing until SetDesired.
func New(h Handle, log *slog.Logger) *Table {
	return &Table{handle: h, log: log, done: map[string]string{}}
}

// SetDesired replaces the set of values. Memory only. A value that is no longer wanted stays as it is.
func (t *Table) SetDesired(values []desired.Sysctl) {
	t.desired = make(map[string]string, len(values))
	for _, v := range values {
		t.desired[v.Path] = v.Value
	}
	maps.DeleteFunc(t.done, func(name, value string) bool { return t.desired[name] != value })
}

// QueueResync makes the next Apply read the values.
func (t *Table) QueueResync() { clear(t.done) }

// Apply writes the values that differ. A path that is missing (a kernel without IPv6, a device that is
// not there yet) is an error of that value alone, tried again by the next Apply.
func (t *Table) Apply(ctx context.Context) error {
	t.failed = map[string]error{}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(t.desired)) {
		if _, done := t.done[name]; done {
			continue
		}
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := t.set(name, t.desired[name]); err != nil {
			t.failed[name] = err
			errs = append(errs, err)
			continue
		}
		t.done[name] = t.desired[name]
	}
	return errors.Join(errs...)
}

// Status tells of each value.
func (t *Table) Status() []desired.Status {
	var out []desired.Status
	for _, name := range slices.Sorted(maps.Keys(t.desired)) {
		s := desired.Status{Object: "sysctl net/" + name, Phase: desired.Pending}
		if _, done := t.done[name]; done {
			s.Phase = desired.Done
		} else if err := t.failed[name]; err != nil {
			s.Phase, s.Error = desired.Failed, err.Error()
		}
		out = append(out, s)
	}
	return out
}

func (t *Table) set(name, value string) error {
	have, err := t.handle.Read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set sysctl net/%s: this kernel or device does not have it: %w", name, err)
	}
	if err != nil {
		return fmt.Errorf("read sysctl net/%s: %w", name, err)
	}
	if have == value {
		return nil
	}
	if err := t.handle.Write(name, value); err != nil {
		return fmt.Errorf("set sysctl net/%s=%s: %w", name, value, err)
	}
	// Some values are clamped or refused without an error.
	now, err := t.handle.Read(name)
	if err != nil {
		return fmt.Errorf("read back sysctl net/%s: %w", name, err)
	}
	if now != value {
		return fmt.Errorf("set sysctl net/%s=%s: the kernel keeps %s", name, value, now)
	}
	t.log.Info("sysctl set", "sysctl", "net/"+name, "value", value, "was", have)
	return nil
}

// Dir is the Handle of a directory such as /proc/sys/net.
type Dir string

var _ Handle = Dir("")

// Read returns a value, its words separated by single spaces.
func (d Dir) Read(name string) (string, error) {
	file, err := d.file(name)
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(file)
	return strings.Join(strings.Fields(string(b)), " "), err
}

// Write sets a value.
func (d Dir) Write(name, value string) error {
	file, err := d.file(name)
	if err != nil {
		return err
	}
	// Without O_CREATE: a value that the kernel does not have must not become a file elsewhere.
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// file turns a value's path into that of its file. A device's name may hold a dot, never a slash.
func (d Dir) file(name string) (string, error) {
	if !fs.ValidPath(name) || name == "." {
		return "", fmt.Errorf("invalid path %q: %w", name, fs.ErrInvalid)
	}
	return filepath.Join(string(d), filepath.FromSlash(path.Clean(name))), nil
}
