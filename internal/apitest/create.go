// SPDX-License-Identifier: Apache-2.0

//go:build linux

package apitest

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// CreateRBAC creates the objects of files of config/rbac, so that a test has the rights that users
// give, and no others.
func CreateRBAC(t *testing.T, c client.Client, files ...string) {
	t.Helper()
	for _, file := range files {
		f, err := os.Open(filepath.Join(Root(), "config", "rbac", file))
		if err != nil {
			t.Fatal(err)
		}
		createAll(t, c, f)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func createAll(t *testing.T, c client.Client, r io.Reader) {
	t.Helper()
	for d := yaml.NewYAMLOrJSONDecoder(r, 4096); ; {
		u := &unstructured.Unstructured{}
		if err := d.Decode(u); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		if err := c.Create(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
}
