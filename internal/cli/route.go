// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/spf13/cobra"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/felix/explain"
)

func newRouteCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "route", Short: "Look at routes"}
	cmd.AddCommand(newRouteExplainCommand())
	return cmd
}

func newRouteExplainCommand() *cobra.Command {
	var kubeconfig, from, namespace string
	cmd := &cobra.Command{
		Use:   "explain IP",
		Short: "Follow a packet for an address, from pool to wire, and say where it stops",
		Long: "Follows a packet for an address: pool, block, owner, the methods there are and the one chosen, and with --from\n" +
			"what that node's kernel makes of it: route, nexthop object, device, neighbour, FDB. For the kernel's part it runs\n" +
			"a command in the agent's pod there, which needs the right to create pods/exec in heliograph's namespace.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ip, err := netip.ParseAddr(args[0])
			if err != nil {
				return err
			}
			cfg, c, err := connect(kubeconfig)
			if err != nil {
				return err
			}
			facts, err := gather(cmd.Context(), c, ip.WithZone("").Unmap(), from)
			if err != nil {
				return err
			}
			if from == "" {
				return writeSteps(cmd.OutOrStdout(), explainEverywhere(facts))
			}
			facts.kernel, facts.noKernel = askKernel(cmd.Context(), cfg, c, namespace, from, facts.ip)
			return writeSteps(cmd.OutOrStdout(), explainRoute(facts))
		},
	}
	f := cmd.Flags()
	f.StringVar(&kubeconfig, "kubeconfig", "", "path of the kubeconfig; default as kubectl's")
	f.StringVar(&from, "from", "", "the node whose packet is followed; without it, a line for each node, as far as the API tells")
	f.StringVar(&namespace, "heliograph-namespace", "heliograph-system", "namespace of the agents")
	return cmd
}

// gather reads from the API what the way to an address is explained from.
func gather(ctx context.Context, c client.Client, ip netip.Addr, from string) (routeFacts, error) {
	f := routeFacts{ip: ip, from: from, now: time.Now()}
	var err error
	if f.state, err = readCluster(ctx, c); err != nil {
		return f, err
	}
	if from != "" && !f.state.hasNode(from) {
		return f, fmt.Errorf("there is no node %s", from)
	}
	f.pools = f.state.pools
	var blocks v1alpha1.IPBlockList
	if err := c.List(ctx, &blocks); err != nil {
		return f, fmt.Errorf("list IPBlocks: %w", err)
	}
	f.blocks = blocks.Items
	f.pods, f.noPods = podsOfOwner(ctx, c, &f)
	return f, nil
}

// podsOfOwner lists the pods of the node that holds the address's block. Who may not list pods can still
// learn all the rest.
func podsOfOwner(ctx context.Context, c client.Client, f *routeFacts) ([]corev1.Pod, string) {
	w := walk{routeFacts: *f}
	if !w.follow(w.findPool, w.findBlock) {
		return nil, ""
	}
	var pods corev1.PodList
	if err := c.List(ctx, &pods, client.MatchingFields{"spec.nodeName": w.block.Spec.Node}); err != nil {
		return nil, "list pods: " + err.Error()
	}
	return pods.Items, ""
}

// writeSteps prints a walk.
func writeSteps(w io.Writer, steps []step) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, s := range steps {
		text := s.text
		if s.broken {
			text = "stops here: " + text
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\n", s.name, strings.ReplaceAll(text, "\t", " "))
	}
	return t.Flush()
}

// askKernel runs kernel-route in the agent's pod on a node. Without an answer it says why.
func askKernel(ctx context.Context, cfg *rest.Config, c client.Client, namespace, node string, ip netip.Addr) (*explain.Route, string) {
	pod, err := agentPod(ctx, c, namespace, node)
	if err != nil {
		return nil, err.Error()
	}
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	out, err := execInPod(ctx, cfg, pod, "agent", execLimit, "/heliograph", kernelRoute, ip.String())
	if err != nil {
		return nil, fmt.Sprintf("run %s in pod %s/%s: %s", kernelRoute, pod.Namespace, pod.Name, err)
	}
	var r explain.Route
	if err := json.Unmarshal(out, &r); err != nil {
		return nil, fmt.Sprintf("the answer of pod %s/%s: %s", pod.Namespace, pod.Name, err)
	}
	return &r, ""
}

// agentPod finds the running agent of a node.
func agentPod(ctx context.Context, c client.Client, namespace, node string) (*corev1.Pod, error) {
	var pods corev1.PodList
	err := c.List(ctx, &pods, client.InNamespace(namespace), client.MatchingFields{"spec.nodeName": node},
		client.MatchingLabels{"app.kubernetes.io/name": "heliograph", "app.kubernetes.io/component": "agent"})
	if err != nil {
		return nil, fmt.Errorf("find the agent's pod: %w", err)
	}
	for i, p := range pods.Items {
		if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			return &pods.Items[i], nil
		}
	}
	return nil, fmt.Errorf("no agent's pod runs on %s in namespace %s", node, namespace)
}

// kernelRoute is the subcommand that runs on the node.
const kernelRoute = "kernel-route"

// newKernelRouteCommand is the node's half of route explain; hidden, for its form may change with it.
func newKernelRouteCommand() *cobra.Command {
	return &cobra.Command{
		Use:    kernelRoute + " IP",
		Short:  "Print as JSON what this node's kernel would do with a packet for an address",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			ip, err := netip.ParseAddr(args[0])
			if err != nil {
				return err
			}
			r, err := explain.Explain(ip)
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(r)
		},
	}
}
