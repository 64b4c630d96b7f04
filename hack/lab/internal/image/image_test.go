package image_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/image"
)

func TestParseFile(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want image.File
		err  bool
	}{
		{in: "bin/a:/a", want: image.File{Source: "bin/a", Dest: "/a", Mode: 0o755}},
		{in: "a:/etc/x/:0644", want: image.File{Source: "a", Dest: "/etc/x", Mode: 0o644}},
		{in: "a", err: true},
		{in: "a:b", err: true},
		{in: ":/b", err: true},
		{in: "a:/", err: true},
		{in: "a:/b:9", err: true},
		{in: "a:/b:1:2", err: true},
	} {
		got, err := image.ParseFile(tc.in)
		if (err != nil) != tc.err {
			t.Errorf("%q: error %v", tc.in, err)
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%q (-want +got):\n%s", tc.in, d)
		}
	}
}

func TestWriteIsDeterministic(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "prog")
	if err := os.WriteFile(src, []byte("content"), 0o700); err != nil {
		t.Fatal(err)
	}
	spec := image.Spec{
		Ref: "example.org/prog:dev", Entrypoint: []string{"/usr/bin/prog"},
		Files: []image.File{{Source: src, Dest: "/usr/bin/prog", Mode: 0o755}, {Source: src, Dest: "/usr/bin/other", Mode: 0o644}},
	}
	var outs [2][]byte
	for i := range outs {
		out := filepath.Join(dir, "out.tar")
		if err := image.Write(spec, out); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		outs[i] = b
		later := time.Now().Add(time.Hour)
		if err := os.Chtimes(src, later, later); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(outs[0], outs[1]) {
		t.Error("two runs made different archives")
	}
}

func TestWriteHoldsTheFiles(t *testing.T) {
	dir := t.TempDir()
	src, out := filepath.Join(dir, "prog"), filepath.Join(dir, "out.tar")
	if err := os.WriteFile(src, []byte("content"), 0o700); err != nil {
		t.Fatal(err)
	}
	spec := image.Spec{Ref: "example.org/prog:dev", Files: []image.File{{Source: src, Dest: "/usr/bin/prog", Mode: 0o755}}}
	if err := image.Write(spec, out); err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(out, nil)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = h.Mode
	}
	want := map[string]int64{"etc/": 0o755, "tmp/": 0o1777, "usr/": 0o755, "usr/bin/": 0o755, "usr/bin/prog": 0o755}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
