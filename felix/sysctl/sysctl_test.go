// SPDX-License-Identifier: Apache-2.0

package sysctl

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

func TestApply(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		in    []desired.Sysctl
		want  map[string]string
		fails string // path that must fail
	}{
		{
			name:  "writes what differs",
			files: map[string]string{"ipv4/ip_forward": "0\n", "ipv4/conf/all/rp_filter": "2\n"},
			in:    []desired.Sysctl{{Path: "ipv4/ip_forward", Value: "1"}},
			want:  map[string]string{"ipv4/ip_forward": "1", "ipv4/conf/all/rp_filter": "2\n"},
		},
		{
			name:  "leaves what is right, however the kernel spaces it",
			files: map[string]string{"ipv4/ip_local_port_range": "32768\t60999\n"},
			in:    []desired.Sysctl{{Path: "ipv4/ip_local_port_range", Value: "32768 60999"}},
			want:  map[string]string{"ipv4/ip_local_port_range": "32768\t60999\n"},
		},
		{
			name:  "a missing path is no file afterwards, and the others are set",
			files: map[string]string{"ipv4/ip_forward": "0\n"},
			in:    []desired.Sysctl{{Path: "ipv4/ip_forward", Value: "1"}, {Path: "ipv4/none", Value: "1"}},
			want:  map[string]string{"ipv4/ip_forward": "1"},
			fails: "ipv4/none",
		},
		{
			name:  "does not leave its directory",
			files: map[string]string{"ipv4/ip_forward": "0\n"},
			in:    []desired.Sysctl{{Path: "../secret", Value: "1"}},
			want:  map[string]string{"ipv4/ip_forward": "0\n"},
			fails: "../secret",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "net")
			for name, content := range c.files {
				write(t, filepath.Join(root, name), content)
			}
			d := New(Dir(root), slog.New(slog.DiscardHandler))
			d.SetDesired(c.in)
			if err := d.Apply(context.Background()); (err != nil) != (c.fails != "") {
				t.Errorf("Apply = %v", err)
			}
			if diff := cmp.Diff(c.want, read(t, root)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			for _, s := range d.Status() {
				if failed := s.Object == "sysctl net/"+c.fails; failed != (s.Phase == desired.Failed) {
					t.Errorf("Status = %v", s)
				}
			}
		})
	}
}

func TestHealsAfterResync(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "ipv4/ip_forward")
	write(t, file, "0\n")
	d := New(Dir(root), slog.New(slog.DiscardHandler))
	d.SetDesired([]desired.Sysctl{{Path: "ipv4/ip_forward", Value: "1"}})
	for range 2 {
		if err := d.Apply(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := read(t, root)["ipv4/ip_forward"]; got != "1" {
			t.Errorf("value = %q", got)
		}
		write(t, file, "0\n")
		d.QueueResync()
	}
}

// stubborn is a kernel that accepts every write, and does as it likes.
type stubborn struct{ value string }

func (s stubborn) Read(string) (string, error) { return s.value, nil }
func (s stubborn) Write(string, string) error  { return nil }

func TestReadsBack(t *testing.T) {
	d := New(stubborn{"0"}, slog.New(slog.DiscardHandler))
	d.SetDesired([]desired.Sysctl{{Path: "core/x", Value: "7"}})
	err := d.Apply(context.Background())
	want := []desired.Status{{Object: "sysctl net/core/x", Phase: desired.Failed, Error: "set sysctl net/core/x=7: the kernel keeps 0"}}
	if diff := cmp.Diff(want, d.Status()); err == nil || diff != "" {
		t.Errorf("Apply = %v, Status (-want +got):\n%s", err, diff)
	}
}

// failing refuses its first write.
type failing struct {
	Dir
	err error
}

func (f *failing) Write(name, value string) error {
	err := f.err
	f.err = nil
	if err != nil {
		return err
	}
	return f.Dir.Write(name, value)
}

func TestRetriesUntold(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "ipv4/ip_forward"), "0\n")
	d := New(&failing{Dir(root), syscall.EBUSY}, slog.New(slog.DiscardHandler))
	d.SetDesired([]desired.Sysctl{{Path: "ipv4/ip_forward", Value: "1"}})
	if err := d.Apply(context.Background()); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("Apply = %v, want EBUSY", err)
	}
	if err := d.Apply(context.Background()); err != nil || d.Status()[0].Phase != desired.Done {
		t.Errorf("Apply = %v, Status %v", err, d.Status())
	}
}

// spy counts reads.
type spy struct {
	Dir
	reads int
}

func (s *spy) Read(name string) (string, error) {
	s.reads++
	return s.Dir.Read(name)
}

func TestReadsOnlyWhatIsNew(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "a"), "1\n")
	write(t, filepath.Join(root, "b"), "1\n")
	s := &spy{Dir: Dir(root)}
	d := New(s, slog.New(slog.DiscardHandler))
	for _, values := range [][]desired.Sysctl{{{Path: "a", Value: "1"}}, {{Path: "a", Value: "1"}, {Path: "b", Value: "1"}}} {
		d.SetDesired(values)
		if err := d.Apply(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if s.reads != 2 {
		t.Errorf("%d reads of two values", s.reads)
	}
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, root string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(root, name))
		got[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}
