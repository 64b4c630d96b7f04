// SPDX-License-Identifier: Apache-2.0

package rootsock_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/heliograph-dev/heliograph/internal/rootsock"
)

// A socket of a dead process, and even a plain file, is no hindrance.
func TestListenReplacesWhatIsThere(t *testing.T) {
	dir, err := os.MkdirTemp("", "hel") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "run", "s")
	for name, before := range map[string]func() error{
		"nothing": func() error { return nil },
		"a dead socket": func() error {
			l, err := rootsock.Listen(path)
			if err != nil {
				return err
			}
			return l.Close() // the file stays
		},
		"a file": func() error { return os.WriteFile(path, []byte("x"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if err := before(); err != nil {
				t.Fatal(err)
			}
			l, err := rootsock.Listen(path)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
			}
			if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
				t.Errorf("left beside the socket: %v", entries)
			}
		})
	}
}
