// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/spf13/cobra"

	"github.com/heliograph-dev/heliograph/policy/explain"
)

func newPolicyExplainCommand() *cobra.Command {
	var (
		kubeconfig, from, to, output string
		change                       changeFlags
		backends                     int
	)
	cmd := &cobra.Command{
		Use:   "explain --from NAMESPACE/POD|IP|node/NAME --to NAMESPACE/POD:PORT[/PROTOCOL]|IP:PORT|node/NAME:PORT|service/NAMESPACE/NAME:PORT",
		Short: "Say whether policy lets a packet through, and by which rules on both ends",
		Long: "Follows the first packet of a connection: through a service to its endpoints, out of the sender's pod, into the\n" +
			"receiver's, or through a node's HostEndpoint: each tier, policy and rule, with what matches or the first condition that differs. PROTOCOL is tcp\n" +
			"(as without one), udp or sctp; instead of a port there can be /icmp. It asks no node, but computes from the API\n" +
			"what nodes enforce, and so needs the right to list what policy follows from. With --with-file and --without\n" +
			"it is a dry run of a change.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			query, err := parsePolicyQuery(from, to)
			if err != nil {
				return err
			}
			query.MaxBackends = backends
			change.namespace = namespaceOf(kubeconfig)
			edit, said, err := change.read(cmd.InOrStdin())
			if err != nil {
				return err
			}
			c, err := newClient(kubeconfig)
			if err != nil {
				return err
			}
			answer, err := explainPolicy(cmd.Context(), c, query, edit)
			if err != nil {
				return err
			}
			return policyAnswer{Answer: answer, DryRun: said}.write(cmd.OutOrStdout(), output)
		},
	}
	f := cmd.Flags()
	f.StringVar(&kubeconfig, "kubeconfig", "", "path of the kubeconfig; default as kubectl's")
	f.StringVar(&from, "from", "", "who sends: NAMESPACE/POD, an address or node/NAME")
	f.StringVar(&to, "to", "", "who receives: NAMESPACE/POD, an address (IPv6 in brackets), node/NAME or service/NAMESPACE/NAME, and :PORT[/PROTOCOL] or /icmp")
	f.StringArrayVar(&change.files, "with-file", nil, "YAML file of objects to put over those of the cluster, - for standard input; can be repeated")
	f.StringArrayVar(&change.without, "without", nil, "KIND/NAMESPACE/NAME of an object to do without; can be repeated")
	f.IntVar(&backends, "max-backends", 10, "how many endpoints of a service are looked at")
	f.StringVarP(&output, "output", "o", "", "wide: all rules that do not match; json: see docs/policy-troubleshooting.md")
	for _, name := range []string{"from", "to"} {
		_ = cmd.MarkFlagRequired(name) // the flag is there
	}
	return cmd
}

func parsePolicyQuery(from, to string) (q explain.Query, err error) {
	if q.From, err = explain.ParseSource(from); err != nil {
		return q, fmt.Errorf("--from: %w", err)
	}
	if q.To, err = explain.ParseTarget(to); err != nil {
		return q, fmt.Errorf("--to: %w", err)
	}
	return q, nil
}

func explainPolicy(ctx context.Context, c client.Client, q explain.Query, change explain.Change) (*explain.Answer, error) {
	cluster, notes, err := readPolicyCluster(ctx, c)
	if err != nil {
		return nil, err
	}
	// Who may not read them can still ask for pods.
	if err := readNodeAddresses(ctx, c, cluster); err != nil && q.From.Node != "" {
		return nil, err
	}
	if cluster, err = cluster.Apply(change); err != nil {
		return nil, err
	}
	view, err := explain.NewView(cluster)
	if err != nil {
		return nil, err
	}
	answer, err := view.Explain(q)
	if err != nil {
		return nil, err
	}
	answer.Notes = append(answer.Notes, notes...)
	return answer, nil
}

// policyAnswer is what policy explain prints.
type policyAnswer struct {
	*explain.Answer
	DryRun *dryRun `json:"dryRun,omitempty"`
}

func (a policyAnswer) write(w io.Writer, form string) error {
	switch form {
	case "json":
		return encodeJSON(w, a)
	case "", "wide":
		p := answerPrinter{wide: form == "wide"}
		p.print(a)
		_, err := w.Write(p.out.Bytes())
		return err
	}
	return fmt.Errorf("--output is %q: it can be wide or json", form)
}
