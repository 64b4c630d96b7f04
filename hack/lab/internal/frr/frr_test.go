package frr_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/frr"
	"github.com/heliograph-dev/heliograph/hack/lab/internal/topology"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestBGPDConf(t *testing.T) {
	plan, err := topology.New(3)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"leaf1", "leaf2", "spine"} {
		h, _ := plan.Host(name)
		files, err := frr.Files(plan, h)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name+".bgpd.conf")
		if *update {
			if err := os.WriteFile(path, []byte(files["bgpd.conf"]), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), files["bgpd.conf"]); d != "" {
			t.Errorf("%s (-want +got):\n%s", path, d)
		}
	}
}
