// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/policy/explain"
)

// policyAPI lists the objects of a file, a few at a time, and refuses one resource.
type policyAPI struct {
	client.Client
	objects   []explain.Typed
	forbidden string
}

func newPolicyAPI(t *testing.T) policyAPI {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "policy-cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	objects, err := explain.Decode(f, "default")
	if err != nil {
		t.Fatal(err)
	}
	return policyAPI{objects: objects}
}

func (p policyAPI) List(_ context.Context, list client.ObjectList, opts ...client.ListOption) error {
	if nodes, ok := list.(*v1alpha1.NodeStatusList); ok {
		for i := 1; i <= 2; i++ {
			nodes.Items = append(nodes.Items, v1alpha1.NodeStatus{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node%d", i)},
				Status:     v1alpha1.NodeStatusStatus{PodNetworkIPs: []string{fmt.Sprintf("10.244.%d.1", i), fmt.Sprintf("fd00:244::%d1", i)}},
			})
		}
		return nil
	}
	var o client.ListOptions
	o.ApplyOptions(opts)
	from, _ := strconv.Atoi(o.Continue)
	var items []runtime.Object
	for _, t := range p.objects {
		if fmt.Sprintf("%T", t.Kind.List()) != fmt.Sprintf("%T", list) {
			continue
		}
		if t.Kind.Resource == p.forbidden {
			return apierrors.NewForbidden(schema.GroupResource{Resource: p.forbidden}, "", fmt.Errorf("user viewer cannot list it"))
		}
		items = append(items, t.Object)
	}
	const few = 3
	to := min(from+few, len(items))
	if to < len(items) {
		list.SetContinue(strconv.Itoa(to))
	}
	return apimeta.SetList(list, items[from:to])
}

func TestPolicyExplain(t *testing.T) {
	api := newPolicyAPI(t)
	for name, tt := range map[string]struct {
		from, to, form string
		change         changeFlags
	}{
		"tiers":        {from: "prod/web-7c9f-b", to: "prod/db-1:5432", change: changeFlags{files: []string{filepath.Join("testdata", "policy-tiers.yaml")}}},
		"service":      {from: "prod/web-7c9f-a", to: "service/prod/db:5432"},
		"service-json": {from: "10.244.1.9", to: "10.96.0.7:5432", form: "json"},
		"node":         {from: "node/node1", to: "prod/db-0:5432"},
		"host-network": {from: "prod/web-7c9f-a", to: "monitoring/exporter:9100"},
		"icmp":         {from: "192.0.2.1", to: "prod/db-1/icmp"},
		"dry-run": {from: "monitoring/prometheus", to: "prod/db-1:5432", change: changeFlags{
			files: []string{"-"}, without: []string{"networkpolicy/prod/db-0-backup"}, namespace: "prod",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			query, err := parsePolicyQuery(tt.from, tt.to)
			if err != nil {
				t.Fatal(err)
			}
			edit, said, err := tt.change.read(strings.NewReader(manyRules(7)))
			if err != nil {
				t.Fatal(err)
			}
			answer, err := explainPolicy(t.Context(), api, query, edit)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := (policyAnswer{Answer: answer, DryRun: said}).write(&out, tt.form); err != nil {
				t.Fatal(err)
			}
			golden(t, "policy-explain-"+name+".txt", out.Bytes())
		})
	}
	if err := (policyAnswer{}).write(&bytes.Buffer{}, "yaml"); err == nil || !strings.Contains(err.Error(), `--output is "yaml"`) {
		t.Errorf("error = %v", err)
	}
}

// manyRules is a policy whose last rule alone is for everybody.
func manyRules(n int) string {
	out := "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: many}\nspec:\n  podSelector: {matchLabels: {app: db}}\n  ingress:\n"
	for i := range n {
		out += fmt.Sprintf("  - {ports: [{port: %d}]}\n", 1000+i)
	}
	return out + "  - {}\n"
}

