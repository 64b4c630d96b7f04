package pidfile

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func startSleep(t *testing.T) (*exec.Cmd, Process) {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	p, err := Of(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, p
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestKillEndsTheProcess(t *testing.T) {
	_, p := startSleep(t)
	if !p.Alive() {
		t.Fatal("fresh process is not alive")
	}
	if err := p.Kill(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if p.Alive() {
		t.Error("alive after Kill, though only a zombie is left")
	}
	if err := p.Kill(testContext(t)); err != nil {
		t.Errorf("second Kill: %v", err)
	}
}

func TestRecycledPidIsNeverKilled(t *testing.T) {
	_, p := startSleep(t)
	for name, other := range map[string]Process{
		"other start time": {PID: p.PID, Start: p.Start - 1, Boot: p.Boot},
		"other boot":       {PID: p.PID, Start: p.Start, Boot: "another"},
		"zero":             {},
		"init":             {PID: 1},
	} {
		if other.Alive() {
			t.Errorf("%s: alive", name)
		}
		if err := other.Kill(testContext(t)); err != nil {
			t.Errorf("%s: Kill: %v", name, err)
		}
	}
	if !p.Alive() {
		t.Error("the process that has the pid now was killed")
	}
}

func TestReadWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "host", "x.pid")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	want := Process{PID: 42, Start: 7, Boot: "b"}
	if err := Write(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	found, err := Find(dir, "x.pid")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]Process{want}, found); d != "" {
		t.Errorf("Find (-want +got):\n%s", d)
	}
}

func TestMissingOrBrokenFileIsNoProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.pid")
	for name, content := range map[string]string{"missing": "-", "empty": "", "cut": `{"pid": 4`} {
		if content != "-" {
			if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		p, err := Read(path)
		if err != nil || p != (Process{}) {
			t.Errorf("%s: Read = %v, %v", name, p, err)
		}
	}
}

func TestParseStat(t *testing.T) {
	in := "77 (a) R (b c) S 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 1"
	got, err := parseStat([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	if got.state != 'S' || got.start != 4711 {
		t.Errorf("got state %c start %d", got.state, got.start)
	}
	if _, err := parseStat([]byte("nonsense")); err == nil {
		t.Error("no error for nonsense")
	}
}
