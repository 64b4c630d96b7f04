package host

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const readyMessage = "ready\n"

// Hold is the holder's whole life: it reads its spec from in, sets the host up,
// reports on out, and then reaps the host's orphans until it is killed. If its
// parent dies before the spec is written, in ends and so does the holder.
func Hold(in io.ReadCloser, out io.WriteCloser) error {
	spec, err := readSpec(in)
	if err != nil {
		return err
	}
	if err := spec.setUp(); err != nil {
		return err
	}
	if _, err := io.WriteString(out, readyMessage); err != nil {
		return fmt.Errorf("report readiness: %w", err)
	}
	in.Close()
	out.Close()
	return reap()
}

func (s Spec) setUp() error {
	if err := unix.Sethostname([]byte(s.Name)); err != nil {
		return fmt.Errorf("set host name %s: %w", s.Name, err)
	}
	// Nothing mounted here may show outside.
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE); err != nil {
		return err
	}
	if err := mountSys(); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC); err != nil {
		return err
	}
	for _, p := range s.Private {
		if err := mount(s.Source(p), p, "", unix.MS_BIND); err != nil {
			return err
		}
	}
	// Containers of this host see each other's mounts where they ask for it.
	return mount("", "/", "", unix.MS_REC|unix.MS_SHARED)
}

// mountSys makes /sys show the host's own network devices. A fresh sysfs has no
// cgroups, which containerd and kubelet need: they are carried over.
func mountSys() error {
	const cgroups = "/sys/fs/cgroup"
	tmp, err := os.MkdirTemp("", "heliograph-lab-cgroup-")
	if err != nil {
		return fmt.Errorf("make a place for the cgroup mounts: %w", err)
	}
	defer func() { _ = os.Remove(tmp) }()
	if err := mount(cgroups, tmp, "", unix.MS_BIND|unix.MS_REC); err != nil {
		return err
	}
	if err := mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC); err != nil {
		return err
	}
	return mount(tmp, cgroups, "", unix.MS_MOVE)
}

func mount(source, target, fstype string, flags uintptr) error {
	if err := unix.Mount(source, target, fstype, flags, ""); err != nil {
		return fmt.Errorf("mount %q on %s: %w", source, target, err)
	}
	return nil
}

// reap waits for the children that the host's processes leave behind. There are
// none at first, and then wait returns at once: SIGCHLD says when to look again.
func reap() error {
	signals := childSignals()
	for {
		_, err := unix.Wait4(-1, nil, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR), err == nil:
		case errors.Is(err, unix.ECHILD):
			<-signals
		default:
			return fmt.Errorf("wait for children: %w", err)
		}
	}
}
