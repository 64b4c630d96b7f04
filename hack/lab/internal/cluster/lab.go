// Package cluster brings the lab up and down: a Kubernetes cluster whose nodes
// are namespaces of this machine, on a leaf-spine fabric of FRR routers.
//
// All state is below StateDir. Whatever runs, runs inside a host (package host),
// so ending the hosts' holders ends the lab.
package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/cache"
	"github.com/heliograph-dev/heliograph/hack/lab/internal/host"
	"github.com/heliograph-dev/heliograph/hack/lab/internal/topology"
)

// StateDir holds all of the lab's state; there is one lab on a machine.
const StateDir = "/var/lib/heliograph-lab"

// What can serve the pod network.
const (
	CNIHeliograph = "heliograph"
	CNINone       = "none"
)

// Options are what a user chooses at up.
type Options struct {
	Nodes int
	CNI   string
	Image string // heliograph's image; default <repo>/bin/heliograph.tar
}

// Lab is the lab of this machine, running or not.
type Lab struct {
	Repo  string
	Cache cache.Cache
	out   *progress
	state state
	plan  topology.Plan
}

// state is what a later command must know of the running lab.
type state struct {
	Nodes   int    `json:"nodes"`
	CNI     string `json:"cni"`
	APIPort int    `json:"apiPort"`
	Token   string `json:"token"`
	// Heliograph is the digest of the image that was deployed last.
	Heliograph string `json:"heliograph,omitempty"`
}

// ErrDown is returned by commands that need a running lab.
var ErrDown = errors.New("the lab is down; bin/lab up starts it")

// Open reads the state of the lab, if there is one.
func Open(repo string, out io.Writer) (*Lab, error) {
	dir, err := cache.Dir()
	if err != nil {
		return nil, err
	}
	l := &Lab{Repo: repo, out: &progress{w: out, start: time.Now()}}
	l.Cache = cache.Cache{Dir: dir, Source: filepath.Join(repo, "hack", "lab"), Progress: l.out}
	b, err := os.ReadFile(statePath("lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the lab's state: %w", err)
	}
	// A state that cannot be read is that of no lab; up and down clear it away.
	if json.Unmarshal(b, &l.state) == nil {
		l.plan, _ = topology.New(l.state.Nodes)
	}
	return l, nil
}

// Running returns ErrDown unless the lab was brought up and not taken down.
func (l *Lab) Running() error {
	if len(l.plan.Hosts) == 0 {
		return ErrDown
	}
	return nil
}

func (l *Lab) saveState() error {
	b, err := json.MarshalIndent(l.state, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the lab's state: %w", err)
	}
	return writeFile(statePath("lab.json"), b, 0o600)
}

func statePath(elem ...string) string {
	return filepath.Join(append([]string{StateDir}, elem...)...)
}

func hostOf(h topology.Host) host.Host {
	return host.Host{Name: h.Name, Dir: statePath("hosts", h.Name)}
}

// Host returns a running host by name.
func (l *Lab) Host(name string) (host.Host, error) {
	if err := l.Running(); err != nil {
		return host.Host{}, err
	}
	h, ok := l.plan.Host(name)
	if !ok {
		var names []string
		for _, h := range l.plan.Hosts {
			names = append(names, h.Name)
		}
		return host.Host{}, fmt.Errorf("no host %q; there are %v", name, names)
	}
	return hostOf(h), nil
}

// Lock makes sure that one command at a time changes the lab. It is a name in
// the abstract socket space: no file, and gone with the process.
func (l *Lab) Lock(ctx context.Context) (func(), error) {
	var held net.Listener
	said := false
	err := host.WaitFor(ctx, "the other lab command", func() error {
		var err error
		held, err = net.Listen("unix", "@heliograph-lab")
		if err != nil && !said {
			said = true
			l.out.step("another lab command is at work, waiting for it")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return func() { _ = held.Close() }, nil
}

// progress prints one line per step with the time since the start.
type progress struct {
	mu    sync.Mutex
	w     io.Writer
	start time.Time
}

func (p *progress) step(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, "%6.1fs  %s\n", time.Since(p.start).Seconds(), fmt.Sprintf(format, args...))
}

// Write lets package cache report in the same form; it writes whole lines.
func (p *progress) Write(b []byte) (int, error) {
	p.step("%s", trimNewline(string(b)))
	return len(b), nil
}

// patience is how long a wait goes on before the user hears what it is for.
const patience = 10 * time.Second

// waitFor waits for a condition, and says now and then what is missing.
func (l *Lab) waitFor(ctx context.Context, what string, cond func() error) error {
	said := time.Now()
	return host.WaitFor(ctx, what, func() error {
		err := cond()
		if err != nil && time.Since(said) > patience {
			said = time.Now()
			l.out.step("waiting for %s: %v", what, err)
		}
		return err
	})
}

func trimNewline(s string) string {
	if n := len(s); n > 0 && s[n-1] == '\n' {
		return s[:n-1]
	}
	return s
}

// writeFile writes a file whole or not at all.
func writeFile(path string, content []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, content, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// parallel runs all functions at once and joins their errors.
func parallel(fns ...func() error) error {
	errs := make([]error, len(fns))
	var wg sync.WaitGroup
	for i, f := range fns {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// each runs f for all hosts at once.
func each(hosts []topology.Host, f func(topology.Host) error) error {
	var fns []func() error
	for _, h := range hosts {
		fns = append(fns, func() error { return f(h) })
	}
	return parallel(fns...)
}

func randomToken() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
