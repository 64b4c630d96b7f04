// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/spf13/cobra"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

func newStatusCommand() *cobra.Command {
	var kubeconfig, node string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Print the cluster at a glance: nodes, blocks, BGP sessions, and the path to each other node and why",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(kubeconfig)
			if err != nil {
				return err
			}
			state, err := readCluster(cmd.Context(), c)
			if err != nil {
				return err
			}
			return state.print(cmd.OutOrStdout(), node, time.Now())
		},
	}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "path of the kubeconfig; default as kubectl's")
	cmd.Flags().StringVar(&node, "node", "", "print only this node's sessions and paths")
	return cmd
}

func newClient(kubeconfig string) (client.Client, error) {
	_, c, err := connect(kubeconfig)
	return c, err
}

// connect finds the API server as kubectl does. Who also runs commands in pods needs its configuration.
func connect(kubeconfig string) (*rest.Config, client.Client, error) {
	cfg, err := restConfig(kubeconfig)
	if err != nil {
		return nil, nil, err
	}
	c, err := clientFor(cfg)
	return cfg, c, err
}

func restConfig(kubeconfig string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	// As kubectl: with client-go's 5 a second, a list of 10,000 pods in pages would take seconds of waiting.
	cfg.QPS, cfg.Burst = 50, 300
	return cfg, nil
}

func clientFor(cfg *rest.Config) (client.Client, error) {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return nil, err
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	if err := policyv1alpha2.Install(scheme); err != nil {
		return nil, err
	}
	return client.New(cfg, client.Options{Scheme: scheme})
}

// clusterState is what status prints.
type clusterState struct {
	nodes    []corev1.Node
	statuses map[string]v1alpha1.NodeStatus
	pools    []v1alpha1.IPPool
	peers    []v1alpha1.BGPPeer
}

func readCluster(ctx context.Context, c client.Client) (clusterState, error) {
	var (
		nodes    corev1.NodeList
		statuses v1alpha1.NodeStatusList
		pools    v1alpha1.IPPoolList
		peers    v1alpha1.BGPPeerList
	)
	for _, list := range []client.ObjectList{&nodes, &statuses, &pools, &peers} {
		if err := c.List(ctx, list); err != nil {
			return clusterState{}, fmt.Errorf("list %T: %w", list, err)
		}
	}
	s := clusterState{nodes: nodes.Items, statuses: map[string]v1alpha1.NodeStatus{}, pools: pools.Items, peers: peers.Items}
	for _, ns := range statuses.Items {
		s.statuses[ns.Name] = ns
	}
	slices.SortFunc(s.nodes, func(a, b corev1.Node) int { return cmp.Compare(a.Name, b.Name) })
	return s, nil
}

func (s clusterState) print(w io.Writer, only string, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	row := func(cells ...string) { _, _ = fmt.Fprintln(t, strings.Join(cells, "\t")) }
	if only == "" {
		s.printPools(row)
		s.printPeers(row)
		s.printNodes(row)
	}
	s.printSessions(row, only, now)
	s.printPaths(row, only, now)
	s.printProblems(row, only)
	return t.Flush()
}

type rowFunc func(cells ...string)

func (s clusterState) printPools(row rowFunc) {
	row("POOL", "CIDR", "ENCAPSULATION", "BLOCKS", "IN USE", "READY")
	for _, p := range s.pools {
		row(p.Name, p.Spec.CIDR, string(p.Spec.Encapsulation),
			fmt.Sprintf("%d/%d", p.Status.Blocks, p.Status.BlockCapacity), fmt.Sprint(p.Status.AddressesInUse), ready(p.Status.Conditions))
	}
	row()
}

func (s clusterState) printPeers(row rowFunc) {
	if len(s.peers) == 0 {
		return
	}
	row("BGP PEER", "ADDRESS", "AS", "SESSIONS", "READY")
	for _, p := range s.peers {
		row(p.Name, p.Spec.PeerIP, fmt.Sprint(p.Spec.ASNumber),
			fmt.Sprintf("%d/%d", p.Status.Established, p.Status.Sessions), ready(p.Status.Conditions))
	}
	row()
}

