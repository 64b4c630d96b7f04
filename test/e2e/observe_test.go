// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestClusterTellsItsState reads what somebody sees first.
func TestClusterTellsItsState(t *testing.T) {
	wantAgentsReady(t)
	out := kubectl(t, "get", "nodes,ippools,ipblocks,bgppeers,nodestatuses")
	for _, want := range []string{"node/node3", "ippool.heliograph.dev/default-ipv6", "ipblock.heliograph.dev/", "SessionsUp", "nodestatus.heliograph.dev/node1"} {
		if !strings.Contains(out, want) {
			t.Errorf("kubectl get says nothing of %q:\n%s", want, out)
		}
	}
	status := exec.Command(filepath.Join(repo, "bin", "kubectl-heliograph"), "status")
	status.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	printed, err := status.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl heliograph status: %v\n%s", err, printed)
	}
	for _, want := range []string{"rack1-leaf1", "peer/rack2-leaf2", "Established", "BGP route from the fabric", "10.244.0.0/16"} {
		if !strings.Contains(string(printed), want) {
			t.Errorf("kubectl heliograph status says nothing of %q:\n%s", want, printed)
		}
	}
}

// kubeconfig is the lab's, for programs outside of it.
const kubeconfig = "/var/lib/heliograph-lab/kubeconfig"

// TestMetricsAreClean checks the agent's and the controller's metrics as promtool sees them.
func TestMetricsAreClean(t *testing.T) {
	wantAgentsReady(t)
	leader := strings.Fields(kubectl(t, "-n", "heliograph-system", "get", "pods", "-l", "app.kubernetes.io/component=controller",
		"-o", "jsonpath={.items[*].spec.nodeName}"))[0]
	for node, port := range map[string]string{"node1": "9810", leader: "9811"} {
		text := lab(t, "exec", node, "curl", "-sS", "http://127.0.0.1:"+port+"/metrics")
		promtool := exec.Command("promtool", "check", "metrics")
		promtool.Stdin = strings.NewReader(text)
		if out, err := promtool.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool check metrics of %s:%s: %v\n%s", node, port, err, out)
		}
		if !strings.Contains(text, "heliograph_build_info") {
			t.Errorf("%s:%s has no heliograph_build_info", node, port)
		}
	}
}

const prometheusConfig = `
global: {scrape_interval: 1s}
scrape_configs:
  - job_name: agent
    static_configs: [{targets: ["192.168.11.11:9810", "192.168.11.12:9810", "192.168.12.13:9810"]}]
  - job_name: controller
    static_configs: [{targets: [%s]}]
`

// TestPrometheusScrapes runs Debian's Prometheus on the lab's control host.
func TestPrometheusScrapes(t *testing.T) {
	wantAgentsReady(t)
	dir := t.TempDir()
	var targets []string
	for _, ip := range strings.Fields(kubectl(t, "-n", "heliograph-system", "get", "pods", "-l", "app.kubernetes.io/component=controller",
		"-o", "jsonpath={.items[*].status.hostIP}")) {
		targets = append(targets, fmt.Sprintf("%q", ip+":9811"))
	}
	config := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, prometheusConfig, strings.Join(targets, ", ")), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, "exec", "control", "prometheus", "--config.file="+config, "--storage.tsdb.path="+dir+"/data", "--web.listen-address=127.0.0.1:9090")
	eventually(t, time.Minute, func() error {
		up, err := query(`sum by (job) (up)`)
		if err == nil && (up["agent"] != "3" || up["controller"] != "2") {
			err = fmt.Errorf("up is %v, want 3 agents and 2 controllers", up)
		}
		return err
	})
	for expr, want := range map[string]string{
		`sum(heliograph_bgp_session_up)`:                           "9",
		`count(heliograph_path_info{ipv4="Native",ipv6="Native"})`: "6",
		`sum(heliograph_paths{method="Native"})`:                   "12",
		`min(heliograph_in_sync)`:                                  "1",
		`count(count by (pool)(heliograph_ippool_blocks))`:         "2",
	} {
		got, err := query(expr)
		if err != nil || got[""] != want {
			t.Errorf("%s = %v, %v; want %s", expr, got, err, want)
		}
	}
}

// query asks Prometheus; values are by job.
func query(expr string) (map[string]string, error) {
	out, err := try("exec", "control", "curl", "-sS", "-G", "--data-urlencode", "query="+expr, "http://127.0.0.1:9090/api/v1/query")
	if err != nil {
		return nil, err
	}
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string `json:"metric"`
				Value  []any             `json:"value"`
			} `json:"result"`
		} `json:"data"`
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return nil, err
	}
	values := map[string]string{}
	for _, r := range answer.Data.Result {
		values[r.Metric["job"]] = fmt.Sprint(r.Value[1])
	}
	return values, nil
}
