// SPDX-License-Identifier: Apache-2.0

// Package store keeps a node's address allocations on disk, in a bbolt file: an allocation is
// synced before anybody learns of it.
//
// Memory decides (cni/ipam), the file remembers. What is written at the same time shares one commit,
// without waiting for company: whoever comes first commits for all that have come meanwhile. When
// the file cannot be written, an allocation is undone and fails, while a release stands and is
// written later; a crash before that leaves an attachment too many, whose device is gone.
//
// The file is trusted only as far as it proves itself: every record has a checksum, and so has the
// set of all. A file that is damaged is moved aside, and the kernel is asked which devices and
// addresses there are, as it is for what the file does not know.
package store

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/cni/ipam"
)

// DefaultPath is where the file is.
const DefaultPath = cni.StateDir + "/ipam.db"

// Options configure Open.
type Options struct {
	Path     string        // empty: DefaultPath
	Cooldown time.Duration // 0: ipam.DefaultCooldown; negative: none
	// Kernel says which attachments have a device on this node. What the file does not know is taken
	// from it. nil: there are none.
	Kernel func() ([]ipam.Allocation, error)
	Log    *slog.Logger     // nil: slog.Default()
	Now    func() time.Time // nil: time.Now
}

// Store is a durable ipam.Allocator, safe for concurrent use.
type Store struct {
	opts Options

	mu      sync.Mutex // guards what follows
	alloc   *ipam.Allocator
	pending []*write
	problem []string
	blocks  map[netip.Prefix]ipam.Block // as written

	disk *disk
}

// Open reads the file, or makes it. It fails if there can be no file, or another process has it, or
// the kernel cannot be asked.
func Open(o Options) (*Store, error) {
	if o.Path == "" {
		o.Path = DefaultPath
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Cooldown == 0 {
		o.Cooldown = ipam.DefaultCooldown
	}
	s := &Store{opts: o, alloc: ipam.New(max(o.Cooldown, 0)), blocks: map[netip.Prefix]ipam.Block{}}
	var err error
	if s.disk, err = openDisk(o.Path, s.note, o.Now); err != nil {
		return nil, fmt.Errorf("open %s: %w", o.Path, err)
	}
	writes := s.load()
	adopted, err := s.adopt()
	if err == nil {
		err = s.disk.commit(append(writes, adopted...))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", o.Path, err), s.disk.close())
	}
	return s, nil
}

// Close writes what is pending and closes the file.
func (s *Store) Close() error { return errors.Join(s.Flush(), s.disk.close()) }

// Problem says, for status, what was wrong with the file since Open, and what was done about it.
// Empty: nothing.
func (s *Store) Problem() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.problem, "; ")
}

// SetBlocks says which blocks this node owns; see ipam.Allocator. Nothing is allocated before the
// first call. The error tells that the file could not be written; the blocks are in force all the
// same, and the file follows.
func (s *Store) SetBlocks(blocks []ipam.Block) error {
	s.mu.Lock()
	forgotten := s.alloc.SetBlocks(blocks)
	records := s.changedBlocks()
	for _, ip := range forgotten {
		records = append(records, deleted(releasedBucket, addrKey(ip)))
	}
	w := s.enqueue(true, records...)
	s.mu.Unlock()
	return s.wait(w)
}

// changedBlocks returns what to write so that the file knows the blocks that memory knows.
func (s *Store) changedBlocks() (records []record) {
	own, orphans := s.alloc.Blocks()
	known := map[netip.Prefix]ipam.Block{}
	for _, b := range slices.Concat(own, orphans) {
		known[b.CIDR] = b
		if s.blocks[b.CIDR] != b {
			records = append(records, blockRecord(b))
		}
	}
	for cidr := range s.blocks {
		if _, ok := known[cidr]; !ok {
			records = append(records, deleted(blockBucket, cidr.String()))
		}
	}
	s.blocks = known
	return records
}

// RequireFamilies says which families every allocation must have; see ipam.Allocator.
func (s *Store) RequireFamilies(v4, v6 bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alloc.RequireFamilies(v4, v6)
}

// SetCooldown changes how long released addresses rest.
func (s *Store) SetCooldown(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alloc.SetCooldown(d)
}

// Allocate gives an attachment its addresses, or returns those that it has; fresh tells which. They
// are on disk when it returns.
//
// Errors: ipam.ErrNotReady, *ipam.NoAddressError, or why the file cannot be written, upon which
// nothing is allocated.
func (s *Store) Allocate(r ipam.Request) (x ipam.Allocation, fresh bool, err error) {
	s.mu.Lock()
	x, fresh, err = s.alloc.Allocate(s.opts.Now(), r)
	if err != nil || !fresh {
		s.mu.Unlock()
		return x, false, err
	}
	records := []record{attachmentRecord(x)}
	for _, ip := range x.Addresses {
		if ip.IsValid() {
			records = append(records, deleted(releasedBucket, addrKey(ip)))
		}
	}
	w := s.enqueue(false, records...)
	s.mu.Unlock()
	if err := s.wait(w); err != nil {
		s.mu.Lock()
		s.alloc.Undo(r.Attachment)
		s.mu.Unlock()
		return ipam.Allocation{}, false, err
	}
	return x, true, nil
}

