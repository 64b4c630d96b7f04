// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/spf13/cobra"

	"github.com/heliograph-dev/heliograph/felix/inforce"
	"github.com/heliograph-dev/heliograph/felix/inspect"
	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/explain"
)

func newPolicyStatusCommand() *cobra.Command {
	var kubeconfig, node, namespace, output string
	cmd := &cobra.Command{
		Use:   "status [NAMESPACE/NAME|NAME]",
		Short: "Say on which nodes policies are in force, in which generation, and how long that took",
		Long: "Asks nodes which policies they enforce, and compares with the API: for each policy the nodes with pods that it\n" +
			"selects, how many of them have its present generation in force, and the longest time from hearing of it to that.\n" +
			"With one policy named, or -o wide, also what its rules have seen. It runs a command in the agents' pods, which\n" +
			"needs the right to create pods/exec in heliograph's namespace.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			query, err := policyQueryOf(args)
			if err != nil {
				return err
			}
			query.Rules = output == "wide" || output == "json" || query.Name != ""
			cfg, c, err := connect(kubeconfig)
			if err != nil {
				return err
			}
			facts, err := readPolicyFacts(cmd.Context(), c, node, query)
			if err != nil {
				return err
			}
			facts.answers, facts.errs = askEach(cmd.Context(), facts.nodes, func(ctx context.Context, node string) (inspect.NodePolicies, error) {
				return askPolicies(ctx, cfg, c, namespace, node, query)
			})
			status := facts.status()
			status.named = query.Name != ""
			return status.write(cmd.OutOrStdout(), output, time.Now())
		},
	}
	f := cmd.Flags()
	f.StringVar(&kubeconfig, "kubeconfig", "", "path of the kubeconfig; default as kubectl's")
	f.StringVar(&node, "node", "", "ask only this node; without it, the first 16")
	f.StringVar(&namespace, "heliograph-namespace", "heliograph-system", "namespace of the agents")
	f.StringVarP(&output, "output", "o", "", "wide: nodes and rules of all policies; json: see docs/policy-troubleshooting.md")
	return cmd
}

// policyQueryOf takes NAMESPACE/NAME, the NAME of a policy of the cluster, or nothing.
func policyQueryOf(args []string) (inspect.PolicyQuery, error) {
	if len(args) == 0 {
		return inspect.PolicyQuery{}, nil
	}
	namespace, name, ok := strings.Cut(args[0], "/")
	if !ok {
		namespace, name = "", args[0]
	}
	if name == "" || ok && namespace == "" || strings.Contains(name, "/") {
		return inspect.PolicyQuery{}, fmt.Errorf("%.100q is neither NAMESPACE/NAME nor the NAME of a policy of the cluster", args[0])
	}
	return inspect.PolicyQuery{Namespace: namespace, Name: name}, nil
}

// policyFacts are what the status of policies is made from.
type policyFacts struct {
	generations map[policy.PolicyID]int64 // of the API
	mistakes    map[policy.PolicyID][]string
	nodes       []string // asked
	answers     []inspect.NodePolicies
	errs        []error
	notes       []string
}

func readPolicyFacts(ctx context.Context, c client.Client, only string, q inspect.PolicyQuery) (policyFacts, error) {
	f := policyFacts{generations: map[policy.PolicyID]int64{}}
	policies := explain.NewCluster()
	for _, k := range explain.Kinds() {
		var kind policy.Kind
		if kind.UnmarshalText([]byte(k.String())) != nil {
			continue // it is no policy
		}
		if err := readKind(ctx, c, k, policies); err != nil {
			return f, err
		}
		for _, o := range policies.Objects(k) {
			id := policy.PolicyID{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}
			if q.Matches(inforce.Policy{Policy: id}) {
				f.generations[id] = o.GetGeneration()
			}
		}
	}
	f.mistakes = explain.Mistakes(policies)
	if q.Name != "" && len(f.generations) == 0 {
		f.notes = append(f.notes, fmt.Sprintf("the API server has no policy %s", strings.TrimPrefix(q.Namespace+"/"+q.Name, "/")))
	}
	var nodes corev1.NodeList
	if err := c.List(ctx, &nodes); err != nil {
		return f, fmt.Errorf("list nodes: %w", err)
	}
	for i := range nodes.Items {
		if n := nodes.Items[i].Name; only == "" || only == n {
			f.nodes = append(f.nodes, n)
		}
	}
	if only != "" && len(f.nodes) == 0 {
		return f, fmt.Errorf("there is no node %s", only)
	}
	slices.Sort(f.nodes)
	if left := len(f.nodes) - maxAsked; left > 0 {
		f.nodes = f.nodes[:maxAsked]
		f.notes = append(f.notes, fmt.Sprintf("%d more nodes are not asked: name one with --node", left))
	}
	return f, nil
}

