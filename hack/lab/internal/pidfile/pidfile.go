// Package pidfile remembers processes across runs of the lab, and never mistakes
// another process for one of them: a pid alone is recycled, a pid with its start
// time and the boot's id is not.
package pidfile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process identifies one process for ever.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
	Boot  string `json:"boot"`
}

// Of returns the identity of a running process.
func Of(pid int) (Process, error) {
	st, err := readStat(pid)
	if err != nil {
		return Process{}, err
	}
	boot, err := bootID()
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Start: st.start, Boot: boot}, nil
}

// Write saves a process; the file is there whole or not at all.
func Write(path string, p Process) error {
	b, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode pid file %s: %w", path, err)
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write pid file: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write pid file: %w", err)
	}
	return nil
}

// Read returns the saved process. A missing or broken file is no process: the
// zero Process, which is not alive.
func Read(path string) (Process, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Process{}, nil
	}
	if err != nil {
		return Process{}, fmt.Errorf("read pid file: %w", err)
	}
	var p Process
	if json.Unmarshal(b, &p) != nil {
		return Process{}, nil
	}
	return p, nil
}

// Find returns all processes saved in files of this name under dir.
func Find(dir, name string) ([]Process, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*", name))
	if err != nil {
		return nil, fmt.Errorf("find pid files: %w", err)
	}
	var out []Process
	for _, path := range paths {
		p, err := Read(path)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// Alive tells whether this very process still runs; a zombie does not.
func (p Process) Alive() bool {
	if p.PID <= 1 {
		return false
	}
	st, err := readStat(p.PID)
	if err != nil || st.start != p.Start || st.state == 'Z' || st.state == 'X' {
		return false
	}
	boot, err := bootID()
	return err == nil && boot == p.Boot
}

// Kill ends the process and waits until it is gone. A process that is gone
// already is no error.
func (p Process) Kill(ctx context.Context) error {
	if !p.Alive() {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", p.PID, err)
	}
	defer func() { _ = unix.Close(fd) }()
	// The descriptor holds on to whatever has the pid now; if that is still ours,
	// the signal below cannot hit another.
	if !p.Alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	return p.waitGone(ctx, fd)
}

func (p Process) waitGone(ctx context.Context, fd int) error {
	const slice = 100 * time.Millisecond
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(slice.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", p.PID, err)
		}
		if n > 0 || !p.Alive() {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for process %d to end: %w", p.PID, err)
		}
	}
}

type stat struct {
	state byte
	start uint64
}

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, fmt.Errorf("read state of process %d: %w", pid, err)
	}
	return parseStat(b)
}

// parseStat reads fields 3 and 22 of proc(5)'s stat. The command's name, field 2,
// may hold spaces and parentheses; the last parenthesis ends it.
func parseStat(b []byte) (stat, error) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return stat{}, fmt.Errorf("parse process state: no command name in %q", b)
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 20 {
		return stat{}, fmt.Errorf("parse process state: %d fields", len(f))
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("parse process start time: %w", err)
	}
	return stat{state: f[0][0], start: start}, nil
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
