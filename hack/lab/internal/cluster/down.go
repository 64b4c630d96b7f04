package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/host"
	"github.com/heliograph-dev/heliograph/hack/lab/internal/pidfile"
)

const downTimeout = 30 * time.Second

// Down removes every trace of the lab but its cache. It looks at what is there,
// not at what should be: an interrupted up or down is no special case.
func (l *Lab) Down(ctx context.Context) error {
	_, err := os.Stat(StateDir)
	if errors.Is(err, fs.ErrNotExist) && len(cgroupTrees()) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	// With a holder goes all that is in its host: processes, mounts, links.
	holders, err := pidfile.Find(filepath.Join(StateDir, "hosts"), host.PidFile)
	if err != nil {
		return err
	}
	var fns []func() error
	for _, p := range holders {
		fns = append(fns, func() error { return p.Kill(ctx) })
	}
	if err := parallel(fns...); err != nil {
		return fmt.Errorf("end the hosts: %w", err)
	}
	if err := removeCgroups(ctx); err != nil {
		return err
	}
	if err := removeMountpoints(); err != nil {
		return err
	}
	if err := unmountBelow(StateDir); err != nil {
		return err
	}
	if err := os.RemoveAll(StateDir); err != nil {
		return fmt.Errorf("remove the lab's state: %w", err)
	}
	l.out.step("the lab is down: %d hosts ended", len(holders))
	return nil
}

// unmountBelow unmounts what somebody may have mounted in the state directory
// from outside, so that removing it does not reach through.
func unmountBelow(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	for _, point := range slices.Backward(mountsBelow(string(b), dir)) {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}

// mountsBelow returns the mount points below dir from a mountinfo file.
func mountsBelow(mountinfo, dir string) []string {
	var out []string
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		if len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			out = append(out, f[4])
		}
	}
	return out
}

func isNotEmpty(err error) bool { return errors.Is(err, unix.ENOTEMPTY) }
