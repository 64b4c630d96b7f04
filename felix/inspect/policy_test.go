// SPDX-License-Identifier: Apache-2.0

package inspect_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/felix/inforce"
	"github.com/heliograph-dev/heliograph/felix/inspect"
	"github.com/heliograph-dev/heliograph/policy"
)

// enforcer has policies, or cannot tell.
type enforcer struct {
	policies []inforce.Policy
	err      error
}

func (e enforcer) Policies(context.Context) ([]inforce.Policy, error) { return e.policies, e.err }

// threePolicies are one of Kubernetes', one of ours of the same name, and one of the cluster, with two rules each.
func threePolicies() []inforce.Policy {
	heard := time.Date(2026, 11, 25, 8, 0, 0, 0, time.UTC)
	var out []inforce.Policy
	for i, id := range []policy.PolicyID{
		{Namespace: "prod", Name: "db"}, {Kind: policy.HeliographNetworkPolicy, Namespace: "prod", Name: "db"}, {Kind: policy.GlobalNetworkPolicy, Name: "db"},
	} {
		p := inforce.Policy{Policy: id, Generation: int64(i + 1), Here: true, Heard: heard, InForce: heard.Add(4 * time.Millisecond)}
		for n := range 2 {
			p.Rules = append(p.Rules, inforce.RuleCount{Rule: policy.RuleID{Policy: id, Index: n}, Count: policy.Count{Packets: 7, Bytes: 700}})
		}
		out = append(out, p)
	}
	out[2].InForce, out[2].Refused = time.Time{}, "too many rules"
	return out
}

func withoutRules(in ...inforce.Policy) []inforce.Policy {
	out := []inforce.Policy{}
	for _, p := range in {
		p.Rules = nil
		out = append(out, p)
	}
	return out
}

func TestPolicies(t *testing.T) {
	all := threePolicies()
	for name, tt := range map[string]struct {
		query inspect.PolicyQuery
		most  int
		want  inspect.NodePolicies
	}{
		"all":              {want: inspect.NodePolicies{Policies: withoutRules(all...)}},
		"with rules":       {query: inspect.PolicyQuery{Rules: true}, want: inspect.NodePolicies{Policies: all}},
		"of a name":        {query: inspect.PolicyQuery{Namespace: "prod", Name: "db"}, want: inspect.NodePolicies{Policies: withoutRules(all[:2]...)}},
		"of the cluster":   {query: inspect.PolicyQuery{Name: "db", Rules: true}, want: inspect.NodePolicies{Policies: all[2:]}},
		"none of the name": {query: inspect.PolicyQuery{Name: "x"}, want: inspect.NodePolicies{Policies: []inforce.Policy{}}},
		"more than told":   {most: 2, want: inspect.NodePolicies{Policies: withoutRules(all[:2]...), PoliciesLeftOut: 1}},
		"more rules":       {query: inspect.PolicyQuery{Rules: true}, most: 3, want: inspect.NodePolicies{Policies: append(all[:1:1], withoutRules(all[1:]...)...), RulesLeftOut: 4}},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, inspect.Options{Policies: enforcer{policies: all}, MaxRules: tt.most})
			got, err := inspect.NewClient(s.path).Policies(t.Context(), tt.query)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestPoliciesThatCannotBeTold(t *testing.T) {
	for name, tt := range map[string]struct {
		opts inspect.Options
		want string
	}{
		"no policy here":      {inspect.Options{}, "404 Not Found: no policy is enforced here"},
		"the kernel says no":  {inspect.Options{Policies: enforcer{err: errors.New("no buffer space")}}, "ask what is in force: no buffer space"},
		"a loop that is busy": {inspect.Options{Policies: enforcer{err: context.DeadlineExceeded}}, "ask what is in force: context deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := inspect.NewClient(start(t, tt.opts).path).Policies(t.Context(), inspect.PolicyQuery{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v; want %q in it", err, tt.want)
			}
		})
	}
}

func TestMalformedPolicyRequests(t *testing.T) {
	s := start(t, inspect.Options{Policies: enforcer{policies: threePolicies()}})
	get := func(query string) string { return "GET /policy?" + query + " HTTP/1.1\r\nHost: a\r\n\r\n" }
	for name, tt := range map[string]struct{ request, status, body string }{
		"another method":   {"POST /policy HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 405", ""},
		"a body":           {"GET /policy HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 400", "no body"},
		"twice":            {get("name=a&name=b"), "HTTP/1.1 400", "must be said once"},
		"nothing":          {get("name="), "HTTP/1.1 400", "must be said once"},
		"a namespace only": {get("namespace=a"), "HTTP/1.1 400", "a namespace goes with a name"},
		"unknown":          {get("kind=a"), "HTTP/1.1 400", `"kind" is unknown`},
		"rules":            {get("rules=some"), "HTTP/1.1 400", "neither true nor false"},
		"bad escape":       {get("name=%zz"), "HTTP/1.1 400", ""},
		"after all that":   {get("name=db&namespace=prod&rules=1"), "HTTP/1.1 200", `"kind":"NetworkPolicy.heliograph.dev"`},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := s.say(t, tt.request)
			if !strings.HasPrefix(status, tt.status) || !strings.Contains(body, tt.body) {
				t.Errorf("answer = %q, %.300q; want %s, %q", status, body, tt.status, tt.body)
			}
		})
	}
}
