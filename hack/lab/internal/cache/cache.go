// Package cache builds what the lab runs (Kubernetes, etcd, CoreDNS and their
// images) from Go modules, once, into a directory outside the source tree.
//
// Each file has a stamp beside it that holds what it was built from; a file
// whose stamp differs is built anew. A build that is interrupted leaves the old
// file or none.
package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/image"
)

// Versions; the modules' go.mod files pin them, TestVersions compares.
const (
	KubernetesVersion = "v1.36.3"
	CoreDNSVersion    = "v1.14.2"

	PauseImage   = "registry.k8s.io/pause:3.10"
	AgnhostImage = "registry.k8s.io/e2e-test-images/agnhost:2.63.0"
	CoreDNSImage = "registry.k8s.io/coredns/coredns:" + CoreDNSVersion
)

// Cache is the directory and the sources it is built from.
type Cache struct {
	Dir    string
	Source string // hack/lab
	// Progress gets a line per thing built.
	Progress io.Writer
}

// Dir returns the cache's place on this machine.
func Dir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory: %w", err)
	}
	return filepath.Join(base, "heliograph-lab"), nil
}

// Bin is the directory of the binaries. It serves as KUBEBUILDER_ASSETS.
func (c Cache) Bin() string { return filepath.Join(c.Dir, "bin") }

// Binary is the path of one of them.
func (c Cache) Binary(name string) string { return filepath.Join(c.Bin(), name) }

// Images are the archives that every node holds.
func (c Cache) Images() []string {
	var out []string
	for _, i := range images {
		out = append(out, c.imagePath(i))
	}
	return out
}

func (c Cache) imagePath(i imageTarget) string {
	return filepath.Join(c.Dir, "images", i.binary+".tar")
}

// target is one binary, built from a package of one of the lab's modules.
type target struct {
	name    string
	module  string // directory of the module below hack/lab
	pkg     string
	ldflags string
	test    bool // a test binary
}

type imageTarget struct {
	binary, ref, dest string
}

var kubeFlags = fmt.Sprintf("-X k8s.io/component-base/version.gitVersion=%[1]s -X k8s.io/client-go/pkg/version.gitVersion=%[1]s"+
	" -X k8s.io/component-base/version.gitMajor=%[2]s -X k8s.io/component-base/version.gitMinor=%[3]s",
	KubernetesVersion, strings.Split(KubernetesVersion[1:], ".")[0], strings.Split(KubernetesVersion, ".")[1])

// targets are in the order in which they are built: the first compiles most of
// what the others share.
var targets = []target{
	{name: "pause", module: ".", pkg: "./cmd/pause"},
	{name: "kube-apiserver", module: "kube", pkg: "k8s.io/kubernetes/cmd/kube-apiserver", ldflags: kubeFlags},
	{name: "kubectl", module: "kube", pkg: "k8s.io/kubernetes/cmd/kubectl", ldflags: kubeFlags},
	{name: "kubelet", module: "kube", pkg: "k8s.io/kubernetes/cmd/kubelet", ldflags: kubeFlags},
	{name: "kube-controller-manager", module: "kube", pkg: "k8s.io/kubernetes/cmd/kube-controller-manager", ldflags: kubeFlags},
	{name: "kube-scheduler", module: "kube", pkg: "k8s.io/kubernetes/cmd/kube-scheduler", ldflags: kubeFlags},
	{name: "kube-proxy", module: "kube", pkg: "k8s.io/kubernetes/cmd/kube-proxy", ldflags: kubeFlags},
	{name: "agnhost", module: "kube", pkg: "k8s.io/kubernetes/test/images/agnhost", ldflags: kubeFlags},
	{name: "etcd", module: "kube", pkg: "go.etcd.io/etcd/server/v3"},
	{name: "coredns", module: "coredns", pkg: "."},
}

// extras are built only when asked for by name.
var extras = []target{
	{name: "e2e.test", module: "kube", pkg: "k8s.io/kubernetes/test/e2e", ldflags: kubeFlags, test: true},
}

var images = []imageTarget{
	{binary: "pause", ref: PauseImage, dest: "/pause"},
	{binary: "agnhost", ref: AgnhostImage, dest: "/agnhost"},
	{binary: "coredns", ref: CoreDNSImage, dest: "/coredns"},
}

