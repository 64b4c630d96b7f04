package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/topology"
)

// ImageRepository names the image in bin/heliograph.tar, less its tag.
const ImageRepository = "ghcr.io/heliograph-dev/heliograph"

const deployTimeout = 5 * time.Minute

func (l *Lab) imagePath(o Options) string {
	if o.Image != "" {
		return o.Image
	}
	return filepath.Join(l.Repo, "bin", "heliograph.tar")
}

// checkHeliograph finds out early that there is nothing to deploy.
func (l *Lab) checkHeliograph(o Options) error {
	if _, err := os.Stat(l.imagePath(o)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("heliograph's image %s is missing: run make image (or use --cni=none)", l.imagePath(o))
	}
	if _, err := os.Stat(l.config()); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("heliograph's manifests %s are missing", l.config())
	}
	return nil
}

func (l *Lab) config() string { return filepath.Join(l.Repo, "config", "default") }

// deployHeliograph installs heliograph, or brings it to the present image and
// manifests, and waits until it serves.
func (l *Lab) deployHeliograph(ctx context.Context, o Options) error {
	ctx, cancel := context.WithTimeout(ctx, deployTimeout)
	defer cancel()
	image := l.imagePath(o)
	digest, err := fileDigest(image)
	if err != nil {
		return err
	}
	if err := l.Load(ctx, image); err != nil {
		return err
	}
	if err := l.applyHeliograph(ctx); err != nil {
		return err
	}
	l.out.step("heliograph: manifests applied")
	// The tag stays the same, so nothing but a restart brings a new image in.
	if old := l.state.Heliograph; old != "" && old != digest {
		if err := l.restartWorkloads(ctx); err != nil {
			return err
		}
		l.out.step("heliograph: restarted with the new image")
	}
	l.state.Heliograph = digest
	if err := l.saveState(); err != nil {
		return err
	}
	return l.waitForHeliograph(ctx)
}

func (l *Lab) applyHeliograph(ctx context.Context) error {
	// Server-side: a large CRD does not fit into the annotation of the other way.
	if _, err := l.kubectl(ctx, "", "apply", "--server-side", "--force-conflicts", "-k", l.config()); err != nil {
		return err
	}
	if _, err := l.kubectl(ctx, "", "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"); err != nil {
		return err
	}
	// An established CRD may still be a moment away from being served.
	return l.waitFor(ctx, "the lab's pools and peers to be accepted", func() error {
		_, err := l.kubectl(ctx, "", "apply", "-k", l.manifests("heliograph"))
		return err
	})
}

func (l *Lab) waitForHeliograph(ctx context.Context) error {
	err := l.waitFor(ctx, "heliograph", func() error {
		ws, err := l.workloads(ctx)
		if err != nil {
			return err
		}
		ours := 0
		for _, w := range ws {
			if !w.isOurs() {
				continue
			}
			ours++
			if err := w.rolledOut(); err != nil {
				return fmt.Errorf("%s: %w", w, err)
			}
		}
		if ours == 0 {
			return fmt.Errorf("no workload runs an image %s", ImageRepository)
		}
		return nil
	})
	if err != nil {
		return l.explain(err)
	}
	l.out.step("heliograph: rolled out")
	if err := l.waitForNodes(ctx, "Ready", node.ready); err != nil {
		return l.explain(err)
	}
	l.out.step("nodes Ready: %s", strings.Join(hostNames(l.plan.Of(topology.Node)), " "))
	err = l.waitFor(ctx, "CoreDNS", func() error {
		var w workload
		if err := l.get(ctx, "/apis/apps/v1/namespaces/kube-system/deployments/coredns", &w); err != nil {
			return err
		}
		w.kind = deployments
		return w.rolledOut()
	})
	if err != nil {
		return l.explain(err)
	}
	l.out.step("CoreDNS: ready")
	return nil
}

// explain adds what the cluster says about pods that do not run.
func (l *Lab) explain(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	pods, perr := l.kubectl(ctx, "", "get", "pods", "-A", "-o", "wide")
	events, eerr := l.kubectl(ctx, "", "get", "events", "-A", "--field-selector=type=Warning", "--sort-by=.lastTimestamp")
	if lines := strings.Split(strings.TrimSpace(events), "\n"); len(lines) > 15 {
		events = strings.Join(lines[len(lines)-15:], "\n")
	}
	return errors.Join(fmt.Errorf("%w\n%s\n%s", err, pods, events), perr, eerr)
}

const (
	deployments = "deployments"
	daemonsets  = "daemonsets"
)

// workload is a Deployment or a DaemonSet.
type workload struct {
	kind     string
	Metadata struct {
		Name, Namespace string
		Generation      int64
	}
	Spec struct {
		Replicas *int
		Template struct {
			Spec struct {
				Containers []struct{ Image string }
			}
		}
	}
	Status struct {
		ObservedGeneration                             int64
		Replicas, UpdatedReplicas, AvailableReplicas   int
		DesiredNumberScheduled, UpdatedNumberScheduled int
		NumberAvailable                                int
	}
}

func (w workload) String() string {
	return w.Metadata.Namespace + "/" + w.Metadata.Name
}

func (w workload) isOurs() bool {
	for _, c := range w.Spec.Template.Spec.Containers {
		if strings.HasPrefix(c.Image, ImageRepository+":") {
			return true
		}
	}
	return false
}

// progress returns how many pods are wanted, of the present generation, and
// available.
func (w workload) progress() (want, updated, available int) {
	if w.kind == daemonsets {
		return w.Status.DesiredNumberScheduled, w.Status.UpdatedNumberScheduled, w.Status.NumberAvailable
	}
	want = 1
	if w.Spec.Replicas != nil {
		want = *w.Spec.Replicas
	}
	return want, w.Status.UpdatedReplicas, w.Status.AvailableReplicas
}

func (w workload) rolledOut() error {
	want, updated, available := w.progress()
	stale := w.Status.ObservedGeneration < w.Metadata.Generation
	old := w.kind == deployments && w.Status.Replicas > updated
	empty := w.kind == daemonsets && want == 0
	if stale || old || empty || updated < want || available < want {
		return fmt.Errorf("%s", w.counts())
	}
	return nil
}

func (w workload) counts() string {
	want, updated, available := w.progress()
	return fmt.Sprintf("%d of %d pods up to date, %d available", updated, want, available)
}

// workloads returns all Deployments and DaemonSets of the cluster.
func (l *Lab) workloads(ctx context.Context) ([]workload, error) {
	var out []workload
	for _, kind := range []string{deployments, daemonsets} {
		var list struct{ Items []workload }
		if err := l.get(ctx, "/apis/apps/v1/"+kind, &list); err != nil {
			return nil, err
		}
		for _, w := range list.Items {
			w.kind = kind
			out = append(out, w)
		}
	}
	return out, nil
}

func (l *Lab) restartWorkloads(ctx context.Context) error {
	ws, err := l.workloads(ctx)
	if err != nil {
		return err
	}
	for _, w := range ws {
		if !w.isOurs() {
			continue
		}
		_, err := l.kubectl(ctx, "", "rollout", "restart", "-n", w.Metadata.Namespace, w.kind+"/"+w.Metadata.Name)
		if err != nil {
			return err
		}
	}
	return nil
}

func fileDigest(path string) (string, error) {
	b, err := readFile(path)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sha256.Sum256(b)), nil
}
