// SPDX-License-Identifier: Apache-2.0

package install_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/cni/install"
)

const want = `{
  "cniVersion": "1.0.0",
  "cniVersions": [
    "1.0.0",
    "1.1.0"
  ],
  "name": "heliograph",
  "plugins": [
    {
      "type": "heliograph"
    },
    {
      "type": "heliograph-portmap",
      "capabilities": {
        "portMappings": true
      },
      "snat": true
    }
  ]
}
`

func setup(t *testing.T) install.Options {
	t.Helper()
	dir := t.TempDir()
	o := install.Options{
		BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"),
		Plugin: filepath.Join(dir, "heliograph-cni"), PortMap: filepath.Join(dir, "portmap"),
	}
	write(t, o.Plugin, "plugin 1")
	write(t, o.PortMap, "portmap 1")
	return o
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// tree is every file below the two directories, with its content.
func tree(t *testing.T, o install.Options) map[string]string {
	t.Helper()
	got := map[string]string{}
	for _, dir := range []string{o.BinDir, o.ConfDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			got[e.Name()] = string(b)
		}
	}
	return got
}

func TestInstall(t *testing.T) {
	o := setup(t)
	first, err := install.Install(o)
	if err != nil || len(first.Written) != 3 || first.Written[2] != filepath.Join(o.ConfDir, install.ConfFile) || first.Warnings != nil {
		t.Errorf("first: %+v, %v; the configuration must be written last", first, err)
	}
	all := map[string]string{"heliograph": "plugin 1", "heliograph-portmap": "portmap 1", "10-heliograph.conflist": want}
	if diff := cmp.Diff(all, tree(t, o)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if info, err := os.Stat(filepath.Join(o.BinDir, "heliograph")); err != nil || info.Mode() != 0o755 {
		t.Errorf("mode: %v, %v", info.Mode(), err)
	}
	list, err := libcni.ConfListFromFile(filepath.Join(o.ConfDir, install.ConfFile))
	if err != nil || list.CNIVersion != "1.1.0" {
		t.Errorf("libcni reads version %v, %v; it should choose 1.1.0", list, err)
	}
	if again, err := install.Install(o); err != nil || again.Written != nil {
		t.Errorf("again: %+v, %v", again, err)
	}
	write(t, o.Plugin, "plugin 2")
	if changed, err := install.Install(o); err != nil || len(changed.Written) != 1 || tree(t, o)["heliograph"] != "plugin 2" {
		t.Errorf("changed: %+v, %v", changed, err)
	}
}

func TestInstallReportsWhatSortsEarlier(t *testing.T) {
	o := setup(t)
	for _, name := range []string{"05-other.conflist", "00-notes.txt", "99-late.conf", ".hidden.conf", "10-flannel.conflist"} {
		write(t, filepath.Join(o.ConfDir, name), "other")
	}
	r, err := install.Install(o)
	if err != nil || len(r.Warnings) != 2 || !strings.Contains(r.Warnings[0], "05-other.conflist") || !strings.Contains(r.Warnings[1], "10-flannel.conflist") {
		t.Errorf("%q, %v", r.Warnings, err)
	}
}

func TestUninstallRemovesNothingElse(t *testing.T) {
	o := setup(t)
	others := map[string]string{"portmap": "theirs", "20-other.conflist": "theirs"}
	write(t, filepath.Join(o.BinDir, "portmap"), "theirs")
	write(t, filepath.Join(o.ConfDir, "20-other.conflist"), "theirs")
	if _, err := install.Install(o); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := install.Uninstall(o); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(others, tree(t, o)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

func TestInstallWritesNoConfigurationWithoutPlugins(t *testing.T) {
	o := setup(t)
	if err := os.Remove(o.PortMap); err != nil {
		t.Fatal(err)
	}
	if r, err := install.Install(o); err == nil {
		t.Errorf("installed %+v", r)
	}
	if _, there := tree(t, o)[install.ConfFile]; there {
		t.Error("the configuration names a plugin that is not there")
	}
}