// Build makes whatever is missing or old, and the named extras.
func (c Cache) Build(ctx context.Context, extra ...string) error {
	for _, d := range []string{c.Bin(), filepath.Join(c.Dir, "images")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make cache directory: %w", err)
		}
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	wanted, err := withExtras(extra)
	if err != nil {
		return err
	}
	for _, t := range wanted {
		if err := c.binary(ctx, t); err != nil {
			return err
		}
	}
	for _, i := range images {
		if err := c.image(i); err != nil {
			return err
		}
	}
	return nil
}

func withExtras(names []string) ([]target, error) {
	wanted := targets
	for _, name := range names {
		found := false
		for _, t := range extras {
			if t.name == name {
				wanted, found = append(wanted[:len(wanted):len(wanted)], t), true
			}
		}
		if !found {
			return nil, fmt.Errorf("build %s: no such extra binary", name)
		}
	}
	return wanted, nil
}

// lock keeps two builds from doing the same work; it goes with the process.
func (c Cache) lock() (func(), error) {
	f, err := os.OpenFile(filepath.Join(c.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock cache: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		fmt.Fprintln(c.Progress, "another build is running, waiting for it")
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock cache: %w", err)
		}
	}
	return func() { f.Close() }, nil
}

func (c Cache) binary(ctx context.Context, t target) error {
	want, err := c.stamp(t)
	if err != nil {
		return err
	}
	out := c.Binary(t.name)
	return c.fresh(out, want, func(tmp string) error {
		verb := []string{"build"}
		if t.test {
			verb = []string{"test", "-c"}
		}
		cmd := exec.CommandContext(ctx, "go", append(verb, "-buildvcs=false", "-trimpath", "-ldflags", "-s -w "+t.ldflags, "-o", tmp, t.pkg)...)
		cmd.Dir = filepath.Join(c.Source, t.module)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if b, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", t.name, err, b)
		}
		return nil
	})
}

// stamp covers what decides a binary's content: its module's files and flags.
// The Go release does not count; nobody wants seven minutes for a patch of it.
func (c Cache) stamp(t target) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, t.pkg, t.ldflags)
	dir := filepath.Join(c.Source, t.module)
	if t.module == "." {
		dir = filepath.Join(c.Source, t.pkg)
	}
	for _, name := range []string{"go.mod", "go.sum", "main.go"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("read sources of %s: %w", t.name, err)
		}
		fmt.Fprintln(h, name, len(b))
		h.Write(b)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

func (c Cache) image(i imageTarget) error {
	source, err := os.ReadFile(stampPath(c.Binary(i.binary)))
	if err != nil {
		return fmt.Errorf("read stamp of %s: %w", i.binary, err)
	}
	return c.fresh(c.imagePath(i), i.ref+" "+string(source), func(tmp string) error {
		return image.Write(image.Spec{
			Ref: i.ref, Entrypoint: []string{i.dest},
			Files: []image.File{{Source: c.Binary(i.binary), Dest: i.dest, Mode: 0o755}},
		}, tmp)
	})
}

// fresh calls build unless out exists with this stamp.
func (c Cache) fresh(out, stamp string, build func(tmp string) error) error {
	have, err := os.ReadFile(stampPath(out))
	if err == nil && string(have) == stamp {
		if _, err := os.Stat(out); err == nil {
			return nil
		}
	}
	start := time.Now()
	name := filepath.Base(out)
	fmt.Fprintf(c.Progress, "building %s\n", name)
	tmp := out + ".new"
	if err := build(tmp); err != nil {
		return err
	}
	// Without a stamp the file counts as old, whatever happens in between.
	if err := os.Remove(stampPath(out)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace %s: %w", name, err)
	}
	if err := os.Rename(tmp, out); err != nil {
		return fmt.Errorf("replace %s: %w", name, err)
	}
	if err := os.WriteFile(stampPath(out), []byte(stamp), 0o644); err != nil {
		return fmt.Errorf("stamp %s: %w", name, err)
	}
	fmt.Fprintf(c.Progress, "built %s in %s\n", name, time.Since(start).Round(100*time.Millisecond))
	return nil
}

func stampPath(out string) string {
	return filepath.Join(filepath.Dir(out), "."+filepath.Base(out)+".stamp")
}
