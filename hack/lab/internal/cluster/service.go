package cluster

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/host"
	"github.com/heliograph-dev/heliograph/hack/lab/internal/topology"
)

// service is a long-running program of a host.
type service struct {
	host  host.Host
	name  string
	argv  []string
	files []*os.File // become descriptors 3 and up
	// ready tells whether it serves; nil if running is enough.
	ready func(context.Context) error
}

// readyTimeout is for a busy machine; everything is ready in seconds otherwise.
const readyTimeout = 2 * time.Minute

// ensure starts the service unless it runs, and waits until it is ready.
func (l *Lab) ensure(ctx context.Context, s service) error {
	if !s.host.Service(s.name).Alive() {
		if err := s.host.Spawn(s.name, s.argv, s.files...); err != nil {
			return err
		}
	}
	if s.ready == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	return l.waitFor(ctx, s.name+" on "+s.host.Name, func() error {
		err := s.ready(ctx)
		if err != nil && !s.host.Service(s.name).Alive() {
			stop(fmt.Errorf("it ended; the last of %s:\n%s", s.host.LogPath(s.name), s.host.LogTail(s.name, 5)))
		}
		return err
	})
}

func (l *Lab) ensureAll(ctx context.Context, services []service) error {
	for _, s := range services {
		if err := l.ensure(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// serviceNames lists what must run on a host, for status.
func serviceNames(h topology.Host) []string {
	switch h.Kind {
	case topology.Node:
		return []string{"containerd", "kubelet", "kube-proxy"}
	case topology.Control:
		return []string{"etcd", "kube-apiserver", "forwarder", "kube-controller-manager", "kube-scheduler"}
	default:
		return routerDaemons
	}
}

// listens tells whether somebody accepts on a unix socket. Such a socket is
// reached by its path from any network namespace.
func listens(path string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

func readFile(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}