func TestPolicyExplainNeedsRights(t *testing.T) {
	api := newPolicyAPI(t)
	api.forbidden = "networkpolicies.networking.k8s.io"
	_, err := explainPolicy(t.Context(), api, explain.Query{}, explain.Change{})
	if err == nil || !strings.Contains(err.Error(), "policy follows from networkpolicies.networking.k8s.io, so the right to list them is needed") {
		t.Errorf("error = %v", err)
	}
	api.forbidden = "nodes"
	q, err := parsePolicyQuery("prod/db-0", "prod/db-1:80")
	if err != nil {
		t.Fatal(err)
	}
	a, err := explainPolicy(t.Context(), api, q, explain.Change{})
	if err != nil || len(a.Notes) != 1 || !strings.HasPrefix(a.Notes[0], "without the right to list nodes") {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestPolicyImpact(t *testing.T) {
	api := newPolicyAPI(t)
	for name, tt := range map[string]struct {
		form, stdin string
		without     []string
	}{
		"open":       {without: []string{"NetworkPolicy/prod/db", "NetworkPolicy/prod/db-0-backup"}},
		"ports":      {stdin: manyRules(3)},
		"json":       {stdin: manyRules(1), form: "json"},
		"outside":    {stdin: strings.Replace(manyRules(0), "- {}", "- {from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}, {ipBlock: {cidr: 10.244.0.0/16}}]}", 1)},
		"nothing":    {stdin: "{apiVersion: v1, kind: Namespace, metadata: {name: prod, labels: {a: b}}}"},
		"no-matter":  {stdin: strings.Replace(manyRules(0), "- {}", "- {from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}", 1)},
		"a-mistake":  {stdin: strings.Replace(strings.Replace(manyRules(0), "- {}", "- {from: [{ipBlock: {cidr: x}}]}", 1), "app: db", "app: web", 1)},
		"one-family": {stdin: strings.Replace(manyRules(0), "- {}", "- {from: [{ipBlock: {cidr: fd00:244::/32}}]}", 1)},
	} {
		t.Run(name, func(t *testing.T) {
			flags := changeFlags{without: tt.without, namespace: "prod"}
			if tt.stdin != "" {
				flags.files = []string{"-"}
			}
			edit, said, err := flags.read(strings.NewReader(tt.stdin))
			if err != nil {
				t.Fatal(err)
			}
			impact, err := policyImpactOf(t.Context(), api, edit)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := (policyImpact{Impact: impact, DryRun: said}).write(&out, tt.form); err != nil {
				t.Fatal(err)
			}
			golden(t, "policy-impact-"+name+".txt", out.Bytes())
		})
	}
	if err := (policyImpact{}).write(&bytes.Buffer{}, "yaml"); err == nil || !strings.Contains(err.Error(), `--output is "yaml"`) {
		t.Errorf("error = %v", err)
	}
}

// What is left out is said.
func TestPolicyImpactIsBounded(t *testing.T) {
	i := explain.Impact{Affected: 1, NotCompared: 3}
	for n := range 60 {
		i.Changes = append(i.Changes, explain.PairChange{
			From: make([]explain.Group, 9), To: []explain.Group{{Name: fmt.Sprint(n)}}, Traffic: []explain.TrafficChange{{What: "TCP", Before: explain.Allowed, After: explain.Denied}},
		})
	}
	var out bytes.Buffer
	if err := (policyImpact{Impact: &i}).write(&out, ""); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{" and 3 more → 49: TCP: allowed → denied\n… and 10 more: see -o wide\n", "note: 3 pairs of kinds of pods are not compared"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

func TestChangeFlags(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("---\n{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n---\nkind: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		flags changeFlags
		stdin string
		want  string
	}{
		{changeFlags{files: []string{bad}}, "", bad + ": document 2: yaml:"},
		{changeFlags{files: []string{"-"}}, "{apiVersion: v1, kind: Secret, metadata: {name: a}}", "standard input: document 1: Secret of v1 is no kind"},
		{changeFlags{files: []string{"-"}}, "# nothing\n", "-: there is no object in it"},
		{changeFlags{files: []string{"nowhere.yaml"}}, "", "nowhere.yaml: no such file"},
		{changeFlags{without: []string{"NetworkPolicy/a"}}, "", "--without: \"NetworkPolicy/a\" is not of the form"},
	} {
		if _, _, err := tt.flags.read(strings.NewReader(tt.stdin)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: error = %v; want %q in it", tt.flags, err, tt.want)
		}
	}
}

func TestPolicyFlags(t *testing.T) {
	for args, want := range map[string]string{
		"policy explain --from prod/web":              `"to" not set`,
		"policy explain --from web --to prod/db:80":   "--from: \"web\" is neither",
		"policy explain --from prod/web --to prod/db": "--to: \"prod/db\": a port is needed",
		"policy impact": "name a change: -f FILE or --without",
		"policy explain --from a/b --to c/d:1 --without x/y": "--without: \"x\" is no kind",
	} {
		var out, errOut bytes.Buffer
		if code := Main(t.Context(), append([]string{"heliograph"}, strings.Fields(args)...), &out, &errOut); code != 1 || !strings.Contains(errOut.String(), want) {
			t.Errorf("%s: code %d, %q; want %q", args, code, errOut.String(), want)
		}
	}
}
