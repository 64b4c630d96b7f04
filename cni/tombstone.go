// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// StateDir is where the node keeps heliograph's state.
const StateDir = "/var/lib/heliograph"

// TombstoneDir is the directory, below StateDir, of the DELs that the plugin took while the agent
// was away.
const TombstoneDir = "dels"

// Tombstones is a directory of DELs that are promised but not done yet. The plugin adds one when no
// agent answers, so that pods can be deleted meanwhile; the agent carries it out and removes it: at
// its start, at intervals, and in any case before an ADD of the same attachment, which comes later
// than the DEL for sure because a runtime does not run both at once (CNI specification 1.1,
// Section 3, "Lifecycle & Ordering").
type Tombstones struct{ Dir string }

// Add promises the DEL of an attachment. It is on disk when Add returns.
func (t Tombstones) Add(a Attachment) error {
	if err := os.MkdirAll(t.Dir, 0o700); err != nil {
		return err
	}
	body, err := json.Marshal(a)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(t.Dir, ".new-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after the rename
	_, err = tmp.Write(body)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), t.path(a)); err != nil {
		return err
	}
	return syncDir(t.Dir)
}

// Has says whether the DEL of an attachment is promised.
func (t Tombstones) Has(a Attachment) bool {
	_, err := os.Lstat(t.path(a))
	return err == nil
}

// Remove forgets the promise, after it was kept. Removing what is gone is success.
func (t Tombstones) Remove(a Attachment) error {
	if err := os.Remove(t.path(a)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// List returns the attachments whose DEL is promised. Unreadable files are skipped and reported in
// the error, beside the readable ones. A directory that does not exist holds none.
func (t Tombstones) List() ([]Attachment, error) {
	entries, err := os.ReadDir(t.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var attachments []Attachment
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		id, ifName, ok := strings.Cut(e.Name(), "@")
		if !ok {
			errs = append(errs, fmt.Errorf("%s: not the name of a tombstone", filepath.Join(t.Dir, e.Name())))
			continue
		}
		attachments = append(attachments, Attachment{ContainerID: id, IfName: ifName})
	}
	return attachments, errors.Join(errs...)
}

// path names the file. A container ID holds no "@" and neither holds a slash (CNI specification 1.1,
// Section 2, "Parameters"), so the name says all; the content is for people.
func (t Tombstones) path(a Attachment) string {
	return filepath.Join(t.Dir, a.ContainerID+"@"+a.IfName)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
