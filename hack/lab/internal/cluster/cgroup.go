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

func cgroupTrees() []string {
	v1, _ := filepath.Glob("/sys/fs/cgroup/*/" + cgroupName)
	v2, _ := filepath.Glob("/sys/fs/cgroup/" + cgroupName)
	return append(v1, v2...)
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
