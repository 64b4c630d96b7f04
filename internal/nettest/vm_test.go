// SPDX-License-Identifier: Apache-2.0

package nettest_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestTheVMCoversWhatIsSkipped: NeedLink may skip under make test only what make test-vm runs.
func TestTheVMCoversWhatIsSkipped(t *testing.T) {
	root := filepath.Join("..", "..")
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Skip("no Makefile beside: not in the source tree")
	}
	list := regexp.MustCompile(`(?m)^VM_PACKAGES := ((?:.*\\\n)*.*)$`).FindSubmatch(makefile)
	if list == nil {
		t.Fatal("the Makefile has no VM_PACKAGES")
	}
	covered := strings.Fields(strings.ReplaceAll(string(list[1]), "\\\n", " "))
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path) //nolint:gosec // of our own tree
		if err != nil || !strings.Contains(string(text), "nettest.Need"+"Link(") {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if pkg := "./" + filepath.ToSlash(dir); err == nil && !slices.Contains(covered, pkg) {
			t.Errorf("%s skips on some kernels, but VM_PACKAGES lacks %s", path, pkg)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
