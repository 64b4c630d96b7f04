// SPDX-License-Identifier: Apache-2.0

// Package prometheus_test checks what config/prometheus gives to Prometheus.
package prometheus_test

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite prometheusrule.yaml")

// operatorHead is what the Prometheus operator wants around the rules.
const operatorHead = `# Made from rules.yaml by ` + "`go test ./config/prometheus -update`" + `.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: heliograph
  namespace: heliograph-system
  labels: {app.kubernetes.io/name: heliograph}
spec:
`

// The two forms of the rules are one: the operator's has the plain one below spec.
func TestOperatorForm(t *testing.T) {
	var want bytes.Buffer
	want.WriteString(operatorHead)
	_, groups, ok := strings.Cut(read(t, "rules.yaml"), "\ngroups:\n")
	if !ok {
		t.Fatal("rules.yaml has no groups")
	}
	for line := range strings.Lines("groups:\n" + groups) {
		if line != "\n" {
			want.WriteString("  ")
		}
		want.WriteString(line)
	}
	if *update {
		if err := os.WriteFile("prometheusrule.yaml", want.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want.String(), read(t, "prometheusrule.yaml")); diff != "" {
		t.Errorf("prometheusrule.yaml is not rules.yaml; -update makes it so (-want +got):\n%s", diff)
	}
}

func TestRulesByPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("HELIOGRAPH_NO_SKIP") == "1" {
			t.Fatal("no promtool: hack/deps.sh installs it")
		}
		t.Skip("no promtool: hack/deps.sh installs it")
	}
	for _, args := range [][]string{{"check", "rules", "rules.yaml"}, {"test", "rules", "testdata/rules_test.yaml"}} {
		if out, err := exec.Command(promtool, args...).CombinedOutput(); err != nil { //nolint:gosec // our own arguments
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// Whoever is woken by an alert finds what to do, and the metrics that it speaks of.
func TestRulesAreDocumented(t *testing.T) {
	rules := read(t, "rules.yaml")
	troubleshooting, metrics, tests := read(t, "../../docs/troubleshooting.md"), read(t, "../../docs/metrics.md"), read(t, "testdata/rules_test.yaml")
	alerts := regexp.MustCompile(`(?m)^ +- alert: (\w+)$`).FindAllStringSubmatch(rules, -1)
	if len(alerts) == 0 {
		t.Fatal("no alerts in rules.yaml")
	}
	for _, a := range alerts {
		name, anchor := a[1], "troubleshooting.md#"+strings.ToLower(a[1])
		if !strings.Contains(rules, anchor+"\n") {
			t.Errorf("%s does not refer to docs/%s", name, anchor)
		}
		if !strings.Contains(troubleshooting, "\n### "+name+"\n") {
			t.Errorf("docs/troubleshooting.md has no entry for %s", name)
		}
		if !strings.Contains(tests, "alertname: "+name+"\n        exp_alerts:\n") {
			t.Errorf("no test in which %s fires", name)
		}
	}
	for _, m := range regexp.MustCompile(`heliograph_\w+`).FindAllString(rules, -1) {
		if !strings.Contains(metrics, "`"+m+"`") {
			t.Errorf("docs/metrics.md has no %s", m)
		}
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file) //nolint:gosec // our own files
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