// askPolicies runs policy-on-node in the agent's pod on a node.
func askPolicies(ctx context.Context, cfg *rest.Config, c client.Client, namespace, node string, q inspect.PolicyQuery) (inspect.NodePolicies, error) {
	var out inspect.NodePolicies
	args := []string{policyOnNode}
	if q.Rules {
		args = append(args, "--rules")
	}
	if q.Name != "" {
		args = append(args, strings.TrimPrefix(q.Namespace+"/"+q.Name, "/"))
	}
	err := askAgent(ctx, cfg, c, namespace, node, &out, args...)
	return out, err
}

// policyOnNode is the subcommand that runs on the node.
const policyOnNode = "policy-on-node"

// newPolicyOnNodeCommand is the node's half of policy status; hidden, for its form may change with it.
func newPolicyOnNodeCommand() *cobra.Command {
	var socket string
	var rules bool
	cmd := &cobra.Command{
		Use:    policyOnNode + " [NAMESPACE/NAME|NAME]",
		Short:  "Print as JSON the policies that this node's agent knows",
		Args:   cobra.MaximumNArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			query, err := policyQueryOf(args)
			if err != nil {
				return err
			}
			query.Rules = rules
			ctx, cancel := context.WithTimeout(cmd.Context(), execTimeout)
			defer cancel()
			policies, err := inspect.NewClient(socket).Policies(ctx, query)
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(policies)
		},
	}
	cmd.Flags().StringVar(&socket, "socket", inspect.SocketPath, "unix socket of the agent")
	cmd.Flags().BoolVar(&rules, "rules", false, "print what the rules have seen")
	return cmd
}

// policyStatus is the answer of policy status, and with -o json its form: fields are added, and never change.
type policyStatus struct {
	Policies []policyLine     `json:"policies"`
	Nodes    []policyNodeLine `json:"nodes"`
	// Notes say what the answer does not show.
	Notes []string `json:"notes,omitempty"`
	// named says that one policy was asked for.
	named bool
}

// policyNodeLine is a node that was asked.
type policyNodeLine struct {
	Node string `json:"node"`
	// NotAsked is why the node gave no answer.
	NotAsked string `json:"notAsked"`
}

// policyLine is a policy on the nodes that answered.
type policyLine struct {
	Policy policy.PolicyID `json:"policy"`
	// Generation of the API; 0: it does not have the policy, or no more.
	Generation int64 `json:"generation"`
	// Concerned is how many nodes have pods that the policy selects, InForce on how many of them its present
	// generation is in force.
	Concerned int `json:"concerned"`
	InForce   int `json:"inForce"`
	// SlowestMicroseconds is the longest that one of those took, from hearing of it.
	SlowestMicroseconds int64          `json:"slowestMicroseconds"`
	Nodes               []policyAtNode `json:"nodes"`
	// Rules with what they have seen on all nodes that answered.
	Rules []inforce.RuleCount `json:"rules,omitempty"`
	// Remarks say what is wrong with it, where it is not in force as it should be, and why.
	Remarks []string `json:"remarks,omitempty"`
}

// policyAtNode is a policy on a node.
type policyAtNode struct {
	Node string `json:"node"`
	inforce.Policy
}

