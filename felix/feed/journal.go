// SPDX-License-Identifier: Apache-2.0

package feed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// writeSpacing lets a burst of changes cost one write to the disk.
	writeSpacing = time.Second
	// openTimeout is how long another process, an agent that is just ending, may hold the file.
	openTimeout = 5 * time.Second
)

// completeKey, in metaBucket, is there once the file holds all that the API server said.
var (
	metaBucket  = []byte("meta")
	completeKey = []byte("complete")
)

// Journal keeps the last word about each object in a file. One object that changes is one small write.
// It is safe for concurrent use.
type Journal struct {
	db    *bolt.DB
	types map[Kind]func() client.Object
	log   *slog.Logger
	poke  chan struct{}

	mu      sync.Mutex
	pending map[Key]client.Object
	replace bool // what the file holds beside pending is to go
}

// OpenJournal opens the file, or makes it. One that cannot be read is set aside, and named in the
// log: it is a copy. types make an empty object of each kind.
func OpenJournal(path string, types map[Kind]func() client.Object, log *slog.Logger) (*Journal, error) {
	db, err := open(path)
	if err != nil && !errors.Is(err, berrors.ErrTimeout) {
		log.Warn("the copy of policies and pods on disk cannot be read: beginning a new one", "path", path, "error", err)
		if err := os.Rename(path, path+".broken"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("set aside %s: %w", path, err)
		}
		db, err = open(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &Journal{db: db, types: types, log: log, poke: make(chan struct{}, 1), pending: map[Key]client.Object{}}, nil
}

// open guards against files so broken that bbolt panics.
func open(path string) (db *bolt.DB, err error) {
	defer func() {
		if r := recover(); r != nil {
			db, err = nil, fmt.Errorf("the file is broken: %v", r)
		}
	}()
	return bolt.Open(path, 0o600, &bolt.Options{Timeout: openTimeout, NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
}

// Close closes the file. What was noted and not written yet is written first.
func (j *Journal) Close() error { return errors.Join(j.write(), j.db.Close()) }

// Load returns what the file holds; false if it never held all.
func (j *Journal) Load() (changes []Change, complete bool, err error) {
	err = j.db.View(func(tx *bolt.Tx) error {
		meta := tx.Bucket(metaBucket)
		complete = meta != nil && meta.Get(completeKey) != nil
		for kind, empty := range j.types {
			if err := j.loadKind(tx, kind, empty, &changes); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("load %s: %w", j.db.Path(), err)
	}
	return changes, complete, nil
}

// LoadKind returns what the file holds of one kind.
func (j *Journal) LoadKind(kind Kind) (changes []Change, err error) {
	err = j.db.View(func(tx *bolt.Tx) error { return j.loadKind(tx, kind, j.types[kind], &changes) })
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", j.db.Path(), err)
	}
	return changes, nil
}

func (j *Journal) loadKind(tx *bolt.Tx, kind Kind, empty func() client.Object, changes *[]Change) error {
	bucket := tx.Bucket([]byte(kind))
	if bucket == nil {
		return nil
	}
	return bucket.ForEach(func(name, content []byte) error {
		obj := empty()
		if err := json.Unmarshal(content, obj); err != nil {
			return fmt.Errorf("%s %s: %w", kind, name, err)
		}
		*changes = append(*changes, Change{Key: KeyOf(kind, obj), Object: obj})
		return nil
	})
}

// Note has changes written soon. whole says that they are all there is.
func (j *Journal) Note(changes []Change, whole bool) {
	if len(changes) == 0 && !whole {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if whole {
		j.pending, j.replace = map[Key]client.Object{}, true
	}
	for _, c := range changes {
		j.pending[c.Key] = c.Object
	}
	j.again()
}

// Run writes what is noted until ctx ends. What cannot be written, the disk may be full, is tried again.
func (j *Journal) Run(ctx context.Context) error {
	var failed error
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-j.poke:
		}
		err := j.write()
		switch {
		case err != nil:
			if failed == nil {
				j.log.Warn("cannot keep a copy of policies and pods on disk", "error", err)
			}
			j.again()
		case failed != nil:
			j.log.Info("the copy of policies and pods on disk is complete again")
		}
		failed = err
		select {
		case <-ctx.Done():
		case <-time.After(writeSpacing):
		}
	}
}

func (j *Journal) again() {
	select {
	case j.poke <- struct{}{}:
	default:
	}
}

// write brings the file up to date. After a failure all that was to be written still is.
func (j *Journal) write() error {
	j.mu.Lock()
	pending, replace := j.pending, j.replace
	j.pending, j.replace = map[Key]client.Object{}, false
	j.mu.Unlock()
	if len(pending) == 0 && !replace {
		return nil
	}
	err := j.db.Update(func(tx *bolt.Tx) error { return j.update(tx, pending, replace) })
	if err == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.replace { // or there is a newer whole
		for k, obj := range pending {
			if _, newer := j.pending[k]; !newer {
				j.pending[k] = obj
			}
		}
		j.replace = replace
	}
	return fmt.Errorf("write %s: %w", j.db.Path(), err)
}

func (j *Journal) update(tx *bolt.Tx, pending map[Key]client.Object, replace bool) error {
	if replace {
		for kind := range j.types {
			if err := tx.DeleteBucket([]byte(kind)); err != nil && !errors.Is(err, berrors.ErrBucketNotFound) {
				return err
			}
		}
		meta, err := tx.CreateBucketIfNotExists(metaBucket)
		if err != nil {
			return err
		}
		if err := meta.Put(completeKey, []byte{1}); err != nil {
			return err
		}
	}
	for k, obj := range pending {
		bucket, err := tx.CreateBucketIfNotExists([]byte(k.Kind))
		if err != nil {
			return err
		}
		if err := put(bucket, k, obj); err != nil {
			return err
		}
	}
	return nil
}

func put(bucket *bolt.Bucket, k Key, obj client.Object) error {
	name := []byte(strings.TrimPrefix(k.Namespace+"/"+k.Name, "/"))
	if obj == nil {
		return bucket.Delete(name)
	}
	content, err := json.Marshal(obj)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", k.Kind, name, err)
	}
	return bucket.Put(name, content)
}
