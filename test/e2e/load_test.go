// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"
)

var (
	loadPolicies = flag.Int("load-policies", 0, "how many other policies there are while TestPolicyInForce measures")
	loadPods     = flag.Int("load-pods", 0, "how many other pods there are, of no node, while TestPolicyInForce measures")
)

const (
	loadNamespace = "heliograph-load"
	// loadLabels is how many different labels the pods of the load have, and so how large each policy's sets are.
	loadLabels = 100
)

// api is the lab's API server, without a process for each request.
type api struct {
	client        http.Client
	server, token string
}

// newAPI connects as the administrator that `lab kubectl` is.
func newAPI(t *testing.T) *api {
	t.Helper()
	kubeconfig, err := os.ReadFile("/var/lib/heliograph-lab/kubeconfig")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?s)server: "(https://127\.0\.0\.1:\d+)".*token: (\S+?)\}`).FindSubmatch(kubeconfig)
	if m == nil {
		t.Fatal("no server and token in the lab's kubeconfig")
	}
	return &api{
		// The lab's API server signs its certificate itself, and is on this machine.
		client: http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}}, //nolint:gosec // above
		server: string(m[1]), token: string(m[2]),
	}
}

func (a *api) do(method, path, contentType, body string) error {
	req, err := http.NewRequest(method, a.server+path, bytes.NewBufferString(body)) //nolint:noctx // the client has a timeout
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+a.token)
	req.Header.Set("Content-Type", contentType)
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %.200s", method, path, resp.Status, answer)
	}
	return err
}

// each calls f with 0 to n-1, some at a time.
func each(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	var working sync.WaitGroup
	turn := make(chan struct{}, 8)
	for i := range n {
		working.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			if err := f(i); err != nil {
				t.Error(err)
			}
		})
	}
	working.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// load makes policies and pods, if any are asked for. The pods have addresses, and no node; every policy
// selects one pod, of node3, so that all of them are in force there, and lets in those of one label.
func load(t *testing.T) {
	t.Helper()
	if *loadPolicies == 0 && *loadPods == 0 {
		return
	}
	a := newAPI(t)
	const json = "application/json"
	startPod(t, "loaded", "node3", "")
	kubectl(t, "-n", namespace, "label", "--overwrite", "pod", "loaded", "loaded=true")
	apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+loadNamespace+"}\n")
	t.Cleanup(func() {
		kubectl(t, "-n", namespace, "delete", "networkpolicies", "-l", "load=true", "--wait=false")
		kubectl(t, "delete", "namespace", loadNamespace, "--wait=false")
	})
	pods := "/api/v1/namespaces/" + loadNamespace + "/pods"
	start := time.Now()
	each(t, *loadPods, func(i int) error {
		body := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p%d","labels":{"tier":"t%d"}},"spec":{"schedulerName":"nobody","containers":[{"name":"c","image":"none"}]}}`, i, i%loadLabels)
		if err := a.do(http.MethodPost, pods, json, body); err != nil {
			return err
		}
		return a.do(http.MethodPatch, fmt.Sprintf("%s/p%d/status", pods, i), "application/merge-patch+json",
			fmt.Sprintf(`{"status":{"podIPs":[{"ip":"100.64.%d.%d"},{"ip":"fd00:100::%x"}],"podIP":"100.64.%d.%d"}}`, i>>8, i&255, i+1, i>>8, i&255))
	})
	each(t, *loadPolicies, func(i int) error {
		return a.do(http.MethodPost, "/apis/networking.k8s.io/v1/namespaces/"+namespace+"/networkpolicies", json, fmt.Sprintf(
			`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"load-%d","labels":{"load":"true"}},"spec":{"podSelector":{"matchLabels":{"loaded":"true"}},"policyTypes":["Ingress"],`+
				`"ingress":[{"from":[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"%s"}},"podSelector":{"matchLabels":{"tier":"t%d"}}}],"ports":[{"port":%d}]}]}}`,
			i, loadNamespace, i%loadLabels, 1000+i%30000))
	})
	t.Logf("%d policies and %d pods made in %s", *loadPolicies, *loadPods, time.Since(start).Round(time.Second))
	eventually(t, 2*time.Minute, func() error {
		out, err := try("kubectl", "get", "nodestatus", "node3", "-o", "jsonpath={.status.policy.policies}")
		if n, convErr := strconv.Atoi(out); err == nil && (convErr != nil || n < *loadPolicies) {
			err = fmt.Errorf("node3 has %q policies in force", out)
		}
		return err
	})
}

// agentCPU is how much CPU time the agent of a node has used.
func agentCPU(t *testing.T, node string) time.Duration {
	t.Helper()
	out := lab(t, "exec", node, "curl", "-sS", "-m", "10", "http://127.0.0.1:9810/metrics")
	m := regexp.MustCompile(`(?m)^process_cpu_seconds_total (\S+)$`).FindStringSubmatch(out)
	if m == nil {
		t.Fatal("the agent tells no process_cpu_seconds_total")
	}
	var seconds float64
	if _, err := fmt.Sscan(m[1], &seconds); err != nil {
		t.Fatal(err)
	}
	return time.Duration(seconds * float64(time.Second))
}
