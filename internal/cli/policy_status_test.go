// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/heliograph-dev/heliograph/felix/inforce"
	"github.com/heliograph-dev/heliograph/felix/inspect"
	"github.com/heliograph-dev/heliograph/policy"
)

func sampleNow() time.Time { return time.Date(2026, 11, 25, 9, 0, 0, 0, time.UTC) }

// samplePolicies are policies that are in force, that lag, that are refused, that concern nobody and that are deleted,
// on three nodes that answer and one that does not.
func samplePolicies() policyFacts {
	db := policy.PolicyID{Namespace: "prod", Name: "db"}
	ours := policy.PolicyID{Kind: policy.HeliographNetworkPolicy, Namespace: "prod", Name: "db"}
	big := policy.PolicyID{Kind: policy.GlobalNetworkPolicy, Name: "big"}
	idle := policy.PolicyID{Namespace: "dev", Name: "idle"}
	gone := policy.PolicyID{Namespace: "dev", Name: "gone"}
	at := func(id policy.PolicyID, generation int64, here bool, micros int, packets ...uint64) inforce.Policy {
		heard := sampleNow().Add(-90 * time.Second)
		p := inforce.Policy{Policy: id, Generation: generation, Here: here, Heard: heard}
		if micros > 0 {
			p.InForce = heard.Add(time.Duration(micros) * time.Microsecond)
		}
		for i, n := range packets {
			r := policy.RuleID{Policy: id, Direction: policy.Direction(i % 2), Index: i / 2}
			p.Rules = append(p.Rules, inforce.RuleCount{Rule: r, Count: policy.Count{Packets: n, Bytes: n * 100}})
		}
		return p
	}
	refused := at(big, 1, true, 1000)
	refused.Refused = "netlink receive: no space left on device"
	answer := func(p ...inforce.Policy) inspect.NodePolicies { return inspect.NodePolicies{Policies: p} }
	return policyFacts{
		generations: map[policy.PolicyID]int64{db: 5, ours: 2, big: 1, idle: 1},
		nodes:       []string{"node1", "node2", "node3", "node4"},
		answers: []inspect.NodePolicies{
			answer(at(idle, 1, false, 900), at(db, 5, true, 4123, 10, 3, 1), at(ours, 2, true, 1_204_000), at(big, 1, true, 2000)),
			answer(at(idle, 1, false, 900), at(gone, 1, true, 900), at(db, 4, true, 3000, 5, 5, 0), at(ours, 2, true, 0), refused),
			{Policies: []inforce.Policy{at(idle, 1, false, 900), at(db, 6, true, 2900, 1, 0, 0), at(big, 1, false, 700)}, RulesLeftOut: 3},
			{},
		},
		errs:     []error{nil, nil, nil, errors.New("no agent's pod runs on node4 in namespace heliograph-system")},
		mistakes: map[policy.PolicyID][]string{idle: {"spec.podSelector: is wrong"}},
		notes:    []string{"3 more nodes are not asked: name one with --node"},
	}
}

func TestPolicyStatus(t *testing.T) {
	for name, tt := range map[string]struct {
		facts policyFacts
		form  string
		named bool
	}{
		"table":   {facts: samplePolicies()},
		"wide":    {facts: samplePolicies(), form: "wide"},
		"json":    {facts: samplePolicies(), form: "json"},
		"named":   {facts: oneOf(samplePolicies(), "db"), named: true},
		"nothing": {},
	} {
		t.Run(name, func(t *testing.T) {
			s := tt.facts.status()
			s.named = tt.named
			var got bytes.Buffer
			if err := s.write(&got, tt.form, sampleNow()); err != nil {
				t.Fatal(err)
			}
			golden(t, "policy-status-"+name+".txt", got.Bytes())
		})
	}
	if err := (policyStatus{}).write(&bytes.Buffer{}, "yaml", sampleNow()); err == nil || !strings.Contains(err.Error(), `--output is "yaml"`) {
		t.Errorf("error = %v", err)
	}
}

// oneOf leaves policies of one name.
func oneOf(f policyFacts, name string) policyFacts {
	for id := range f.generations {
		if id.Name != name {
			delete(f.generations, id)
		}
	}
	for i := range f.answers {
		f.answers[i].Policies = slices.DeleteFunc(f.answers[i].Policies, func(p inforce.Policy) bool { return p.Policy.Name != name })
	}
	return f
}

