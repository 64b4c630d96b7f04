// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/heliograph-dev/heliograph/internal/apitest"
)

// The command leads, is healthy and ready, serves metrics that promtool finds nothing wrong with,
// and ends when it is told to.
func TestController(t *testing.T) {
	env := apitest.StartEnv(t)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, env.KubeConfig, 0o600); err != nil {
		t.Fatal(err)
	}
	api := kubernetes.NewForConfigOrDie(env.Config)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "heliograph-system"}}
	if _, err := api.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	metrics, health := freeAddress(t), freeAddress(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		cmd := newControllerCommand()
		cmd.SetErr(t.Output())
		cmd.SetArgs([]string{
			"--kubeconfig=" + kubeconfig, "--namespace=heliograph-system",
			"--metrics-bind-address=" + metrics, "--health-probe-bind-address=" + health,
		})
		done <- cmd.ExecuteContext(ctx)
	}()
	for _, url := range []string{health + "/healthz", health + "/readyz", metrics + "/metrics"} {
		waitFor(t, url)
	}
	body := waitFor(t, metrics+"/metrics")
	for _, want := range []string{"heliograph_build_info{version=", "leader_election_master_status{name=\"heliograph-controller\"}"} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics has no %s", want)
		}
	}
	checkMetrics(t, body)
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("the command ends with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the command does not end")
	}
}

func TestControllerFlags(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--namespace="}, "which namespace does heliograph run in? Give --namespace"},
		{[]string{"--log-level=loud"}, "--log-level: "},
		{[]string{"--kubeconfig=/nowhere"}, "find the API server: stat /nowhere: no such file or directory"},
		{[]string{"extra"}, `unknown command "extra"`},
	} {
		cmd := newControllerCommand()
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		cmd.SetArgs(tt.args)
		cmd.SetErr(io.Discard)
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want %s", tt.args, err, tt.want)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the port is what we want
	return l.Addr().String()
}

// waitFor waits until the address answers 200.
func waitFor(t *testing.T, url string) string {
	t.Helper()
	var last string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		resp, err := http.Get("http://" + url) //nolint:gosec,noctx // our own server
		if err != nil {
			last = err.Error()
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err == nil && resp.StatusCode == http.StatusOK {
			return string(body)
		}
		last = fmt.Sprint(resp.Status, " ", string(body), err)
	}
	t.Fatalf("%s: %s", url, last)
	return ""
}

// checkMetrics runs promtool, if it is here, over our own metrics: those of the libraries are theirs.
func checkMetrics(t *testing.T, body string) {
	t.Helper()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("promtool is not installed: metrics are not checked")
		return
	}
	var own bytes.Buffer
	for line := range strings.Lines(body) {
		if name := strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE "); strings.HasPrefix(name, "heliograph_") {
			own.WriteString(line)
		}
	}
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = &own
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	all := exec.Command(promtool, "check", "metrics")
	all.Stdin = strings.NewReader(body)
	out, _ := all.CombinedOutput()
	t.Logf("promtool check metrics, with the libraries': %s", out)
}
