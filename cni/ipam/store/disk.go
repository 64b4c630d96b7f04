// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

const (
	lockTimeout = 2 * time.Second
	// reserve is disk space that the file owns beyond its end, so that it grows on a full disk too.
	reserve = 1 << 20
)

// errDamaged says that the file is not what we wrote.
var errDamaged = errors.New("the file is damaged")

// disk is the file, and a copy of what it holds.
type disk struct {
	sync.Mutex
	path   string
	note   func(problem string)
	now    func() time.Time
	db     *bolt.DB
	mirror map[recordKey][]byte // values as on disk
	digest digest
	loaded contents
}

// openDisk opens the file or makes it. A damaged one is moved aside first.
func openDisk(path string, note func(string), now func() time.Time) (*disk, error) {
	d := &disk{path: path, note: note, now: now, mirror: map[recordKey][]byte{}}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d, d.create()
	case err != nil:
		return nil, err
	case info.Size() == 0: // bbolt would take it for new
		err = fmt.Errorf("%w: it is empty", errDamaged)
	default:
		err = d.open()
	}
	if err == nil || !errors.Is(err, errDamaged) {
		return d, err
	}
	d.mirror, d.digest, d.loaded = map[recordKey][]byte{}, digest{}, contents{}
	return d, d.replace(err)
}

// open opens an existing file and reads all of it.
func (d *disk) open() error {
	if err := d.openDB(); err != nil {
		return err
	}
	err := guard(func() error { return d.db.View(d.read) })
	if err != nil {
		_ = guard(d.db.Close)
	}
	return err
}

func (d *disk) openDB() error {
	return guard(func() (err error) {
		d.db, err = bolt.Open(d.path, 0o600, &bolt.Options{Timeout: lockTimeout, FreelistType: bolt.FreelistMapType})
		var errno unix.Errno
		switch {
		case errors.Is(err, berrors.ErrTimeout):
			return fmt.Errorf("another process has it: %w", err)
		case err != nil && !errors.As(err, &errno): // not the disk's fault but the content's
			return fmt.Errorf("%w: %w", errDamaged, err)
		}
		return err
	})
}

// create makes the file from the mirror.
func (d *disk) create() error {
	if err := d.openDB(); err != nil {
		return err
	}
	if f, err := os.OpenFile(d.path, os.O_RDWR, 0); err == nil {
		// Best effort: some file systems cannot.
		_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, reserve)
		_ = f.Close()
	}
	err := guard(func() error {
		return d.db.Update(func(tx *bolt.Tx) error {
			for _, name := range []string{metaBucket, attachmentBucket, releasedBucket, blockBucket} {
				if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
					return err
				}
			}
			if err := put(tx, versionRecord()); err != nil {
				return err
			}
			for k, v := range d.mirror {
				if err := tx.Bucket([]byte(k.bucket)).Put([]byte(k.key), v); err != nil {
					return err
				}
			}
			return put(tx, d.digest.record())
		})
	})
	if err != nil {
		// A half-made file would count as damaged at the next start.
		return errors.Join(err, guard(d.db.Close), os.Remove(d.path))
	}
	return syncDir(filepath.Dir(d.path))
}

// replace moves a damaged file aside and makes a new one from the mirror.
func (d *disk) replace(why error) error {
	aside := fmt.Sprintf("%s.corrupt-%s", d.path, d.now().UTC().Format("20060102T150405.000"))
	if err := os.Rename(d.path, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(why, err)
	}
	d.note(fmt.Sprintf("%s was damaged (%v), and is now %s", d.path, why, aside))
	return d.create()
}

// commit writes a batch in order, as one transaction. Nothing to do costs nothing. If the file turns
// out to be damaged, a new one takes its place.
func (d *disk) commit(batch []*write) error {
	next, sum := map[recordKey][]byte{}, d.digest
	for _, w := range batch {
		for _, r := range w.records {
			old, changed := next[r.recordKey]
			if !changed {
				old = d.mirror[r.recordKey]
			}
			if old == nil && r.value == nil {
				continue
			}
			sum.replace(r.recordKey, old, r.value)
			next[r.recordKey] = r.value
		}
	}
	if len(next) == 0 {
		return nil
	}
	err := guard(func() error {
		return d.db.Update(func(tx *bolt.Tx) error {
			for k, v := range next {
				if err := put(tx, record{k, v}); err != nil {
					return err
				}
			}
			return put(tx, sum.record())
		})
	})
	if err != nil && !errors.Is(err, errDamaged) {
		return err
	}
	old, oldSum := maps.Clone(d.mirror), d.digest
	for k, v := range next {
		if v == nil {
			delete(d.mirror, k)
		} else {
			d.mirror[k] = v
		}
	}
	d.digest = sum
	if err == nil {
		return nil
	}
	d.db = nil // and not closed: bbolt keeps its locks when it panics, and Close would wait for them
	if err := d.replace(err); err != nil {
		d.mirror, d.digest = old, oldSum
		return err
	}
	return nil
}

func (d *disk) close() error {
	d.Lock()
	defer d.Unlock()
	if d.db == nil {
		return nil
	}
	return guard(d.db.Close)
}

// guard turns a panic of bbolt, which it answers a damaged file with, into errDamaged. The file is
// mapped into memory, so reading beyond its end is a fault: that too.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}()
	err = f()
	if errors.Is(err, berrors.ErrDatabaseNotOpen) || errors.Is(err, berrors.ErrInvalid) || errors.Is(err, berrors.ErrChecksum) {
		err = fmt.Errorf("%w: %w", errDamaged, err)
	}
	return err
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
