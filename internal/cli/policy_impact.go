// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/spf13/cobra"

	"github.com/heliograph-dev/heliograph/policy/explain"
)

func newPolicyImpactCommand() *cobra.Command {
	var (
		kubeconfig, output string
		change             changeFlags
	)
	cmd := &cobra.Command{
		Use:   "impact -f FILE",
		Short: "Say which pods could talk to which others, or no more, if objects were changed",
		Long: "Compares what policy allows now with what it would allow with the objects of files, or without some: between\n" +
			"pods, and between them and what is outside the cluster. Of each pair it looks at the ports that rules name, those\n" +
			"that the receiver declares, one of all others, and ICMP echo. It asks no node and changes nothing, and needs the\n" +
			"right to list what policy follows from.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			change.namespace = namespaceOf(kubeconfig)
			edit, said, err := change.read(cmd.InOrStdin())
			switch {
			case err != nil:
				return err
			case said == nil:
				return errors.New("name a change: -f FILE or --without KIND/NAMESPACE/NAME")
			}
			c, err := newClient(kubeconfig)
			if err != nil {
				return err
			}
			impact, err := policyImpactOf(cmd.Context(), c, edit)
			if err != nil {
				return err
			}
			return policyImpact{Impact: impact, DryRun: said}.write(cmd.OutOrStdout(), output)
		},
	}
	f := cmd.Flags()
	f.StringVar(&kubeconfig, "kubeconfig", "", "path of the kubeconfig; default as kubectl's")
	f.StringArrayVarP(&change.files, "filename", "f", nil, "YAML file of objects to put over those of the cluster, - for standard input; can be repeated")
	f.StringArrayVar(&change.without, "without", nil, "KIND/NAMESPACE/NAME of an object to do without; can be repeated")
	f.StringVarP(&output, "output", "o", "", "wide: all lines; json: see docs/policy-troubleshooting.md")
	return cmd
}

func policyImpactOf(ctx context.Context, c client.Client, change explain.Change) (*explain.Impact, error) {
	cluster, notes, err := readPolicyCluster(ctx, c)
	if err != nil {
		return nil, err
	}
	changed, err := cluster.Apply(change)
	if err != nil {
		return nil, err
	}
	before, err := explain.NewView(cluster)
	if err != nil {
		return nil, err
	}
	after, err := explain.NewView(changed)
	if err != nil {
		return nil, err
	}
	impact := explain.NewImpact(before, after)
	impact.Notes = append(impact.Notes, notes...)
	return impact, nil
}

// policyImpact is what policy impact prints.
type policyImpact struct {
	*explain.Impact
	DryRun *dryRun `json:"dryRun"`
}

const (
	// someChanges are shown, and of each someGroups at an end, but for the wide form.
	someChanges = 50
	someGroups  = 6
)

func (i policyImpact) write(w io.Writer, form string) error {
	switch form {
	case "json":
		return encodeJSON(w, i)
	case "", "wide":
		var out bytes.Buffer
		i.print(&out, form == "wide")
		_, err := w.Write(out.Bytes())
		return err
	}
	return fmt.Errorf("--output is %q: it can be wide or json", form)
}

func (i policyImpact) print(out io.Writer, wide bool) {
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(out, format+"\n", args...) }
	line("%s", i.summary())
	for n, c := range i.Changes {
		if n == 0 {
			line("")
		}
		if n == someChanges && !wide {
			line("… and %d more: see -o wide", len(i.Changes)-n)
			break
		}
		for _, text := range trafficTexts(c.Traffic) {
			line("%s → %s: %s", groupsText(c.From, wide), groupsText(c.To, wide), text)
		}
	}
	var notes []string
	for _, p := range i.Problems {
		notes = append(notes, "problem: "+p)
	}
	for _, n := range i.Notes {
		notes = append(notes, "note: "+n)
	}
	if i.NotCompared > 0 {
		notes = append(notes, fmt.Sprintf("note: %d pairs of kinds of pods are not compared: there are too many", i.NotCompared))
	}
	for n, text := range notes {
		if n == 0 {
			line("")
		}
		line("%s", text)
	}
}

func (i policyImpact) summary() string {
	switch {
	case i.Affected == 0:
		return "nothing changes: no pod has other policies in force, nor the same with other rules or for other pods"
	case len(i.Changes) > 0:
		return fmt.Sprintf("%s other policies in force, or the same with other rules or for other pods", haveHas(i.Affected))
	case i.NotCompared > 0:
		return fmt.Sprintf("%s other policies in force; as far as it was compared nothing changes in who may talk to whom", haveHas(i.Affected))
	}
	return fmt.Sprintf("nothing changes in who may talk to whom, though %s other policies in force, or the same with other rules or for other pods", haveHas(i.Affected))
}

func haveHas(pods int) string {
	if pods == 1 {
		return "1 pod has"
	}
	return fmt.Sprintf("%d pods have", pods)
}

func groupsText(groups []explain.Group, wide bool) string {
	left := len(groups) - someGroups
	if wide || left <= 1 { // one more takes no more room than to say so
		left = 0
	}
	texts := make([]string, 0, len(groups))
	for _, g := range groups[:len(groups)-left] {
		texts = append(texts, g.String())
	}
	text := strings.Join(texts, ", ")
	if left > 0 {
		text += fmt.Sprintf(" and %d more", left)
	}
	return text
}

// trafficTexts put together what changes in the same way.
func trafficTexts(all []explain.TrafficChange) []string {
	var ends []string
	of := map[string][]string{}
	for _, t := range all {
		end := fmt.Sprintf("%s → %s", t.Before, t.After)
		if t.Family != "" {
			end = fmt.Sprintf("over %s: %s", t.Family, end)
		}
		if of[end] == nil {
			ends = append(ends, end)
		}
		of[end] = append(of[end], t.What)
	}
	out := make([]string, 0, len(ends))
	for _, end := range ends {
		sep := ": "
		if strings.HasPrefix(end, "over") {
			sep = " "
		}
		out = append(out, strings.Join(of[end], ", ")+sep+end)
	}
	return out
}