func (s clusterState) printNodes(row rowFunc) {
	row("NODE", "READY", "POD NETWORK IPS", "BLOCKS", "ADDRESSES", "SESSIONS", "NATIVE", "IPIP", "VXLAN", "NONE", "UNANSWERED")
	for _, n := range s.nodes {
		ns, ok := s.statuses[n.Name]
		if !ok {
			row(n.Name, "no report: is the agent running there?", "", "", "", "", "", "", "")
			continue
		}
		st := ns.Status
		var used int64
		for _, b := range st.Blocks {
			used += b.InUse
		}
		row(n.Name, ready(st.Conditions), strings.Join(st.PodNetworkIPs, ","), fmt.Sprint(len(st.Blocks)), fmt.Sprint(used),
			fmt.Sprintf("%d/%d", st.SessionsEstablished, st.SessionsTotal),
			fmt.Sprint(st.PathsNative), fmt.Sprint(st.PathsIPIP), fmt.Sprint(st.PathsVXLAN), fmt.Sprint(st.PathsNone), unanswered(st))
	}
	row()
}

func (s clusterState) printSessions(row rowFunc, only string, now time.Time) {
	row("SESSION", "OF", "ADDRESS", "AS", "STATE", "FOR", "IN", "OUT", "REJECTED", "LAST ERROR")
	s.each(only, func(node string, st v1alpha1.NodeStatusStatus) {
		all := st.Sessions
		if st.Reflector != nil {
			all = slices.Concat(all, st.Reflector.Sessions)
		}
		for _, b := range all {
			row(b.Name, node, b.PeerIP, fmt.Sprint(b.ASNumber), b.State, age(b.Since, now),
				fmt.Sprint(b.PrefixesIn), fmt.Sprint(b.PrefixesOut), fmt.Sprint(b.Rejected), b.LastError)
		}
	})
	row()
}

func (s clusterState) printPaths(row rowFunc, only string, now time.Time) {
	row("PATH", "TO", "FAMILY", "METHOD", "VIA", "FOR", "WHY")
	s.each(only, func(node string, st v1alpha1.NodeStatusStatus) {
		for _, p := range st.Paths {
			row(node, p.Node, p.Family, methodInUse(p), strings.Join(p.NextHops, ","), age(p.Since, now), p.Reason)
		}
	})
}

// unanswered counts the paths whose other end answers by no method, as far as they are listed.
func unanswered(st v1alpha1.NodeStatusStatus) string {
	n := 0
	for _, p := range st.Paths {
		if p.Unanswered {
			n++
		}
	}
	if n > 0 && len(st.Paths) < allPaths(st) {
		return fmt.Sprintf("%d or more", n)
	}
	return fmt.Sprint(n)
}

func methodInUse(p v1alpha1.PathStatus) string {
	if p.Unanswered {
		return string(p.Method) + " (unanswered)"
	}
	return string(p.Method)
}

func (s clusterState) printProblems(row rowFunc, only string) {
	header := false
	s.each(only, func(node string, st v1alpha1.NodeStatusStatus) {
		all := st.Problems
		if st.Reflector != nil && st.Reflector.Problem != "" {
			all = append([]string{"reflector: " + st.Reflector.Problem}, all...)
		}
		for _, p := range all {
			if !header {
				row()
				row("PROBLEM OF", "WHAT")
				header = true
			}
			row(node, p)
		}
	})
}

func (s clusterState) each(only string, f func(string, v1alpha1.NodeStatusStatus)) {
	for _, n := range s.nodes {
		if ns, ok := s.statuses[n.Name]; ok && (only == "" || only == n.Name) {
			f(n.Name, ns.Status)
		}
	}
}

// ready is "True", or the status with its reason and message.
func ready(conditions []metav1.Condition) string {
	c := apimeta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
	switch {
	case c == nil:
		return "Unknown"
	case c.Status == metav1.ConditionTrue:
		return "True"
	}
	return fmt.Sprintf("%s (%s: %s)", c.Status, c.Reason, c.Message)
}

func age(since *metav1.Time, now time.Time) string {
	if since == nil {
		return "-"
	}
	return duration.HumanDuration(now.Sub(since.Time))
}
