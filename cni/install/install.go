// SPDX-License-Identifier: Apache-2.0

// Package install puts the CNI plugins and their configuration where the node's runtime looks for
// them, and takes them away again. It owns three files by their names and touches no other.
//
// The configuration comes last: a runtime takes its appearance as "the network is ready".
package install

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/heliograph-dev/heliograph/cni"
)

// Where a container finds the node's directories, and what is ours in them.
const (
	DefaultBinDir  = "/host/opt/cni/bin"
	DefaultConfDir = "/host/etc/cni/net.d"

	Plugin   = "heliograph"         // the type in the configuration, so the file's name
	PortMap  = "heliograph-portmap" // containernetworking's, under a name that nobody else uses
	ConfFile = "10-heliograph.conflist"
)

// Options say what goes where. The zero value is right in the image, but for Plugin and PortMap.
type Options struct {
	BinDir  string // empty: DefaultBinDir
	ConfDir string // empty: DefaultConfDir
	Plugin  string // the plugin's binary to copy
	PortMap string // the portmap binary to copy; empty: none, and no host ports
	MTU     int    // of pods, in bytes; 0: the agent decides
	Socket  string // the agent's, as the plugin sees it; empty: the plugin's default
}

// Result says what Install did.
type Result struct {
	Written []string // files that are new or changed
	// Warnings tell of configurations that runtimes prefer to ours because their names sort before it.
	Warnings []string
}

// Install copies the plugins, then writes the configuration. Each file appears whole or not at all;
// what is right already is left alone. Running it again is as good as once.
func Install(o Options) (Result, error) {
	o = o.withDefaults()
	var r Result
	if o.Plugin == "" {
		return r, errors.New("no plugin to install")
	}
	for _, dir := range []string{o.BinDir, o.ConfDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return r, err
		}
	}
	for _, b := range []struct{ from, name string }{{o.Plugin, Plugin}, {o.PortMap, PortMap}} {
		if b.from == "" {
			continue
		}
		if err := r.copy(b.from, filepath.Join(o.BinDir, b.name)); err != nil {
			return r, fmt.Errorf("install %s: %w", b.name, err)
		}
	}
	warnings, err := earlier(o.ConfDir)
	if err != nil {
		return r, err
	}
	r.Warnings = warnings
	conf, err := confList(o)
	if err != nil {
		return r, err
	}
	path := filepath.Join(o.ConfDir, ConfFile)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, conf) {
		return r, nil
	}
	if err := replace(path, bytes.NewReader(conf), 0o644); err != nil {
		return r, fmt.Errorf("install %s: %w", ConfFile, err)
	}
	r.Written = append(r.Written, path)
	return r, nil
}

// Uninstall removes what Install made, the configuration first. What is gone already is no error.
func Uninstall(o Options) error {
	o = o.withDefaults()
	var errs []error
	for _, path := range []string{
		filepath.Join(o.ConfDir, ConfFile), filepath.Join(o.BinDir, PortMap), filepath.Join(o.BinDir, Plugin),
	} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (o Options) withDefaults() Options {
	if o.BinDir == "" {
		o.BinDir = DefaultBinDir
	}
	if o.ConfDir == "" {
		o.ConfDir = DefaultConfDir
	}
	return o
}

// confList is the configuration. cniVersion is the newest that containerd 1.6 knows; newer runtimes
// choose from cniVersions (CNI specification 1.1, Section 1).
func confList(o Options) ([]byte, error) {
	type plugin struct {
		Type         string          `json:"type"`
		MTU          int             `json:"mtu,omitempty"`
		Socket       string          `json:"socket,omitempty"`
		Capabilities map[string]bool `json:"capabilities,omitempty"`
		SNAT         bool            `json:"snat,omitempty"`
	}
	if o.Socket == cni.SocketPath {
		o.Socket = ""
	}
	plugins := []plugin{{Type: Plugin, MTU: o.MTU, Socket: o.Socket}}
	if o.PortMap != "" {
		plugins = append(plugins, plugin{Type: PortMap, Capabilities: map[string]bool{"portMappings": true}, SNAT: true})
	}
	b, err := json.MarshalIndent(struct {
		CNIVersion  string   `json:"cniVersion"`
		CNIVersions []string `json:"cniVersions"`
		Name        string   `json:"name"`
		Plugins     []plugin `json:"plugins"`
	}{"1.0.0", []string{"1.0.0", "1.1.0"}, "heliograph", plugins}, "", "  ")
	return append(b, '\n'), err
}

// earlier warns of configurations that sort before ours: runtimes use the first.
func earlier(dir string) (warnings []string, err error) {
	entries, err := os.ReadDir(dir) // sorted, as runtimes sort
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		known := slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name()))
		if known && !e.IsDir() && e.Name() < ConfFile && !strings.HasPrefix(e.Name(), ".") {
			warnings = append(warnings, fmt.Sprintf("%s sorts before %s, so the runtime uses it and not heliograph", filepath.Join(dir, e.Name()), ConfFile))
		}
	}
	return warnings, nil
}

// copy copies a binary unless the same is there. One that is being executed is replaced, not
// overwritten, which would fail.
func (r *Result) copy(from, to string) error {
	want, err := digest(from)
	if err != nil {
		return err
	}
	if info, err := os.Lstat(to); err == nil && info.Mode() == 0o755 {
		if got, err := digest(to); err == nil && got == want {
			return nil
		}
	}
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := replace(to, f, 0o755); err != nil {
		return err
	}
	r.Written = append(r.Written, to)
	return nil
}

func digest(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// replace puts a file in place of what is there, on disk when it returns. The temporary name begins
// with a dot, which no runtime takes for a configuration.
func replace(path string, content io.Reader, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after the rename
	_, err = io.Copy(tmp, content)
	if err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
