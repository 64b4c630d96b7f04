// SPDX-License-Identifier: Apache-2.0

package agenttest

import (
	"bufio"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// clockPipe leads out of the user namespace of a test, where nobody may set the clock.
const clockPipe = "/tmp/heliograph-agenttest-clock"

// inVM says whether this machine is ours alone.
func inVM() bool { return os.Getenv("HELIOGRAPH_VM") == "1" }

// keepClock lets the test set the clock of the VM. It is called outside of the namespaces, and does nothing
// inside of them.
func keepClock(t *testing.T) {
	t.Helper()
	if !inVM() {
		return
	}
	err := unix.Mkfifo(clockPipe, 0o600)
	if errors.Is(err, syscall.EEXIST) {
		return // we are inside
	}
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(clockPipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pipe.Close(); _ = os.Remove(clockPipe) })
	go func() {
		for lines := bufio.NewScanner(pipe); lines.Scan(); {
			by, err := time.ParseDuration(lines.Text())
			tv := unix.NsecToTimeval(time.Now().Add(by).UnixNano())
			if err := errors.Join(err, unix.Settimeofday(&tv)); err != nil {
				t.Errorf("set the clock by %q: %v", lines.Text(), err)
			}
		}
	}()
}

// setClock sets the clock by a difference, and waits until that has been done.
func setClock(t *testing.T, by time.Duration) {
	t.Helper()
	before := time.Now()
	pipe, err := os.OpenFile(clockPipe, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	if _, err := pipe.WriteString(by.String() + "\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() string {
		// Round takes the monotonic reading away, which does not step.
		if step := time.Now().Round(0).Sub(before.Round(0)) - time.Since(before); step.Abs() < by.Abs()/2 {
			return "the clock has not been set"
		}
		return ""
	})
}

// clockSteps: a clock that is set, by an hour, changes no path and loses nothing.
func (s *story) clockSteps() {
	s.t.Helper()
	if !inVM() {
		return
	}
	stays := func() { s.stays(8*time.Second, "Native", "Native") }
	s.step("the clock is set forwards by an hour", harmless, func() { setClock(s.t, time.Hour) }, stays)
	s.step("the clock is set back by an hour", harmless, func() { setClock(s.t, -time.Hour) }, stays)
	s.unchanged(2, "Native", "Native")
}