func (f policyFacts) status() policyStatus {
	s := policyStatus{Policies: []policyLine{}, Nodes: []policyNodeLine{}, Notes: f.notes}
	lines := map[policy.PolicyID]*policyLine{}
	for id, g := range f.generations {
		lines[id] = &policyLine{Policy: id, Generation: g, Nodes: []policyAtNode{}}
	}
	for i, node := range f.nodes {
		n := policyNodeLine{Node: node}
		if f.errs[i] != nil {
			n.NotAsked = f.errs[i].Error()
			s.Notes = append(s.Notes, fmt.Sprintf("%s is not asked: %s", node, n.NotAsked))
		}
		s.Nodes = append(s.Nodes, n)
		for _, p := range f.answers[i].Policies {
			if lines[p.Policy] == nil {
				lines[p.Policy] = &policyLine{Policy: p.Policy, Nodes: []policyAtNode{}}
			}
			lines[p.Policy].Nodes = append(lines[p.Policy].Nodes, policyAtNode{Node: node, Policy: p})
		}
		if left := f.answers[i].PoliciesLeftOut; left > 0 {
			s.Notes = append(s.Notes, fmt.Sprintf("%s leaves out %d policies: name one", node, left))
		}
		if left := f.answers[i].RulesLeftOut; left > 0 {
			s.Notes = append(s.Notes, fmt.Sprintf("%s leaves out %d rules: name a policy", node, left))
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(lines), policy.PolicyID.Compare) {
		line := lines[id]
		for _, m := range f.mistakes[id] {
			line.Remarks = append(line.Remarks, "mistake: "+m)
		}
		line.judge(f.silent(line))
		s.Policies = append(s.Policies, *line)
	}
	return s
}

// silent are the nodes that told all, and did not name a policy.
func (f policyFacts) silent(l *policyLine) []string {
	var out []string
	for i, node := range f.nodes {
		knows := slices.ContainsFunc(l.Nodes, func(n policyAtNode) bool { return n.Node == node })
		if f.errs[i] == nil && !knows && f.answers[i].PoliciesLeftOut == 0 {
			out = append(out, node)
		}
	}
	return out
}

// judge compares what nodes say with the API.
func (l *policyLine) judge(silent []string) {
	counts := map[policy.RuleID]policy.Count{}
	for _, n := range l.Nodes {
		for _, r := range n.Rules {
			sum := counts[r.Rule]
			counts[r.Rule] = policy.Count{Packets: sum.Packets + r.Packets, Bytes: sum.Bytes + r.Bytes}
		}
		if n.Here {
			l.Concerned++
		}
		if text := l.lag(n); text != "" {
			l.Remarks = append(l.Remarks, n.Node+" "+text)
		} else if n.Here {
			l.InForce++
			l.SlowestMicroseconds = max(l.SlowestMicroseconds, n.InForce.Sub(n.Heard).Microseconds())
		}
	}
	if len(silent) > 0 && l.Generation > 0 {
		l.Remarks = append(l.Remarks, fmt.Sprintf("%s: not heard of it yet", strings.Join(silent, ", ")))
	}
	for _, id := range slices.SortedFunc(maps.Keys(counts), compareRuleIDs) {
		l.Rules = append(l.Rules, inforce.RuleCount{Rule: id, Count: counts[id]})
	}
}

func compareRuleIDs(a, b policy.RuleID) int {
	return cmp.Or(cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Index, b.Index))
}

// lag says why the policy is not in force on a node as the API has it; "" if it is. A node can know more than
// was read from the API a moment before.
func (l *policyLine) lag(n policyAtNode) string {
	switch {
	case n.Refused != "":
		return "closes its pods, since the kernel refuses it: " + n.Refused
	case l.Generation == 0:
		return fmt.Sprintf("has generation %d, and the API server has it no more", n.Generation)
	case n.Generation < l.Generation:
		return fmt.Sprintf("has generation %d of %d", n.Generation, l.Generation)
	case n.InForce.IsZero():
		return fmt.Sprintf("has heard of generation %d, which is not in force yet", n.Generation)
	}
	return ""
}
