// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package apitest starts a real API server and etcd for a test, with the CRDs of config/crd.
package apitest

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/heliograph-dev/heliograph/internal/nettest"
)

const assetsEnv = "KUBEBUILDER_ASSETS"

// labCaches are where the lab keeps the Kubernetes that it has built, below the user's cache.
var labCaches = []string{"heliograph-lab/bin", "heliograph-lab/*/bin"}

// Start starts etcd and an API server, which end with the test, and returns how an administrator
// connects. Both take a few seconds to start, so tests share one as subtests.
// The binaries come from $KUBEBUILDER_ASSETS, or from the lab's cache. Without them the test is
// skipped, which fails under make test.
func Start(t *testing.T) *rest.Config {
	t.Helper()
	return StartEnv(t).Config
}

// StartEnv is Start for tests that add users, or read the server's log.
func StartEnv(t *testing.T) *envtest.Environment {
	t.Helper()
	assets := findAssets()
	if assets == "" {
		nettest.Skip(t, "no etcd and kube-apiserver: set "+assetsEnv+", or build the lab (make lab)")
	}
	env := &envtest.Environment{
		BinaryAssetsDirectory: assets,
		CRDDirectoryPaths:     []string{filepath.Join(Root(), "config", "crd", "bases")},
		ErrorIfCRDPathMissing: true,
	}
	env.ControlPlane.Etcd = newEtcd()
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Errorf("stop the API server: %v", err)
		}
	})
	if _, err := env.Start(); err != nil {
		t.Fatalf("start the API server of %s: %v", assets, err)
	}
	return env
}

// newEtcd does not sync its files to disk: no test needs its data to survive a power cut.
func newEtcd() *envtest.Etcd {
	e := &envtest.Etcd{}
	e.Configure().Set("unsafe-no-fsync", "true")
	return e
}

func findAssets() string {
	if dir := os.Getenv(assetsEnv); dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	for _, pattern := range labCaches {
		dirs, err := filepath.Glob(filepath.Join(cache, pattern))
		if err != nil {
			continue
		}
		for _, dir := range dirs {
			if executable(filepath.Join(dir, "etcd")) && executable(filepath.Join(dir, "kube-apiserver")) {
				return dir
			}
		}
	}
	return ""
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// Root is the root of the source tree.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}
