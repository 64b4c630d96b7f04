// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"

	"github.com/heliograph-dev/heliograph/felix/inforce"
)

// policyPath of the URL.
const policyPath = "/policy"

// NodePolicies are the policies that a node's agent knows. Its form as JSON is part of what `policy status -o
// json` prints: fields are added, and never change.
type NodePolicies struct {
	Policies []inforce.Policy `json:"policies"`
	// PoliciesLeftOut and RulesLeftOut are how many more there are.
	PoliciesLeftOut int `json:"policiesLeftOut"`
	RulesLeftOut    int `json:"rulesLeftOut"`
}

// PolicyQuery says which policies are asked for. The zero one is all, without their rules.
type PolicyQuery struct {
	// Namespace and Name of policies, of whatever kind; with a name alone those of the cluster.
	Namespace, Name string
	// Rules asks for what the rules have seen.
	Rules bool
}

// Matches says whether a policy is asked for.
func (q PolicyQuery) Matches(p inforce.Policy) bool {
	return q.Name == "" || q.Name == p.Policy.Name && q.Namespace == p.Policy.Namespace
}

func (q PolicyQuery) values() url.Values {
	v := url.Values{}
	if q.Name != "" {
		v.Set("name", q.Name)
	}
	if q.Namespace != "" {
		v.Set("namespace", q.Namespace)
	}
	if q.Rules {
		v.Set("rules", "true")
	}
	return v
}

// parsePolicyValues takes the query of a URL, and refuses what it does not know, as parseValues.
func parsePolicyValues(raw string) (PolicyQuery, error) {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return PolicyQuery{}, fmt.Errorf("the query of the URL: %w", err)
	}
	var q PolicyQuery
	for key, all := range values {
		switch {
		case len(all) > 1 || all[0] == "":
			err = fmt.Errorf("%.60q must be said once, and be something", key)
		case key == "name":
			q.Name = all[0]
		case key == "namespace":
			q.Namespace = all[0]
		case key == "rules":
			if q.Rules, err = strconv.ParseBool(all[0]); err != nil {
				err = fmt.Errorf("rules=%.60q is neither true nor false", all[0])
			}
		default:
			err = fmt.Errorf("%.60q is unknown: it can be namespace, name or rules", key)
		}
		if err != nil {
			return PolicyQuery{}, err
		}
	}
	if q.Namespace != "" && q.Name == "" {
		return PolicyQuery{}, errors.New("a namespace goes with a name")
	}
	return q, nil
}

// collectPolicies asks the enforcer, and keeps what is asked for up to MaxRules.
func (s *Server) collectPolicies(ctx context.Context, q PolicyQuery) (NodePolicies, error) {
	out := NodePolicies{Policies: []inforce.Policy{}}
	all, err := s.opts.Policies.Policies(ctx)
	if err != nil {
		return out, fmt.Errorf("ask what is in force: %w", err)
	}
	rules := 0
	for _, p := range all {
		switch {
		case !q.Matches(p):
			continue
		case len(out.Policies) >= s.opts.MaxRules:
			out.PoliciesLeftOut++
			continue
		case !q.Rules:
			p.Rules = nil
		case rules+len(p.Rules) > s.opts.MaxRules:
			out.RulesLeftOut += len(p.Rules)
			p.Rules = nil
		}
		rules += len(p.Rules)
		out.Policies = append(out.Policies, p)
	}
	return out, nil
}
