// SPDX-License-Identifier: Apache-2.0

//go:build linux

package apitest

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/heliograph-dev/heliograph/labels"
)

// TestSelectorRule holds that the rule of CEL refuses no selector that can be read: it knows less of the
// grammar than the parser, and must err on that side alone.
func TestSelectorRule(t *testing.T) {
	rule := selectorRule(t)
	for seed := range uint64(3_000) {
		r := rand.New(rand.NewPCG(seed, 0))
		text := randomSelector(r, 3)
		if len(text) > 1024 {
			continue
		}
		if _, err := labels.Parse(text); err != nil {
			t.Fatalf("seed %d: %q: %v", seed, text, err)
		}
		if !rule.MatchString(text) {
			t.Fatalf("seed %d: %q is refused", seed, text)
		}
	}
}

// selectorRule takes the regular expression out of the CRD.
func selectorRule(t *testing.T) *regexp.Regexp {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(Root(), "config", "crd", "bases", "heliograph.dev_networkpolicies.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(text, u); err != nil {
		t.Fatal(err)
	}
	versions, _, err := unstructured.NestedSlice(u.Object, "spec", "versions")
	if err != nil {
		t.Fatal(err)
	}
	rules, _, err := unstructured.NestedSlice(versions[0].(map[string]any), "schema", "openAPIV3Schema", "properties", "spec", "properties", "selector", "x-kubernetes-validations")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		if _, rest, ok := strings.Cut(r.(map[string]any)["rule"].(string), "|| self.matches(r'"); ok {
			expression, _, _ := strings.Cut(rest, "')")
			return regexp.MustCompile(expression)
		}
	}
	t.Fatal("the CRD has no such rule")
	return nil
}

func randomSelector(r *rand.Rand, depth int) string {
	one := func(from ...string) string { return from[r.IntN(len(from))] }
	space, key := one("", " ", "\t\n"), one("a", "app.kubernetes.io/name", "in", "not", "has", "all", "x_y-z")
	value := one(`'b'`, `"b"`, `''`, `'a.b-c_d'`, `"it's"`, `'||'`)
	if depth > 0 && r.IntN(3) > 0 {
		left, right := randomSelector(r, depth-1), randomSelector(r, depth-1)
		return one(left+space+"&&"+space+right, left+space+"||"+space+right, "!("+space+left+")", "("+left+")"+space, "! !"+"("+left+space+")")
	}
	return one(
		key+space+"=="+space+value, key+space+"!="+space+value, key+" in"+space+"{"+value+space+","+space+value+"}", key+" in {}",
		key+" not  in"+space+"{"+space+value+"}", "has("+space+key+space+")", "all("+space+")", key+" contains"+space+value,
		key+" starts with"+space+value, key+" ends  with "+value,
	)
}
