// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
)

func sample() snapshot.Objects {
	return snapshot.Objects{
		Nodes:   []corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "a"}}},
		Blocks:  []v1alpha1.IPBlock{{ObjectMeta: metav1.ObjectMeta{Name: "a0"}, Spec: v1alpha1.IPBlockSpec{CIDR: "10.244.0.0/26", Node: "a"}}},
		Secrets: map[string]map[string][]byte{"tor": {"password": []byte("s3cret")}},
	}
}

func TestStoreRoundTrip(t *testing.T) {
	s := store{path: filepath.Join(t.TempDir(), "snapshot.json")}
	if _, _, err := s.load(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	want := sample()
	if err := s.save(want); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(s.path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, mode %v; it holds passwords", err, info.Mode())
	}
	got, saved, err := (&store{path: s.path}).load() // another process
	if diff := cmp.Diff(want, got); err != nil || diff != "" || time.Since(saved) > time.Minute {
		t.Errorf("%v, saved %s (-want +got):\n%s", err, saved, diff)
	}
	if err := os.Remove(s.path); err != nil {
		t.Fatal(err)
	}
	if err := s.save(want); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.path); !errors.Is(err, os.ErrNotExist) {
		t.Error("what had not changed was written")
	}
	want.Nodes[0].Name = "b"
	if err := s.save(want); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(s.path + "?*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestStoreRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot.json")
	if err := (&store{path: path}).save(sample()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ content, want string }{
		"torn":          {string(whole[:len(whole)/2]), "unexpected end of JSON input"},
		"empty":         {"", "unexpected end of JSON input"},
		"zeros":         {strings.Repeat("\x00", 100), "invalid character"},
		"other version": {strings.Replace(string(whole), `"version":1`, `"version":2`, 1), "version 2, expected 1"},
		"other shape":   {`{"version":1,"objects":{"nodes":"none"}}`, "cannot unmarshal"},
		"no objects":    {`{"version":1}`, "unexpected end of JSON input"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			s := store{path: path}
			if o, _, err := s.load(); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, %v, want %s", o, err, tt.want)
			}
			if err := s.save(sample()); err != nil {
				t.Errorf("the next save: %v", err)
			}
			if _, _, err := s.load(); err != nil {
				t.Errorf("after the next save: %v", err)
			}
		})
	}
}

// A file that cannot be written leaves the old one as it is, and is tried again.
func TestStoreFailedSave(t *testing.T) {
	dir := t.TempDir()
	s := store{path: filepath.Join(dir, "missing", "snapshot.json")}
	if err := s.save(sample()); err == nil || !strings.Contains(err.Error(), "save snapshot "+s.path) {
		t.Fatalf("got %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "missing"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.save(sample()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.load(); err != nil {
		t.Error(err)
	}
}

func TestMatters(t *testing.T) {
	node := func(change func(*corev1.Node)) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"rack": "1"}}}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.11.1"}}
		change(n)
		return n
	}
	pool := func(generation int64, uid string) *v1alpha1.IPPool {
		return &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Generation: generation, UID: types.UID(uid)}}
	}
	secret := func(data string) *corev1.Secret {
		return &corev1.Secret{Data: map[string][]byte{"password": []byte(data)}}
	}
	same := func(*corev1.Node) {}
	for _, tt := range []struct {
		name          string
		before, after any
		want          bool
	}{
		{"a heartbeat", node(same), node(func(n *corev1.Node) { n.ResourceVersion = "2"; n.Annotations = map[string]string{"seen": "now"} }), false},
		{"a label", node(same), node(func(n *corev1.Node) { n.Labels["rack"] = "2" }), true},
		{"an address", node(same), node(func(n *corev1.Node) { n.Status.Addresses[0].Address = "192.168.11.9" }), true},
		{"a status", pool(1, "x"), pool(1, "x"), false},
		{"a spec", pool(1, "x"), pool(2, "x"), true},
		{"made anew under the same name", pool(1, "x"), pool(1, "y"), true},
		{"the same password", secret("a"), secret("a"), false},
		{"another password", secret("a"), secret("b"), true},
		{"something strange", "before", "after", true},
	} {
		if got := matters(tt.before, tt.after); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}
