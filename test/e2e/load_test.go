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
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	loadPolicies = flag.String("load-policies", "0", "how many other policies there are while TestPolicyInForce measures; several numbers, by comma, are several rows")
	loadPods     = flag.String("load-pods", "0", "how many other pods there are, of no node, while TestPolicyInForce measures; several numbers as well")
)

const (
	loadNamespace = "heliograph-load"
	// loadLabels is how many different labels the pods of the load have, and so how large each policy's sets are.
	loadLabels = 100

	loadedPods     = "/api/v1/namespaces/" + loadNamespace + "/pods"
	loadedPolicies = "/apis/networking.k8s.io/v1/namespaces/" + namespace + "/networkpolicies"
	asJSON         = "application/json"
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

// burden is what else there is in the cluster while something is measured.
type burden struct{ policies, pods int }

// burdens returns each number of pods with each of policies, as asked for by flags.
func burdens(t *testing.T) (out []burden) {
	t.Helper()
	for _, pods := range numbers(t, *loadPods) {
		for _, policies := range numbers(t, *loadPolicies) {
			out = append(out, burden{policies: policies, pods: pods})
		}
	}
	return out
}

func numbers(t *testing.T, list string) (out []int) {
	t.Helper()
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("how much load: %v", err)
		}
		out = append(out, n)
	}
	return out
}

// loader makes policies and pods. The pods have addresses, and no node; every policy selects one pod, of
// node3, so that all of them are in force there, and lets in those of one label.
type loader struct {
	api  *api
	have burden
}

func newLoader(t *testing.T) *loader {
	t.Helper()
	startPod(t, "loaded", "node3", "")
	kubectl(t, "-n", namespace, "label", "--overwrite", "pod", "loaded", "loaded=true")
	apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+loadNamespace+"}\n")
	l := &loader{api: newAPI(t)}
	t.Cleanup(func() {
		l.dropPolicies(t)
		kubectl(t, "delete", "namespace", loadNamespace, "--wait=false")
	})
	return l
}

// become makes what is missing, and waits until it is in force.
func (l *loader) become(t *testing.T, b burden) {
	t.Helper()
	start := time.Now()
	if b.policies < l.have.policies {
		l.dropPolicies(t)
	}
	each(t, l.have.pods, b.pods, l.makePod)
	each(t, l.have.policies, b.policies, l.makePolicy)
	l.have = burden{policies: b.policies, pods: max(b.pods, l.have.pods)}
	wantInForce(t, "node3", func(n int) bool { return n >= b.policies })
	t.Logf("%d policies and %d pods after %s", b.policies, b.pods, time.Since(start).Round(time.Second))
}

func (l *loader) dropPolicies(t *testing.T) {
	t.Helper()
	if err := l.api.do(http.MethodDelete, loadedPolicies+"?labelSelector=load%3Dtrue", asJSON, ""); err != nil {
		t.Error(err)
	}
	l.have.policies = 0
	const tests = 10 // and more: what the test itself made
	wantInForce(t, "node3", func(n int) bool { return n < tests })
}

func (l *loader) makePod(i int) error {
	body := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p%d","labels":{"tier":"t%d"}},"spec":{"schedulerName":"nobody","containers":[{"name":"c","image":"none"}]}}`, i, i%loadLabels)
	if err := l.api.do(http.MethodPost, loadedPods, asJSON, body); err != nil {
		return err
	}
	ip4 := fmt.Sprintf("100.%d.%d.%d", 64+i>>16, i>>8&255, i&255)
	return l.api.do(http.MethodPatch, fmt.Sprintf("%s/p%d/status", loadedPods, i), "application/merge-patch+json",
		fmt.Sprintf(`{"status":{"podIPs":[{"ip":%[1]q},{"ip":%[2]q}],"podIP":%[1]q}}`, ip4, fmt.Sprintf("fd00:100::%x:%x", 1+i>>16, i&0xffff)))
}

func (l *loader) makePolicy(i int) error {
	return l.api.do(http.MethodPost, loadedPolicies, asJSON, fmt.Sprintf(
		`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"load-%d","labels":{"load":"true"}},"spec":{"podSelector":{"matchLabels":{"loaded":"true"}},"policyTypes":["Ingress"],`+
			`"ingress":[{"from":[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"%s"}},"podSelector":{"matchLabels":{"tier":"t%d"}}}],"ports":[{"port":%d}]}]}}`,
		i, loadNamespace, i%loadLabels, 1000+i%30000))
}

// each calls f with the numbers from first to before end, some at a time.
func each(t *testing.T, first, end int, f func(i int) error) {
	t.Helper()
	var working sync.WaitGroup
	turn := make(chan struct{}, 8)
	for i := first; i < end; i++ {
		turn <- struct{}{}
		working.Go(func() {
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

// wantInForce waits until a node has as many policies in force as is wanted.
func wantInForce(t *testing.T, node string, enough func(policies int) bool) {
	t.Helper()
	eventually(t, 3*time.Minute, func() error {
		out, err := try("kubectl", "get", "nodestatus", node, "-o", "jsonpath={.status.policy.policies}")
		if err != nil {
			return err
		}
		n := 0
		if out != "" {
			if n, err = strconv.Atoi(out); err != nil {
				return err
			}
		}
		if !enough(n) {
			return fmt.Errorf("%s has %d policies in force", node, n)
		}
		return nil
	})
}

// agentUse is what the agent of a node has used.
type agentUse struct {
	cpu time.Duration
	rss float64 // bytes
	at  time.Time
}

func useOf(t *testing.T, node string) agentUse {
	t.Helper()
	out := lab(t, "exec", node, "curl", "-sS", "-m", "10", "http://127.0.0.1:9810/metrics")
	value := func(name string) (v float64) {
		m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("the agent tells no %s", name)
		}
		if _, err := fmt.Sscan(m[1], &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	return agentUse{
		cpu: time.Duration(value("process_cpu_seconds_total") * float64(time.Second)),
		rss: value("process_resident_memory_bytes"), at: time.Now(),
	}
}

// rate is which part of a core was used since.
func (u agentUse) rate(since agentUse) float64 {
	return float64(u.cpu-since.cpu) / float64(u.at.Sub(since.at))
}
