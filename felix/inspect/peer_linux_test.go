// SPDX-License-Identifier: Apache-2.0

package inspect_test

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// Should the socket's mode ever let in somebody else, he is not answered.
func TestOthersAreNotAnswered(t *testing.T) {
	if os.Geteuid() != 0 {
		nettest.Skip(t, "only root can be somebody else")
	}
	s := start(t, sample())
	if err := os.Chmod(s.path, 0o666); err != nil { //nolint:gosec // that is the test
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(filepath.Dir(s.path)), 0o755); err != nil { //nolint:gosec // so is this
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		uid  int
		want string
	}{"root": {0, "HTTP/1.1 200"}, "nobody": {65534, ""}} {
		t.Run(name, func(t *testing.T) {
			conn := dialAs(t, tt.uid, s.path)
			_, _ = io.WriteString(conn, get(""))
			got, _ := io.ReadAll(conn)
			if status, _, _ := strings.Cut(string(got), "\r\n"); !strings.HasPrefix(status, tt.want) || tt.want == "" && len(got) > 0 {
				t.Errorf("answer = %.100q, want %q", got, tt.want)
			}
		})
	}
}

// dialAs connects with an effective uid, which is one thread's alone: the raw system call does not tell
// the others, as Go's does.
func dialAs(t *testing.T, uid int, path string) net.Conn {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer func() { _ = file.Close() }()
	runtime.LockOSThread()
	become := func(uid int) {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 { //nolint:gosec // a uid
			t.Fatalf("become uid %d: %v", uid, errno) // with the thread locked, it ends with the goroutine
		}
	}
	become(uid)
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	become(0)
	runtime.UnlockOSThread()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