// Release ends an allocation and returns what it was; ok is false if there was none. The error
// tells that the file could not be written; the release stands all the same, and the file follows.
func (s *Store) Release(a cni.Attachment) (x ipam.Allocation, ok bool, err error) {
	s.mu.Lock()
	now := s.opts.Now()
	if x, ok = s.alloc.Release(now, a); !ok {
		s.mu.Unlock()
		return x, false, nil
	}
	records := []record{deleted(attachmentBucket, attachmentKey(a))}
	for _, ip := range x.Addresses {
		if ip.IsValid() {
			records = append(records, releasedRecord(ip, now))
		}
	}
	w := s.enqueue(true, records...)
	s.mu.Unlock()
	return x, true, s.wait(w)
}

// Flush writes what could not be written before.
func (s *Store) Flush() error {
	s.mu.Lock()
	if len(s.pending) == 0 {
		s.mu.Unlock()
		return nil
	}
	w := s.enqueue(true)
	s.mu.Unlock()
	return s.wait(w)
}

// Attachment returns what an attachment has.
func (s *Store) Attachment(a cni.Attachment) (ipam.Allocation, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.alloc.Get(a)
}

// Attachments returns all allocations, in the order of their devices: what the node's routes to its
// pods follow from.
func (s *Store) Attachments() []ipam.Allocation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.alloc.Allocations()
}

// Owner says which attachment has an address.
func (s *Store) Owner(ip netip.Addr) (cni.Attachment, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.alloc.Owner(ip)
}

// Usage counts the addresses of every known block.
func (s *Store) Usage() []ipam.BlockUsage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.alloc.Usage(s.opts.Now())
}

// Available is nil if an Allocate would find addresses now, or what it would return.
func (s *Store) Available() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.alloc.Available(s.opts.Now())
}

// Releasable says whether a block may go to another node; see ipam.Allocator.
func (s *Store) Releasable(block string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.alloc.Releasable(s.opts.Now(), block)
}

// load fills the allocator with what the file holds, and returns what should be written because the
// file contradicts itself.
func (s *Store) load() []*write {
	now := s.opts.Now()
	var drop []record
	for _, x := range s.disk.loaded.attachments {
		if err := s.alloc.Restore(x); err != nil {
			s.note("dropped an attachment that contradicts another: " + err.Error())
			drop = append(drop, deleted(attachmentBucket, attachmentKey(x.Attachment)))
		}
	}
	for ip, at := range s.disk.loaded.released {
		s.alloc.RestoreReleased(now, ip, at)
	}
	for _, b := range s.disk.loaded.blocks {
		s.alloc.AddOrphan(b)
		s.blocks[b.CIDR] = b
	}
	s.disk.loaded = contents{}
	return []*write{{records: drop, done: make(chan error, 1)}}
}

// adopt takes over what only the kernel knows.
func (s *Store) adopt() ([]*write, error) {
	if s.opts.Kernel == nil {
		return nil, nil
	}
	found, err := s.opts.Kernel()
	if err != nil {
		return nil, fmt.Errorf("ask the kernel: %w", err)
	}
	var records []record
	for _, x := range found {
		if _, known := s.alloc.Get(x.Attachment); known {
			continue
		}
		if x.Created.IsZero() {
			x.Created = s.opts.Now().Round(0)
		}
		if err := s.alloc.Restore(x); err != nil {
			s.note("cannot take " + x.Device + " over from the kernel: " + err.Error())
			continue
		}
		records = append(records, attachmentRecord(x))
		for _, ip := range x.Addresses {
			if ip.IsValid() {
				records = append(records, deleted(releasedBucket, addrKey(ip)))
			}
		}
	}
	if len(records) > 0 {
		s.note(fmt.Sprintf("took %d of %d attachments over from the kernel, since %s did not know them", puts(records), len(found), s.opts.Path))
	}
	return []*write{{records: records, done: make(chan error, 1)}}, nil
}

// note keeps a problem for status, and logs it.
func (s *Store) note(problem string) {
	s.opts.Log.Error("address store has a problem", "path", s.opts.Path, "problem", problem)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.problem) < 8 {
		s.problem = append(s.problem, problem)
	}
}

// write is what one caller wants on disk. A lasting one is kept and tried again when it fails.
type write struct {
	records []record
	lasting bool
	done    chan error // 1 slot
}

// enqueue adds a write, in the order in which memory changed: the caller holds s.mu.
func (s *Store) enqueue(lasting bool, records ...record) *write {
	w := &write{records: records, lasting: lasting, done: make(chan error, 1)}
	s.pending = append(s.pending, w)
	return w
}

// wait returns when the write is on disk, or failed. The first to get the disk commits for all.
func (s *Store) wait(w *write) error {
	s.disk.Lock()
	defer s.disk.Unlock()
	select {
	case err := <-w.done: // somebody committed for us
		return err
	default:
	}
	s.mu.Lock()
	batch := s.pending
	s.pending = nil
	s.mu.Unlock()
	err := s.disk.commit(batch)
	if err != nil {
		err = fmt.Errorf("write %s: %w", s.opts.Path, err)
		s.keepLasting(batch)
	}
	for _, other := range batch {
		other.done <- err
	}
	return <-w.done
}

// keepLasting puts releases and the like back before what came meanwhile.
func (s *Store) keepLasting(batch []*write) {
	var kept []*write
	for _, w := range batch {
		if w.lasting && len(w.records) > 0 {
			kept = append(kept, &write{records: w.records, lasting: true, done: make(chan error, 1)})
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = append(kept, s.pending...)
}
