// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

// storeVersion changes when an older file can no longer be understood.
const storeVersion = 1

// file is what lies on disk. It may hold BGP passwords: it is readable by root alone.
type file struct {
	Version int             `json:"version"`
	Saved   time.Time       `json:"saved"`
	Objects json.RawMessage `json:"objects"` // snapshot.Objects
}

// store keeps the last good objects in one file. Not for concurrent use.
type store struct {
	path string
	last []byte // the objects as last written
}

func (s *store) save(o snapshot.Objects) error {
	objects, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("encode snapshot: %w", err)
	}
	if bytes.Equal(objects, s.last) {
		return nil
	}
	content, err := json.Marshal(file{Version: storeVersion, Saved: time.Now().UTC(), Objects: objects})
	if err != nil {
		return fmt.Errorf("encode snapshot: %w", err)
	}
	if err := writeAtomically(s.path, content); err != nil {
		return fmt.Errorf("save snapshot %s: %w", s.path, err)
	}
	s.last = objects
	return nil
}

func (s *store) load() (snapshot.Objects, time.Time, error) {
	content, err := os.ReadFile(s.path)
	if err != nil {
		return snapshot.Objects{}, time.Time{}, fmt.Errorf("load snapshot: %w", err)
	}
	var f file
	if err := json.Unmarshal(content, &f); err != nil {
		return snapshot.Objects{}, time.Time{}, fmt.Errorf("load snapshot %s: %w", s.path, err)
	}
	if f.Version != storeVersion {
		return snapshot.Objects{}, time.Time{}, fmt.Errorf("load snapshot %s: version %d, expected %d", s.path, f.Version, storeVersion)
	}
	var o snapshot.Objects
	if err := json.Unmarshal(f.Objects, &o); err != nil {
		return snapshot.Objects{}, time.Time{}, fmt.Errorf("load snapshot %s: %w", s.path, err)
	}
	return o, f.Saved, nil
}

// writeAtomically leaves either the old content or the new one, also when the machine loses power.
func writeAtomically(path string, content []byte) (err error) {
	// Always the same name, so that crashes leave one file behind at most.
	tmp, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	if _, err := tmp.Write(content); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := tmp.Sync(); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
