// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// fill writes until the file system of dir is full.
func fill(t *testing.T, dir string) (empty func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(b)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		_ = f.Close()
		_ = os.Remove(path)
	}
}

func TestDiskFull(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		dir := "/run/small"
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "ipam.db")
		s := open(t, Options{Path: path, Cooldown: -1})
		if err := s.SetBlocks(blocks); err != nil {
			t.Fatal(err)
		}
		empty := fill(t, dir)
		// What was reserved is enough for an ordinary day.
		for i := range 62 {
			mustAllocate(t, s, i)
		}
		for i := range 62 {
			if _, ok, err := s.Release(att(i)); !ok || err != nil {
				t.Fatal(err)
			}
		}
		empty()
		if err := s.Flush(); err != nil || len(s.Attachments()) != 0 || s.Problem() != "" {
			t.Errorf("flush: %v, left %v, problem %q", err, s.Attachments(), s.Problem())
		}
	})
}

// TestFileThatCannotGrow limits the file itself, since the reserve hides a full disk.
func TestFileThatCannotGrow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.db")
	s := open(t, Options{Path: path, Cooldown: -1})
	if err := s.SetBlocks(blocks); err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		mustAllocate(t, s, i)
	}
	s.disk.db.MaxSize = 1
	failed := 0
	for i := range 32 {
		before := len(s.Attachments())
		if _, _, err := s.Allocate(req(100 + i)); err != nil {
			failed++
			if len(s.Attachments()) != before {
				t.Error("a failed allocation is left")
			}
		}
	}
	if failed == 0 {
		t.Fatal("no allocation failed: the test tests nothing")
	}
	for i := range 30 { // a release stands, written or not
		if _, ok, _ := s.Release(att(i)); !ok {
			t.Errorf("release %d failed", i)
		}
	}
	s.disk.db.MaxSize = 0
	if err := s.Flush(); err != nil {
		t.Errorf("flush: %v", err)
	}
	want := s.Attachments()
	_ = s.Close()
	again := open(t, Options{Path: path})
	if diff := cmp.Diff(want, again.Attachments(), plain); diff != "" || again.Problem() != "" {
		t.Errorf("problem %q (-want +got):\n%s", again.Problem(), diff)
	}
}
