package host

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/pidfile"
)

// PidFile is the name of the holder's file in the host's directory.
const PidFile = "holder.pid"

// Host is one host of the lab as seen from outside.
type Host struct {
	Name string
	Dir  string // state: pid files, logs, private directories
}

// Namespaces of a host that a process can enter.
const (
	Net   = "net"
	Mount = "mnt"
	PID   = "pid"
	UTS   = "uts"
)

// All is what a process of the host itself enters. The mount namespace comes
// last: it takes away the paths by which the others are found.
var All = []string{Net, UTS, PID, Mount}

// Start makes the host's namespaces. Of the private paths it has what is there
// for itself: a directory is empty at first, a file is a copy.
func (h Host) Start(ctx context.Context, private []string) error {
	spec := Spec{Name: h.Name, Root: filepath.Join(h.Dir, "root"), Private: private}
	for _, p := range private {
		if err := makePrivate(p, spec.Source(p)); err != nil {
			return fmt.Errorf("make %s of host %s: %w", p, h.Name, err)
		}
	}
	log, err := h.logFile("holder")
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe", HolderArg, h.Name)
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS,
		Setsid:     true,
	}
	return h.handOver(ctx, cmd, spec)
}

func makePrivate(path, source string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.IsDir() {
		return os.MkdirAll(source, 0o755)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(source), 0o755); err != nil {
		return err
	}
	return os.WriteFile(source, content, st.Mode().Perm())
}

// handOver starts the holder and gives it its spec only after its pid is on
// disk: whenever the lab is killed, the holder is known or ends by itself.
func (h Host) handOver(ctx context.Context, cmd *exec.Cmd, spec Spec) error {
	in, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("start holder of %s: %w", h.Name, err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start holder of %s: %w", h.Name, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start holder of %s: %w", h.Name, err)
	}
	if err := h.savePid("holder", cmd.Process.Pid); err != nil {
		in.Close()
		return err
	}
	if err := json.NewEncoder(in).Encode(spec); err != nil {
		return fmt.Errorf("send spec to holder of %s: %w", h.Name, err)
	}
	in.Close()
	ready := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		ready <- line
		_ = cmd.Wait() // reaps; the line says whether it is well
	}()
	select {
	case line := <-ready:
		if line != readyMessage {
			return fmt.Errorf("start holder of %s: %s", h.Name, h.LogTail("holder", 3))
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for holder of %s: %w", h.Name, ctx.Err())
	}
}

// Alive tells whether the host exists.
func (h Host) Alive() bool { return h.holder().Alive() }

// Pid is the holder's pid outside.
func (h Host) Pid() int { return h.holder().PID }

func (h Host) holder() pidfile.Process {
	p, _ := pidfile.Read(filepath.Join(h.Dir, PidFile))
	return p
}

