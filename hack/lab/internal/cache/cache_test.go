package cache

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestVersions(t *testing.T) {
	for file, want := range map[string]string{
		"../../kube/go.mod":                    "k8s.io/kubernetes " + KubernetesVersion,
		"../../coredns/go.mod":                 "github.com/coredns/coredns " + CoreDNSVersion,
		"../../manifests/coredns/coredns.yaml": CoreDNSImage,
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), want) {
			t.Errorf("%s does not hold %q", file, want)
		}
	}
}

func TestFreshBuildsOnlyWhatIsOld(t *testing.T) {
	c := Cache{Dir: t.TempDir(), Progress: io.Discard}
	out := filepath.Join(c.Dir, "x")
	built := 0
	build := func(tmp string) error {
		built++
		return os.WriteFile(tmp, nil, 0o755)
	}
	steps := []struct {
		name, stamp string
		before      func() error
		want        int
	}{
		{"missing", "1", func() error { return nil }, 1},
		{"there", "1", func() error { return nil }, 1},
		{"other stamp", "2", func() error { return nil }, 2},
		{"file removed", "2", func() error { return os.Remove(out) }, 3},
		{"stamp removed", "2", func() error { return os.Remove(stampPath(out)) }, 4},
	}
	for _, s := range steps {
		if err := s.before(); err != nil {
			t.Fatal(err)
		}
		if err := c.fresh(out, s.stamp, build); err != nil {
			t.Fatal(err)
		}
		if built != s.want {
			t.Errorf("%s: %d builds, want %d", s.name, built, s.want)
		}
	}
}

func TestFailedBuildKeepsTheOldFile(t *testing.T) {
	c := Cache{Dir: t.TempDir(), Progress: io.Discard}
	out := filepath.Join(c.Dir, "x")
	if err := c.fresh(out, "1", func(tmp string) error { return os.WriteFile(tmp, []byte("good"), 0o755) }); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	if err := c.fresh(out, "2", func(string) error { return broken }); !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
	if b, _ := os.ReadFile(out); string(b) != "good" {
		t.Errorf("file holds %q", b)
	}
}