func TestReadPolicyFacts(t *testing.T) {
	api := newPolicyAPI(t)
	for i := range api.objects {
		api.objects[i].Object.SetGeneration(int64(i))
	}
	all, err := readPolicyFacts(t.Context(), api, "", inspect.PolicyQuery{})
	if err != nil {
		t.Fatal(err)
	}
	one, err := readPolicyFacts(t.Context(), api, "node2", inspect.PolicyQuery{Namespace: "prod", Name: "db"})
	if err != nil {
		t.Fatal(err)
	}
	backup := policy.PolicyID{Namespace: "prod", Name: "db-0-backup"}
	if len(all.mistakes) != 1 || len(all.mistakes[backup]) != 1 || !strings.HasPrefix(all.mistakes[backup][0], "spec.ingress[0].from[0].ipBlock.cidr: ") {
		t.Errorf("mistakes %q", all.mistakes)
	}
	if len(all.generations) != 2 || len(one.generations) != 1 || one.generations[policy.PolicyID{Namespace: "prod", Name: "db"}] == 0 {
		t.Errorf("generations %v, %v", all.generations, one.generations)
	}
	if diff := cmp.Diff([][]string{{"node1", "node2"}, {"node2"}}, [][]string{all.nodes, one.nodes}); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	gone, err := readPolicyFacts(t.Context(), api, "", inspect.PolicyQuery{Name: "gone"})
	if err != nil || len(gone.notes) != 1 || gone.notes[0] != "the API server has no policy gone" {
		t.Errorf("notes %q, %v", gone.notes, err)
	}
	if _, err := readPolicyFacts(t.Context(), api, "node9", inspect.PolicyQuery{}); err == nil || !strings.Contains(err.Error(), "there is no node node9") {
		t.Errorf("error = %v", err)
	}
}

func TestPolicyQueryOf(t *testing.T) {
	for in, want := range map[string]inspect.PolicyQuery{"prod/db": {Namespace: "prod", Name: "db"}, "base": {Name: "base"}} {
		if got, err := policyQueryOf([]string{in}); err != nil || got != want {
			t.Errorf("%q = %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "/db", "prod/", "a/b/c"} {
		if got, err := policyQueryOf([]string{in}); err == nil {
			t.Errorf("%q = %+v", in, got)
		}
	}
}

func TestAskPolicies(t *testing.T) {
	want := samplePolicies().answers[0]
	answer, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if q := r.URL.Query(); !slices.Equal(q["command"], []string{"/heliograph", "policy-on-node", "--rules", "prod/db"}) {
			t.Errorf("command = %q", q["command"])
		}
		serveWebSocket(t, w, r, string(answer), "")
	}))
	defer server.Close()
	agent := podList{pods: []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Namespace: "heliograph-system", Name: "a"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}}}
	got, err := askPolicies(t.Context(), &rest.Config{Host: server.URL}, agent, "heliograph-system", "node1", inspect.PolicyQuery{Namespace: "prod", Name: "db", Rules: true})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// enforced are the policies of an enforcer.
type enforced []inforce.Policy

func (e enforced) Policies(context.Context) ([]inforce.Policy, error) { return e, nil }

// The node's half, against a real server.
func TestPolicyOnNode(t *testing.T) {
	dir, err := os.MkdirTemp("", "hel") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	policies := enforced(samplePolicies().answers[0].Policies)
	go func() {
		done <- inspect.New(inspect.Options{Socket: socket, Policies: policies}, slog.New(slog.DiscardHandler)).Serve(ctx)
	}()
	run := func(args ...string) (string, string) {
		var out, errOut bytes.Buffer
		Main(t.Context(), append([]string{"heliograph", policyOnNode, "--socket=" + socket}, args...), &out, &errOut)
		return out.String(), errOut.String()
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		out, errOut := run("prod/db", "--rules")
		if strings.Contains(out, `"packets":10,"bytes":1000`) && !strings.Contains(out, "idle") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("out %q, error %q", out, errOut)
		}
	}
	if out, _ := run(); strings.Contains(out, "packets") || !strings.Contains(out, "idle") {
		t.Errorf("without --rules: %s", out)
	}
	if _, errOut := run("a/b/c"); !strings.Contains(errOut, "is neither NAMESPACE/NAME") {
		t.Errorf("error = %q", errOut)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
