// Package image makes container images from static files, without an engine or
// a registry. The result is a docker-archive, the same bytes for the same files.
package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// File is one file of an image.
type File struct {
	Source string // on this machine
	Dest   string // absolute, in the image
	Mode   int64
}

// Spec describes an image.
type Spec struct {
	Ref        string
	Entrypoint []string
	Files      []File
}

// directories that programs expect in any root.
var directories = []tar.Header{
	{Name: "etc/", Mode: 0o755},
	{Name: "tmp/", Mode: 0o1777},
}

// ParseFile reads SRC:DST[:MODE], the mode in octal and 0755 by default.
func ParseFile(s string) (File, error) {
	parts := strings.Split(s, ":")
	if len(parts) != 2 && len(parts) != 3 {
		return File{}, fmt.Errorf("parse %q: want SRC:DST[:MODE]", s)
	}
	f := File{Source: parts[0], Dest: path.Clean(parts[1]), Mode: 0o755}
	if f.Source == "" || !path.IsAbs(f.Dest) || f.Dest == "/" {
		return File{}, fmt.Errorf("parse %q: want a source and an absolute destination", s)
	}
	if len(parts) == 3 {
		mode, err := strconv.ParseInt(parts[2], 8, 64)
		if err != nil || mode&^0o7777 != 0 {
			return File{}, fmt.Errorf("parse %q: mode %q is not an octal file mode", s, parts[2])
		}
		f.Mode = mode
	}
	return f, nil
}

// Write makes the image and saves it at out, whole or not at all.
func Write(s Spec, out string) error {
	tag, err := name.NewTag(s.Ref)
	if err != nil {
		return fmt.Errorf("image reference %s: %w", s.Ref, err)
	}
	img, err := build(s)
	if err != nil {
		return fmt.Errorf("make image %s: %w", s.Ref, err)
	}
	tmp := out + ".tmp"
	if err := tarball.WriteToFile(tmp, tag, img); err != nil {
		return errors.Join(fmt.Errorf("write image %s: %w", s.Ref, err), os.Remove(tmp))
	}
	if err := os.Rename(tmp, out); err != nil {
		return fmt.Errorf("write image %s: %w", s.Ref, err)
	}
	return nil
}

func build(s Spec) (v1.Image, error) {
	content, err := layer(s.Files)
	if err != nil {
		return nil, err
	}
	// Uncompressed: the archive travels no farther than this machine, and each
	// node would have to unpack it.
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer(content, types.DockerUncompressedLayer))
	if err != nil {
		return nil, fmt.Errorf("append layer: %w", err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	cfg.Config = v1.Config{Entrypoint: s.Entrypoint, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin:/"}}
	return mutate.ConfigFile(img, cfg)
}

func layer(files []File) ([]byte, error) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	made := map[string]bool{}
	for _, d := range directories {
		made[d.Name] = true
		if err := writeDir(tw, d.Name, d.Mode); err != nil {
			return nil, err
		}
	}
	for _, f := range files {
		for _, dir := range parents(f.Dest) {
			if made[dir] {
				continue
			}
			made[dir] = true
			if err := writeDir(tw, dir, 0o755); err != nil {
				return nil, err
			}
		}
		if err := writeFile(tw, f); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, fmt.Errorf("end layer: %w", err)
	}
	return b.Bytes(), nil
}

// parents returns the directories above an absolute path, outermost first.
func parents(p string) []string {
	var out []string
	for i, c := range p {
		if c == '/' && i > 0 {
			out = append(out, p[1:i+1])
		}
	}
	return out
}

func writeDir(tw *tar.Writer, name string, mode int64) error {
	h := &tar.Header{Name: name, Mode: mode, Typeflag: tar.TypeDir, ModTime: time.Unix(0, 0)}
	if err := tw.WriteHeader(h); err != nil {
		return fmt.Errorf("add directory %s: %w", name, err)
	}
	return nil
}

func writeFile(tw *tar.Writer, f File) error {
	in, err := os.Open(f.Source)
	if err != nil {
		return fmt.Errorf("add file: %w", err)
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return fmt.Errorf("add file: %w", err)
	}
	h := &tar.Header{
		Name: strings.TrimPrefix(f.Dest, "/"), Mode: f.Mode, Size: st.Size(),
		Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0),
	}
	if err := tw.WriteHeader(h); err != nil {
		return fmt.Errorf("add file %s: %w", f.Dest, err)
	}
	if _, err := io.Copy(tw, in); err != nil {
		return fmt.Errorf("add file %s: %w", f.Dest, err)
	}
	return nil
}
