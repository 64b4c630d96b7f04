package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/host"
)

// cgroupName is the parent of all cgroups of the lab's containers, in every
// hierarchy.
const cgroupName = "heliograph-lab"

// makeCgroup makes a node's parent of pods in every hierarchy, where kubelet
// looks for it from its start. Runtimes would only make it with the first pod.
func makeCgroup(node string) error {
	for _, root := range cgroupRoots() {
		if err := os.MkdirAll(filepath.Join(root, cgroupName, node), 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	return nil
}

// cgroupRoots returns the one hierarchy of version 2, or all of version 1.
func cgroupRoots() []string {
	const file = "cgroup.procs"
	if _, err := os.Stat("/sys/fs/cgroup/" + file); err == nil {
		return []string{"/sys/fs/cgroup"}
	}
	files, _ := filepath.Glob("/sys/fs/cgroup/*/" + file)
	var out []string
	for _, f := range files {
		out = append(out, filepath.Dir(f))
	}
	return out
}

func cgroupTrees() []string {
	var out []string
	for _, root := range cgroupRoots() {
		tree := filepath.Join(root, cgroupName)
		if _, err := os.Stat(tree); err == nil {
			out = append(out, tree)
		}
	}
	return out
}

// removeCgroups removes the lab's cgroups. Their processes are gone, but the
// kernel may need a moment to let go of them.
func removeCgroups(ctx context.Context) error {
	for _, tree := range cgroupTrees() {
		err := host.WaitFor(ctx, "cgroups to empty", func() error { return removeCgroupTree(tree) })
		if err != nil {
			return err
		}
	}
	return nil
}

func removeCgroupTree(tree string) error {
	var dirs []string
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("list cgroups: %w", err)
	}
	for _, d := range slices.Backward(dirs) {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}
