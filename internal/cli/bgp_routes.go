// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/spf13/cobra"

	"github.com/heliograph-dev/heliograph/felix/inspect"
)

const (
	// maxAsked is how many nodes are asked without --node, maxAsking how many of them at once.
	maxAsked  = 16
	maxAsking = 8
	// routesLimit is how many bytes of a node's answer are read: twice what a full one with routes has.
	routesLimit = 64 << 20
)

func newBGPRoutesCommand() *cobra.Command {
	var kubeconfig, node, namespace, output string
	cmd := &cobra.Command{
		Use:   "routes [PREFIX|ADDRESS]",
		Short: "Print the BGP paths that nodes hold, and which of a reflector's are the best and why",
		Long: "Prints every path that a node's speaker accepted and, where the node reflects, every path of its reflector:\n" +
			"those to a prefix and what lies within it, or to the prefixes that contain an address, or all. Without --node\n" +
			"it asks the reflectors, or all nodes if there are none. It runs a command in the agents' pods, which needs the\n" +
			"right to create pods/exec in heliograph's namespace.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			query, err := queryOf(args)
			if err != nil {
				return err
			}
			cfg, c, err := connect(kubeconfig)
			if err != nil {
				return err
			}
			state, err := readBGP(cmd.Context(), c)
			if err != nil {
				return err
			}
			nodes, notes, err := state.toAsk(node)
			if err != nil {
				return err
			}
			list := bgpRoutes{Nodes: askAll(cmd.Context(), nodes, func(ctx context.Context, node string) (inspect.Routes, error) {
				return askRoutes(ctx, cfg, c, namespace, node, query)
			}), Notes: notes}
			return list.write(cmd.OutOrStdout(), output)
		},
	}
	f := cmd.Flags()
	f.StringVar(&kubeconfig, "kubeconfig", "", "path of the kubeconfig; default as kubectl's")
	f.StringVar(&node, "node", "", "ask only this node; without it, the reflectors, or all nodes if there are none")
	f.StringVar(&namespace, "heliograph-namespace", "heliograph-system", "namespace of the agents")
	f.StringVarP(&output, "output", "o", "", "json: see docs/bgp.md")
	return cmd
}

func queryOf(args []string) (inspect.Query, error) {
	if len(args) == 0 {
		return inspect.Query{}, nil
	}
	return inspect.ParseQuery(args[0])
}

// toAsk names the nodes to ask, and says which are left out.
func (s bgpState) toAsk(only string) (nodes, notes []string, err error) {
	if only != "" {
		if !s.hasNode(only) {
			return nil, nil, fmt.Errorf("there is no node %s", only)
		}
		return []string{only}, nil, nil
	}
	what := "reflectors"
	if nodes = s.reflecting(); len(nodes) == 0 {
		what = "nodes"
		for _, n := range s.nodes {
			nodes = append(nodes, n.Name)
		}
	}
	if left := len(nodes) - maxAsked; left > 0 {
		nodes = nodes[:maxAsked]
		notes = append(notes, fmt.Sprintf("%d more %s are not asked: name one with --node", left, what))
	}
	return nodes, notes, nil
}

// reflecting are the nodes that the controller chose, and those that say that they reflect, by name.
func (s bgpState) reflecting() []string {
	var out []string
	for _, n := range s.nodes {
		chosen := false
		for _, r := range s.chosen() {
			chosen = chosen || r.Node == n.Name
		}
		if chosen || s.statuses[n.Name].Status.Reflector != nil {
			out = append(out, n.Name)
		}
	}
	return out
}

// askAll asks nodes for their routes. A node that cannot be asked is part of the answer.
func askAll(ctx context.Context, nodes []string, ask func(context.Context, string) (inspect.Routes, error)) []nodeRoutes {
	out := make([]nodeRoutes, len(nodes))
	answers, errs := askEach(ctx, nodes, ask)
	for i, node := range nodes {
		out[i] = nodeRoutes{Node: node, Routes: inspect.Routes{Paths: []inspect.Path{}, Reflected: []inspect.Route{}}}
		if errs[i] != nil {
			out[i].NotAsked = errs[i].Error()
			continue
		}
		out[i].Routes = answers[i]
	}
	return out
}

// askEach asks nodes, some at a time.
func askEach[T any](ctx context.Context, nodes []string, ask func(context.Context, string) (T, error)) ([]T, []error) {
	answers, errs := make([]T, len(nodes)), make([]error, len(nodes))
	turn := make(chan struct{}, maxAsking)
	var asking sync.WaitGroup
	for i, node := range nodes {
		asking.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			answers[i], errs[i] = ask(ctx, node)
		})
	}
	asking.Wait()
	return answers, errs
}

// askRoutes runs bgp-routes in the agent's pod on a node.
func askRoutes(ctx context.Context, cfg *rest.Config, c client.Client, namespace, node string, q inspect.Query) (inspect.Routes, error) {
	var out inspect.Routes
	args := []string{bgpRoutesOnNode}
	if s := q.String(); s != "" {
		args = append(args, s)
	}
	if err := askAgent(ctx, cfg, c, namespace, node, &out, args...); err != nil {
		return out, err
	}
	out.Paths, out.Reflected = slices.Concat([]inspect.Path{}, out.Paths), slices.Concat([]inspect.Route{}, out.Reflected) // never null
	return out, nil
}

// askAgent runs a subcommand in the agent's pod on a node, which prints an answer as JSON.
func askAgent(ctx context.Context, cfg *rest.Config, c client.Client, namespace, node string, out any, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	pod, err := agentPod(ctx, c, namespace, node)
	if err != nil {
		return err
	}
	answer, err := execInPod(ctx, cfg, pod, "agent", routesLimit, append([]string{"/heliograph"}, args...)...)
	if err != nil {
		return fmt.Errorf("run %s in pod %s/%s: %w", args[0], pod.Namespace, pod.Name, err)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("the answer of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// bgpRoutesOnNode is the subcommand that runs on the node.
const bgpRoutesOnNode = "bgp-routes"

// newBGPRoutesOnNodeCommand is the node's half of bgp routes; hidden, for its form may change with it.
func newBGPRoutesOnNodeCommand() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:    bgpRoutesOnNode + " [PREFIX|ADDRESS]",
		Short:  "Print as JSON the BGP paths that this node's agent holds",
		Args:   cobra.MaximumNArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			query, err := queryOf(args)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), execTimeout)
			defer cancel()
			routes, err := inspect.NewClient(socket).Routes(ctx, query)
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(routes)
		},
	}
	cmd.Flags().StringVar(&socket, "socket", inspect.SocketPath, "unix socket of the agent")
	return cmd
}