// Run runs a command in the host to its end and returns its output; what it
// wrote to stderr becomes part of the error.
func (h Host) Run(ctx context.Context, stdin string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = h.Env()
	cmd.Dir = "/"
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := h.Do(cmd, All...)
	if err != nil {
		err = fmt.Errorf("run %s on %s: %w: %s", strings.Join(argv, " "), h.Name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), err
}

// Do runs cmd inside the given namespaces of the host and waits for it. The
// command dies with the caller.
func (h Host) Do(cmd *exec.Cmd, namespaces ...string) error {
	// Go's own Pdeathsig compares parents' pids, which differ between pid
	// namespaces, and would end the command at once.
	cmd.Args = append([]string{"setpriv", "--pdeathsig", "KILL", "--"}, cmd.Args...)
	cmd.Path, cmd.Err = "/usr/bin/setpriv", nil
	// The parent that must not die is the thread, so it must last as long as the child.
	return h.inside(namespaces, cmd.Run)
}

// spawnScript starts a service and prints its pid inside. The shell between makes
// it the holder's child, which reaps it; otherwise that were up to whatever is
// init outside, and a container's init often does not.
const spawnScript = `log=$1; shift; setsid "$@" </dev/null >>"$log" 2>&1 & echo $!`

// Spawn starts a long-running service in all of the host's namespaces and saves
// its pid under name. Its output goes to the service's log. The files become its
// descriptors 3 and up.
func (h Host) Spawn(name string, argv []string, files ...*os.File) error {
	cmd := exec.Command("/bin/sh", append([]string{"-c", spawnScript, name, h.LogPath(name)}, argv...)...)
	cmd.Env, cmd.Dir, cmd.ExtraFiles = h.Env(), "/", files
	var out []byte
	err := h.inside(All, func() (err error) {
		out, err = cmd.Output()
		return err
	})
	if err != nil {
		return fmt.Errorf("start %s on %s: %w", name, h.Name, err)
	}
	pid, err := outerPid(h.Pid(), strings.TrimSpace(string(out)))
	if err != nil {
		return fmt.Errorf("start %s on %s: %w: %s", name, h.Name, err, h.LogTail(name, 3))
	}
	return h.savePid(name, pid)
}

// outerPid finds the process that has the pid inner in the pid namespace of
// another process.
func outerPid(holder int, inner string) (int, error) {
	want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", holder))
	if err != nil {
		return 0, fmt.Errorf("look at pid namespace: %w", err)
	}
	statuses, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return 0, fmt.Errorf("list processes: %w", err)
	}
	for _, path := range statuses {
		dir := filepath.Dir(path)
		if ns, err := os.Readlink(filepath.Join(dir, "ns", "pid")); err != nil || ns != want {
			continue
		}
		b, err := os.ReadFile(path)
		if err == nil && innermostPid(string(b)) == inner {
			return strconv.Atoi(filepath.Base(dir))
		}
	}
	return 0, fmt.Errorf("find process %s: it ended", inner)
}

// innermostPid reads the last field of a process status's line NSpid.
func innermostPid(status string) string {
	for line := range strings.Lines(status) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "NSpid:" {
			return f[len(f)-1]
		}
	}
	return ""
}

// Service returns the process saved under name.
func (h Host) Service(name string) pidfile.Process {
	p, _ := pidfile.Read(filepath.Join(h.Dir, name+".pid"))
	return p
}

// Env is the environment of the host's processes: nothing of the caller's, whose
// proxies and credentials do not belong here.
func (h Host) Env() []string {
	return []string{"HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
}

// inside calls f on a thread that has entered the namespaces; what f starts is
// born there. The thread is not given back: it ends with the goroutine.
func (h Host) inside(namespaces []string, f func() error) error {
	p := h.holder()
	if !p.Alive() {
		return fmt.Errorf("enter host %s: it does not run", h.Name)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := enter(p.PID, namespaces); err != nil {
			done <- fmt.Errorf("enter host %s: %w", h.Name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

func enter(pid int, namespaces []string) error {
	// A thread that shares its root and working directory with others may not
	// change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	for _, ns := range namespaces {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err != nil {
			return fmt.Errorf("open namespace: %w", err)
		}
		err = unix.Setns(int(f.Fd()), 0)
		f.Close()
		if err != nil {
			return fmt.Errorf("enter namespace %s: %w", ns, err)
		}
	}
	return nil
}

func (h Host) savePid(name string, pid int) error {
	p, err := pidfile.Of(pid)
	if err != nil {
		return fmt.Errorf("%s on %s ended at once: %s: %w", name, h.Name, h.LogTail(name, 3), err)
	}
	return pidfile.Write(filepath.Join(h.Dir, name+".pid"), p)
}

// LogPath is where a service's output goes.
func (h Host) LogPath(name string) string { return filepath.Join(h.Dir, name+".log") }

func (h Host) logFile(name string) (*os.File, error) {
	f, err := os.OpenFile(h.LogPath(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log of %s on %s: %w", name, h.Name, err)
	}
	return f, nil
}

// LogTail returns the last lines of a service's log.
func (h Host) LogTail(name string, lines int) string {
	b, err := fs.ReadFile(os.DirFS(h.Dir), name+".log")
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, "\n")
}

func childSignals() <-chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGCHLD)
	return c
}

// WaitFor polls a condition until it holds or ctx ends; the error then tells
// what was missing last.
func WaitFor(ctx context.Context, what string, cond func() error) error {
	const interval = 100 * time.Millisecond
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %w", what, context.Cause(ctx), err)
		}
	}
}
